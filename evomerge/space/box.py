"""Box: a search space of plain values, over which drivers search any function."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe, canonical_json, expert
from evomerge.space import slopes
from evomerge.space.holes import Genome
from evomerge.space.space import SearchSpace


class Box(SearchSpace):
    """Named values. Not to be confused with other search spaces, whose genomes decode to merged models.

    A gene is `(low, high)` for a float, a list of options for a choice, or a hole as in a space file:

        Box({"x": (-5, 5), "layers": {"int": [1, 8]}, "rate": {"float": [1e-5, 1], "log": True}, "norm": ["pre", "post"]})
    """

    def __init__(self, genes: Mapping[str, Any]) -> None:
        """Read the genes. Raises `SpaceError`."""
        super().__init__({name: _hole(gene) for name, gene in genes.items()}, experts=())

    def values(self, genome: Genome) -> dict[str, Any]:
        """Return the value of each gene by name: a float, an int, or an option."""
        return {gene.name: gene.value(number) for gene, number in zip(self.genes, genome.tolist(), strict=True)}

    def decode(self, genome: Genome, parents: Sequence[str] = ()) -> Recipe:
        """Return a recipe that only names the values, so that equal values have equal ids: no model stands behind it."""
        return expert(canonical_json(self.values(genome)))

    @property
    def sloped(self) -> NDArray[np.bool_]:
        """Which genes have slopes, bool `(genes,)`: all floats."""
        return np.array([gene.kind == "float" for gene in self.genes])

    def slopes(self, genome: Genome, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `numbers`, derivatives with respect to the values, float64 `(genes,)`; NaN for genes that are no floats."""
        return np.where(self.sloped, slopes.checked(numbers, len(self.genes), "gene"), np.nan)

    def landmarks(self) -> dict[str, Genome]:
        """Return the initial genome: every gene's `init`, by default the middle of its range."""
        return {"init": self.initial}

    def _check_everywhere(self) -> None:
        """Accept all values."""


def _hole(gene: Any) -> Any:
    return {"float": list(gene)} if isinstance(gene, tuple) else {"choice": gene} if isinstance(gene, list) else gene
