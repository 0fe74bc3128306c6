"""Infill: which candidates to evaluate next, given surrogates' predictions, and the hypervolume they are expected to add.

Points are in unit coordinates, `(points, genes)`; scores, means and deviations are `(points, objectives)`. Higher is better.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from scipy.special import ndtri
from scipy.stats import qmc

from evomerge import pareto

Points = NDArray[np.float64]
Predict = Callable[[Points], tuple[Points, NDArray[np.float64] | None]]
"""Points → predicted scores, and constraint violations, `(points,)`, above 0 where violated; None without constraints."""

APART = 1e-3
"""Candidates that differ by less in every gene, as a share of its range, count as the same."""

_DRAWS, _DIRECTIONS = 5, 9  # exponents of two: 32 draws of scores, 512 directions
_SHORT_LIST = 64
_PARENTS, _CHILDREN = 40, 64  # of a round of `candidates`
_MANY = 1000  # points among which a tree finds the nearest sooner
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def evolve(
    algorithm: Any, predict: Predict, shape: tuple[int, int], generations: int, seed: int
) -> tuple[Points, Points]:
    """Return all points that a pymoo `algorithm` tries, and their predicted scores; `shape` is (genes, objectives)."""
    problem = Problem(n_var=shape[0], n_obj=shape[1], xl=0.0, xu=1.0)
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    tried: list[tuple[Points, Points]] = []
    for _ in range(generations):
        population = algorithm.ask()
        if population is None:  # no offspring is new
            break
        points = population.get("X")
        scores, violations = predict(points)
        tried.append((points, scores))
        # A penalty that ranks violating points behind all others, whatever their scores.
        penalty = 0.0 if violations is None else 1e6 * np.maximum(violations, 0)[:, None]
        Evaluator().eval(StaticProblem(problem, F=penalty - scores), population)
        algorithm.tell(infills=population)
    return np.concatenate([points for points, _ in tried]), np.concatenate([scores for _, scores in tried])


def candidates(predict: Predict, best: Points, shape: tuple[int, int], rounds: int, seed: int) -> Points:
    """Return candidates over the whole cube, and on the predicted front; `shape` is (genes, objectives).

    The `best` so far and 256 Sobol points, then in each round 64 neighbours of the front that is predicted among all before: its
    points moved by steps that shrink from 0.2 to 0.02, half of them towards or away from another point of the front first.
    """
    genes = shape[0]
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    points = np.concatenate([best, qmc.Sobol(genes, seed=rng).random_base2(8)])
    scores, violations = predict(points)
    allowed = np.ones(len(points), bool) if violations is None else violations <= 0
    for step in np.geomspace(0.2, 0.02, rounds):
        rows = np.flatnonzero(allowed) if allowed.any() else np.arange(len(points))
        front = rows[pareto.nondominated(scores[rows])]
        front = front[spread(scores[front], _PARENTS)]
        parents, mates = points[np.resize(front, _CHILDREN)], points[rng.choice(front, _CHILDREN)]
        mixed = (rng.random((_CHILDREN, 1)) < 0.5) * rng.uniform(-0.2, 1, (_CHILDREN, 1))
        moved = rng.random(parents.shape) < max(0.3, 1 / genes)
        children = parents + mixed * (mates - parents) + moved * step * rng.standard_normal(parents.shape)
        children = np.clip(children, 0, 1)
        predicted, violations = predict(children)
        points, scores = np.concatenate([points, children]), np.concatenate([scores, predicted])
        allowed = np.append(allowed, np.ones(_CHILDREN, bool) if violations is None else violations <= 0)
    return points


def spread(scores: Points, count: int) -> NDArray[np.intp]:
    """Return at most `count` different rows of a front, from end to end.

    First each objective's best, then repeatedly the row farthest from all before, in units of the objectives' ranges.
    """
    if len(scores) == 0:
        return np.array([], dtype=np.intp)
    spans = np.ptp(scores, axis=0)
    scaled = (scores - scores.min(axis=0)) / np.where(spans > 0, spans, 1.0)
    chosen = list(dict.fromkeys(int(i) for i in scores.argmax(axis=0)))[:count]
    away = np.min([np.linalg.norm(scaled - scaled[i], axis=1) for i in chosen], axis=0)
    while len(chosen) < count and away.max() > 0:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
    return np.array(chosen, dtype=np.intp)


def nearest_to_front(scores: Points, first: int, count: int) -> NDArray[np.intp]:
    """Return at most `count` different rows: the `first`, then front after front of the others, each from end to end."""
    chosen, rest = np.arange(first), np.arange(first, len(scores))
    while len(rest) and len(chosen) < count:
        front = rest[pareto.nondominated(scores[rest])]
        front = front[spread(scores[front], count - len(chosen))]
        chosen, rest = np.append(chosen, front), np.setdiff1d(rest, front)
    return chosen


def reference_point(scores: Points, predicted: Points) -> NDArray[np.float64]:
    """Return the nadir of the evaluated and of the predicted front, minus a tenth of their range, `(objectives,)`.

    The predicted front is included because a candidate below the reference adds nothing: without it the evaluated front
    could not grow beyond its ends. An objective with a range of 0 takes the range of all `scores`. A single objective's
    reference is its lowest score.
    """
    if scores.shape[1] == 1:
        return np.asarray(scores.min(axis=0))
    fronts = np.concatenate([rows[pareto.nondominated(rows)] for rows in (scores, predicted)])
    spans = np.ptp(fronts, axis=0)
    spans = np.where(spans > 0, spans, np.ptp(scores, axis=0))
    return np.asarray(fronts.min(axis=0) - 0.1 * spans)


class Volume:
    """The hypervolume above a `reference` r of scores y in T objectives, as a mean over directions λ.

        volume = c_T · mean over λ of max over y of min over t of ((y_t - r_t)₊ / λ_t)^T,   c_T = π^(T/2) / (2^T Γ(T/2 + 1)),

    with λ uniform on the positive part of the unit sphere (Deng & Zhang 2019; Golovin & Zhang 2020). The 512 directions are
    quasi-random and fixed, so that differences are far more precise than volumes. Not to be confused with
    `pareto.hypervolume`, which is exact and takes one front at a time.
    """

    def __init__(self, scores: Points, reference: NDArray[np.float64], seed: int) -> None:
        """Scale the directions by the ranges of `scores`, `(points, objectives)`, above the reference."""
        objectives = len(reference)
        rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
        directions = np.maximum(np.abs(_normal(objectives, _DIRECTIONS if objectives > 1 else 0, rng)), 1e-9)
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._reference = reference
        unit = scores.max(axis=0) - reference
        self._unit = np.where(unit > 0, unit, 1.0)
        ball = math.pi ** (objectives / 2) / (2**objectives * math.gamma(objectives / 2 + 1))
        self.scale = float(ball * self._unit.prod())

    def along(self, scores: Points) -> Points:
        """Return the part of the volume that each of the scores, `(..., objectives)`, dominates along each direction.

        That is `(..., directions)`. The volume of several scores is `scale` times the mean of their maximum.
        """
        lengths = self.lengths(scores)
        lengths **= len(self._unit)
        return lengths

    def lengths(self, scores: Points) -> Points:
        """Return the root of `along` whose degree is the number of objectives."""
        lines = self._directions
        lengths, ratios = (np.empty((*scores.shape[:-1], len(lines))) for _ in range(2))
        for column, (low, unit) in enumerate(zip(self._reference, self._unit, strict=True)):
            above = np.maximum((scores[..., column] - low) / unit, 0)
            # In place: a new large array costs more than the arithmetic.
            np.divide(above[..., None], lines[:, column], out=ratios if column else lengths)
            if column:
                np.minimum(lengths, ratios, out=lengths)
        return lengths

    def of(self, scores: Points) -> float:
        """Return the volume that `scores`, `(points, objectives)`, dominate together."""
        return self.scale * float(self.along(scores).max(axis=0).mean())


def choose(
    points: Points,
    means: Points,
    deviations: Points,
    scores: Points,
    volume: Volume,
    size: int,
    seed: int,
    in_flight: tuple[Points, Points] | None = None,
) -> tuple[NDArray[np.intp], float]:
    """Return the rows of at most `size` points with the largest expected improvement of the `volume` of `scores`, and its size.

    Greedy: each next point is chosen given those before, whose scores are drawn from their predictions; the expectation is over
    the draws. Draws are quasi-random and the same for every candidate, so that neighbours of a chosen point add little. Only a
    short list is drawn for, ranked by a quadrature along which all objectives deviate alike. `in_flight` are the means and deviations
    predicted for candidates that are being evaluated: they count as chosen before.
    """
    draws = _normal(scores.shape[1], _DRAWS, np.random.default_rng(np.random.SeedSequence([seed, 3])))
    scores = scores[pareto.nondominated(scores)]
    evaluated = volume.along(scores).max(axis=0)
    pending = np.broadcast_to(evaluated, (len(draws), len(evaluated)))
    if in_flight is not None:
        pending = _with_in_flight(volume, scores, draws, *in_flight)
    least = pending.mean(axis=0)
    highest = _by_parts(lambda part: (volume.along(part) >= least).any(axis=1), means + _NODES.max() * deviations)
    active = np.flatnonzero(highest)  # all others add nothing anywhere
    rough = [volume.along(means[active] + node * deviations[active]) for node in _NODES]
    before = float(evaluated.mean() if in_flight is None else pending.mean())
    chosen: list[int] = []
    free = np.ones(len(points), bool)

    @cache  # short lists overlap
    def drawn(row: int) -> Points:
        """Return the volume along each direction of each draw of a point, `(draws, directions)`."""
        return volume.along(means[row] + draws * deviations[row])

    # Gains only fall as points are chosen, so that those of earlier rounds bound them, and few are computed again.
    places = np.full(len(points), -1)
    places[active] = np.arange(len(active))
    gains, drawn_gains = np.where(highest, np.inf, 0.0), np.full(len(points), np.inf)
    while len(chosen) < size and free.any():
        so_far, current = pending.mean(axis=0), ~highest
        while True:
            listed = np.argsort(np.where(free, -gains, 1.0), kind="stable")[: min(_SHORT_LIST, free.sum())]
            old = listed[~current[listed]]
            if not len(old):
                break
            wanted = np.flatnonzero(~current) if np.isinf(gains[old]).all() else old
            gains[wanted] = _rough_gains([along[places[wanted]] for along in rough], so_far)
            current[wanted] = True
        bounds, known = drawn_gains[listed], np.zeros(len(listed), bool)
        while not known[place := int(bounds.argmax())]:
            bounds[place] = np.maximum(drawn(int(listed[place])) - pending, 0).mean()
            known[place] = True
        drawn_gains[listed] = bounds
        best = int(listed[place])
        chosen.append(best)
        if len(chosen) == 1:  # the mean of equal draws is rounded otherwise than those that follow
            gains = np.where(highest, np.inf, 0.0)
        pending = np.maximum(pending, drawn(best))
        free &= np.abs(points - points[best]).max(axis=1) > APART
    return np.array(chosen, dtype=np.intp), volume.scale * (float(pending.mean()) - before)


def _with_in_flight(volume: Volume, scores: Points, draws: Points, means: Points, deviations: Points) -> Points:
    """Return the volume of `scores` along each direction, with that of each draw of candidates in flight: `(draws, directions)`.

    Of each draw only the front counts, among the candidates whose highest draws exceed the lowest ones of all somewhere.
    """
    lowest, highest = (means + extreme * deviations for extreme in (draws.min(axis=0), draws.max(axis=0)))
    least = _longest(volume, np.concatenate([scores, lowest]))
    exceeds = _by_parts(lambda part: np.asarray((volume.lengths(part) > least).any(axis=1)), highest)
    rows = np.flatnonzero(exceeds)
    drawn = (means[rows] + draw * deviations[rows] for draw in draws)
    lengths = np.array([np.maximum(least, _longest(volume, each)) for each in drawn])
    return np.asarray(lengths ** scores.shape[1])


def _longest(volume: Volume, scores: Points) -> NDArray[np.float64]:
    """Return the longest of the `volume.lengths` of `scores` along each direction, `(directions,)`; 0 without scores."""
    front = scores[pareto.nondominated(scores)]
    longest = volume.lengths(front[:64]).max(axis=0, initial=0.0)
    for i in range(64, len(front), 64):  # as `_by_parts`
        np.maximum(longest, volume.lengths(front[i : i + 64]).max(axis=0), out=longest)
    return np.asarray(longest)


def _rough_gains(rough: Sequence[Points], so_far: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected gains over `so_far`, `(directions,)`, by quadrature over nodes of `(points, directions)`."""
    parts = [
        weight * _by_parts(lambda part: np.maximum(part - so_far, 0).mean(axis=1), along)
        for weight, along in zip(_WEIGHTS, rough, strict=True)
    ]
    return np.asarray(np.sum(parts, axis=0))


def _by_parts(function: Callable[[Points], NDArray[Any]], rows: Points) -> NDArray[Any]:
    """Return `function` of `rows`, 64 at a time: arrays that fit in a CPU's cache."""
    parts = [function(rows[i : i + 64]) for i in range(0, len(rows), 64)]
    return np.concatenate(parts) if parts else np.empty(0)


def noise_floor(scores: Points, errors: Callable[[NDArray[np.intp]], Points], volume: Volume, size: int) -> float:
    """Return the standard error of the `volume` that `size` of the evaluated front's points contribute.

    Each score of each point of the front is moved up by its standard error, one at a time; `errors` returns those of some rows,
    `(rows, objectives)`. The result is the root of the sum of squares of the added volumes, over the `size` points where these are
    largest. A smaller gain cannot be told from the choice of examples.
    """
    front = np.flatnonzero(pareto.nondominated(scores))
    front = front[spread(scores[front], 200)]
    dominated = volume.along(scores[front]).max(axis=0)
    moves = []
    for row, error in zip(front, errors(front), strict=True):
        moved = volume.along(scores[row] + np.diag(error))
        moves.append(float(((np.maximum(moved - dominated, 0).mean(axis=1)) ** 2).sum()))
    return volume.scale * math.sqrt(sum(sorted(moves)[-size:]))


def paired_errors(points: Points, rows: NDArray[np.intp], tables: Sequence[Points]) -> Points:
    """Return the standard error of the difference of some `rows` to their nearest neighbours: `(rows, objectives)`.

    `tables` are the scores of each example, `(points, examples)`, of each objective; the error is the standard deviation of their
    differences / √examples, and 0 for one example.
    """
    away = cdist(points[rows], points)
    away[np.arange(len(rows)), rows] = np.inf
    nearest = away.argmin(axis=1)
    errors = np.zeros((len(rows), len(tables)))
    for column, table in enumerate(tables):
        examples = table.shape[1]
        if examples > 1:
            differences = np.asarray(table[rows], np.float64) - table[nearest]
            errors[:, column] = differences.std(axis=1, ddof=1) / math.sqrt(examples)
    return errors


def nearer_to_failures(points: Points, failed: Points, succeeded: Points) -> NDArray[np.bool_]:
    """Return which points are nearer to a `failed` candidate than to any that `succeeded`, bool `(points,)`."""
    if not len(failed):
        return np.zeros(len(points), bool)
    return np.asarray(cdist(points, failed).min(axis=1) < cdist(points, succeeded).min(axis=1))


def is_new(points: Points, tried: Points) -> NDArray[np.bool_]:
    """Return which points differ from all `tried` ones by more than `APART` in some gene, bool `(points,)`."""
    if len(tried) < _MANY:
        return np.asarray(cdist(points, tried, "chebyshev").min(axis=1) > APART)
    away, _ = KDTree(tried).query(points, p=np.inf, distance_upper_bound=2 * APART)
    return np.asarray(away > APART)  # infinite where there is none within the bound


def _normal(columns: int, power: int, rng: np.random.Generator) -> Points:
    """Return quasi-random standard normal draws, `(2^power, columns)`."""
    uniform = qmc.Sobol(columns, seed=rng).random_base2(power)
    return np.asarray(ndtri(np.clip(uniform, 1e-6, 1 - 1e-6)))
