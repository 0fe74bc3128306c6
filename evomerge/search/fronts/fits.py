"""Surrogates of the objectives of evaluated candidates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge import surrogate
from evomerge.search.driver import Genomes
from evomerge.surrogate import Slopes, Surrogate
from evomerge.trial import Evaluation, Metric


def fit_surrogates(
    metrics: Mapping[str, Metric],
    points: Genomes,
    evaluations: Sequence[Evaluation],
    coordinates: Callable[[Genomes], Genomes] = np.asarray,
    slopes: Mapping[str, Slopes] | None = None,
    few: int | None = None,
) -> dict[str, Surrogate]:
    """Return the surrogate of each objective of `metrics` that varies, from margins where they were recorded.

    `points`, `(evaluations, genes)`, are unit coordinates; all evaluations succeeded. The surrogates are fitted in `coordinates` of
    the points, to `slopes` as well if there are any. `few` is that of `surrogate.fit`. Raises `SurrogateError`.
    """
    fits = {}
    for name, metric in metrics.items():
        scores = np.array([evaluation.scores[name] for evaluation in evaluations], dtype=np.float64)
        table = f"{name.rpartition('/')[0]}/{metric.margins}"
        recorded = metric.margins is not None and all(table in evaluation.outputs for evaluation in evaluations)
        margins = np.array([done.outputs[table] for done in evaluations], np.float64) if recorded else None
        if surrogate.varies(scores):
            sloped = None if slopes is None else slopes[name]
            fit = surrogate.fit(
                coordinates(points), scores, bounds=metric.bounds, margins=margins, slopes=sloped, few=few
            )
            fits[name] = replace(fit, points=points, coordinates=coordinates)
    return fits
