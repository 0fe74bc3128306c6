"""CycleQD (Kuroki et al., ICLR 2025, arXiv 2410.14735): one grid of elites per objective, used in turn for parent selection.

In the grid of an objective, that objective is the quality and the others are the behaviour axes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import softmax

from evomerge.errors import DriverError, nearest
from evomerge.recipe import Recipe
from evomerge.search.populations.population import CellMap, PopulationSettings, Scores

_T = TypeVar("_T")

_MARGIN = 0.15
"""By how much the axes extend beyond the seeds, as a share of the weakest and of the strongest mean."""

_FACTORS = {"paper": (0.5, 0.8), "code": (0.5, 1.3)}
"""Weights in elite sampling of the lowest and of the highest value among the elites, along each axis."""


class CycleSettings(PopulationSettings):
    """`driver:` of a study that searches by CycleQD."""

    kind: Literal["cycle"] = "cycle"
    bins: int = Field(default=15, ge=1)
    """Number of cells along each axis of a grid."""
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Objective → ends of its axis. Default: from the seeds."""
    sampling: Literal["paper", "code"] = "paper"
    """Along each axis an elite's weight in the draw rises from 0.5 to 0.8 (paper), or from 0.5 to 1.3 (released code)."""
    aggregate: int = Field(default=0, ge=0)
    """Every so many proposals, propose the merge of all grids' best elites; 0 never does."""


@dataclass(frozen=True, slots=True, eq=False)
class _Elite:
    member: str
    means: NDArray[np.float64]  # (objectives,)
    scores: Scores


class Cycle:
    """An `Archive` of one grid for each of K objectives; it also keeps each objective's specialist.

    Grid k has the mean of objective k as quality and one axis for each other objective. A candidate is offered to all grids
    and stored where its cell is empty or its quality strictly higher. The parents of proposal n are from grid n mod K.

    Along an axis with edges e_0 < … < e_bins a mean in (e_i, e_{i+1}] is in cell i, and a mean outside is in the first or last
    cell. Without `ranges` an axis starts 15% of its absolute value below the weakest seed's mean and ends 15% above the
    strongest's: for positive scores the paper's 85% and 115%. If all seeds have 0, it is [0, 1]. Seeds with nearly equal means
    make cells that are too fine: set `ranges` then. A late seed moves the edges, and the elites are offered again.

    A specialist is the seed with the best mean on an objective: the third parent, in a space with three.
    """

    def __init__(self, objectives: Sequence[str], settings: CycleSettings, seeds: Sequence[str]) -> None:
        """Start with empty grids; `seeds` are ids of recipes. Raises `DriverError` for one objective and invalid `ranges`."""
        if len(objectives) < 2:
            msg = "driver `cycle` lays each objective's grid over the others, got one objective; type `kind: niches`, or add a task"
            raise DriverError(msg)
        for name, (low, high) in settings.ranges.items():
            if name not in objectives:
                raise DriverError(f"driver `cycle` `ranges`: unknown objective `{name}`; {nearest(name, objectives)}")
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                msg = f"driver `cycle` `ranges`: `{name}` is [{low:g}, {high:g}]; expected [low, high] with low < high"
                raise DriverError(msg)
        self._objectives = tuple(objectives)
        self._settings = settings
        self._seed_ids = frozenset(seeds)
        self._seeds: dict[str, _Elite] = {}  # evaluated without an error
        self._edges: list[NDArray[np.float64]] = []  # (bins + 1,) per objective
        self._grids: list[dict[tuple[int, ...], _Elite]] = [{} for _ in objectives]

    def __str__(self) -> str:
        grids, bins = len(self._objectives), " x ".join([str(self._settings.bins)] * (len(self._objectives) - 1))
        merges = f", their best merged every {self._settings.aggregate} proposals" if self._settings.aggregate else ""
        return f"CycleQD, {grids} grids of {bins} cells{merges}"

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the elites of all grids, followed by those of the other specialists."""
        return tuple(self._stored())

    @property
    def scores(self) -> Scores:
        """Scores of the members, specialists included, `(members, examples)`, the objectives concatenated."""
        return np.array([elite.scores for elite in self._stored().values()])

    def insert(self, member: str, vectors: Sequence[Scores]) -> None:
        """Offer the candidate to all grids; a seed moves their edges first."""
        elite = _Elite(member, np.array([vector.mean() for vector in vectors]), np.concatenate(vectors))
        if member in self._seed_ids:
            self._seeds[member] = elite
            means = np.array([seed.means for seed in self._seeds.values()])
            ends = [self._settings.ranges.get(name) or reach(means[:, k]) for k, name in enumerate(self._objectives)]
            self._edges = [np.linspace(low, high, self._settings.bins + 1) for low, high in ends]
            elites = self._elites()
            self._grids = [{} for _ in self._objectives]
            for other in elites.values():
                self._offer(other)
        self._offer(elite)

    def choose(self, rng: np.random.Generator, number: int) -> tuple[str, str, str]:
        """Return two elites of the active grid, by elite sampling (or its only one and another member), and its specialist."""
        active = number % len(self._grids)
        grid, third = self._grids[active], self._specialist(active).member
        elites = [elite.member for elite in grid.values()]
        if len(elites) > 1:
            quality = np.array([elite.means[active] for elite in grid.values()])
            weights = elite_weights(np.column_stack([quality, list(grid)]), *_FACTORS[self._settings.sampling])
            one, other = rng.choice(len(elites), 2, replace=False, p=weights / weights.sum())
            return elites[one], elites[other], third
        others = [member for member in self.members if member != elites[0]] or elites
        return elites[0], others[int(rng.integers(len(others)))], third

    def special(self, number: int) -> Recipe | None:
        """Return the recipe θ_0 + Σ_k β_k τ_k every `aggregate` proposals, else None; τ_k is the task vector of grid k's best elite.

        β is the softmax of these elites' qualities. Also None if one elite is the best of all grids.
        """
        if not self._settings.aggregate or (number + 1) % self._settings.aggregate:
            return None
        best = [_best(grid.values(), k) for k, grid in enumerate(self._grids)]
        weights: dict[str, float] = {}
        for elite, share in zip(best, softmax([elite.means[k] for k, elite in enumerate(best)]), strict=True):
            weights[elite.member] = weights.get(elite.member, 0.0) + float(share)
        if len(weights) < 2:
            return None
        inputs = [{"member": member} for member in weights]
        table = {f"#{i}": weight for i, weight in enumerate(weights.values())}
        parameters = {"weight": {"per": ["expert"], "values": table}, "lambda": 1.0}
        return Recipe.parse({"merge": {"method": "task_arithmetic", "inputs": inputs, "parameters": parameters}})

    def maps(self) -> tuple[CellMap, ...]:
        """Return the grids, one per objective; none before the first seed."""
        if not self._edges:
            return ()
        return tuple(
            CellMap(
                objective,
                tuple(_without(self._objectives, k)),
                tuple(_without(self._edges, k)),
                {cell: (elite.member, float(elite.means[k])) for cell, elite in self._grids[k].items()},
            )
            for k, objective in enumerate(self._objectives)
        )

    def _offer(self, elite: _Elite) -> None:
        bins = [cell_of(mean, edges) for mean, edges in zip(elite.means, self._edges, strict=True)]
        for k, grid in enumerate(self._grids):
            cell = tuple(_without(bins, k))
            if cell not in grid or elite.means[k] > grid[cell].means[k]:
                grid[cell] = elite

    def _elites(self) -> dict[str, _Elite]:
        """Return the elites of all grids by id, each once."""
        return {elite.member: elite for grid in self._grids for elite in grid.values()}

    def _stored(self) -> dict[str, _Elite]:
        """Return the elites and the specialists by id, each once."""
        specialists = (self._specialist(k) for k in range(len(self._grids) if self._seeds else 0))
        return self._elites() | {seed.member: seed for seed in specialists}

    def _specialist(self, k: int) -> _Elite:
        """Return the seed with the best mean on objective k; the first of equals."""
        return _best(self._seeds.values(), k)


def _best(elites: Iterable[_Elite], k: int) -> _Elite:
    return max(elites, key=lambda elite: float(elite.means[k]))


def reach(means: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends low < high of an axis for seeds with these `means`, `(seeds,)`."""
    weakest, strongest = float(means.min()), float(means.max())
    low, high = weakest - _MARGIN * abs(weakest), strongest + _MARGIN * abs(strongest)
    return (low, high) if low < high else (weakest, strongest + 1)


def cell_of(mean: float, edges: NDArray[np.float64]) -> int:
    """Return i of the cell (e_i, e_{i+1}] with `mean`, or of the nearest; `edges` is `(cells + 1,)`, increasing."""
    return int(np.clip(np.searchsorted(edges, mean, side="left") - 1, 0, len(edges) - 2))


def elite_weights(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return the elites' weights in the draw of parents, `(elites,)`: the product over axes of low + (high - low)·norm(v).

    `values` is `(elites, axes)`: the quality, and the cell along each axis. `norm` maps the elites' minimum along an axis to
    0 and their maximum to 1. An axis along which all are equal has the factor 1.
    """
    least, span = values.min(axis=0), np.ptp(values, axis=0)
    norm = (values - least) / np.where(span > 0, span, 1)
    return np.asarray(np.where(span > 0, low + (high - low) * norm, 1.0).prod(axis=1))


def _without(items: Sequence[_T], k: int) -> list[_T]:
    return [item for i, item in enumerate(items) if i != k]
