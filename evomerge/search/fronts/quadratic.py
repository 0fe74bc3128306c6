"""What MAP and Bayesian MAP share: a design on a grid, a quadratic of each objective, and the front of the quadratics."""

from collections.abc import Mapping, Sequence

import numpy as np
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from scipy.spatial.distance import cdist

from evomerge import pareto, surrogate
from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, read_metrics
from evomerge.search.fronts.infill import evolve, spread
from evomerge.search.fronts.surface import Surface, constant_objectives, empty_surface, make_surface, reasons_to_refuse
from evomerge.search.nsga import reference_directions
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate
from evomerge.surrogate.map_quadratic import MapQuadratic, SquashedQuadratic, fit_map_quadratic
from evomerge.trial import Evaluation

_POPULATION, _GENERATIONS = 100, 25


class Quadratics:
    """The successful evaluations of a search, and a quadratic of each objective fitted to them."""

    def __init__(
        self,
        kind: str,
        space: SearchSpace,
        objectives: Objectives,
        seed: int,
        bounds: Mapping[str, tuple[float | None, float | None]],
    ) -> None:
        """Fit `objectives` over `space` for the driver `kind`.

        Raises `DriverError` for a single objective, and for genes that are not floats.
        """
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
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface: the unknowns, and one to leave out."""
        return surrogate.unknowns(len(self._space.genes)) + 1

    def learn(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> None:
        """Keep the successful evaluations. Raises `DriverError` for a score out of bounds."""
        self.points, self._succeeded = self._with(genomes, evaluations)
        self.means = self._means(self._succeeded)

    @property
    def identified(self) -> bool:
        """Whether the successful evaluations identify a quadratic."""
        return surrogate.identifies(self.points)

    def replacements(self, size: int, turn: int) -> Genomes:
        """Return as many Sobol genomes as a design of `size` lost to failures, different ones each `turn`."""
        lost = max(size - len(self.points), 1)
        return self._space.from_unit(surrogate.design(self.points.shape[1], (), lost, self._seed + turn))

    def fits(self) -> list[SquashedQuadratic]:
        """Return the quadratic of each objective."""
        return self._fit(self.points, self.means)

    def front(self, count: int) -> Genomes:
        """Return at most `count` points of the fits' front, from end to end, none evaluated before: unit coordinates."""
        points, scores = predicted_front(self.fits(), self.points.shape[1], self._seed)
        new = cdist(points, self.points).min(axis=1) > 1e-6
        chosen: Genomes = points[new][spread(scores[new], count)]
        return chosen

    def surface(self, genomes: Genomes | None, evaluations: Sequence[Evaluation]) -> Surface:
        """Return the front of the fits, as `Surfaced.surface` does."""
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
            constant_objectives(self._objectives, judged, len(points)) + reasons_to_refuse(judged),
            None if shared is None else self._space.from_unit(shared),
        )

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


def check_size(kind: str, setting: str, size: int, genes: int, known: int) -> None:
    """Raise `DriverError` for a design too small for a quadratic in so many `genes`, or for the `known` recipes."""
    smallest = max(surrogate.unknowns(genes), known)
    if size < smallest:
        msg = f"driver `{kind}`: `{setting}` is {size}; expected {smallest} or more, for {genes} genes and {known} known recipes"
        raise DriverError(msg)


def levels(size: int, genes: int) -> int:
    """Return the levels per gene of the paper's grid for a design of `size`: ⌈(2 size)^(1 / genes)⌉, and at least 3."""
    return max(3, int(np.ceil((2 * size) ** (1 / genes) - 1e-9)))


def grid_design(kind: str, space: SearchSpace, known: Genomes, size: int, seed: int) -> Genomes:
    """Return `size` genomes that identify a quadratic: the `known` ones, and random points of the grid."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    genes = len(space.genes)
    steps = levels(size, genes)
    for _ in range(100):
        rows = {row.round(9).tobytes(): row for row in space.to_unit(known)}
        while len(rows) < size:
            row = rng.integers(steps, size=genes) / (steps - 1)
            rows.setdefault(row.round(9).tobytes(), row)
        points = np.array(list(rows.values()))
        if surrogate.identifies(points):
            genomes = space.from_unit(points)
            genomes[: len(known)] = known  # bit for bit
            return genomes
    msg = f"driver `{kind}`: no design of {size} points identifies a quadratic in {genes} genes; raise `points`"
    raise DriverError(msg)


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
