"""Response surfaces: what a task's mean score is at candidates that nobody has evaluated, and how sure that is.

`fit` tries a ladder of models and keeps the one that predicts each evaluated candidate best from the others:

1. `margins`: for accuracy, where it is known how far the label's logit is above each other class's (an example is right
   where all are positive): a Gaussian process of each, all with one kernel. Accuracy is a staircase of the genes, logits are
   smooth.
2. `log-loss quadratic`: for scores with one bound, as log-likelihoods have: a quadratic of their logarithm or of themselves.
3. `quadratic + Matérn`: a Gaussian process with a quadratic trend, of the mean score warped by its bounds.
4. `weighted quadratic` (`quadratic` for a score without bounds): the same warp, by weighted least squares.

Points are in unit coordinates. Higher is better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from evomerge.errors import SurrogateError, nearest
from evomerge.surrogate.design import Points, Rank, check_rank, design, quadratic_terms, unit_points, unknowns
from evomerge.surrogate.rungs import (
    Identity,
    Log,
    Logit,
    Margins,
    Prediction,
    Quadratic,
    Rung,
    Trend,
    Values,
    Warp,
)
from evomerge.surrogate.threads import on_one_thread

__all__ = [
    "NORMAL_90",
    "Rank",
    "Surrogate",
    "best_for_all",
    "check_rank",
    "design",
    "fit",
    "quadratic_terms",
    "unknowns",
    "varies",
]

NORMAL_90 = 1.6448536269514722
"""Half the width of a 90% interval, in standard deviations of a normal distribution."""

_LEAST = 4
"""Evaluations below which leaving one out says nothing."""
_WIDEST = 4.0
"""Largest calibration factor. Beyond, a model is wrong rather than over-confident, and its coverage says so."""
_NARROWEST = 0.5
"""Smallest one, from `_MANY` candidates on; of fewer, an error may be small by luck, and the smallest is 1."""
_MANY = 30


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """A fitted response surface of one objective: the mean of a metric over the examples that were scored.

    Not to be confused with the metric's mean over all examples of the kind: from that it differs by `standard_error`.
    """

    name: str
    """The rung that was chosen."""
    points: Points
    """What was evaluated, `(candidates, genes)`, unit coordinates."""
    values: Values
    """The mean scores there, `(candidates,)`."""
    left_out: Values
    """The mean scores predicted for each candidate from the others, `(candidates,)`."""
    r2: float
    """Of `left_out`: 1 - sum of squared errors / sum of squares about the mean of `values`."""
    rmse: float
    """Root mean squared error of `left_out`, in the metric's unit."""
    factor: float
    """By which the rung's own deviations are multiplied.

    It makes 90% of the left-out errors lie within `NORMAL_90` deviations. At most 4, at least 1/2, or 1 for fewer than
    30 candidates: then intervals are only ever widened.
    """
    coverage: float
    """Share of the candidates whose score lies in the 90% interval of `left_out`, with the factor of the others."""
    standard_error: float
    """Median over candidates of the standard error of the mean score: standard deviation over examples / √examples.

    NaN for one example. This is how far a mean score is from that over all examples of the kind. Of the difference of
    two candidates, scored on the same examples, it says little: for that see `paired_error`.
    """
    paired_error: float
    """Median over candidates of the standard error of the difference to the best: of the examples' differences, / √examples.

    NaN for one example. A predicted gain below it is lost in the choice of examples.
    """
    ladder: Mapping[str, float]
    """`rmse` of every rung that was fitted."""
    rung: Rung

    @on_one_thread
    def predict(self, points: ArrayLike) -> Prediction:
        """Return mean and calibrated standard deviation of the mean score at `points`, `(points, genes)`: both `(points,)`.

        The deviation is that of a score that would be measured there on the same examples, not of a trend behind it.
        """
        mean, deviation = self.rung.predict(np.asarray(points, dtype=np.float64))
        return mean, self.factor * deviation


@on_one_thread
def fit(
    points: ArrayLike,
    scores: ArrayLike,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    margins: ArrayLike | None = None,
    rungs: Sequence[str] | None = None,
) -> Surrogate:
    """Return the surrogate of one objective, fitted to n candidates that were all evaluated.

    `points` are `(n, genes)`, unit coordinates; `scores` are those of each example, `(n, examples)`, within `bounds`.
    `margins`, `(n, examples, columns)`, are all positive where a score is 1 and not where it is 0. The rung with the lowest
    left-out error is chosen, on the metric's own scale, among all that apply or the `rungs` named. Ties go to the
    margins, which know more than the scores do, and else to the simpler. Raises `SurrogateError`.
    """
    given = unit_points(points)
    table = _table("scores", scores, len(given))
    low, high = bounds
    slack = 1e-6 * max(1.0, abs(low) if np.isfinite(low) else 0.0, abs(high) if np.isfinite(high) else 0.0)
    if not low < high or table.min() < low - slack or table.max() > high + slack:
        msg = f"scores lie in [{table.min():g}, {table.max():g}], outside of the declared bounds [{low:g}, {high:g}]"
        raise SurrogateError(msg)
    table = np.clip(table, low, high)
    values = table.mean(axis=1)
    if len(given) < _LEAST:
        msg = f"{len(given)} evaluations; a surrogate needs {_LEAST} or more to be checked by leaving one out"
        raise SurrogateError(msg)
    if not varies(table):
        msg = f"all {len(given)} candidates score {values[0]:g}: the task does not vary; drop it, or search a larger space"
        raise SurrogateError(msg)
    makers = _ladder(given, table, values, bounds, margins)
    for name in rungs or ():
        if name not in makers:
            msg = f"surrogate: no rung `{name}` for these scores and their bounds; {nearest(name, makers)}"
            raise SurrogateError(msg)
    fitted: dict[str, Rung] = {}
    for name, (needed, make) in makers.items():
        if rungs is not None and name not in rungs:
            continue
        if len(given) >= needed:
            fitted[name] = make()
        elif rungs is not None:
            msg = f"rung `{name}` needs {needed} or more evaluations for {given.shape[1]} genes, got {len(given)}; try `quadratic + Matérn`"
            raise SurrogateError(msg)
    ladder = {name: float(np.sqrt(np.mean((rung.left_out[0] - values) ** 2))) for name, rung in fitted.items()}
    name = _choose({name: (rung.left_out[0] - values) ** 2 for name, rung in fitted.items()})
    return judge(given, table, fitted[name], ladder)


def judge(points: Points, scores: Points, rung: Rung, ladder: Mapping[str, float] | None = None) -> Surrogate:
    """Return the surrogate of a `rung` that has been fitted, with the figures that say whether it may be relied on.

    `points`, `(n, genes)` in unit coordinates, are those of `rung.left_out`; `scores` are what was measured there,
    `(n, examples)`. The `ladder` are the errors of all rungs, by default of this one.
    """
    values = scores.mean(axis=1)
    mean, deviation = rung.left_out
    sizes = np.abs(values - mean) / np.maximum(deviation, 1e-300)
    others = [_factor(np.delete(sizes, i)) for i in range(len(sizes))]
    standard, paired = _errors(scores, int(values.argmax()))
    rmse = float(np.sqrt(np.mean((mean - values) ** 2)))
    return Surrogate(
        name=rung.name,
        points=points,
        values=values,
        left_out=mean,
        r2=float(1 - np.sum((values - mean) ** 2) / np.sum((values - values.mean()) ** 2)),
        rmse=rmse,
        factor=_factor(sizes),
        coverage=float(np.mean(sizes <= NORMAL_90 * np.array(others))),
        standard_error=standard,
        paired_error=paired,
        ladder={rung.name: rmse} if ladder is None else ladder,
        rung=rung,
    )


def varies(scores: ArrayLike) -> bool:
    """Tell whether the mean scores of candidates, `(candidates, examples)`, differ: whether there is anything to fit."""
    values = np.asarray(scores, dtype=np.float64).mean(axis=1)
    return bool(np.ptp(values) > 1e-9 * max(1.0, float(np.abs(values).max())))


def best_for_all(surrogates: Sequence[Surrogate], seed: int = 0) -> Points | None:
    """Return one point that is best for all objectives, `(genes,)`, or None where they conflict: a front is needed.

    Best for an objective is every point that is predicted within its own 90% interval of the highest prediction, if
    that is between a hundredth and a tenth of the range of the predictions: so no ignorance passes for agreement. The
    highest are looked for among what was evaluated and Sobol's points, and around the best of them.
    """
    genes = {surrogate.points.shape[1] for surrogate in surrogates}
    if len(genes) != 1:
        msg = f"expected surrogates of one space, got {sorted(genes)} genes"
        raise SurrogateError(msg)
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    points = np.concatenate(
        [*(surrogate.points for surrogate in surrogates), qmc.Sobol(genes.pop(), seed=rng).random_base2(10)]
    )
    means, deviations = _predict_all(surrogates, points)
    spans = np.ptp(means, axis=0)

    def distance() -> Values:
        """Return how far each point is from the best for the objective that it is worst for, 1 being too far."""
        allowed = np.clip(NORMAL_90 * deviations, 0.01 * spans, 0.1 * spans)
        return np.asarray(((means.max(axis=0) - means) / np.maximum(allowed, 1e-300)).max(axis=1))

    for step in 0.25 * 0.7 ** np.arange(12):
        merits = [*means.T, -distance()]
        centres = points[[int(i) for merit in merits for i in np.argsort(-merit, kind="stable")[:4]]]
        around = np.repeat(centres, 16, axis=0)
        moved = rng.random(around.shape) < max(0.3, 1 / around.shape[1])
        found = np.clip(around + moved * step * rng.standard_normal(around.shape), 0, 1)
        mean, deviation = _predict_all(surrogates, found)
        points, means = np.concatenate([points, found]), np.concatenate([means, mean])
        deviations = np.concatenate([deviations, deviation])
    far = distance()
    return points[int(far.argmin())] if far.min() <= 1 else None


def _predict_all(surrogates: Sequence[Surrogate], points: Points) -> tuple[Points, Points]:
    predictions = [surrogate.predict(points) for surrogate in surrogates]
    return np.stack([mean for mean, _ in predictions], axis=1), np.stack([sd for _, sd in predictions], axis=1)


def _ladder(
    points: Points, scores: Points, values: Values, bounds: tuple[float, float], margins: ArrayLike | None
) -> dict[str, tuple[int, Callable[[], Rung]]]:
    """Return the rungs that suit the metric, in the order that decides ties: how many evaluations each needs, how to fit it."""
    low, high = bounds
    enough = unknowns(points.shape[1]) + 1
    warp: Warp = Identity()
    makers: dict[str, tuple[int, Callable[[], Rung]]] = {}
    if margins is not None:
        known = np.asarray(margins, dtype=np.float64)
        if known.ndim != 3 or known.shape[:2] != scores.shape or ((scores != 0) & (scores != 1)).any():
            msg = f"margins go with scores of 0 and 1, one or more for each; got {known.shape} margins for {scores.shape} scores"
            raise SurrogateError(msg)
        _check_finite("margins", known)
        least = known.min(axis=2)
        wrong = ((least > 0) & (scores == 0)) | ((least < 0) & (scores == 1))
        if wrong.any():
            row, example = np.argwhere(wrong)[0]
            msg = f"example {example} of row {row} scores {scores[row, example]:g} at a least margin of {least[row, example]:g}; expected 1 exactly where all margins are positive"
            raise SurrogateError(msg)
        makers["margins"] = _LEAST, lambda: Margins(points, values, known)
    if np.isfinite(low) and np.isfinite(high):
        warp = Logit(low, high, scores.shape[1])
        makers["weighted quadratic"] = enough, lambda: Quadratic("weighted quadratic", points, values, [warp])
    elif np.isfinite(low) or np.isfinite(high):
        bound, side = (low, 1) if np.isfinite(low) else (high, -1)
        # A mean score at the bound itself has no logarithm.
        warp = Log(bound, side) if (side * (values - bound) > 0).all() else Identity()
        warps: list[Warp] = [Identity(), warp] if isinstance(warp, Log) else [warp]
        makers["log-loss quadratic"] = _LEAST, lambda: Quadratic("log-loss quadratic", points, values, warps)
    else:
        makers["quadratic"] = enough, lambda: Quadratic("quadratic", points, values, [warp])
    makers["quadratic + Matérn"] = _LEAST, lambda: Trend(points, values, warp)
    return makers


def _table(what: str, given: ArrayLike, rows: int) -> Points:
    """Return `given` as float64 `(rows, examples)`. Raises `SurrogateError`."""
    table = np.asarray(given, dtype=np.float64)
    if table.ndim != 2 or len(table) != rows or table.shape[1] == 0:
        msg = f"{what}: expected shape ({rows}, examples), a row for each point, got {table.shape}"
        raise SurrogateError(msg)
    _check_finite(what, table)
    return table


def _check_finite(what: str, table: NDArray[np.float64]) -> None:
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table.reshape(len(table), -1)).all(axis=1)))
        msg = f"{what}: row {row} has numbers that are not finite; leave failed evaluations out"
        raise SurrogateError(msg)


def _choose(errors: Mapping[str, Values]) -> str:
    """Return the first of the rungs whose squared `errors`, `(candidates,)`, are the lowest on average or tie with them.

    Ties are within one standard error of the mean difference (Breiman et al. 1984): a single candidate decides nothing.
    """
    lowest = min(errors.values(), key=lambda found: float(found.mean()))
    gaps = {name: found - lowest for name, found in errors.items()}
    # One candidate alone makes a mean of exactly one standard error, up to rounding.
    limits = {name: (1 + 1e-9) * gap.std(ddof=1) / math.sqrt(len(gap)) for name, gap in gaps.items()}
    return next(name for name, gap in gaps.items() if gap.mean() <= limits[name])


def _factor(sizes: NDArray[np.float64]) -> float:
    """Return the factor of deviations for errors of these `sizes`, in deviations.

    The ⌈0.9 (n + 1)⌉-th smallest, or the largest of few: what holds a new one with 90% (Vovk et al. 2005).
    """
    rank = min(math.ceil(0.9 * (len(sizes) + 1)), len(sizes))
    least = _NARROWEST if len(sizes) >= _MANY else 1.0
    return float(np.clip(np.sort(sizes)[rank - 1] / NORMAL_90, least, _WIDEST))


def _errors(scores: Points, best: int) -> tuple[float, float]:
    """Return the median standard error of the mean score, and that of its difference to row `best`."""
    examples = scores.shape[1]
    if examples == 1:
        return float("nan"), float("nan")
    others = np.delete(scores, best, axis=0) - scores[best]
    root = np.sqrt(examples)
    return (
        float(np.median(scores.std(axis=1, ddof=1)) / root),
        float(np.median(others.std(axis=1, ddof=1)) / root),
    )
