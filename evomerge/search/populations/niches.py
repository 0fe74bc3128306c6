"""M2N2 (Abrantes, Lange & Tang, GECCO 2025, arXiv 2508.16204): members compete for examples, and are attracted to mates.

An example is a niche. What it gives is shared among all who score on it, so that what nobody else can do is worth most,
and a member that is mediocre over all survives by what it alone can.
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
    """Members of the archive. A small one learns faster and then stalls: scale it with the number of evaluations."""
    alpha: float = Field(default=1.0, ge=0, le=4)
    """Strength of the competition: at 0 an example gives as much to each, whoever else has it (a plain genetic algorithm);
    above 1 what a crowd shares is less than what one would have."""
    matchmaker: bool = True
    """Choose the second parent by what it can do and the first cannot. Otherwise both by their fitness, with replacement."""
    relative: bool = False
    """Let a score be what it is above the population's worst on that example: for scores without a scale, such as
    log-likelihoods. Otherwise all scores must be in [0, 1]."""


class Niches:
    """An `Archive` of fixed size that every new candidate competes with.

    With scores s (member i, example j), z_j = Σ_i s_ij and the capacity c_j = max_i s_ij (eqs. 1-4 of the paper):

        fitness     f_i = Σ_j c_j s_ij / z_j^alpha
        attraction  g(A, B) = Σ_j c_j / z_j max(s_Bj - s_Aj, 0)

    Of binary scores the paper has c_j = 1, which is the same: where no member scores, nothing is given. There z_j = 0, and
    a term is 0. Objectives are set end to end: each counts by its number of examples.
    """

    def __init__(self, objectives: Sequence[str], settings: NichesSettings) -> None:
        """Start with nobody."""
        self._objectives = tuple(objectives)
        self._settings = settings
        self._ids: list[str] = []
        self._rows: Scores = np.empty((0, 0))  # a row for each member, and a last one for who comes next

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
        """Take the candidate in; where the archive is full, in place of whoever is then the least fit, itself perhaps.

        All compete, the candidate with them. Of the least fit the first goes, and the candidate counts as the last.
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
        """Return a member drawn by fitness, and one drawn by the first one's attraction to it.

        Where nobody can do what the first cannot, the second is another one drawn by fitness.
        """
        scores = self._above(self.scores)
        fit = fitness(scores, self._settings.alpha)
        first = draw(rng, fit)
        if not self._settings.matchmaker:
            return self._ids[first], self._ids[draw(rng, fit)]
        pull = attraction(scores, first)
        second = draw(rng, pull if pull.any() else fit, without=first)
        return self._ids[first], self._ids[second]

    def special(self, number: int) -> None:
        """Return nothing: every proposal after the seeds is a child."""

    def maps(self) -> tuple[CellMap, ...]:
        """Return nothing: there are no cells."""
        return ()

    def _above(self, scores: Scores) -> Scores:
        return scores - scores.min(axis=0) if self._settings.relative else scores


def fitness(scores: Scores, alpha: float) -> Scores:
    """Return Σ_j c_j s_ij / z_j^alpha of each member, `(members,)`."""
    return _sums(scores, _worth(scores, alpha))


def attraction(scores: Scores, first: int) -> Scores:
    """Return Σ_j c_j / z_j max(s_Bj - s_Aj, 0) of the member A = `first` to each member B, itself with 0, `(members,)`."""
    gain = np.maximum(scores, scores[first])
    gain -= scores[first]
    return _sums(gain, _worth(scores, 1))


def _worth(scores: Scores, alpha: float) -> Scores:
    """Return c_j / z_j^alpha, `(examples,)`; 0 where no member scores."""
    total = scores.sum(axis=0)
    worth: Scores = scores.max(axis=0) / np.where(total > 0, total, 1) ** alpha
    return worth


def _sums(scores: Scores, worth: Scores) -> Scores:
    """Return Σ_j of each row, `(members,)`. Not by BLAS: equal rows must have equal sums, wherever they stand."""
    sums: Scores = (scores * worth).sum(axis=1)
    return sums
