"""Frank-Wolfe merging: weights of experts that stay in the experts' convex hull (arXiv 2503.12649).

The released code takes cosines with raw checkpoints, in which the base's weights dominate; this is the paper's inner product.
"""

import numpy as np

from evomerge.errors import DriverError
from evomerge.search.slopes.ascent import Slope
from evomerge.space import Genome, SearchSpace


class FrankWolfe:
    """An `Ascent` towards one expert at a time: the one towards which the slope is steepest, in each tile of the weights.

    The weights of a tile are 0 or more and sum to 1 (times λ, where the method has it). Other genes stay.
    """

    def __init__(self, space: SearchSpace, rate: float) -> None:
        """Start at the mean of the experts. Raises `DriverError` for a space that does not have the hull."""
        weights = space.weights
        if weights is None or weights.high < weights.total:
            expected = "up to 1" if weights is None else f"up to {weights.total:g}"
            raise DriverError(
                "driver `gradient`: `rule: frank_wolfe` searches weights of experts, 0 or more with a fixed sum; expected a space "
                f"of `linear` or `task_arithmetic` with a hole such as `weight: {{float: [0, 1], per: [expert]}}`, {expected}"
            )
        self.gap = np.inf
        """Frank-Wolfe gap of the last slope: no point of the hull is better by more, if the objective is concave."""
        self._genes = weights.genes  # (tiles, experts)
        genome = space.initial.copy()
        genome[self._genes] = weights.total / self._genes.shape[1]
        bounds = np.zeros((2, len(genome)))
        bounds[1] = weights.total
        self._low, high = space.to_unit(bounds)
        self._span = high - self._low
        self._rate = rate
        self._steps = 0
        self.position = space.to_unit(genome)
        self._from = self._towards = self.position
        self._share = 0.0  # share of the way, in the last step

    def step(self, slope: Slope) -> Genome:
        """Move rate · 2 / (t + 2) of the way, t = 0, 1, …, to argmax_k <slope, expert k> in each tile."""
        gains = (slope * self._span)[self._genes]  # (tiles, experts), by weight
        shares = ((self.position - self._low) / self._span)[self._genes]
        chosen = gains.argmax(axis=1)
        self.gap = float((gains.max(axis=1) - (shares * gains).sum(axis=1)).sum())
        self._from, self._towards = self.position, self.position.copy()
        self._towards[self._genes] = self._low[self._genes]
        picked = self._genes[np.arange(len(chosen)), chosen]
        self._towards[picked] += self._span[picked]
        self._share = self._rate * 2 / (self._steps + 2)
        self._steps += 1
        return self._move()

    def back(self) -> Genome:
        """Repeat the last step at half its length."""
        self._share /= 2
        return self._move()

    def _move(self) -> Genome:
        self.position = self._from + self._share * (self._towards - self._from)
        return self.position
