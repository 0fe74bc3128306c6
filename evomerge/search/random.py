"""Random search: the baseline for every other driver."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel

from evomerge.search.driver import known_recipes, latin_hypercube, propose
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal


class RandomSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches at random."""

    kind: Literal["random"] = "random"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first."""
    mixtures: bool = False
    """Draw every other candidate, the first of them too, as a mixture, where the space has weights of experts
    (`SearchSpace.weights`). New studies do so by default."""


class Random:
    """Uniform random search. Proposal n depends only on the seed and n, so `ask` never returns None."""

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: RandomSettings) -> None:
        """Search `space`; the objectives are not used."""
        self._space = space
        self._seed = seed
        self._known = known_recipes(space, settings.seed_known)
        self._mixtures = settings.mixtures and space.weights is not None
        self._asked = 0

    def __str__(self) -> str:
        half = ", every other candidate a mixture" if self._mixtures else ""
        return f"random search, after {len(self._known)} known recipes{half}"

    def ask(self) -> Proposal:
        """Return the next known recipe, then uniform draws from the box, or in turns mixtures and such draws."""
        number = self._asked
        self._asked += 1
        if number < len(self._known):
            return propose(self._space, number, self._known[number])
        rng = np.random.default_rng([self._seed, number])
        genome = latin_hypercube(self._space, 1, rng)[0]
        mixed = self._mixtures and (number - len(self._known)) % 2 == 0
        return propose(self._space, number, self._space.mixed(genome) if mixed else genome)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Ignore the evaluation."""

    def members(self) -> tuple[str, ...]:
        """Return no ids: genomes decode to merges of the pool's models."""
        return ()
