"""Tables and sentences of results, for terminals and log files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from evomerge.report import wording
from evomerge.report.results import Candidate, Comparison, Results, Verified
from evomerge.report.runs import Run
from evomerge.report.score import Scored
from evomerge.report.surface import Prediction
from evomerge.tasks import Task
from evomerge.trial import Split

_STYLE: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": None, "pad_edge": False}


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A table with a line for each model, or, where the console is not wide enough, with intervals underneath the scores."""

    build: Callable[[str], Table]
    """Takes the text between a score and its interval."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        one_line = self.build(" ")
        width = console.measure(one_line, options=options.update(width=10_000)).maximum
        yield one_line if width <= options.max_width else self.build("\n")


def summary(results: Results) -> list[RenderableType]:
    """Return one table of the references and the front, each score with its 95% interval over unseen examples."""
    table = _table(results, [*results.references.values()], [*results.front])
    same = sum(one.equals is not None for one in results.front)
    known = f", {same} of which score as a reference (=)" if same else ""
    return [table, f"The front has {len(results.front)} candidates{known}; * is the picked model.", ""]


def point(results: Results, candidate: Candidate) -> RenderableType:
    """Return the scores of one point beside those of the references."""
    shown = [one for name, one in results.references.items() if not name.startswith("expert ") and one != candidate]
    return _table(results, shown, [candidate])


def scores(models: Sequence[Scored], metrics: Mapping[str, str]) -> RenderableType:
    """Return a table of models, one a row, by the reported metric of each objective."""
    mean = None if models[0].mean is None else wording.common_metric(metrics.values()) or wording.SCALED

    def build(separator: str) -> Table:
        table = _empty(metrics, mean)
        for model in models:
            table.add_row(Text(model.name), *_cells(model, metrics, mean, separator))
        return table

    return _Fitting(build)


def warning(results: Results) -> str | None:
    """Return a warning where many candidates failed."""
    return wording.failures(results.failed, results.evaluations, results.common_failure)


def runs(compared: Sequence[Run], comparisons: Sequence[Comparison]) -> list[RenderableType]:
    """Return a table of searches, one a row, and the comparisons in words."""
    metric = wording.mean_metric(compared[0].results)
    table = Table(title="On unseen examples, the mean of each pick with its 95% interval", **_STYLE)
    for head in ("run", "driver", "evaluations", "seconds\nof work", "pick", f"mean\n{metric}", "front's\nhypervolume"):
        table.add_column(head, justify="left" if head in ("run", "driver", "pick") else "right")
    for run in compared:
        volume = "-" if run.hypervolume is None else wording.volume(run.hypervolume)
        pick, mean = run.results.pick.name, wording.interval(run.mean, metric)
        cells = run.driver, str(run.results.evaluations), f"{run.seconds:.1f}", pick, mean, volume
        table.add_row(Text(str(run.folder)), *map(Text, cells))
    sentences = [verdict(comparison, metric) for comparison in comparisons]
    if metric == wording.SCALED:
        sentences.append("The metrics differ, so each is scaled before the mean, by the models of the first run.")
    if compared[0].hypervolume is None:
        sentences.append("Hypervolumes are not compared: so many objectives would take too long.")
    return [table, "", *map(Text, (*sentences, levels(comparisons)))]


def choice(results: Results) -> str:
    """Return what is picked by default, and why."""
    chosen, metric = results.choice, wording.mean_metric(results, results.choice.metrics)
    gain = wording.interval(chosen.gain, metric, sign=True)
    better = f"mean {metric} {gain} above {chosen.reference}, and better with probability {chosen.probability:.2f}"
    best = next((one.name for one in results.front if one.recipe_id == chosen.candidate), chosen.candidate[:8])
    if chosen.is_candidate:
        return f"Picked: {best}. By the search examples, {chosen.reference} is the best reference, and {best} is estimated at {better}."
    return (
        f"Picked: {results.pick.name}, a reference. No candidate of the search is likely enough to be better on other examples: "
        f"by the search examples the best, {best}, is estimated at {better} ({chosen.needed:.2f} is needed). "
        f"`evomerge pick … --anyway` exports {best}."
    )


def reasons(results: Results, candidate: Candidate, *, default: bool) -> list[str]:
    """Return why a model is picked by default, or a warning where a reference is likely better than it."""
    if default and candidate.recipe_id == results.picked:
        return [choice(results)]
    if not results.choice.is_candidate and candidate in results.front:
        return [f"Warning: {choice(results)}"]
    return []


def prediction(
    predicted: Prediction, tasks: Mapping[str, Task], verified: Verified | None = None
) -> list[RenderableType]:
    """Return the predicted scores of a merge, how good such predictions are, and the measured scores if it is `verified`."""
    table = Table(title="Predicted on the search examples", **_STYLE)
    table.add_column("objective")
    measured = ("measured", "on unseen examples,\n95% interval") if verified is not None else ()
    for head in ("predicted,\n90% interval", *measured, "R²", "coverage"):
        table.add_column(Text(head), justify="right")
    for name, (mean, width) in predicted.scores.items():
        metric = tasks[name].search_metric
        cells = [f"{name}: {wording.metric(metric)}", wording.within(mean, width, metric)]
        if verified is not None:
            unseen = verified.unseen.get(name)
            cells.append(wording.value(verified.candidate.search[name], metric))
            cells.append("-" if unseen is None else wording.interval(unseen, metric))
        fit = predicted.fits[name]
        table.add_row(*map(Text, (*cells, f"{fit.r2:.2f}", f"{fit.coverage:.0%}")))
        if verified is not None and (reported := tasks[name].report_metric) != metric:
            unseen = verified.candidate.report[name]
            table.add_row(
                *map(Text, (f"{name}: {wording.metric(reported)}", "-", "-", wording.interval(unseen, reported)))
            )
    lines: list[RenderableType] = [table, ""]
    if predicted.best_for_all:
        lines.append("One merge is best for all objectives, within the uncertainty: there is no trade-off to choose.")
    if verified is not None:
        inside = sum(
            abs(verified.candidate.search[name] - mean) <= width for name, (mean, width) in predicted.scores.items()
        )
        lines.append(
            f"Measured on the search examples, {inside} of {len(predicted.scores)} scores lie in their 90% intervals."
            + (" The search evaluated this merge, so they do not test the prediction." if predicted.evaluated else "")
        )
    return lines


def surface(results: Results) -> str | None:
    """Return whether the surface of a study is reliable, and how well it predicts; None for a study without one."""
    predicted = results.surface
    if predicted is None:
        return None
    if predicted.refused is not None:
        return f"The surface is unreliable: {predicted.refused}."
    fits = ", ".join(f"{name} R² {fit.r2:.2f} and coverage {fit.coverage:.0%}" for name, fit in predicted.fits.items())
    shared = "" if predicted.best_for_all is None else " One merge is best for all objectives, within the uncertainty."
    return f"The surface predicts merges, `evomerge pick … --surface`: {fits}, each candidate predicted from the others.{shared}"


def sentences(results: Results) -> list[str]:
    """Return the comparisons in words, the state of a population or a surface, and what was evaluated.

    The first sentences are those of `Results.comparisons`, in the same order; the last one is about the evaluations.
    """
    metric = wording.mean_metric(results)
    lines = [verdict(comparison, metric, results.split) for comparison in results.comparisons]
    if metric == wording.SCALED:
        lines.append(
            "The metrics differ, so each is scaled before the mean: 0 is the base's score, 1 that of its best expert."
        )
    lines += [
        *missing(results),
        noise(results),
        *filter(None, [overfit(results)]),
        *filter(None, (population(results), surface(results), control(results), gains(results))),
        *advice(results),
    ]
    if results.damaged_costs:
        lines.append(f"{results.damaged_costs} lines of costs.jl are damaged: the times leave them out.")
    failed = f", {results.failed} failed" if results.failed else ""
    raced = f"; {results.stopped} lost their race before; {results.spent:g} evaluations' worth of examples in all"
    lines.append(
        f"{results.evaluations} candidates were evaluated{failed}{raced * bool(results.stopped)}. Search scores chose the front; "
        f"every score shown was measured on examples that the search never saw. {levels(results.comparisons)}"
    )
    return lines


def noise(results: Results) -> str:
    """Return how many examples each gene had, and how much of the differences between candidates is noise."""
    total = sum(objective.examples[0] for objective in results.objectives)
    return (
        f"{results.genes} genes were searched with {total} examples. Of the variance between the means of the better half of "
        f"models, {results.choice.noise:.0%} is the noise of these examples; more examples or fewer genes lower it."
    )


def control(results: Results) -> str | None:
    """Return what the experts give beyond a search over shuffled ones, or how to learn it where a study asks for it; else None."""
    if results.study.get("pool", {}).get("shuffled") is not None:
        return "This is a control: the task vectors of its experts are shuffled within each tensor."
    found, metric = results.control, wording.mean_metric(results)
    if found is None:
        asked = results.study.get("controls", {}).get("sham", False) and results.split == "report"
        return (
            "The control over shuffled experts is not done yet: `evomerge control RUN` makes it, or goes on with it."
            if asked
            else None
        )
    base = "" if found.base is None else f", the base {wording.value(found.base[0], metric)}"
    _, low, high = found.difference
    gain = f"give {wording.interval(found.difference, metric, sign=True)} (95%, paired) beyond it on the same examples"
    verdict = (
        "what the experts have learned is worth more than a search"
        if low > 0
        else "the pick is shown worse than a search over noise"
        if high < 0
        else "no more than what a search over noise of that size gives is shown"
    )
    return (
        f"Control: the same search over experts with shuffled task vectors ({found.evaluations} evaluations, its pick {found.picked}) "
        f"reaches mean {metric} {wording.interval(found.mean, metric)}{base}; the real experts {gain}: {verdict}."
    )


def gains(results: Results) -> str | None:
    """Return what one expert more would add, or why that is not known; None where the study does not ask for it."""
    found = results.gains
    if found is None:
        return None
    if found.refused is not None:
        return f"What an expert more would add is not estimated: {found.refused}."

    def said(number: float, *, sign: bool = False) -> str:
        return wording.value(number, found.metric, sign=sign)

    points = " points" if wording.is_share(found.metric) else ""
    value, low, high = (said(number) for number in found.more)
    means = ", ".join(said(value) for value, _, _ in found.means)
    doubt = " That is more than the predicted step: take it as a guess." if found.residual >= abs(found.more[0]) else ""
    return (
        f"An expert more is predicted to add {value}{points} (95% interval {low} to {high}) to an average's mean {found.metric} on the search "
        f"examples: averages of {', '.join(map(str, found.sizes))} experts reach {means}, and the line {said(found.floor)} "
        f"{said(found.slope, sign=True)} / k misses these by {said(found.residual)} (root mean square).{doubt} The interval is over the examples, "
        "not over which expert it is."
    )


def advice(results: Results) -> list[str]:
    """Return what to try next, each line with its evidence and how sure it is."""
    return [f"What to try next ({one.sure}): {one.text}. Evidence: {one.evidence}." for one in results.advice]


def overfit(results: Results) -> str | None:
    """Return the pick's scores on the examples that gave slopes, on the others, and on unseen ones; None without slopes."""
    fitted = results.fitted
    if fitted is None:
        return None
    parts = {
        "on the search examples that gave slopes": fitted.slopes,
        "on the other search examples": fitted.others,
        f"on {'unseen' if results.split == 'report' else 'the final'} examples": fitted.unseen,
    }
    known = [f"{wording.value(number, fitted.metric)} {where}" for where, number in parts.items() if number is not None]
    return f"The picked model has mean {wording.metric(fitted.metric)} {', '.join(known)}."


def levels(comparisons: Sequence[Comparison]) -> str:
    """Return the confidence levels of the intervals in words."""
    scores = "each interval of a score covers with 95% by itself"
    if len(comparisons) < 2:
        return f"{scores.capitalize()}."
    level = f"{100 * comparisons[0].level:.1f}%"
    return f"The intervals of the comparisons cover with {level} each, and so with 95% together (Bonferroni); {scores}."


def missing(results: Results) -> list[str]:
    """Return what could not be scored, with the models of one failure together, and what would take too long."""
    reasons: dict[str, list[str]] = {}
    for name, why in results.unscored.items():
        reasons.setdefault(why, []).append(name)
    sentences = [
        f"Could not be scored, and is in nothing above: {', '.join(names)}: {why}." for why, names in reasons.items()
    ]
    if all(comparison.what != "hypervolume" for comparison in results.comparisons):
        sentences.append(f"Hypervolumes are not compared: {len(results.objectives)} objectives would take too long.")
    return sentences


def population(results: Results) -> str | None:
    """Return the state of a population of models at the end; None for any other search."""
    if results.not_replayed is not None:
        return f"The population is not shown: {results.not_replayed}."
    diagnostics = results.diagnostics
    if diagnostics is None:
        return None
    filled = "".join(
        f"; {len(cells.elites)} of {cells.size} cells filled (best {wording.objective(cells.quality)})"
        for cells in results.cells
    )
    entropy = None if diagnostics.entropy is None else diagnostics.entropy[-1]
    covered = wording.covered(diagnostics.coverage[-1], entropy)
    return f"The population has {diagnostics.members} members: {covered}{filled}."


def verdict(comparison: Comparison, metric: str, split: Split = "report") -> str:
    """Return a comparison in words; `metric` is that of means over objectives."""
    mine, theirs = comparison.values
    if comparison.what == "hypervolume":
        gap = "{} [{}, {}]".format(*(wording.volume(number, sign=True) for number in comparison.difference))
        return (
            f"The {comparison.better} has hypervolume {wording.volume(mine)} on {wording.SPLITS[split]}, "
            f"{comparison.worse} {wording.volume(theirs)}: {gap} after a correction for the chance gain of many noisy points, "
            f"{comparison.verdict}."
        )
    return (
        f"The {comparison.better} has mean {metric} {wording.value(mine, metric)} on {wording.SPLITS[split]}, "
        f"the {comparison.worse} {wording.value(theirs, metric)}: "
        f"{wording.interval(comparison.difference, metric, sign=True)}, {comparison.verdict}."
    )


def _table(results: Results, references: list[Candidate], merges: list[Candidate]) -> RenderableType:
    """Return a table of the references, an empty line, and the merges of the search."""
    metrics = {objective.name: objective.report for objective in results.objectives}
    mean = wording.mean_metric(results)
    chances = any(one.on_front is not None for one in merges)

    def build(separator: str) -> Table:
        table = _empty(metrics, mean, results.split)
        if chances:
            table.add_column(Text("on the\nfront"), justify="right")
        for candidate in (*references, None, *merges):
            if candidate is None:
                table.add_row()
                continue
            cells = _cells(candidate, metrics, mean, separator)
            if chances:
                cells.append(Text("" if candidate.on_front is None else f"{candidate.on_front:.0%}"))
            table.add_row(Text(candidate.label + " *" * (candidate.recipe_id == results.picked)), *cells)
        return table

    return _Fitting(build)


def _empty(metrics: Mapping[str, str], mean: str | None, split: Split = "report") -> Table:
    """Return a table with columns for the objectives, with the metric of each, and for their mean if there is one."""
    table = Table(title=f"On {wording.SPLITS[split]}, each with its 95% interval", **_STYLE)
    table.add_column("model")
    for name, metric in metrics.items():
        table.add_column(Text(f"{name}\n{wording.metric(metric)}"), justify="right")
    if mean is not None:
        table.add_column(Text(f"mean\n{mean}"), justify="right")
    return table


def _cells(model: Candidate | Scored, metrics: Mapping[str, str], mean: str | None, separator: str) -> list[Text]:
    """Return the scores of a model with their intervals after the `separator`."""
    cells = [wording.interval(model.report[name], metric) for name, metric in metrics.items()]
    if mean is not None and model.mean is not None:
        cells.append(wording.interval(model.mean, mean))
    return [Text(cell.replace(" ", separator, 1)) for cell in cells]
