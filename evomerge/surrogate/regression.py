"""The two regressions that the rungs use: a Gaussian process and weighted least squares.

Each predicts new points (`predict`) and every fitted point from all the others (`left_out`). Leaving out is in closed
form, with the kernel, ridge and normalisation held fixed: for a Gaussian process y_i - [K⁻¹y]_i / [K⁻¹]_ii, variance
1 / [K⁻¹]_ii (Rasmussen & Williams 2006, eq. 5.12), for least squares y_i - r_i / (1 - h_i).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from scipy.special import ndtri, stdtrit

from evomerge.surrogate.design import Points, quadratic_terms
from evomerge.surrogate.warps import Values


class Process:
    """A Gaussian process with a quadratic trend, for one or many outputs that share one kernel and one Cholesky factor.

    The kernel of d genes z, from 0 to 2 and each multiplied by its relevance, is broad constant + v₁ zᵀz/d + v₂ (zᵀz/d)²
    (a quadratic about the box's lower corner, in most spaces the base, with a normal prior on its coefficients) +
    v₃ Matérn 5/2 of one length scale. The noise variance is known up to a factor. Outputs are scaled to mean 0 and variance 1. The
    hyperparameters (v₁, v₂, v₃, length, noise, and the relevances, which are fixed at 1 for a single output) maximise the mean log
    marginal likelihood of the outputs times a broad log-normal prior, without which those of one output diverge, by
    L-BFGS-B from fixed starts.
    """

    _BROAD = 100.0  # variance of the constant, in units of the outputs' variance
    _STARTS = np.log([[1.0, 0.3, 0.1, 1.0, 1e-3], [0.1, 0.1, 1.0, 0.5, 1e-2]])  # v₁, v₂, v₃, length / √d, noise
    _BOUNDS = np.log([[1e-4, 1e2], [1e-4, 1e2], [1e-5, 1e2], [0.1, 10.0], [1e-6, 1.0]])
    _CENTRE = np.log([1.0, 0.3, 0.1, 1.0, 1e-2])
    _SPREAD = np.array([2.0, 2.0, 2.0, 1.0, 3.0])
    # Bounds of a gene's relevance. Its start and the prior's centre are 1, the prior's spread is 1.
    _RELEVANCE = np.log([0.1, 10.0])
    _of: tuple[bytes, Points, Points, Points, Points] | None
    """Relevances, and what `_covariance` has of them."""

    def __init__(self, points: Points, targets: Points, noise: Values, few: int | None = None) -> None:
        """Fit `targets`, `(points, outputs)`, whose noise variances are proportional to `noise`, `(points,)`.

        The hyperparameters are chosen from `few` of the points, evenly over their order, or from all.
        """
        self.centre = targets.mean(axis=0)
        spread = targets.std(axis=0)
        varies = spread > 1e-9 * max(float(spread.max()), 1e-300)
        self.scale = np.where(varies, spread, 0.0)
        outputs = (targets - self.centre) / np.where(varies, spread, 1.0)
        count = len(points)
        rows = slice(None) if few is None or few >= count else np.linspace(0, count - 1, few).astype(int)
        self._use(points[rows], noise[rows])
        self.kernel = self._choose(outputs[rows][:, varies])
        """Logarithms of the hyperparameters, `(5 + genes,)`."""
        self._use(points, noise)
        covariance = self._covariance(self.kernel)[0] + np.diag(np.exp(self.kernel[4]) * noise)
        self._inverse = cho_solve(cho_factor(covariance, lower=True), np.eye(len(points)))
        self._weights = self._inverse @ outputs * self.scale
        self._of = None

    def _use(self, points: Points, noise: Values) -> None:
        """Take these points as the fitted ones."""
        self._points, self._noise = 2 * points, noise
        self._of = None

    def predict(
        self, points: Points, noise: Callable[[Values], Values] | None = None, out: Points | None = None
    ) -> tuple[Points, Values]:
        """Return means, `(points, outputs)`, and one variance for all outputs in units of `scale` squared, `(points,)`.

        The means are written to `out`, if given. The variance is that of a measured score: it includes the noise, `noise` of the first output's mean, or 1.
        """
        cross = self._kernel(2 * points, self._points)
        mean = np.matmul(cross, self._weights, out=out)
        mean += self.centre
        norm = ((2 * points * np.exp(self.kernel[5:])) ** 2).mean(axis=1)
        v1, v2, v3 = np.exp(self.kernel[:3])
        prior = self._BROAD + v1 * norm + v2 * norm**2 + v3
        variance = np.maximum(prior - ((cross @ self._inverse) * cross).sum(axis=1), 0)
        return mean, variance + np.exp(self.kernel[4]) * (1.0 if noise is None else noise(mean[:, 0]))

    def left_out(self, targets: Points) -> tuple[Points, Values]:
        """Return what `predict` would return at each fitted point, without that point; `targets` are those fitted."""
        variance = 1 / np.diag(self._inverse)
        return targets - self._weights * variance[:, None], variance

    def _kernel(self, rows: Points, columns: Points) -> Points:
        v1, v2, v3, length = np.exp(self.kernel[:4])
        rows, columns = rows * np.exp(self.kernel[5:]), columns * np.exp(self.kernel[5:])
        inner = rows @ columns.T / rows.shape[1]
        scaled = math.sqrt(5) / (length * math.sqrt(rows.shape[1])) * cdist(rows, columns)
        matern = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
        return np.asarray(self._BROAD + v1 * inner + v2 * inner**2 + v3 * matern)

    def _covariance(self, kernel: Values) -> tuple[Points, Callable[[Points], Values]]:
        """Return the noiseless covariance of the fitted points, and a function from a derivative by it to that by `kernel`.

        The function takes a symmetric `(points, points)` and returns all derivatives but that by the noise, `(4 + genes,)`.
        """
        v1, v2, v3, length = np.exp(kernel[:4])
        relevance = kernel[5:].tobytes()
        if self._of is None or self._of[0] != relevance:  # else as before: of a single output they are fixed
            points = self._points * np.exp(kernel[5:])
            inner = points @ points.T / points.shape[1]
            self._of = relevance, points, inner, inner**2, cdist(points, points)
        _, points, inner, square, away = self._of
        genes = points.shape[1]
        scaled = math.sqrt(5) / (length * math.sqrt(genes)) * away
        decay = v3 * np.exp(-scaled)
        parts = [v1 * inner, v2 * square, (1 + scaled + scaled**2 / 3) * decay]

        def slopes(rest: Points) -> Values:
            by_inner = rest * (v1 + 2 * v2 * inner)
            by_square = rest * decay * (1 + scaled)
            across = (points * (by_square @ points)).sum(axis=0)
            apart = 2 * (by_square.sum(axis=0) @ points**2 - across)  # Σ of squared distances in each gene
            relevance = (2 * (points * (by_inner @ points)).sum(axis=0) - 5 / (3 * length**2) * apart) / genes
            of_length = scaled**2 / 3 * (1 + scaled) * decay
            return np.array([*((rest * part).sum() for part in [*parts, of_length]), *relevance])

        return self._BROAD + sum(parts), slopes

    def _choose(self, outputs: Points) -> Values:
        gram = outputs @ outputs.T / outputs.shape[1]
        noise = np.diag(self._noise)
        genes = self._points.shape[1]
        middle = np.append(self._CENTRE, np.zeros(genes))
        spread = np.append(self._SPREAD, np.ones(genes))
        relevance = self._RELEVANCE * (outputs.shape[1] > 1)
        bounds = np.concatenate([self._BOUNDS, np.tile(relevance, (genes, 1))])

        def loss(kernel: Values) -> tuple[float, Values]:
            """Return minus the log posterior (Rasmussen & Williams 2006, eq. 5.8), and its gradient (eq. 5.9)."""
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

        results = [
            minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
            for start in np.pad(self._STARTS, ((0, 0), (0, genes)))
        ]
        return np.asarray(min(results, key=lambda result: float(result.fun)).x)


class LeastSquares:
    """A quadratic by weighted least squares, all coefficients except the constant shrunk by `ridge`.

    `left_out` holds mean and variance at each point, predicted from the others. Ridge 0 needs a design of full rank.
    """

    def __init__(self, points: Points, target: Values, weights: Values, ridge: float = 0.0) -> None:
        """Fit `target`, `(points,)`, whose noise variances are proportional to 1 / `weights`, `(points,)`."""
        terms, self._total, self._middle, left, singular, self._axes = _decomposed(
            points.tobytes(), points.shape[1], weights.tobytes()
        )
        self._level = weights @ target / self._total
        root = np.sqrt(weights)[:, None]
        self._ridge = ridge
        self._shrunk = singular**2 + ridge
        self._along = singular / self._shrunk * (left.T @ (root[:, 0] * (target - self._level)))
        leverage = weights / self._total + (left**2) @ (singular**2 / self._shrunk)
        fitted = self._level + (terms - self._middle) @ self._axes.T @ self._along
        free = np.maximum(1 - leverage, 1e-10)
        without = target - (target - fitted) / free
        noise = float(np.mean(weights * (target - fitted) ** 2 / free))
        self._noise = student_factor(len(target) - float(leverage.sum())) * noise
        self.left_out = without, self._noise / (weights * free)

    def predict(self, points: Points, noise: Callable[[Values], Values]) -> tuple[Values, Values]:
        """Return mean and variance at `points`, both `(points,)`, the variance including the `noise` of the mean."""
        terms = quadratic_terms(points)[:, 1:] - self._middle
        along = terms @ self._axes.T
        mean = self._level + along @ self._along
        spread = 1 / self._total + (along**2) @ (1 / self._shrunk)
        if self._ridge:  # the prior variance of directions that the fitted points do not span
            spread = spread + np.maximum((terms**2).sum(axis=1) - (along**2).sum(axis=1), 0) / self._ridge
        return mean, self._noise * (spread + noise(mean))


@lru_cache(maxsize=1)  # for all ridges, and for all targets with the same weights
def _decomposed(points: bytes, genes: int, weights: bytes) -> tuple[Points, float, Values, Points, Values, Points]:
    """Return the terms, the total weight, the weighted mean of the terms, and the decomposition of their weighted differences to it."""
    weighted = np.frombuffer(weights)
    terms = quadratic_terms(np.frombuffer(points).reshape(-1, genes))[:, 1:]
    total = weighted.sum()
    middle = weighted @ terms / total
    left, singular, axes = np.linalg.svd(np.sqrt(weighted)[:, None] * (terms - middle), full_matrices=False)
    return terms, total, middle, left, singular, axes


def student_factor(freedom: float) -> float:
    """Return the factor of a variance of `freedom` degrees that gives a normal the 90% interval of Student's t."""
    return float(stdtrit(max(freedom, 1.0), 0.95) / ndtri(0.95)) ** 2
