"""choose: one point of a front, by a preference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.results import Candidate, Results


@dataclass(frozen=True, slots=True)
class Preference:
    """How to choose from a front: one of weights, floors, a wish, Tchebycheff weights and the knee, or none of them."""

    weights: Mapping[str, float] | None = None
    floors: Mapping[str, float] | None = None
    best: str | None = None
    """With floors: the objective to maximise."""
    wish: Mapping[str, float] | None = None
    tchebycheff: Mapping[str, float] | None = None
    knee: bool = False

    @property
    def is_set(self) -> bool:
        """Whether there is any preference."""
        return bool(self.weights or self.floors or self.wish or self.tchebycheff or self.knee or self.best)

    def row(self, points: pareto.Points, objectives: Sequence[str]) -> int:
        """Return the preferred row of `points`, `(points, objectives)`; without a preference, that of the best mean.

        The rules are the same for measured and predicted scores: `pareto.pick`, `pareto.knee` and `pareto.tchebycheff`.
        Raises `StudyError` if no point qualifies, or for two preferences.
        """
        alone = {"knee": self.knee, "tchebycheff": self.tchebycheff}
        others = {"weights": self.weights, "floors": self.floors, "wish": self.wish}
        ways = [name for name, way in {**alone, **others}.items() if way]
        if len(ways) > 1 or (self.best is not None and ways and ways[0] in alone):
            several = " and ".join([*ways, *(["best"] if self.best is not None else [])])
            raise StudyError(f"pick: expected one of knee, tchebycheff, weights, floors and wish, got {several}")
        if self.knee:
            return pareto.knee(points)
        if self.tchebycheff:
            return pareto.tchebycheff(points, objectives, self.tchebycheff)
        weights = self.weights if self.is_set else dict.fromkeys(objectives, 1.0)
        return pareto.pick(points, objectives, weights=weights, floors=self.floors, best=self.best, wish=self.wish)


def choose(results: Results, preference: Preference, *, anyway: bool = False) -> Candidate:
    """Return the preferred one of the front's points and the references; without a preference, the one picked by default.

    Estimates from the search split choose (`evomerge.report.estimates`), so the scores on the report split stay unbiased. With
    `anyway`, references are left out: without a preference, the best candidate of the search. Raises `StudyError` if no model
    qualifies, or for two preferences.
    """
    if not preference.is_set:
        return results.model(results.choice.candidate) if anyway else results.pick
    models: list[Candidate] = [*results.front, *(() if anyway else results.references.values())]
    points = np.array([[*model.estimate.values()] for model in models])
    return models[preference.row(points, [objective.name for objective in results.objectives])]
