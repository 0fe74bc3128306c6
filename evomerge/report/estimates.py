"""Estimates: what the models of a study would score on other examples, as far as the search examples tell.

They choose; the report's examples only judge. All candidates of the search and all references are estimated together
(`evomerge.surrogate.denoise`), since the best raw score of many is partly luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.report import wording
from evomerge.report.bootstrap import Resamples
from evomerge.report.data import Interval
from evomerge.surrogate import denoise
from evomerge.tasks import Task
from evomerge.trial import Evaluation

NEEDED = 0.7
"""Probability of being better than the best reference from which a candidate of the search is picked. Chosen by
`experiments/holds.py`: the lowest of its probabilities with which picks are hardly ever shown worse than the reference."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimates:
    """Estimated scores of models, by recipe id. Higher is better."""

    metrics: Mapping[str, str]
    """Objective → the metric that is estimated: the reported one where the search measured it, else the searched one."""
    rows: Mapping[str, int]
    """Recipe id → row."""
    scores: pareto.Points
    """`(models, objectives)`, in the order of `metrics`."""
    draws: NDArray[np.float64]
    """The same for resamples of the search examples, `(draws, models, objectives)`."""
    noise: float
    """Share of the variance between the raw means of the better half of models that is the examples' noise, in [0, 1]."""
    utility: NDArray[np.float64]
    """Weight of each objective in the mean, `(objectives,)`: 1 / objectives, or 1 / (objectives x its range)."""

    def of(self, recipe_id: str) -> dict[str, float]:
        """Return the estimates of a model by objective."""
        return dict(zip(self.metrics, self.scores[self.rows[recipe_id]].tolist(), strict=True))

    def mean(self, recipe_id: str) -> float:
        """Return the estimated mean over objectives of a model, up to a constant."""
        return float(self.scores[self.rows[recipe_id]] @ self.utility)

    def best(self, recipe_ids: Sequence[str]) -> str:
        """Return the one with the best estimated mean; of equals the first."""
        return max(recipe_ids, key=self.mean)

    def gain(self, better: str, worse: str) -> tuple[Interval, float]:
        """Return by how much the mean of one is above the other's, with its 95% interval, and the probability that it is."""
        a, b = self.rows[better], self.rows[worse]
        drawn = (self.draws[:, a] - self.draws[:, b]) @ self.utility
        low, high = np.quantile(drawn, (0.025, 0.975))
        value = float((self.scores[a] - self.scores[b]) @ self.utility)
        return (value, float(low), float(high)), float((drawn > 0).mean() + 0.5 * (drawn == 0).mean())

    def on_front(self, recipe_ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the share of draws in which none of the other models here dominates each, `(models,)`."""
        rows = [self.rows[one] for one in recipe_ids]
        shares: NDArray[np.float64] = np.mean([pareto.nondominated(draw[rows]) for draw in self.draws], axis=0)
        return shares


def scale(metrics: Sequence[str], points: pareto.Points) -> tuple[pareto.Points, pareto.Points]:
    """Return the score of each objective that counts as 0 in a mean over objectives, and the difference that counts as 1.

    Scores of one metric are averaged as they are: zeros and ones. Otherwise 0 is the base and 1 the best expert, whose scores
    are the rows of `points`, `(models, objectives)`, base first; where no expert is better, 1 is the range of the rows.
    """
    if wording.common_metric(metrics) is not None:
        return np.zeros(len(metrics)), np.ones(len(metrics))
    gains, ranges = points.max(axis=0) - points[0], np.ptp(points, axis=0)
    units = np.where(gains > 0, gains, np.where(ranges > 0, ranges, 1.0))
    return points[0], units


def estimate(
    evaluations: Mapping[str, Evaluation], tasks: Mapping[str, Task], draws: Resamples, singles: Sequence[str]
) -> Estimates:
    """Return the estimates of models from their `evaluations` on all search examples, by recipe id.

    `draws` are resamples of the search examples by task; `singles` are the ids of the base and the experts, see `scale`.
    """
    found = list(evaluations.values())
    measured = set.intersection(*(set(one.scores) for one in found))
    metrics, scores, drawn, raw = {}, [], [], []
    for name, task in tasks.items():
        reported = f"{name}/{task.report_metric}" in measured
        metrics[name] = task.report_metric if reported else task.search_metric
        smooth = [key for key, metric in task.metrics.items() if metric.smooth and f"{name}/{key}" in measured]
        tables = [np.stack([one.scores[f"{name}/{key}"] for one in found]) for key in (metrics[name], *smooth[:1])]
        counts = np.concatenate([np.ones_like(draws.counts[name][:1]), draws.counts[name]])
        smoothed = tables[1] if len(tables) > 1 and smooth[0] != metrics[name] else None
        estimates = denoise(tables[0], smoothed, counts)
        scores.append(estimates[0])
        drawn.append(estimates[1:])
        raw.append((tables[0] @ (counts / counts.sum(axis=1, keepdims=True)).T).astype(np.float64))
    rows = {identity: row for row, identity in enumerate(evaluations)}
    points = np.stack(scores, axis=1)
    _, units = scale([*metrics.values()], points[[rows[one] for one in singles] or slice(None)])
    utility = 1 / units / len(units)
    return Estimates(metrics, rows, points, np.stack(drawn, axis=2), _noise(np.stack(raw, axis=2) @ utility), utility)


def _noise(means: NDArray[np.float64]) -> float:
    """Return the share of noise in the variance between models, from means `(models, draws)`, the first of all examples."""
    better = means[np.argsort(-means[:, 0], kind="stable")[: max(2, len(means) // 2)]]
    better = better - better.mean(axis=0)
    between = float(better[:, 0].var())
    return min(1.0, float(better[:, 1:].var(axis=1).mean()) / between) if between > 0 else 1.0
