"""A population of models: the part that all drivers share whose candidates are made of earlier candidates' weights.

The genome is the weights themselves. What a search space's holes hold is only how two parents are crossed, and is drawn
anew for each child. Such a search is a steady state: a child may be asked for at any time, and what it is depends on who
is in the archive then. So it never waits for a generation, and the order in which evaluations arrive matters; a replay of
the same asks and tells restores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge import merging
from evomerge.errors import DriverError, RecipeError
from evomerge.recipe import Recipe
from evomerge.search.driver import latin_hypercube, propose
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal

Scores = NDArray[np.float64]
"""Score of each example, `(examples,)`, or of each member on each example, `(members, examples)`. Higher is better."""

_ROUNDING = 1e-6
"""How far from [0, 1] a float32 cosine or probability may be by rounding."""


class PopulationSettings(BaseModel):
    """What `driver:` has in every study that searches by a population of models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    seeds: Any = "experts"
    """The first candidates: `experts` for all of the pool's, or a list of two or more recipes. A seed from scratch is a
    recipe that adds noise to the base."""
    warm_up: int = Field(default=0, ge=0)
    """So many first children have two different seeds, drawn uniformly, as parents. M2N2's language models had 50."""


@dataclass(frozen=True, slots=True)
class CellMap:
    """One grid of cells, at most one elite in each. Its cells are numbered from 0 along each axis, by rising scores."""

    quality: str
    """What the elites are best at: an objective, or several."""
    axes: tuple[str, ...]
    """The objective of each axis."""
    edges: tuple[Scores, ...]
    """The `(cells + 1,)` rising edges of the cells along each axis."""
    elites: Mapping[tuple[int, ...], tuple[str, float]]
    """Cell → its elite's id and quality."""


class Archive(Protocol):
    """Who is in the population: what one such driver has of its own."""

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the recipes of the members."""
        ...

    @property
    def scores(self) -> Scores:
        """Scores of the members, `(members, examples)`, in the order of `members`."""
        ...

    def insert(self, member: str, vectors: Sequence[Scores]) -> None:
        """Take the candidate in, in another's place perhaps, or not. `vectors` has one `(examples,)` per objective, all finite.

        Raises `DriverError` for scores that it cannot use.
        """
        ...

    def choose(self, rng: np.random.Generator, number: int) -> tuple[str, ...]:
        """Return whom to cross for proposal `number`, in the order of the space's `parents`; it takes the first of them.

        Called after two or more candidates were offered.
        """
        ...

    def special(self, number: int) -> Recipe | None:
        """Return the recipe of proposal `number` where that is not to be a child, else None."""
        ...

    def maps(self) -> tuple[CellMap, ...]:
        """Return the cells, for an archive that has some, as they are now."""
        ...


class Population:
    """A `Driver` that evaluates the seeds and then, for ever, crosses members of an `Archive`.

    What proposal n is depends on the archive and on the generator keyed by (seed, n) alone: that chooses the parents and
    then draws the holes of the space uniformly. An evaluation that failed, or has a score that is not finite, is dropped.
    """

    def __init__(
        self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: PopulationSettings, archive: Archive
    ) -> None:
        """Fill `archive` with what `space` makes of its members. Raises `DriverError` for seeds that cannot be."""
        self._space = space
        self._objectives = tuple(objectives)
        self._seed = seed
        self._seeds = read_seeds(settings, space)
        self._warm_up = settings.warm_up
        self._archive = archive
        self._asked = 0
        self._flying: set[int] = set()
        self._usable: list[str] = []  # ids of the seeds that could be evaluated
        self._failure = ""  # what the last evaluation that failed said

    def __str__(self) -> str:
        warm_up = f", {self._warm_up} children of seeds first" if self._warm_up else ""
        return f"{self._archive}, from {len(self._seeds)} seeds{warm_up}"

    def ask(self) -> Proposal | None:
        """Return the next seed or child, or None while there are not yet two seeds to cross.

        Raises `DriverError` when all seeds have been evaluated and fewer than two of them could be: it would be wrong to
        end the search without a word.
        """
        number, seeds = self._asked, len(self._seeds)
        if number < seeds:
            proposal = Proposal(number, self._seeds[number])
        elif len(self._usable) >= 2:
            proposal = self._child(number, self._usable if number < seeds + self._warm_up else None)
        elif self._flying:
            return None
        else:
            msg = (
                f"driver: {len(self._usable)} of {seeds} seeds could be evaluated, and it takes two to cross; "
                f"the last that failed: {self._failure}; mend that, or give other `seeds`"
            )
            raise DriverError(msg)
        self._asked += 1
        self._flying.add(number)
        return proposal

    def _child(self, number: int, seeds: Sequence[str] | None) -> Proposal:
        """Return a child of members, or of two of the `seeds`, or what the archive wants instead."""
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
        """Offer the candidate to the archive.

        Raises `DriverError` for a proposal that is not in flight, and for scores that the archive cannot use.
        """
        if proposal.number not in self._flying:
            msg = f"proposal {proposal.number} is not in flight; expected one of {sorted(self._flying)}, each told once"
            raise DriverError(msg)
        self._flying.remove(proposal.number)
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
        """Return the ids of the archive's members and, until the warm-up has been asked for, of the seeds."""
        warming = self._usable if self._asked < len(self._seeds) + self._warm_up else ()
        return tuple(dict.fromkeys((*self._archive.members, *warming)))

    def maps(self) -> tuple[CellMap, ...]:
        """Return the archive's cells, if it has some, as they are now."""
        return self._archive.maps()

    def diagnostics(self) -> dict[str, float]:
        """Return how well the population covers the examples; nothing before there is a member.

        `coverage` is the mean over examples of the best member's score: of binary scores, the share of examples that
        some member solves. `entropy` is the mean over examples of the binary entropy, in bits, of the population's mean
        score: 0 where all agree, 1 where half of the members solve each example. Scores outside of [0, 1] have none.
        """
        scores = self._archive.scores
        if not len(scores):
            return {}
        found = {"coverage": float(scores.max(axis=0).mean())}
        if _in_unit(scores):
            rate = np.clip(scores.mean(axis=0), 0, 1)
            shares = np.stack([rate, 1 - rate])
            bits = -shares * np.log2(np.maximum(shares, 1e-300))  # 0·log 0 is 0
            found["entropy"] = float(bits.sum(axis=0).mean())
        return found


def draw(rng: np.random.Generator, weights: Scores, without: int | None = None) -> int:
    """Return an index of `weights` (0 or more), in proportion to them; any, with equal chances, where all are 0.

    Never the index `without`, unless there is no other.
    """
    allowed = [i for i in range(len(weights)) if i != without] or [0]
    weights = weights[allowed]
    total = weights.sum()
    return allowed[int(rng.choice(len(allowed), p=weights / total if total > 0 else None))]


def check_unit(objectives: Sequence[str], vectors: Sequence[Scores], instead: str) -> None:
    """Raise `DriverError`, which ends in what to do `instead`, unless all scores are in [0, 1]."""
    for name, vector in zip(objectives, vectors, strict=True):
        if not _in_unit(vector):
            msg = (
                f"driver: scores of `{name}` are in [{vector.min():g}, {vector.max():g}], and members compete by scores "
                f"in [0, 1]; give the task `{name.partition('/')[0]}` a `search_metric` that has them, such as accuracy{instead}"
            )
            raise DriverError(msg)


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
            msg = f"{where}: {error}"
            raise DriverError(msg) from None
        if seeds[-1].members:
            msg = f"{where}: {seeds[-1].json} names an earlier candidate, and before the seeds there is none"
            raise DriverError(msg)
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        texts = ", ".join(seed.json for seed in seeds) or "none"
        msg = f"{where}: expected two or more different recipes, got {texts}"
        raise DriverError(msg)
    return tuple(seeds)
