"""What the experiments on layers share: the experts, a task that none of them can do alone, searching and judging.

The task is sums asked in German, the language of one expert with the skill of the other. Candidates are searched by the
log-likelihood of the right answers on its search split; what is reported is the share of its unseen sums that are
answered right, and what is left of the experts' own tasks.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from shared.harness import Findings, say, table

from evomerge import files, recipe, zoo
from evomerge.evaluate import Setup, Worker
from evomerge.recipe import Recipe, canonical_json
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation

BATCHES: Mapping[str, Mapping[str, int]] = {  # sums are short
    "german_addition": {"batch": 50},
    "addition": {"batch": 50},
    "german": {"batch": 20, "max_length": 32},
}
SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
DENSITIES = (0.2, 0.5)
TIES_SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Bed:
    """Where methods are compared: two experts, `language` and `skill`, and the task `goal`."""

    language: str
    skill: str
    goal: str
    pool: Mapping[str, Any]
    tasks: Mapping[str, Any]
    precision: str
    evaluations: int
    studies: Path

    def setup(self, *tasks: str) -> Setup:
        """Return what a worker needs to know to score on some tasks."""
        chosen = {name: self.tasks[name] for name in tasks}
        return Setup(self.pool["base"], self.pool["experts"], chosen, precision=self.precision)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The reported metrics: the goal's two, and one of each expert's own task."""
        kinds = {
            name: "accuracy" if task["kind"] != "language_modelling" else "log_likelihood"
            for name, task in self.tasks.items()
        }
        return (*(f"{name}/{kind}" for name, kind in kinds.items()), f"{self.goal}/log_likelihood")


def bed(name: str, evaluations: int, studies: Path, *, smoke: bool) -> Bed:
    """Return the bed of experiment `name`: the language zoo, or for a smoke run the tiny digits."""
    embedded = zoo.find_or_build(
        "digits" if smoke else "language", seed=0, progress=lambda done, doing: say(f"{name}: {done:4.0%} {doing}")
    )
    language, skill, goal = ("turned", "inverted", "shifted") if smoke else ("german", "addition", "german_addition")
    return Bed(
        language,
        skill,
        goal,
        {"base": embedded.pool["base"], "experts": {key: embedded.pool["experts"][key] for key in (language, skill)}},
        {key: {**embedded.tasks[key], **({} if smoke else BATCHES[key])} for key in (goal, language, skill)},
        str(zoo.fast_precision()).removeprefix("torch."),
        8 if smoke else evaluations,
        studies,
    )


@dataclass
class Method:
    """What one method came to, a model and its unseen scores for each seed; one seed where nothing is random."""

    evaluations: int
    recipes: list[Recipe] = field(default_factory=list)
    searched: list[float] = field(default_factory=list)
    reports: list[Evaluation] = field(default_factory=list)

    def mean(self, metric: str) -> float:
        """Return the mean of a reported metric over examples and seeds."""
        return float(np.mean([report.scores[metric].mean() for report in self.reports]))

    def deviation(self, metric: str) -> float | None:
        """Return the standard deviation over seeds of a reported metric, None for one seed."""
        values = [report.scores[metric].mean() for report in self.reports]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


class Comparison:
    """Methods side by side on one bed, each judged by one worker."""

    def __init__(self, bed: Bed) -> None:
        """Compare on `bed`."""
        self.bed = bed
        self.methods: dict[str, Method] = {}
        self._worker = Worker(bed.setup(*bed.tasks))
        self._goal = Worker(bed.setup(bed.goal))

    def references(self) -> None:
        """Judge what needs no search: base, experts, average, and task arithmetic and TIES at their best grid point."""
        pair = [self.bed.language, self.bed.skill]
        self.take("base", [recipe.base()])
        for name in pair:
            self.take(f"expert {name}", [recipe.expert(name)])
        self.take("average", [recipe.merge("linear", pair)])
        self.take("task arithmetic", [recipe.merge("task_arithmetic", pair, {"lambda": scale}) for scale in SCALES])
        grid = [{"density": density, "lambda": scale} for density in DENSITIES for scale in TIES_SCALES]
        self.take("TIES", [recipe.merge("ties", pair, point) for point in grid])

    def take(self, name: str, candidates: Sequence[Recipe]) -> None:
        """Judge the best of `candidates` on the search split, as the method `name`."""
        scores = [self.searched(candidate) for candidate in candidates] if len(candidates) > 1 else [np.nan]
        best = int(np.argmax(scores)) if len(candidates) > 1 else 0
        self._add(name, candidates[best], scores[best], len(candidates) if len(candidates) > 1 else 0)

    def search(self, name: str, seed: int, space: Mapping[str, Any]) -> Recipe:
        """Search `space` with a seed, judge the best candidate as the method `name`, and return it."""
        bed = self.bed
        given = {
            "name": f"{name.replace(' ', '_').replace(',', '')}-{seed}",
            "pool": dict(bed.pool),
            "tasks": {bed.goal: bed.tasks[bed.goal]},
            "space": space,
            "seed": seed,
            "evaluations": bed.evaluations,
            "precision": bed.precision,
        }
        settings = StudySettings.parse(given, name, Path())
        study = Study.create(bed.studies / settings.name, settings)
        say(f"{name}, seed {seed}: {bed.evaluations} evaluations")
        with study.evaluator() as evaluator:
            study.run(evaluator)
        objective = study.parts.searched[0]
        told = [(proposal, evaluation) for proposal, evaluation in study.population() if evaluation.error is None]
        values = [float(evaluation.scores[objective].mean(dtype=np.float64)) for _, evaluation in told]
        best = int(np.argmax(values))
        self._add(name, told[best][0].recipe, values[best], bed.evaluations)
        return told[best][0].recipe

    def searched(self, candidate: Recipe) -> float:
        """Return a candidate's mean on the goal's search split."""
        found = _good(self._goal.evaluate(candidate, "search"))
        return float(next(iter(found.scores.values())).mean(dtype=np.float64))

    def _add(self, name: str, candidate: Recipe, searched: float, evaluations: int) -> None:
        report = self._judged(candidate)
        method = self.methods.setdefault(name, Method(evaluations))
        method.recipes.append(candidate)
        method.searched.append(searched)
        method.reports.append(report)
        goal = self.bed.metrics[0]
        say(f"{name}: {goal} {report.scores[goal].mean():.3f} on unseen examples")

    def _judged(self, candidate: Recipe) -> Evaluation:
        """Return a candidate's unseen scores, which are kept beside the studies: a run that was cut short has them again."""
        about = canonical_json([candidate.id, dict(self.bed.tasks), dict(self.bed.pool), self.bed.precision])
        path = self.bed.studies / "judged" / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
        if not path.exists():
            files.write(path, json.dumps(_good(self._worker.evaluate(candidate, "report")).to_json()))
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))

    # -- what is shown -------------------------------------------------------------------------------------------------

    def findings(self, paper: str) -> Findings:
        """Return tables, with what the `paper` found below, a figure, and all numbers."""
        methods = {
            name: {
                "evaluations": method.evaluations,
                "searched": [None if np.isnan(value) else value for value in method.searched],
                "report": {m: [float(report.scores[m].mean()) for report in method.reports] for m in self._metrics()},
                "layers": [layers(candidate) for candidate in method.recipes],
                "against_best_reference": self._difference(name),
            }
            for name, method in self.methods.items()
        }
        recipes = {
            f"{name}, seed {seed}": candidate.id
            for name, method in self.methods.items()
            for seed, candidate in enumerate(method.recipes)
        }
        examples = {metric: int(self._any().scores[metric].size) for metric in self._metrics()}
        figures = {"methods": methods, "examples": examples, "best_reference": self._best_reference()}
        return Findings(figures, f"{self._table()}\n\n{paper}", self._draw(), recipes)

    def _any(self) -> Evaluation:
        return self.methods["base"].reports[0]

    def _metrics(self) -> list[str]:
        return [metric for metric in self.bed.metrics if metric in self._any().scores]

    def _best_reference(self) -> str:
        goal = self.bed.metrics[0]
        known = [
            "base",
            f"expert {self.bed.language}",
            f"expert {self.bed.skill}",
            "average",
            "task arithmetic",
            "TIES",
        ]
        return max(known, key=lambda name: self.methods[name].mean(goal))

    def _difference(self, name: str) -> tuple[float, float]:
        """Return the goal's mean minus the best reference's, and its standard error over the examples (paired)."""
        goal = self.bed.metrics[0]
        own = np.mean([report.scores[goal] for report in self.methods[name].reports], axis=0)
        paired = own - self.methods[self._best_reference()].reports[0].scores[goal]
        return float(paired.mean()), float(paired.std(ddof=1) / np.sqrt(paired.size))

    def _table(self) -> str:
        metrics = self._metrics()
        rows = []
        for name, method in self.methods.items():
            cells = []
            for metric in metrics:
                spread = method.deviation(metric)
                cells.append(
                    _number(method.mean(metric), metric)
                    + (f" ± {_number(spread, metric)}" if spread is not None else "")
                )
            value, error = self._difference(name)
            depth = " to ".join(str(count) for count in sorted({layers(candidate) for candidate in method.recipes}))
            rows.append([name, str(method.evaluations), depth, *cells, f"{100 * value:+.1f} ± {100 * error:.1f}"])
        columns = ["method", "evaluations", "layers", *metrics, f"minus {self._best_reference()}"]
        size = self._any().scores[metrics[0]].size
        about = (
            f"Unseen examples ({size} of the goal). After ±: the standard deviation over seeds, in the last column the "
            f"standard error over examples (paired) of the difference in {metrics[0]}, in points."
        )
        return f"{table(columns, rows)}\n\n{about}"

    def _draw(self) -> Figure:
        goal = self.bed.metrics[0]
        figure = Figure(figsize=(9, 0.8 + 0.38 * len(self.methods)), layout="constrained")
        axes = figure.subplots()
        for row, method in enumerate(self.methods.values()):
            searched = len(method.recipes) > 1
            axes.barh(row, 100 * method.mean(goal), color="#0072B2" if searched else "#b9c4cc")
            for report in method.reports if searched else ():
                axes.plot(100 * report.scores[goal].mean(), row, "o", color="black", markersize=4)
        axes.set_yticks(range(len(self.methods)), list(self.methods))
        axes.invert_yaxis()
        axes.set_xlabel(f"{goal.replace('/', ', ')} on unseen examples, %  (dots: seeds)")
        return figure


def layers(candidate: Recipe) -> int:
    """Return how many hops a stack has; 0 for what is no stack."""
    return len(candidate.prefix_digests)


def _good(evaluation: Evaluation) -> Evaluation:
    if evaluation.error is not None:
        raise RuntimeError(evaluation.error)
    return evaluation


def _number(value: float, metric: str) -> str:
    return f"{100 * value:.1f}" if metric.endswith("accuracy") else f"{value:.3f}"
