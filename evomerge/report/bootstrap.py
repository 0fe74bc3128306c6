"""Bootstrap intervals over examples: how much of a score, or of a gain, is the luck of which examples were asked.

Not to be confused with the spread over seeds: the models are held fixed, only the examples are drawn anew.

Every model is scored on the same resamples, so every difference is paired (Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). The examples of a task are drawn with replacement, as many as it has, each task on its own.
Scores are a mapping from objective to that objective's `(examples,)` vector. Higher is better.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.results import Interval

Scores = Mapping[str, NDArray[np.float32]]
"""One model: objective → score of each example, `(examples,)`."""

_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True, eq=False)
class Resamples:
    """The drawn examples that all models share: objective → how often each is drawn, float32 `(resamples, examples)`."""

    counts: Mapping[str, NDArray[np.float32]]

    def means(self, scores: Scores) -> NDArray[np.float64]:
        """Return the resampled mean of each objective, `(resamples, objectives)`, in the order of `counts`.

        Raises `StudyError` if an objective is missing or has another number of examples.
        """
        return np.stack([self._mean(scores, name) for name in self.counts], axis=1)

    def _mean(self, scores: Scores, name: str) -> NDArray[np.float64]:
        counts, vector = self.counts[name], _vector(scores, name)
        if vector.shape != counts.shape[1:]:
            msg = (
                f"objective `{name}`: expected scores of shape {counts.shape[1:]}, one per example, got {vector.shape}"
            )
            raise StudyError(msg)
        # Centred first: float32 then keeps the digits that tell models apart.
        centre = vector.mean()
        means: NDArray[np.float64] = (counts @ (vector - centre).astype(np.float32)).astype(np.float64) / len(
            vector
        ) + centre
        return means


def resamples(sizes: Mapping[str, int], n: int = 2000, seed: int = 0) -> Resamples:
    """Draw `n` resamples of each objective's examples; `sizes` maps objective to its number of examples.

    An objective is `task` or `task/metric`. The draws are keyed by seed, task and size: they do not depend on which other
    objectives there are, and two metrics of one task share them.
    """
    return Resamples(
        MappingProxyType({name: _counts(name.partition("/")[0], size, n, seed) for name, size in sizes.items()})
    )


def interval(values: NDArray[np.float64], value: float | None = None) -> Interval:
    """Return the 95% percentile interval of resampled `values`, `(resamples,)`, as (value, low, high).

    `value` is the statistic on the examples as they are; without it the mean of `values` stands there.
    """
    low, high = np.quantile(values, _QUANTILES)
    return float(values.mean() if value is None else value), float(low), float(high)


def intervals(scores: Scores, draws: Resamples) -> dict[str, Interval]:
    """Return each objective's mean with its 95% interval."""
    means = draws.means(scores)
    return {name: interval(means[:, i], float(_vector(scores, name).mean())) for i, name in enumerate(draws.counts)}


def mean_interval(scores: Scores, draws: Resamples) -> Interval:
    """Return the mean over objectives of the means over examples, with its 95% interval.

    Every objective weighs the same, however many examples it has.
    """
    return interval(draws.means(scores).mean(axis=1), _mean(scores, draws))


def difference(a: Scores, b: Scores, draws: Resamples) -> Interval:
    """Return the mean over objectives of `a` minus that of `b`, with its 95% paired interval: above 0 if `a` is better."""
    paired = (draws.means(a) - draws.means(b)).mean(axis=1)
    return interval(paired, _mean(a, draws) - _mean(b, draws))


def hypervolume_difference(
    front: Sequence[Scores],
    references: Sequence[Scores],
    point: Mapping[str, float],
    draws: Resamples,
    limit: int = 500,
) -> Interval:
    """Return the hypervolume of `front` minus that of `references`, above `point`, with a 95% interval.

    Above 0 if the front is better. Hypervolume takes the best of many noisy points, and so the set with more points gains
    by luck alone. The bootstrap repeats that luck and shows how large it is, so the value is corrected for it, 2d - mean of
    the resampled differences, and the interval is the basic one, from 2d - q(97.5%) to 2d - q(2.5%), d being the difference
    of the hypervolumes as measured (Davison & Hinkley, Bootstrap Methods and their Application, 1997, 5.2.1). A percentile
    interval would call a front of copies of one reference better than it.
    Uses the first `limit` resamples. Raises `StudyError` if a set is empty or the point lacks an objective.
    """
    for what, models in (("front", front), ("references", references)):
        if not models:
            msg = f"hypervolume difference: the {what} hold no model; expected at least one"
            raise StudyError(msg)
    for name in draws.counts:
        if name not in point:
            msg = f"reference point: objective `{name}` is missing; it has {', '.join(point) or 'none'}"
            raise StudyError(msg)
    corner = [point[name] for name in draws.counts]
    first = Resamples(MappingProxyType({name: counts[:limit] for name, counts in draws.counts.items()}))
    volumes = []
    for models in (front, references):
        drawn = np.stack([first.means(scores) for scores in models], axis=1)
        asked = [[float(_vector(scores, name).mean()) for name in draws.counts] for scores in models]
        volumes.append(np.array([pareto.hypervolume(points, corner) for points in (asked, *drawn)]))
    measured, *drawn_differences = volumes[0] - volumes[1]
    value, low, high = interval(np.array(drawn_differences))
    return float(2 * measured - value), float(2 * measured - high), float(2 * measured - low)


def _counts(task: str, size: int, n: int, seed: int) -> NDArray[np.float32]:
    if size < 1 or n < 1:
        msg = f"task `{task}`: expected at least one example and one resample, got {size} and {n}"
        raise StudyError(msg)
    key = hashlib.sha256(f"bootstrap/{seed}/{task}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16])))
    counts = np.empty((n, size), dtype=np.float32)
    for row in counts:
        row[:] = np.bincount(generator.integers(size, size=size), minlength=size)
    return counts


def _vector(scores: Scores, name: str) -> NDArray[np.float64]:
    if name not in scores:
        msg = f"objective `{name}` has no scores; there are {', '.join(scores) or 'none'}"
        raise StudyError(msg)
    return np.asarray(scores[name], dtype=np.float64)


def _mean(scores: Scores, draws: Resamples) -> float:
    return float(np.mean([_vector(scores, name).mean() for name in draws.counts]))
