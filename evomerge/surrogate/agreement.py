"""Whether objectives conflict at all, as far as their surrogates can tell: one point may be best for all of them."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import qmc

from evomerge.errors import SurrogateError
from evomerge.surrogate.design import Points
from evomerge.surrogate.fitting import NORMAL_90, Surrogate
from evomerge.surrogate.warps import Values


def best_for_all(surrogates: Sequence[Surrogate], seed: int = 0) -> Points | None:
    """Return one point that is best for all objectives, `(genes,)`, or None where they conflict and a front is needed.

    A point is best for an objective where its prediction is within its own 90% interval of the highest prediction. That
    tolerance is limited to between a hundredth and a tenth of the predictions' range, so that wide intervals do not pass for
    agreement. The highest predictions are searched for among the evaluated points and Sobol points, and around the best of these.
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
        """Return each point's distance from the best, in tolerances, for the objective where it is largest."""
        allowed = np.clip(NORMAL_90 * deviations, 0.01 * spans, 0.1 * spans)
        return np.asarray(((means.max(axis=0) - means) / np.maximum(allowed, 1e-300)).max(axis=1))

    for step in 0.25 * 0.7 ** np.arange(12):
        merits = [*means.T, -distance()]
        centres = points[[int(i) for merit in merits for i in np.argsort(-merit, kind="stable")[:4]]]
        around = np.repeat(centres, 16, axis=0)
        moved = rng.random(around.shape) < max(0.3, 1 / around.shape[1])
        neighbours = np.clip(around + moved * step * rng.standard_normal(around.shape), 0, 1)
        mean, deviation = _predict_all(surrogates, neighbours)
        points, means = np.concatenate([points, neighbours]), np.concatenate([means, mean])
        deviations = np.concatenate([deviations, deviation])
    distances = distance()
    return points[int(distances.argmin())] if distances.min() <= 1 else None


def _predict_all(surrogates: Sequence[Surrogate], points: Points) -> tuple[Points, Points]:
    predictions = [surrogate.predict(points) for surrogate in surrogates]
    return np.stack([mean for mean, _ in predictions], axis=1), np.stack([sd for _, sd in predictions], axis=1)
