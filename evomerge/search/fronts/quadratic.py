"""The breeder of MAP and Bayesian MAP: a design on a grid, a quadratic of each objective, and the front of the quadratics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from scipy.spatial.distance import cdist

from evomerge import pareto, surrogate
from evomerge.errors import DriverError
from evomerge.recipe.validation import FrozenModel
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics
from evomerge.search.fronts.infill import evolve, spread
from evomerge.search.fronts.surface import Surface, empty_surface, make_surface, reasons_to_refuse
from evomerge.search.nsga import reference_directions
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate
from evomerge.surrogate.map_quadratic import MapQuadratic, SquashedQuadratic, fit_map_quadratic
from evomerge.trial import Evaluation

_POPULATION, _GENERATIONS = 100, 25


class QuadraticSettings(FrozenModel):
    """`driver:` settings that MAP and Bayesian MAP share."""

    kind: str
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, as part of the design."""
    validated: int | None = Field(default=None, ge=1)
    """Candidates of the quadratics' front that are evaluated. Default: p, the unknowns of a quadratic."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: the metric's range."""


class QuadraticBreeder(ABC):
    """A `Surfaced` breeder: a design, what `explore` adds, then candidates of the front of the quadratics fitted to all.

    Failed candidates are left out of the fits. While too few are left to identify a quadratic, as many Sobol points
    replace them.
    """

    _size: int
    """Candidates of the design."""

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: QuadraticSettings) -> None:
        """Search `space`. Raises `DriverError` for a single objective, and for genes that are not floats."""
        kind = settings.kind
        for gene in space.genes:
            if gene.kind != "float":
                msg = f"driver `{kind}` fits quadratics of float genes, and gene `{gene.name}` is {gene.kind}; fix it in the recipe, or type `kind: nsga2`"
                raise DriverError(msg)
        if len(objectives) < 2:  # a front needs two
            raise DriverError(f"driver `{kind}` needs two or more objectives, got one; type `kind: cma`")
        reference_directions(len(objectives), _POPULATION)
        self._kind = kind
        self._space = space
        self._objectives = tuple(objectives)
        self._seed = seed
        self._bounds = [metric.bounds for metric in read_metrics(objectives, settings.bounds).values()]
        self._known = known_recipes(space, settings.seed_known)
        self._count = settings.validated or surrogate.unknowns(len(space.genes))
        self._rounds = 0  # generations so far
        self._over = False
        self.points: Genomes = np.empty((0, len(space.genes)))  # those that succeeded, unit coordinates
        self.means: Means = np.empty((0, len(objectives)))
        self._succeeded: list[Evaluation] = []

    @abstractmethod
    def explore(self) -> Genomes:
        """Return candidates between the design and the front, unit coordinates; no rows when there are no more."""

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface: the unknowns, and one to leave out."""
        return surrogate.unknowns(len(self._space.genes)) + 1

    def draw(self) -> Genomes:
        """Return the design, then replacements of its failures if needed, then what `explore` adds, the front, and no rows."""
        if self._over:
            return np.empty((0, len(self._space.genes)))
        if self._rounds == 0:
            genomes = self._grid_design()
        elif not surrogate.identifies(self.points):
            lost = max(self._size - len(self.points), 1)
            genomes = self._space.from_unit(surrogate.design(self.points.shape[1], (), lost, self._seed + self._rounds))
        else:
            points = self.explore()
            self._over = len(points) == 0
            genomes = self._space.from_unit(self._front() if self._over else points)
        self._rounds += 1
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep the successful evaluations. Raises `DriverError` for a score out of bounds."""
        self.points, self._succeeded = self._with(genomes, evaluations)
        self.means = self._means(self._succeeded)

    def fits(self) -> list[SquashedQuadratic]:
        """Return the quadratic of each objective."""
        return self._fit(self.points, self.means)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front of the quadratics, as `Surfaced.surface` does."""
        points, succeeded = self.points, self._succeeded
        if genomes is not None and len(genomes):
            points, succeeded = self._with(genomes, evaluations)
        if len(points) < self.min_evaluations or not surrogate.identifies(points):
            few = f"{len(points)} candidates could be evaluated; expected {self.min_evaluations} or more that identify a quadratic"
            return empty_surface(self._space, self._objectives, few)
        means = self._means(succeeded)
        judged: dict[str, Surrogate] = {}
        for column, (name, bounds) in enumerate(zip(self._objectives, self._bounds, strict=True)):
            scores = np.array([evaluation.scores[name] for evaluation in succeeded], dtype=np.float64)
            if surrogate.varies(scores):
                judged[name] = surrogate.judge(points, scores, MapQuadratic(points, means[:, column], bounds))
        candidates = np.concatenate([points, predicted_front(self._fit(points, means), points.shape[1], self._seed)[0]])
        predicted, deviations = np.tile(means[0], (len(candidates), 1)), np.zeros((len(candidates), means.shape[1]))
        for name, fit in judged.items():
            column = self._objectives.index(name)
            predicted[:, column], deviations[:, column] = fit.predict(candidates)
        shared = surrogate.best_for_all(list(judged.values()), self._seed) if len(judged) > 1 else None
        return make_surface(
            self._space,
            self._space.from_unit(candidates),
            (predicted, deviations),
            judged,
            self._objectives,
            len(points),
            reasons_to_refuse(judged),
            None if shared is None else self._space.from_unit(shared),
        )

    def _design_size(self, setting: str, given: int | None, share: float) -> int:
        """Return the design's size, by default `share` · p, or p and the known recipes if more. Raises `DriverError`."""
        genes, known = len(self._space.genes), len(self._known)
        needed = surrogate.unknowns(genes)
        size, smallest = given or max(math.ceil(share * needed), needed + known), max(needed, known)
        if size < smallest:
            msg = f"driver `{self._kind}`: `{setting}` is {size}; expected {smallest} or more, for {genes} genes and {known} known recipes"
            raise DriverError(msg)
        return size

    def _describe_design(self) -> str:
        genes, known = len(self._space.genes), len(self._known)
        return f"{known} known recipes and {self._size - known} points of a grid of {_levels(self._size, genes)} levels a gene"

    def _grid_design(self) -> Genomes:
        """Return genomes that identify a quadratic: the known ones, and random points of the grid. Raises `DriverError`."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 0]))
        genes = len(self._space.genes)
        steps = _levels(self._size, genes)
        for _ in range(100):
            rows = {row.round(9).tobytes(): row for row in self._space.to_unit(self._known)}
            while len(rows) < self._size:
                row = rng.integers(steps, size=genes) / (steps - 1)
                rows.setdefault(row.round(9).tobytes(), row)
            points = np.array(list(rows.values()))
            if surrogate.identifies(points):
                genomes = self._space.from_unit(points)
                genomes[: len(self._known)] = self._known  # bit for bit
                return genomes
        msg = f"driver `{self._kind}`: no design of {self._size} points identifies a quadratic in {genes} genes; raise `points`"
        raise DriverError(msg)

    def _front(self) -> Genomes:
        """Return candidates of the fits' front, from end to end, none evaluated before: unit coordinates."""
        points, scores = predicted_front(self.fits(), self.points.shape[1], self._seed)
        new = cdist(points, self.points).min(axis=1) > 1e-6
        chosen: Genomes = points[new][spread(scores[new], self._count)]
        return chosen

    def _with(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> tuple[Genomes, list[Evaluation]]:
        """Return the points and evaluations that succeeded, with those of one more generation."""
        good = [i for i, evaluation in enumerate(evaluations) if succeeds(evaluation, self._objectives)]
        added = [evaluations[i] for i in good]
        check_bounds(self._kind, self._objectives, self._bounds, list(self._means(added).T))
        return np.concatenate([self.points, self._space.to_unit(genomes[good])]), [*self._succeeded, *added]

    def _fit(self, points: Genomes, means: Means) -> list[SquashedQuadratic]:
        return [fit_map_quadratic(points, means[:, i], bounds) for i, bounds in enumerate(self._bounds)]

    def _means(self, evaluations: Sequence[Evaluation]) -> Means:
        return np.array([done.means(self._objectives) for done in evaluations]).reshape(-1, len(self._objectives))


def succeeds(evaluation: Evaluation, objectives: Sequence[str]) -> bool:
    """Return whether an evaluation has a finite mean of each objective."""
    return evaluation.error is None and bool(np.isfinite(evaluation.means(objectives)).all())


def _levels(size: int, genes: int) -> int:
    """Return the levels per gene of the paper's grid for a design of `size`: ⌈(2 size)^(1 / genes)⌉, and at least 3."""
    return max(3, int(np.ceil((2 * size) ** (1 / genes) - 1e-9)))


def predicted_front(fits: Sequence[SquashedQuadratic], genes: int, seed: int) -> tuple[Genomes, Means]:
    """Return the front of the fits in the unit cube: points, `(points, genes)`, and their predicted scores.

    It is the front of all that NSGA-III tries, with the paper's settings: population 100, 25 generations, crossover 0.7,
    mutation 0.3, both with index 20.
    """
    algorithm = NSGA3(
        reference_directions(len(fits), _POPULATION),
        pop_size=_POPULATION,
        crossover=SBX(eta=20, prob=0.7),
        mutation=PM(eta=20, prob=0.3),
        output=None,
    )

    def predict(points: Genomes) -> tuple[Means, None]:
        return np.stack([fit.predict(points) for fit in fits], axis=1), None

    bred = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    points, scores = evolve(algorithm, predict, (genes, len(fits)), _GENERATIONS, bred)
    best = pareto.nondominated(scores)
    return points[best], scores[best]
