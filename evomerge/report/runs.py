"""runs: what several searches found, compared on the same unseen examples.

Not to be confused with `comparisons`, which compares one search with its references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import pareto
from evomerge.digests import code_digests, data_digest
from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.report import bootstrap, measure
from evomerge.report.comparisons import RESAMPLES, of_fronts, volume
from evomerge.report.data import Interval
from evomerge.report.results import Comparison, Results
from evomerge.report.scorer import Scorer, Watch
from evomerge.study import Study

_NOT_JUDGED = ("search", "final", "search_metric", "group", "keep_margins", "batch", "metrics", "gradient")
"""Settings of a task that do not change its reported scores."""


@dataclass(frozen=True, slots=True)
class Run:
    """One study among those compared."""

    folder: Path
    driver: str
    results: Results
    mean: Interval
    """Mean over objectives of the pick, with its 95% interval. Where metrics differ, 0 is the first run's base in each, and 1
    its best expert."""
    hypervolume: float | None
    """Of the front on the report split, above the worst references of all runs; None where it would take too long."""

    @property
    def seconds(self) -> float:
        """Seconds of work of the search, summed over its workers."""
        return sum(seconds for kind, seconds in self.results.costs.items() if kind.startswith("search: "))

    def public(self) -> dict[str, Any]:
        """Return the stable JSON form of `evomerge compare --json`."""
        pick = self.results.pick
        return {
            "run": str(self.folder),
            "driver": self.driver,
            "evaluations": self.results.evaluations,
            "seconds": self.seconds,
            "picked": {"name": pick.name, "recipe_id": pick.recipe_id, "report": pick.report, "mean": self.mean},
            "hypervolume": self.hypervolume,
        }


def check(studies: Sequence[Study]) -> None:
    """Raise `StudyError` unless these are several studies, whose tasks report the same metrics on the same examples."""
    if len({study.folder.resolve() for study in studies}) < max(len(studies), 2):
        given = ", ".join(str(study.folder) for study in studies)
        raise StudyError(f"compare: expected two or more different runs, got {given}")
    first, *others = studies
    theirs = _judged(first)
    for study in others:
        both, ours = f"{study.folder} and {first.folder}", _judged(study)
        if ours.keys() != theirs.keys():
            raise StudyError(f"{both}: expected the same tasks, got {', '.join(ours)} and {', '.join(theirs)}")
        for name, settings in ours.items():
            for key in sorted(settings.keys() | theirs[name].keys()):
                came, wanted = settings.get(key), theirs[name].get(key)
                if came != wanted:
                    msg = f"{both}: task `{name}` differs in `{key}`: {came} and {wanted}; expected the same metric on the same examples"
                    raise StudyError(msg)


def compare(studies: Sequence[Study], watch: Watch = lambda done, total: None) -> tuple[list[Run], list[Comparison]]:
    """Return the runs, and each run after the first compared with the first: the means of their picks, and their fronts.

    Models that a study's report lacks are scored, as by `measure`, which gets `watch`. The comparisons share an error rate of
    5%: with n of them, each interval is at 1 - 0.05 / n (Bonferroni). Hypervolumes are left out where they would take too
    long. Raises `StudyError`; see `check`.
    """
    check(studies)
    measured = [measure.measure(study, watch=watch) for study in studies]
    scorers = [_scorer(*pair) for pair in zip(studies, measured, strict=True)]
    pairs = [*zip(scorers, measured, strict=True)]
    picked = [scorer.scores(results.picked) for scorer, results in pairs]
    fronts = [[scorer.scores(one.recipe_id) for one in results.front] for scorer, results in pairs]
    first, units = scorers[0], scorers[0].units.tolist()
    origin = float((first.origins / first.units).mean())
    means = [bootstrap.mean_interval(scores, first.reported, units) for scores in picked]
    corner = _corner(measured)
    volumes = [None if corner is None else volume(front, corner) for front in fronts]
    names = [str(study.folder) for study in studies]
    runs = [
        Run(study.folder, study.parts.driver["kind"], results, (value - origin, low - origin, high - origin), size)
        for study, results, (value, low, high), size in zip(studies, measured, means, volumes, strict=True)
    ]
    level = 1 - (1 - bootstrap.LEVEL) / ((len(runs) - 1) * (1 if corner is None else 2))
    comparisons = []
    for other in range(1, len(runs)):
        comparisons.append(
            Comparison(
                better=f"pick of {names[other]}",
                worse=f"pick of {names[0]}",
                values=(runs[other].mean[0], runs[0].mean[0]),
                what="mean",
                difference=bootstrap.difference(picked[other], picked[0], first.reported, level, units),
                level=level,
            )
        )
        if corner is not None:
            between = f"front of {names[other]}", f"the front of {names[0]}"
            comparisons.append(of_fronts(between, (fronts[other], fronts[0]), corner, first.reported, level))
    return runs, comparisons


def _judged(study: Study) -> dict[str, dict[str, Any]]:
    """Return what determines the reported scores of a model, by task: settings, the metric, and digests of data and code."""
    code = code_digests(study.parts.setup).get("code_digests", {})
    judged = {}
    for name, task in study.parts.tasks.items():
        entry = study.parts.setup.tasks[name]
        digests = data_digest(entry, study.settings.folder)
        function = code.get(str(entry.get("function")))
        settings = {**entry, **digests, "report_metric": task.report_metric, "code": function}
        judged[name] = {key: value for key, value in settings.items() if key not in _NOT_JUDGED}
    return judged


def _scorer(study: Study, results: Results) -> Scorer:
    """Return the scorer of the models in `results`, all of which the study's report has scored, with its scale."""
    references = {name: Recipe.parse(one.recipe) for name, one in results.references.items()}
    scorer = Scorer(study, ())
    scorer.score({**references, **{one.name: Recipe.parse(one.recipe) for one in results.front}}, "report")
    scorer.scale(references)
    return scorer


def _corner(measured: Sequence[Results]) -> dict[str, float] | None:
    """Return the lowest score of any run's references by objective, `task/metric`; None where hypervolumes take too long."""
    points = [results.hypervolume.report_point for results in measured if results.hypervolume is not None]
    objectives = measured[0].objectives
    largest = max(len(results.front) for results in measured)
    if len(points) < len(measured) or not pareto.affordable(largest, len(objectives), repeats=4 * RESAMPLES):
        return None
    return {f"{one.name}/{one.report}": min(point[one.name] for point in points) for one in objectives}
