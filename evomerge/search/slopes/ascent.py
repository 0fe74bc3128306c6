"""Ascent: one point that climbs along slopes, inside the unit cube.

Not to be confused with a driver, which decides what to evaluate: an ascent only turns slopes into the next position.
"""

from collections import Counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.space import Genome, SearchSpace

Slope = NDArray[np.float64]
"""Derivative of what is maximised with respect to each coordinate, `(genes,)`, finite; 0 for a gene that stays."""

BETAS = (0.5, 0.9)
"""Of `Adam`, for ascents of 3 to 30 steps."""


class Ascent(Protocol):
    """A point with the state of its optimiser."""

    position: Genome
    """The point that is to be evaluated next, `(genes,)`, in unit coordinates."""

    def step(self, slope: Slope) -> Genome:
        """Move along the `slope` at `position`, and return the new position."""

    def back(self) -> Genome:
        """Repeat the last step at half its length, and return the new position: for one whose evaluation failed.

        Later steps grow back to their full length, twice as long each time. Before the first step, the position stays.
        """


class Adam:
    """An `Ascent` by Adam (Kingma & Ba, arXiv 1412.6980), projected onto the unit cube.

    It does not depend on the scale of the scores: a first step has length `rate` in every gene whose slope is not 0.

    With `levels`, a gene is a level, which several genes share, plus a deviation of its own, and both have their steps.
    """

    def __init__(
        self,
        start: Genome,
        rate: float | NDArray[np.float64],
        betas: tuple[float, float] = (0.9, 0.98),
        levels: NDArray[np.intp] | None = None,
    ) -> None:
        """Start at `start`, `(genes,)`. `rate` is in units of each gene's range: one number, or `(genes,)`.

        `levels` has the number of each gene's level, `(genes,)`, -1 for a gene without.
        """
        self.position = np.clip(start, 0.0, 1.0)
        self.rate = rate
        self._betas = betas
        self._share = 1.0  # of `rate`; below 1 after failures
        self._steps = 0
        levels = np.full(len(self.position), -1) if levels is None else levels
        self._shared = levels >= 0
        self._levels = levels[self._shared]
        self._mean = np.zeros(len(levels) + levels.max(initial=-1) + 1)  # m_t, of deviations and then of levels
        self._square = np.zeros_like(self._mean)  # v_t
        self._from = self.position
        self._direction = np.zeros_like(self.position)

    def step(self, slope: Slope) -> Genome:
        """Move along the bias-corrected mean of the slopes so far, over the root of that of their squares (algorithm 1)."""
        first, second = self._betas
        self._steps += 1
        slope = np.append(
            slope, np.bincount(self._levels, slope[self._shared])
        )  # a level's slope is the sum over its genes
        self._mean = first * self._mean + (1 - first) * slope
        self._square = second * self._square + (1 - second) * slope**2
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        self._share = min(1.0, 2 * self._share)
        self._from = self.position
        steps = np.divide(mean, np.sqrt(square), out=np.zeros_like(mean), where=square > 0)
        self._direction = steps[: len(self.position)].copy()
        self._direction[self._shared] += steps[len(self.position) :][self._levels]
        return self._move()

    def back(self) -> Genome:
        """Repeat the last step with half the rate."""
        self._share /= 2
        return self._move()

    def _move(self) -> Genome:
        self.position = np.clip(self._from + self._share * self.rate * self._direction, 0.0, 1.0)
        return self.position


def movable(space: SearchSpace) -> NDArray[np.bool_]:
    """Return which genes an ascent moves, bool `(genes,)`: floats with slopes. Ints have slopes that lead between integers."""
    return space.sloped & ~space.integer


def shared_levels(space: SearchSpace) -> NDArray[np.intp]:
    """Return the number of each gene's level, `(genes,)`, for `Adam`.

    Tiles of the same parameter share a level, those of each expert another where it is tiled over experts. It is -1 for a gene
    that is not moved, or no other gene to share with.
    """
    names: list[tuple[int, ...]] = [()] * len(space.genes)
    for number, hole in enumerate(space.holes):
        if hole.per and hole.mixture is None:
            at = hole.per.index("expert") if "expert" in hole.per else None
            names[hole.genes] = [(number, *([] if at is None else [hole.axes[at].index(key[at])])) for key in hole.keys]
    moves = movable(space)
    levels = np.full(len(names), -1)
    shared = Counter(name for name, moving in zip(names, moves, strict=True) if name and moving)
    for number, name in enumerate(name for name, count in shared.items() if count > 1):
        levels[[i for i, other in enumerate(names) if other == name]] = number
    return np.where(moves, levels, -1)


def deviations(position: Genome, levels: NDArray[np.intp]) -> Slope:
    """Return each gene minus the mean over the genes of its level, `(genes,)`; 0 for a gene without. See `shared_levels`."""
    shared = levels >= 0
    counts = np.maximum(np.bincount(levels[shared]), 1)
    means = np.bincount(levels[shared], position[shared]) / counts
    result = np.zeros_like(position)
    result[shared] = position[shared] - means[levels[shared]]
    return result


def to_unit_slope(space: SearchSpace, genome: Genome, slope: Slope) -> Slope:
    """Return the slope with respect to unit coordinates, of one with respect to the genes, both `(genes,)`.

    On a linear scale a unit is the gene's range; on a logarithmic one it multiplies the gene by upper / lower.
    """
    log = space.log
    ratio = np.divide(space.upper, space.lower, out=np.ones_like(space.upper), where=log)
    return np.asarray(slope * np.where(log, genome * np.log(ratio), space.upper - space.lower))
