"""The tree of pairs of nested MAP: it predicts the scores of any merge, and finds the merge for any preference.

Its prediction at weights v in [0, 1], with q_N the quadratics of node N, and s_A(v) = ⟨v, w_A⟩ / ⟨w_A, w_A⟩ clipped to [0, 1] the scale of
node A's weights w_A that is nearest to v on A's experts, is

    y(v) = q_root(s_A(v), s_B(v)) + Σ over other pairs N = (C, D) of q_N(s_C(v), s_D(v)) - q_N(s_N(v) · compromise of N):

the root's prediction, corrected by each pair for how far v is from a multiple of its compromise. This is a heuristic,
not a fit: it is exact, up to the quadratics' errors, where changes within a pair do not interact with experts outside it.

A preference is answered from the root down: first the root's scales of least augmented weighted Tchebycheff distance
(`pareto.tchebycheff`, with the best measured scores as the ideal, in units of expert minus base), then those of each pair below, with
the rest held fixed, accepted only where the distance falls; and again, until nothing is gained. That evaluates nothing, and
takes about 5 ms on one core for three experts, 0.1 s for eight.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto, surrogate
from evomerge.search.driver import Genomes, Means
from evomerge.search.fronts.infill import spread
from evomerge.space import Genome
from evomerge.surrogate.map_quadratic import Bounds, MapQuadratic
from evomerge.trial import Evaluation

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
"""Scales of a pair's children: the base, each child alone, and both."""

_CHANGE_DEVIATION = 0.25
"""Standard deviation of a correction by a pair below the root, as a share of the correction."""
_SWEEPS = 10

_Distance = Callable[[Means], NDArray[np.float64]]
"""Predicted scores, `(points, objectives)` → distances to the ideal, `(points,)`."""


class Node:
    """A model that stands for some experts: one expert, or the compromise of a pair of nodes."""

    def __init__(self, leaves: Sequence[int], children: "tuple[Node, Node] | None", weights: Genome) -> None:
        """Stand for the experts of the genes `leaves`. `weights`, `(genes,)`, are 0 for a pair without a compromise."""
        self.leaves = tuple(leaves)
        self.children = children
        self.weights = weights
        self.compromise: NDArray[np.float64] | None = None
        """The scales of a pair's children, `(2,)`."""
        self.scores: NDArray[np.float64] | None = None
        """The model's mean scores, `(objectives,)`; NaN where it failed, None until it is evaluated."""
        self.scales: Genomes = np.empty((0, 2))
        """The evaluated points of a pair's plane, `(candidates, 2)`."""
        self.evaluations: list[Evaluation] = []
        self.drawn = 0  # points of its design, with replacements
        self.fits: list[MapQuadratic] = []

    @property
    def pair(self) -> "tuple[Node, Node]":
        """The children of a node that has them."""
        assert self.children is not None
        return self.children

    @property
    def identified(self) -> bool:
        """Whether a pair's evaluations identify a quadratic, with one to leave out."""
        return len(self.scales) > surrogate.unknowns(2) and surrogate.identifies(self.scales)

    def add(self, scales: NDArray[np.float64], evaluation: Evaluation) -> None:
        """Keep the evaluation of the point of a pair's plane at `scales`, `(2,)`."""
        self.scales = np.vstack([self.scales, scales])
        self.evaluations.append(evaluation)

    def fit(self, objectives: Sequence[str], bounds: Sequence[Bounds]) -> None:
        """Fit the pair's quadratics of all `objectives`."""
        means = np.array([evaluation.means(objectives) for evaluation in self.evaluations])
        self.fits = [MapQuadratic(self.scales, means[:, column], bound) for column, bound in enumerate(bounds)]

    def plane(self, scales: Genomes) -> Genomes:
        """Return the genomes, `(points, genes)`, of the children at `scales`, `(points, 2)`."""
        first, second = self.pair
        return np.asarray(scales[:, :1] * first.weights + scales[:, 1:] * second.weights)

    def scale(self, genomes: Genomes) -> NDArray[np.float64]:
        """Return the scale of the node's weights nearest to `genomes` on its experts: `(points,)` in [0, 1]."""
        return np.clip(genomes @ self.weights / (self.weights @ self.weights), 0, 1)

    def child_scales(self, genomes: Genomes) -> tuple[Genomes, Genomes]:
        """Return the scales of a pair's children, and those in the nearest multiple of its compromise: both `(points, 2)`."""
        assert self.compromise is not None
        here = np.stack([child.scale(genomes) for child in self.pair], axis=1)
        return here, self.scale(genomes)[:, None] * self.compromise

    def walk(self) -> "Iterator[Node]":
        """Yield the pairs from here down, each before those below it."""
        if self.children is not None:
            yield self
            for child in self.children:
                yield from child.walk()


class Tree:
    """All pairs of one search, fitted. Scores are means of all objectives; higher is better."""

    def __init__(self, root: Node, ideal: NDArray[np.float64], units: NDArray[np.float64]) -> None:
        """Take the tree below `root`; `ideal` and `units`, `(objectives,)`, define the distance of an answer."""
        self.root = root
        self.ideal = ideal
        self.units = units

    def means(self, genomes: Genomes) -> Means:
        """Return the mean scores predicted at `genomes`, `(points, objectives)`."""
        total = np.zeros((len(genomes), len(self.ideal)))
        for node in self.root.walk():
            here, above = (surrogate.quadratic_terms(scales) for scales in node.child_scales(genomes))
            for column, fitted in enumerate(node.fits):
                total[:, column] += fitted.fit.at(here)
                if node is not self.root:
                    total[:, column] -= fitted.fit.at(above)
        bounds = np.array([fitted.fit.bounds for fitted in self.root.fits])
        return np.clip(total, bounds[:, 0], bounds[:, 1])

    def predict(self, genomes: Genomes) -> tuple[Means, Means]:
        """Return predicted mean scores and standard deviations of measured ones, both `(points, objectives)`.

        Each correction by a pair below the root has a quarter of its size as a standard deviation, for interactions across
        pairs: a rule of thumb, which a surface's calibration corrects.
        """
        variances = np.zeros((len(genomes), len(self.ideal)))
        for node in self.root.walk():
            here, above = node.child_scales(genomes)
            for column, fitted in enumerate(node.fits):
                if node is self.root:
                    variances[:, column] += fitted.predict(here)[1] ** 2
                else:
                    change = fitted.fit.predict(here) - fitted.fit.predict(above)
                    variances[:, column] += fitted.change_variance(here, above) + (_CHANGE_DEVIATION * change) ** 2
        return self.means(genomes), np.sqrt(variances)

    def answers(self, preferences: NDArray[np.float64]) -> Genomes:
        """Return the different genomes for `preferences`, `(preferences, objectives)`: at most as many rows."""
        rows = np.array([self.answer(shares) for shares in preferences])
        return np.asarray(rows[np.sort(np.unique(rows.round(6), axis=0, return_index=True)[1])])

    def answer(self, shares: NDArray[np.float64]) -> Genome:
        """Return the genome, `(genes,)`, for a preference: `shares` are the objectives' importances, with sum 1."""

        def distance(means: Means) -> NDArray[np.float64]:
            return pareto.tchebycheff_distances(means, self.ideal, self.units, shares)

        genome, best = np.zeros_like(self.root.weights), np.inf
        for sweep in range(_SWEEPS):
            before = best
            for node in self.root.walk():
                genome, best = self._step(node, genome, distance, first=sweep == 0)
            if best > before - 1e-3:
                break
        return genome

    def _step(self, node: Node, genome: Genome, distance: _Distance, *, first: bool) -> tuple[Genome, float]:
        """Return `genome` with the best scales of one pair's children, or unchanged, and its distance.

        In the `first` sweep the children are their compromises, later what these have become.
        """
        sides = np.zeros((2, len(genome)))
        for side, child in zip(sides, node.pair, strict=True):
            leaves = list(child.leaves)
            largest = genome[leaves].max()
            side[leaves] = child.weights[leaves] if first or largest == 0 else genome[leaves] / largest
        rest = genome.copy()
        rest[list(node.leaves)] = 0.0
        moved = rest + minimise(lambda scales: distance(self.means(rest + scales @ sides)), 0.0) @ sides
        before, after = distance(self.means(np.stack([genome, moved])))
        if after < before or (first and node is self.root):  # the first genome of all is 0
            return moved, float(after)
        return genome, float(before)


def minimise(function: Callable[[Genomes], NDArray[np.float64]], low: float) -> NDArray[np.float64]:
    """Return the minimiser in [low, 1]², `(2,)`, of a `function` of points `(points, 2)`: on a 21 x 21 grid and three finer ones."""
    steps = np.linspace(-1, 1, 21)
    centre, width = np.full(2, (1 + low) / 2), (1 - low) / 2
    for _ in range(4):
        around = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        points = np.clip(centre + width * around, low, 1.0)
        centre = points[int(function(points).argmin())]
        steps, width = np.linspace(-1, 1, 7), 0.15 * width
    return np.asarray(centre)


def preferences(objectives: int, count: int, seed: int) -> NDArray[np.float64]:
    """Return `count` preferences, each with sum 1, spread over the simplex from its corners: `(count, objectives)`."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    drawn = np.concatenate([np.eye(objectives), rng.dirichlet(np.ones(objectives), 2000)])
    return drawn[spread(drawn, count)]
