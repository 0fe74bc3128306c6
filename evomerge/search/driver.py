"""The driver protocol, and the part that all generational drivers share.

Not to be confused with the study, which counts the budget, writes the journal and runs the evaluations.
"""

import dataclasses
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from evomerge.errors import DriverError, nearest
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Examples, Metric, Proposal

Genomes = NDArray[np.float64]
"""Rows of genomes, `(candidates, genes)`."""

Objectives = Mapping[str, Metric] | Sequence[str]
"""What to maximise: entries of `Evaluation.scores`, `task/metric`, with their declared metrics, or by name alone."""

Means = NDArray[np.float64]
"""Mean score of each objective, `(candidates, objectives)`. Higher is better."""

FLIPPED = 0.023
"""Probability that a bit starts flipped: the normal tail beyond two standard deviations, Φ(-2), as in the data-flow paper
(arXiv 2403.13187)."""


class Driver(Protocol):
    """Proposes candidates (`ask`) and learns from their evaluations (`tell`).

    The rules for every driver:

    1. `ask` returns None while it needs more tells, and then changes nothing. None with no pending proposal means that
       the search is over.
    2. Proposals are numbered 0, 1, 2, … in the order of the asks.
    3. All randomness comes from the seed given at construction, never from a global generator.
    4. Proposals depend only on the order of asks and tells, never on the clock, on the number of slots, or on how often
       `ask` returned None. So replaying a journal through a fresh driver restores it.
    5. Generational drivers sort tells by number: the order of arrival has no effect, and the search is the same for any
       number of workers. Populations of models (`Population`) and swarms never wait, and have no such order.
    6. A failed evaluation is no error of the driver, and counts as worse than any success.

    `evomerge.testing.DriverSuite` tests these rules. `str(driver)` describes the driver in one line, for a dry run.
    """

    def ask(self) -> Proposal | None:
        """Return the next candidate to evaluate, or None."""

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Take the `evaluation` of a `proposal` that `ask` returned."""

    def members(self) -> tuple[str, ...]:
        """Return the ids of the candidates whose weights later proposals may use.

        Empty for a driver whose candidates are made of the pool's models only. Pending proposals name theirs in their recipes.
        """


def asks(driver: Driver, budget: int) -> Iterator[Proposal]:
    """Yield up to `budget` proposals. Ends early if `ask` returns None: the driver needs a `tell`, or the search is over.

    For example, to minimise `function(x, y)`:

        space = Box({"x": (-5, 5), "y": (-5, 5)})
        driver = make({"kind": "cma"}, space, ["score"], seed=0)
        for proposal in asks(driver, budget=200):
            score = -function(**space.values(proposal.genome))
            driver.tell(proposal, Evaluation.of({"score": score}))
    """
    for _ in range(budget):
        proposal = driver.ask()
        if proposal is None:
            return
        yield proposal


class Breeder(Protocol):
    """The algorithm of a generational driver: draws a generation of genomes, and learns from it."""

    def draw(self) -> Genomes:
        """Return the next generation, `(candidates, genes)`; no rows mean that the search is over.

        Called again without `learn` in between while no candidate of the study has succeeded.
        """

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Learn from the last generation, row by row: its `means`, all finite, and the `evaluations` behind them.

        A failed row has an `error`, and substitutes for its means (see `Generational`).
        """


@runtime_checkable
class Climber(Breeder, Protocol):
    """A breeder that learns from slopes."""

    @property
    def slopes(self) -> Examples | None:
        """Examples over whose mean score the generation that was drawn last needs slopes; None for none."""


@runtime_checkable
class Overlapping(Breeder, Protocol):
    """A breeder that can draw a generation while earlier ones are still being evaluated."""

    @property
    def in_flight(self) -> int:
        """Generations are drawn while fewer candidates than this were drawn and not learnt from; 1 waits for each generation."""

    def draw(self, pending: Genomes | None = None) -> Genomes:
        """Return the next generation, given those that were drawn and not learnt from, `(candidates, genes)`.

        No rows mean that more must be learnt first, or, where nothing is `pending`, that the search is over.
        """


class Generational:
    """A `Driver` that proposes a `Breeder`'s generations in order, each once the last one is completed.

    **In flight.** An `Overlapping` breeder draws while fewer than `in_flight` candidates are drawn and not learnt from, then learns
    from the oldest generation, and so on. Draws and lessons alternate by these counts alone, never by the order of arrival:
    a generation may be completed long before the breeder learns from it. So the search is the same for any number of workers.

    A candidate that failed, or has a non-finite mean, counts in every objective as the worst success of the study so far,
    minus a tenth of the range of the successes so far and minus 1e-6: near enough not to distort a model of the scores, and
    always dominated. Generations before the first success are not learnt from.
    """

    def __init__(self, space: SearchSpace, objectives: Collection[str], breeder: Breeder) -> None:
        """Propose what `breeder` draws from `space`; it learns the means of `objectives`, in this order."""
        self._space = space
        self._objectives = tuple(objectives)
        self.breeder = breeder
        self._climber = breeder if isinstance(breeder, Climber) else None  # once: it takes long to tell
        self._overlapping = breeder if isinstance(breeder, Overlapping) else None
        self._waiting: deque[_Generation] = deque()  # drawn and not learnt from, oldest first
        self._pending: dict[int, _Generation] = {}  # of each proposal that was asked and not told
        self._numbers = 0  # candidates drawn so far
        self._unlearnt = 0  # of them, those that the breeder has not learnt from
        self._stuck = False  # whether the breeder draws no more before it learns
        self._over = False
        self._worst = np.full(len(objectives), np.inf)
        self._best = np.full(len(objectives), -np.inf)

    def __str__(self) -> str:
        return str(self.breeder)

    def ask(self) -> Proposal | None:
        """Return the next candidate of the generation, or None while the rest of it is being evaluated."""
        self._advance()
        last = self._waiting[-1] if self._waiting else None
        if last is None or last.asked == len(last.genomes):
            return None
        last.asked += 1
        proposal = propose(self._space, last.first + last.asked - 1, last.genomes[last.asked - 1])
        self._pending[proposal.number] = last
        slopes = None if self._climber is None else self._climber.slopes
        return dataclasses.replace(proposal, slopes=slopes)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Record the evaluation; the last of a generation starts `learn`. Raises `DriverError` unless the proposal is pending."""
        if proposal.number not in self._pending:
            raise DriverError(
                f"proposal {proposal.number} is not pending; expected one of {list(self._pending)}, each told once"
            )
        generation = self._pending.pop(proposal.number)
        if evaluation.error is None and not np.isfinite(evaluation.means(self._objectives)).all():
            evaluation = Evaluation(error="scores whose mean is not finite")
        generation.completed[proposal.number - generation.first] = evaluation
        if not self._may_draw():
            self._learn()

    def unfinished(self) -> tuple[Genomes, list[Evaluation]]:
        """Return the completed candidates that the breeder has not learnt from yet, by number."""
        rows = [(g.genomes[i], g.completed[i]) for g in self._waiting for i in sorted(g.completed)]
        return np.array([genome for genome, _ in rows]).reshape(-1, len(self._space.genes)), [done for _, done in rows]

    def _advance(self) -> None:
        """Draw, and learn, until there is something to ask, or until the oldest generation has to be completed first."""
        while not self._waiting or self._waiting[-1].asked == len(self._waiting[-1].genomes):
            if not self._may_draw():
                if not self._learn():
                    return
                continue
            if self._overlapping is not None:
                pending = [generation.genomes for generation in self._waiting]
                genomes = self._overlapping.draw(np.concatenate(pending) if pending else None)
            else:
                genomes = self.breeder.draw()
            if len(genomes):
                self._waiting.append(_Generation(genomes, self._numbers))
                self._numbers += len(genomes)
                self._unlearnt += len(genomes)
            elif self._waiting:
                self._stuck = True
            else:
                self._over = True

    def _may_draw(self) -> bool:
        """Return whether the breeder draws next. Otherwise it learns from the oldest generation, or the search is over."""
        most = 1 if self._overlapping is None else self._overlapping.in_flight
        return not (self._over or self._stuck) and self._unlearnt < most

    def _learn(self) -> bool:
        """Let the breeder learn from the oldest generation, if that is completed. Return whether it is."""
        if not self._waiting or len(self._waiting[0].completed) < len(self._waiting[0].genomes):
            return False
        generation = self._waiting.popleft()
        self._unlearnt -= len(generation.genomes)
        self._stuck = False
        evaluations = [generation.completed[i] for i in range(len(generation.genomes))]
        means = self._finite(np.array([evaluation.means(self._objectives) for evaluation in evaluations]))
        if means is not None:
            self.breeder.learn(generation.genomes, means, evaluations)
        return True

    def members(self) -> tuple[str, ...]:
        """Return no ids: genomes decode to merges of the pool's models."""
        return ()

    def _finite(self, means: Means) -> Means | None:
        """Return `means` with substitutes for failures, or None if no candidate has succeeded yet."""
        succeeded: NDArray[np.bool_] = np.all(np.isfinite(means), axis=1)
        if succeeded.any():
            self._worst = np.minimum(self._worst, means[succeeded].min(axis=0))
            self._best = np.maximum(self._best, means[succeeded].max(axis=0))
        if np.isinf(self._worst).any():
            return None
        return np.where(succeeded[:, None], means, self._worst - 0.1 * (self._best - self._worst) - 1e-6)


@dataclasses.dataclass(slots=True)
class _Generation:
    """Candidates that were drawn together, until they are learnt from."""

    genomes: Genomes
    first: int
    """Number of its first proposal."""
    asked: int = 0
    completed: dict[int, Evaluation] = dataclasses.field(default_factory=dict)
    """By row."""


def propose(space: SearchSpace, number: int, genome: Genome, parents: Sequence[str] = ()) -> Proposal:
    """Return the proposal of a genome and its `parents`' ids, with a read-only copy of the genome."""
    genome = np.array(genome, dtype=np.float64)
    genome.flags.writeable = False
    return Proposal(number, space.decode(genome, parents), genome)


def known_recipes(space: SearchSpace, wanted: bool = True) -> Genomes:
    """Return the genomes of the landmarks, `(landmarks, genes)`, without duplicate recipes; no rows unless `wanted`."""
    by_id: dict[str, Genome] = {}
    for genome in space.landmarks().values() if wanted else ():
        by_id.setdefault(space.decode(genome).id, genome)
    return np.array(list(by_id.values())).reshape(-1, len(space.genes))


def check_in_flight(proposal: Proposal, numbers: Collection[int]) -> None:
    """Raise `DriverError` for a `proposal` that is not among the `numbers` in flight."""
    if proposal.number not in numbers:
        msg = f"proposal {proposal.number} is not in flight; expected one of {sorted(numbers)}, each told once"
        raise DriverError(msg)


def round_integers(space: SearchSpace, genomes: Genomes) -> Genomes:
    """Return `genomes` with int, choice and bit genes rounded to the integers that they decode to."""
    return np.where(space.integer, np.floor(genomes + 0.5), genomes)


def latin_hypercube(space: SearchSpace, count: int, rng: np.random.Generator) -> Genomes:
    """Return `count` genomes, `(count, genes)`, spread evenly over each gene's range.

    A Latin hypercube (McKay, Beckman & Conover 1979). Int, choice and bit genes take each value equally often, int genes
    on a log scale in proportion to their share of it; genes with a standard deviation follow a truncated normal distribution.
    """
    strata = rng.permuted(np.tile(np.arange(count), (len(space.genes), 1)), axis=1).T
    unit = (strata + rng.random(strata.shape)) / count
    levels = space.upper - space.lower + 1
    even = space.lower + np.floor(unit * levels)
    genomes = np.where(space.integer & ~space.log, even, round_integers(space, space.from_unit(unit)))
    for i, gene in enumerate(space.genes):
        if gene.sd is not None:
            below, above = ndtr((np.array([gene.low, gene.high]) - gene.init) / gene.sd)
            genomes[:, i] = gene.init + gene.sd * ndtri(below + unit[:, i] * (above - below))
    return np.clip(genomes, space.lower, space.upper)


def read_metrics(
    objectives: Objectives, bounds: Mapping[str, tuple[float | None, float | None]] | None = None
) -> dict[str, Metric]:
    """Return each objective's metric; `bounds` overrides declared ranges, None is no bound.

    An objective without a declared metric gets that of its name (`Metric.named`). Raises `DriverError`.
    """
    bounds = bounds or {}
    _check_names("bounds", bounds, objectives)
    metrics = {}
    for name in objectives:
        metric = objectives[name] if isinstance(objectives, Mapping) else Metric.named(name.rpartition("/")[2])
        low, high = bounds.get(name, metric.bounds)
        metrics[name] = dataclasses.replace(
            metric, low=-np.inf if low is None else low, high=np.inf if high is None else high
        )
        if not metrics[name].low < metrics[name].high:
            msg = f"driver `bounds`: `{name}` has [{low}, {high}]; expected a lower and a higher number, or null"
            raise DriverError(msg)
    return metrics


def check_bounds(
    kind: str, objectives: Sequence[str], bounds: Sequence[tuple[float, float]], scores: Sequence[NDArray[np.float64]]
) -> None:
    """Raise `DriverError` if an objective's scores, an array for each objective, are outside of its bounds."""
    for name, (low, high), values in zip(objectives, bounds, scores, strict=True):
        slack = 1e-6 * max([1.0, *(abs(bound) for bound in (low, high) if np.isfinite(bound))])
        outside = values[(values < low - slack) | (values > high + slack)]
        if outside.size:
            raise DriverError(
                f"driver `{kind}`: objective `{name}` scores {outside[0]:g}, outside of its bounds [{low:g}, {high:g}]; "
                f"type `bounds: {{{name}: [low, high]}}`, null for no bound"
            )


def read_weights(objectives: Collection[str], given: Mapping[str, float] | None) -> NDArray[np.float64]:
    """Return weights of the objectives, `(objectives,)` with sum 1, for a driver that maximises one weighted mean.

    `given` has weights of 0 or more, 0 where left out; None means equal weights. Raises `DriverError`.
    """
    if given is None:
        return np.full(len(objectives), 1 / len(objectives))
    _check_names("weights", given, objectives)
    for name, weight in given.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise DriverError(f"driver `weights`: `{name}` is {weight}; expected a number of 0 or more")
    weights = np.array([given.get(name, 0.0) for name in objectives])
    if weights.sum() == 0:
        raise DriverError(f"driver `weights`: all are 0; expected at least one above 0, among {', '.join(objectives)}")
    return np.asarray(weights / weights.sum())


def _check_names(key: str, names: Collection[str], objectives: Collection[str]) -> None:
    for name in names:
        if name not in objectives:
            raise DriverError(f"driver `{key}`: unknown objective `{name}`; {nearest(name, objectives)}")
