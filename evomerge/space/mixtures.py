"""Mixtures: weights of several models, 0 or more with a total. Most good merges of experts are mixtures; most points of a box are not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The genes of a space that are the weights of a merge's inputs. `SearchSpace.weights` finds them."""

    genes: NDArray[np.intp]
    """Their indices, `(tiles, inputs)`."""
    high: float
    """The largest weight in the space."""
    total: float
    """The sum of a mixture's weights."""
    scaled: bool
    """Whether a merge depends on the sum of its weights."""

    def mixed(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map points `(..., tiles * inputs)` of the unit cube to weights of the same shape, tile by tile.

        Of a tile's n coordinates, n - 1 give its shares. The last gives their sum: that of a mixture up to 1/2, and from there
        up to the largest in the space with these shares. Weights that `high` excludes are all scaled down to fit.
        """
        places = unit.reshape(*unit.shape[:-1], *self.genes.shape)
        parts = shares(places[..., :-1])
        most = self.high / parts.max(axis=-1)
        level = np.maximum(2 * places[..., -1] - 1, 0) * self.scaled
        totals = np.minimum(self.total + level * np.maximum(most - self.total, 0), most)
        return np.asarray((parts * totals[..., None]).reshape(unit.shape))


def shares(unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points `(..., n - 1)` of the unit cube to n shares, 0 or more with sum 1, `(..., n)`.

    Stick-breaking: each coordinate is the quantile of what is left after the next share. Uniform points become uniform mixtures (a
    flat Dirichlet distribution), and points spread evenly stay so. At 0 nothing is left.
    """
    left = np.ones(unit.shape[:-1])
    parts = []
    for index in range(count := unit.shape[-1]):
        rest = left * unit[..., index] ** (1 / (count - index))
        parts.append(left - rest)
        left = rest
    return np.stack([*parts, left], axis=-1)


@dataclass(frozen=True, slots=True)
class Mixture:
    """The content of a `mixture` hole: genes for the total of n weights, unless it is fixed, and for n - 1 shares of it."""

    low: float
    high: float
    """Of the total; equal to `low` for a fixed one, which has no gene."""

    def weights(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map genes `(..., genes)` to weights `(..., n)`, multiples of 1e-12, so that `numbers` inverts it."""
        fixed = self.low == self.high
        total = np.round(np.full_like(numbers[..., :1], self.low) if fixed else numbers[..., :1], 12)
        weights = (total * shares(numbers if fixed else numbers[..., 1:])).round(12)
        weights[..., -1:] = np.maximum(total - weights[..., :-1].sum(axis=-1, keepdims=True), 0).round(12)
        return np.asarray(weights)

    def numbers(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map weights `(n,)` of 0 or more to the genes that give them."""
        fixed = self.low == self.high
        total = self.low if fixed else weights.sum().round(12)
        left = np.maximum(total - np.cumsum(np.append(0.0, weights[:-1])), 0)  # for each weight and those after it
        count = len(weights) - 1
        rest = np.where(left[:-1] > 1e-12, left[1:] / np.maximum(left[:-1], 1e-12), 1.0)
        unit = rest ** np.arange(count, 0, -1)
        return np.asarray(unit if fixed else np.append(total, unit), dtype=np.float64)

    def jacobian(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivatives of `weights` with respect to genes `(genes,)`, `(n, genes)`.

        Where no share is left, that with respect to a share is infinite, unless it is the last; there it is taken at 1e-6.
        """
        fixed = self.low == self.high
        unit = np.clip(numbers if fixed else numbers[1:], 1e-6, 1.0)
        count = len(unit)
        powers = 1.0 / np.arange(count, 0, -1)
        left = np.cumprod(np.append(1.0, unit**powers))  # before each share, and after the last
        by_unit = np.where(np.tri(count + 1, count, -1, dtype=np.bool_), left[:, None] * powers / unit, 0.0)
        shared = by_unit - np.append(
            by_unit[1:], np.zeros((1, count)), axis=0
        )  # a share is what is left before minus after
        if fixed:
            return np.asarray(self.low * shared)
        return np.column_stack([shares(numbers[1:]), numbers[0] * shared])

    def coordinates(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map genes `(..., genes)` to as many weights, as shares of the largest total: scores are smooth in them."""
        weights = self.weights(numbers) / self.high
        return weights[..., :-1] if self.low == self.high else weights
