"""ONE IDEA: every method on one pool and its tasks, with its paper's defaults and searched at an equal budget, judged on unseen examples.

The protocol is MergeBench's (arXiv 2505.10833): scores divided by those of each task's own expert, what is forgotten on held-out
tasks, and the cost. `settings` is the YAML, `rows` says which models are compared, `run` scores and searches them, a file for each
row, `summary` puts intervals on them, and `page` shows them.
"""

from evomerge.bench.rows import Row, plan
from evomerge.bench.run import Runner
from evomerge.bench.settings import Bench
from evomerge.bench.summary import Line, Summary, summarise

__all__ = ["Bench", "Line", "Row", "Runner", "Summary", "plan", "summarise"]
