"""Mixtures of the experts as candidates: weights of 0 or more with the total of an average.

Expected improvements are largest where the surrogates see them, which the noise of the examples may move. Mixtures alone make a
front that is good everywhere; here its gaps are filled, in units of predicted scores. Points are in unit coordinates, `(points, genes)`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import qmc

from evomerge import pareto
from evomerge.space import SearchSpace

Points = NDArray[np.float64]

_COUNT = 9
"""Exponent of two: 512 candidates."""


def of(space: SearchSpace, points: Points) -> Points:
    """Map points of the whole space to those whose weights are mixtures."""
    return space.to_unit(space.mixed(space.from_unit(points)))


def candidates(space: SearchSpace, seed: int) -> Points:
    """Return mixtures that are spread evenly over all; other genes than the weights are spread over their ranges."""
    assert space.weights is not None
    cube = qmc.Sobol(len(space.genes), seed=np.random.default_rng(seed)).random_base2(_COUNT)
    cube[:, space.weights.genes[:, -1]] = 0.0  # the level at which the weights have the total of an average
    return of(space, cube)


def are_mixtures(space: SearchSpace, points: Points) -> NDArray[np.bool_]:
    """Return which points have weights with the total of an average, bool `(points,)`."""
    assert space.weights is not None
    totals = space.from_unit(points)[:, space.weights.genes].sum(axis=2)
    return np.asarray((np.abs(totals - space.weights.total) < 1e-6).all(axis=1))


def filling(scores: Points, known: Points, count: int) -> NDArray[np.intp]:
    """Return at most `count` rows of the front of the predicted `scores`, `(points, objectives)`, that fill gaps between `known` scores.

    Each is the farthest from all known ones and from those before, in units of the ranges of `scores`.
    """
    if not len(scores):
        return np.array([], np.intp)
    rows = np.flatnonzero(pareto.nondominated(scores))
    spans = np.ptp(scores, axis=0)
    scaled, others = (each / np.where(spans > 0, spans, 1.0) for each in (scores[rows], known))
    away = cdist(scaled, others).min(axis=1) if len(known) else np.full(len(rows), np.inf)
    chosen: list[int] = []
    while len(chosen) < count and away.max() > 0:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
    return rows[chosen]
