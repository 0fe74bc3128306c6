"""Warps: monotonic functions from a mean score within bounds to a number without bounds.

A warped score is closer to a quadratic of the genes, and its noise closer to normal. Higher stays higher.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Warp:
    """A monotonic function of mean scores, its inverse, and its noise. Each takes and returns `(points,)`."""

    warp: Callable[[Values], Values]
    """Mean scores → warped ones."""
    unwarp: Callable[[Values], Values]
    """The inverse."""
    noise: Callable[[Values], Values] = np.ones_like
    """Warped mean scores → the variance of their noise, up to a constant factor."""
    slope: Callable[[Values], Values] = np.ones_like
    """Mean scores → the derivative of `warp` there."""


IDENTITY = Warp(lambda values: values, lambda warped: warped)


def log(bound: float, side: int) -> Warp:
    """Return the logarithm of the distance to one `bound`: scores above it (`side` 1) or below it (`side` -1)."""
    return Warp(
        lambda values: np.asarray(np.log(side * (values - bound))),
        lambda warped: np.asarray(bound + side * np.exp(np.clip(warped, -_LARGEST_LOG, _LARGEST_LOG))),
        slope=lambda values: np.asarray(1 / (values - bound)),
    )


def logit(low: float, high: float, examples: int) -> Warp:
    """Return the logit of a mean score in [low, high] over `examples`, kept half an example away from the bounds.

    Its noise is 1 / (4 p (1 - p)): the variance of a binomial share's logit (delta method), relative to that at p = 1/2.
    """
    smallest = 0.5 / (examples + 1)

    def warp(values: Values) -> Values:
        right = (values - low) / (high - low) * examples
        return np.asarray(np.log((right + 0.5) / (examples - right + 0.5)))

    def unwarp(warped: Values) -> Values:
        share = (expit(warped) * (examples + 1) - 0.5) / examples
        return np.asarray(low + (high - low) * np.clip(share, 0, 1))

    def noise(warped: Values) -> Values:
        share = np.clip(expit(warped), smallest, 1 - smallest)
        return np.asarray(0.25 / (share * (1 - share)))

    def slope(values: Values) -> Values:
        right = (values - low) / (high - low) * examples
        return np.asarray((1 / (right + 0.5) + 1 / (examples - right + 0.5)) * examples / (high - low))

    return Warp(warp, unwarp, noise, slope)


def unwarp_normal(warp: Warp, mean: Values, variance: Values) -> Prediction:
    """Return mean and standard deviation of a mean score whose warped value is normal, by Gauss-Hermite quadrature."""
    nodes = warp.unwarp(mean[:, None] + np.sqrt(variance)[:, None] * _NODES)
    centre = nodes @ _WEIGHTS
    return centre, np.sqrt(((nodes - centre[:, None]) ** 2) @ _WEIGHTS)
