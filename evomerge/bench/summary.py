"""Summary: the rows of a bench as numbers with intervals, on unseen examples.

Each row is compared with the plain average on the same examples (paired), at a level that all comparisons share (Bonferroni). A
task's scores are divided by those of its own expert; where its metric has no zero, as a log-likelihood, 0 is the base and 1 the expert.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.bench.rows import AVERAGE, Kind, Row
from evomerge.bench.run import Done, Runner
from evomerge.recipe import Base, Expert, Recipe
from evomerge.report import bootstrap, wording
from evomerge.report.data import Data, Interval
from evomerge.tasks import Task


class Line(Data):
    """One row: a model's scores, or the reason why there are none. Higher is better."""

    name: str
    kind: Kind
    method: str | None = None
    recipe_id: str | None = None
    recipe: object = None
    report: Mapping[str, Interval] = {}
    """Task → mean of the reported metric on its unseen examples."""
    normalised: Interval | None = None
    """Mean over tasks of the score as a share of that of the task's own expert, which is 1."""
    beyond_average: Interval | None = None
    """`normalised` minus that of the plain average, paired, at the summary's `level`."""
    held_out: Mapping[str, Interval] = {}
    """Held-out task → the score minus the base's, paired: below 0 where something is forgotten."""
    cpu_s: float = 0.0
    """CPU seconds for merging this model and scoring it on the unseen examples."""
    merge_s: float = 0.0
    """Seconds of merging."""
    search_s: float = 0.0
    """Seconds of the evaluations of the search, and of statistics that were not in the cache."""
    evaluations: int = 0
    examples: int = 0
    """Different examples that the model was made with."""
    read_bytes: int = 0
    """Bytes of the models that the merge reads."""
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` than the plain average, or nothing where that is not shown."""
        if self.beyond_average is None or self.name == AVERAGE:
            return ""
        _, low, high = self.beyond_average
        return "better" if low > 0 else "worse" if high < 0 else ""


class Summary(Data):
    """A bench: its tasks, and its rows in the order of the plan."""

    format: int = 1
    name: str
    metrics: Mapping[str, str]
    """Task → reported metric, held-out tasks too."""
    examples: Mapping[str, tuple[int, int]]
    """Task → numbers of search examples and of unseen ones."""
    experts: Mapping[str, str]
    """Task → its own expert, by which its scores are divided."""
    left_out: Mapping[str, str]
    """Tasks that are no part of the normalised score, and why."""
    held_out: tuple[str, ...]
    budget: int
    model_bytes: int
    """Bytes of one model of the pool, and so of a merged one."""
    level: float
    """Confidence of each comparison with the average."""
    lines: tuple[Line, ...]

    def line(self, name: str) -> Line:
        """Return the row of a name."""
        return next(line for line in self.lines if line.name == name)


def summarise(runner: Runner) -> Summary:
    """Return the summary of what a bench has done so far; rows that are not done are left out."""
    done = runner.done()
    rows = [row for row in runner.rows if row.name in done]
    scored = {name: one for name, one in done.items() if one.evaluation is not None and one.reason is None}
    tasks, settings = runner.parts.tasks, runner.bench.study
    objectives = {name: f"{name}/{task.report_metric}" for name, task in tasks.items()}
    keys = {objectives[name]: task.example_keys("report") for name, task in tasks.items()}
    draws = bootstrap.resamples(keys, settings.report.resamples, settings.seed)
    own = {name: expert for name in runner.merged if (expert := _expert(name, tasks[name], runner)) is not None}
    units, origins, left_out = _units(runner, scored, own)
    normal = _subset(draws, [objectives[name] for name in units])
    compared = len(scored) - 1  # all but the average
    level = 1 - 0.05 / max(compared, 1)
    base, average = (_scores(scored.get(name)) for name in ("base", AVERAGE))

    def line(row: Row) -> Line:
        one = done[row.name]
        empty = Line(name=row.name, kind=row.kind, method=row.method, reason=one.reason)
        scores = _scores(one)
        if row.name not in scored or scores is None:
            return empty
        reported = bootstrap.intervals(scores, draws)
        normalised = beyond = None
        if units:
            shift = float(np.mean([origins[name] / units[name] for name in units]))
            value, low, high = bootstrap.mean_interval(scores, normal, list(units.values()))
            normalised = value - shift, low - shift, high - shift
            if average is not None:
                beyond = bootstrap.difference(scores, average, normal, level, list(units.values()))
        forgotten = {
            name: bootstrap.difference(scores, base, _subset(draws, [objectives[name]]))
            for name in runner.bench.held_out
            if base is not None and row.name != "base"
        }
        assert one.recipe is not None  # it has been scored
        return empty.model_copy(
            update={
                "recipe_id": one.recipe.id,
                "recipe": one.recipe.data,
                "report": {name: reported[objective] for name, objective in objectives.items()},
                "normalised": normalised,
                "beyond_average": beyond,
                "held_out": forgotten,
                **{key: getattr(one, key) for key in ("cpu_s", "merge_s", "search_s", "evaluations", "examples")},
                "read_bytes": _models_read(one.recipe) * runner.parts.pool.nbytes,
            }
        )

    return Summary(
        name=settings.name,
        metrics={name: task.report_metric for name, task in tasks.items()},
        examples={name: (task.size("search"), task.size("report")) for name, task in tasks.items()},
        experts=own,
        left_out=left_out,
        held_out=tuple(runner.bench.held_out),
        budget=runner.bench.budget,
        model_bytes=runner.parts.pool.nbytes,
        level=level,
        lines=tuple(line(row) for row in rows),
    )


def order(summary: Summary) -> list[Line]:
    """Return the rows: references, then methods by the better of their normalised scores, then those that have none."""
    best: dict[str | None, float] = {}
    for line in summary.lines:
        if line.normalised is not None:
            best[line.method] = max(best.get(line.method, -np.inf), line.normalised[0])
    references = [line for line in summary.lines if line.kind == "reference"]
    others = [line for line in summary.lines if line.kind != "reference"]
    done = sorted(
        (line for line in others if line.reason is None),
        key=lambda line: (-best.get(line.method, -np.inf), str(line.method)),
    )
    return [*references, *done, *(line for line in others if line.reason is not None)]


def _expert(name: str, task: Task, runner: Runner) -> str | None:
    """Return a task's own expert: the one of its name, or whose evidence it is, else the best on its search examples."""
    experts, evidence = runner.parts.pool.experts, runner.bench.study.pool.evidence
    if name in experts:
        return name
    for expert, given in evidence.items():
        if given.task == name:
            return expert
    means = {
        expert: float(runner.singles[f"expert {expert}"][1].means([f"{name}/{task.search_metric}"])[0])
        for expert in experts
    }
    return max(means, key=lambda expert: means[expert])


def _units(
    runner: Runner, scored: Mapping[str, Done], own: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Return by task the difference that counts as 1, the score that counts as 0, and, of tasks without these, why."""
    units: dict[str, float] = {}
    origins: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, expert in own.items():
        task = runner.parts.tasks[name]
        objective = f"{name}/{task.report_metric}"
        models = [_scores(scored.get(model)) for model in ("base", f"expert {expert}")]
        base, best = (np.nan if one is None else float(one[objective].mean(dtype=np.float64)) for one in models)
        origin = 0.0 if task.metrics[task.report_metric].low >= 0 else base
        if best - origin > 0:
            units[name], origins[name] = best - origin, origin
        else:
            least = "0" if origin == 0 else "the base"
            shown = wording.value(best, task.report_metric)
            left_out[name] = f"its expert `{expert}` is not above {least} on the unseen examples: {shown}"
    return units, origins, left_out


def _scores(done: Done | None) -> bootstrap.Scores | None:
    return None if done is None or done.evaluation is None else done.evaluation.scores


def _subset(draws: bootstrap.Resamples, objectives: Sequence[str]) -> bootstrap.Resamples:
    return bootstrap.Resamples({name: draws.counts[name] for name in objectives}, draws.distinct)


def _models_read(recipe: Recipe) -> int:
    """Return how many models of the pool a recipe reads: one, or the base and the inputs."""
    return 1 if isinstance(recipe.root, Base | Expert) else 1 + len(recipe.experts)
