"""Warps: monotonic functions from a mean score within bounds to a number without bounds.

A warped score is closer to a quadratic of the genes, and its noise closer to normal. Higher stays higher.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Values = NDArray[np.float64]
Prediction = tuple[Values, Values]
"""Mean and standard deviation, both `(points,)`."""

_LARGEST_LOG = 60.0
"""Logarithms are clipped to this size before the exponential, so that it stays finite."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Warp(Protocol):
    """A monotonic function of mean scores. All three methods take and return `(points,)`."""

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        ...

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores; the inverse of `warp`."""
        ...

    def noise(self, warped: Values) -> Values:
        """Return the variance of the warped scores' noise, up to a constant factor."""
        ...


class Identity:
    """No warp, and the same noise everywhere."""

    def warp(self, values: Values) -> Values:
        """Return the mean scores unchanged."""
        return values

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores unchanged."""
        return warped

    def noise(self, warped: Values) -> Values:
        """Return 1 everywhere."""
        return np.ones_like(warped)


class Log:
    """The logarithm of the distance to one `bound`: scores above it (`side` 1) or below it (`side` -1)."""

    def __init__(self, bound: float, side: int) -> None:
        self._bound, self._side = bound, side

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        return np.asarray(np.log(self._side * (values - self._bound)))

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores."""
        return np.asarray(self._bound + self._side * np.exp(np.clip(warped, -_LARGEST_LOG, _LARGEST_LOG)))

    def noise(self, warped: Values) -> Values:
        """Return 1 everywhere."""
        return np.ones_like(warped)


class Logit:
    """The logit of a mean score in [low, high] over `examples`, kept half an example away from the bounds."""

    def __init__(self, low: float, high: float, examples: int) -> None:
        self._low, self._span, self._examples = low, high - low, examples

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        right = (values - self._low) / self._span * self._examples
        return np.asarray(np.log((right + 0.5) / (self._examples - right + 0.5)))

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores."""
        share = (expit(warped) * (self._examples + 1) - 0.5) / self._examples
        return np.asarray(self._low + self._span * np.clip(share, 0, 1))

    def noise(self, warped: Values) -> Values:
        """Return 1 / (4 p (1 - p)): the variance of a binomial share's logit (delta method), relative to that at p = 1/2."""
        smallest = 0.5 / (self._examples + 1)
        share = np.clip(expit(warped), smallest, 1 - smallest)
        return np.asarray(0.25 / (share * (1 - share)))


def unwarp_normal(warp: Warp, mean: Values, variance: Values) -> Prediction:
    """Return mean and standard deviation of a mean score whose warped value is normal, by Gauss-Hermite quadrature."""
    nodes = warp.unwarp(mean[:, None] + np.sqrt(variance)[:, None] * _NODES)
    centre = nodes @ _WEIGHTS
    return centre, np.sqrt(((nodes - centre[:, None]) ** 2) @ _WEIGHTS)
