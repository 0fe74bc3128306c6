"""Scorer: evaluations of recipes on both splits; a recipe that the search or a report has scored is not scored again.

What it scores goes into the study's `report.jl`, a journal like the search's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from evomerge import costs, pareto
from evomerge.errors import StudyError
from evomerge.evaluate import Evaluator, drive
from evomerge.history import History
from evomerge.journal import Journal
from evomerge.recipe import Base, Expert, Recipe
from evomerge.report import bootstrap
from evomerge.report.data import Interval
from evomerge.report.estimates import Estimates, estimate, scale
from evomerge.report.results import Candidate
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal, Split

_DRAWS = 200
"""Resamples of the search examples, for the probabilities of estimates."""

_SAME = 1e-4
"""Scores of an example that differ by less differ by rounding."""

RECORD = "report.jl"
"""The journal of reports, in a study's folder."""

Watch = Callable[[int, int], None]
"""Called with the number of evaluations that are completed and that of all."""


class Scorer:
    """Scores recipes for one report of a study."""

    def __init__(
        self,
        study: Study,
        population: Iterable[tuple[Proposal, Evaluation]],
        evaluator: Evaluator | None = None,
        watch: Watch = lambda done, total: None,
        split: Split = "report",
    ) -> None:
        """Start with the evaluations of the search's `population`; make an evaluator if there is none and one is needed.

        Models are judged on `split`.
        """
        self.split = split
        self.parts = study.parts
        self.origins: pareto.Points = np.zeros(len(self.parts.tasks))
        """Score of each reported objective that counts as 0 in a mean over objectives, and the difference that counts as 1."""
        self.units: pareto.Points = np.ones(len(self.parts.tasks))
        self.failures: dict[str, str] = {}
        """Name of a model → why it could not be scored."""
        self._study, self._evaluator, self._watch = study, evaluator, watch
        self._evaluations = {(p.recipe.id, p.split): e for p, e in population if e.error is None}

    def attempt(
        self, wanted: Sequence[tuple[Recipe, Split]], evaluator: Evaluator | None = None
    ) -> dict[tuple[str, Split], str]:
        """Score the `wanted` recipes that have no scores on their split. Returns the errors, by recipe id and split."""
        path = self._study.folder / RECORD
        recorded = History.read(path, retried=True).population
        self._evaluations |= {(p.recipe.id, p.split): e for p, e in recorded if e.error is None}
        missing = [pair for pair in dict.fromkeys(wanted) if (pair[0].id, pair[1]) not in self._evaluations]
        if not missing:
            return {}
        evaluator = evaluator or self._evaluator
        if evaluator is None:
            with self._study.evaluator(queue=False) as started:
                return self.attempt(missing, started)
        errors: dict[tuple[str, Split], str] = {}
        with self._study.lock("report.lock"), Journal(path) as journal:
            start = max((p.number for p, _ in recorded), default=-1) + 1
            proposals = (Proposal(start + i, recipe, split=split) for i, (recipe, split) in enumerate(missing))
            completed = drive(evaluator, journal, lambda: next(proposals, None))
            for done, (proposal, evaluation) in enumerate(completed, start=1):
                costs.append(self._study.folder, proposal, evaluation)
                key = proposal.recipe.id, proposal.split
                if evaluation.error is None:
                    self._evaluations[key] = evaluation
                else:
                    errors[key] = evaluation.error
                self._watch(done, len(missing))
        return errors

    def score(self, models: Mapping[str, Recipe], split: Split) -> dict[str, Recipe]:
        """Return those of the models that have scores on all examples of `split`; the others are in `failures`.

        Models that failed in an earlier report are tried again.
        """
        errors = self.attempt([(recipe, split) for recipe in models.values()])
        reasons = {name: errors.get((recipe.id, split)) for name, recipe in models.items()}
        self.failures |= {name: reason for name, reason in reasons.items() if reason is not None}
        return {name: recipe for name, recipe in models.items() if reasons[name] is None}

    def require(self, models: dict[str, Recipe], what: str, split: Split) -> dict[str, Recipe]:
        """Return `models`. Raises `StudyError` if there are none."""
        if not models:
            msg = f"no {what} can be scored on the {split} split; the last failure: {list(self.failures.values())[-1]}"
            raise StudyError(msg)
        return models

    def scores(self, recipe_id: str, split: Split | None = None) -> bootstrap.Scores:
        """Return the score vectors of a scored recipe, by default on the split that judges."""
        return self._evaluations[recipe_id, split or self.split].scores

    def equal(self, recipe: Recipe, models: Mapping[str, Recipe]) -> str | None:
        """Return the name of the first of the `models` that scores as `recipe` does on every search example, None without one."""
        mine = self.scores(recipe.id, "search")
        for name, model in models.items():
            theirs = self.scores(model.id, "search")
            if all(np.allclose(mine[key], theirs[key], rtol=0, atol=_SAME) for key in mine.keys() & theirs.keys()):
                return name
        return None

    def means(self, recipes: Iterable[Recipe], split: Split) -> pareto.Points:
        """Return the objectives' means, `(recipes, objectives)`: searched metrics on `search`, reported ones elsewhere."""
        objectives = self.parts.searched if split == "search" else self.parts.reported
        return np.array([self._evaluations[recipe.id, split].means(objectives) for recipe in recipes])

    def draws(self, objectives: Sequence[str], split: Split | None = None) -> bootstrap.Resamples:
        """Return the resamples of the examples of `split`, by default of those that judge, for these objectives, `task/metric`."""
        tasks, settings = self.parts.tasks, self._study.settings
        keys = {name: tasks[name.rpartition("/")[0]].example_keys(split or self.split) for name in objectives}
        return bootstrap.resamples(keys, settings.report.resamples, settings.seed)

    def estimates(self, candidates: Iterable[str], references: Mapping[str, Recipe]) -> Estimates:
        """Return estimates of candidates, by id, and references, all scored on the search split. Their order has no effect."""
        tasks, seed = self.parts.tasks, self._study.settings.seed
        keys = {name: task.example_keys("search") for name, task in tasks.items()}
        ids = sorted({*candidates, *(recipe.id for recipe in references.values())})
        evaluations = {identity: self._evaluations[identity, "search"] for identity in ids}
        draws = bootstrap.resamples(keys, _DRAWS, seed)
        return estimate(evaluations, tasks, draws, [recipe.id for recipe in singles(references).values()])

    def scale(self, references: Mapping[str, Recipe]) -> None:
        """Scale the objectives in means over them by the `references`, which have scores on the report split."""
        known = singles(references) or references
        metrics = [task.report_metric for task in self.parts.tasks.values()]
        self.origins, self.units = scale(metrics, self.means(known.values(), self.split))

    def difference(self, better: str, worse: str, level: float) -> Interval:
        """Return the mean of one model minus that of another on the report split, with its paired interval."""
        return bootstrap.difference(self.scores(better), self.scores(worse), self.reported, level, self.units.tolist())

    @cached_property
    def reported(self) -> bootstrap.Resamples:
        """The resamples for the reported objectives."""
        return self.draws(self.parts.reported)

    def candidate(
        self,
        name: str,
        recipe: Recipe,
        estimates: Estimates | None = None,
        on_front: float | None = None,
        equals: str | None = None,
    ) -> Candidate:
        """Return the scores of a recipe on both splits, those on the report split with intervals."""
        scores = self.scores(recipe.id)
        intervals = bootstrap.intervals(scores, self.reported)
        value, low, high = bootstrap.mean_interval(scores, self.reported, self.units.tolist())
        origin = float((self.origins / self.units).mean())
        return Candidate(
            name=name,
            recipe_id=recipe.id,
            recipe=recipe.data,
            search=dict(zip(self.parts.tasks, self.means([recipe], "search")[0].tolist(), strict=True)),
            report={task: intervals[key] for task, key in zip(self.parts.tasks, self.parts.reported, strict=True)},
            mean=(value - origin, low - origin, high - origin),
            estimate={} if estimates is None else estimates.of(recipe.id),
            on_front=on_front,
            equals=equals,
        )


def singles(references: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return those of the references that are a single model of the pool: base and experts."""
    return {name: recipe for name, recipe in references.items() if isinstance(recipe.root, Base | Expert)}
