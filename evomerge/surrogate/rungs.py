"""The rungs of the ladder: four models of a task's mean score, and the two regressions that they are made of.

Every rung predicts the metric's mean over the task's examples with a standard deviation, at new points (`predict`)
and at each evaluated point from all the others (`left_out`). Leaving out is in closed form, with what was chosen
before (kernel, ridge, normalisation) held: for a Gaussian process y_i - [K⁻¹y]_i / [K⁻¹]_ii, variance 1 / [K⁻¹]_ii
(Rasmussen & Williams 2006, eq. 5.12), for least squares y_i - r_i / (1 - h_i).
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import expit, ndtr, ndtri, stdtrit

from evomerge.surrogate.design import Points, quadratic_terms

Values = NDArray[np.float64]
Prediction = tuple[Values, Values]
"""Mean and standard deviation, both `(points,)`."""

_FAR = 60.0
"""Warped values beyond are as good as infinite."""
_AT_ONCE = 1 << 18
"""Margins that are predicted together: 2 MiB, which a cache holds."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class Rung(Protocol):
    """A fitted model of one objective."""

    @property
    def name(self) -> str:
        """What it is called in a report."""

    @property
    def left_out(self) -> Prediction:
        """Each evaluated candidate's mean score, predicted from all the others."""

    def predict(self, points: Points) -> Prediction:
        """Return the mean score at `points`, `(points, genes)`."""
        ...


# -- warps: from a mean score to a number without bounds --


class Warp(Protocol):
    """A monotonic function of a mean score, in which a task is nearer to a quadratic and its noise to normal."""

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        ...

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores; the inverse of `warp`."""
        ...

    def noise(self, warped: Values) -> Values:
        """Return to what the variance of the noise is in proportion at these warped mean scores."""
        ...


class Identity:
    """No warp: the mean score as it is, with the same noise everywhere."""

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        return values

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores."""
        return warped

    def noise(self, warped: Values) -> Values:
        """Return 1 everywhere."""
        return np.ones_like(warped)


class Log:
    """The logarithm of the distance to the one `bound`: scores below an upper one (`side` -1) or above a lower one (1)."""

    def __init__(self, bound: float, side: int) -> None:
        self._bound, self._side = bound, side

    def warp(self, values: Values) -> Values:
        """Return the warped mean scores."""
        return np.asarray(np.log(self._side * (values - self._bound)))

    def unwarp(self, warped: Values) -> Values:
        """Return the mean scores."""
        return np.asarray(self._bound + self._side * np.exp(np.clip(warped, -_FAR, _FAR)))

    def noise(self, warped: Values) -> Values:
        """Return 1 everywhere."""
        return np.ones_like(warped)


class Logit:
    """The logit of a mean score in [low, high] over so many `examples`, half an example away from the bounds."""

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
        """Return 1 / (4 p (1 - p)): the variance of a binomial share's logit (delta method), in units of that at p = 1/2."""
        least = 0.5 / (self._examples + 1)
        share = np.clip(expit(warped), least, 1 - least)
        return np.asarray(0.25 / (share * (1 - share)))


def back(warp: Warp, mean: Values, variance: Values) -> Prediction:
    """Return mean and standard deviation of a mean score whose warped value is normal, by Gauss-Hermite quadrature."""
    nodes = warp.unwarp(mean[:, None] + np.sqrt(variance)[:, None] * _NODES)
    centre = nodes @ _WEIGHTS
    return centre, np.sqrt(((nodes - centre[:, None]) ** 2) @ _WEIGHTS)


# -- regressions --


class Process:
    """A Gaussian process with a quadratic trend, for one or many outputs that share one kernel and one Cholesky.

    On d genes z, from 0 to 2 times how much each matters: broad constant + v₁ zᵀz/d + v₂ (zᵀz/d)² (a quadratic about the
    box's lower corner, in most spaces the base, with a normal prior on its coefficients) + v₃ Matérn 5/2 of one length
    scale + noise, known up to a factor. Outputs are scaled to mean 0 and variance 1. The hyperparameters, five and what each
    gene matters (1 for a single output, which cannot tell), maximise the mean log marginal likelihood of the outputs, times
    a broad log-normal prior (of one output they would run away), by L-BFGS-B from fixed starts.
    """

    _BROAD = 100.0  # variance of the constant, in units of the outputs' own
    _STARTS = np.log([[1.0, 0.3, 0.1, 1.0, 1e-3], [0.1, 0.1, 1.0, 0.5, 1e-2]])  # v₁, v₂, v₃, length / √d, noise
    _BOUNDS = np.log([[1e-4, 1e2], [1e-4, 1e2], [1e-5, 1e2], [0.1, 10.0], [1e-6, 1.0]])
    _CENTRE = np.log([1.0, 0.3, 0.1, 1.0, 1e-2])
    _SPREAD = np.array([2.0, 2.0, 2.0, 1.0, 3.0])
    # Bounds of what a gene matters. The start and the prior's centre are 1, its spread is 1.
    _MATTERS = np.log([0.1, 10.0])

    def __init__(self, points: Points, targets: Points, noise: Values, kernel: Values | None = None) -> None:
        """Fit `targets`, `(points, outputs)`, whose noise has variances in proportion to `noise`, `(points,)`.

        `kernel` are the logarithms of the hyperparameters, `(5 + genes,)`; None chooses them.
        """
        self._points = 2 * points
        self._noise = noise
        self.centre = targets.mean(axis=0)
        spread = targets.std(axis=0)
        self.varies = spread > 1e-9 * max(float(spread.max()), 1e-300)
        self.scale = np.where(self.varies, spread, 0.0)
        outputs = (targets - self.centre) / np.where(self.varies, spread, 1.0)
        self.kernel = self._choose(outputs[:, self.varies]) if kernel is None else kernel
        covariance = self._covariance(self.kernel)[0] + np.diag(np.exp(self.kernel[4]) * noise)
        self._inverse = cho_solve(cho_factor(covariance, lower=True), np.eye(len(points)))
        self._weights = self._inverse @ outputs * self.scale

    def predict(self, points: Points, noise: Callable[[Values], Values] | None = None) -> tuple[Points, Values]:
        """Return means, `(points, outputs)`, and one variance for all in units of `scale` squared, `(points,)`.

        The variance is that of a score, noise included: `noise` of the first output's mean, or 1.
        """
        cross = self._kernel(2 * points, self._points)
        mean = cross @ self._weights
        mean += self.centre
        norm = ((2 * points * np.exp(self.kernel[5:])) ** 2).mean(axis=1)
        v1, v2, v3 = np.exp(self.kernel[:3])
        prior = self._BROAD + v1 * norm + v2 * norm**2 + v3
        variance = np.maximum(prior - ((cross @ self._inverse) * cross).sum(axis=1), 0)
        return mean, variance + np.exp(self.kernel[4]) * (1.0 if noise is None else noise(mean[:, 0]))

    def left_out(self, targets: Points) -> tuple[Points, Values]:
        """Return what `predict` would at each point of the `targets` that were fitted, without that point."""
        variance = 1 / np.diag(self._inverse)
        return targets - self._weights * variance[:, None], variance

    def _kernel(self, one: Points, other: Points) -> Points:
        v1, v2, v3, length = np.exp(self.kernel[:4])
        one, other = one * np.exp(self.kernel[5:]), other * np.exp(self.kernel[5:])
        inner = one @ other.T / one.shape[1]
        scaled = math.sqrt(5) / (length * math.sqrt(one.shape[1])) * cdist(one, other)
        matern = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
        return np.asarray(self._BROAD + v1 * inner + v2 * inner**2 + v3 * matern)

    def _covariance(self, kernel: Values) -> tuple[Points, Callable[[Points], Values]]:
        """Return the covariance of the fitted points without noise, and what turns a slope by it into one by `kernel`.

        That takes a symmetric `(points, points)` and returns all slopes but that by the noise, `(4 + genes,)`.
        """
        v1, v2, v3, length = np.exp(kernel[:4])
        points = self._points * np.exp(kernel[5:])
        genes = points.shape[1]
        inner = points @ points.T / genes
        scaled = math.sqrt(5) / (length * math.sqrt(genes)) * cdist(points, points)
        decay = v3 * np.exp(-scaled)
        parts = [v1 * inner, v2 * inner**2, (1 + scaled + scaled**2 / 3) * decay]

        def slopes(rest: Points) -> Values:
            by_inner = rest * (v1 + 2 * v2 * inner)
            by_square = rest * decay * (1 + scaled)
            across = (points * (by_square @ points)).sum(axis=0)
            apart = 2 * (by_square.sum(axis=0) @ points**2 - across)  # Σ of squared distances in each gene
            matters = (2 * (points * (by_inner @ points)).sum(axis=0) - 5 / (3 * length**2) * apart) / genes
            of_length = scaled**2 / 3 * (1 + scaled) * decay
            return np.array([*((rest * part).sum() for part in [*parts, of_length]), *matters])

        return self._BROAD + sum(parts), slopes

    def _choose(self, outputs: Points) -> Values:
        gram = outputs @ outputs.T / outputs.shape[1]
        noise = np.diag(self._noise)
        genes = self._points.shape[1]
        middle = np.append(self._CENTRE, np.zeros(genes))
        spread = np.append(self._SPREAD, np.ones(genes))
        matters = self._MATTERS * (outputs.shape[1] > 1)
        bounds = np.concatenate([self._BOUNDS, np.tile(matters, (genes, 1))])

        def loss(kernel: Values) -> tuple[float, Values]:
            """Return minus the logarithm of likelihood and prior (ibid., eq. 5.8), and its gradient (eq. 5.9)."""
            covariance, slopes = self._covariance(kernel)
            noisy = np.exp(kernel[4]) * noise
            factor = cho_factor(covariance + noisy, lower=True)
            inverse = cho_solve(factor, np.eye(len(gram)))
            explained = inverse @ gram
            away = (kernel - middle) / spread
            value = np.log(np.diag(factor[0])).sum() + 0.5 * np.trace(explained) + 0.5 * away @ away
            rest = inverse - explained @ inverse
            slope = 0.5 * np.insert(slopes(rest), 4, (rest * noisy).sum())
            return float(value), slope + away / spread

        found = [
            minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
            for start in np.pad(self._STARTS, ((0, 0), (0, genes)))
        ]
        return np.asarray(min(found, key=lambda result: float(result.fun)).x)


class LeastSquares:
    """A quadratic by weighted least squares, its coefficients but for the constant shrunk by `ridge`.

    `left_out` are mean and variance at each point, predicted from the others. Ridge 0 needs a design of full rank.
    """

    def __init__(self, points: Points, target: Values, weights: Values, ridge: float = 0.0) -> None:
        """Fit `target`, `(points,)`; the variance of its noise is in proportion to 1 / `weights`, `(points,)`."""
        terms = quadratic_terms(points)[:, 1:]
        self._total = weights.sum()
        self._middle = weights @ terms / self._total
        self._level = weights @ target / self._total
        root = np.sqrt(weights)[:, None]
        left, singular, self._axes = np.linalg.svd(root * (terms - self._middle), full_matrices=False)
        self._ridge = ridge
        self._shrunk = singular**2 + ridge
        self._along = singular / self._shrunk * (left.T @ (root[:, 0] * (target - self._level)))
        leverage = weights / self._total + (left**2) @ (singular**2 / self._shrunk)
        fitted = self._level + (terms - self._middle) @ self._axes.T @ self._along
        free = np.maximum(1 - leverage, 1e-10)
        without = target - (target - fitted) / free
        noise = float(np.mean(weights * (target - fitted) ** 2 / free))
        self._noise = widened(len(target) - float(leverage.sum())) * noise
        self.left_out = without, self._noise / (weights * free)

    def predict(self, points: Points, noise: Callable[[Values], Values]) -> tuple[Values, Values]:
        """Return mean and variance at `points`, both `(points,)`, the variance with the `noise` of the mean."""
        terms = quadratic_terms(points)[:, 1:] - self._middle
        along = terms @ self._axes.T
        mean = self._level + along @ self._along
        spread = 1 / self._total + (along**2) @ (1 / self._shrunk)
        if self._ridge:  # what the points say nothing about
            spread = spread + np.maximum((terms**2).sum(axis=1) - (along**2).sum(axis=1), 0) / self._ridge
        return mean, self._noise * (spread + noise(mean))


def widened(freedom: float) -> float:
    """Return the factor of a variance that so many degrees of freedom tell, 1 at least.

    A normal distribution of that variance has the 90% interval of Student's t.
    """
    return float(stdtrit(max(freedom, 1.0), 0.95) / ndtri(0.95)) ** 2


# -- rungs --


class Margins:
    """One process for every example's margin above each other class. Accuracy is the share of examples with all above 0.

    The margins are smooth in the genes; the least of an example's is not where another class becomes the nearest. An
    example counts as right with probability Φ(mean / deviation) of the margin where that is least, its own deviation, or
    wholly as the means' signs say: whichever predicts better. The variance of the share is that of independent examples, and
    that of rounding to a whole number of them; what is left over is for the calibration.
    """

    name = "margins"

    def __init__(self, points: Points, values: Values, margins: NDArray[np.float64]) -> None:
        """Fit `margins`, `(points, examples, other classes)`, to predict the mean scores `values`, `(points,)`."""
        self._examples = margins.shape[1]
        targets = margins.transpose(0, 2, 1).reshape(len(points), -1)
        self._process = Process(points, targets, np.ones(len(points)))
        mean, variance = self._process.left_out(targets)
        scale = self._process.scale
        surprise = ((targets - mean) / np.where(scale > 0, scale, 1)) ** 2 / variance[:, None]
        self._deviation = np.maximum(scale * np.sqrt(surprise.mean(axis=0)), 1e-300)
        ways = {hard: self._shares(mean, variance, hard=hard) for hard in (False, True)}
        self._hard = min(ways, key=lambda hard: float(np.mean((ways[hard][0] - values) ** 2)))
        self.left_out = ways[self._hard]

    def predict(self, points: Points) -> Prediction:
        """Return the mean score at `points`, `(points, genes)`."""
        size = max(1, _AT_ONCE // len(self._deviation))
        parts = [points[i : i + size] for i in range(0, len(points), size)]
        found = [self._shares(*self._process.predict(part), hard=self._hard) for part in parts]
        return np.concatenate([mean for mean, _ in found]), np.concatenate([deviation for _, deviation in found])

    def _shares(self, mean: Points, variance: Values, *, hard: bool) -> Prediction:
        away = (mean / self._deviation).reshape(len(mean), -1, self._examples).min(axis=1)
        right = ndtr(away / np.sqrt(variance)[:, None])
        spread = (right * (1 - right)).sum(axis=1) / self._examples**2 + 1 / (12 * self._examples**2)
        return (away > 0 if hard else right).mean(axis=1), np.sqrt(spread)


class Trend:
    """A process of the warped mean score: a quadratic, and a Matérn residual for what is not quadratic."""

    name = "quadratic + Matérn"

    def __init__(self, points: Points, values: Values, warp: Warp) -> None:
        self._warp = warp
        targets = warp.warp(values)[:, None]
        self._process = Process(points, targets, warp.noise(targets[:, 0]))
        # One output told all the hyperparameters.
        self._unit = float(self._process.scale[0]) ** 2 * widened(len(points) - len(self._process.kernel))
        mean, variance = self._process.left_out(targets)
        self.left_out = back(warp, mean[:, 0], self._unit * variance)

    def predict(self, points: Points) -> Prediction:
        """Return the mean score at `points`, `(points, genes)`."""
        mean, variance = self._process.predict(points, self._warp.noise)
        return back(self._warp, mean[:, 0], self._unit * variance)


class Quadratic:
    """A quadratic of the warped mean score by least squares, weighted by 1 / noise. Of several warps and ridges, the best.

    Ridge 0 is among them where the points identify a quadratic and leave one over.
    """

    def __init__(self, name: str, points: Points, values: Values, warps: Sequence[Warp]) -> None:
        self.name = name
        terms = quadratic_terms(points)
        largest = float(np.linalg.norm(terms[:, 1:], 2)) ** 2
        plain = len(points) > terms.shape[1] == np.linalg.matrix_rank(terms)
        ridges = ([0.0] if plain else []) + [largest * 10.0**power for power in range(-9, 0)]
        fits: list[tuple[float, Warp, LeastSquares, Prediction]] = []
        for warp in warps:
            target = warp.warp(values)
            for ridge in ridges:
                fit = LeastSquares(points, target, 1 / warp.noise(target), ridge)
                left_out = back(warp, *fit.left_out)
                fits.append((float(np.mean((left_out[0] - values) ** 2)), warp, fit, left_out))
        _, self._warp, self._fit, self.left_out = min(fits, key=lambda found: found[0])

    def predict(self, points: Points) -> Prediction:
        """Return the mean score at `points`, `(points, genes)`."""
        return back(self._warp, *self._fit.predict(points, self._warp.noise))
