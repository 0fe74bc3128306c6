"""ONE IDEA: a page in a browser shows what a study's folder says, as the report would say it, while the search goes on.

`source` follows one study, `recipes`, `genes` and `candidate` make the parts of the page's data, `server` answers the browser,
and `static` holds the page. All numbers come from `evomerge.report`, `evomerge.status`, `evomerge.pareto` and `evomerge.surrogate`.
"""
