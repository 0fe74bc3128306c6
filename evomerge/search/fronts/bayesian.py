"""Bayesian MAP (Li et al., ICLR 2025, arXiv 2406.07529): MAP whose later candidates go where its quadratics are wrong.

After a part of MAP's design, the unit cube is cut into bins by direction from its origin, in hyperspherical angles:

    x_1 = r cos φ_1, x_2 = r sin φ_1 cos φ_2, …, x_d = r sin φ_1 ⋯ sin φ_{d-1},   φ_i in [0, π/2],

4 per angle up to three genes and 2 from four on. A bin's score is the mean squared error of the quadratics at its candidates,
in units of each objective's variance, averaged over objectives, plus 0.5 times the standard deviation of that mean over 30
resamples, each without a fifth of the candidates. (The paper has a design for each task; one evaluation here scores all.) Bins
are drawn with

    probability ∝ prior · exp(score / 0.07),

where the prior is a bin's share of all directions; in a bin each φ_i is uniform, and r between 0.2 and 0.8. These
candidates are evaluated and fitted, and so on until `points` are used; then, as in MAP, candidates of the quadratics' front.

The limit is eight genes: 128 bins for 3p = 135 candidates, where nine have 256 for 165. (The released code stops at six.)

Unlike in the released code, an empty bin scores as the worst one instead of -∞, a bin of one candidate has the largest deviation
of all, a resample is of all of a bin's candidates, the prior counts, and each round is fitted to all candidates so far.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import betainc

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, Objectives
from evomerge.search.fronts.quadratic import QuadraticBreeder, QuadraticSettings
from evomerge.space import SearchSpace
from evomerge.surrogate.map_quadratic import SquashedQuadratic

_MOST_GENES = 8
_DEVIATIONS, _TEMPERATURE = 0.5, 0.07
_RESAMPLES, _DROPPED = 30, 0.2
_RADII = (0.2, 0.8)


class BayesianMapSettings(QuadraticSettings):
    """`driver:` of a study that searches by Bayesian MAP."""

    kind: Literal["bayesian_map"] = "bayesian_map"
    initial: int | None = Field(default=None, ge=1)
    """Candidates of the first design. Default: 1.5p, p the unknowns of a quadratic, or p and the known recipes if these are more."""
    points: int | None = Field(default=None, ge=1)
    """Candidates before the front. Default: twice `initial`."""
    batch: int = Field(default=4, ge=1)
    """Candidates of a round; fixed, so that the search does not depend on the number of workers."""


class BayesianMap(QuadraticBreeder):
    """A `Surfaced` breeder: a design, rounds of candidates where its quadratics are wrong, then candidates of their front.

    Failed candidates count towards `points`.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: BayesianMapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` as `Map` does, and for over 8 genes."""
        super().__init__(space, objectives, seed, settings)
        genes = len(space.genes)
        if genes > _MOST_GENES:
            raise DriverError(
                f"driver `bayesian_map` reaches up to {_MOST_GENES} genes, beyond which there are more bins than candidates, and the "
                f"space has {genes}; tile its holes more coarsely, or type `kind: map`"
            )
        self._size = self._design_size("initial", settings.initial, 1.5)
        points = settings.points or 2 * self._size
        if points < self._size:
            msg = f"driver `bayesian_map`: `points` is {points}; expected {self._size} or more, the size of the first design"
            raise DriverError(msg)
        self._batch = settings.batch
        self._extra = points - self._size
        self._explored = 0  # of `_extra`

    def __str__(self) -> str:
        return (
            f"Bayesian MAP: {self._describe_design()}, {self._extra} more,"
            f" {self._batch} at a time, where the quadratics are wrong, then {self._count} candidates of their front"
        )

    def explore(self) -> Genomes:
        """Return points, unit coordinates, of bins drawn by their scores."""
        count = min(self._batch, self._extra - self._explored)
        self._explored += count
        if not count:
            return self.points[:0]
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 2, self._rounds]))
        bins = Bins(self.points.shape[1])
        scores = bins.scores(self.points, squared_errors(self.fits(), self.points, self.means), rng)
        weights = bins.prior * np.exp((scores - scores.max()) / _TEMPERATURE)
        return bins.draw(rng.choice(len(weights), size=count, p=weights / weights.sum()), rng)


class Bins:
    """The directions from the origin into the unit cube, cut evenly along each hyperspherical angle."""

    def __init__(self, genes: int) -> None:
        """Cut each of the `genes` - 1 angles into 4 up to three genes, else into 2."""
        self._shape = (4 if genes < 4 else 2,) * (genes - 1)
        edges = np.linspace(0, math.pi / 2, self._shape[0] + 1) if genes > 1 else np.zeros(0)
        self._edges = edges
        prior = np.ones(1)
        for power in range(genes - 2, -1, -1):
            # ∫ sin^m from 0 to φ is proportional to the regularised incomplete beta function at sin² φ.
            shares = np.diff(betainc((power + 1) / 2, 0.5, np.sin(edges) ** 2))
            prior = (prior[:, None] * shares).ravel()
        self.prior: NDArray[np.float64] = prior
        """Each bin's share of all directions, `(bins,)`; the last angle varies fastest."""

    def of(self, points: Genomes) -> NDArray[np.intp]:
        """Return each point's bin, `(points,)`: -1 for the origin, which has no direction."""
        tails = np.sqrt(np.cumsum((points**2)[:, ::-1], axis=1)[:, ::-1])  # norms of the coordinates from each one on
        angles = np.arctan2(tails[:, 1:], points[:, :-1])
        if not self._shape:
            bins = np.zeros(len(points), np.intp)
        else:
            # A direction on an edge belongs to the bin below it, however its angle is rounded.
            places = np.clip(np.searchsorted(self._edges, angles - 1e-9) - 1, 0, self._shape[0] - 1)
            bins = np.ravel_multi_index(tuple(places.T), self._shape)
        return np.where(tails[:, 0] > 0, bins, -1)

    def scores(self, points: Genomes, errors: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return each bin's mean of `errors`, `(points,)`, plus half its standard deviation over resamples: `(bins,)`."""
        bins = self.of(points)
        mean, deviation = (np.full(len(self.prior), np.nan) for _ in range(2))
        for number in range(len(self.prior)):
            inside = errors[bins == number]
            if len(inside):
                mean[number] = inside.mean()
            if len(inside) > 1:
                size = min(round((1 - _DROPPED) * len(inside)), len(inside) - 1)
                deviation[number] = np.std([rng.permutation(inside)[:size].mean() for _ in range(_RESAMPLES)])
        if not (bins >= 0).any():
            return np.zeros(len(self.prior))
        deviation[np.isnan(deviation)] = np.nanmax(deviation) if np.isfinite(deviation).any() else 0.0
        scores = mean + _DEVIATIONS * deviation
        scores[np.isnan(scores)] = np.nanmax(scores)
        return scores

    def draw(self, chosen: NDArray[np.intp], rng: np.random.Generator) -> Genomes:
        """Return a point of each `chosen` bin, `(points, genes)`: angles uniform in the bin, 0.2 to 0.8 from the origin."""
        if not self._shape:
            return rng.uniform(*_RADII, (len(chosen), 1))
        places = np.stack(np.unravel_index(chosen, self._shape), axis=1)
        angles = (places + rng.random(places.shape)) * (math.pi / 2 / self._shape[0])
        sines = np.cumprod(np.hstack([np.ones((len(chosen), 1)), np.sin(angles)]), axis=1)
        directions = sines * np.hstack([np.cos(angles), np.ones((len(chosen), 1))])
        return np.asarray(rng.uniform(*_RADII, (len(chosen), 1)) * directions)


def squared_errors(fits: Sequence[SquashedQuadratic], points: Genomes, means: Means) -> NDArray[np.float64]:
    """Return the squared errors of the `fits` at `points`, in units of each objective's variance, averaged over objectives: `(points,)`.

    An objective that does not vary counts as without errors.
    """
    predicted = np.stack([fit.predict(points) for fit in fits], axis=1)
    variances = means.var(axis=0)
    varies = variances > 1e-18
    return np.asarray((((means - predicted) ** 2)[:, varies] / variances[varies]).sum(axis=1) / len(fits))
