"""Racing: few examples for every candidate, more for those that may still matter.

All that another driver proposes at a time is compared at rungs: at each, every candidate that is still in the race is scored
on the same examples, and its mean over all examples is estimated. Who most probably does not matter is stopped; the others
get the further examples of the next rung, and in the end all. A race as that of Hoeffding (Maron & Moore 1994) and F-Race
(Birattari et al. 2002), for means over a finite set of examples, and for one objective or many; not to be confused with
successive halving, which stops a share of the candidates, however good they are.

**What genes say.** Where all genes are numbers, at most 40, surrogates of the whole candidates (`evomerge.surrogate`) predict
means too: before the first rung, where who does not matter is not scored at all, and at each rung, where the two estimates are
weighed by their variances, as if their errors were independent. The tolerance is then four times as large at first, and is
halved down to what was set whenever five fields in a row have brought nobody who matters: a coarse front soon, and a finer
one where there is budget left.

**Who is stopped.** The rivals are the whole (fully evaluated) candidates of the study's front, as the race begins; their means
are known. Candidate c *matters* if no rival w has y_wj >= y_cj - tolerance·s_wj in every objective j, of means y and standard
errors s. c is stopped if it matters with a probability of (1 - confidence) / decisions or less, where y_cj are independent and
normal with the estimates' means and standard deviations. It is the share of 2048 draws, the same for everybody. As c alone is
uncertain, nothing is due for the number of rivals. For one objective, and wherever the region that the front dominates is
convex, a candidate that matters is then stopped with a probability of at most 1 - confidence in its whole race (it is on the
far side of a plane); in a notch of the front it may be more, for a candidate that matters by little.

**What is assumed** is that errors are near normal and as large as they were on the whole candidates, each left out in its
turn: by that deviations are calibrated. Estimates of who is far better than all before err low, the more the fewer examples
are seen. Until 10 candidates are whole, nobody races. For two objectives of one task, whose errors are correlated, the
probability is approximate.

**Which examples come first.** With `regression`, a prefix of one permutation of each task's, which is the same for the whole
study. With `item_response`, half of a rung's further examples are the permutation's next, and half are those that tell most
about the mean by the model of the task's first objective (`Model.anchors`). They are chosen once for a field of candidates.
A search that goes on for long adapts somewhat to the examples that it sees first, as it does to the search split itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from evomerge import pareto
from evomerge.errors import DriverError
from evomerge.search.driver import Driver, Generational, Objectives, read_metrics
from evomerge.search.fronts.front import fit_surrogates, suits
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate, item_response
from evomerge.surrogate.threads import on_one_thread
from evomerge.trial import Evaluation, Proposal, ScoreTable

Scores = NDArray[np.float64]

RACED = ("cma", "nsga2", "nsga3", "tpe", "gp", "qmc", "random")
"""Kinds of drivers that can be raced: they look at means, and only to choose where to look next."""

_FIELD = 32
"""Candidates that race together where a driver never waits."""
_COARSE = 4.0
"""Times the tolerance that was set with which a race by genes begins."""
_BARREN = 5
"""Fields in a row without a new whole candidate, after which the tolerance is halved."""
_STALE = 20
"""Fields in a row that bring nothing new, after which the search is over: there is nothing left to find."""
_LEAST = 10
"""Whole candidates without which nobody races: fewer cannot show how far estimates err."""
_MOST = 100
"""Whole candidates that estimators are made of: the latest, which are most like the next."""
_DRAWS = 2048
_NOISE = 0.3
"""What an example has of its own, as a share of the mean variance of scores over candidates. On the digits zoo, with 10 to 140
whole candidates, errors are the same from 0.1 to 0.3, and a fifth or more larger with 1."""
_SHIFT = 10.0
"""Variance of what a candidate has more on all examples alike, as a share of the same: large, so that who is better than all
before is not held to be like them."""
_FOLDS = 5


class RacingSettings(BaseModel):
    """`driver:` of a study that races the candidates of another driver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["racing"] = "racing"
    driver: dict[str, Any]
    """The driver that proposes, as in a study of its own."""
    rungs: tuple[float, ...] = Field(default=(0.125, 0.25, 0.5), min_length=1)
    """Shares of each task's search examples at which candidates are compared, rising."""
    estimator: Literal["regression", "item_response"] = "regression"
    """How means are estimated from scores of some examples. `item_response` is for scores in [0, 1], such as accuracy; it costs
    a second of CPU or so for each objective and field."""
    confidence: float = Field(default=0.8, gt=0.5, lt=1)
    """1 minus the probability of mattering below which a candidate is stopped, all rungs together."""
    surrogate: bool = True
    """Estimate means from genes, too, where all are numbers and at most 40. It costs a second of CPU or so for each field."""
    tolerance: float = Field(default=0.5, ge=0)
    """What a candidate must be better by than each rival, in some objective, to matter in the end; in standard errors of a
    whole evaluation: of the rival, the standard deviation of its scores over examples / sqrt(examples). With 0 all that is
    better matters."""

    @field_validator("driver")
    @classmethod
    def _raced(cls, driver: dict[str, Any]) -> dict[str, Any]:
        if driver.get("kind") not in RACED:
            msg = (
                f"a driver of kind `{driver.get('kind')}` cannot be raced: it would take estimates of means for scores of "
                f"examples, or for exact; expected one of {', '.join(RACED)}"
            )
            raise ValueError(msg)
        return driver

    @field_validator("rungs")
    @classmethod
    def _rising(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if any(not low < high for low, high in zip((0.0, *rungs), (*rungs, 1.0), strict=True)):
            msg = "expected rising shares between 0 and 1, such as [0.125, 0.25, 0.5]"
            raise ValueError(msg)
        return rungs


class Estimator(Protocol):
    """Estimates candidates' means over all examples of one objective from their scores on some. Made of whole candidates."""

    def estimate(self, examples: NDArray[np.intp], scores: Scores, /) -> tuple[Scores, Scores]:
        """Return estimated means and their standard deviations, both `(candidates,)`.

        `scores`, `(candidates, m)`, are those on `examples`, `(m,)`. With all examples the mean is exact and the deviation 0.
        """
        ...


class Regression:
    """An `Estimator`: the best linear prediction of the scores that are not known (Goldberger 1962) from those that are.

    As candidates are drawn, their scores on examples have the mean and the covariance of the whole candidates', noise of
    each example's own, and a shift of them all, of which next to nothing is known before. So a new candidate is predicted
    from those that scored like it where it was scored. It is a regression
    estimator (Cochran 1977, ch. 7) on as many controls as there are whole candidates, with a ridge; not to be confused with
    the difference estimator, whose one control is the mean of the whole candidates: errors from that are twice as large on
    the digits zoo. Scores may be of any kind and scale.
    """

    def __init__(self, whole: Scores) -> None:
        """Take the scores of the whole candidates, `(candidates, examples)`, two or more."""
        self._whole = whole
        self._linear = _Linear(whole)
        folds = min(_FOLDS, len(whole))
        numbers = np.arange(len(whole)) % folds
        self._left_out = [(whole[numbers == k], _Linear(whole[numbers != k])) for k in range(folds)]

    def estimate(self, examples: NDArray[np.intp], scores: Scores) -> tuple[Scores, Scores]:
        """Return estimated means and their standard deviations, both `(candidates,)`, as `Estimator` says.

        Deviations are the model's times the root mean square of the whole candidates' errors in deviations, each left out
        with others of its fold, and one error of 1 more (which keeps them above 0 where nobody differs).
        """
        means, deviation = self._linear.predict(examples, scores)
        if len(examples) == self._whole.shape[1]:
            return means, np.zeros(len(means))
        squares = 1.0
        for whole, linear in self._left_out:
            predicted, expected = linear.predict(examples, whole[:, examples])
            squares += float((((whole.mean(axis=1) - predicted) / expected) ** 2).sum())
        factor = math.sqrt(squares / (len(self._whole) + 1))
        return means, np.full(len(means), factor * deviation)


class _Linear:
    """The linear prediction, not calibrated.

    With X the whole candidates' n differences from their mean, the covariance is XᵀX/n + s·11ᵀ + λI: a candidate's scores are
    mean + Xᵀa + b + noise, of a ~ N(0, I/n), a shift b ~ N(0, s) of them all, and noise ~ N(0, λI).
    """

    def __init__(self, whole: Scores) -> None:
        self._mean: Scores = whole.mean(axis=0)
        apart = whole - self._mean
        # Where nobody differs, the next may: as examples do, with the weight of one candidate.
        variance = (apart**2).mean() + self._mean.var() / len(whole) + 1e-12
        self._noise = _NOISE * variance
        shift = np.full((1, whole.shape[1]), math.sqrt(_SHIFT * variance))
        self._controls = np.concatenate([apart / math.sqrt(len(whole)), shift])  # (n + 1, examples)

    def predict(self, examples: NDArray[np.intp], scores: Scores) -> tuple[Scores, float]:
        """Return the means over all examples, `(candidates,)`, and their standard deviation."""
        count, size = self._controls.shape
        unknown = np.setdiff1d(np.arange(size), examples)
        seen, towards = self._controls[:, examples], self._controls[:, unknown].sum(axis=1)
        weights = np.linalg.solve(np.eye(count) + seen @ seen.T / self._noise, towards)
        rest = weights @ seen @ (scores - self._mean[examples]).T / self._noise
        means: Scores = (scores.sum(axis=1) + self._mean[unknown].sum() + rest) / size
        return means, math.sqrt(self._noise * len(unknown) + float(towards @ weights)) / size


@dataclass(slots=True)
class _Runner:
    """A recipe in the race, which may be that of several of the field's candidates."""

    proposal: Proposal
    known: ScoreTable
    expected: tuple[Scores, Scores]
    """What its genes say: means and standard deviations, both `(objectives,)`; infinite where they say nothing."""
    error: str | None = None
    estimate: Scores | None = None
    """Of whom is stopped: the means, `(objectives,)`."""


class Racing:
    """A `Driver` that lets another one's candidates race. Not to be confused with a generational driver, whose it may be.

    Its proposals are parts of candidates, numbered by itself; no example of a recipe is asked for twice, unless it failed. The
    inner driver is told of all its candidates in order of number, once the race is over: so nothing depends on the order of
    arrival or on the number of workers. Of a candidate that was stopped it is told an *estimate* of the mean of each objective
    (see `Estimator`), a vector of one number. An estimate is no score, and never leaves the search; it can serve only
    drivers that look at means, `RACED`. A candidate of which a part failed has failed.

    Every rung merges the candidate again. Where merging costs as much as scoring, rungs save little.
    """

    def __init__(
        self,
        driver: Driver,
        space: SearchSpace,
        objectives: Objectives,
        seed: int,
        settings: RacingSettings,
        sizes: Mapping[str, int],
    ) -> None:
        """Race what `driver` proposes of a `space`; `sizes` has the number of search examples of each task.

        `driver` is one of `RACED`, as `settings` say. Raises `DriverError` for objectives of no known task.
        """
        self._driver = driver
        self._space = space if settings.surrogate and suits(space) else None  # None: genes say nothing
        self.tolerance = settings.tolerance * (_COARSE if self._space else 1)
        """What a candidate must be better by to matter now, in standard errors."""
        self._barren = 0  # fields in a row
        self._objectives = tuple(objectives)
        self._metrics = read_metrics(objectives)
        self._tasks = [name.rpartition("/")[0] for name in objectives]
        for name, task in zip(objectives, self._tasks, strict=True):
            if task not in sizes:
                msg = f"driver `racing`: objective `{name}` is of the task `{task}`; expected one of known size: {', '.join(sizes) or 'none'}"
                raise DriverError(msg)
        self._settings = settings
        self._sizes = dict(sizes)
        self._order = {
            task: np.random.default_rng(np.random.SeedSequence([seed, *task.encode()])).permutation(size)
            for task, size in sizes.items()
        }
        draws = np.random.default_rng(np.random.SeedSequence([seed, len(objectives)]))
        self._draws = draws.standard_normal((_DRAWS, len(objectives)))
        self._nothing = np.zeros(len(objectives)), np.full(len(objectives), math.inf)
        self._known: dict[str, ScoreTable] = {}  # of recipes that are not known whole
        self._whole: dict[str, tuple[Proposal, Evaluation]] = {}  # the others
        # What a field races by, made of so many whole candidates: estimators and surrogates by objective, what rivals must be
        # surpassed by, and the examples of each rung.
        self._learnt = 0
        self._fits: Mapping[str, Surrogate] = {}
        self._estimators: list[Estimator] = []
        self._bars: Scores = np.empty((0, len(objectives)))
        self._everything = {task: tuple(range(size)) for task, size in sizes.items()}
        self._seen: list[dict[str, tuple[int, ...]]] = [self._everything]
        self._field: list[Proposal] = []  # what the inner driver waits for
        self._runners: dict[str, _Runner] = {}
        self._rung = 0
        self._queue: list[Proposal] = []
        self._flying: set[int] = set()
        self._asked = 0
        self._over = False

    def __str__(self) -> str:
        rungs = ", ".join(f"{rung:.3g}" for rung in self._settings.rungs)
        by = self._settings.estimator.replace("_", " ") + (" and surrogates of the genes" if self._space else "")
        return f"{self._driver}, raced at {rungs} of the examples by {by}"

    def ask(self) -> Proposal | None:
        """Return the next part to score, or None while those of this rung are being scored."""
        stale = 0
        while not (self._queue or self._flying or self._over):
            self._gather()
            stale += 1
            finest = self.tolerance <= self._settings.tolerance
            self._over |= finest and not self._queue and stale >= _STALE
        if not self._queue:
            return None
        proposal = replace(self._queue.pop(0), number=self._asked)
        self._asked += 1
        self._flying.add(proposal.number)
        return proposal

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Keep the scores of a part; when the rung is complete, decide who goes on.

        Raises `DriverError` for a proposal that is not in flight, and for scores that the estimator is not for.
        """
        if proposal.number not in self._flying:
            msg = f"proposal {proposal.number} is not in flight; expected one of {sorted(self._flying)}, each told once"
            raise DriverError(msg)
        self._flying.remove(proposal.number)
        runner = self._runners[proposal.recipe.id]
        scores = {name: vector for name, vector in evaluation.scores.items() if name in self._objectives}
        if evaluation.error is not None:
            runner.error = evaluation.error
        elif not all(np.isfinite(vector).all() for vector in scores.values()):
            runner.error = "scores that are not finite"
        else:
            if self._settings.estimator == "item_response":
                _check_right_or_wrong(scores)
            runner.known.add(proposal.examples, evaluation)
        if not self._flying and not self._queue:
            self._stop()
            self._go_on()

    def members(self) -> tuple[str, ...]:
        """Return nothing: what can be raced is made of genomes alone."""
        return ()

    # -- the race ------------------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Take what the inner driver has to propose, and begin its race. What is known whole already does not run."""
        most = math.inf if isinstance(self._driver, Generational) else _FIELD
        if len(self._whole) < _LEAST:
            most = _LEAST
        while len(self._field) < most and (proposal := self._driver.ask()) is not None:
            self._field.append(proposal)
            identity = proposal.recipe.id
            if identity not in self._whole and identity not in self._runners:
                known = self._known.setdefault(identity, ScoreTable(self._sizes))
                self._runners[identity] = _Runner(proposal, known, self._nothing)
        if self._field:
            self._rung = -1
            self._prepare()
            self._go_on()
        else:
            self._over = True

    def _prepare(self) -> None:
        """Make what the field races by, and stop who does not matter by its genes alone."""
        if len(self._whole) < _LEAST:
            return
        if len(self._whole) > self._learnt:
            self._learn()
        if self._space and self._runners:
            self._expect(self._space)
            self._stop()

    @on_one_thread
    def _learn(self) -> None:
        """Make estimators, rungs, what is to be surpassed and surrogates, from the whole candidates alone."""
        self._learnt = len(self._whole)
        latest = list(self._whole.values())[-_MOST:]
        tables = [np.array([done.scores[name] for _, done in latest], np.float64) for name in self._objectives]
        anchors: dict[str, item_response.Model] = {}
        if self._settings.estimator == "item_response":
            models = [item_response.fit(table) for table in tables]
            anchors = dict(zip(reversed(self._tasks), reversed(models), strict=True))
            self._estimators = [*models]
        else:
            self._estimators = [Regression(table) for table in tables]
        whole = [[done.scores[name] for name in self._objectives] for _, done in self._whole.values()]
        means = np.array([[vector.mean(dtype=np.float64) for vector in vectors] for vectors in whole])
        front = np.flatnonzero(pareto.nondominated(means))
        errors = [[vector.std(dtype=np.float64) / math.sqrt(len(vector)) for vector in whole[i]] for i in front]
        self._bars = means[front] + self.tolerance * np.array(errors)
        rungs = {task: self._choose(task, anchors.get(task)) for task in self._sizes}
        self._seen = [{task: seen[k] for task, seen in rungs.items()} for k in range(len(self._settings.rungs))]
        self._seen.append(self._everything)
        if self._space:
            metrics = {}
            for table, (name, metric) in zip(tables, self._metrics.items(), strict=True):
                inside = metric.low <= table.min() <= table.max() <= metric.high
                metrics[name] = metric if inside else replace(metric, low=-math.inf, high=math.inf)
            points = _points(self._space, [proposal for proposal, _ in latest])
            self._fits = fit_surrogates(metrics, points, [done for _, done in latest])

    def _expect(self, space: SearchSpace) -> None:
        """Set what the runners' genes say."""
        runners = list(self._runners.values())
        points = _points(space, [runner.proposal for runner in runners])
        unknown = np.zeros(len(runners)), np.full(len(runners), math.inf)
        found = [self._fits[name].predict(points) if name in self._fits else unknown for name in self._objectives]
        means, deviations = (np.stack(part, axis=1) for part in zip(*found, strict=True))
        for runner, mean, deviation in zip(runners, means, np.maximum(deviations, 1e-12), strict=True):
            runner.expected = mean, deviation

    def _choose(self, task: str, model: item_response.Model | None) -> list[tuple[int, ...]]:
        """Return the examples of a task that are seen at each rung but the last, each rung's among the next one's."""
        order = self._order[task]
        chosen: list[int] = []
        found = []
        for rung in self._settings.rungs:
            more = math.ceil(rung * len(order)) - len(chosen)
            told = more // 2 if model else 0
            free = order[~np.isin(order, chosen)]
            chosen += free[: more - told].tolist()
            if model and told:
                chosen += model.anchors(told, chosen).tolist()
            found.append(tuple(sorted(chosen)))
        return found

    def _go_on(self) -> None:
        """Go to the next rung where somebody needs examples; behind the last, tell the inner driver."""
        while self._rung < len(self._seen) - 1:
            self._rung += 1
            for runner in self._running():
                missing = runner.known.missing(self._seen[self._rung])
                if missing:
                    whole = sum(map(len, missing.values())) == sum(self._sizes.values())
                    self._queue.append(replace(runner.proposal, examples=None if whole else missing))
            if self._queue:
                return
            self._stop()
        self._finish()

    def _running(self) -> list[_Runner]:
        return [runner for runner in self._runners.values() if runner.error is None and runner.estimate is None]

    @on_one_thread
    def _stop(self) -> None:
        """Stop at this rung, or before the first, who most probably does not matter."""
        running = self._running()
        if self._rung == len(self._seen) - 1 or not running:
            return
        means, deviations = (np.stack(part) for part in zip(*(runner.expected for runner in running), strict=True))
        if self._rung >= 0:
            means, deviations = self._weighed(running, means, deviations)
        level = (1 - self._settings.confidence) / (len(self._settings.rungs) + (self._space is not None))
        for runner, mean, deviation in zip(running, means, deviations, strict=True):
            beaten = (self._bars >= (mean + deviation * self._draws)[:, None]).all(axis=2).any(axis=1)
            if 1 - beaten.mean() <= level:
                runner.estimate = mean

    def _weighed(self, running: Sequence[_Runner], expected: Scores, deviations: Scores) -> tuple[Scores, Scores]:
        """Return means and standard deviations, by this rung's examples and by what was `expected`: `(runners, objectives)`."""
        seen = self._seen[self._rung]
        taken = [runner.known.take(seen).scores for runner in running]
        estimates = [
            estimator.estimate(np.array(seen[task], np.intp), np.array([scores[name] for scores in taken], np.float64))
            for name, task, estimator in zip(self._objectives, self._tasks, self._estimators, strict=True)
        ]
        means, errors = (np.stack(part, axis=1) for part in zip(*estimates, strict=True))
        weight = errors**2 / (errors**2 + deviations**2)  # of what was expected
        return means + weight * (expected - means), errors * np.sqrt(1 - weight)

    def _finish(self) -> None:
        """Tell the inner driver what became of all its candidates, in order of number, and be ready for the next."""
        before = len(self._whole)
        for identity, runner in self._runners.items():
            if runner.known.complete:
                self._whole[identity] = runner.proposal, runner.known.take()
                del self._known[identity]
        field, self._field = self._field, []
        for proposal in field:
            self._driver.tell(proposal, self._outcome(proposal.recipe.id))
        self._runners = {}
        self._barren = 0 if len(self._whole) > before else self._barren + 1
        if self._barren >= _BARREN and self.tolerance > self._settings.tolerance:
            self.tolerance /= 2
            self._barren = self._learnt = 0

    def _outcome(self, identity: str) -> Evaluation:
        """Return what the inner driver is told of a recipe: its scores, its failure, or an estimate of its means."""
        if identity in self._whole:
            return self._whole[identity][1]
        runner = self._runners[identity]
        if runner.estimate is None:
            return Evaluation(error=runner.error)
        return Evaluation(
            {n: np.array([m], np.float32) for n, m in zip(self._objectives, runner.estimate, strict=True)}
        )


def _points(space: SearchSpace, proposals: Sequence[Proposal]) -> Scores:
    """Return the genomes of proposals in unit coordinates, `(proposals, genes)`."""
    return space.to_unit(np.array([proposal.genome for proposal in proposals]))


def _check_right_or_wrong(scores: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise `DriverError` for scores that an item-response model is not of."""
    for name, vector in scores.items():
        if len(vector) and not 0 <= vector.min() <= vector.max() <= 1:
            msg = (
                f"driver `racing`: objective `{name}` has scores in [{vector.min():g}, {vector.max():g}], and an item-response "
                "model is of right and wrong, in [0, 1]; choose a metric such as accuracy, or `estimator: regression`"
            )
            raise DriverError(msg)
