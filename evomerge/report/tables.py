"""Tables and sentences for the terminal: what was found, on unseen examples, readable in a log file too."""

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from evomerge.report import wording
from evomerge.report.results import Candidate, Comparison, Results


def summary(results: Results) -> list[RenderableType]:
    """Return the tables of the references and of the front, each score with its 95% interval over unseen examples."""
    references = _table(results, "on unseen examples", list(results.references.values()))
    front = _table(results, f"front, {len(results.front)} merges (* is the picked one)", list(results.front))
    return [references, "", front, ""]


def point(results: Results, candidate: Candidate) -> RenderableType:
    """Return one point beside the references that everybody has without a search."""
    shown = [results.references[name] for name in results.references if not name.startswith("expert ")]
    return _table(results, "on unseen examples", [*shown, candidate])


def sentences(results: Results) -> list[str]:
    """Return the verdicts in words, and what was searched and how much of it failed."""
    said = [_verdict(results, comparison) for comparison in results.comparisons]
    failed = f", {results.failed} failed" if results.failed else ""
    said.append(
        f"{results.evaluations} candidates were evaluated{failed}. Search scores chose the front; "
        "every number above was measured on examples that the search never saw."
    )
    return said


def _verdict(results: Results, comparison: Comparison) -> str:
    mine, theirs = comparison.values
    if comparison.what == "hypervolume":
        gap = "{} [{}, {}]".format(*(wording.volume(number, sign=True) for number in comparison.difference))
        return (
            f"The {comparison.better} has hypervolume {wording.volume(mine)} on unseen examples, "
            f"{comparison.worse} {wording.volume(theirs)}: {gap}, {comparison.verdict}."
        )
    metric = wording.mean_metric(results)
    return (
        f"The {comparison.better} has mean {metric} {wording.value(mine, metric)} on unseen examples, "
        f"the {comparison.worse} {wording.value(theirs, metric)}: "
        f"{wording.interval(comparison.difference, metric, sign=True)}, {comparison.verdict}."
    )


def _table(results: Results, title: str, candidates: list[Candidate]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for objective in results.objectives:
        table.add_column(f"{escape(objective.name)}\n{wording.metric(objective.report)}", justify="right")
    table.add_column(f"mean\n{wording.mean_metric(results)}", justify="right")
    for candidate in candidates:
        star = " *" if candidate.recipe_id == results.picked else ""
        cells = [wording.interval(candidate.report[o.name], o.report) for o in results.objectives]
        table.add_row(
            escape(candidate.name) + star, *cells, wording.interval(candidate.mean, wording.mean_metric(results))
        )
    return table
