"""choose: one point of a front, by what somebody wants of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.results import Candidate, Results
from evomerge.study import Study


@dataclass(frozen=True, slots=True)
class Preference:
    """What somebody wants of a front: one of weights, floors, a wish, Tchebycheff weights and the knee, or nothing."""

    weights: Mapping[str, float] | None = None
    floors: Mapping[str, float] | None = None
    best: str | None = None
    """With floors: the objective to be best in."""
    wish: Mapping[str, float] | None = None
    tchebycheff: Mapping[str, float] | None = None
    knee: bool = False

    @property
    def is_set(self) -> bool:
        """Whether anything is wanted."""
        return bool(self.weights or self.floors or self.wish or self.tchebycheff or self.knee or self.best)

    def row(self, points: pareto.Points, objectives: Sequence[str]) -> int:
        """Return the row of `points`, `(points, objectives)`, that is wanted; without a preference, the best mean.

        Measured and predicted scores are chosen by the same rules: see `pareto.pick`, `pareto.knee` and `pareto.tchebycheff`.
        Raises `StudyError` if no point satisfies, or if two preferences are given.
        """
        alone = {"knee": self.knee, "tchebycheff": self.tchebycheff}
        others = {"weights": self.weights, "floors": self.floors, "wish": self.wish}
        ways = [name for name, way in {**alone, **others}.items() if way]
        if len(ways) > 1 or (self.best is not None and ways and ways[0] in alone):
            found = " and ".join([*ways, *(["best"] if self.best is not None else [])])
            msg = f"pick: expected one of knee, tchebycheff, weights, floors and wish, got {found}"
            raise StudyError(msg)
        if self.knee:
            return pareto.knee(points)
        if self.tchebycheff:
            return pareto.tchebycheff(points, objectives, self.tchebycheff)
        weights = self.weights if self.is_set else dict.fromkeys(objectives, 1.0)
        return pareto.pick(points, objectives, weights=weights, floors=self.floors, best=self.best, wish=self.wish)


def choose(study: Study, results: Results, preference: Preference) -> Candidate:
    """Return the front's point that is wanted; without a preference, the one picked by default.

    Scores on the search split choose, so that those on the report split stay a fair judgement: weights, Tchebycheff and
    the knee compare the searched metric; floors and wishes are in units of the reported metric, and so compare that one.
    Raises `StudyError` if no point satisfies, or if two preferences are given.
    """
    parts = study.parts
    if not preference.is_set:
        return next(point for point in results.front if point.recipe_id == results.picked)
    found = {proposal.recipe.id: evaluation for proposal, evaluation in study.population() if evaluation.error is None}
    columns = parts.reported if preference.floors or preference.wish else parts.searched
    missing = [name for name in columns if any(name not in found[point.recipe_id].scores for point in results.front)]
    if missing:
        msg = (
            f"pick: `{missing[0]}` was not measured on the search examples, so it cannot choose; use weights or the knee, "
            "which compare what was searched, or search that metric"
        )
        raise StudyError(msg)
    points = np.array([found[point.recipe_id].means(columns) for point in results.front])
    return results.front[preference.row(points, list(parts.tasks))]
