"""MAP (Li et al., ICLR 2025, arXiv 2406.07529): a quadratic of each objective's mean score, and the front of the quadratics.

A design of about 2p candidates is evaluated, with p = (d + 1)(d + 2) / 2 unknowns of a quadratic in d genes; quadratics are
fitted within each objective's bounds; NSGA-III finds their front; some of it is evaluated. Coordinates are unit ones, in which
an expert alone is a one-hot vector. Defaults are those of the paper and its released code, but

- a gene has three levels or more, where the code has two from eight genes on (rank 37 of 45);
- the grid includes the known recipes, and the front lies where the design does, since genes have no recipe outside their range;
- least squares start from the linear fit of the unsquashed scores, and not where the sigmoid is saturated;
- every objective has its own fit and bounds, and as many reference directions as the population allows.

The surface is as of the driver `front`, with left-out errors, which the paper does not measure.
"""

from typing import Literal

from pydantic import Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Objectives
from evomerge.search.fronts.quadratic import QuadraticBreeder, QuadraticSettings
from evomerge.space import SearchSpace

_MOST_GENES = 100
"""A quadratic in as many genes has 5151 unknowns, and its design takes half a gigabyte."""


class MapSettings(QuadraticSettings):
    """`driver:` of a study that searches by MAP."""

    kind: Literal["map"] = "map"
    points: int | None = Field(default=None, ge=1)
    """Candidates of the design. Default: 2p, or p and the known recipes if these are more."""


class Map(QuadraticBreeder):
    """A `Surfaced` breeder: a design, then candidates of the front of its quadratics."""

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: MapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` as `QuadraticBreeder` does, and for too few points.

        So it does for over 100 genes.
        """
        super().__init__(space, objectives, seed, settings)
        if (genes := len(space.genes)) > _MOST_GENES:
            msg = f"driver `map` reaches up to {_MOST_GENES} genes, and the space has {genes}; tile its holes more coarsely, or type `kind: nsga2`"
            raise DriverError(msg)
        self._size = self._design_size("points", settings.points, 2)

    def __str__(self) -> str:
        return f"MAP: {self._describe_design()}, a quadratic for each objective, then {self._count} candidates of their front"

    def explore(self) -> Genomes:
        """Return no rows."""
        return self.points[:0]
