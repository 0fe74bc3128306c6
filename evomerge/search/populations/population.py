"""A population of models: the common part of all drivers whose candidates are merges of earlier candidates.

What evolves is the weights themselves; the holes of the search space are the parameters of the crossover, drawn anew for each
child. The search is steady-state: a child can be asked for at any time, and depends on the archive at that time. It never
waits for a generation, and the order in which evaluations arrive changes it; a replay of the same asks and tells restores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evomerge import merging
from evomerge.errors import DriverError, RecipeError
from evomerge.recipe import Recipe
from evomerge.recipe.validation import FrozenModel
from evomerge.search.driver import check_in_flight, latin_hypercube, propose
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal

Scores = NDArray[np.float64]
"""Score of each example, `(examples,)`, or of each member on each example, `(members, examples)`. Higher is better."""

_ROUNDING = 1e-6
"""Largest distance from [0, 1] of a float32 cosine or probability by rounding."""


class PopulationSettings(FrozenModel):
    """`driver:` settings of all drivers with a population of models."""

    kind: str
    seeds: Any = "experts"
    """The first candidates: `experts` for all experts of the pool, or a list of two or more recipes. A seed from scratch is
    a recipe that adds noise to the base."""
    warm_up: int = Field(default=0, ge=0)
    """Number of first children whose parents are two different seeds, drawn uniformly. 50 in M2N2's language models."""


@dataclass(frozen=True, slots=True)
class CellMap:
    """A grid of cells with at most one elite each. Cells are numbered from 0 along each axis, by increasing scores."""

    quality: str
    """The objective or objectives that elites are compared by."""
    axes: tuple[str, ...]
    """The objective of each axis."""
    edges: tuple[Scores, ...]
    """The increasing edges of the cells along each axis, `(cells + 1,)`."""
    elites: Mapping[tuple[int, ...], tuple[str, float]]
    """Cell → id and quality of its elite."""


class Archive(Protocol):
    """The members of a population and their selection: the part of a `Population` that differs between algorithms."""

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the recipes of the members."""
        ...

    @property
    def scores(self) -> Scores:
        """Scores of the members, `(members, examples)`, in the order of `members`."""
        ...

    def insert(self, member: str, vectors: Sequence[Scores]) -> None:
        """Offer the candidate, which may replace a member or be rejected. `vectors`: one `(examples,)` per objective, finite.

        Raises `DriverError` for scores outside of the archive's range.
        """
        ...

    def choose(self, rng: np.random.Generator, number: int) -> tuple[str, ...]:
        """Return the parents of proposal `number`, in the order of the space's `parents`, which may take fewer.

        Called after two or more candidates were offered.
        """
        ...

    def special(self, number: int) -> Recipe | None:
        """Return the recipe of proposal `number` if it is not a child, else None."""
        ...

    def maps(self) -> tuple[CellMap, ...]:
        """Return the current grids; none for an archive without cells."""
        ...


class Population:
    """A `Driver` that evaluates the seeds and then crosses members of an `Archive`, without end.

    Proposal n depends only on the archive and on the generator keyed by (seed, n), which chooses the parents and then draws
    the genes of the space uniformly. Failed evaluations and scores that are not finite are dropped.
    """

    def __init__(
        self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: PopulationSettings, archive: Archive
    ) -> None:
        """Fill the `archive` with children in `space` of its members. Raises `DriverError` for invalid seeds."""
        self._space = space
        self._objectives = tuple(objectives)
        self._seed = seed
        self._seeds = read_seeds(settings, space)
        self._warm_up = settings.warm_up
        self._archive = archive
        self._asked = 0
        self._pending: set[int] = set()
        self._usable: list[str] = []  # ids of the seeds evaluated without an error
        self._failure = ""  # the last error

    def __str__(self) -> str:
        warm_up = f", {self._warm_up} children of seeds first" if self._warm_up else ""
        return f"{self._archive}, from {len(self._seeds)} seeds{warm_up}"

    def ask(self) -> Proposal | None:
        """Return the next seed or child, or None while fewer than two seeds are evaluated.

        Raises `DriverError` if all seeds have been evaluated and fewer than two without an error.
        """
        number, seeds = self._asked, len(self._seeds)
        if number < seeds:
            proposal = Proposal(number, self._seeds[number])
        elif len(self._usable) >= 2:
            proposal = self._child(number, self._usable if number < seeds + self._warm_up else None)
        elif self._pending:
            return None
        else:
            raise DriverError(
                f"driver: {len(self._usable)} of {seeds} seeds could be evaluated, and a crossover takes two; "
                f"the last error: {self._failure}; fix its cause, or give other `seeds`"
            )
        self._asked += 1
        self._pending.add(number)
        return proposal

    def _child(self, number: int, seeds: Sequence[str] | None) -> Proposal:
        """Return the archive's special proposal or else a child of members, or of two of the `seeds`."""
        special = self._archive.special(number)
        if special is not None:
            return Proposal(number, special)
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, number]))
        parents = self._archive.choose(rng, number)
        if seeds is not None:
            one, other = rng.choice(len(seeds), 2, replace=False)
            parents = seeds[one], seeds[other], *parents[2:]
        crossed = parents[: len(self._space.parents)]
        return propose(self._space, number, latin_hypercube(self._space, 1, rng)[0], crossed)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Offer the candidate to the archive. Raises `DriverError` for a proposal not in flight, and scores out of range."""
        check_in_flight(proposal, self._pending)
        self._pending.remove(proposal.number)
        if evaluation.error is not None:
            self._failure = evaluation.error
            return
        vectors = [evaluation.scores[name].astype(np.float64) for name in self._objectives]
        if not all(np.isfinite(vector).all() for vector in vectors):
            self._failure = "a score is not finite"
            return
        self._archive.insert(proposal.recipe.id, vectors)
        if proposal.number < len(self._seeds):
            self._usable.append(proposal.recipe.id)

    def members(self) -> tuple[str, ...]:
        """Return the ids of the archive's members and, until the end of the warm-up, of the seeds."""
        warming = self._usable if self._asked < len(self._seeds) + self._warm_up else ()
        return tuple(dict.fromkeys((*self._archive.members, *warming)))

    def maps(self) -> tuple[CellMap, ...]:
        """Return the archive's current grids; none for an archive without cells."""
        return self._archive.maps()

    def diagnostics(self) -> dict[str, float]:
        """Return how well the population covers the examples; nothing for an empty archive.

        `coverage` is the mean over examples of the best member's score: for binary scores, the share of examples solved by
        some member. `entropy` is the mean over examples of the binary entropy, in bits, of the population's mean score: 0 if
        all members agree, 1 if half of them solve each example. Scores outside of [0, 1] have none.
        """
        scores = self._archive.scores
        if not len(scores):
            return {}
        figures = {"coverage": float(scores.max(axis=0).mean())}
        if _in_unit(scores):
            rate = np.clip(scores.mean(axis=0), 0, 1)
            shares = np.stack([rate, 1 - rate])
            bits = -shares * np.log2(np.maximum(shares, 1e-300))  # 0·log 0 is 0
            figures["entropy"] = float(bits.sum(axis=0).mean())
        return figures


def draw(rng: np.random.Generator, weights: Scores, without: int | None = None) -> int:
    """Return an index drawn by `weights` (0 or more), or uniformly if all are 0; never `without`, unless it is the only one."""
    allowed = [i for i in range(len(weights)) if i != without] or [0]
    weights = weights[allowed]
    total = weights.sum()
    return allowed[int(rng.choice(len(allowed), p=weights / total if total > 0 else None))]


def check_unit(objectives: Sequence[str], vectors: Sequence[Scores], instead: str) -> None:
    """Raise `DriverError`, ending with what to do `instead`, unless all scores are in [0, 1]."""
    for name, vector in zip(objectives, vectors, strict=True):
        if not _in_unit(vector):
            raise DriverError(
                f"driver: scores of `{name}` are in [{vector.min():g}, {vector.max():g}], and members compete by scores "
                f"in [0, 1]; set the `search_metric` of the task `{name.partition('/')[0]}` to one in [0, 1], such as accuracy{instead}"
            )


def _in_unit(scores: Scores) -> bool:
    return bool(scores.min() >= -_ROUNDING and scores.max() <= 1 + _ROUNDING)


def read_seeds(settings: PopulationSettings, space: SearchSpace) -> tuple[Recipe, ...]:
    """Return the recipes of the seeds. Raises `DriverError`."""
    where = f"driver `{settings.kind}` `seeds`"
    experts = space.experts
    data = [{"expert": name} for name in experts] if settings.seeds == "experts" else settings.seeds
    if not isinstance(data, list):
        msg = f"{where}: expected `experts` or a list of recipes, such as [{{expert: NAME}}, base]; got {data!r}"
        raise DriverError(msg)
    seeds = []
    for entry in data:
        try:
            seeds.append(Recipe.parse(entry, experts=experts))
            merging.check(seeds[-1])
        except RecipeError as error:
            raise DriverError(f"{where}: {error}") from None
        if seeds[-1].members:
            msg = f"{where}: {seeds[-1].json} names an earlier candidate, and there is none before the seeds"
            raise DriverError(msg)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        texts = ", ".join(seed.json for seed in seeds) or "none"
        raise DriverError(f"{where}: expected two or more different recipes, got {texts}")
    return tuple(seeds)
