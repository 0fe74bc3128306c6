"""M2N2 (Abrantes, Lange & Tang, GECCO 2025, arXiv 2508.16204): competition for examples, and attraction between parents.

Each example is a niche: a limited resource that is shared among the members that score on it. A member that solves examples
which no other member solves survives even with a low mean score.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.search.populations.population import CellMap, PopulationSettings, Scores, check_unit, draw


class NichesSettings(PopulationSettings):
    """`driver:` of a study that searches by natural niches."""

    kind: Literal["niches"] = "niches"
    population: int = Field(default=20, ge=2)
    """Size of the archive. A small one learns faster and then stalls: scale it with the number of evaluations."""
    alpha: float = Field(default=1.0, ge=0, le=4)
    """Strength of the competition: at 0 there is none (a plain genetic algorithm); above 1 the total reward of an example
    decreases with the number of members that share it."""
    matchmaker: bool = True
    """Draw the second parent by the first one's attraction to it. Otherwise draw both by fitness, with replacement."""
    relative: bool = False
    """Subtract the population's worst score on each example: for scores on no fixed scale, such as log-likelihoods. Otherwise
    all scores must be in [0, 1]."""


class Niches:
    """An `Archive` of fixed size, from which the least fit member is removed.

    With scores s (member i, example j), z_j = Σ_i s_ij and the capacity c_j = max_i s_ij (eqs. 1-4 of the paper):

        fitness     f_i = Σ_j c_j s_ij / z_j^alpha
        attraction  g(A, B) = Σ_j c_j / z_j max(s_Bj - s_Aj, 0)

    For binary scores the paper has c_j = 1, which is equivalent: terms with z_j = 0 are 0 here. The examples of all objectives
    are concatenated, so each objective counts by its number of examples.
    """

    def __init__(self, objectives: Sequence[str], settings: NichesSettings) -> None:
        """Start with an empty archive."""
        self._objectives = tuple(objectives)
        self._settings = settings
        self._ids: list[str] = []
        self._rows: Scores = np.empty((0, 0))  # one row per member, and a last one for the candidate

    def __str__(self) -> str:
        settings = self._settings
        by = "attraction" if settings.matchmaker else "fitness"
        return f"natural niches (M2N2), {settings.population} members, alpha {settings.alpha:g}, mates by {by}"

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the members, by row."""
        return tuple(self._ids)

    @property
    def scores(self) -> Scores:
        """Scores of the members, `(members, examples)`; to be read only."""
        return self._rows[: len(self._ids)]

    def insert(self, member: str, vectors: Sequence[Scores]) -> None:
        """Add the candidate; if the archive is full, remove the least fit, which may be the candidate.

        The fitness of all includes the candidate's competition. Of equals the first is removed; the candidate is the last.
        """
        if not self._settings.relative:
            check_unit(self._objectives, vectors, " (or type `relative: true` under `driver`)")
        count, row = len(self._ids), np.concatenate(vectors)
        if not count:
            self._rows = np.empty((self._settings.population + 1, len(row)))
        self._rows[count] = row
        if count < self._settings.population:
            self._ids.append(member)
            return
        worst = int(np.argmin(fitness(self._above(self._rows), self._settings.alpha)))
        if worst < count:
            self._rows[worst] = row
            self._ids[worst] = member

    def choose(self, rng: np.random.Generator, number: int) -> tuple[str, str]:
        """Return a member drawn by fitness, and another by the first one's attraction to it, or by fitness if all are 0."""
        scores = self._above(self.scores)
        fit = fitness(scores, self._settings.alpha)
        first = draw(rng, fit)
        if not self._settings.matchmaker:
            return self._ids[first], self._ids[draw(rng, fit)]
        pulls = attraction(scores, first)
        second = draw(rng, pulls if pulls.any() else fit, without=first)
        return self._ids[first], self._ids[second]

    def special(self, number: int) -> None:
        """Return None: every proposal after the seeds is a child."""

    def maps(self) -> tuple[CellMap, ...]:
        """Return no grids: there are no cells."""
        return ()

    def _above(self, scores: Scores) -> Scores:
        return scores - scores.min(axis=0) if self._settings.relative else scores


def fitness(scores: Scores, alpha: float) -> Scores:
    """Return Σ_j c_j s_ij / z_j^alpha of each member, `(members,)`, of `scores`, `(members, examples)`."""
    return _sums(scores, _rewards(scores, alpha))


def attraction(scores: Scores, first: int) -> Scores:
    """Return Σ_j c_j / z_j max(s_Bj - s_Aj, 0) of the member A = `first` to each member B, itself with 0, `(members,)`."""
    gain = np.maximum(scores, scores[first])
    gain -= scores[first]
    return _sums(gain, _rewards(scores, 1))


def _rewards(scores: Scores, alpha: float) -> Scores:
    """Return c_j / z_j^alpha, `(examples,)`; 0 where no member scores."""
    total = scores.sum(axis=0)
    return np.asarray(scores.max(axis=0) / np.where(total > 0, total, 1) ** alpha)


def _sums(scores: Scores, rewards: Scores) -> Scores:
    """Return the weighted sum of each row, `(members,)`. Not by BLAS: equal rows must have equal sums at any position."""
    return np.asarray((scores * rewards).sum(axis=1))
