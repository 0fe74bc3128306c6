"""gains: what one expert more would add, from averages of k experts for each k, and the line floor + c / k through their means.

Averages need no search: they show what experts give together, whatever merges them later. The gains of merging follow 1 / k in the
number of experts (arXiv 2509.24244). All scores are on the search examples, and so are the intervals: which expert comes next is not in
them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from evomerge.recipe import Recipe, merge
from evomerge.report import bootstrap
from evomerge.report.data import Gains, Interval

_FEWEST = 3
"""Different numbers of experts that a line of two coefficients is fitted to, so that it can miss them."""


def recipes(names: Sequence[str], count: int, seed: int) -> dict[str, Recipe]:
    """Return averages of at most `count` subsets of the experts, by name: see `subsets`."""
    return {f"average of {' + '.join(some)}": merge("linear", some) for some in subsets(names, count, seed)}


def subsets(names: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Return at most `count` different subsets of 2 to K - 1 of the K `names`, the smallest first.

    All of them if they are no more; otherwise as many of each size as of any other, as far as there are so many, drawn by the seed.
    """
    all_of = {k: comb(len(names), k) for k in range(2, len(names))}
    wanted = dict.fromkeys(all_of, 0)
    for _ in range(min(count, sum(all_of.values()))):
        wanted[min((k for k in all_of if wanted[k] < all_of[k]), key=lambda k: (wanted[k], k))] += 1
    chosen: list[tuple[str, ...]] = []
    for k, number in wanted.items():
        if number == all_of[k]:
            chosen += combinations(names, k)
            continue
        key = hashlib.sha256(f"subsets/{seed}/{k}/{'/'.join(names)}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16])))
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < number:
            drawn[tuple(sorted(generator.choice(len(names), k, replace=False).tolist()))] = None
        chosen += (tuple(names[i] for i in some) for some in sorted(drawn))
    return chosen


def measure(
    groups: Mapping[int, Sequence[bootstrap.Scores]],
    experts: int,
    draws: bootstrap.Resamples,
    utility: NDArray[np.float64],
    metric: str,
    origin: bootstrap.Scores | None = None,
) -> Gains:
    """Return the gains of `groups`: k → scores of each average of k experts, on the examples of `draws`.

    A mean is that of the objectives of `draws`, weighted by `utility`, `(objectives,)`, above that of the model `origin`, if there is one.
    The line is fitted by least squares to the means, each with the same weight, and again to those of each resample.
    """
    sizes = sorted(groups)
    if experts < _FEWEST or len(sizes) < _FEWEST:
        found = f"{experts} experts" if experts < _FEWEST else f"averages of {', '.join(map(str, sizes))} experts alone"
        return Gains(refused=f"expected averages of {_FEWEST} different numbers of experts or more, got {found}")

    def means(scores: bootstrap.Scores) -> NDArray[np.float64]:
        """Return the mean of a model on all examples, and on each resample, `(1 + resamples,)`."""
        measured = np.array([[scores[name].mean(dtype=np.float64) for name in draws.counts]])
        drawn: NDArray[np.float64] = np.concatenate([measured, draws.means(scores)]) @ utility
        return drawn

    zero = 0.0 if origin is None else means(origin)
    models = [[means(scores) - zero for scores in groups[k]] for k in sizes]
    table = np.array([np.mean(group, axis=0) for group in models])  # (sizes, 1 + resamples)
    inverse = 1 / np.array(sizes)
    design = np.stack([np.ones(len(sizes)), inverse], axis=1)
    (floor, slope), *_ = np.linalg.lstsq(design, table, rcond=None)
    slope[np.ptp(table, axis=0) == 0] = 0  # of equal means, rounding errors would have a sign
    more = slope * (1 / (experts + 1) - 1 / experts)
    predicted = floor + slope / (experts + 1)
    residuals = table[:, 0] - design @ [floor[0], slope[0]]

    def interval(values: NDArray[np.float64]) -> Interval:
        return bootstrap.interval(values[1:], float(values[0]))

    return Gains(
        metric=metric,
        experts=experts,
        sizes=tuple(sizes),
        values=tuple(tuple(float(one[0]) for one in group) for group in models),
        means=tuple(map(interval, table)),
        floor=float(floor[0]),
        slope=float(slope[0]),
        residual=float(np.sqrt(np.mean(residuals**2))),
        more=interval(more),
        predicted=interval(predicted),
    )
