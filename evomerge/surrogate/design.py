"""Which candidates to evaluate before a response surface is fitted, and whether they can tell its unknowns apart.

Points are rows in unit coordinates, float64 `(points, genes)`, as `SearchSpace.to_unit` gives them.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import qmc

from evomerge.errors import SurrogateError

Points = NDArray[np.float64]

_LEVELS = 3
"""A square needs that many values of its gene to differ from a straight line."""


def unknowns(genes: int) -> int:
    """Return how many coefficients a quadratic of so many `genes` has: (d + 1)(d + 2) / 2."""
    return (genes + 1) * (genes + 2) // 2


def quadratic_terms(points: ArrayLike) -> Points:
    """Return 1, each gene, each square and each product of `points`, `(points, unknowns)`, the genes centred to [-1, 1]."""
    centred = 2 * np.asarray(points, dtype=np.float64) - 1
    rows, columns = np.triu_indices(centred.shape[1])
    return np.concatenate([np.ones((len(centred), 1)), centred, centred[:, rows] * centred[:, columns]], axis=1)


@dataclass(frozen=True, slots=True)
class Rank:
    """How well a design tells a quadratic's unknowns apart: all of them where `rank` is `unknowns`.

    `condition` is the ratio of the largest to the smallest singular value of `quadratic_terms`; errors of the scores
    are magnified by up to so much.
    """

    rank: int
    unknowns: int
    condition: float


def check_rank(points: ArrayLike) -> Rank:
    """Return the rank of a quadratic's design matrix at `points`. Raises `SurrogateError` if it cannot be identified."""
    given = unit_points(points)
    singular = np.linalg.svd(quadratic_terms(given), compute_uv=False)
    wanted = unknowns(given.shape[1])
    noise = singular.max(initial=0.0) * max(len(given), wanted) * np.finfo(np.float64).eps
    rank = int((singular > noise).sum())
    if rank == wanted:
        return Rank(rank, wanted, float(singular[0] / singular[-1]))
    few = [i for i, column in enumerate(given.T) if len(np.unique(column.round(9))) < _LEVELS]
    if len(given) < wanted:
        why = f"evaluate {wanted} or more"
    elif few:
        why = f"gene {few[0]} takes fewer than {_LEVELS} values, so that its square is a straight line; spread it over more"
    else:
        why = "some genes only change together; spread the points, such as by `design`"
    msg = (
        f"{len(given)} points identify {rank} of the {wanted} unknowns of a quadratic in {given.shape[1]} genes; {why}"
    )
    raise SurrogateError(msg)


def design(genes: int, known: ArrayLike, count: int, seed: int) -> Points:
    """Return `count` points, `(count, genes)`: the `known` ones, `(known, genes)`, and then Sobol's, Owen-scrambled.

    Known are the base, the experts, their mean. Raises `SurrogateError` if there are more of them than `count`.
    """
    first = np.reshape(np.asarray(known, dtype=np.float64), (-1, genes)) if np.size(known) else np.empty((0, genes))
    unit_points(first)
    if count < len(first):
        msg = f"design: {len(first)} known points do not fit into {count}; expected a count of {len(first)} or more"
        raise SurrogateError(msg)
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    # A power of two is what Sobol's sequence is balanced for; its beginning is as good as any other part.
    drawn = qmc.Sobol(genes, seed=rng).random_base2(math.ceil(math.log2(max(count - len(first), 1))))
    return np.concatenate([first, drawn[: count - len(first)]])


def unit_points(points: ArrayLike) -> Points:
    """Return `points` as float64. Raises `SurrogateError` if they are not rows of the unit cube."""
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] == 0:
        msg = f"points: expected shape (points, genes), got {given.shape}"
        raise SurrogateError(msg)
    if not np.isfinite(given).all():
        msg = f"points: row {int(np.argmin(np.isfinite(given).all(axis=1)))} has a number that is not finite"
        raise SurrogateError(msg)
    outside = np.abs(given - 0.5) > 0.5 + 1e-9
    if outside.any():
        row, gene = np.argwhere(outside)[0]
        msg = f"points: gene {gene} of row {row} is {given[row, gene]:g}; expected unit coordinates in [0, 1], as `space.to_unit` gives them"
        raise SurrogateError(msg)
    return given
