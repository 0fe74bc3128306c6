"""MAP (Li et al., ICLR 2025, arXiv 2406.07529): a quadratic of each objective's mean score, and the front of the quadratics.

A design of about 2p candidates is evaluated, with p = (d + 1)(d + 2) / 2 unknowns of a quadratic in d genes; quadratics are
fitted within each objective's bounds; NSGA-III finds their front; some of it is evaluated. Coordinates are unit ones, in which
an expert alone is a one-hot vector. Defaults are those of the paper and its released code, whose faults are not reproduced:

- two levels per gene from eight genes on, where squares are straight lines (rank 37 of 45): here three or more, and the
  rank is checked before anything is evaluated;
- a grid without the simplex and the diagonal: here with them, the base and the mean;
- a front searched for in [-3, 3] from a design in [0, 1]: here where the design lies, as a gene has no recipe outside its range;
- least squares from all ones, where the sigmoid is saturated: here from the linear fit of the unsquashed scores;
- failed fits dropped, which shifts the tasks; a hard-wired sigmoid; `--point` ignored; four or five reference
  directions for two objectives: here every objective has its fit and bounds, and as many directions as the population allows.

The surface is as of the driver `front`, with left-out errors, which the paper does not measure.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge import surrogate
from evomerge.search.driver import Genomes, Means, Objectives, known_recipes
from evomerge.search.fronts.quadratic import Quadratics, check_size, grid_design, levels
from evomerge.search.fronts.surface import Surface
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation


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
    """Objective → [lowest, highest] mean score, null where there is none. Default: the metric's range."""


class Map:
    """A `Surfaced` breeder: a design, then candidates of the front of its quadratics.

    Failed candidates are left out of the fit. Where too few are left to identify a quadratic, as many Sobol points replace
    them.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: MapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` as `Quadratics` does, and for too few points."""
        self._quadratics = Quadratics("map", space, objectives, seed, settings.bounds)
        self._space = space
        self._seed = seed
        self._known = known_recipes(space) if settings.seed_known else np.empty((0, len(space.genes)))
        needed = surrogate.unknowns(len(space.genes))
        self._size = settings.points or max(2 * needed, needed + len(self._known))
        self._count = settings.validated or needed
        check_size("map", "points", self._size, len(space.genes), len(self._known))
        self._rounds = 0  # designs so far: the second and later ones replace failures
        self._over = False

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface."""
        return self._quadratics.min_evaluations

    def __str__(self) -> str:
        grid = self._size - len(self._known)
        return (
            f"MAP: {len(self._known)} known recipes and {grid} points of a grid of {levels(self._size, len(self._space.genes))} levels a gene,"
            f" a quadratic for each objective, then {self._count} candidates of their front"
        )

    def draw(self) -> Genomes:
        """Return the design, then replacements of its failures if needed, then the front, then no rows."""
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
        """Keep the successful evaluations. Raises `DriverError` for a score out of bounds."""
        self._quadratics.learn(genomes, evaluations)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front of the quadratics, as `Surfaced.surface` does."""
        return self._quadratics.surface(genomes, evaluations)
