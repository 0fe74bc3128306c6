"""MAP-Elites (Mouret & Clune 2015, arXiv 1504.04909) over a population of models: one elite per cell of a grid."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.errors import DriverError
from evomerge.search.populations.population import CellMap, PopulationSettings, Scores, check_unit, draw


class MapElitesSettings(PopulationSettings):
    """`driver:` of a study that searches by MAP-Elites."""

    kind: Literal["map_elites"] = "map_elites"
    bins: int = Field(default=10, ge=1)
    """Number of cells along each of the grid's two axes."""


class MapElites:
    """An `Archive` with one member per cell: the candidate of the highest quality of all in that cell.

    The axes are the means of the first two objectives, in equal bins of [0, 1]; the quality is the mean of all objectives'
    means.
    """

    def __init__(self, objectives: Sequence[str], settings: MapElitesSettings) -> None:
        """Start with an empty grid. Raises `DriverError` for fewer than two objectives."""
        if len(objectives) < 2:
            msg = "driver `map_elites` lays its grid over two objectives, got one; type `kind: niches`, or add a task"
            raise DriverError(msg)
        self._objectives = tuple(objectives)
        self._bins = settings.bins
        self._elites: dict[tuple[int, ...], tuple[str, float]] = {}  # id and quality by cell
        self._scores: dict[tuple[int, ...], Scores] = {}

    def __str__(self) -> str:
        one, other = self._objectives[:2]
        return f"MAP-Elites, {self._bins} x {self._bins} cells of `{one}` x `{other}`"

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the elites, in the order in which their cells were first filled."""
        return tuple(member for member, _ in self._elites.values())

    @property
    def scores(self) -> Scores:
        """Scores of the elites, `(members, examples)`, the objectives concatenated."""
        return np.array(list(self._scores.values()))

    def insert(self, member: str, vectors: Sequence[Scores]) -> None:
        """Add the candidate if its cell is empty or the elite there has a strictly lower quality."""
        check_unit(self._objectives, vectors, "")
        means = [float(vector.mean()) for vector in vectors]
        # Clipped, since a mean of 1 would be in a cell beyond the last.
        cell = tuple(int(np.clip(mean * self._bins, 0, self._bins - 1)) for mean in means[:2])
        quality = sum(means) / len(means)
        if cell not in self._elites or quality > self._elites[cell][1]:  # figure 2 (arXiv 1504.04909)
            self._elites[cell] = member, quality
            self._scores[cell] = np.concatenate(vectors)

    def choose(self, rng: np.random.Generator, number: int) -> tuple[str, str]:
        """Return two elites drawn by quality; different ones, unless there is only one."""
        quality = np.array([quality for _, quality in self._elites.values()])
        first = draw(rng, quality)
        members = self.members
        return members[first], members[draw(rng, quality, without=first)]

    def special(self, number: int) -> None:
        """Return None: every proposal after the seeds is a child."""

    def maps(self) -> tuple[CellMap, ...]:
        """Return the grid."""
        edges = np.linspace(0, 1, self._bins + 1)
        return (CellMap("mean of all objectives", self._objectives[:2], (edges, edges), dict(self._elites)),)
