"""How published methods turn the slopes of several objectives into one direction, for comparisons with the package's own.

Everything is maximised. `slopes` are `(objectives, genes)`, one row for each objective.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from evomerge import pareto

Array = NDArray[np.float64]


def mgda(slopes: Array) -> Array:
    """Return MGDA's direction, `(genes,)`: the shortest vector in the convex hull of the slopes. It raises all objectives, or is 0.

    Désidéri, Multiple-gradient descent algorithm (2012). Exact: of each face of the hull, the point nearest to 0 of its plane.
    """
    gram = slopes @ slopes.T
    best, shortest = np.full(len(slopes), 1 / len(slopes)), np.inf
    for count in range(1, len(slopes) + 1):
        for face in map(list, combinations(range(len(slopes)), count)):
            system = np.ones((count + 1, count + 1))
            system[:count, :count], system[count, count] = gram[np.ix_(face, face)], 0.0
            shares = np.linalg.lstsq(system, np.eye(count + 1)[count], rcond=None)[0][:count]
            if (shares < -1e-12).any() or abs(shares.sum() - 1) > 1e-6:
                continue
            length = float(shares @ gram[np.ix_(face, face)] @ shares)
            if length < shortest - 1e-15:
                best, shortest = np.zeros(len(slopes)), length
                best[face] = shares
    return best @ slopes


def epo(slopes: Array, losses: Array, ray: Array, tolerance: float = 1e-3) -> Array:
    """Return the direction of exact Pareto optimal search, `(genes,)`, towards losses of which `ray` * `losses` are equal.

    `losses`, `(objectives,)`, are above 0 and fall along the slopes. Mahapatra & Rajan, Multi-task learning with user preferences
    (ICML 2020): their eq. 11 for the non-uniformity μ and its gradient a, and the linear programs of eq. 24 and 25, over shares β
    of the slopes in the simplex. While μ is large, losses are balanced: of those that would fall no faster than others, only the
    largest may not rise. Where the losses are balanced, all of them fall.
    """
    count = len(losses)
    shares = ray * losses / (ray @ losses)
    uneven = float(shares @ np.log(count * shares))
    towards = ray * (np.log(count * shares) - uneven)  # a
    gram = slopes @ slopes.T
    gram /= max(float(np.trace(gram)), 1e-300)  # the programs do not depend on the scale
    falls = gram @ towards  # how fast each loss falls along Gᵀ a
    if uneven > tolerance:
        gains, least = falls, np.zeros(count)
        if (falls > 0).any():
            least = np.where(falls > 0, -np.inf, falls)
            least[np.argmax(ray * losses)] = 0.0
    else:
        gains, least = gram.sum(axis=1), np.zeros(count)
    bounded = np.isfinite(least)
    solved = linprog(-gains, A_ub=-gram[bounded], b_ub=-least[bounded], A_eq=np.ones((1, count)), b_eq=[1.0])
    if not solved.success:  # no shares keep all of the losses from rising: the point is optimal
        return mgda(slopes)
    return np.asarray(solved.x @ slopes)


def hypervolume_slopes(points: Array, corner: Array, step: float = 1e-6) -> Array:
    """Return the slopes of the hypervolume above `corner` with respect to each point's scores, `(points, objectives)`.

    Wang et al., Hypervolume indicator gradient ascent multi-objective optimization (EMO 2017): a dominated point follows the
    hypervolume of its own layer of non-dominated sorting. The volume is linear in each score between those of other points.
    """
    result = np.zeros_like(points)
    left = np.arange(len(points))
    while len(left):
        layer = left[pareto.nondominated(points[left])]
        before = pareto.hypervolume(points[layer], corner)
        for row, column in np.ndindex(len(layer), points.shape[1]):
            moved = points[layer].copy()
            moved[row, column] += step
            result[layer[row], column] = (pareto.hypervolume(moved, corner) - before) / step
        left = np.setdiff1d(left, layer)
    return result


def levenberg_marquardt(
    jacobian: Array, losses: Array, shares: Array, damping: float, free: NDArray[np.bool_]
) -> Array:
    """Return a step that lowers Σ shares * losses, `(genes,)`; 0 for genes that are not `free`.

    Gauss-Newton for residuals r = √(2 loss), whose squares sum up to twice the losses, with Marquardt's damping: a multiple
    of the matrix's diagonal. `jacobian`, `(examples, genes)`, has the slopes of minus each example's loss, above 0.
    """
    rows = jacobian[:, free]
    matrix = (rows * (shares / (2 * losses))[:, None]).T @ rows
    diagonal = np.diag(matrix)
    matrix = matrix + np.diag(damping * np.maximum(diagonal, 1e-6 * diagonal.max(initial=1e-300)))
    step = np.zeros(jacobian.shape[1])
    step[free] = np.linalg.solve(matrix, shares @ rows)
    return step
