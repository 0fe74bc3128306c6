"""Conformance suites, and small problems whose answers are known.

A suite is a class of pytest tests: subclass it beside the implementation, and say what it asks for. This
module itself does not need pytest.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto
from evomerge.search import Driver
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Proposal

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
        return pareto.hypervolume(
            [self.evaluate(p).means(self.objectives) for p in proposals], self.reference
        )


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
    arrival = random.Random(shuffle)
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

    Subclass it and write `make`; `problem`, `quality`, `learns` and `budget` have defaults. `learns` is False
    for drivers that do not look at scores. `budget` is the number of candidates of most tests.
    """

    learns = True
    budget = 60

    def make(self, problem: Problem, seed: int) -> Driver:
        """Return a fresh driver for the problem."""
        raise NotImplementedError

    def problem(self) -> Problem:
        """Return the problem to search."""
        return two_spheres()

    def quality(self, problem: Problem, proposals: Sequence[Proposal]) -> float:
        """Return what the driver is meant to make large: the hypervolume, unless said otherwise."""
        return problem.quality(proposals)

    def test_proposals_are_numbered_and_decode_their_genome(self) -> None:
        """Numbers count from 0; genomes lie in the box; the recipe is the genome's."""
        problem = self.problem()
        proposals = drive(self.make(problem, 0), problem.evaluate, self.budget)
        assert [proposal.number for proposal in proposals] == list(range(self.budget))
        for proposal in proposals:
            assert proposal.genome is not None
            assert proposal.genome.dtype == np.float64
            assert (proposal.genome >= problem.space.lower).all()
            assert (proposal.genome <= problem.space.upper).all()
            assert proposal.recipe == problem.space.decode(proposal.genome)
            assert proposal.split == "search"

    def test_known_recipes_come_first(self) -> None:
        """Every landmark of the space is among the first proposals, once."""
        problem = self.problem()
        known = {problem.space.decode(genome).id for genome in problem.space.landmarks().values()}
        proposals = drive(self.make(problem, 0), problem.evaluate, len(known))
        assert {proposal.recipe.id for proposal in proposals} == known

    def test_same_seed_same_search(self) -> None:
        """Two drivers with one seed propose the same, whatever the global generators do in between."""
        problem = self.problem()
        expected = drive(self.make(problem, 1), problem.evaluate, self.budget)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002  # the global generator is what must not matter
        before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        assert _ids(drive(self.make(problem, 1), problem.evaluate, self.budget)) == _ids(expected)
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002

    def test_other_seed_other_search(self) -> None:
        """The seed matters."""
        problem = self.problem()
        first, second = (
            _ids(drive(self.make(problem, seed), problem.evaluate, self.budget)) for seed in (1, 2)
        )
        assert first != second

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

    def test_replay_restores_the_driver(self) -> None:
        """A fresh driver that is taken through the same asks and tells goes on as the first would have."""
        problem = self.problem()
        first, second = self.make(problem, 5), self.make(problem, 5)
        recorded = drive(first, problem.evaluate, self.budget // 2, slots=3, shuffle=0)
        assert _ids(drive(second, problem.evaluate, self.budget // 2, slots=3, shuffle=0)) == _ids(recorded)
        for _ in range(self.budget // 4):
            one, other = first.ask(), second.ask()
            assert one is not None
            assert other is not None
            assert _ids([one]) == _ids([other])
            first.tell(one, problem.evaluate(one))
            second.tell(other, problem.evaluate(other))

    def test_failed_evaluations_are_survived(self) -> None:
        """Failures, some or all for a long while, end neither the search nor its reproducibility."""
        problem = self.problem()

        def flaky(start: int) -> Callable[[Proposal], Evaluation]:
            def evaluate(proposal: Proposal) -> Evaluation:
                if proposal.number < start or proposal.number % 3 == 0:
                    return Evaluation(error="out of memory")
                return problem.evaluate(proposal)

            return evaluate

        for start in (0, self.budget // 2, self.budget):
            found = drive(self.make(problem, 6), flaky(start), self.budget)
            assert len(found) == self.budget
            assert _ids(drive(self.make(problem, 6), flaky(start), self.budget, slots=4, shuffle=0)) == _ids(
                found
            )

    def test_scores_that_are_not_finite_count_as_failures(self) -> None:
        """NaN and infinities do not enter the search."""
        problem = self.problem()

        def evaluate(value: float) -> Callable[[Proposal], Evaluation]:
            broken = {name: np.array([value], dtype=np.float32) for name in problem.objectives}
            return lambda p: Evaluation(scores=broken) if p.number % 4 == 1 else problem.evaluate(p)

        expected = _ids(drive(self.make(problem, 7), evaluate(np.nan), self.budget))
        assert _ids(drive(self.make(problem, 7), evaluate(np.inf), self.budget)) == expected

    def test_search_improves_on_its_beginning(self) -> None:
        """It ends better than its first quarter, and than as many uniform draws."""
        if not self.learns:
            return
        problem = self.problem()
        for seed in (0, 1):
            proposals = drive(self.make(problem, seed), problem.evaluate, 2 * self.budget)
            found = self.quality(problem, proposals)
            uniform = np.random.default_rng(seed).random((2 * self.budget, len(problem.space.genes)))
            blind = [
                Proposal(i, problem.space.decode(genome), genome)
                for i, genome in enumerate(problem.space.from_unit(uniform))
            ]
            assert found > self.quality(problem, proposals[: self.budget // 2])
            assert found > self.quality(problem, blind)
