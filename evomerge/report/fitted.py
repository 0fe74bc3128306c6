"""fitted: how well the pick's score holds beyond the examples that it was fitted to. Not to be confused with its estimates."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evomerge.history import Completed
from evomerge.parts import Parts
from evomerge.report.results import Fitted


def fitted(
    parts: Parts, population: Completed, recipe_id: str, unseen: Mapping[str, NDArray[np.float32]]
) -> Fitted | None:
    """Return the mean searched scores of a model by what its search did with the examples.

    None unless the search had slopes of this candidate, and the tasks are searched by one metric. `unseen` are its scores by
    objective on the examples that judge it.
    """
    metrics = {task.search_metric for task in parts.tasks.values()}
    found = next(((p, e) for p, e in population if p.recipe.id == recipe_id and p.slopes and e.error is None), None)
    if found is None or len(metrics) > 1:
        return None
    proposal, evaluation = found
    assert proposal.slopes is not None
    parts_of: tuple[list[float], list[float]] = ([], [])
    for task, objective in zip(parts.tasks, parts.searched, strict=True):
        scores = evaluation.scores[objective].astype(np.float64)
        inside = np.isin(np.arange(len(scores)), proposal.slopes.get(task, ()))
        for means, chosen in zip(parts_of, (scores[inside], scores[~inside]), strict=True):
            if len(chosen):
                means.append(float(chosen.mean()))
    with_slopes, without = (float(np.mean(means)) if means else None for means in parts_of)
    known = [unseen[objective].mean(dtype=np.float64) for objective in parts.searched if objective in unseen]
    return Fitted(
        metric=metrics.pop(),
        slopes=with_slopes,
        others=without,
        unseen=float(np.mean(known)) if len(known) == len(parts.searched) else None,
    )
