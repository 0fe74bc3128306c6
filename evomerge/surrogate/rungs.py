"""The rungs of the ladder: models of a task's mean score.

Every rung predicts the mean over the task's examples, with a standard deviation, at new points (`predict`) and at each
evaluated point from all the others (`left_out`). MAP's own fit is in `map_quadratic`.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from evomerge.surrogate.design import Points, quadratic_terms
from evomerge.surrogate.regression import LeastSquares, Process, student_factor
from evomerge.surrogate.warps import Prediction, Values, Warp, unwarp_normal

_MARGINS_AT_ONCE = 1 << 18
"""Margins predicted together: 2 MiB, which fits in a CPU's cache."""


class Rung(Protocol):
    """A fitted model of one objective."""

    @property
    def name(self) -> str:
        """The rung's name in reports."""

    @property
    def left_out(self) -> Prediction:
        """Each evaluated candidate's mean score, predicted from all the others."""

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`."""
        ...


class Margins:
    """One process for every example's margin above each other class. Accuracy is the share of examples with all margins above 0.

    Margins are smooth in the genes, while the smallest margin of an example has a kink where another class becomes the
    nearest. An example counts as right with probability Φ(mean / deviation) of its smallest margin, or as 0 or 1 by the
    sign of the mean, whichever predicts better. The variance is that of the share of independent examples, plus that of rounding to
    a multiple of 1 / examples; the calibration factor covers the rest.
    """

    name = "margins"

    def __init__(self, points: Points, values: Values, margins: NDArray[np.float64], few: int | None = None) -> None:
        """Fit `margins`, `(points, examples, other classes)`, to predict the mean scores `values`, `(points,)`; `few` as in `Process`."""
        self._examples = margins.shape[1]
        targets = margins.transpose(0, 2, 1).reshape(len(points), -1)
        self._process = Process(points, targets, np.ones(len(points)), few)
        mean, variance = self._process.left_out(targets)
        scale = self._process.scale
        surprise = ((targets - mean) / np.where(scale > 0, scale, 1)) ** 2 / variance[:, None]
        self._deviation = np.maximum(scale * np.sqrt(surprise.mean(axis=0)), 1e-300)
        smallest = self._smallest(mean)
        ways = {hard: self._shares(smallest, variance, hard=hard) for hard in (False, True)}
        self._hard = min(ways, key=lambda hard: float(np.mean((ways[hard][0] - values) ** 2)))
        self.left_out = ways[self._hard]

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`."""
        size = max(1, _MARGINS_AT_ONCE // len(self._deviation))
        space = np.empty(
            (size, len(self._deviation))
        )  # one for all parts: a new large array costs more than the arithmetic
        shares = []
        for part in (points[i : i + size] for i in range(0, len(points), size)):
            mean, variance = self._process.predict(part, out=space[: len(part)])
            shares.append(self._shares(self._smallest(mean), variance, hard=self._hard))
        return np.concatenate([mean for mean, _ in shares]), np.concatenate([deviation for _, deviation in shares])

    def _smallest(self, mean: Points) -> Points:
        """Return the smallest margin of each example in its deviations, `(points, examples)`. Overwrites `mean`."""
        mean /= self._deviation
        return np.asarray(mean.reshape(len(mean), -1, self._examples).min(axis=1))

    def _shares(self, away: Points, variance: Values, *, hard: bool) -> Prediction:
        right = ndtr(away / np.sqrt(variance)[:, None])
        spread = (right * (1 - right)).sum(axis=1) / self._examples**2 + 1 / (12 * self._examples**2)
        return (away > 0 if hard else right).mean(axis=1), np.sqrt(spread)


class Trend:
    """A process of the warped mean score: a quadratic, and a Matérn residual for the rest."""

    name = "quadratic + Matérn"

    def __init__(self, points: Points, values: Values, warp: Warp, few: int | None = None) -> None:
        self._warp = warp
        targets = warp.warp(values)[:, None]
        self._process = Process(points, targets, warp.noise(targets[:, 0]), few)
        # The hyperparameters are estimated from one output: each costs a degree of freedom.
        freedom = len(points) - len(self._process.kernel)
        self._unit = float(self._process.scale[0]) ** 2 * student_factor(freedom)
        mean, variance = self._process.left_out(targets)
        self.left_out = unwarp_normal(warp, mean[:, 0], self._unit * variance)

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`."""
        mean, variance = self._process.predict(points, self._warp.noise)
        return unwarp_normal(self._warp, mean[:, 0], self._unit * variance)


class Quadratic:
    """A quadratic of the warped mean score by least squares, weighted by 1 / noise.

    Of several warps and ridges, those with the smallest left-out error. Ridge 0 is tried where the points identify a
    quadratic and one is left over.
    """

    def __init__(self, name: str, points: Points, values: Values, warps: Sequence[Warp]) -> None:
        self.name = name
        largest, plain = _spectrum(points.tobytes(), points.shape[1])
        ridges = ([0.0] if plain else []) + [largest * 10.0**power for power in range(-9, 0)]
        fits: list[tuple[float, Warp, LeastSquares, Prediction]] = []
        for warp in warps:
            target = warp.warp(values)
            for ridge in ridges:
                fit = LeastSquares(points, target, 1 / warp.noise(target), ridge)
                left_out = unwarp_normal(warp, *fit.left_out)
                fits.append((float(np.mean((left_out[0] - values) ** 2)), warp, fit, left_out))
        _, self._warp, self._fit, self.left_out = min(fits, key=lambda entry: entry[0])

    def predict(self, points: Points) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)`."""
        return unwarp_normal(self._warp, *self._fit.predict(points, self._warp.noise))


@lru_cache(maxsize=1)  # for all objectives
def _spectrum(points: bytes, genes: int) -> tuple[float, bool]:
    """Return the square of the largest singular value of the terms but the constant, and whether the points identify a quadratic and one is left over."""
    terms = quadratic_terms(np.frombuffer(points).reshape(-1, genes))
    plain = len(terms) > terms.shape[1] == np.linalg.matrix_rank(terms)
    return float(np.linalg.norm(terms[:, 1:], 2)) ** 2, bool(plain)
