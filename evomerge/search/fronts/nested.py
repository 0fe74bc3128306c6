"""Nested MAP (Li et al., ICLR 2025, arXiv 2406.07529): a tree of pairs of experts, each with quadratics of two scales.

Every task has its expert, and every gene is the weight of one expert. The base, the experts and their mean come first.
Then, level by level, the nodes that score most alike are paired: for nodes A and B with weights w_A and w_B, 20 candidates
a · w_A + b · w_B with (a, b) in [0, 1]² are evaluated; quadratics in (a, b) are fitted; the best for equal preferences is the
pair's compromise, is evaluated, and becomes the node above. So T experts take T - 1 pairs, where one quadratic in T genes has
about T²/2 unknowns. Last, answers to preferences spread over the simplex are evaluated: their errors decide whether the tree's
predictions (see `tree`) may be relied on.

Differences from the paper and its released code:

- the paper runs again for each preference: here the tree is kept, and answers any preference;
- linear scalarisation reaches only the convex hull of a front: here Tchebycheff distances reach all of it;
- the code compares per cent with shares: here scores are (score - base) / (own expert - base). The paper pairs experts by
  their scores on their own tasks, which are all 1 in these units: here by their scores on the tasks of both (root mean square);
- the code evaluates a pair on its own tasks and draws 19 of 20 candidates: here all tasks are scored, 20 candidates are
  new, and base, children and compromise are in the fit too.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from evomerge import pareto, surrogate
from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics, read_weights
from evomerge.search.fronts.quadratic import succeeds
from evomerge.search.fronts.surface import Surface, empty_surface, make_surface, reasons_to_refuse, smallest_coverage
from evomerge.search.fronts.tree import CORNERS, Node, Tree, minimise, preferences
from evomerge.space import Genome, SearchSpace
from evomerge.surrogate import NORMAL_90, Surrogate
from evomerge.surrogate.warps import Prediction
from evomerge.trial import Evaluation

_SMALLEST_SCALE = 0.1
"""Smallest scale of a child in a compromise: an expert with weight 0 there could not be weighed against others above."""
_SURFACE_PREFERENCES = 200
_SAME = 1e-9


class NestedMapSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by nested MAP."""

    kind: Literal["nested_map"] = "nested_map"
    points: int = Field(default=20, ge=7)
    """New candidates of each pair."""
    validated: int | None = Field(default=None, ge=1)
    """Preferences whose answers are evaluated. Default: p = (T + 1)(T + 2) / 2 for T experts."""
    weights: dict[str, float] | None = None
    """Objective → importance in the pairs' compromises, 0 for those left out. Default: all the same."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: the metric's range."""


class NestedMap:
    """A `Surfaced` breeder: known recipes, then pairs and their compromises level by level, then answers to preferences.

    Failed candidates are left out of the fits; while a pair has too few to identify its quadratics, as many Sobol points
    replace them. Where the base or an expert fails, the worst or best of the other known recipes defines the units, and 1
    where all fail; a failed model is paired last.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: NestedMapSettings) -> None:
        """Search `space`. Raises `DriverError` unless each gene is one expert's weight and each expert has an objective."""
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
        self._drawn = 0  # answers drawn
        self._pending: Genomes = np.empty((0, genes))
        self._places: list[tuple[Node, NDArray[np.float64]]] = []  # pair and scales of each row of `_pending`
        self._genomes: Genomes = np.empty((0, genes))
        self._evaluations: list[Evaluation] = []  # those that succeeded
        self._answers: list[int] = []  # rows of `_genomes`
        self.tree: Tree | None = None
        """The fitted pairs, once all are complete."""

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface."""
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
        self._pending = self._next()
        return self._pending

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep the successful evaluations. Raises `DriverError` for a score out of bounds."""
        self._keep(evaluations)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the answers to many preferences, as `Surfaced.surface` does; `genomes` may be in any order.

        It is judged by the root's candidates, each predicted from the others, and by the evaluated answers, which no fit
        includes.
        """
        if genomes is not None and len(genomes):
            replayed = copy.deepcopy(self)
            replayed.replay(genomes, evaluations)
            return replayed.surface()
        tree = self.tree
        if tree is None or len(self._answers) < min(1, self._drawn):
            return empty_surface(self._space, self._objectives, self._progress())
        judged = self._judged(tree)
        rows = tree.answers(preferences(len(self._objectives), _SURFACE_PREFERENCES, self._seed))
        rows = np.clip(rows, self._space.lower, self._space.upper)
        means, deviations = tree.predict(rows)
        for column, name in enumerate(self._objectives):
            deviations[:, column] *= judged[name].factor if name in judged else 1.0
        reasons = reasons_to_refuse(judged) + self._failed_validation(judged)
        return make_surface(
            self._space, rows, (means, deviations), judged, self._objectives, len(self._genomes), reasons
        )

    def replay(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> None:
        """Learn evaluations, in any order, as if they had been drawn and learnt generation by generation."""
        if not self._started:
            self.draw()
        while len(self._pending):
            away = cdist(self._pending, genomes, "chebyshev")
            matches = [evaluations[int(row.argmin())] if row.min() < _SAME else None for row in away]
            self._keep(matches)
            if None in matches:
                return
            self.draw()

    def _next(self) -> Genomes:
        if not self._started:
            self._started = True
            return self._known
        if self._over:
            return self._pending[:0]
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
                node.fit(self._objectives, self._bounds)  # now with its compromise
            self._nodes = [node for node in self._nodes if id(node) not in below] + self._level
            self._level = []
        self._over = True
        self.tree = Tree(self._nodes[0], self._means().max(axis=0), self._units)
        rows = self.tree.answers(preferences(len(self._objectives), self._count, self._seed))
        new: Genomes = rows[cdist(rows, self._genomes).min(axis=1) > _SAME]
        self._drawn = len(new)
        return new

    def _pairs(self) -> list[Node]:
        """Return new pairs of the nodes that score most alike, the closest first, with the evaluations that lie in their planes."""
        unknown = np.full(len(self._units), np.nan)
        scores = [unknown if node.scores is None else node.scores / self._units for node in self._nodes]
        order = []
        for first, second in itertools.combinations(range(len(self._nodes)), 2):
            tasks = self._task_of[[*self._nodes[first].leaves, *self._nodes[second].leaves]]
            away = float(np.sqrt(np.mean((scores[first][tasks] - scores[second][tasks]) ** 2)))
            order.append((away if np.isfinite(away) else np.inf, first, second))
        free = set(range(len(self._nodes)))
        pairs = []
        for _, first, second in sorted(order):
            if {first, second} <= free:
                free -= {first, second}
                one, other = self._nodes[first], self._nodes[second]
                pair = Node([*one.leaves, *other.leaves], (one, other), np.zeros(len(self._space.genes)))
                for scales, genome in zip(CORNERS[:3], pair.plane(CORNERS[:3]), strict=True):
                    same = self._rows_of(genome)
                    if len(same):
                        pair.add(scales, self._evaluations[same[0]])
                pairs.append(pair)
        return pairs

    def _design(self, node: Node) -> Genomes:
        """Return a pair's design: both children in full and Sobol points, or Sobol points for those that failed."""
        turn = [self._seed, 1, *sorted(node.leaves), node.drawn]
        seed = int(np.random.SeedSequence(turn).generate_state(1)[0])
        if node.drawn == 0:
            scales = surrogate.design(2, CORNERS, 3 + self._size, seed)[3:]
        else:
            scales = surrogate.design(2, (), max(3 + self._size - len(node.scales), 1), seed)
        node.drawn += len(scales)
        self._places += [(node, row) for row in scales]
        return node.plane(scales)

    def _compromise(self, node: Node) -> Genomes:
        """Return the pair's compromise, `(1, genes)`: the least distance on its own tasks."""
        node.fit(self._objectives, self._bounds)
        tasks = self._task_of[list(node.leaves)]
        shares = np.zeros(len(self._objectives))
        shares[tasks] = self._weights[tasks]
        shares[tasks] = shares[tasks] / shares.sum() if shares.any() else 1 / len(tasks)
        ideal = self._means().max(axis=0)

        def distance(scales: Genomes) -> NDArray[np.float64]:
            means = np.stack([fitted.fit.predict(scales) for fitted in node.fits], axis=1)
            return pareto.tchebycheff_distances(means[:, tasks], ideal[tasks], self._units[tasks], shares[tasks])

        node.compromise = minimise(distance, _SMALLEST_SCALE)
        node.weights = node.plane(node.compromise[None])[0]
        self._places.append((node, node.compromise))
        return node.weights[None]

    def _keep(self, evaluations: Sequence[Evaluation | None]) -> None:
        """Learn the evaluation of each pending row, None where there is none yet. Raises `DriverError`."""
        first = len(self._genomes)
        good = {i: done for i, done in enumerate(evaluations) if done is not None and succeeds(done, self._objectives)}
        means = np.array([done.means(self._objectives) for done in good.values()]).reshape(-1, len(self._objectives))
        check_bounds("nested_map", self._objectives, self._bounds, list(means.T))
        self._genomes = np.concatenate([self._genomes, self._pending[list(good)]])
        self._evaluations += good.values()
        if self._over:
            self._answers += range(first, len(self._genomes))
        elif not self._places:
            self._begin()
        for i, (node, scales) in enumerate(self._places):
            if i in good:
                node.add(scales, good[i])
            if scales is node.compromise and evaluations[i] is not None:
                failed = np.full(len(self._objectives), np.nan)
                node.scores = good[i].means(self._objectives) if i in good else failed

    def _begin(self) -> None:
        """Set each expert's task, the units, and the experts' scores from the known recipes."""
        means = self._means()
        if not len(means):
            return
        genes = len(self._nodes)
        for node in self._nodes:
            row = self._rows_of(node.weights)
            node.scores = means[row[0]] if len(row) else np.full(genes, np.nan)
        spans = np.ptp(means, axis=0)
        spans = np.where(spans > 0, spans, 1.0)
        scores = np.array([node.scores for node in self._nodes])  # (experts, objectives)
        if not self._by_name:
            merits = (np.where(np.isnan(scores), means.min(axis=0) - spans, scores) - means.min(axis=0)) / spans
            self._task_of = linear_sum_assignment(merits, maximize=True)[1]
        row = self._rows_of(np.zeros(genes))
        base = means[row[0]] if len(row) else means.min(axis=0)
        expert = np.empty(genes)
        expert[self._task_of] = scores[np.arange(genes), self._task_of]
        gains = np.where(np.isnan(expert), means.max(axis=0), expert) - base
        self._units = np.where(gains > 1e-3 * spans, gains, spans)  # an expert without a gain gives no unit

    def _rows_of(self, genome: Genome) -> NDArray[np.intp]:
        """Return the rows of `_genomes` that are `genome`."""
        return np.flatnonzero(np.abs(self._genomes - genome).max(axis=1, initial=0.0) < _SAME)

    def _means(self) -> Means:
        return np.array([done.means(self._objectives) for done in self._evaluations]).reshape(-1, len(self._objectives))

    def _judged(self, tree: Tree) -> dict[str, Surrogate]:
        """Return the tree's surrogate of each objective that varies."""
        root = tree.root
        answers = self._genomes[self._answers]
        genomes = np.concatenate([root.plane(root.scales), answers])
        evaluations = [*root.evaluations, *(self._evaluations[i] for i in self._answers)]
        means, deviations = tree.predict(answers)
        judged = {}
        for column, name in enumerate(self._objectives):
            table = np.array([done.scores[name] for done in evaluations], dtype=np.float64)
            if surrogate.varies(table):
                mean, deviation = root.fits[column].left_out
                left_out = np.append(mean, means[:, column]), np.append(deviation, deviations[:, column])
                rung = _TreeRung(tree, self._space, column, left_out)
                judged[name] = surrogate.judge(self._space.to_unit(genomes), table, rung)
        return judged

    def _failed_validation(self, judged: Mapping[str, Surrogate]) -> list[str]:
        """Return a line for each objective whose evaluated answers lie outside their intervals too often."""
        count = len(self._answers)
        if count == 0:  # all had been evaluated before
            return []
        expected = smallest_coverage(count)
        reasons = []
        for name, fit in judged.items():
            errors = np.abs(fit.values - fit.left_out)[-count:]
            inside = float(np.mean(errors <= NORMAL_90 * fit.factor * fit.rung.left_out[1][-count:]))
            if inside < expected:
                reasons.append(
                    f"`{name}`: {inside:.0%} of {count} evaluated answers lie in their 90% intervals; expected {expected:.0%} or more"
                )
        return reasons

    def _progress(self) -> str:
        pairs = sum(1 for node in self._nodes for _ in node.walk())
        known = f"{pairs} of {len(self._space.genes) - 1} pairs are known"
        return f"the tree is not complete: {'none of its answers has been evaluated' if self.tree else known}"


class _TreeRung:
    """A `Rung`: a tree's predictions of one objective."""

    name = "tree of pairs"

    def __init__(self, tree: Tree, space: SearchSpace, column: int, left_out: Prediction) -> None:
        self._tree, self._space, self._column = tree, space, column
        self.left_out = left_out

    def predict(self, points: Genomes) -> Prediction:
        """Return mean score and standard deviation at `points`, `(points, genes)` in unit coordinates."""
        means, deviations = self._tree.predict(self._space.from_unit(points))
        return means[:, self._column], deviations[:, self._column]


def _experts(space: SearchSpace, objectives: Objectives) -> list[str]:
    """Return the expert whose weight each gene is. Raises `DriverError` unless there is one, and as many objectives."""
    genes = len(space.genes)
    landmarks = space.landmarks()
    alone = {name: landmarks.get(f"expert {name}") for name in space.experts}
    experts = [
        name
        for row in np.eye(genes)
        for name, weights in alone.items()
        if weights is not None and (weights == row).all()
    ]
    if len(experts) != genes or len(alone) != genes or np.any(landmarks.get("base", np.ones(1))):
        missing = [f"expert {name}" for name in alone if name not in experts] or ["base"]
        why = "" if len(alone) != genes else f", none of which makes the {missing[0]} at 0 and 1"
        raise DriverError(
            f"driver `nested_map` needs one float gene for each expert, its weight, with 0 and 1 in its range, and got {genes} genes"
            f" for {len(alone)} experts{why}; type `space: task_arithmetic`, or `kind: map`"
        )
    if len(objectives) != genes or genes < 2:
        raise DriverError(
            f"driver `nested_map` needs an objective for each of two or more experts, got {len(objectives)} for {genes}; "
            "give every expert its task, or type `kind: map`"
        )
    return experts
