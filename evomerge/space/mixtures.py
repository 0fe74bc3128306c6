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

    Stick-breaking: each takes the quantile of its part of what those before have left. Uniform points become uniform mixtures (a
    flat Dirichlet distribution), and points spread evenly stay so.
    """
    left = np.ones(unit.shape[:-1])
    parts = []
    for index in range(count := unit.shape[-1]):
        rest = left * (1 - unit[..., index]) ** (1 / (count - index))
        parts.append(left - rest)
        left = rest
    return np.stack([*parts, left], axis=-1)
