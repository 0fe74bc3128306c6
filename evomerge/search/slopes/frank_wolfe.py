"""Frank-Wolfe merging: weights of experts that stay in the experts' convex hull (arXiv 2503.12649).

The released code takes cosines with raw checkpoints, in which the base's weights dominate; this is the paper's inner product.
"""

import numpy as np

from evomerge.errors import DriverError
from evomerge.search.slopes.ascent import Slope
from evomerge.space import Genome, SearchSpace


class FrankWolfe:
    """An `Ascent` towards the experts towards which the slope is steepest, in each tile of the weights.

    With `top` 1 it is the paper's hard variant. With more it is a soft one: a step goes towards a merge of so many experts, with
    shares in proportion to how steep the slope towards each is, 0 where it leads down. `inner` further steps then learn these
    shares, along the slopes where the step has led: exponentiated gradient (Kivinen & Warmuth 1997), which keeps them 0 or more with
    a sum of 1. The released soft variant learns the shares by 500 steps of AdaMerging, and takes the experts from each task's slope;
    here they are those of the weighted mean.

    The weights of a tile are 0 or more and sum to 1 (times λ, where the method has it). Other genes stay.
    """

    def __init__(self, space: SearchSpace, rate: float, top: int = 1, inner: int = 0) -> None:
        """Start at the mean of the experts. Raises `DriverError` for a space that does not have the hull, or `top` experts."""
        weights = space.weights
        if weights is None or weights.high < weights.total:
            expected = "up to 1" if weights is None else f"up to {weights.total:g}"
            raise DriverError(
                "driver `gradient`: `rule: frank_wolfe` searches weights of experts, 0 or more with a fixed sum; expected a space "
                f"of `linear` or `task_arithmetic` with a hole such as `weight: {{float: [0, 1], per: [expert]}}`, {expected}"
            )
        if top > weights.genes.shape[1]:
            raise DriverError(
                f"driver `gradient`: `top` is {top}; expected at most {weights.genes.shape[1]}, the number of experts"
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
        self._top = top
        self._inner = inner
        self._learning = 0  # inner steps that are left of the last step
        self._mixed = self._unit = np.empty(
            (0, 0)
        )  # the last step's shares of experts, and the largest slope towards one, by tile
        self._steps = 0
        self.position = space.to_unit(genome)
        self._from = self._towards = self.position
        self._share = 0.0  # share of the way, in the last step

    def step(self, slope: Slope) -> Genome:
        """Move rate · 2 / (t + 2) of the way, t = 0, 1, …, to the `top` experts k of largest <slope, expert k> in each tile.

        Or learn the shares of the last step's experts.
        """
        gains = (slope * self._span)[self._genes]  # (tiles, experts), by weight
        shares = ((self.position - self._low) / self._span)[self._genes]
        steeper = gains - (shares * gains).sum(axis=1, keepdims=True)  # by how much than at the position
        self.gap = float(steeper.max(axis=1).sum())
        if self._learning:
            self._learning -= 1
            away = gains - (self._mixed * gains).sum(axis=1, keepdims=True)
            parts = self._mixed * np.exp(np.divide(away, self._unit, out=np.zeros_like(away), where=self._unit > 0))
            self._mixed = parts / parts.sum(axis=1, keepdims=True)
        else:
            self._choose(gains, steeper, shares)
        self._towards = self._from.copy()
        self._towards[self._genes] = self._low[self._genes] + self._mixed * self._span[self._genes]
        return self._move()

    def _choose(self, gains: Slope, steeper: Slope, shares: Slope) -> None:
        """Begin a step from the position, towards the steepest experts; all are `(tiles, experts)`."""
        parts = np.zeros_like(gains)
        chosen = np.argsort(-gains, axis=1, kind="stable")[:, : self._top]
        np.put_along_axis(parts, chosen, np.maximum(np.take_along_axis(steeper, chosen, axis=1), 0.0), axis=1)
        totals = parts.sum(axis=1, keepdims=True)
        self._mixed = np.where(
            totals > 0, parts / np.where(totals > 0, totals, 1.0), shares
        )  # a tile without slopes stays
        self._unit = np.abs(steeper).max(axis=1, keepdims=True)
        self._from = self.position
        self._share = self._rate * 2 / (self._steps + 2)
        self._steps += 1
        self._learning = self._inner

    def back(self) -> Genome:
        """Repeat the last step at half its length."""
        self._share /= 2
        return self._move()

    def _move(self) -> Genome:
        self.position = self._from + self._share * (self._towards - self._from)
        return self.position
