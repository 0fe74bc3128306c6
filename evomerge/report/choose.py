"""choose: one point of a front, by what somebody wants of it."""

from collections.abc import Mapping

import numpy as np

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.results import Candidate, Results
from evomerge.study import Study


def choose(
    study: Study,
    results: Results,
    *,
    weights: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    best: str | None = None,
    wish: Mapping[str, float] | None = None,
    knee: bool = False,
) -> Candidate:
    """Return the front's point that is wanted; without a preference, the one picked by default.

    Scores on the search split choose, so that those on the report split stay a fair judgement: weights and the knee
    compare the searched metric; floors and wishes are in units of the reported metric, and so compare that one.
    Raises `StudyError` if no point satisfies, or if two preferences are given.
    """
    parts = study.parts
    names = list(parts.tasks)
    if not (weights or floors or wish or knee or best):
        return next(point for point in results.front if point.recipe_id == results.picked)
    found = {proposal.recipe.id: evaluation for proposal, evaluation in study.population() if evaluation.error is None}
    columns = parts.reported if floors or wish else parts.searched
    missing = [name for name in columns if any(name not in found[point.recipe_id].scores for point in results.front)]
    if missing:
        msg = (
            f"pick: `{missing[0]}` was not measured on the search examples, so it cannot choose; use weights or the knee, "
            "which compare what was searched, or search that metric"
        )
        raise StudyError(msg)
    points = np.array([found[point.recipe_id].means(columns) for point in results.front])
    if knee:
        if weights or floors or wish or best:
            msg = "pick: expected one of knee, weights, floors and wish, got the knee and another one"
            raise StudyError(msg)
        return results.front[pareto.knee(points)]
    return results.front[pareto.pick(points, names, weights=weights, floors=floors, best=best, wish=wish)]
