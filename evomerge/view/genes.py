"""Genes: how much each one matters, and how the scores change along it, as surrogates of the evaluated candidates tell."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from evomerge.errors import SurrogateError
from evomerge.history import Completed
from evomerge.parts import Parts
from evomerge.search.fronts.front import MOST_GENES
from evomerge.space import Genome
from evomerge.surrogate import NORMAL_90, Surrogate, fit, varies
from evomerge.trial import Metric

_CANDIDATES = 200
"""Candidates that a surrogate is fitted to: of more, that many evenly from first to last."""
_FOLDS = 10
_SAMPLES = 256
_STEPS = 33


def fits(parts: Parts, population: Completed) -> dict[str, Surrogate]:
    """Return the surrogate of each task's searched metric that varies, fitted to candidates that did not fail.

    Raises `SurrogateError` for more than 40 genes, fewer than 4 candidates, and where candidates merge earlier ones.
    """
    points, chosen = _points(parts, population)
    found = {}
    for name, task in parts.tasks.items():
        scores = _scores(parts, chosen, name)
        if varies(scores):
            found[name] = fit(points, scores, bounds=task.metrics[task.search_metric].bounds)
    return found


def importance(parts: Parts, population: Completed, fitted: Mapping[str, Surrogate]) -> dict[str, list[list[float]]]:
    """Return by task each gene's share of the variance of the predicted score over the space, with its 90% interval.

    It is the total effect: the variance that is left when all other genes are known (Sobol's index by Jansen's estimator, Saltelli
    et al. 2010, eq. (f) of table 2), so shares may sum to more than 1. The interval is by the jackknife over ten groups of
    candidates: it says how much the share depends on which candidates were evaluated.
    """
    points, chosen = _points(parts, population)
    folds = min(_FOLDS, len(points))
    fold = np.arange(len(points)) % folds
    shares = {}
    for name, surrogate in fitted.items():
        bounds = parts.tasks[name].metrics[parts.tasks[name].search_metric].bounds
        scores = _scores(parts, chosen, name)
        values = _total(surrogate)
        again = []
        for left in range(folds):
            kept = fold != left
            if kept.sum() >= 4 and varies(scores[kept]):
                again.append(_total(fit(points[kept], scores[kept], bounds=bounds)))
        spread = np.full(len(values), np.nan)
        if len(again) > 1:
            table = np.array(again)
            spread = np.sqrt((len(again) - 1) / len(again) * ((table - table.mean(axis=0)) ** 2).sum(axis=0))
        half = NORMAL_90 * spread
        shares[name] = np.stack([values, np.clip(values - half, 0, None), values + half], axis=1).tolist()
    return shares


def slices(parts: Parts, fitted: Mapping[str, Surrogate], genome: Genome) -> list[dict[str, Any]]:
    """Return for each gene its values, and by task the predicted scores there, with half their 90% intervals; others as in `genome`."""
    space = parts.space
    start = space.to_unit(genome)
    found = []
    for i, gene in enumerate(space.genes):
        if gene.kind == "float":
            steps = np.linspace(0, 1, _STEPS)
        else:
            whole = np.unique(np.linspace(gene.low, gene.high, _STEPS).round())
            steps = (whole - gene.low) / max(gene.high - gene.low, 1)
        points = np.repeat(start[None], len(steps), axis=0)
        points[:, i] = steps
        numbers = space.from_unit(points)[:, i]
        scores = {}
        for name, surrogate in fitted.items():
            mean, deviation = surrogate.predict(points)
            metric: Metric = parts.tasks[name].metrics[parts.tasks[name].search_metric]
            half = NORMAL_90 * surrogate.widening * deviation
            scores[name] = {"mean": np.clip(mean, *metric.bounds).tolist(), "half": half.tolist()}
        found.append(
            {
                "name": gene.name,
                "kind": gene.kind,
                "values": numbers.tolist(),
                "labels": None if gene.kind in ("float", "int") else [str(gene.value(number)) for number in numbers],
                "here": float(genome[i]),
                "scores": scores,
            }
        )
    return found


def _total(surrogate: Surrogate) -> NDArray[np.float64]:
    """Return the total effect of each gene on the prediction, `(genes,)`."""
    genes = surrogate.points.shape[1]
    drawn = qmc.Sobol(2 * genes, seed=0).random_base2(int(math.log2(_SAMPLES)))
    a, b = drawn[:, :genes], drawn[:, genes:]
    mixed = np.repeat(a[None], genes, axis=0)
    for i in range(genes):
        mixed[i, :, i] = b[:, i]
    predicted, _ = surrogate.predict(np.concatenate([a, b, *mixed]))
    base, changed = predicted[:_SAMPLES], predicted[2 * _SAMPLES :].reshape(genes, _SAMPLES)
    variance = predicted[: 2 * _SAMPLES].var()
    total: NDArray[np.float64] = (
        ((base - changed) ** 2).mean(axis=1) / (2 * variance) if variance > 0 else np.zeros(genes)
    )
    return total


def _points(parts: Parts, population: Completed) -> tuple[NDArray[np.float64], Completed]:
    space = parts.space
    if len(space.genes) > MOST_GENES:
        msg = f"{len(space.genes)} genes are too many for surrogates of the scores; expected at most {MOST_GENES}"
        raise SurrogateError(msg)
    if space.parents:
        raise SurrogateError(
            "candidates are merges of earlier ones here, and their scores depend on those more than on genes"
        )
    if len(population) < 4:
        raise SurrogateError(f"expected 4 candidates or more that did not fail, got {len(population)}")
    rows: Sequence[int] = np.unique(np.linspace(0, len(population) - 1, _CANDIDATES).round().astype(int)).tolist()
    chosen = [population[row] for row in rows]
    return space.to_unit(np.array([space.genome_of(proposal) for proposal, _ in chosen])), chosen


def _scores(parts: Parts, chosen: Completed, name: str) -> NDArray[np.float64]:
    key = f"{name}/{parts.tasks[name].search_metric}"
    return np.stack([evaluation.scores[key] for _, evaluation in chosen]).astype(np.float64)
