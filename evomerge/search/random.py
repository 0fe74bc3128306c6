"""Random search: the baseline that every other driver must beat. It never waits."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from evomerge.search.driver import known_recipes, latin_hypercube, propose
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal


class RandomSettings(BaseModel):
    """`driver:` of a study that searches at random."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["random"] = "random"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first."""


class Random:
    """Uniform random search. Proposal n is a function of the seed and n alone, so it waits for nothing."""

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: RandomSettings) -> None:
        """Search `space`, whatever the objectives are."""
        self._space = space
        self._seed = seed
        self._known = list(known_recipes(space)) if settings.seed_known else []
        self._asked = 0

    def __str__(self) -> str:
        return f"random search, after {len(self._known)} known recipes"

    def ask(self) -> Proposal:
        """Return the next known recipe, or a uniform draw from the box."""
        number = self._asked
        self._asked += 1
        if number < len(self._known):
            return propose(self._space, number, self._known[number])
        rng = np.random.default_rng([self._seed, number])
        return propose(self._space, number, latin_hypercube(self._space, 1, rng)[0])

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Learn nothing."""

    def members(self) -> tuple[str, ...]:
        """Return nothing: a candidate is made of its genome alone."""
        return ()
