"""Settings of a race, and one round of it: the criteria that its candidates are compared by, and its state."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from evomerge import pareto
from evomerge.search.fronts.fits import fit_surrogates
from evomerge.search.racing.estimators import Regression, Scores
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate, item_response
from evomerge.surrogate.threads import on_one_thread
from evomerge.trial import Evaluation, Examples, Metric, Proposal, ScoreTable

RACED = ("cma", "nsga2", "nsga3", "tpe", "gp", "qmc", "random")
"""Kinds of drivers that can be raced: they use means only, and only to choose the next candidates."""
_MAX_COMPLETE = 100
"""Complete candidates that estimators are fitted to: the latest, which are most like the next."""


class RacingSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that races the candidates of another driver."""

    kind: Literal["racing"] = "racing"
    driver: dict[str, Any]
    """The driver that proposes, with its settings."""
    rungs: tuple[float, ...] = Field(default=(0.125, 0.25, 0.5), min_length=1)
    """Shares of each task's search examples at which candidates are compared, increasing."""
    estimator: Literal["regression", "item_response"] = "regression"
    """How means are estimated from scores of some examples. `item_response` needs scores in [0, 1], such as accuracy; it costs
    about a second of CPU per objective and round."""
    confidence: float = Field(default=0.8, gt=0.5, lt=1)
    """1 minus the probability, over all rungs, of stopping a competitive candidate."""
    surrogate: bool = True
    """Estimate means from genes as well, if all are numeric and at most 40. It costs about a second of CPU per round."""
    tolerance: float = Field(default=0.5, ge=0)
    """By how much a competitive candidate exceeds each rival in some objective, in standard errors of the rival's full
    evaluation (standard deviation of its scores over examples / sqrt(examples)). With 0 any improvement counts."""

    @field_validator("driver")
    @classmethod
    def _raced(cls, driver: dict[str, Any]) -> dict[str, Any]:
        if driver.get("kind") not in RACED:
            raise ValueError(
                f"a driver of kind `{driver.get('kind')}` cannot be raced: it uses scores of examples, or exact means, and a "
                f"race gives estimates of means; expected one of {', '.join(RACED)}"
            )
        if driver.get("polish") is not None:
            raise ValueError(
                "a driver with `polish` cannot be raced: steps follow slopes over all examples; leave out `polish`"
            )
        return driver

    @field_validator("rungs")
    @classmethod
    def _increasing(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if any(not low < high for low, high in zip((0.0, *rungs), (*rungs, 1.0), strict=True)):
            raise ValueError("expected rising shares between 0 and 1, such as [0.125, 0.25, 0.5]")
        return rungs


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What all rounds of a study have in common.

    `space` is None for a race without surrogates. `metrics` has the objectives as keys and `tasks` their tasks. By task, `sizes`
    are numbers of search examples and `order` permutations of them. `draws` are standard normal, `(draws, objectives)`.
    """

    settings: RacingSettings
    space: SearchSpace | None
    metrics: Mapping[str, Metric]
    tasks: tuple[str, ...]
    sizes: Mapping[str, int]
    order: Mapping[str, NDArray[np.intp]]
    draws: Scores

    @property
    def everything(self) -> dict[str, tuple[int, ...]]:
        """All examples of all tasks."""
        return {task: tuple(range(size)) for task, size in self.sizes.items()}

    def points(self, proposals: Sequence[Proposal]) -> Scores:
        """Return the genomes of proposals in unit coordinates, `(proposals, genes)`."""
        assert self.space is not None
        return self.space.to_unit(np.array([proposal.genome for proposal in proposals]))


@dataclass(frozen=True, slots=True, eq=False)
class Criteria:
    """What the candidates of a round are compared by, from the complete candidates alone.

    `rungs` are the examples of each rung, each a subset of the next one's; the last rung has all. `complete` is the number of
    complete candidates. `thresholds`, `(rivals, objectives)`, are the rivals' means plus the tolerance: a competitive candidate
    exceeds each row in some objective. `estimators` are one per objective, `surrogates` by objective, without the constant ones.
    """

    rungs: Sequence[Examples]
    complete: int = 0
    thresholds: Scores = field(default_factory=lambda: np.empty((0, 0)))
    estimators: Sequence[Regression | item_response.Model] = ()
    surrogates: Mapping[str, Surrogate] = field(default_factory=dict)


@on_one_thread
def fit_criteria(setup: Setup, complete: Sequence[tuple[Proposal, Evaluation]], tolerance: float) -> Criteria:
    """Return the criteria by the `complete` candidates; `tolerance` is in standard errors."""
    latest = complete[-_MAX_COMPLETE:]
    tables = [np.array([scored.scores[name] for _, scored in latest], np.float64) for name in setup.metrics]
    fit = Regression if setup.settings.estimator == "regression" else item_response.fit
    estimators: list[Regression | item_response.Model] = [fit(table) for table in tables]
    by_task = dict(zip(reversed(setup.tasks), reversed(estimators), strict=True))  # of the first objective
    vectors = [[scored.scores[name] for name in setup.metrics] for _, scored in complete]
    means = np.array([[vector.mean(dtype=np.float64) for vector in row] for row in vectors])
    front = np.flatnonzero(pareto.nondominated(means))
    errors = [[vector.std(dtype=np.float64) / math.sqrt(len(vector)) for vector in vectors[i]] for i in front]
    chosen = {task: _choose_examples(setup, task, by_task.get(task)) for task in setup.sizes}
    rungs = [{task: chosen[task][k] for task in chosen} for k in range(len(setup.settings.rungs))]
    surrogates: Mapping[str, Surrogate] = {}
    if setup.space:
        metrics = {}
        for table, (name, metric) in zip(tables, setup.metrics.items(), strict=True):
            inside = metric.low <= table.min() <= table.max() <= metric.high
            metrics[name] = metric if inside else replace(metric, low=-math.inf, high=math.inf)
        points = setup.points([proposal for proposal, _ in latest])
        surrogates = fit_surrogates(metrics, points, [scored for _, scored in latest])
    return Criteria(
        rungs=[*rungs, setup.everything],
        complete=len(complete),
        thresholds=means[front] + tolerance * np.array(errors),
        estimators=estimators,
        surrogates=surrogates,
    )


def _choose_examples(
    setup: Setup, task: str, estimator: Regression | item_response.Model | None
) -> list[tuple[int, ...]]:
    """Return the examples of a task at each rung but the last, each a subset of the next one's."""
    order = setup.order[task]
    chosen: list[int] = []
    rungs = []
    for share in setup.settings.rungs:
        new = math.ceil(share * len(order)) - len(chosen)
        anchors = new // 2 if isinstance(estimator, item_response.Model) else 0
        chosen += order[~np.isin(order, chosen)][: new - anchors].tolist()
        if isinstance(estimator, item_response.Model):
            chosen += estimator.anchors(anchors, chosen).tolist()
        rungs.append(tuple(sorted(chosen)))
    return rungs


@dataclass(slots=True)
class Candidate:
    """A recipe in a round; several of the round's proposals may have it."""

    proposal: Proposal
    scores: ScoreTable
    predicted: tuple[Scores, Scores]
    """Means and standard deviations by the surrogates, both `(objectives,)`; infinite deviations where there are none."""
    error: str | None = None
    estimate: Scores | None = None
    """The means of a stopped candidate, `(objectives,)`."""


class Race:
    """The state of one round, from the inner driver's proposals to the results that it is told."""

    def __init__(
        self, setup: Setup, criteria: Criteria, proposals: Sequence[Proposal], tables: Mapping[str, ScoreTable]
    ) -> None:
        """Start the round of `proposals`; `tables` has the scores so far of each recipe that is not complete, by its id."""
        self.proposals = proposals
        self.queue: deque[Proposal] = deque()
        """Parts of this rung that are yet to be asked for."""
        unknown = np.zeros(len(setup.metrics)), np.full(len(setup.metrics), math.inf)
        self.candidates: dict[str, Candidate] = {}
        for proposal in proposals:
            identity = proposal.recipe.id
            if identity in tables and identity not in self.candidates:
                self.candidates[identity] = Candidate(proposal, tables[identity], unknown)
        self._setup = setup
        self._criteria = criteria
        self._rung = -1  # before the first
        if criteria.surrogates and self.candidates:  # stop those that are not competitive by their genes alone
            self._predict()
            self.stop()

    def advance(self) -> bool:
        """Queue the examples of the next rung that needs any; False if there is none and the round is over."""
        while self._rung < len(self._criteria.rungs) - 1:
            self._rung += 1
            for candidate in self._running():
                missing = candidate.scores.missing(self._criteria.rungs[self._rung])
                if missing:
                    everything = sum(map(len, missing.values())) == sum(self._setup.sizes.values())
                    self.queue.append(replace(candidate.proposal, examples=None if everything else missing))
            if self.queue:
                return True
            self.stop()
        return False

    @on_one_thread
    def stop(self) -> None:
        """Stop the candidates that are most probably not competitive, at this rung or before the first."""
        running = self._running()
        if self._rung == len(self._criteria.rungs) - 1 or not running:
            return
        means, deviations = (np.stack(part) for part in zip(*(one.predicted for one in running), strict=True))
        if self._rung >= 0:
            means, deviations = self._combined(running, means, deviations)
        settings = self._setup.settings
        level = (1 - settings.confidence) / (len(settings.rungs) + (self._setup.space is not None))
        for candidate, mean, deviation in zip(running, means, deviations, strict=True):
            draws = (mean + deviation * self._setup.draws)[:, None]
            beaten = (self._criteria.thresholds >= draws).all(axis=2).any(axis=1)
            if 1 - beaten.mean() <= level:
                candidate.estimate = mean

    def _running(self) -> list[Candidate]:
        """Return the candidates that have neither failed nor been stopped."""
        return [one for one in self.candidates.values() if one.error is None and one.estimate is None]

    def _predict(self) -> None:
        """Predict the candidates' means from their genes."""
        candidates = list(self.candidates.values())
        points = self._setup.points([candidate.proposal for candidate in candidates])
        unknown = np.zeros(len(candidates)), np.full(len(candidates), math.inf)
        surrogates = self._criteria.surrogates
        names = self._setup.metrics
        predictions = [surrogates[name].predict(points) if name in surrogates else unknown for name in names]
        means, deviations = (np.stack(part, axis=1) for part in zip(*predictions, strict=True))
        for candidate, mean, deviation in zip(candidates, means, np.maximum(deviations, 1e-12), strict=True):
            candidate.predicted = mean, deviation

    def _combined(self, running: Sequence[Candidate], predicted: Scores, deviations: Scores) -> tuple[Scores, Scores]:
        """Return means and standard deviations from this rung's examples and the predictions, `(candidates, objectives)`."""
        seen = self._criteria.rungs[self._rung]
        taken = [candidate.scores.take(seen).scores for candidate in running]
        objectives = zip(self._setup.metrics, self._setup.tasks, self._criteria.estimators, strict=True)
        estimates = [
            estimator.estimate(np.array(seen[task], np.intp), np.array([scores[name] for scores in taken], np.float64))
            for name, task, estimator in objectives
        ]
        means, errors = (np.stack(part, axis=1) for part in zip(*estimates, strict=True))
        weight = errors**2 / (errors**2 + deviations**2)  # of the prediction
        return means + weight * (predicted - means), errors * np.sqrt(1 - weight)
