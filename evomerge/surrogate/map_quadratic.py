"""MAP's model of one objective (Li et al., ICLR 2025, arXiv 2406.07529): a quadratic, squashed into the metric's bounds.

Not to be confused with `rungs.Quadratic`, which is fitted to warped scores with weights and ridges.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit, logit

from evomerge.surrogate.design import Points, quadratic_terms
from evomerge.surrogate.regression import student_factor
from evomerge.surrogate.warps import Prediction, Values

Bounds = tuple[float, float]
"""Lowest and highest mean score, infinite where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class SquashedQuadratic:
    """A quadratic of the genes, mapped into the bounds of an objective's mean score. Higher is better.

    With x the quadratic's value, the score is (u - l) / (1 + e⁻ˣ) + l in [l, u], l + log(1 + eˣ) above l, u - log(1 + eˣ) below u,
    and x without bounds: the paper's three cases.
    """

    coefficients: Values
    """Of `quadratic_terms`, `(unknowns,)`."""
    bounds: Bounds

    def predict(self, points: Points) -> Values:
        """Return the mean scores at `points`, `(points, genes)` in unit coordinates: `(points,)`."""
        return self.at(quadratic_terms(points))

    def at(self, terms: Points) -> Values:
        """Return the mean scores where `quadratic_terms` are `terms`, `(points, unknowns)`: `(points,)`."""
        return _squash(terms @ self.coefficients, self.bounds)[0]


def fit_map_quadratic(points: Points, means: Values, bounds: Bounds) -> SquashedQuadratic:
    """Return the least-squares fit to `means`, `(points,)`, at `points`, `(points, genes)` in unit coordinates.

    In closed form without bounds, else by Levenberg-Marquardt from the linear fit of the unsquashed means. The points must
    identify a quadratic.
    """
    terms = quadratic_terms(points)
    start = np.asarray(np.linalg.lstsq(terms, _unsquash(means, bounds))[0], dtype=np.float64)
    if not np.isfinite(bounds).any():
        return SquashedQuadratic(start, bounds)
    result = least_squares(
        lambda c: _squash(terms @ c, bounds)[0] - means,
        start,
        jac=lambda c: _squash(terms @ c, bounds)[1][:, None] * terms,
        method="lm",
    )
    return SquashedQuadratic(result.x, bounds)


class MapQuadratic:
    """A `Rung`: MAP's quadratic of one objective, with standard deviations.

    Deviations and left-out predictions are of first order in the scores' errors, so exact without bounds. With J the
    derivatives of the scores by the coefficients at the n points, h_i = j_iᵀ(JᵀJ)⁻¹j_i and e_i the errors: without point i the
    coefficients change by -(JᵀJ)⁻¹j_i e_i / (1 - h_i) (Cook & Weisberg 1982, section 2.2), and a score measured at a
    point with derivatives j has the variance σ²(1 + jᵀ(JᵀJ)⁻¹j), σ² = mean of e_i² / (1 - h_i). There must be more points than
    unknowns.
    """

    name = "MAP's quadratic"

    def __init__(self, points: Points, means: Values, bounds: Bounds) -> None:
        self.fit = fit_map_quadratic(points, means, bounds)
        terms = quadratic_terms(points)
        values = terms @ self.fit.coefficients
        scores, slopes = _squash(values, bounds)
        left, singular, axes = np.linalg.svd(slopes[:, None] * terms, full_matrices=False)
        full = singular > 1e-10 * singular[0]
        self._along = axes[full].T / singular[full]  # (unknowns, rank): its product with its transpose is (JᵀJ)⁻¹
        free = np.maximum(1 - (left[:, full] ** 2).sum(axis=1), 1e-10)
        errors = means - scores
        freedom = len(means) - int(full.sum())
        self._noise = student_factor(freedom) * max(float(np.mean(errors**2 / free)), 1e-18)
        without = values - ((terms @ self._along) * left[:, full]).sum(axis=1) * errors / free
        self.left_out: Prediction = _squash(without, bounds)[0], np.sqrt(self._noise / free)

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`: both `(points,)`."""
        scores, slopes = self._slopes(points)
        return scores, np.sqrt(self._noise * (1 + ((slopes @ self._along) ** 2).sum(axis=1)))

    def change_variance(self, points: Points, others: Points) -> Values:
        """Return the variance of the prediction at `points` minus that at `others`, row by row: `(points,)`."""
        change = self._slopes(points)[1] - self._slopes(others)[1]
        return np.asarray(self._noise * ((change @ self._along) ** 2).sum(axis=1))

    def _slopes(self, points: Points) -> tuple[Values, Points]:
        """Return scores, `(points,)`, and their derivatives by the coefficients, `(points, unknowns)`."""
        terms = quadratic_terms(points)
        scores, slopes = _squash(terms @ self.fit.coefficients, self.fit.bounds)
        return scores, slopes[:, None] * terms


def _squash(values: Values, bounds: Bounds) -> tuple[Values, Values]:
    """Return the scores of a quadratic's `values`, and the derivatives."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high):
        share = expit(values)
        return low + (high - low) * share, (high - low) * share * (1 - share)
    if np.isfinite(low):
        return low + np.logaddexp(0, values), expit(values)
    if np.isfinite(high):
        return high - np.logaddexp(0, values), -expit(values)
    return values, np.ones_like(values)


def _unsquash(means: Values, bounds: Bounds) -> NDArray[np.float64]:
    """Return values that `_squash` maps to `means`; means at a bound are first moved a hundredth of a range inside."""
    low, high = bounds
    if np.isfinite(bounds).all():
        return np.asarray(logit(np.clip((means - low) / (high - low), 0.01, 0.99)))
    if not np.isfinite(bounds).any():
        return means
    away = means - low if np.isfinite(low) else high - means
    away = np.maximum(away, max(0.01 * float(np.ptp(means)), 1e-12))
    return np.asarray(away + np.log(-np.expm1(-away)))
