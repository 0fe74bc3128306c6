"""Front table: the models of a report as rows of numbers, for other tools."""

import csv
import io
from typing import Any

from evomerge.report.results import Results
from evomerge.view.candidate import find
from evomerge.view.source import Source


def front_csv(source: Source, results: Results) -> str:
    """Return CSV with a row for each candidate on the front of `results`, and for each of its references.

    Each mean on search and unseen examples has two more columns, the ends of its 95% interval. Search intervals are empty where the
    search examples were not all scored.
    """
    source.update()
    parts = source.study.parts
    names = [*(f"search {key}" for key in parts.searched), *(f"unseen {key}" for key in parts.reported), "unseen mean"]
    first = ["name", "number", "recipe_id", "picked", "on_front", "equals"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*first, *(column for name in names for column in (name, f"{name} low", f"{name} high"))])
    for one in (*results.front, *results.references.values()):
        _, evaluation = find(source, one.name)
        found = None if evaluation is None else source.intervals(evaluation)
        searched: list[Any] = [(value, None, None) for value in one.search.values()] if found is None else found
        number = one.name.removeprefix("#") if one in results.front else None
        scores = [end for interval in (*searched, *one.report.values(), one.mean) for end in interval]
        picked = int(one.recipe_id == results.picked)
        writer.writerow([one.name, number, one.recipe_id, picked, one.on_front, one.equals, *scores])
    return out.getvalue()
