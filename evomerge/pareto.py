"""Fronts: dominance, hypervolume, the knee, and picking one point.

One type and one sign everywhere: points are float64 `(points, objectives)`, and higher is better. A point
with a number that is not finite (a failed evaluation) is on no front and adds no hypervolume. Thin over
moocore.
"""

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import StudyError, nearest

Points = NDArray[np.float64]

_AUGMENTED = 0.01
"""Weight of the sum in the augmented Tchebycheff distance: so little that it only tells points of one worst gap apart."""


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points are on the front, bool `(points,)`: those that no other point dominates.

    A point dominates another if it is as high in every objective and higher in one. So of points that are
    equal in all, every one is on the front, or none.
    """
    values = _points(points)
    mask: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    if mask.any():
        mask[mask] = moocore.is_nondominated(values[mask], maximise=True, keep_weakly=True)
    return mask


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that `points` dominate above `reference`, `(objectives,)`.

    Its unit is the product of the objectives' units. Points that are not above the reference in every
    objective add nothing; without others it is 0.
    """
    values, corner = _points(points), _reference(points, reference)
    above = _above(values, corner)
    return float(moocore.hypervolume(values[above], ref=corner, maximise=True)) if above.any() else 0.0


def hypervolume_history(points: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Return the hypervolume of the first 1, 2, … points, `(points,)`. Dominated points cost nothing."""
    values, corner = _points(points), _reference(points, reference)
    history = np.zeros(len(values))
    front = values[:0]
    volume = 0.0
    for i, (point, above) in enumerate(zip(values, _above(values, corner), strict=True)):
        if above and not (front >= point).all(axis=1).any():
            front = np.concatenate([front[~(point >= front).all(axis=1)], point[None]])
            volume = float(moocore.hypervolume(front, ref=corner, maximise=True))
        history[i] = volume
    return history


def subset(points: ArrayLike, reference: ArrayLike, size: int) -> NDArray[np.intp]:
    """Return the indices of at most `size` points that keep much of the hypervolume, the first chosen first.

    Greedy: each next point is the one that adds most, ties to the first; at least 1 - 1/e of the best
    choice's volume (hypervolume is submodular). Stops early when nothing adds to it.
    """
    values, corner = _points(points), _reference(points, reference)
    chosen: list[int] = []
    volume = 0.0
    left = [int(i) for i in np.flatnonzero(nondominated(values) & _above(values, corner))]
    while left and len(chosen) < size:
        volumes = [hypervolume(values[[*chosen, i]], corner) for i in left]
        best = int(np.argmax(volumes))
        if volumes[best] <= volume:
            break
        volume = volumes[best]
        chosen.append(left.pop(best))
    return np.array(chosen, dtype=np.intp)


def knee(points: ArrayLike) -> int:
    """Return the index of the front's knee: the best mean of objectives, each scaled to the front's range.

    For two objectives that is the point farthest above the line between the two ends (Das 1999). A front that
    bends inwards has no such point: then it is an end. An objective in which the whole front is equal does
    not count. Ties go to the first. Raises `StudyError` if there is no finite point.
    """
    values = _points(points)
    front = _front(values)
    return int(front[np.argmax(_scale(values[front], values[front]).mean(axis=1))])


def tchebycheff(points: ArrayLike, objectives: Sequence[str], weights: Mapping[str, float]) -> int:
    """Return the index of the point whose augmented weighted Tchebycheff distance to the ideal is least.

        max over t of w_t g_t + 0.01 Σ g_t,   g_t = (ideal_t - y_t) / range of t over the front,

    with the ideal the front's best in each objective (Steuer & Choo 1983), and weights that are made to sum to 1; those
    left out weigh 0. Other than by a weighted sum, every point of a front is the nearest for some weights, where it bends
    inwards too. Ties go to the first. Raises `StudyError`.
    """
    for name, weight in weights.items():
        if name not in objectives:
            msg = f"pick: unknown objective `{name}`; {nearest(name, objectives)}"
            raise StudyError(msg)
        if not (np.isfinite(weight) and weight >= 0):
            msg = f"pick: Tchebycheff weight {name}={weight:g}; expected a number of 0 or more"
            raise StudyError(msg)
    shares = np.array([weights.get(name, 0.0) for name in objectives])
    if not shares.any():
        msg = f"pick: all Tchebycheff weights are 0; expected at least one above 0, such as {objectives[0]}=1"
        raise StudyError(msg)
    values = _points(points)
    rows = _front(values)
    front = values[rows]
    distances = tchebycheff_distances(front, front.max(axis=0), _span(front), shares / shares.sum())
    return int(rows[distances.argmin()])


def tchebycheff_distances(
    points: Points, ideal: NDArray[np.float64], units: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return max over t of w_t g_t + 0.01 Σ g_t, g_t = (ideal_t - y_t) / units_t, of points `(points, objectives)`: `(points,)`.

    The weights w are `shares`, together 1; those, `ideal` and `units` are `(objectives,)`.
    """
    gaps = (ideal - points) / units
    return np.asarray((shares * gaps).max(axis=1) + _AUGMENTED * gaps.sum(axis=1))


def pick(
    points: ArrayLike,
    objectives: Sequence[str],
    *,
    weights: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    best: str | None = None,
    wish: Mapping[str, float] | None = None,
) -> int:
    """Return the index of the one point of the front that a user wants.

    It takes exactly one of

    - `weights`: the largest weighted sum of the scores as they are; objectives left out weigh 0;
    - `floors`: among the points with at least these scores, the `best` in that objective; without `best`, in
      the mean of the objectives that have no floor (of all, if each has one);
    - `wish`: the nearest to these scores, by Euclidean distance in units of the front's range, over the
      objectives named.

    Ties go to the point with the higher mean of all scores, then to the first. Raises `StudyError` for an
    unknown objective, and for floors that no point reaches, naming the point that comes nearest.
    """
    values = _points(points)
    given = {"weights": weights, "floors": floors, "wish": wish}
    ways = [name for name, way in given.items() if way]
    if len(ways) != 1:
        msg = f"pick: expected exactly one of weights, floors and wish, got {' and '.join(ways) or 'none'}"
        raise StudyError(msg)
    if values.shape[1] != len(objectives):
        msg = f"pick: points have {values.shape[1]} scores, but the objectives are {', '.join(objectives)}"
        raise StudyError(msg)
    for name in [*(weights or ()), *(floors or ()), *(wish or ()), *([best] if best is not None else ())]:
        if name not in objectives:
            msg = f"pick: unknown objective `{name}`; {nearest(name, objectives)}"
            raise StudyError(msg)
    if best is not None and not floors:
        msg = f"pick: `best` ({best}) goes with floors; expected one or more, such as {objectives[0]}=0.8"
        raise StudyError(msg)
    front = _front(values)
    scores = values[front]
    if weights:
        merit = scores @ np.array([weights.get(name, 0.0) for name in objectives])
    elif wish:
        columns = [list(objectives).index(name) for name in wish]
        gaps = _scale(scores, scores)[:, columns] - _scale(_row(objectives, wish), scores)[:, columns]
        merit = -np.linalg.norm(gaps, axis=1)
    else:
        merit = _above_floors(scores, objectives, floors or {}, best)
    return int(front[np.lexsort((np.arange(len(front)), -scores.mean(axis=1), -merit))[0]])


def _above_floors(scores: Points, objectives: Sequence[str], floors: Mapping[str, float], best: str | None) -> Points:
    """Return what to maximise, `(points,)`: -inf below a floor. Raises `StudyError` if all are."""
    columns = [list(objectives).index(name) for name in floors]
    short = np.maximum(np.array(list(floors.values())) - scores[:, columns], 0.0)
    if short.any(axis=1).all():
        # One unit of shortfall weighs the same in all objectives, as far as their ranges on the front go.
        near = int(np.argmin((short / _span(scores)[columns]).sum(axis=1)))
        wanted = " and ".join(f"{name} ≥ {floor:g}" for name, floor in floors.items())
        found = ", ".join(f"{name} {score:.4g}" for name, score in zip(objectives, scores[near], strict=True))
        msg = f"pick: no point of the front has {wanted}; the nearest has {found}; lower a floor"
        raise StudyError(msg)
    free = [best] if best is not None else [name for name in objectives if name not in floors] or list(objectives)
    merit = scores[:, [list(objectives).index(name) for name in free]].mean(axis=1)
    return np.where(short.any(axis=1), -np.inf, merit)


def _row(objectives: Sequence[str], wish: Mapping[str, float]) -> Points:
    return np.array([[wish.get(name, 0.0) for name in objectives]])


def _points(points: ArrayLike) -> Points:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2:
        msg = f"points: expected shape (points, objectives), got {values.shape}"
        raise StudyError(msg)
    return values


def _reference(points: ArrayLike, reference: ArrayLike) -> Points:
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != (np.shape(points)[1],) or not np.isfinite(corner).all():
        msg = f"reference point: expected {np.shape(points)[1]} finite numbers, got {corner.tolist()}"
        raise StudyError(msg)
    return corner


def _above(values: Points, corner: Points) -> NDArray[np.bool_]:
    above: NDArray[np.bool_] = np.all(np.isfinite(values) & (values > corner), axis=1)
    return above


def _front(values: Points) -> NDArray[np.intp]:
    front = np.flatnonzero(nondominated(values))
    if not len(front):
        msg = f"a front needs at least one point with finite scores, got {len(values)} points without any"
        raise StudyError(msg)
    return front


def _span(front: Points) -> Points:
    """Return each objective's range over the front, 1 where the front is flat."""
    spread: Points = np.ptp(front, axis=0)
    return np.where(spread > 0, spread, 1.0)


def _scale(values: Points, front: Points) -> Points:
    scaled: Points = (values - front.min(axis=0)) / _span(front)
    return scaled
