"""Pareto fronts: dominance, hypervolume, the knee, and the choice of one point.

Points are float64 `(points, objectives)`, and higher is better. A point with a non-finite score (a failed evaluation) is
not on a front and adds no hypervolume. Based on moocore.
"""

from collections.abc import Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.errors import StudyError, nearest

Points = NDArray[np.float64]

_AUGMENTED = 0.01
"""Weight of the sum in the augmented Tchebycheff distance: small, so that it only decides between equal largest gaps."""

_MOST_COLUMNS = 31
"""moocore's limit."""

_MOST_WORK = 1e10
"""About 40 seconds of hypervolumes, whose time grows as points ** (objectives / 2) (measured at 4 to 12 objectives)."""


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points are on the front, bool `(points,)`: those that no other point dominates.

    A point dominates another if it is at least as high in every objective and higher in one. Of points that are equal in all
    objectives, either all are on the front or none.
    """
    values = np.asarray(points, np.float64)
    mask: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    finite = values[mask]
    if finite.shape[1] > _MOST_COLUMNS:
        mask[mask] = [not ((finite >= point).all(axis=1) & (finite > point).any(axis=1)).any() for point in finite]
    elif len(finite):
        mask[mask] = moocore.is_nondominated(finite, maximise=True, keep_weakly=True)
    return mask


def affordable(points: int, objectives: int, repeats: int = 1) -> bool:
    """Return whether `repeats` hypervolumes of a front of so many points take less than about a minute."""
    return objectives <= _MOST_COLUMNS and repeats * float(points) ** (objectives / 2) <= _MOST_WORK


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that `points` dominate above `reference`, `(objectives,)`.

    Its unit is the product of the objectives' units. Points that are not above the reference in every objective add nothing.
    Raises `StudyError` for more than 31 objectives; see `affordable`.
    """
    values, corner = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    if len(corner) > _MOST_COLUMNS:
        raise StudyError(f"hypervolume: expected at most {_MOST_COLUMNS} objectives, got {len(corner)}")
    above = _above(values, corner)
    return float(moocore.hypervolume(values[above], ref=corner, maximise=True)) if above.any() else 0.0


class Growing:
    """The hypervolume above `reference`, `(objectives,)`, of points that are added one at a time; see `hypervolume`."""

    def __init__(self, reference: ArrayLike) -> None:
        """Start without a point."""
        self._corner = np.asarray(reference, np.float64)
        self._front: Points = np.empty((0, len(self._corner)))
        self._volume = 0.0

    def add(self, point: ArrayLike) -> float:
        """Add a point, `(objectives,)`, and return the hypervolume with it."""
        added = np.asarray(point, np.float64)
        if _above(added[None], self._corner)[0] and not (self._front >= added).all(axis=1).any():
            # The new volume is the point's, less what the front already has of it (While et al. 2012, WFG).
            shared = hypervolume(np.minimum(self._front, added), self._corner)
            self._volume += float(np.prod(added - self._corner)) - shared
            self._front = np.concatenate([self._front[~(added >= self._front).all(axis=1)], added[None]])
        return self._volume


def hypervolume_history(points: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Return the hypervolume of the first 1, 2, … points, `(points,)`."""
    growing = Growing(reference)
    return np.array([growing.add(point) for point in np.asarray(points, np.float64)], np.float64)


def subset(points: ArrayLike, reference: ArrayLike, size: int) -> NDArray[np.intp]:
    """Return the indices of at most `size` points that keep most of the hypervolume, the first chosen first.

    Greedy: the next point is the one that adds most, the first among equals; at least 1 - 1/e of the best choice's volume
    (hypervolume is submodular). Stops when no point adds volume.
    """
    values, corner = np.asarray(points, np.float64), np.asarray(reference, np.float64)
    chosen: list[int] = []
    volume = 0.0
    candidates = [int(i) for i in np.flatnonzero(nondominated(values) & _above(values, corner))]
    while candidates and len(chosen) < size:
        volumes = [hypervolume(values[[*chosen, i]], corner) for i in candidates]
        best = int(np.argmax(volumes))
        if volumes[best] <= volume:
            break
        volume = volumes[best]
        chosen.append(candidates.pop(best))
    return np.array(chosen, dtype=np.intp)


def knee(points: ArrayLike) -> int:
    """Return the index of the front's knee: the best mean of objectives, each scaled to the front's range.

    For two objectives it is the point farthest above the line between the two ends (Das 1999); on a concave front it is an
    end. Objectives that are constant on the front do not count. Ties go to the first. Raises `StudyError` if no point is
    finite.
    """
    values = np.asarray(points, np.float64)
    rows = _front(values)
    front = values[rows]
    return int(rows[np.argmax(((front - front.min(axis=0)) / _span(front)).mean(axis=1))])


def tchebycheff(points: ArrayLike, objectives: Sequence[str], weights: Mapping[str, float]) -> int:
    """Return the index of the point whose augmented weighted Tchebycheff distance to the ideal is least.

        max over t of w_t g_t + 0.01 Σ g_t,   g_t = (ideal_t - y_t) / range of t over the front,

    where the ideal has the front's best score in each objective (Steuer & Choo 1983). Weights are scaled to sum to 1; missing
    ones are 0. Unlike a weighted sum, it can reach every point of a concave front. Ties go to the first. Raises `StudyError`.
    """
    _check("Tchebycheff weight", weights, objectives)
    shares = np.array([weights.get(name, 0.0) for name in objectives])
    values = np.asarray(points, np.float64)
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
    """Return the index of the point of the front that a preference selects.

    It takes exactly one of

    - `weights`: the largest weighted sum of the scores; missing weights are 0;
    - `floors`: among the points with at least these scores, the `best` in that objective; by default in the mean of the
      objectives without a floor (of all, if each has one);
    - `wish`: the nearest to these scores, by Euclidean distance over their objectives in units of the front's range.

    Ties go to the point with the higher mean of all scores, then to the first. Raises `StudyError` for an unknown objective,
    for numbers that are not finite, for weights that are negative or all 0, and for floors that no point reaches.
    """
    values = np.asarray(points, np.float64)
    for what, numbers in (("weight", weights), ("floor", floors), ("wish", wish), ("best", best and {best: 0.0})):
        if numbers:
            _check(what, numbers, objectives)
    if best is not None and not floors:
        raise StudyError(f"pick: `best` ({best}) goes with floors; expected one or more, such as {objectives[0]}=0.8")
    front = _front(values)
    scores = values[front]
    if weights:
        merit = scores @ np.array([weights.get(name, 0.0) for name in objectives])
    elif wish:
        columns = [list(objectives).index(name) for name in wish]
        gaps = (scores[:, columns] - np.array(list(wish.values()))) / _span(scores)[columns]
        merit = -np.linalg.norm(gaps, axis=1)
    else:
        merit = _above_floors(scores, objectives, floors or {}, best)
    return int(front[np.lexsort((np.arange(len(front)), -scores.mean(axis=1), -merit))[0]])


def _check(what: str, numbers: Mapping[str, float], objectives: Sequence[str]) -> None:
    """Raise `StudyError` unless `numbers` are finite and of known objectives, and weights are 0 or more but not all 0."""
    weights = what.endswith("weight")
    for name, number in numbers.items():
        if name not in objectives:
            raise StudyError(f"pick: unknown objective `{name}`; {nearest(name, objectives)}")
        if not np.isfinite(number) or (weights and number < 0):
            msg = f"pick: {what} {name}={number:g}; expected a {'number of 0 or more' if weights else 'finite number'}"
            raise StudyError(msg)
    if weights and not any(numbers.values()):
        raise StudyError(f"pick: all {what}s are 0; expected at least one above 0, such as {objectives[0]}=1")


def _above_floors(scores: Points, objectives: Sequence[str], floors: Mapping[str, float], best: str | None) -> Points:
    """Return the merit of each point, `(points,)`: -inf below a floor. Raises `StudyError` if all points are."""
    columns = [list(objectives).index(name) for name in floors]
    short = np.maximum(np.array(list(floors.values())) - scores[:, columns], 0.0)
    if short.any(axis=1).all():
        # Shortfalls are compared in units of the front's ranges.
        near = int(np.argmin((short / _span(scores)[columns]).sum(axis=1)))
        wanted = " and ".join(f"{name} ≥ {floor:g}" for name, floor in floors.items())
        reached = ", ".join(f"{name} {score:.4g}" for name, score in zip(objectives, scores[near], strict=True))
        raise StudyError(f"pick: no point of the front has {wanted}; the nearest has {reached}; lower a floor")
    free = [best] if best is not None else [name for name in objectives if name not in floors] or list(objectives)
    merit = scores[:, [list(objectives).index(name) for name in free]].mean(axis=1)
    return np.where(short.any(axis=1), -np.inf, merit)


def _above(values: Points, corner: Points) -> NDArray[np.bool_]:
    above: NDArray[np.bool_] = np.all(np.isfinite(values) & (values > corner), axis=1)
    return above


def _front(values: Points) -> NDArray[np.intp]:
    front = np.flatnonzero(nondominated(values))
    if not len(front):
        raise StudyError(f"a front needs at least one point with finite scores, got {len(values)} points without any")
    return front


def _span(front: Points) -> Points:
    """Return each objective's range over the front, or 1 where it is constant."""
    spread: Points = np.ptp(front, axis=0)
    return np.where(spread > 0, spread, 1.0)
