"""A Gaussian process that is fitted to values and to slopes, and the rung that uses it.

A slope is a linear function of the process, so its covariances are derivatives of the kernel, in closed form (Rasmussen &
Williams 2006, section 9.4). A candidate with slopes gives as many equations as genes, and one more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from evomerge.surrogate.design import Points
from evomerge.surrogate.regression import student_factor
from evomerge.surrogate.warps import Prediction, Values, Warp, unwarp_normal

_MOST = 300
"""Equations from which hyperparameters are chosen: all values, and a part of the slopes where there are more."""
_BROAD = 100.0
"""Variance of the constant, in units of the values' variance."""
# Logarithms of v₁, v₂, v₃, length / √d, and the noise of values and of slopes.
_START = np.log([1.0, 0.3, 0.1, 1.0, 1e-3, 1e-2])
_BOUNDS = np.log([[1e-4, 1e2], [1e-4, 1e2], [1e-5, 1e2], [0.1, 10.0], [1e-6, 1.0], [1e-6, 10.0]])
_CENTRE = np.log([1.0, 0.3, 0.1, 1.0, 1e-2, 1e-2])
_SPREAD = np.array([2.0, 2.0, 2.0, 1.0, 3.0, 3.0])


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Derivatives of mean scores along directions, any number for each candidate."""

    rows: NDArray[np.intp]
    """The candidate of each slope, `(slopes,)`."""
    directions: Points
    """`(slopes, genes)`, in the coordinates of the points."""
    values: Values
    """Change of the candidate's mean score per unit of the direction, `(slopes,)`, finite."""


class _Pairs:
    """Inner products and distances of observations: values at `points`, `(n, genes)`, then slopes at `rows` of them."""

    def __init__(self, points: Points, rows: NDArray[np.intp], directions: Points) -> None:
        genes = points.shape[1]
        self._rows, self._pairs = rows, np.ix_(rows, rows)
        self.inner = points @ points.T / genes
        self.apart = cdist(points, points, "sqeuclidean") / genes
        along = directions @ points.T / genes
        self._away = along - along[np.arange(len(rows)), rows][:, None]
        self._along = along
        self._between = directions @ directions.T / genes
        one = np.ones_like(self.inner)
        self.linear = self._of_inner(self.inner, one, 0 * one)
        """Covariance of the kernel zᵀz'/d."""
        self.quadratic = self._of_inner(self.inner**2, 2 * self.inner, 2 * one)
        """That of its square."""

    def _of_inner(self, value: Points, first: Points, second: Points) -> Points:
        along = self._along[:, self._rows]
        across = first[:, self._rows] * self._along.T
        return np.block(
            [[value, across], [across.T, second[self._pairs] * along * along.T + first[self._pairs] * self._between]]
        )

    def of_apart(self, value: Points, first: Points, second: Points) -> Points:
        """Return the covariance whose kernel is a function of the squared distance: its values and two derivatives, `(n, n)`."""
        away = self._away[:, self._rows]
        across = -2 * first[:, self._rows] * self._away.T
        slopes = 4 * second[self._pairs] * away * away.T - 2 * first[self._pairs] * self._between
        return np.block([[value, across], [across.T, slopes]])


def _matern(apart: Points, length: float) -> tuple[Points, Points, Points, Points]:
    """Return a Matérn 5/2 kernel of squared distances, two derivatives by them, and distance times the third."""
    scale = 5 / length**2
    far = np.sqrt(scale * apart)
    decay = np.exp(-far)
    first, second = -scale / 6 * (1 + far) * decay, scale**2 / 12 * decay
    return (1 + far + far**2 / 3) * decay, first, second, -(scale**2) / 24 * far * decay


class SlopedProcess:
    """A Gaussian process of one output that is fitted to values and slopes, with the kernel of `Process`.

    The noise variance of values is known up to a factor; that of slopes is the same for all. Both factors and the kernel's
    hyperparameters maximise the log marginal likelihood times a broad log-normal prior, as those of `Process` do.
    """

    def __init__(self, points: Points, target: Values, noise: Values, slopes: Slopes) -> None:
        """Fit `target`, `(points,)`, whose noise variances are proportional to `noise`, `(points,)`, and slopes of it."""
        self._points = 2 * points
        self._rows, self._directions = slopes.rows, 2 * slopes.directions
        self.centre, self.scale = float(target.mean()), float(target.std())
        steep = slopes.values / self.scale
        outputs = np.append((target - self.centre) / self.scale, steep)
        count = len(points)
        self._noise = np.append(noise, np.full(len(steep), max(float(np.mean(steep**2)), 1e-6) if len(steep) else 1.0))
        order = np.random.default_rng(0).permutation(len(steep))[: max(_MOST - count, count)]
        some = np.sort(order)
        kept = np.append(np.arange(count), count + some)
        pairs = _Pairs(self._points, self._rows[some], self._directions[some])
        self.kernel = _choose(pairs, outputs[kept], self._noise[kept], count)
        """Logarithms of the hyperparameters, `(6,)`."""
        pairs = _Pairs(self._points, self._rows, self._directions)
        covariance = np.diag(_noise(self.kernel, self._noise, count)) + sum(_parts(pairs, self.kernel)[0])
        covariance[:count, :count] += _BROAD
        self._inverse = _invert(covariance)[1]
        self._outputs = outputs
        self._weights = self._inverse @ outputs * self.scale

    def predict(self, points: Points) -> tuple[Values, Values]:
        """Return means, `(points,)`, and variances in units of `scale` squared, without noise, `(points,)`."""
        v1, v2, v3, length = np.exp(self.kernel[:4])
        genes = points.shape[1]
        rows = 2 * points
        inner, apart = rows @ self._points.T / genes, cdist(rows, self._points, "sqeuclidean") / genes
        along = rows @ self._directions.T / genes
        away = along - (self._directions * self._points[self._rows]).sum(axis=1) / genes
        value, first, _, _ = _matern(apart, length)
        at = self._rows
        cross = np.concatenate(
            [
                _BROAD + v1 * inner + v2 * inner**2 + v3 * value,
                (v1 + 2 * v2 * inner[:, at]) * along - 2 * v3 * first[:, at] * away,
            ],
            axis=1,
        )
        norm = (rows**2).mean(axis=1)
        prior = _BROAD + v1 * norm + v2 * norm**2 + v3
        return self.centre + cross @ self._weights, np.maximum(prior - ((cross @ self._inverse) * cross).sum(axis=1), 0)

    def left_out(self) -> tuple[Values, Values]:
        """Return mean and variance, noise included, at each point, from all observations but those at this point."""
        count = len(self._points)
        means, variances = np.empty(count), np.empty(count)
        for i in range(count):
            block = np.append(i, count + np.flatnonzero(self._rows == i))
            covariance = np.linalg.inv(self._inverse[np.ix_(block, block)])
            means[i] = self.centre + self.scale * self._outputs[i] - covariance[0] @ self._weights[block]
            variances[i] = covariance[0, 0]
        return means, variances

    @property
    def noise(self) -> float:
        """Factor of the values' noise variances."""
        return float(np.exp(self.kernel[4]))


def _invert(covariance: Points) -> tuple[Points, Points]:
    """Return the lower Cholesky factor and the inverse of a covariance."""
    factor = cholesky(covariance, lower=True)
    inverse, _ = dpotri(factor, lower=1)
    return factor, inverse + np.tril(inverse, -1).T


def _noise(kernel: Values, noise: Values, count: int) -> Values:
    return np.append(np.exp(kernel[4]) * noise[:count], np.exp(kernel[5]) * noise[count:])


def _parts(pairs: _Pairs, kernel: Values) -> tuple[list[Points], Points]:
    """Return the three parts of the covariance without its constant, and the derivative of the last by its length."""
    v1, v2, v3, length = np.exp(kernel[:4])
    apart = pairs.apart
    value, first, second, third = _matern(apart, length)
    parts = [v1 * pairs.linear, v2 * pairs.quadratic, v3 * pairs.of_apart(value, first, second)]
    return parts, v3 * pairs.of_apart(-2 * apart * first, -2 * first - 2 * apart * second, -4 * second - 2 * third)


def _choose(pairs: _Pairs, outputs: Values, noise: Values, count: int) -> Values:
    """Return the kernel with the largest posterior of `outputs`, of which the first `count` are values."""

    def loss(kernel: Values) -> tuple[float, Values]:
        """Return minus the log posterior (Rasmussen & Williams 2006, eq. 5.8), and its gradient (eq. 5.9)."""
        parts, by_length = _parts(pairs, kernel)
        noisy = _noise(kernel, noise, count)
        covariance = sum(parts) + np.diag(noisy)
        covariance[:count, :count] += _BROAD
        factor, inverse = _invert(covariance)
        explained = inverse @ outputs
        away = (kernel - _CENTRE) / _SPREAD
        value = np.log(np.diag(factor)).sum() + 0.5 * outputs @ explained + 0.5 * away @ away
        rest = inverse - np.outer(explained, explained)
        chance = np.diag(rest) * noisy
        slope = [*((rest * part).sum() for part in [*parts, by_length]), chance[:count].sum(), chance[count:].sum()]
        return float(value), 0.5 * np.array(slope) + away / _SPREAD

    options = {"maxiter": 40}
    return np.asarray(minimize(loss, _START, jac=True, method="L-BFGS-B", bounds=_BOUNDS, options=options).x)


class SlopedTrend:
    """A process of the warped mean score and its slopes: a quadratic, and a Matérn residual for the rest.

    Of several warps, the one with the smallest left-out error.
    """

    name = "quadratic + Matérn with slopes"

    def __init__(self, points: Points, values: Values, warps: Sequence[Warp], slopes: Slopes) -> None:
        """Fit the mean scores `values`, `(points,)`, and their `slopes`."""
        fits: list[tuple[float, Warp, SlopedProcess, float, Prediction]] = []
        for warp in warps:
            target = warp.warp(values)
            warped = replace(slopes, values=slopes.values * warp.slope(values)[slopes.rows])
            process = SlopedProcess(points, target, warp.noise(target), warped)
            unit = process.scale**2 * student_factor(len(points) + len(slopes.rows) - len(process.kernel))
            mean, variance = process.left_out()
            left_out = unwarp_normal(warp, mean, unit * variance)
            fits.append((float(np.mean((left_out[0] - values) ** 2)), warp, process, unit, left_out))
        _, self._warp, self._process, self._unit, self.left_out = min(fits, key=lambda entry: entry[0])

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`."""
        mean, variance = self._process.predict(points)
        return unwarp_normal(self._warp, mean, self._unit * (variance + self._process.noise * self._warp.noise(mean)))
