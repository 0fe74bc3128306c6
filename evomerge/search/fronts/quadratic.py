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

What is left is a surface as of the driver `front`: the quadratics' front, and how well each candidate is predicted from
the others, which the paper does not ask.
"""

from collections.abc import Mapping, Sequence
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
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics
from evomerge.search.fronts.infill import evolve, spread
from evomerge.search.fronts.surface import Surface, doubts, flat, nothing, published
from evomerge.search.nsga import reference_directions
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate
from evomerge.surrogate.rungs import Prediction, widened
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

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: MapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for one alone, and for genes that are no floats."""
        self._quadratics = Quadratics("map", space, objectives, seed, settings.bounds)
        self._space = space
        self._seed = seed
        self._known = known_recipes(space) if settings.seed_known else np.empty((0, len(space.genes)))
        needed = surrogate.unknowns(len(space.genes))
        self._size = settings.points or max(2 * needed, needed + len(self._known))
        self._count = settings.validated or needed
        check_size("map", "points", self._size, len(space.genes), len(self._known))
        self._levels = levels(self._size, len(space.genes))
        self._rounds = 0  # designs so far: the second and later ones replace what failed
        self._over = False

    @property
    def least(self) -> int:
        """Evaluations without which there is no surface."""
        return self._quadratics.least

    def __str__(self) -> str:
        grid = self._size - len(self._known)
        return (
            f"MAP: {len(self._known)} known recipes and {grid} points of a grid of {self._levels} levels a gene,"
            f" a quadratic for each objective, then {self._count} candidates of their front"
        )

    def draw(self) -> Genomes:
        """Return the design, then what replaces its failures if need be, then the front, then no rows."""
        if self._over:
            return np.empty((0, len(self._space.genes)))
        if self._rounds == 0:
            genomes = grid_design("map", self._space, self._known, self._size, self._seed)
        elif not self._quadratics.identified:
            genomes = self._quadratics.replacements(self._size, self._rounds)
        else:
            self._over = True
            genomes = self._space.from_unit(self._quadratics.front(self._count))
        self._rounds += 1
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep what succeeded. Raises `DriverError` for a score that is out of bounds."""
        self._quadratics.learn(genomes, evaluations)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front of the quadratics, with what speaks against it.

        `genomes` and `evaluations` are those that have not been learnt: `Generational.unfinished`.
        """
        return self._quadratics.surface(genomes, evaluations)


class Quadratics:
    """What a search has evaluated, and a quadratic of each objective through it: what MAP and Bayesian MAP have in common.

    Only what succeeded is kept.
    """

    def __init__(
        self,
        kind: str,
        space: SearchSpace,
        objectives: Objectives,
        seed: int,
        bounds: Mapping[str, tuple[float | None, float | None]],
    ) -> None:
        """Fit `objectives` over `space` for the driver `kind`. Raises `DriverError` as `Map` does."""
        for gene in space.genes:
            if gene.kind != "float":
                msg = f"driver `{kind}` fits quadratics of float genes, and gene `{gene.name}` is {gene.kind}; fix it in the recipe, or type `kind: nsga2`"
                raise DriverError(msg)
        if len(objectives) < 2:  # a front needs two
            msg = f"driver `{kind}` needs two or more objectives, got one; type `kind: cma`"
            raise DriverError(msg)
        reference_directions(len(objectives), _POPULATION)
        self._kind = kind
        self._space = space
        self._objectives = tuple(objectives)
        self._seed = seed
        self._bounds = [metric.bounds for metric in read_metrics(objectives, bounds).values()]
        self.points: Genomes = np.empty((0, len(space.genes)))  # unit coordinates
        self.means: Means = np.empty((0, len(objectives)))
        self._succeeded: list[Evaluation] = []

    @property
    def least(self) -> int:
        """Evaluations without which there is no surface: one more than the unknowns, to be left out."""
        return surrogate.unknowns(len(self._space.genes)) + 1

    def learn(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> None:
        """Keep what succeeded. Raises `DriverError` for a score that is out of bounds."""
        self.points, self._succeeded = self._with(genomes, evaluations)
        self.means = self._means(self._succeeded)

    @property
    def identified(self) -> bool:
        """Whether what succeeded identifies a quadratic."""
        return identifies(self.points)

    def replacements(self, size: int, turn: int) -> Genomes:
        """Return as many genomes of Sobol's sequence as a design of `size` has lost, another part of it each `turn`."""
        lost = max(size - len(self.points), 1)
        return self._space.from_unit(surrogate.design(self.points.shape[1], (), lost, self._seed + turn))

    def fits(self) -> list["Fit"]:
        """Return the quadratic of each objective."""
        return [fit(self.points, self.means[:, i], bounds) for i, bounds in enumerate(self._bounds)]

    def front(self, count: int) -> Genomes:
        """Return at most `count` of the front of the fits, from end to end: unit coordinates, nothing that has been evaluated."""
        points, scores = front(self.fits(), self.points.shape[1], self._seed)
        new = cdist(points, self.points).min(axis=1) > 1e-6
        found: Genomes = points[new][spread(scores[new], count)]
        return found

    def surface(self, genomes: Genomes | None, evaluations: Sequence[Evaluation]) -> Surface:
        """Return the front of the fits, also to `genomes` and `evaluations` that have not been learnt."""
        points, succeeded = self.points, self._succeeded
        if genomes is not None and len(genomes):
            points, succeeded = self._with(genomes, evaluations)
        if len(points) < self.least or not identifies(points):
            few = (
                f"{len(points)} candidates could be evaluated; expected {self.least} or more that identify a quadratic"
            )
            return nothing(self._space, self._objectives, few)
        means = self._means(succeeded)
        judged: dict[str, Surrogate] = {}
        for column, (name, bounds) in enumerate(zip(self._objectives, self._bounds, strict=True)):
            scores = np.array([evaluation.scores[name] for evaluation in succeeded], dtype=np.float64)
            if surrogate.varies(scores):
                judged[name] = surrogate.judge(points, scores, LeftOut(points, means[:, column], bounds))

        def predict(unit: Genomes) -> tuple[Means, Means]:
            found, deviations = np.tile(means[0], (len(unit), 1)), np.zeros((len(unit), means.shape[1]))
            for column, name in enumerate(self._objectives):
                if name in judged:
                    found[:, column], deviations[:, column] = judged[name].predict(unit)
            return found, deviations

        fits = [fit(points, means[:, i], bounds) for i, bounds in enumerate(self._bounds)]
        shared = surrogate.best_for_all(list(judged.values()), self._seed) if len(judged) > 1 else None
        candidates = np.concatenate([points, front(fits, points.shape[1], self._seed)[0]])
        return published(
            self._space,
            self._objectives,
            self._space.from_unit(candidates),
            predict(candidates),
            judged,
            flat(self._objectives, judged, len(points)) + doubts(judged),
            None if shared is None else self._space.from_unit(shared),
        )

    def _with(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> tuple[Genomes, list[Evaluation]]:
        """Return what succeeded so far and of one more generation."""
        good = [i for i, found in enumerate(evaluations) if succeeds(found, self._objectives)]
        found = [evaluations[i] for i in good]
        check_bounds(self._kind, self._objectives, self._bounds, list(self._means(found).T))
        return np.concatenate([self.points, self._space.to_unit(genomes[good])]), [*self._succeeded, *found]

    def _means(self, evaluations: Sequence[Evaluation]) -> Means:
        return np.array([found.means(self._objectives) for found in evaluations]).reshape(-1, len(self._objectives))


# -- designs --


def succeeds(evaluation: Evaluation, objectives: Sequence[str]) -> bool:
    """Tell whether an evaluation has a finite mean of each objective."""
    return evaluation.error is None and bool(np.isfinite(evaluation.means(objectives)).all())


def identifies(points: Genomes) -> bool:
    """Tell whether `points`, unit coordinates, identify a quadratic."""
    try:
        surrogate.check_rank(points)
    except SurrogateError:
        return False
    return True


def check_size(kind: str, setting: str, size: int, genes: int, known: int) -> None:
    """Raise `DriverError` for a design too small for a quadratic in so many `genes`, or for the `known` recipes."""
    least = max(surrogate.unknowns(genes), known)
    if size < least:
        msg = f"driver `{kind}`: `{setting}` is {size}; expected {least} or more, for {genes} genes and {known} known recipes"
        raise DriverError(msg)


def levels(size: int, genes: int) -> int:
    """Return the levels a gene of the paper's grid for a design of `size`: ⌈(2 size)^(1 / genes)⌉, and 3 at least."""
    return max(3, int(np.ceil((2 * size) ** (1 / genes) - 1e-9)))


def grid_design(kind: str, space: SearchSpace, known: Genomes, size: int, seed: int) -> Genomes:
    """Return `size` genomes: the `known` ones, and a random part of the grid that, with them, identifies a quadratic."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    genes = len(space.genes)
    steps = levels(size, genes)
    for _ in range(100):
        found = {row.round(9).tobytes(): row for row in space.to_unit(known)}
        while len(found) < size:
            row = rng.integers(steps, size=genes) / (steps - 1)
            found.setdefault(row.round(9).tobytes(), row)
        points = np.array(list(found.values()))
        if identifies(points):
            genomes = space.from_unit(points)
            genomes[: len(known)] = known  # to the last bit
            return genomes
    msg = f"driver `{kind}`: no design of {size} points identifies a quadratic in {genes} genes; raise `points`"
    raise DriverError(msg)


# -- fits --


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
        return self.at(surrogate.quadratic_terms(points))

    def at(self, terms: Genomes) -> NDArray[np.float64]:
        """Return the mean scores where `surrogate.quadratic_terms` are `terms`, `(points, unknowns)`: `(points,)`."""
        return _squash(terms @ self.coefficients, self.bounds)[0]


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


class LeftOut:
    """A `Rung` of `surrogate`: MAP's quadratic of one objective, and how sure it is of what it predicts.

    Everything of first order in the scores' errors, so exact without bounds. With J the slopes of the scores by the
    coefficients at the n points, h_i = j_iᵀ(JᵀJ)⁻¹j_i and e_i the errors: without point i the coefficients change by
    -(JᵀJ)⁻¹j_i e_i / (1 - h_i) (Cook & Weisberg 1982, section 2.2), and a score that would be measured at a point with slopes j has the
    variance σ²(1 + jᵀ(JᵀJ)⁻¹j), σ² = mean of e_i² / (1 - h_i). More points than unknowns are needed.
    """

    name = "MAP's quadratic"

    def __init__(self, points: Genomes, means: NDArray[np.float64], bounds: Bounds) -> None:
        self.fit = fit(points, means, bounds)
        terms = surrogate.quadratic_terms(points)
        values = terms @ self.fit.coefficients
        scores, slopes = _squash(values, bounds)
        left, singular, axes = np.linalg.svd(slopes[:, None] * terms, full_matrices=False)
        kept = singular > 1e-10 * singular[0]
        self._along = axes[kept].T / singular[kept]  # (unknowns, kept): its product with its transpose is (JᵀJ)⁻¹
        free = np.maximum(1 - (left[:, kept] ** 2).sum(axis=1), 1e-10)
        errors = means - scores
        freedom = len(means) - int(kept.sum())
        self._noise = widened(freedom) * max(float(np.mean(errors**2 / free)), 1e-18)
        without = values - ((terms @ self._along) * left[:, kept]).sum(axis=1) * errors / free
        self.left_out: Prediction = _squash(without, bounds)[0], np.sqrt(self._noise / free)

    def predict(self, points: Genomes) -> Prediction:
        """Return the mean score at `points`, `(points, genes)`, and its standard deviation: both `(points,)`."""
        terms = surrogate.quadratic_terms(points)
        scores, slopes = _squash(terms @ self.fit.coefficients, self.fit.bounds)
        spread_out = ((slopes[:, None] * terms @ self._along) ** 2).sum(axis=1)
        return scores, np.sqrt(self._noise * (1 + spread_out))

    def change_variance(self, points: Genomes, others: Genomes) -> NDArray[np.float64]:
        """Return the variance of what is predicted at `points` minus what is at `others`, row by row: `(points,)`."""
        slopes = []
        for chosen in (points, others):
            terms = surrogate.quadratic_terms(chosen)
            slopes.append(_squash(terms @ self.fit.coefficients, self.fit.bounds)[1][:, None] * terms)
        return np.asarray(self._noise * (((slopes[0] - slopes[1]) @ self._along) ** 2).sum(axis=1))


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
