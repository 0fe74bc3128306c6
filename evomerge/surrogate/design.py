"""Designs: which candidates to evaluate before a response surface is fitted, and whether they identify its coefficients.

Points are rows in unit coordinates, float64 `(points, genes)`, as `SearchSpace.to_unit` gives them.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from evomerge.errors import SurrogateError

Points = NDArray[np.float64]

_LEVELS = 3
"""Values of a gene that are needed to tell its square from a straight line."""


def unknowns(genes: int) -> int:
    """Return the number of coefficients of a quadratic in d `genes`: (d + 1)(d + 2) / 2."""
    return (genes + 1) * (genes + 2) // 2


def quadratic_terms(points: ArrayLike) -> Points:
    """Return 1, each gene and each product of two genes of `points`, `(points, unknowns)`, genes scaled to [-1, 1]."""
    centred = 2 * np.asarray(points, dtype=np.float64) - 1
    rows, columns = np.triu_indices(centred.shape[1])
    return np.concatenate([np.ones((len(centred), 1)), centred, centred[:, rows] * centred[:, columns]], axis=1)


def check_rank(points: Points) -> None:
    """Raise `SurrogateError` unless `points` identify all coefficients of a quadratic."""
    singular = np.linalg.svd(quadratic_terms(points), compute_uv=False)
    needed = unknowns(points.shape[1])
    noise = singular.max(initial=0.0) * max(len(points), needed) * np.finfo(np.float64).eps
    rank = int((singular > noise).sum())
    if rank == needed:
        return
    few = [i for i, column in enumerate(points.T) if len(np.unique(column.round(9))) < _LEVELS]
    if len(points) < needed:
        why = f"evaluate {needed} or more"
    elif few:
        why = f"gene {few[0]} takes fewer than {_LEVELS} values, so that its square is a straight line; spread it over more"
    else:
        why = "some genes only change together; spread the points, such as by `design`"
    msg = f"{len(points)} points identify {rank} of the {needed} unknowns of a quadratic in {points.shape[1]} genes; {why}"
    raise SurrogateError(msg)


def identifies(points: Points) -> bool:
    """Return whether `points` identify all coefficients of a quadratic."""
    try:
        check_rank(points)
    except SurrogateError:
        return False
    return True


def design(genes: int, known: ArrayLike, count: int, seed: int) -> Points:
    """Return `count` points, `(count, genes)`: the `known` ones, `(known, genes)`, at most `count`, then Owen-scrambled Sobol points."""
    first = np.reshape(np.asarray(known, dtype=np.float64), (-1, genes))
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    # Sobol's sequence is balanced over powers of two; the beginning of one is as good as any other part.
    sobol = qmc.Sobol(genes, seed=rng).random_base2(math.ceil(math.log2(max(count - len(first), 1))))
    return np.concatenate([first, sobol[: count - len(first)]])
