"""Fronts from few evaluations with slopes: the `Front` breeder, with surrogates that are fitted to slopes too.

An evaluation with slopes gives 1 + d equations at the cost of three scores. On tiny networks and quadratics with 6 and 12 genes,
60% of the cost of a design of scores alone, 5 (d + 1), reached 0.88 to 0.95 of the best hypervolume known, with steps along
slopes 0.71 to 0.92, and with scores alone 0.66 to 0.81 (as small a design: 0.85 to 0.89). With 3 genes scores alone are better,
and with 18 steps along slopes are.
Not to be confused with `Continuation`, which follows slopes from the evaluated points, predicts nothing far from them, and leaves no surface.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.search.driver import Genomes, Means, Objectives, read_metrics
from evomerge.search.fronts.front import Front
from evomerge.search.fronts.settings import FrontSettings
from evomerge.search.fronts.surface import Surface
from evomerge.search.slopes.ascent import movable, to_unit_slope
from evomerge.search.slopes.measure import Measure
from evomerge.space import Genome, SearchSpace
from evomerge.surrogate import Slopes
from evomerge.trial import Evaluation, Examples

_SHORTEST = 1e-9
"""Shorter directions of a slope in the surrogates' coordinates do not count."""


class SlopedFront:
    """A `Surfaced` `Climber`: a `Front` whose design is evaluated with slopes, and whose batches are not.

    At the cost of three, slopes are worth most where a surrogate has yet to be identified; after that, more points of the front
    are. Where scores are finite and a slope is not, or its gene has none, the scores count alone.
    """

    def __init__(
        self, space: SearchSpace, objectives: Objectives, seed: int, settings: FrontSettings, sizes: Mapping[str, int]
    ) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` where `Front` does, and where there are no slopes.

        `sizes` are the numbers of search examples by task: slopes are over all of them.
        """
        self._space = space
        self._objectives = tuple(objectives)
        self._front = Front(space, objectives, seed, settings, self._read)
        self._measure = Measure("front", space, read_metrics(objectives), sizes, 0.0, seed)
        self._wanted = True
        self._sloped: set[bytes] = set()  # genomes that need slopes

    def __str__(self) -> str:
        return f"{self._front}; the design has slopes, and surrogates are fitted to them too"

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface."""
        return self._front.min_evaluations

    @property
    def slopes(self) -> Examples | None:
        """Examples over whose mean score the last generation needs slopes."""
        return self._measure.training if self._wanted else None

    @property
    def in_flight(self) -> int:
        """As of `Front`."""
        return self._front.in_flight

    def draw(self, pending: Genomes | None = None) -> Genomes:
        """Return the next generation of the front's search."""
        genomes = self._front.draw(pending)
        self._wanted = self._front.designing
        self._sloped.update(genome.tobytes() for genome in genomes if self._wanted)
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Fit the surrogates again. Raises `DriverError` for a score out of bounds, and for a success without slopes."""
        for genome, evaluation in zip(genomes, evaluations, strict=True):
            if genome.tobytes() in self._sloped:
                self._measure.check(evaluation)
        self._front.learn(genomes, means, evaluations)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front that the surrogates predict, as `Surfaced.surface` does."""
        return self._front.surface(genomes, evaluations)

    def _read(self, points: Genomes, evaluations: Sequence[Evaluation]) -> dict[str, Slopes]:
        return read_slopes(self._space, self._objectives, points, evaluations)


def read_slopes(
    space: SearchSpace, objectives: Sequence[str], points: Genomes, evaluations: Sequence[Evaluation]
) -> dict[str, Slopes]:
    """Return the slopes of each objective along the space's genes, in the coordinates in which scores are smooth.

    `points`, `(evaluations, genes)`, are unit coordinates; all evaluations succeeded. Directions have length 1.
    """
    moves = movable(space)
    found: dict[str, list[tuple[int, Genome, float]]] = {name: [] for name in objectives}
    for row, (genome, evaluation) in enumerate(zip(space.from_unit(points), evaluations, strict=True)):
        if not evaluation.slopes:
            continue
        directions = space.directions(genome)
        lengths = np.linalg.norm(directions, axis=1)
        for name in objectives:
            slopes = to_unit_slope(space, genome, space.slopes(genome, evaluation.slopes[name]))
            for gene in np.flatnonzero(moves & np.isfinite(slopes) & (lengths > _SHORTEST)):
                found[name].append((row, directions[gene] / lengths[gene], float(slopes[gene] / lengths[gene])))
    return {
        name: Slopes(
            np.array([row for row, _, _ in of], dtype=np.intp),
            np.array([direction for _, direction, _ in of]).reshape(-1, len(space.genes)),
            np.array([value for _, _, value in of]),
        )
        for name, of in found.items()
    }
