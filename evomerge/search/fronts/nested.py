"""Nested MAP (Li et al., ICLR 2025, arXiv 2406.07529): a tree of pairs, each a quadratic in two numbers, that any preference asks.

Every task has its expert, every gene is the weight of one expert. The base, the experts and their mean come first. Then, level by
level, the nodes that behave most alike are paired: for nodes A and B whose compromises have the weights w_A and w_B, 20 candidates
a · w_A + b · w_B with (a, b) in [0, 1]² are evaluated, all other experts left out; quadratics in (a, b) are fitted; their best for
equal preferences is the pair's own compromise, is evaluated, and is the node above. So T experts take T - 1 pairs, where one
quadratic in T genes takes as many unknowns as T²/2. An expert's own compromise is 1. Pairs of one level do not depend on each other
and are evaluated together. Last come answers to preferences that are spread over the simplex: what the tree is worth.

How the tree predicts a merge of any weights v in [0, 1], with q_N the quadratics of node N, and s_A(v) = ⟨v, w_A⟩ / ⟨w_A, w_A⟩ in [0, 1] the scale of
w_A that is nearest to v on A's experts:

    y(v) = q_root(s_A(v), s_B(v)) + Σ over other pairs N = (C, D) of q_N(s_C(v), s_D(v)) - q_N(s_N(v) · compromise of N),

what the root says, and what each pair says of v's not being a multiple of its compromise. This is a heuristic, not a fit: exact, as
far as the quadratics are, where what changes within a pair does not interact with experts outside of it. It can be evaluated for
real, and is: how well it predicts the last answers decides whether it may be relied on.

A preference goes down the tree: at the root the scales of least augmented weighted Tchebycheff distance (`pareto.tchebycheff`, with the
ideal the best that was measured, in units of expert minus base), then in each pair below again, all else held, so that
no step makes the predicted distance worse; and again from what was found, until that gains nothing. That needs no evaluation: some
5 ms of one core for three experts, 0.1 s for eight.

Other than the paper, and other than its released code:

- the paper gives one model per preference, and everything is run again for another: here the tree is kept, and asked;
- the code's linear scalarisation only reaches the convex hull of a front: Tchebycheff reaches all of it;
- the code compares per cent with shares: scores are (score - base) / (own expert - base) throughout. The paper pairs those whose scores,
  each on its own tasks, are closest; in such units every expert has 1. Here those are closest whose scores, each on the tasks of both, differ
  least (root mean square);
- the code evaluates a pair on its own tasks: here all tasks are scored at each evaluation, which costs more of them, and tells how
  a pair changes the others' tasks;
- of 20 the code makes 19: here 20 are new, and base, children and compromise, which lie in the same plane, are in the fit.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from evomerge import pareto, surrogate
from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics, read_weights
from evomerge.search.fronts.infill import spread
from evomerge.search.fronts.quadratic import Bounds, LeftOut, identifies, succeeds
from evomerge.search.fronts.surface import Surface, doubts, flat, nothing, published
from evomerge.space import Genome, SearchSpace
from evomerge.surrogate.rungs import Prediction
from evomerge.trial import Evaluation

_LEAST_SCALE = 0.1
"""Of a child in a compromise: an expert that is left out of it could not be weighed against others above."""
_ASKED = 200
"""Preferences that a surface is made of, and the corners."""
_BELIEVED = 0.25
"""Standard deviation of what a pair below the root says, as a share of it."""
_SWEEPS = 10
_SAME = 1e-9

_Distance = Callable[[Means], NDArray[np.float64]]
"""Predicted scores, `(points, objectives)` → distances to the ideal, `(points,)`."""


class NestedMapSettings(BaseModel):
    """`driver:` of a study that searches by nested MAP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["nested_map"] = "nested_map"
    points: int = Field(default=20, ge=7)
    """New candidates of each pair."""
    validated: int | None = Field(default=None, ge=1)
    """Preferences that are answered and evaluated. Default: p = (T + 1)(T + 2) / 2 for T experts."""
    weights: dict[str, float] | None = None
    """Objective → importance in the pairs' compromises, 0 for those left out. Default: all the same."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: [0, 1] for `accuracy`, `exact_match`
    and `rouge…`, [null, 0] for `log_likelihood`, and no bounds for others."""


class Node:
    """A model that stands for some experts: one of them, or the compromise of a pair of nodes."""

    def __init__(self, leaves: Sequence[int], children: "tuple[Node, Node] | None", weights: Genome) -> None:
        """Stand for the experts `leaves`, by their genes. `weights` are the compromise's, `(genes,)`: 0 until a pair has one."""
        self.leaves = tuple(leaves)
        self.children = children
        self.weights = weights
        self.compromise: NDArray[np.float64] | None = None
        """Of a pair: the scales of its children, `(2,)`."""
        self.scores: NDArray[np.float64] | None = None
        """What the model scored, `(objectives,)`; NaN where it failed, None until it has been evaluated."""
        self.scales: Genomes = np.empty((0, 2))
        """Of a pair: what was evaluated in its plane, `(candidates, 2)`."""
        self.evaluations: list[Evaluation] = []
        self.drawn = 0  # of its design, with replacements
        self.fits: list[LeftOut] = []

    def plane(self, scales: Genomes) -> Genomes:
        """Return the genomes at `scales`, `(points, 2)`, of the children: `(points, genes)`."""
        one, other = self.pair
        return np.asarray(scales[:, :1] * one.weights + scales[:, 1:] * other.weights)

    def scale(self, genomes: Genomes) -> NDArray[np.float64]:
        """Return the scale of the node's own weights that is nearest to `genomes` on its experts: `(points,)` in [0, 1]."""
        return np.clip(genomes @ self.weights / (self.weights @ self.weights), 0, 1)

    @property
    def pair(self) -> "tuple[Node, Node]":
        """The children of a node that has them."""
        assert self.children is not None
        return self.children

    @property
    def identified(self) -> bool:
        """Whether a pair's candidates identify a quadratic, and leave one over."""
        return len(self.scales) > surrogate.unknowns(2) and identifies(self.scales)

    def fit(self, objectives: Sequence[str], bounds: Sequence[Bounds]) -> None:
        """Fit the pair's quadratics of all `objectives`."""
        means = np.array([found.means(objectives) for found in self.evaluations])
        self.fits = [LeftOut(self.scales, means[:, column], bound) for column, bound in enumerate(bounds)]

    def walk(self) -> "Iterator[Node]":
        """Yield the pairs from here down, each before those below it."""
        if self.children is not None:
            yield self
            for child in self.children:
                yield from child.walk()


class Tree:
    """All pairs of one search, ready to be asked. Scores are means of all objectives, higher is better."""

    def __init__(self, root: Node, ideal: NDArray[np.float64], units: NDArray[np.float64]) -> None:
        """Ask the tree below `root`; `ideal` and `units`, `(objectives,)`, are those of the distance."""
        self.root = root
        self.ideal = ideal
        self.units = units

    def means(self, genomes: Genomes) -> Means:
        """Return the mean scores predicted at `genomes`, `(points, objectives)`."""
        total = np.zeros((len(genomes), len(self.ideal)))
        for node in self.root.walk():
            here, above = (surrogate.quadratic_terms(scales) for scales in self._scales(node, genomes))
            for column, fitted in enumerate(node.fits):
                total[:, column] += fitted.fit.at(here)
                if node is not self.root:
                    total[:, column] -= fitted.fit.at(above)
        bounds = np.array([fitted.fit.bounds for fitted in self.root.fits])
        return np.clip(total, bounds[:, 0], bounds[:, 1])

    def predict(self, genomes: Genomes) -> tuple[Means, Means]:
        """Return the predicted mean scores and standard deviations of what would be measured, both `(points, objectives)`.

        For what experts do to each other across pairs, a quarter of what each pair below the root says is a standard deviation,
        by rule of thumb: a surface's calibration corrects it.
        """
        variances = np.zeros((len(genomes), len(self.ideal)))
        for node in self.root.walk():
            here, above = self._scales(node, genomes)
            for column, fitted in enumerate(node.fits):
                if node is self.root:
                    variances[:, column] += fitted.predict(here)[1] ** 2
                else:
                    change = fitted.fit.predict(here) - fitted.fit.predict(above)
                    variances[:, column] += fitted.change_variance(here, above) + (_BELIEVED * change) ** 2
        return self.means(genomes), np.sqrt(variances)

    def answer(self, shares: NDArray[np.float64]) -> Genome:
        """Return the genome, `(genes,)`, that a preference wants: `shares` are the importances of objectives, together 1."""

        def distance(means: Means) -> NDArray[np.float64]:
            return pareto.tchebycheff_distances(means, self.ideal, self.units, shares)

        genome, best = np.zeros_like(self.root.weights), np.inf
        for sweep in range(_SWEEPS):
            before = best
            for node in self.root.walk():
                genome, best = self._step(node, genome, distance, down=sweep == 0)
            if best > before - 1e-3:
                break
        return genome

    def _step(self, node: Node, genome: Genome, distance: _Distance, *, down: bool) -> tuple[Genome, float]:
        """Return `genome` with the best scales of one pair's children, or as it is, and its distance.

        The first time `down` the scales are those of the children's compromises, then those of what they have become.
        """
        sides = np.zeros((2, len(genome)))
        for side, child in zip(sides, node.pair, strict=True):
            own = list(child.leaves)
            largest = genome[own].max()
            side[own] = child.weights[own] if down or largest == 0 else genome[own] / largest
        rest = genome.copy()
        rest[list(node.leaves)] = 0.0
        found = rest + least(lambda scales: distance(self.means(rest + scales @ sides)), 0.0) @ sides
        after = distance(self.means(np.stack([genome, found])))
        if down and node is self.root:  # from nothing
            return found, float(after[1])
        return (found, float(after[1])) if after[1] < after[0] else (genome, float(after[0]))

    def _scales(self, node: Node, genomes: Genomes) -> tuple[Genomes, Genomes]:
        """Return the scales of a pair's children, and what they would be in its own compromise: both `(points, 2)`."""
        one, other = node.pair
        assert node.compromise is not None
        here = np.stack([one.scale(genomes), other.scale(genomes)], axis=1)
        return here, node.scale(genomes)[:, None] * node.compromise


class NestedMap:
    """A `Breeder`: known recipes, then pairs and their compromises level by level, then answers to preferences, and the end.

    Candidates that fail are left out of the fits; while a pair has too few to identify its quadratics, as many others, of
    Sobol's sequence, take their places. Where the base or an expert fails, the worst or best of the other known recipes gives
    the units, and 1 where all fail; a model that failed is paired last.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: NestedMapSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` unless each gene is one expert's weight, with its task."""
        genes = len(space.genes)
        experts = _experts(space, objectives)
        self._space = space
        self._objectives = tuple(objectives)
        self._seed = seed
        self._size = settings.points
        self._bounds = [metric.bounds for metric in read_metrics(objectives, settings.bounds).values()]
        self._weights = read_weights(objectives, settings.weights)
        self._count = settings.validated or surrogate.unknowns(genes)
        self._known = known_recipes(space)
        tasks = [name.rpartition("/")[0] or name for name in objectives]
        self._by_name = sorted(tasks) == sorted(experts)
        self._task_of = np.array([tasks.index(name) for name in experts]) if self._by_name else np.arange(genes)
        self._units = np.ones(genes)
        self._nodes: list[Node] = [Node([gene], None, weights) for gene, weights in enumerate(np.eye(genes))]
        self._level: list[Node] = []
        self._started = self._over = False
        self._drawn = 0  # answers that are evaluated
        self._flying: Genomes = np.empty((0, genes))
        # Whose plane each row of `_flying` lies in, and where.
        self._places: list[tuple[Node, NDArray[np.float64]]] = []
        self._genomes: Genomes = np.empty((0, genes))
        self._evaluations: list[Evaluation] = []  # that succeeded
        self._answers: list[int] = []  # rows of `_genomes`
        self.tree: Tree | None = None
        """What is asked, when all pairs are known."""

    @property
    def least(self) -> int:
        """Evaluations without which there is no surface."""
        return len(self._known) + (len(self._space.genes) - 1) * self._size

    def __str__(self) -> str:
        genes = len(self._space.genes)
        belongs = "of its name" if self._by_name else "that alone scores best on it"
        return (
            f"nested MAP: {len(self._known)} known recipes, {genes - 1} pairs of {self._size} candidates and a compromise, then"
            f" {self._count} preferences answered; each objective belongs to the expert {belongs}"
        )

    def draw(self) -> Genomes:
        """Return the known recipes, then pairs' designs and compromises in turn, then answers, then no rows."""
        self._places = []
        self._flying = self._next()
        return self._flying

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep what succeeded. Raises `DriverError` for a score that is out of bounds."""
        self._keep(evaluations)

    def answer(self, preference: Mapping[str, float]) -> tuple[Genome, NDArray[np.float64], NDArray[np.float64]]:
        """Return the merge that a `preference`, objective → importance, wants, without evaluating anything.

        That is its genome `(genes,)`, and its predicted mean scores and their standard deviations, both `(objectives,)`, the latter as
        the quadratics have them: a surface's are calibrated. Raises `DriverError` before all pairs are known.
        """
        if self.tree is None:
            msg = f"driver `nested_map`: the tree is not complete: {self._progress()}; evaluate more"
            raise DriverError(msg)
        genome = self.tree.answer(read_weights(self._objectives, preference))
        means, deviations = self.tree.predict(genome[None])
        return genome, means[0], deviations[0]

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the answers to many preferences, with what speaks against them.

        `genomes` and `evaluations` are those that have not been learnt: of a fresh driver all that were evaluated, in any order,
        else `Generational.unfinished`. It is judged by the root's candidates, each predicted from the others, and by the
        answers that were evaluated, which no fit knows.
        """
        if genomes is not None and len(genomes):
            found = copy.deepcopy(self)
            found.replay(genomes, evaluations)
            return found.surface()
        tree = self.tree
        if tree is None or len(self._answers) < min(1, self._drawn):
            return nothing(self._space, self._objectives, f"the tree is not complete: {self._progress()}")
        judged = self._judged(tree)
        against = flat(self._objectives, judged, len(self._genomes)) + doubts(judged) + self._unborne(judged)
        rows = np.array([tree.answer(shares) for shares in preferences(len(self._objectives), _ASKED, self._seed)])
        rows = rows[np.sort(np.unique(rows.round(6), axis=0, return_index=True)[1])]
        rows = np.clip(rows, self._space.lower, self._space.upper)
        means, deviations = tree.predict(rows)
        factors = np.array([judged[name].factor if name in judged else 1.0 for name in self._objectives])
        return published(self._space, self._objectives, rows, (means, factors * deviations), judged, against)

    def replay(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> None:
        """Learn what was evaluated, in any order, as if it had been drawn and learnt generation by generation."""
        if not self._started:
            self.draw()
        while len(self._flying):
            away = cdist(self._flying, genomes, "chebyshev")
            told = [evaluations[int(row.argmin())] if row.min() < _SAME else None for row in away]
            self._keep(told)
            if None in told:
                return
            self.draw()

    # -- the tree --

    def _next(self) -> Genomes:
        if not self._started:
            self._started = True
            return self._known
        if self._over:
            return self._flying[:0]
        while len(self._nodes) > 1 or self._level:
            if not self._level:
                self._level = self._pairs()
            lacking = [node for node in self._level if not node.identified]
            if lacking:
                return np.concatenate([self._design(node) for node in lacking])
            undecided = [node for node in self._level if node.scores is None]
            if undecided:
                return np.concatenate([self._compromise(node) for node in undecided])
            below = {id(child) for node in self._level for child in node.pair}
            for node in self._level:
                node.fit(self._objectives, self._bounds)  # with its compromise
            self._nodes = [node for node in self._nodes if id(node) not in below] + self._level
            self._level = []
        self._over = True
        tree = self.tree = Tree(self._nodes[0], self._means().max(axis=0), self._units)
        asked = preferences(len(self._objectives), self._count, self._seed)
        found = np.array([tree.answer(shares) for shares in asked])
        found = found[np.sort(np.unique(found.round(6), axis=0, return_index=True)[1])]
        new: Genomes = found[cdist(found, self._genomes).min(axis=1) > _SAME]
        self._drawn = len(new)
        return new

    def _pairs(self) -> list[Node]:
        """Return new nodes of those that are most alike, the closest first; of an odd number, one is left for the next level."""
        scored = [self._in_units(node) for node in self._nodes]
        order = []
        for one, other in itertools.combinations(range(len(self._nodes)), 2):
            tasks = self._task_of[[*self._nodes[one].leaves, *self._nodes[other].leaves]]
            away = float(np.sqrt(np.mean((scored[one][tasks] - scored[other][tasks]) ** 2)))
            order.append((away if np.isfinite(away) else np.inf, one, other))
        free = set(range(len(self._nodes)))
        made = []
        for _, one, other in sorted(order):
            if {one, other} <= free:
                free -= {one, other}
                children = self._nodes[one], self._nodes[other]
                made.append(self._pair(children))
        return made

    def _pair(self, children: tuple[Node, Node]) -> Node:
        """Return a pair that knows already what of its plane was evaluated: the base and its children."""
        leaves = [*children[0].leaves, *children[1].leaves]
        node = Node(leaves, children, np.zeros(len(self._space.genes)))
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        for scales, genome in zip(corners, node.plane(corners), strict=True):
            same = np.flatnonzero(np.abs(self._genomes - genome).max(axis=1, initial=0.0) < _SAME)
            if len(same):
                node.scales = np.vstack([node.scales, scales])
                node.evaluations.append(self._evaluations[same[0]])
        return node

    def _design(self, node: Node) -> Genomes:
        """Return a pair's design: both children in full and Sobol points, or as many Sobol points as it has lost."""
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        turn = [self._seed, 1, *sorted(node.leaves), node.drawn]
        seed = int(np.random.SeedSequence(turn).generate_state(1)[0])
        if node.drawn == 0:
            scales = surrogate.design(2, corners, 3 + self._size, seed)[3:]
        else:
            scales = surrogate.design(2, (), max(3 + self._size - len(node.scales), 1), seed)
        node.drawn += len(scales)
        self._places += [(node, row) for row in scales]
        return node.plane(scales)

    def _compromise(self, node: Node) -> Genomes:
        """Return the pair's own compromise, a row: the least distance on its own tasks."""
        node.fit(self._objectives, self._bounds)
        tasks = self._task_of[list(node.leaves)]
        shares = np.zeros(len(self._objectives))
        shares[tasks] = self._weights[tasks]
        shares[tasks] = shares[tasks] / shares.sum() if shares.any() else 1 / len(tasks)
        ideal = self._means().max(axis=0)

        def distance(scales: Genomes) -> NDArray[np.float64]:
            means = np.stack([fitted.fit.predict(scales) for fitted in node.fits], axis=1)
            return pareto.tchebycheff_distances(means[:, tasks], ideal[tasks], self._units[tasks], shares[tasks])

        node.compromise = least(distance, _LEAST_SCALE)
        node.weights = node.plane(node.compromise[None])[0]
        self._places.append((node, node.compromise))
        return node.weights[None]

    def _in_units(self, node: Node) -> NDArray[np.float64]:
        """Return a node's scores over the units, `(objectives,)`; NaN where they are not known."""
        return np.full(len(self._units), np.nan) if node.scores is None else node.scores / self._units

    # -- what was evaluated --

    def _keep(self, evaluations: Sequence[Evaluation | None]) -> None:
        """Learn the evaluation of each row in flight, None where it is not known yet. Raises `DriverError`."""
        first = len(self._genomes)
        good = [i for i, found in enumerate(evaluations) if found is not None and succeeds(found, self._objectives)]
        kept = [found for found in (evaluations[i] for i in good) if found is not None]
        means = np.array([found.means(self._objectives) for found in kept]).reshape(-1, len(self._objectives))
        check_bounds("nested_map", self._objectives, self._bounds, list(means.T))
        self._genomes = np.concatenate([self._genomes, self._flying[good]])
        self._evaluations += kept
        if self._over:
            self._answers += range(first, len(self._genomes))
        elif not self._places:
            self._begin()
        scores = dict(zip(good, zip(kept, means, strict=True), strict=True))
        for i, (node, scales) in enumerate(self._places):
            if i in scores:
                node.scales = np.vstack([node.scales, scales])
                node.evaluations.append(scores[i][0])
            if scales is node.compromise and evaluations[i] is not None:
                node.scores = scores[i][1] if i in scores else np.full(len(self._objectives), np.nan)

    def _begin(self) -> None:
        """Take from the known recipes which expert has which task, the units, and the experts' scores."""
        means = self._means()
        if not len(means):
            return
        genes = len(self._nodes)
        rows = [
            np.flatnonzero(np.abs(self._genomes - weights).max(axis=1) < _SAME)
            for weights in [*np.eye(genes), np.zeros(genes)]
        ]
        for node, row in zip(self._nodes, rows[:-1], strict=True):
            node.scores = means[row[0]] if len(row) else np.full(genes, np.nan)
        spans = np.ptp(means, axis=0)
        spans = np.where(spans > 0, spans, 1.0)
        scores = np.array([node.scores for node in self._nodes])  # (experts, objectives)
        if not self._by_name:
            merits = (np.where(np.isnan(scores), means.min(axis=0) - spans, scores) - means.min(axis=0)) / spans
            self._task_of = linear_sum_assignment(merits, maximize=True)[1]
        base = means[rows[-1][0]] if len(rows[-1]) else means.min(axis=0)
        own = np.empty(genes)
        own[self._task_of] = scores[np.arange(genes), self._task_of]
        gains = np.where(np.isnan(own), means.max(axis=0), own) - base
        self._units = np.where(gains > 1e-3 * spans, gains, spans)  # an expert that learnt nothing measures nothing

    def _means(self) -> Means:
        return np.array([found.means(self._objectives) for found in self._evaluations]).reshape(
            -1, len(self._objectives)
        )

    # -- the surface --

    def _judged(self, tree: Tree) -> dict[str, surrogate.Surrogate]:
        """Return the tree's surrogate of each objective that varies."""
        root = tree.root
        answers = self._genomes[self._answers]
        genomes = np.concatenate([root.plane(root.scales), answers])
        done = [*root.evaluations, *(self._evaluations[i] for i in self._answers)]
        means, deviations = tree.predict(answers)
        judged = {}
        for column, name in enumerate(self._objectives):
            table = np.array([found.scores[name] for found in done], dtype=np.float64)
            if surrogate.varies(table):
                mean, deviation = root.fits[column].left_out
                left_out = np.append(mean, means[:, column]), np.append(deviation, deviations[:, column])
                rung = _Branch(tree, self._space, column, left_out)
                judged[name] = surrogate.judge(self._space.to_unit(genomes), table, rung)
        return judged

    def _unborne(self, judged: Mapping[str, surrogate.Surrogate]) -> list[str]:
        """Return what the answers that were evaluated say against the tree."""
        count = len(self._answers)
        if count == 0:  # all had been evaluated before
            return []
        least_share = 0.9 - 2 * np.sqrt(0.09 / count)
        found = []
        for name, fit in judged.items():
            errors = np.abs(fit.values - fit.left_out)[-count:]
            inside = float(np.mean(errors <= surrogate.NORMAL_90 * fit.factor * fit.rung.left_out[1][-count:]))
            if inside < least_share:
                found.append(
                    f"`{name}`: {inside:.0%} of {count} answers that were evaluated lie in their 90% intervals; expected {least_share:.0%} or more"
                )
        return found

    def _progress(self) -> str:
        pairs = sum(1 for node in self._nodes for _ in node.walk())
        if self.tree is None:
            return f"{pairs} of {len(self._space.genes) - 1} pairs are known"
        return "none of its answers has been evaluated"


class _Branch:
    """A `Rung`: what a tree predicts of one objective."""

    name = "tree of pairs"

    def __init__(self, tree: Tree, space: SearchSpace, column: int, left_out: Prediction) -> None:
        self._tree, self._space, self._column = tree, space, column
        self.left_out = left_out

    def predict(self, points: Genomes) -> Prediction:
        """Return the mean score at `points`, `(points, genes)` in unit coordinates, and its standard deviation."""
        means, deviations = self._tree.predict(self._space.from_unit(points))
        return means[:, self._column], deviations[:, self._column]


def least(function: Callable[[Genomes], NDArray[np.float64]], low: float) -> NDArray[np.float64]:
    """Return where in [low, 1]² a `function` of points `(points, 2)` is least, `(2,)`: on a grid of 21 by 21, and three finer ones."""
    steps = np.linspace(-1, 1, 21)
    centre, width = np.full(2, (1 + low) / 2), (1 - low) / 2
    for _ in range(4):
        around = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
        points = np.clip(centre + width * around, low, 1.0)
        centre = points[int(function(points).argmin())]
        steps, width = np.linspace(-1, 1, 7), 0.15 * width
    return np.asarray(centre)


def preferences(objectives: int, count: int, seed: int) -> NDArray[np.float64]:
    """Return `count` preferences, each together 1, spread over the simplex from its corners: `(count, objectives)`."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    drawn = np.concatenate([np.eye(objectives), rng.dirichlet(np.ones(objectives), 2000)])
    return drawn[spread(drawn, count)]


def _experts(space: SearchSpace, objectives: Objectives) -> list[str]:
    """Return the expert whose weight each gene is. Raises `DriverError` unless there is one, and as many objectives."""
    genes = len(space.genes)
    marks = space.landmarks()
    alone = {name: marks.get(f"expert {name}") for name in space.experts}
    found = [
        name
        for row in np.eye(genes)
        for name, weights in alone.items()
        if weights is not None and (weights == row).all()
    ]
    if len(found) != genes or len(alone) != genes or np.any(marks.get("base", np.ones(1))):
        missing = [f"expert {name}" for name in alone if name not in found] or ["base"]
        why = "" if len(alone) != genes else f", none of which makes the {missing[0]} at 0 and 1"
        msg = (
            f"driver `nested_map` needs one float gene for each expert, its weight, with 0 and 1 in its range, and got {genes} genes"
            f" for {len(alone)} experts{why}; type `space: task_arithmetic`, or `kind: map`"
        )
        raise DriverError(msg)
    if len(objectives) != genes or genes < 2:
        msg = (
            f"driver `nested_map` needs an objective for each of two or more experts, got {len(objectives)} for {genes}; "
            "give every expert its task, or type `kind: map`"
        )
        raise DriverError(msg)
    return found
