"""Search problems on genomes, for tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evomerge.space import Genome, SearchSpace
from evomerge.testing import Problem, toy_space
from evomerge.trial import Evaluation, Metric, Proposal


def bits(*, scaled=False):
    """Return the problem of which of two experts' twelve blocks to include; the optimum has seven and keeps the initial path.

    Two objectives: the share of correct bits of each expert; if `scaled`, minus the mean distance of its scales from 1.2.
    """
    path = {"sources": "experts", "include": {"bit": "first", "per": ["slot"]}}
    if scaled:
        path["scale"] = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    space = SearchSpace({"stack": {"rest": "base", "path": path}}, experts=("left", "right"), blocks=6)
    optimum = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1.0])

    def score(genome):
        correct = (genome[:12] == optimum).reshape(2, 6).mean(axis=1)
        return correct - (np.abs(genome[12:] - 1.2).reshape(2, 6).mean(axis=1) if scaled else 0)

    return Problem(space, ("left", "right"), score, np.full(2, -1.0), 4.0)


def sphere(genes: int = 8) -> Problem:
    """Return a problem of one objective whose best score, 0, is where every gene is 0.3."""
    return Problem(
        toy_space(genes),
        ("sphere",),
        lambda x: -np.mean((x - 0.3) ** 2, keepdims=True),
        np.array([-0.25]),
        0.25,
    )


def three_corners(genes: int = 6) -> Problem:
    """Return a problem of three objectives, the distances to the base and both experts: optimal is their triangle."""
    corners = np.zeros((3, genes))
    corners[1, : genes // 2], corners[2, genes // 2 :] = 1.0, 1.0
    return Problem(
        toy_space(genes),
        ("base", "left", "right"),
        lambda x: -np.mean((corners - x) ** 2, axis=1),
        np.full(3, -1.0),
    )


def mixed() -> Problem:
    """Return a problem of two objectives with float, log-scaled, int and choice genes.

    Optimal are the second method, seed 7, density 0.1, and any weight, the only gene in which the objectives conflict.
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
class Choosy(Problem):
    """A problem of weights, which have slopes, and of a method and a seed, which have none; three examples of each task."""

    slopes: Callable[[Genome], NDArray[np.float64]] = field(default=lambda genome: np.empty((0, len(genome))))
    """Maps a genome to the slopes of the objectives, `(objectives, weights)`."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metric by objective."""
        return {name: Metric("distance", slopes=True) for name in self.objectives}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples by task."""
        return {name.partition("/")[0]: 3 for name in self.objectives}

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a proposal, with slopes if it wants any; they are over all examples."""
        genome = self.space.genome_of(proposal)
        scores = {name: np.full(3, x, np.float32) for name, x in zip(self.objectives, self.score(genome), strict=True)}
        if proposal.slopes is None:
            return Evaluation(scores)
        assert proposal.slopes == dict.fromkeys(self.sizes, (0, 1, 2))
        # What `slopes` makes of the indices 0, 1, … says which number each gene is.
        count, slopes = len(proposal.recipe.numbers), {}
        indices = self.space.slopes(genome, np.arange(count, dtype=np.float64))[self.space.sloped].astype(int)
        for name, slope in zip(self.objectives, self.slopes(genome), strict=True):
            slopes[name] = np.full(count, np.nan)
            slopes[name][indices] = slope
        return Evaluation(scores, slopes=slopes)


def choosy(objectives: int = 2, groups: int = 4) -> Choosy:
    """Return the problem of the best method, seed and weights: each method and seed has other best weights.

    Optimal are the second method and seed 7, and with one objective a score of 0. For a method's and seed's best weights the
    score differs by at most 0.04, much less than between weights.
    """
    space = SearchSpace(
        {
            "merge": {
                "method": {"choice": ["ties", "dare_ties", "dare_linear"]},
                "inputs": "experts",
                "parameters": {"weight": {"float": [0, 1], "per": ["expert", f"block/{groups}"]}},
                "seed": {"int": [0, 9]},
            }
        },
        experts=("left", "right"),
    )
    genes = [gene.name for gene in space.genes]
    method, seed = genes.index("method"), genes.index("seed")
    centres = np.random.default_rng(0).uniform(0.15, 0.85, (3, 10, 2 * groups))
    shifts = 0.1 * np.array([[1.0], [-1.0]]) if objectives == 2 else np.zeros((1, 1))

    def away(x: Genome) -> NDArray[np.float64]:
        return x[space.sloped] - centres[int(x[method]), int(x[seed])] - shifts

    def score(x: Genome) -> NDArray[np.float64]:
        lost = 0.02 * (x[method] != 1) + 0.02 * abs(x[seed] - 7) / 7
        return np.asarray(-np.mean(away(x) ** 2, axis=1) - lost)

    names = ("near/distance", "far/distance")[:objectives]
    return Choosy(space, names, score, np.full(objectives, -0.25), slopes=lambda x: -away(x) / groups)


@dataclass(frozen=True, slots=True)
class Exam(Problem):
    """A problem whose tasks have many examples, some of which can be evaluated. Objectives are named `task/score`.

    A recipe's score on an example is its mean, plus the example's easiness, plus noise of recipe and example. Over all
    examples of a task easiness and noise sum to 0: the mean of a full evaluation is that of `score`, in float32.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of examples of each task."""
    easiness: float = 0.0
    """Standard deviation over examples of the part that all recipes share, which pairing removes."""
    noise: float = 0.0
    """Standard deviation over examples of the part that is each recipe's own."""
    seed: int = 0

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of the proposal's examples."""
        genome = self.space.genome_of(proposal)
        scores = {}
        for name, mean in zip(self.objectives, self.score(genome), strict=True):
            task = name.partition("/")[0]
            key = [self.seed, *task.encode()]
            easiness = self.easiness * _centred(key, self.sizes[task])
            noise = self.noise * _centred([*key, int(proposal.recipe.id[:16], 16)], self.sizes[task])
            vector = (mean + easiness + noise).astype(np.float32)
            if proposal.examples is None:
                scores[name] = vector
            elif task in proposal.examples:
                scores[name] = vector[list(proposal.examples[task])]
        return Evaluation(scores)


def exam(problem: Problem, size: int, *, easiness: float = 0.0, noise: float = 0.0, seed: int = 0) -> Exam:
    """Return `problem` with examples: `size` in the first task, one more in the second, and so on."""
    names = tuple(f"{name}/score" for name in problem.objectives)
    sizes = {name: size + i for i, name in enumerate(problem.objectives)}
    return Exam(problem.space, names, problem.score, problem.reference, problem.volume, sizes, easiness, noise, seed)


def _centred(key: Sequence[int], size: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(np.random.SeedSequence(key)).standard_normal(size)
    return np.asarray(drawn - drawn.mean())
