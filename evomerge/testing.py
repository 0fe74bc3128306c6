"""Conformance suites, and small problems whose answers are known.

A suite is a class of pytest tests: subclass it beside the implementation, and say what it asks for. This
module itself does not need pytest.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.checkpoint import Layout, TensorInfo
from evomerge.errors import DriverError, EvaluatorError, TaskError
from evomerge.evaluate import Evaluator, Setup, Worker
from evomerge.merging import METHODS, STAGES, Pipeline, Stage, Store
from evomerge.merging.pipeline import BLOCK
from evomerge.merging.stage import Piece, Site
from evomerge.models import LiveModel
from evomerge.models.pretrained import new_model, save_model
from evomerge.recipe import Expert, Member, MergeNode, Place, Recipe, Tiled, base, expert, merge
from evomerge.search import Driver, Population
from evomerge.space import Genome, SearchSpace
from evomerge.tasks import Task
from evomerge.trial import Evaluation, Proposal, Split

# -- problems on genomes: no models, no merging --


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


# -- drivers --


def drive(
    driver: Driver,
    evaluate: Callable[[Proposal], Evaluation],
    budget: int,
    *,
    slots: int = 1,
    shuffle: int | None = None,
) -> list[Proposal]:
    """Run a driver as a study does, and return its proposals, in order.

    Up to `slots` are in flight. Their evaluations arrive in the order of the asks, or in random order with
    the seed `shuffle`.
    """
    arrival = random.Random(shuffle)  # noqa: S311  # an order of arrival, no secret
    flying: list[Proposal] = []
    asked: list[Proposal] = []
    while True:
        while len(flying) < slots and len(asked) < budget and (proposal := driver.ask()) is not None:
            flying.append(proposal)
            asked.append(proposal)
        if not flying:
            return asked
        arrived = flying.pop(0 if shuffle is None else arrival.randrange(len(flying)))
        driver.tell(arrived, evaluate(arrived))


def _ids(proposals: Sequence[Proposal]) -> list[tuple[int, str]]:
    return [(proposal.number, proposal.recipe.id) for proposal in proposals]


class DriverSuite:
    """What every driver must keep, as pytest tests.

    Subclass `GenomeSuite` or `PopulationSuite` (or both `SteadySuite` and `DecodedSuite`) and write `make`; `problem`,
    `quality`, `learns` and `budget` have defaults. `learns` is False for drivers that do not look at scores. `budget` is
    the number of candidates of most tests.
    """

    learns = True
    budget = 60
    sure = 0
    """So many first candidates must not fail."""

    def make(self, problem: Problem, seed: int) -> Driver:
        """Return a fresh driver for the problem."""
        raise NotImplementedError

    def problem(self) -> Problem:
        """Return the problem to search."""
        return two_spheres()

    def quality(self, problem: Problem, proposals: Sequence[Proposal]) -> float:
        """Return what the driver is meant to make large: the hypervolume, unless said otherwise."""
        return problem.quality(proposals)

    def test_same_seed_same_search(self) -> None:
        """Two drivers with one seed propose the same, whatever the global generators do in between."""
        problem = self.problem()
        expected = drive(self.make(problem, 1), problem.evaluate, self.budget)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002  # the global generator is what must not matter
        before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002  # as above
        assert _ids(drive(self.make(problem, 1), problem.evaluate, self.budget)) == _ids(expected)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002  # as above

    def test_other_seed_other_search(self) -> None:
        """The seed matters."""
        problem = self.problem()
        first, second = (_ids(drive(self.make(problem, seed), problem.evaluate, self.budget)) for seed in (1, 2))
        assert first != second

    def test_replay_restores_the_driver(self) -> None:
        """A fresh driver that is taken through the same asks and tells goes on as the first would have."""
        problem = self.problem()
        first, second = self.make(problem, 5), self.make(problem, 5)
        recorded = drive(first, problem.evaluate, self.budget // 2, slots=3, shuffle=0)
        assert _ids(drive(second, problem.evaluate, self.budget // 2, slots=3, shuffle=0)) == _ids(recorded)
        for _ in range(self.budget // 4):
            assert first.members() == second.members()
            one, other = first.ask(), second.ask()
            assert one is not None
            assert other is not None
            assert _ids([one]) == _ids([other])
            first.tell(one, problem.evaluate(one))
            second.tell(other, problem.evaluate(other))

    def test_failed_evaluations_are_survived(self) -> None:
        """Failures, some or all for a long while, end neither the search nor its reproducibility."""
        problem = self.problem()
        for start in (0, self.budget // 2, self.budget):
            evaluate = self._flaky(problem, start)
            found = drive(self.make(problem, 6), evaluate, self.budget, slots=4, shuffle=0)
            assert len(found) == self.budget
            assert _ids(drive(self.make(problem, 6), evaluate, self.budget, slots=4, shuffle=0)) == _ids(found)

    def _flaky(self, problem: Problem, start: int) -> Callable[[Proposal], Evaluation]:
        def evaluate(proposal: Proposal) -> Evaluation:
            if proposal.number >= self.sure and (proposal.number < start or proposal.number % 3 == 0):
                return Evaluation(error="out of memory")
            return problem.evaluate(proposal)

        return evaluate

    def test_scores_that_are_not_finite_count_as_failures(self) -> None:
        """NaN and infinities do not enter the search."""
        problem = self.problem()

        def evaluate(value: float) -> Callable[[Proposal], Evaluation]:
            broken = {name: np.array([value], dtype=np.float32) for name in problem.objectives}
            return lambda p: (
                Evaluation(scores=broken) if p.number >= self.sure and p.number % 4 == 1 else problem.evaluate(p)
            )

        expected = _ids(drive(self.make(problem, 7), evaluate(np.nan), self.budget))
        assert _ids(drive(self.make(problem, 7), evaluate(np.inf), self.budget)) == expected

    def test_search_improves_on_its_beginning(self) -> None:
        """It ends better than its first quarter."""
        if not self.learns:
            return
        problem = self.problem()
        for seed in (0, 1):
            proposals = drive(self.make(problem, seed), problem.evaluate, 2 * self.budget)
            assert self.quality(problem, proposals) > self.quality(problem, proposals[: self.budget // 2])


class DecodedSuite(DriverSuite):
    """What also holds where a candidate is its genome."""

    def test_proposals_are_numbered_and_decode_their_genome(self) -> None:
        """Numbers count from 0; genomes lie in the box; the recipe is the genome's; nobody's weights are kept."""
        problem = self.problem()
        driver = self.make(problem, 0)
        proposals = drive(driver, problem.evaluate, self.budget)
        assert [proposal.number for proposal in proposals] == list(range(self.budget))
        for proposal in proposals:
            assert proposal.genome is not None
            assert proposal.genome.dtype == np.float64
            assert (proposal.genome >= problem.space.lower).all()
            assert (proposal.genome <= problem.space.upper).all()
            assert proposal.recipe == problem.space.decode(proposal.genome)
            assert proposal.split == "search"
        assert driver.members() == ()

    def test_known_recipes_come_first(self) -> None:
        """Every landmark of the space is among the first proposals, once."""
        problem = self.problem()
        known = {problem.space.decode(genome).id for genome in problem.space.landmarks().values()}
        proposals = drive(self.make(problem, 0), problem.evaluate, len(known))
        assert {proposal.recipe.id for proposal in proposals} == known

    def test_search_beats_uniform_draws(self) -> None:
        """It ends better than as many draws from the box."""
        if not self.learns:
            return
        problem = self.problem()
        for seed in (0, 1):
            proposals = drive(self.make(problem, seed), problem.evaluate, 2 * self.budget)
            uniform = np.random.default_rng(seed).random((2 * self.budget, len(problem.space.genes)))
            blind = [
                Proposal(i, problem.space.decode(genome), genome)
                for i, genome in enumerate(problem.space.from_unit(uniform))
            ]
            assert self.quality(problem, proposals) > self.quality(problem, blind)


class GenomeSuite(DecodedSuite):
    """What also holds where a candidate is its genome, and the order in which evaluations arrive cannot matter."""

    def test_slots_do_not_matter(self) -> None:
        """One candidate in flight or many: the same search."""
        problem = self.problem()
        expected = _ids(drive(self.make(problem, 3), problem.evaluate, self.budget))
        for slots in (2, 7, 1000):
            assert _ids(drive(self.make(problem, 3), problem.evaluate, self.budget, slots=slots)) == expected

    def test_order_of_arrival_does_not_matter(self) -> None:
        """Evaluations that overtake each other leave the search as it is."""
        problem = self.problem()
        expected = _ids(drive(self.make(problem, 3), problem.evaluate, self.budget))
        for shuffle in (0, 1):
            found = drive(self.make(problem, 3), problem.evaluate, self.budget, slots=5, shuffle=shuffle)
            assert _ids(found) == expected

    def test_order_of_arrival_does_not_matter_among_failures(self) -> None:
        """Neither does it where some or all fail."""
        problem = self.problem()
        for start in (0, self.budget // 2, self.budget):
            evaluate = self._flaky(problem, start)
            expected = _ids(drive(self.make(problem, 6), evaluate, self.budget))
            assert _ids(drive(self.make(problem, 6), evaluate, self.budget, slots=4, shuffle=0)) == expected

    def test_ask_that_returns_none_changes_nothing(self) -> None:
        """Asking again and again while everything is in flight leaves the search as it is."""
        problem = self.problem()
        expected = _ids(drive(self.make(problem, 4), problem.evaluate, self.budget))
        driver = self.make(problem, 4)
        found: list[Proposal] = []
        while len(found) < self.budget:
            batch: list[Proposal] = []
            while len(found) + len(batch) < self.budget and (proposal := driver.ask()) is not None:
                batch.append(proposal)
            for proposal in batch:
                if len(found) + len(batch) < self.budget:
                    assert driver.ask() is None
                driver.tell(proposal, problem.evaluate(proposal))
                if proposal is not batch[-1] and len(found) + len(batch) < self.budget:
                    assert driver.ask() is None
            found += batch
        assert _ids(found) == expected


class SteadySuite(DriverSuite):
    """What also holds where nobody waits for the slowest, so that the order in which evaluations arrive matters."""

    def state(self, driver: Driver) -> object:
        """Return what can be seen of a driver."""
        return driver.members()

    def test_one_that_never_comes_holds_nobody_up(self) -> None:
        """While one candidate stays in flight, each other evaluation brings another proposal."""
        problem = self.problem()
        driver = self.make(problem, 8)
        flying: dict[int, Proposal] = {}
        for number in range(self.budget):
            proposal = driver.ask()
            assert proposal is not None
            assert proposal.number == number
            flying[number] = proposal
            others = [other for other in flying if other != self.sure]
            if len(flying) == 3 or number < self.sure:
                arrived = flying.pop(others[0])
                driver.tell(arrived, problem.evaluate(arrived))
        assert self.sure in flying

    def test_order_of_arrival_matters_and_replay_passes_through_every_state(self) -> None:
        """After any number of the same asks and tells the driver is the same; after others it is not."""
        problem = self.problem()

        def passed(shuffle: int) -> list[object]:
            driver = self.make(problem, 5)
            states: list[object] = []

            def evaluate(proposal: Proposal) -> Evaluation:
                states.append((proposal.number, proposal.recipe.id, self.state(driver)))
                return self._flaky(problem, 0)(proposal)

            drive(driver, evaluate, self.budget, slots=5, shuffle=shuffle)
            return states

        assert passed(1) == passed(1)
        assert {state[1] for state in passed(1)} != {state[1] for state in passed(2)}  # type: ignore[index]  # a tuple


class PopulationSuite(SteadySuite):
    """What also holds where candidates are made of earlier ones. `make` takes all experts as seeds."""

    sure = 2
    budget = 120

    def make(self, problem: Problem, seed: int) -> Population:
        """Return a fresh driver for the problem."""
        raise NotImplementedError

    def problem(self) -> Problem:
        """Return the problem to search."""
        return family()

    def state(self, driver: Driver) -> object:
        """Return what can be seen of a population."""
        assert isinstance(driver, Population)
        cells = [([edges.tolist() for edges in grid.edges], dict(grid.elites)) for grid in driver.maps()]
        return driver.members(), driver.diagnostics(), cells

    def test_experts_come_first_and_then_children_of_members(self) -> None:
        """Numbers count from 0; a child is what the space makes of its genome and two members."""
        problem = self.problem()
        driver = self.make(problem, 0)
        for number in range(self.budget):
            before = driver.members()
            proposal = driver.ask()
            assert proposal is not None
            assert proposal.number == number
            if number < self.sure:
                assert proposal.recipe == expert(("left", "right")[number])
                assert proposal.genome is None
            else:
                assert proposal.genome is not None
                assert (proposal.genome >= problem.space.lower).all()
                assert (proposal.genome <= problem.space.upper).all()
                members, crossed = proposal.recipe.members, len(problem.space.parents)
                orders = itertools.product(members, repeat=crossed)
                assert any(proposal.recipe == problem.space.decode(proposal.genome, parents) for parents in orders)
                assert set(members) <= set(before)
            driver.tell(proposal, problem.evaluate(proposal))

    def test_it_waits_for_two_seeds_and_for_nothing_else(self) -> None:
        """`ask` returns None, and changes nothing, until there is something to cross."""
        problem = self.problem()
        expected = _ids(drive(self.make(problem, 4), problem.evaluate, 20))
        driver = self.make(problem, 4)
        seeds = [driver.ask(), driver.ask()]
        found = [seed for seed in seeds if seed is not None]
        for seed in found[:]:
            assert driver.ask() is None
            driver.tell(seed, problem.evaluate(seed))
        found += [proposal for _ in range(18) if (proposal := driver.ask()) is not None]
        assert len(found) == 20
        assert _ids(found)[:3] == expected[:3]
        assert len({proposal.recipe.id for proposal in found}) == 20

    def test_members_are_candidates_that_succeeded_and_parents_were_members_when_asked_for(self) -> None:
        """Whatever is in flight; and each is named once."""
        problem = self.problem()
        driver = self.make(problem, 2)
        flying: list[Proposal] = []
        succeeded: set[str] = set()
        arrival = np.random.default_rng(0)
        for _ in range(self.budget):
            before = driver.members()
            assert set(before) <= succeeded
            assert len(set(before)) == len(before)
            while len(flying) < 8 and (proposal := driver.ask()) is not None:
                assert set(proposal.recipe.members) <= set(before)
                flying.append(proposal)
            arrived = flying.pop(int(arrival.integers(len(flying))))
            evaluation = self._flaky(problem, 0)(arrived)
            driver.tell(arrived, evaluation)
            succeeded |= set() if evaluation.error else {arrived.recipe.id}

    def test_seeds_that_fail_end_the_search_with_a_word(self) -> None:
        """One seed alone has nobody to be crossed with."""
        problem = self.problem()
        driver = self.make(problem, 0)
        one, other = driver.ask(), driver.ask()
        assert one is not None
        assert other is not None
        driver.tell(other, Evaluation(error="out of memory"))
        assert driver.ask() is None
        driver.tell(one, problem.evaluate(one))
        for _ in range(2):
            said = ""
            try:
                driver.ask()
            except DriverError as error:
                said = str(error)
            assert said.startswith("driver: 1 of 2 seeds could be evaluated")
            assert "out of memory" in said


# -- tiny models -----------------------------------------------------------------------------------------------------------

_TEXT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DECODER = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}

TINY: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "vit": (
        {
            "model_type": "vit",
            "image_size": 4,
            "patch_size": 2,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_labels": 3,
            "initializer_range": 0.3,
        },
        "AutoModelForImageClassification",
    ),
    "bert": ({"model_type": "bert", **_TEXT, "num_labels": 3}, "AutoModelForSequenceClassification"),
    "gpt2": (
        {
            "model_type": "gpt2",
            "vocab_size": 99,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "AutoModelForCausalLM",
    ),
    "llama": ({"model_type": "llama", **_DECODER}, "AutoModelForCausalLM"),
    "llama_tied": ({"model_type": "llama", **_DECODER, "tie_word_embeddings": True}, "AutoModelForCausalLM"),
    "qwen2": ({"model_type": "qwen2", **_DECODER}, "AutoModelForCausalLM"),
    "qwen3": ({"model_type": "qwen3", **_DECODER}, "AutoModelForCausalLM"),
    "gemma": ({"model_type": "gemma", **_DECODER}, "AutoModelForCausalLM"),
    "mixtral": (
        {"model_type": "mixtral", **_DECODER, "num_local_experts": 3, "num_experts_per_tok": 2},
        "AutoModelForCausalLM",
    ),
}
"""Configurations of models of a few thousand parameters by architecture, and the class that chooses theirs."""


def tiny_model(folder: Path, architecture: str, seed: int = 0, auto: str | None = None, **changes: object) -> Path:
    """Write a checkpoint with random weights, and a tokenizer where the model reads text; return `folder`.

    The weights are large enough for the outputs to differ. `changes` go into the configuration of `TINY`; `auto` chooses
    another class for it. The global generator is left alone.
    """
    config, own = TINY[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model({**config, **changes}, auto or own)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(model, folder)
    if "vocab_size" in config:
        tiny_tokenizer(folder)
    return folder


def tiny_tokenizer(folder: Path, *, begin: bool = True) -> None:
    """Write a tokenizer of printable ASCII characters, 99 tokens, to `folder`; with `begin`, `<s>` stands before a text."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=special[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(special)
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")


# -- tasks -----------------------------------------------------------------------------------------------------------------


class TaskSuite:
    """What every task must keep, as pytest tests. Subclass it and write `make`."""

    def make(self, folder: Path) -> tuple[Task, LiveModel]:
        """Return a task with three examples or more in each split, and a model that can do it.

        `folder` is for its files. Called again with the same folder, it returns the same.
        """
        raise NotImplementedError

    def test_names_and_sizes(self, tmp_path: Path) -> None:
        """The metrics to search and report are known ones, and no split is empty."""
        task, _ = self.make(tmp_path)
        assert task.search_metric in task.metrics
        assert task.report_metric in task.metrics
        assert min(task.size("search"), task.size("report")) > 2  # the suite takes parts of them

    def test_one_score_for_each_example(self, tmp_path: Path) -> None:
        """Every vector is float32 with one entry per example; the split's metric is among them, outputs keep pace."""
        task, model = self.make(tmp_path)
        splits: dict[Split, str] = {"search": task.search_metric, "report": task.report_metric}
        for split, metric in splits.items():
            found = task.score(model, split)
            assert metric in found.scores
            assert set(found.scores) <= set(task.metrics)
            for scores in found.scores.values():
                assert scores.dtype == np.float32
                assert scores.shape == (task.size(split),)
                assert np.isfinite(scores).all()
            for output in found.outputs.values():
                assert output.dtype == np.float32
                assert len(output) == task.size(split)

    def test_scores_repeat_bit_for_bit(self, tmp_path: Path) -> None:
        """Scored again after other examples, and by the same task made anew, the same bytes come back."""
        task, model = self.make(tmp_path)
        first = task.score(model, "search")
        task.score(model, "report", [0])
        anew, _ = self.make(tmp_path)
        for again in (task.score(model, "search"), anew.score(model, "search")):
            for metric, scores in first.scores.items():
                assert scores.tobytes() == again.scores[metric].tobytes()

    def test_a_part_scores_as_it_does_in_the_whole(self, tmp_path: Path) -> None:
        """Chosen examples come back in the order asked for, with the scores that they have among all, up to rounding."""
        task, model = self.make(tmp_path)
        chosen = [task.size("search") - 1, 0]
        whole, part = task.score(model, "search"), task.score(model, "search", chosen)
        assert set(part.scores) == set(whole.scores)
        for metric, scores in part.scores.items():
            np.testing.assert_allclose(scores, whole.scores[metric][chosen], rtol=1e-4, atol=1e-5)
        for name, output in part.outputs.items():
            np.testing.assert_allclose(output, whole.outputs[name][chosen], rtol=1e-4, atol=1e-5)

    def test_unknown_examples_are_refused(self, tmp_path: Path) -> None:
        """A number outside of the split is an error, not another example."""
        task, model = self.make(tmp_path)
        for number in (-1, task.size("search")):
            try:
                task.score(model, "search", [number])
            except TaskError:
                continue
            msg = f"example {number} was scored"
            raise AssertionError(msg)


# -- evaluators ------------------------------------------------------------------------------------------------------------


class EvaluatorSuite:
    """What every evaluator must keep, as pytest tests. Subclass it with the fixtures `setup` and `evaluator`.

    `evaluator` evaluates what `setup` describes, and may be the same for all tests of the class. The pool must have at
    least two experts.
    """

    def recipes(self, setup: Setup) -> list[Recipe]:
        """Return different recipes to evaluate."""
        names = list(setup.experts)
        merges = [merge("task_arithmetic", names, {"lambda": scale}) for scale in (0.1, 0.2, 0.4)]
        return [base(), *map(expert, names), *merges]

    def evaluate(self, evaluator: Evaluator, proposals: Sequence[Proposal]) -> dict[int, Evaluation]:
        """Return the evaluations of all `proposals` by number, each of which must come back once."""
        for proposal in proposals:
            evaluator.submit(proposal)
        found = [evaluator.wait() for _ in proposals]
        assert sorted(number for number, _ in found) == sorted(proposal.number for proposal in proposals)
        return dict(found)

    def test_scores_are_those_of_a_worker(self, evaluator: Evaluator, setup: Setup) -> None:
        """Byte for byte, on both splits, and with the time that the evaluation took."""
        worker = Worker(setup)
        cases = [(recipe, split) for recipe in self.recipes(setup)[:4] for split in get_args(Split)]
        proposals = [Proposal(i, recipe, split=split) for i, (recipe, split) in enumerate(cases)]
        found = self.evaluate(evaluator, proposals)
        for i, (recipe, split) in enumerate(cases):
            expected = worker.evaluate(recipe, split)
            assert expected.error is None
            assert found[i].to_json() == expected.to_json()
            assert sorted(found[i].seconds) == ["decode", "merge", "score"]

    def test_part_is_scored_and_nothing_else(self, evaluator: Evaluator, setup: Setup) -> None:
        """The examples asked for, in that order, as a worker scores them byte for byte; as in the whole, up to rounding."""
        worker = Worker(setup)
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.7})
        whole = worker.evaluate(recipe)
        chosen = {next(iter(setup.tasks)): (2, 0)}
        found = self.evaluate(evaluator, [Proposal(0, recipe, examples=chosen)])[0]
        assert found.error is None
        assert found.to_json() == worker.evaluate(recipe, examples=chosen).to_json()
        assert {name.partition("/")[0] for name in found.scores} == set(chosen)
        for name, vector in found.scores.items():
            np.testing.assert_allclose(vector, whole.scores[name][[2, 0]], rtol=1e-4, atol=1e-5)

    def test_examples_that_do_not_exist_are_the_candidates_error(self, evaluator: Evaluator, setup: Setup) -> None:
        """Of a task that there is, or of one that there is not."""
        task = next(iter(setup.tasks))
        wrong: list[Mapping[str, tuple[int, ...]]] = [{task: (0, -1)}, {task: (10**6,)}, {f"no {task}": (0,)}]
        found = self.evaluate(evaluator, [Proposal(i, base(), examples=examples) for i, examples in enumerate(wrong)])
        assert all("example" in (found[i].error or "") for i in range(len(wrong)))

    def test_order_of_submission_does_not_matter(self, evaluator: Evaluator, setup: Setup) -> None:
        """Nor what was evaluated before, nor how many are in flight."""
        recipes = self.recipes(setup)
        proposals = [Proposal(10 + i, recipe) for i, recipe in enumerate(recipes)]
        at_once = self.evaluate(evaluator, proposals)
        for proposal in reversed(proposals):
            alone = self.evaluate(evaluator, [proposal])
            assert alone[proposal.number].to_json() == at_once[proposal.number].to_json()

    def test_equal_recipes_each_come_back(self, evaluator: Evaluator, setup: Setup) -> None:
        """With the same scores, under their own numbers."""
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.3})
        found = self.evaluate(evaluator, [Proposal(number, recipe) for number in (7, 3, 5)])
        assert found[3].to_json() == found[5].to_json() == found[7].to_json()

    def test_failed_candidate_is_an_evaluation(self, evaluator: Evaluator, setup: Setup) -> None:
        """Its error is text; the others are not touched."""
        proposals = [Proposal(0, base()), Proposal(1, expert("nobody of that name")), Proposal(2, base())]
        found = self.evaluate(evaluator, proposals)
        assert "nobody of that name" in (found[1].error or "")
        assert found[0].error is None
        assert found[0].to_json() == found[2].to_json() == Worker(setup).evaluate(base()).to_json()

    def test_waiting_for_nothing_is_an_error(self, evaluator: Evaluator) -> None:
        """It would never end."""
        try:
            evaluator.wait()
        except EvaluatorError as error:
            assert "submit" in str(error)  # noqa: PT017  # this module does not need pytest
        else:
            msg = "`wait` returned although no proposal was in flight"
            raise AssertionError(msg)
        assert evaluator.slots >= 1


# -- merging --


class InMemory:
    """A base and inputs held in memory, as a merge reads them. Not to be confused with a `Pool`, which is on disk."""

    def __init__(self, base: Mapping[str, torch.Tensor], inputs: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Hold the tensors of a base and of each input, by name."""
        self._base = base
        self._inputs = inputs
        self._layout = Layout({name: TensorInfo(tuple(t.shape), t.dtype) for name, t in base.items()})
        self.names = tuple(base)
        self.ids = tuple(_digest(model) for model in (base, *inputs))
        self.nested: frozenset[int] = frozenset()

    def place(self, name: str) -> Place:
        """Where the tensor is in the model."""
        return self._layout.place(name)

    def load(
        self,
        name: str,
        device: torch.device = torch.device("cpu"),  # noqa: B008  # a constant
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's tensor and the inputs' `(K,)`, on `device`."""
        return self._base[name].to(device), [tensors[name].to(device) for tensors in self._inputs]


def _digest(model: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of a model's names, shapes, dtypes and bytes."""
    found = hashlib.sha256()
    for name, tensor in model.items():
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def merge_tensors(
    recipe: Recipe,
    base: Mapping[str, torch.Tensor],
    inputs: Sequence[Mapping[str, torch.Tensor]],
    dtype: torch.dtype | None = None,
    *,
    store: Store | None = None,
    compile: bool = False,  # noqa: A002  # torch's word
) -> dict[str, torch.Tensor]:
    """Return the merge `recipe` of tensors in memory, in `dtype` or the base's own."""
    node = recipe.root
    assert isinstance(node, MergeNode), "a recipe of a merge"
    pipeline = Pipeline(node.merge, InMemory(base, inputs), store or Store(), compile=compile)
    merged = {name: torch.empty(tensor.shape, dtype=dtype or tensor.dtype) for name, tensor in base.items()}
    for name, out in merged.items():
        pipeline.write(name, out)
    return merged


def tiny_tensors(seed: int, like: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return random fp32 tensors as a model of four blocks has them, odd shapes too; near `like` where that is given.

    There are zeros of both signs, a tensor longer than a block of the pipeline, and ones of no dimension, of one element
    and of none.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (BLOCK // 8 + 3, 9),
        "final_norm.weight": (7,),
        "head.weight": (3, 7),
    }
    for block in range(4):
        shapes |= {
            f"layers.{block}.attn.weight": (7, 7),
            f"layers.{block}.attn.temperature": (),
            f"layers.{block}.mlp.weight": (9, 7),
            f"layers.{block}.mlp.bias": (1,),
            f"layers.{block}.mlp.cache": (0, 7),
            f"layers.{block}.norm.weight": (7,),
        }
    tensors = {}
    for name, shape in shapes.items():
        made = torch.randn(shape, generator=generator)
        if like is not None:
            made = torch.where(like[name] == 0, 0.0, like[name] + 0.1 * made)
        elif made.dim() == 2:  # matrices have zeros of both signs in their first row
            made[:1] = torch.tensor([0.0, -0.0] * made.shape[1])[: made.shape[1]]
        tensors[name] = made
    return tensors


def inputs_of(method: str) -> int:
    """Return how many inputs to merge by a method: as many as it takes, three where that is free."""
    return max(STAGES[stage].inputs or 0 for stage in METHODS[method].stages) or 3


class StageSuite:
    """What every stage of a merge must keep, as pytest tests. Subclass it and set `name`."""

    name = ""
    symmetric = True
    """Whether the inputs may change places."""

    def stage(self) -> Stage:
        """Return the stage."""
        return STAGES[self.name]

    def apply(self, stack: torch.Tensor, labels: Sequence[str]) -> list[torch.Tensor]:
        """Return what the stage makes of a vector's task vectors `(K, n)` with its default parameters: rows, or one Δ."""
        stage = self.stage()
        tensor = "layers.0.mlp.weight"
        recipe = Recipe.parse({"merge": {"inputs": list(labels), "stages": {stage.role: [self.name]}}})
        assert isinstance(recipe.root, MergeNode)
        inputs = InMemory({tensor: torch.zeros(stack.shape[1])}, [{tensor: row} for row in stack])
        pipeline = Pipeline(recipe.root.merge, inputs, Store())
        site = Site(tensor, tuple(stack.shape[1:]), inputs.place(tensor), tuple(labels), 0)
        words = {name: str(spec.default) for name, spec in stage.parameters.items() if spec.is_word}
        piece = Piece(list(stack.clone()), torch.tensor(-(2**31), dtype=torch.int32))
        given = list(stack.clone())
        found = stage.apply(piece, given[0] if stage.role == "post" else given, pipeline.bound(0, site), words)
        assert torch.equal(torch.stack(piece.raw), stack), "a stage must not write into what it is given"
        assert torch.equal(torch.stack(given), stack), "a stage must not write into what it is given"
        return [found] if stage.role == "post" else list(found)

    def stack(self, columns: int = 40) -> torch.Tensor:
        """Return task vectors, fp32 `(K, columns)`, for as many inputs as the stage takes."""
        generator = torch.Generator().manual_seed(columns)
        return torch.randn(self.stage().inputs or 3, columns, generator=generator)

    def labels(self) -> list[str]:
        """Return the names of the inputs of `stack`."""
        return [f"expert {i}" for i in range(len(self.stack()))]

    def test_parameters_say_what_they_are(self) -> None:
        """Each has words, a valid default, and a range worth searching inside of what is valid."""
        assert self.stage().about
        for name, spec in self.stage().parameters.items():
            assert spec.about
            spec.check(name, spec.default)
            if spec.search is not None:
                for bound in spec.search:
                    spec.check(name, bound)

    def test_result_has_the_shape_of_its_role(self) -> None:
        """An edit gives rows `(n,)`, a field rows or one number for each, a post stage `(n,)`; all in fp32 and finite."""
        for columns in (1, 2, 40):
            stack = self.stack(columns)
            found = self.apply(stack, self.labels())
            rows = 1 if self.stage().joins or self.stage().role == "post" else len(stack)
            shapes = {(columns,), ()} if self.stage().role == "weigh" else {(columns,)}
            assert len(found) == rows
            for row in found:
                assert tuple(row.shape) in shapes
                assert row.dtype == torch.float32
                assert torch.isfinite(row).all()

    def test_zeros_and_extremes_are_survived(self) -> None:
        """A task vector of zeros, and numbers near the ends of fp32's range, give finite numbers."""
        for scale in (0.0, 1e-38, 1e15):
            assert all(torch.isfinite(row).all() for row in self.apply(self.stack() * scale, self.labels()))

    def test_same_bytes_every_time(self) -> None:
        """Nothing depends on a global generator."""
        expected = torch.stack(self.apply(self.stack(), self.labels()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            assert torch.equal(torch.stack(self.apply(self.stack(), self.labels())), expected)

    def test_inputs_may_change_places(self) -> None:
        """With its label, an input takes its result along."""
        if not self.symmetric or self.stage().role == "post":
            return
        order = list(reversed(range(len(self.labels()))))
        expected = torch.stack(self.apply(self.stack(), self.labels()))
        found = torch.stack(self.apply(self.stack()[order], [self.labels()[i] for i in order]))
        assert torch.allclose(found, expected if self.stage().joins else expected[order], rtol=1e-5, atol=1e-7)


class MethodSuite:
    """What every method of the table must keep, as pytest tests. Subclass it and set `name`."""

    name = ""
    symmetric = True
    """Whether the inputs may change places, up to fp32's rounding."""
    normalises = False
    """Whether inputs that are all equal give that input, whatever their number."""

    def models(self) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
        """Return a base, and as many inputs near it as the method takes."""
        base = tiny_tensors(0)
        return base, [tiny_tensors(1 + i, base) for i in range(inputs_of(self.name))]

    def recipe(self, inputs: int, parameters: Mapping[str, Any] | None = None, seed: int = 0) -> Recipe:
        """Return the merge by this method."""
        return merge(self.name, self.labels(inputs), parameters, seed=seed)

    def labels(self, inputs: int) -> list[str]:
        """Return the names of the inputs."""
        return [f"expert{i}" for i in range(inputs)]

    def reached(self, weights: Sequence[float]) -> Recipe | None:
        """Return the recipe that is to give the base and these weights of the task vectors, if there is one."""
        labels = self.labels(len(weights))
        parameters = METHODS[self.name].reach(dict(zip(labels, weights, strict=True)))
        if parameters is None:
            return None
        tables = {
            name: {"per": ["expert"], "values": value} if isinstance(value, Mapping) else value
            for name, value in parameters.items()
        }
        return self.recipe(len(weights), tables)

    def test_known_weights_give_the_base_bit_for_bit(self) -> None:
        """Where the method can express the base, it is the base, zeros of either sign included."""
        base, inputs = self.models()
        recipe = self.reached([0.0] * len(inputs))
        if recipe is None:
            return
        for name, tensor in merge_tensors(recipe, base, inputs).items():
            assert tensor.numpy().tobytes() == base[name].numpy().tobytes(), name

    def test_known_weights_give_each_input_and_the_mean(self) -> None:
        """Where the method can express an input alone or the mean, it is that, up to fp32's rounding."""
        base, inputs = self.models()
        count = len(inputs)
        wanted = [[float(i == k) for i in range(count)] for k in range(count)] + [[1.0 / count] * count]
        for weights in wanted:
            recipe = self.reached(weights)
            if recipe is None:
                continue
            for name, tensor in merge_tensors(recipe, base, inputs).items():
                mean = sum(w * model[name].double() for w, model in zip(weights, inputs, strict=True))
                assert isinstance(mean, torch.Tensor)
                assert torch.allclose(tensor.double(), mean, rtol=1e-6, atol=1e-6), name

    def test_equal_inputs_give_that_input(self) -> None:
        """A merge of copies is the copy, for methods that take a mean."""
        if not self.normalises:
            return
        base, inputs = self.models()
        found = merge_tensors(self.recipe(len(inputs)), base, [inputs[0]] * len(inputs))
        for name, tensor in found.items():
            assert torch.allclose(tensor, inputs[0][name], rtol=1e-6, atol=1e-6), name

    def test_inputs_may_change_places(self) -> None:
        """The order in which inputs are named does not matter, up to fp32's rounding."""
        if not self.symmetric:
            return
        base, inputs = self.models()
        weights = [0.3 + 0.2 * i for i in range(len(inputs))]
        table = dict(zip(self.labels(len(inputs)), weights, strict=True))
        weighed = "weight" in METHODS[self.name].parameters
        parameters = {"weight": {"per": ["expert"], "values": table}} if weighed else {}
        recipe = self.recipe(len(inputs), parameters)
        turned = merge(self.name, list(reversed(self.labels(len(inputs)))), parameters)
        expected = merge_tensors(recipe, base, inputs)
        for name, tensor in merge_tensors(turned, base, inputs[::-1]).items():
            assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-6), name

    def test_low_precision_is_rounded_once(self) -> None:
        """Inputs in bf16 give the fp32 result, rounded at the end."""
        base, inputs = self.models()
        low = [{name: tensor.bfloat16() for name, tensor in model.items()} for model in (base, *inputs)]
        recipe = self.recipe(len(inputs))
        wide = merge_tensors(recipe, low[0], low[1:], torch.float32)
        for name, tensor in merge_tensors(recipe, low[0], low[1:]).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, wide[name].bfloat16())

    def test_threads_do_not_change_a_bit(self) -> None:
        """Nor does the global generator."""
        base, inputs = self.models()
        recipe = self.recipe(len(inputs), seed=3)
        before = torch.get_num_threads()
        found = []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                merged = merge_tensors(recipe, base, inputs)
                found.append(b"".join(tensor.numpy().tobytes() for tensor in merged.values()))
        finally:
            torch.set_num_threads(before)
        assert found[0] == found[1]
