"""Problems on genomes whose answers are known: no models, no merging."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.recipe import Expert, Member, MergeNode, Recipe, Tiled
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Proposal


@dataclass(frozen=True, slots=True)
class Problem:
    """A search problem that reads the genome instead of building a model.

    `score` maps a genome to its objectives, `(objectives,)`, higher is better. `volume` is the hypervolume of
    the whole front above `reference`; for one objective, the best score's distance from it.
    """

    space: SearchSpace
    objectives: tuple[str, ...]
    score: Callable[[Genome], NDArray[np.float64]]
    reference: NDArray[np.float64]
    volume: float | None = None

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a proposal: one example for each objective."""
        genome = self.space.encode(proposal.recipe) if proposal.genome is None else proposal.genome
        scores = {
            name: np.array([score], dtype=np.float32)
            for name, score in zip(self.objectives, self.score(genome), strict=True)
        }
        return Evaluation(scores=scores)

    def quality(self, proposals: Sequence[Proposal]) -> float:
        """Return the hypervolume above `reference` of what the proposals score."""
        return pareto.hypervolume([self.evaluate(p).means(self.objectives) for p in proposals], self.reference)


def toy_space(genes: int = 8) -> SearchSpace:
    """Return a space of float genes in [0, 1]: two experts' weights over `genes / 2` groups of blocks."""
    return SearchSpace(
        {
            "merge": {
                "method": "task_arithmetic",
                "inputs": "experts",
                "parameters": {
                    "weight": {"float": [0, 1], "per": ["expert", f"block/{genes // 2}"]},
                    "lambda": 1.0,
                },
            }
        },
        experts=("left", "right"),
    )


def sphere(genes: int = 8) -> Problem:
    """Return the problem of one objective, best (0) where every gene is 0.3."""
    return Problem(
        toy_space(genes),
        ("sphere",),
        lambda x: -np.mean((x - 0.3) ** 2, keepdims=True),
        np.array([-0.25]),
        0.25,
    )


def two_spheres(genes: int = 8) -> Problem:
    """Return the problem of being near 1/4 and near 3/4 in all genes at once.

    Optimal are the genomes (t, …, t) with t in [1/4, 3/4]. With a and b the two (negated) objectives, the
    front is √a + √b = 1/2; above the reference point (-1/4, -1/4) it dominates 1/16 - ∫(1/2 - √a)² da = 5/96.
    """
    return Problem(
        toy_space(genes),
        ("near", "far"),
        lambda x: -np.array([np.mean((x - 0.25) ** 2), np.mean((x - 0.75) ** 2)]),
        np.array([-0.25, -0.25]),
        5 / 96,
    )


def three_corners(genes: int = 6) -> Problem:
    """Return the problem of being near the base and both experts: optimal is the triangle between them."""
    corners = np.zeros((3, genes))
    corners[1, : genes // 2], corners[2, genes // 2 :] = 1.0, 1.0
    return Problem(
        toy_space(genes),
        ("base", "left", "right"),
        lambda x: -np.mean((corners - x) ** 2, axis=1),
        np.full(3, -1.0),
    )


def mixed() -> Problem:
    """Return a problem with float, log-scaled, int and choice genes.

    Optimal: the second method, seed 7, density 0.1, and any weight: the two objectives disagree only there.
    """
    space = SearchSpace(
        {
            "merge": {
                "method": {"choice": ["ties", "dare_ties"]},
                "inputs": "experts",
                "parameters": {"weight": {"float": [0, 1]}, "density": {"float": [0.01, 1], "log": True}},
                "seed": {"int": [0, 9]},
            }
        },
        experts=("left", "right"),
    )
    names = [gene.name for gene in space.genes]
    method, weight, density, seed = (names.index(name) for name in ("method", "weight", "density", "seed"))

    def score(x: Genome) -> NDArray[np.float64]:
        shared = (x[method] != 1) + abs(x[seed] - 7) / 9 + abs(np.log10(x[density]) + 1) / 2
        return -np.array([shared + x[weight], shared + 1 - x[weight]])

    return Problem(space, ("light", "heavy"), score, np.array([-2.0, -2.0]), 3.5)


@dataclass(frozen=True, slots=True)
class Exam(Problem):
    """A problem of many examples, so that a part of them can be evaluated: objectives are named `task/score`.

    On an example a recipe scores its mean, plus how easy the example is, plus what is noise between the two. Over all
    examples of a task easiness and noise add up to 0: the mean of a whole evaluation is `score`'s, in float32.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of examples of each task."""
    easiness: float = 0.0
    """Standard deviation over examples, the same for all recipes: what pairing takes away."""
    noise: float = 0.0
    """Standard deviation over examples of each recipe by itself."""
    seed: int = 0

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of the examples that are asked for."""
        genome = self.space.encode(proposal.recipe) if proposal.genome is None else proposal.genome
        found = {}
        for name, mean in zip(self.objectives, self.score(genome), strict=True):
            task = name.partition("/")[0]
            key = [self.seed, *task.encode()]
            easiness = self.easiness * _centred(key, self.sizes[task])
            noise = self.noise * _centred([*key, int(proposal.recipe.id[:16], 16)], self.sizes[task])
            vector = (mean + easiness + noise).astype(np.float32)
            if proposal.examples is None:
                found[name] = vector
            elif task in proposal.examples:
                found[name] = vector[list(proposal.examples[task])]
        return Evaluation(found)


def exam(problem: Problem, size: int, *, easiness: float = 0.0, noise: float = 0.0, seed: int = 0) -> Exam:
    """Return a problem as one whose tasks have examples: `size` of the first, one more of the second, and so on."""
    names = tuple(f"{name}/score" for name in problem.objectives)
    sizes = {name: size + i for i, name in enumerate(problem.objectives)}
    return Exam(problem.space, names, problem.score, problem.reference, problem.volume, sizes, easiness, noise, seed)


def _centred(key: Sequence[int], size: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(np.random.SeedSequence(key)).standard_normal(size)
    return np.asarray(drawn - drawn.mean())


@dataclass(frozen=True, slots=True)
class Family(Problem):
    """A problem for populations: what a candidate can do is made of what its parents could, as its recipe says.

    Hidden skills, `(24,)`, are 0 or more and together at most 8, so that nobody can have them all. An example is solved
    by one skill above 0.5: the objective `left` has the first 16 of them, which the expert of that name begins with.
    """

    skills: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Of each recipe evaluated so far, by its id."""

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a seed, or of a child of what was evaluated before: 0 or 1 for each example."""
        skills = self.skills[proposal.recipe.id] = self._made(proposal.recipe)
        solved = (skills > 0.5).astype(np.float32)
        return Evaluation(scores={"left": solved[:16], "right": solved[16:]})

    def _made(self, recipe: Recipe) -> NDArray[np.float64]:
        root = recipe.root
        if isinstance(root, Expert):
            return np.where((np.arange(24) < 16) == (root.expert == "left"), 0.3, 0.0)
        if isinstance(root, Member):
            return self.skills[root.member]
        assert isinstance(root, MergeNode)
        one, other = (self._made(entry) for entry in root.merge.inputs)
        rng = np.random.default_rng(root.merge.seed)
        if root.merge.method == "slerp":  # a child
            share = float(str(root.merge.parameters["t"]))
            weight = np.where(rng.random(24) < 0.5, share, 1 - share)
            made = (1 - weight) * one + weight * other + 0.1 * rng.standard_normal(24)
        elif root.merge.method == "svd_mutate":
            made = one + 0.1 * rng.random(24) * other
        else:
            weights = root.merge.parameters["weight"]
            assert isinstance(weights, Tiled)
            made = weights.values["#0"] * one + weights.values["#1"] * other
        made = np.maximum(made, 0)
        return np.asarray(made * min(1.0, 8 / made.sum()))


def family(*, specialist: bool = False) -> Family:
    """Return the problem of two experts' descendants; a `specialist` is a third parent, whose skills mutate the child."""
    seed = {"int": [0, 2**31 - 1]}
    child = {
        "merge": {
            "method": "slerp",
            "inputs": [{"member": "mother"}, {"member": "father"}],
            "parameters": {"t": {"float": [0, 1]}},
            "seed": seed,
        }
    }
    mutant = {"merge": {"method": "svd_mutate", "inputs": [child, {"member": "specialist"}], "seed": seed}}
    space = SearchSpace(mutant if specialist else child, experts=("left", "right"))
    return Family(space, ("left", "right"), lambda genome: np.zeros(2), np.zeros(2))
