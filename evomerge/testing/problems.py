"""Search problems with known answers that score genomes directly, without models or merging."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.recipe import Expert, Member, MergeNode, Recipe, Tiled
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Metric, Proposal


@dataclass(frozen=True, slots=True)
class Problem:
    """A search problem that scores the genome instead of building a model.

    `score` maps a genome to its objectives, `(objectives,)`, higher is better. `volume` is the hypervolume of the true
    front above `reference`; for one objective, the best score's distance from it.
    """

    space: SearchSpace
    objectives: tuple[str, ...]
    score: Callable[[Genome], NDArray[np.float64]]
    reference: NDArray[np.float64]
    volume: float | None = None

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a proposal: one example for each objective."""
        scores = zip(self.objectives, self.score(self.space.genome_of(proposal)), strict=True)
        return Evaluation({name: np.array([score], np.float32) for name, score in scores})

    def quality(self, proposals: Sequence[Proposal]) -> float:
        """Return the hypervolume above `reference` of the proposals' scores."""
        return pareto.hypervolume([self.evaluate(p).means(self.objectives) for p in proposals], self.reference)


def toy_space(genes: int = 8) -> SearchSpace:
    """Return a space of float genes in [0, 1]: two experts' weights in `genes / 2` groups of blocks."""
    weight = {"float": [0, 1], "per": ["expert", f"block/{genes // 2}"]}
    parameters = {"weight": weight, "lambda": 1.0}
    recipe = {"merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": parameters}}
    return SearchSpace(recipe, experts=("left", "right"))


def two_spheres(genes: int = 8) -> Problem:
    """Return a problem of two objectives: the (negated) distances to 1/4 and to 3/4 in all genes.

    Optimal are the genomes (t, …, t) with t in [1/4, 3/4]. With a and b the two distances, the front is √a + √b = 1/2;
    above the reference point (-1/4, -1/4) it dominates 1/16 - ∫(1/2 - √a)² da = 5/96.
    """
    return Problem(
        toy_space(genes),
        ("near", "far"),
        lambda x: -np.array([np.mean((x - 0.25) ** 2), np.mean((x - 0.75) ** 2)]),
        np.array([-0.25, -0.25]),
        5 / 96,
    )


@dataclass(frozen=True, slots=True)
class Scattered(Problem):
    """A problem with examples and slopes: each example scores the (negated) distance to a centre of its own."""

    centres: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """By task, `(examples, genes)`."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metric by objective."""
        return {name: Metric("distance", high=0.0, smooth=True, slopes=True) for name in self.objectives}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples by task."""
        return {task: len(centres) for task, centres in self.centres.items()}

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a proposal, with slopes over the examples that it wants."""
        genome = self.space.genome_of(proposal)
        scores, slopes = {}, {}
        for name, (task, centres) in zip(self.objectives, self.centres.items(), strict=True):
            away = centres - genome
            scores[name] = -np.mean(away**2, axis=1).astype(np.float32)
            if proposal.slopes is not None:
                # What `slopes` makes of the indices 0, 1, … says which number each gene is.
                numbers = np.full(len(proposal.recipe.numbers), np.nan)
                indices = self.space.slopes(genome, np.arange(len(numbers), dtype=np.float64)).astype(int)
                numbers[indices] = 2 * away[list(proposal.slopes[task])].mean(axis=0) / len(genome)
                slopes[name] = numbers
        return Evaluation(scores, slopes=slopes)


def scattered_spheres(genes: int = 8, examples: int = 20, spread: float = 0.1) -> Scattered:
    """Return a problem of two objectives with slopes: distances to centres, one for each of `examples`.

    They scatter around 0.8 and 0.6 in the left expert's genes, and 0.1 and 0.3 in the right one's.
    """
    rng = np.random.default_rng(0)
    centres = {
        task: np.repeat(at, genes // 2) + spread * rng.standard_normal((examples, genes))
        for task, at in (("near", (0.8, 0.1)), ("far", (0.6, 0.3)))
    }

    def score(x: Genome) -> NDArray[np.float64]:
        return -np.array([np.mean((x - centre) ** 2) for centre in centres.values()])

    return Scattered(toy_space(genes), ("near/distance", "far/distance"), score, np.full(2, -0.25), centres=centres)


@dataclass(frozen=True, slots=True)
class Family(Problem):
    """A problem for populations: a candidate's skills are computed from those of its parents, as its recipe says.

    Hidden skills, `(24,)`, are 0 or more with a sum of at most 8, so that no candidate has all. An example is solved by
    one skill above 0.5: the objective `left` has the first 16 examples, in which the expert `left` starts with 0.3.
    """

    skills: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Skills of each recipe evaluated so far, by its id."""

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a seed, or of a child of evaluated candidates: 0 or 1 for each example."""
        skills = self.skills[proposal.recipe.id] = self._skills_of(proposal.recipe)
        solved = (skills > 0.5).astype(np.float32)
        return Evaluation(scores={"left": solved[:16], "right": solved[16:]})

    def _skills_of(self, recipe: Recipe) -> NDArray[np.float64]:
        root = recipe.root
        if isinstance(root, Expert):
            return np.where((np.arange(24) < 16) == (root.expert == "left"), 0.3, 0.0)
        if isinstance(root, Member):
            return self.skills[root.member]
        assert isinstance(root, MergeNode)
        first, second = (self._skills_of(entry) for entry in root.merge.inputs)
        rng = np.random.default_rng(root.merge.seed)
        if root.merge.method == "slerp":  # a child
            share = float(str(root.merge.parameters["t"]))
            weight = np.where(rng.random(24) < 0.5, share, 1 - share)
            skills = (1 - weight) * first + weight * second + 0.1 * rng.standard_normal(24)
        elif root.merge.method == "svd_mutate":
            skills = first + 0.1 * rng.random(24) * second
        else:
            weights = root.merge.parameters["weight"]
            assert isinstance(weights, Tiled)
            skills = weights.values["#0"] * first + weights.values["#1"] * second
        skills = np.maximum(skills, 0)
        return np.asarray(skills * min(1.0, 8 / skills.sum()))


def family(*, specialist: bool = False) -> Family:
    """Return a problem of two experts' descendants; with `specialist`, a third parent's skills mutate the child."""
    seed = {"int": [0, 2**31 - 1]}
    parents = [{"member": "mother"}, {"member": "father"}]
    child = {"merge": {"method": "slerp", "inputs": parents, "parameters": {"t": {"float": [0, 1]}}, "seed": seed}}
    mutant = {"merge": {"method": "svd_mutate", "inputs": [child, {"member": "specialist"}], "seed": seed}}
    space = SearchSpace(mutant if specialist else child, experts=("left", "right"))
    return Family(space, ("left", "right"), lambda genome: np.zeros(2), np.zeros(2))
