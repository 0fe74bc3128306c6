"""Polish: a few steps along slopes from each candidate of another driver, which then learns what they reach.

The outer driver searches what has no slopes, such as methods, seeds and drop rates; its numbers need only be near. Not to be
confused with `gradient`, which improves one point and keeps its genes without slopes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from evomerge.search.driver import Breeder, Genomes, Means
from evomerge.search.slopes.ascent import BETAS, Adam, movable, shared_levels
from evomerge.search.slopes.measure import Measure
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Examples, Metric


class PolishSettings(BaseModel, extra="forbid", frozen=True):
    """`polish:` of a driver, whose candidates climb before it learns from them."""

    steps: int = Field(default=3, ge=1)
    """Steps from each candidate. Each is a candidate of its own, and all but the last are evaluated with slopes."""
    learning_rate: float = Field(default=0.1, gt=0, le=1)
    """Length of a step by Adam, in units of each gene's range."""


@dataclass(frozen=True, slots=True, eq=False)
class _Climb:
    """The steps from one candidate of the breeder's generation."""

    row: int
    weights: NDArray[np.float64]
    """Of the objectives in the sum that the steps improve, `(objectives,)`."""
    ascent: Adam


class Polish:
    """A `Climber` around a `Breeder`, which learns the best point of each climb in place of its own candidate.

    Each generation of the breeder is followed by one for each step. A step goes along the slope, over all search examples, of a
    weighted sum of the objectives: the sum that the breeder maximises, or, for fronts, one for each candidate. It weighs an
    objective by the candidate's position between the worst and the best of its generation, in units of that range: candidates
    climb away from the worst corner, and keep their places along the front. A step that fails or does not improve the sum is
    repeated at half its length.

    NSGA-II and NSGA-III take the best points into their population (Lamarckian). CMA-ES and Optuna's samplers model their own
    candidates by what these reach (Baldwinian), but CMA-ES restarts at the best point.
    """

    def __init__(
        self,
        breeder: Breeder,
        kind: str,
        space: SearchSpace,
        metrics: Mapping[str, Metric],
        settings: PolishSettings,
        sizes: Mapping[str, int],
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Polish what `breeder`, of the driver `kind`, draws from `space`; `weights`, `(objectives,)`, are what it maximises.

        `sizes` are the search examples by task. Raises `DriverError` for spaces and metrics without slopes.
        """
        self._breeder = breeder
        self._space = space
        self._settings = settings
        self._weights = weights
        self._measure = Measure(f"{kind}` with `polish", space, metrics, sizes, 0.0, 0, "leave out `polish`")
        self._moving = movable(space)
        self._levels = shared_levels(space)
        self._step = 0  # of the climbs; 0 is the breeder's own generation
        self._climbs: list[_Climb] = []  # those that go on
        # The best of each climb, by row of the breeder's generation:
        self._genomes: Genomes = np.empty((0, len(space.genes)))
        self._means: Means = np.empty((0, len(metrics)))
        self._evaluations: list[Evaluation] = []

    def __str__(self) -> str:
        moving, genes = int(self._moving.sum()), len(self._moving)
        return (
            f"{self._breeder}, each polished by {self._settings.steps} steps along slopes in {moving} of {genes} genes"
        )

    @property
    def slopes(self) -> Examples | None:
        """All search examples; None for the last step."""
        return self._measure.training if self._step < self._settings.steps else None

    def draw(self) -> Genomes:
        """Return the breeder's next generation, or the next step of each climb."""
        if not self._climbs:
            self._step = 0
            return self._breeder.draw()
        self._step += 1
        units = np.array([climb.ascent.position for climb in self._climbs])
        return np.where(
            self._moving, self._space.from_unit(units), self._genomes[[climb.row for climb in self._climbs]]
        )

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Prepare the next step of each climb; after the last, tell the breeder the best points."""
        if self._step == 0:
            self._begin(genomes, means, evaluations)
        climbs, self._climbs = self._climbs, []
        for climb, genome, mean, evaluation in zip(climbs, genomes, means, evaluations, strict=True):
            measured = self._measure.read(genome, evaluation) if self.slopes is not None else None
            better = evaluation.error is None and climb.weights @ (mean - self._means[climb.row]) > 0
            if better:
                self._genomes[climb.row], self._means[climb.row] = genome, mean
                self._evaluations[climb.row] = evaluation
            before = climb.ascent.position
            if measured is not None and (better or self._step == 0):
                climb.ascent.step(climb.weights @ measured.slopes)
            else:
                climb.ascent.back()
            if self._step < self._settings.steps and not np.array_equal(climb.ascent.position, before):
                self._climbs.append(climb)
        if not self._climbs:
            self._breeder.learn(self._genomes, self._ranked(), self._evaluations)

    def _begin(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        self._genomes, self._means, self._evaluations = genomes.copy(), means.copy(), list(evaluations)
        succeeded = [evaluation.error is None for evaluation in evaluations]
        weights = (
            np.tile(self._weights, (len(means), 1)) if self._weights is not None else _preferences(means, succeeded)
        )
        for row, unit in enumerate(self._space.to_unit(genomes)):
            ascent = Adam(unit, self._settings.learning_rate, BETAS, self._levels)
            self._climbs.append(_Climb(row, weights[row], ascent))

    def _ranked(self) -> Means:
        """Return the means of the best points; a failure stays below all successes, some of which may have lost in one objective."""
        failed = np.array([evaluation.error is not None for evaluation in self._evaluations])
        worst = self._means.min(axis=0, where=~failed[:, None], initial=np.inf)
        return np.where(failed[:, None], np.minimum(self._means, worst - 1e-6), self._means)


def _preferences(means: Means, succeeded: Sequence[bool]) -> Means:
    """Return the weights of the objectives for each candidate, `(candidates, objectives)`, from `means` and those that succeeded."""
    among = means[np.array(succeeded)] if any(succeeded) else means
    span = np.ptp(among, axis=0)
    span = np.where(span > 0, span, 1.0)
    positions = np.maximum(means - among.min(axis=0), 0.0) / span
    positions[positions.sum(axis=1) == 0] = 1.0  # the worst corner: all alike
    return np.asarray(positions / positions.sum(axis=1, keepdims=True) / span)
