"""Ascent: one point that climbs along slopes, inside the unit cube.

Not to be confused with a driver, which decides what to evaluate: an ascent only turns slopes into the next position.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.space import Genome, SearchSpace

Slope = NDArray[np.float64]
"""Derivative of what is maximised with respect to each coordinate, `(genes,)`, finite; 0 for a gene that stays."""


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
    """

    def __init__(
        self, start: Genome, rate: float | NDArray[np.float64], betas: tuple[float, float] = (0.9, 0.98)
    ) -> None:
        """Start at `start`, `(genes,)`. `rate` is in units of each gene's range: one number, or `(genes,)`."""
        self.position = np.clip(start, 0.0, 1.0)
        self.rate = rate
        self._betas = betas
        self._share = 1.0  # of `rate`; below 1 after failures
        self._steps = 0
        self._mean = np.zeros_like(self.position)  # m_t
        self._square = np.zeros_like(self.position)  # v_t
        self._from = self.position
        self._direction = np.zeros_like(self.position)

    def step(self, slope: Slope) -> Genome:
        """Move along the bias-corrected mean of the slopes so far, over the root of that of their squares (algorithm 1)."""
        first, second = self._betas
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * slope
        self._square = second * self._square + (1 - second) * slope**2
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        self._share = min(1.0, 2 * self._share)
        self._from = self.position
        self._direction = np.divide(mean, np.sqrt(square), out=np.zeros_like(mean), where=square > 0)
        return self._move()

    def back(self) -> Genome:
        """Repeat the last step with half the rate."""
        self._share /= 2
        return self._move()

    def _move(self) -> Genome:
        self.position = np.clip(self._from + self._share * self.rate * self._direction, 0.0, 1.0)
        return self.position


def to_unit_slope(space: SearchSpace, genome: Genome, slope: Slope) -> Slope:
    """Return the slope with respect to unit coordinates, of one with respect to the genes, both `(genes,)`.

    On a linear scale a unit is the gene's range; on a logarithmic one it multiplies the gene by upper / lower.
    """
    log = space.log
    ratio = np.divide(space.upper, space.lower, out=np.ones_like(space.upper), where=log)
    return np.asarray(slope * np.where(log, genome * np.log(ratio), space.upper - space.lower))
