"""Tables and sentences for the terminal: what was found, on unseen examples, readable in a log file too."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.report import wording
from evomerge.report.results import Candidate, Comparison, Results

_WIDE = 4
"""Up to this many objectives the intervals fit beside their values in 110 columns; beyond, they go underneath."""


def summary(results: Results) -> list[RenderableType]:
    """Return one table of the references and the front, each score with its 95% interval over unseen examples."""
    table = _table(results, [*results.references.values()], [*results.front])
    return [
        table,
        f"The front has {len(results.front)} merges; * is the picked one, the best mean on the search examples.",
        "",
    ]


def point(results: Results, candidate: Candidate) -> RenderableType:
    """Return one point beside the references that everybody has without a search."""
    shown = [results.references[name] for name in results.references if not name.startswith("expert ")]
    return _table(results, shown, [candidate])


def sentences(results: Results) -> list[str]:
    """Return the verdicts in words, what became of a population, and what was searched and how much of it failed."""
    said = [_verdict(results, comparison) for comparison in results.comparisons]
    if (became := population(results)) is not None:
        said.append(became)
    failed = f", {results.failed} failed" if results.failed else ""
    said.append(
        f"{results.evaluations} candidates were evaluated{failed}. Search scores chose the front; "
        "every score shown was measured on examples that the search never saw."
    )
    return said


def population(results: Results) -> str | None:
    """Return what a population of models is like at the end; None for any other search."""
    if results.not_replayed is not None:
        return f"The population is not shown: {results.not_replayed}."
    found = results.diagnostics
    if found is None:
        return None
    filled = "".join(
        f"; {len(cells.elites)} of {cells.size} cells filled (best {wording.objective(cells.quality)})"
        for cells in results.cells
    )
    entropy = None if found.entropy is None else found.entropy[-1]
    return f"The population has {found.members} members: {wording.covered(found.coverage[-1], entropy)}{filled}."


def _verdict(results: Results, comparison: Comparison) -> str:
    mine, theirs = comparison.values
    if comparison.what == "hypervolume":
        gap = "{} [{}, {}]".format(*(wording.volume(number, sign=True) for number in comparison.difference))
        return (
            f"The {comparison.better} has hypervolume {wording.volume(mine)} on unseen examples, "
            f"{comparison.worse} {wording.volume(theirs)}: {gap} without what many noisy points gain by luck, "
            f"{comparison.verdict}."
        )
    metric = wording.mean_metric(results)
    return (
        f"The {comparison.better} has mean {metric} {wording.value(mine, metric)} on unseen examples, "
        f"the {comparison.worse} {wording.value(theirs, metric)}: "
        f"{wording.interval(comparison.difference, metric, sign=True)}, {comparison.verdict}."
    )


def _table(results: Results, references: list[Candidate], merges: list[Candidate]) -> Table:
    """Return a table with an empty line between what needs no search and what the search found."""
    table = Table(
        title="On unseen examples, with 95% intervals",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("model")
    for objective in results.objectives:
        table.add_column(Text(f"{objective.name}\n{wording.metric(objective.report)}"), justify="right")
    mean = wording.mean_metric(results)
    table.add_column(Text(f"mean\n{mean}"), justify="right")
    narrow = len(results.objectives) > _WIDE

    def row(candidate: Candidate, mark: str) -> None:
        cells = [wording.interval(candidate.report[o.name], o.report) for o in results.objectives]
        cells.append(wording.interval(candidate.mean, mean))
        table.add_row(
            Text(candidate.name + mark), *(Text(cell.replace(" ", "\n", 1) if narrow else cell) for cell in cells)
        )

    for candidate in references:
        row(candidate, "")
    table.add_row()
    for candidate in merges:
        row(candidate, " *" if candidate.recipe_id == results.picked else "")
    return table
