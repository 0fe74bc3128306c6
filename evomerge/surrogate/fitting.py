"""Fit response surfaces of a task's mean score, measure how well they predict, and tell whether objectives conflict at all.

Of the `rungs` that suit a metric, the one that predicts each evaluated candidate best from the others is chosen.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from evomerge.surrogate.design import Points, unknowns
from evomerge.surrogate.rungs import Margins, Quadratic, Rung, Trend
from evomerge.surrogate.slopes import SlopedTrend, Slopes
from evomerge.surrogate.threads import on_one_thread
from evomerge.surrogate.warps import IDENTITY, Prediction, Values, Warp, log, logit

NORMAL_90 = 1.6448536269514722
"""Half the width of a 90% interval, in standard deviations of a normal distribution."""

_LARGEST_FACTOR = 4.0
"""Largest calibration factor. A model that needs more is wrong rather than over-confident, and its coverage shows it."""
_SMALLEST_FACTOR = 0.5
"""Smallest calibration factor from `_MANY` candidates on. With fewer, errors may be small by chance, and the smallest is 1."""
_MANY = 30


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """A fitted response surface of one objective: the mean of a metric over the examples that were scored.

    Not to be confused with the metric's expectation over all such examples, from which it differs by `standard_error`.
    """

    name: str
    """The chosen rung."""
    points: Points
    """The evaluated candidates, `(candidates, genes)`, unit coordinates."""
    values: Values
    """Their mean scores, `(candidates,)`."""
    left_out: Values
    """The mean scores predicted for each candidate from the others, `(candidates,)`."""
    r2: float
    """R² of `left_out`: 1 - sum of squared errors / sum of squares about the mean of `values`."""
    factor: float
    """Calibration: the rung's standard deviations are multiplied by it.

    With it, 90% of the left-out errors lie within `NORMAL_90` deviations. It is between 1/2 and 4, and with fewer than 30
    candidates at least 1.
    """
    widening: float
    """Factor of published intervals beyond `factor`: see `_widening`. `predict`, and so a search, does not include it."""
    coverage: float
    """Share of candidates whose score lies in the 90% interval of `left_out`, with the factor of the other candidates.

    It is optimistic where there are few more candidates than unknowns, since the rung was chosen for its left-out errors.
    """
    standard_error: float
    """Median over candidates of the standard error of the mean score: standard deviation over examples / √examples.

    NaN for one example. Not the error of the difference of two candidates, which are scored on the same examples.
    """
    rung: Rung
    coordinates: Callable[[Points], Points] = np.asarray
    """Unit coordinates → the coordinates that `rung` was fitted in, of the same shape: those in which scores are smooth."""

    @on_one_thread
    def predict(self, points: Points) -> Prediction:
        """Return mean and calibrated standard deviation of the mean score at `points`, `(points, genes)`: both `(points,)`.

        The deviation is that of a score measured there on the same examples, noise included.
        """
        mean, deviation = self.rung.predict(self.coordinates(points))
        return mean, self.factor * deviation


@on_one_thread
def fit(
    points: Points,
    scores: Points,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    margins: NDArray[np.float64] | None = None,
    slopes: Slopes | None = None,
    few: int | None = None,
) -> Surrogate:
    """Return the surrogate of one objective, fitted to n candidates that were all evaluated, four or more.

    `points` are `(n, genes)`, unit coordinates; `scores` are those of each example, `(n, examples)`, clipped to `bounds`; their
    means must vary. `margins`, `(n, examples, columns)`, are all positive where a score is 1 and not where it is 0. Of the rungs
    that apply, the one with the lowest left-out error on the metric's own scale is chosen. Ties go to the margins, which carry
    more information than the scores, and else to the simpler rung. With `slopes`, which are of the same examples' mean
    scores, the rung is the one that uses them. Hyperparameters of processes are chosen from `few` of the candidates, if given.
    """
    table = np.clip(scores, *bounds)
    values = table.mean(axis=1)
    if slopes is not None:
        return judge(points, table, SlopedTrend(points, values, _warps(values, bounds, table.shape[1]), slopes))
    rungs = {rung.name: rung for rung in _ladder(points, table, bounds, margins, few)}
    errors = {name: (rung.left_out[0] - values) ** 2 for name, rung in rungs.items()}
    name = _choose(errors)
    widening = 1.0 if name == Margins.name else _widening(*points.shape)
    return judge(points, table, rungs[name], widening)


def judge(points: Points, scores: Points, rung: Rung, widening: float = 1.0) -> Surrogate:
    """Return the surrogate of a fitted `rung`: its predictions calibrated, and its accuracy measured.

    `points`, `(n, genes)` in unit coordinates, are those of `rung.left_out`; `scores` were measured there, `(n, examples)`.
    """
    values = scores.mean(axis=1)
    mean, deviation = rung.left_out
    sizes = np.abs(values - mean) / np.maximum(deviation, 1e-300)
    examples = scores.shape[1]
    errors = scores.std(axis=1, ddof=1) / math.sqrt(examples) if examples > 1 else np.full(len(values), np.nan)
    return Surrogate(
        name=rung.name,
        points=points,
        values=values,
        left_out=mean,
        r2=float(1 - np.sum((values - mean) ** 2) / np.sum((values - values.mean()) ** 2)),
        factor=_factor(sizes),
        widening=widening,
        coverage=float(np.mean(sizes <= NORMAL_90 * _factors_of_others(sizes))),
        standard_error=float(np.median(errors)),
        rung=rung,
    )


def predict_all(surrogates: Collection[Surrogate], points: Points) -> tuple[Points, Points]:
    """Return means and standard deviations at `points`, `(points, genes)`: both `(points, objectives)`."""
    if not len(points):
        return np.empty((0, len(surrogates))), np.empty((0, len(surrogates)))
    predictions = [surrogate.predict(points) for surrogate in surrogates]
    return np.stack([mean for mean, _ in predictions], axis=1), np.stack([sd for _, sd in predictions], axis=1)


def best_for_all(surrogates: Sequence[Surrogate], seed: int = 0) -> Points | None:
    """Return one point that is best for all objectives, `(genes,)`, or None where they conflict and a front is needed.

    A point is best for an objective where its prediction is within its own 90% interval of the highest prediction. That
    tolerance is limited to between a hundredth and a tenth of the predictions' range, so that wide intervals do not pass for
    agreement. The highest predictions are searched for among the evaluated points and Sobol points, and around the best of these.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    evaluated = [surrogate.points for surrogate in surrogates]
    points = np.concatenate([*evaluated, qmc.Sobol(evaluated[0].shape[1], seed=rng).random_base2(10)])
    means, deviations = predict_all(surrogates, points)
    spans = np.ptp(means, axis=0)

    def distance() -> Values:
        """Return each point's distance from the best, in tolerances, for the objective where it is largest."""
        allowed = np.clip(NORMAL_90 * deviations, 0.01 * spans, 0.1 * spans)
        return np.asarray(((means.max(axis=0) - means) / np.maximum(allowed, 1e-300)).max(axis=1))

    for step in 0.25 * 0.7 ** np.arange(12):
        merits = [*means.T, -distance()]
        centres = points[[int(i) for merit in merits for i in np.argsort(-merit, kind="stable")[:4]]]
        around = np.repeat(centres, 16, axis=0)
        moved = rng.random(around.shape) < max(0.3, 1 / around.shape[1])
        neighbours = np.clip(around + moved * step * rng.standard_normal(around.shape), 0, 1)
        mean, deviation = predict_all(surrogates, neighbours)
        points, means = np.concatenate([points, neighbours]), np.concatenate([means, mean])
        deviations = np.concatenate([deviations, deviation])
    distances = distance()
    return points[int(distances.argmin())] if distances.min() <= 1 else None


def varies(scores: Points) -> bool:
    """Return whether the candidates' mean scores differ; `scores` are `(candidates, examples)`."""
    values = scores.mean(axis=1)
    return bool(np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max())))


def _ladder(
    points: Points,
    scores: Points,
    bounds: tuple[float, float],
    margins: NDArray[np.float64] | None,
    few: int | None = None,
) -> list[Rung]:
    """Return the rungs that suit the metric and the number of points, fitted, in the order that decides ties."""
    values = scores.mean(axis=1)
    warps = _warps(values, bounds, scores.shape[1])
    rungs: list[Rung] = [] if margins is None else [Margins(points, values, margins, few)]
    bounded = sum(map(math.isfinite, bounds))
    if bounded == 1 or len(points) > unknowns(points.shape[1]):
        name = ("quadratic", "log-loss quadratic", "weighted quadratic")[bounded]
        rungs.append(Quadratic(name, points, values, warps))
    return [*rungs, Trend(points, values, warps[-1], few)]


def _warps(values: Values, bounds: tuple[float, float], examples: int) -> list[Warp]:
    """Return the warps that suit mean scores of so many examples, the one for a process last."""
    low, high = bounds
    if np.isfinite(low) and np.isfinite(high):
        return [logit(low, high, examples)]
    if not (np.isfinite(low) or np.isfinite(high)):
        return [IDENTITY]
    bound, side = (low, 1) if np.isfinite(low) else (high, -1)
    # A mean score at the bound itself has no logarithm.
    return [IDENTITY, log(bound, side)] if (side * (values - bound) > 0).all() else [IDENTITY]


def _choose(errors: Mapping[str, Values]) -> str:
    """Return the first rung whose mean of squared `errors`, `(candidates,)`, is the lowest or ties with it.

    A tie is a mean difference within its standard error (Breiman et al. 1984), so that one candidate alone decides nothing.
    """
    lowest = min(errors.values(), key=lambda squares: float(squares.mean()))
    gaps = {name: squares - lowest for name, squares in errors.items()}
    # One candidate alone makes a mean of exactly one standard error, up to rounding.
    limits = {name: (1 + 1e-9) * gap.std(ddof=1) / math.sqrt(len(gap)) for name, gap in gaps.items()}
    return next(name for name, gap in gaps.items() if gap.mean() <= limits[name])


def _factor(sizes: NDArray[np.float64]) -> float:
    """Return the calibration factor for errors of these `sizes`, in deviations.

    The ⌈0.9 (n + 1)⌉-th smallest, which bounds a new error with probability 90% (Vovk et al. 2005), or the largest of few.
    """
    return float(_clipped(np.sort(sizes)[_rank(len(sizes)) - 1], len(sizes)))


def _factors_of_others(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `_factor` of all sizes but one, for each that is left out: `(candidates,)`."""
    count = len(sizes) - 1
    rank = _rank(count)
    order = np.argsort(sizes, kind="stable")
    ranked = np.full(len(sizes), sizes[order[rank - 1]])
    ranked[order[:rank]] = sizes[order[rank]]  # those below move up by one
    return _clipped(ranked, count)


def _rank(count: int) -> int:
    return min(math.ceil(0.9 * (count + 1)), count)


def _clipped(sizes: ArrayLike, count: int) -> NDArray[np.float64]:
    smallest = _SMALLEST_FACTOR if count >= _MANY else 1.0
    return np.clip(np.asarray(sizes) / NORMAL_90, smallest, _LARGEST_FACTOR)


def _widening(candidates: int, genes: int) -> float:
    """Return the factor of published intervals: 1 + 1 / (2 (n - p)) for n candidates and p unknowns, 1 for n ≤ p.

    Choosing rung, warp and ridge by left-out errors makes these smaller than the errors at new points, most where n - p is
    small. Measured on tiny networks with 2 to 5 genes, where least squares was chosen: for n - p = 1, 2, 3, 4 and 6, 90%
    intervals cover 85, 87, 88, 90 and 92% without the factor, and 91, 91, 91, 92 and 93% with it. Margins (93% or more) and
    MAP's quadratic (88% at n - p = 1, else 89% or more) need none. At n = p no factor would help the log-loss quadratic.
    """
    spare = candidates - unknowns(genes)
    return 1 + 0.5 / spare if spare > 0 else 1.0
