"""MAP (Li et al., ICLR 2025, arXiv 2406.07529): a quadratic of each objective's mean score, and the front of the quadratics.

A design of some 2p candidates is evaluated, p = (d + 1)(d + 2) / 2 the unknowns of a quadratic in d genes; the
quadratics are fitted, within the objective's bounds; NSGA-III finds their front; some of it is evaluated, and the
search is over. Everything happens in unit coordinates, where an expert alone is a one-hot vector.

Defaults are the paper's and its released code's. What the code does wrong is not reproduced:

- two levels a gene in the grid from eight genes on, where squares are straight lines (rank 37 of 45): three or more, and
  the design's rank is checked before anything is evaluated;
- grid points on the simplex and on the diagonal are left out: they stay in, with the base and the mean;
- the front is looked for in [-3, 3], the design lies in [0, 1]: it is looked for where the design lies. (The wider box
  is not offered: outside of its range a gene has no recipe. Widen the ranges in the space instead.)
- nonlinear least squares from all ones, where the sigmoid is saturated and the fit stalls: from the linear fit of the
  warped scores;
- a fit that fails is dropped in silence, and tasks are taken for each other: here every objective has its fit;
- accuracy's sigmoid is hard-wired: bounds belong to the objective;
- `--point` is read and ignored: `points` is heeded;
- four or five reference directions for two objectives: as many as the population allows.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from scipy.optimize import least_squares
from scipy.spatial.distance import cdist
from scipy.special import expit, logit

from evomerge import pareto, surrogate
from evomerge.errors import DriverError, SurrogateError
from evomerge.search.driver import Genomes, Means, check_bounds, known_recipes, read_bounds
from evomerge.search.infill import evolve, spread
from evomerge.search.nsga import reference_directions
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation

_POPULATION, _GENERATIONS = 100, 25

Bounds = tuple[float, float]


class MapSettings(BaseModel):
    """`driver:` of a study that searches by MAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["map"] = "map"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, as part of the design."""
    points: int | None = Field(default=None, ge=1)
    """Candidates of the design. Default: 2p, or p and the known recipes if these are more."""
    validated: int | None = Field(default=None, ge=1)
    """Candidates of the quadratics' front that are evaluated. Default: p."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: [0, 1] for `accuracy`, `exact_match`
    and `rouge…`, [null, 0] for `log_likelihood`, and no bounds for others."""


class Map:
    """A `Breeder`: a design, then candidates of the front of its quadratics, and the end.

    Candidates that fail are left out of the fit. Where too few are left to identify a quadratic, as many others, of
    Sobol's sequence, take their places.
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: MapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for one alone, and for genes that are no floats."""
        for gene in space.genes:
            if gene.kind != "float":
                msg = f"driver `map` fits quadratics of float genes, and gene `{gene.name}` is {gene.kind}; fix it in the recipe, or type `kind: nsga2`"
                raise DriverError(msg)
        if len(objectives) < 2:  # a front needs two
            msg = "driver `map` needs two or more objectives, got one; type `kind: cma`"
            raise DriverError(msg)
        reference_directions(len(objectives), _POPULATION)
        self._space = space
        self._objectives = tuple(objectives)
        self._bounds = read_bounds(objectives, settings.bounds)
        self._seed = seed
        self._genes = len(space.genes)
        self._known = known_recipes(space) if settings.seed_known else np.empty((0, self._genes))
        needed = surrogate.unknowns(self._genes)
        self._size = settings.points or max(2 * needed, needed + len(self._known))
        self._count = settings.validated or needed
        least = max(needed, len(self._known))
        if self._size < least:
            msg = f"driver `map`: `points` is {self._size}; expected {least} or more, for {self._genes} genes and {len(self._known)} known recipes"
            raise DriverError(msg)
        self._levels = max(3, int(np.ceil((2 * self._size) ** (1 / self._genes) - 1e-9)))
        self._rounds = 0  # designs so far: the second and later ones replace what failed
        self._points: Genomes = np.empty((0, self._genes))  # that succeeded, unit coordinates
        self._means: Means = np.empty((0, len(objectives)))
        self._over = False

    def __str__(self) -> str:
        grid = self._size - len(self._known)
        return (
            f"MAP: {len(self._known)} known recipes and {grid} points of a grid of {self._levels} levels a gene,"
            f" a quadratic for each objective, then {self._count} candidates of their front"
        )

    def draw(self) -> Genomes:
        """Return the design, then what replaces its failures if need be, then the front, then no rows."""
        if self._over:
            return np.empty((0, self._genes))
        if self._rounds == 0:
            genomes = self._space.from_unit(self._design())
            genomes[: len(self._known)] = self._known  # to the last bit
        elif not self._identified():
            lost = max(self._size - len(self._points), 1)
            genomes = self._space.from_unit(surrogate.design(self._genes, (), lost, self._seed + self._rounds))
        else:
            self._over = True
            genomes = self._space.from_unit(self._front())
        self._rounds += 1
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep what succeeded. Raises `DriverError` for a score that is out of bounds."""
        good = np.array([evaluation.error is None for evaluation in evaluations])
        check_bounds("map", self._objectives, self._bounds, list(means[good].T))
        self._points = np.concatenate([self._points, self._space.to_unit(genomes[good])])
        self._means = np.concatenate([self._means, means[good]])

    def _front(self) -> Genomes:
        """Return what is to be evaluated of the front of the fits: unit coordinates, nothing that has been evaluated."""
        fits = [fit(self._points, self._means[:, i], bounds) for i, bounds in enumerate(self._bounds)]
        points, scores = front(fits, self._genes, self._seed)
        new = cdist(points, self._points).min(axis=1) > 1e-6
        found: Genomes = points[new][spread(scores[new], self._count)]
        return found

    def _identified(self) -> bool:
        try:
            surrogate.check_rank(self._points)
        except SurrogateError:
            return False
        return True

    def _design(self) -> Genomes:
        """Return the known recipes, and a random part of the grid that, with them, identifies a quadratic."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 0]))
        for _ in range(100):
            found = {row.round(9).tobytes(): row for row in self._space.to_unit(self._known)}
            while len(found) < self._size:
                row = rng.integers(self._levels, size=self._genes) / (self._levels - 1)
                found.setdefault(row.round(9).tobytes(), row)
            points = np.array(list(found.values()))
            try:
                surrogate.check_rank(points)
            except SurrogateError:
                continue
            return points
        msg = f"driver `map`: no design of {self._size} points identifies a quadratic in {self._genes} genes; raise `points`"
        raise DriverError(msg)


class Fit:
    """A quadratic of one objective's mean score, within its bounds: higher is better.

    With x its value, the score is (u - l) / (1 + e⁻ˣ) + l in [l, u], l + log(1 + eˣ) above l, u - log(1 + eˣ) below u, x without
    bounds: the paper's three cases.
    """

    def __init__(self, coefficients: NDArray[np.float64], bounds: Bounds) -> None:
        """Take the coefficients of `surrogate.quadratic_terms`, `(unknowns,)`."""
        self.coefficients = coefficients
        self.bounds = bounds

    def predict(self, points: Genomes) -> NDArray[np.float64]:
        """Return the mean scores at `points`, `(points, genes)` in unit coordinates: `(points,)`."""
        return _squash(surrogate.quadratic_terms(points) @ self.coefficients, self.bounds)[0]


def fit(points: Genomes, means: NDArray[np.float64], bounds: Bounds) -> Fit:
    """Return the least-squares quadratic of `means`, `(points,)`, at `points`, `(points, genes)` in unit coordinates.

    Without bounds in closed form. With bounds by Levenberg and Marquardt, from the linear fit of the unsquashed means.
    The points must identify a quadratic.
    """
    terms = surrogate.quadratic_terms(points)
    start = np.asarray(np.linalg.lstsq(terms, _stretch(means, bounds))[0], dtype=np.float64)
    if not np.isfinite(bounds).any():
        return Fit(start, bounds)
    result = least_squares(
        lambda c: _squash(terms @ c, bounds)[0] - means,
        start,
        jac=lambda c: _squash(terms @ c, bounds)[1][:, None] * terms,
        method="lm",
    )
    return Fit(result.x, bounds)


def front(fits: Sequence[Fit], genes: int, seed: int) -> tuple[Genomes, Means]:
    """Return the front of the fits in the unit cube: points `(points, genes)`, and what is predicted there.

    NSGA-III as the paper has it (population 100, 25 generations, crossover 0.7, mutation 0.3, both with index 20); the
    front is that of all that it ever tried.
    """
    algorithm = NSGA3(
        reference_directions(len(fits), _POPULATION),
        pop_size=_POPULATION,
        crossover=SBX(eta=20, prob=0.7),
        mutation=PM(eta=20, prob=0.3),
        output=None,
    )

    def predict(points: Genomes) -> tuple[Means, None]:
        return np.stack([fitted.predict(points) for fitted in fits], axis=1), None

    bred = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    points, scores = evolve(algorithm, predict, (genes, len(fits)), _GENERATIONS, bred)
    best = pareto.nondominated(scores)
    return points[best], scores[best]


def _squash(values: NDArray[np.float64], bounds: Bounds) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores of a quadratic's `values`, and their slopes."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high):
        share = expit(values)
        return low + (high - low) * share, (high - low) * share * (1 - share)
    if np.isfinite(low):
        return low + np.logaddexp(0, values), expit(values)
    if np.isfinite(high):
        return high - np.logaddexp(0, values), -expit(values)
    return values, np.ones_like(values)


def _stretch(means: NDArray[np.float64], bounds: Bounds) -> NDArray[np.float64]:
    """Return values that `_squash` to `means`, those at a bound moved a hundredth of a range inside."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high):
        return np.asarray(logit(np.clip((means - low) / (high - low), 0.01, 0.99)))
    if not np.isfinite(low) and not np.isfinite(high):
        return means
    away = means - low if np.isfinite(low) else high - means
    away = np.maximum(away, max(0.01 * float(np.ptp(means)), 1e-12))
    return np.asarray(away + np.log(-np.expm1(-away)))
