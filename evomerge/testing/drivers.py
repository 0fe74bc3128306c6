"""Conformance suites of drivers."""

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np

from evomerge.errors import DriverError
from evomerge.recipe import expert
from evomerge.search import Driver, Population
from evomerge.testing.problems import Problem, family, two_spheres
from evomerge.trial import Evaluation, Proposal


def drive(
    driver: Driver,
    evaluate: Callable[[Proposal], Evaluation],
    budget: int,
    *,
    slots: int = 1,
    shuffle: int | None = None,
) -> list[Proposal]:
    """Run a driver as a study does, and return its proposals, in order.

    Up to `slots` are pending. Evaluations arrive in the order of the asks, or in random order with the seed `shuffle`.
    """
    arrival = random.Random(shuffle)  # noqa: S311  # an order of arrival, no secret
    pending: list[Proposal] = []
    asked: list[Proposal] = []
    while True:
        while len(pending) < slots and len(asked) < budget and (proposal := driver.ask()) is not None:
            pending.append(proposal)
            asked.append(proposal)
        if not pending:
            return asked
        arrived = pending.pop(0 if shuffle is None else arrival.randrange(len(pending)))
        driver.tell(arrived, evaluate(arrived))


def _ask(driver: Driver) -> Proposal:
    proposal = driver.ask()
    assert proposal is not None
    return proposal


def _ids(proposals: Sequence[Proposal]) -> list[tuple[int, str]]:
    return [(proposal.number, proposal.recipe.id) for proposal in proposals]


class DriverSuite:
    """The contract of every `Driver`, as pytest tests.

    Subclass `GenomeSuite` or `PopulationSuite` (or both `SteadySuite` and `DecodedSuite`) and implement `make`; `problem`,
    `quality`, `learns` and `budget` have defaults. `learns` is False for drivers that ignore scores. `budget` is the number
    of candidates in most tests.
    """

    learns = True
    budget = 60
    sure = 0
    """Number of first candidates that no test lets fail."""

    def make(self, problem: Problem, seed: int) -> Driver:
        """Return a fresh driver for the problem."""
        raise NotImplementedError

    def problem(self) -> Problem:
        """Return the problem to search."""
        return two_spheres()

    def quality(self, problem: Problem, proposals: Sequence[Proposal]) -> float:
        """Return what the driver maximises; by default the hypervolume."""
        return problem.quality(proposals)

    def _search(
        self, seed: int, evaluate: Callable[[Proposal], Evaluation] | None = None, **arrival: int
    ) -> list[tuple[int, str]]:
        """Return the numbers and recipes of a search with a fresh driver; `arrival` is for `drive`."""
        problem = self.problem()
        return _ids(drive(self.make(problem, seed), evaluate or problem.evaluate, self.budget, **arrival))

    def _flaky(self, start: int) -> Callable[[Proposal], Evaluation]:
        """Return an evaluation that fails below the number `start`, and for every third candidate."""
        problem = self.problem()

        def evaluate(proposal: Proposal) -> Evaluation:
            if proposal.number >= self.sure and (proposal.number < start or proposal.number % 3 == 0):
                return Evaluation(error="out of memory")
            return problem.evaluate(proposal)

        return evaluate

    def test_same_seed_same_search(self) -> None:
        """Two drivers with the same seed propose the same, whatever the state of the global generators."""
        expected = self._search(1)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002  # the global generator must have no effect
        before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002  # as above
        assert self._search(1) == expected
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002  # as above

    def test_other_seed_other_search(self) -> None:
        """Drivers with different seeds propose different candidates."""
        assert self._search(1) != self._search(2)

    def test_replay_restores_the_driver(self) -> None:
        """After the same asks and tells a new driver continues as the first does."""
        problem = self.problem()
        first, second = self.make(problem, 5), self.make(problem, 5)
        recorded = drive(first, problem.evaluate, self.budget // 2, slots=3, shuffle=0)
        assert _ids(drive(second, problem.evaluate, self.budget // 2, slots=3, shuffle=0)) == _ids(recorded)
        for _ in range(self.budget // 4):
            assert first.members() == second.members()
            one, other = _ask(first), _ask(second)
            assert _ids([one]) == _ids([other])
            first.tell(one, problem.evaluate(one))
            second.tell(other, problem.evaluate(other))

    def test_failed_evaluations_are_survived(self) -> None:
        """The search continues, and is reproducible, with some or only failures for a long time."""
        for start in (0, self.budget // 2, self.budget):
            proposals = self._search(6, self._flaky(start), slots=4, shuffle=0)
            assert len(proposals) == self.budget
            assert self._search(6, self._flaky(start), slots=4, shuffle=0) == proposals

    def test_scores_that_are_not_finite_count_as_failures(self) -> None:
        """NaN and infinite scores have the same effect."""
        problem = self.problem()

        def evaluate(value: float) -> Callable[[Proposal], Evaluation]:
            broken = {name: np.array([value], dtype=np.float32) for name in problem.objectives}
            return lambda p: (
                Evaluation(scores=broken) if p.number >= self.sure and p.number % 4 == 1 else problem.evaluate(p)
            )

        assert self._search(7, evaluate(np.nan)) == self._search(7, evaluate(np.inf))

    def test_search_improves_on_its_beginning(self) -> None:
        """The quality of all candidates is above that of the first quarter."""
        problem = self.problem()
        for seed in (0, 1) if self.learns else ():
            proposals = drive(self.make(problem, seed), problem.evaluate, 2 * self.budget)
            assert self.quality(problem, proposals) > self.quality(problem, proposals[: self.budget // 2])


class DecodedSuite(DriverSuite):
    """The further contract of drivers whose candidates are decoded from genomes."""

    def test_proposals_are_numbered_and_decode_their_genome(self) -> None:
        """Numbers count from 0, genomes are in the box, recipes are decoded from them, and there are no members."""
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
        """The quality is above that of as many uniform draws from the box."""
        problem = self.problem()
        for seed in (0, 1) if self.learns else ():
            proposals = drive(self.make(problem, seed), problem.evaluate, 2 * self.budget)
            uniform = np.random.default_rng(seed).random((2 * self.budget, len(problem.space.genes)))
            genomes = problem.space.from_unit(uniform)
            blind = [Proposal(i, problem.space.decode(genome), genome) for i, genome in enumerate(genomes)]
            assert self.quality(problem, proposals) > self.quality(problem, blind)


class GenomeSuite(DecodedSuite):
    """The further contract of generational drivers: the order in which evaluations arrive has no effect."""

    def test_number_of_slots_and_order_of_arrival_have_no_effect(self) -> None:
        """The search is the same with one pending candidate or many, in any order; also if some or all evaluations fail."""
        expected = self._search(3)
        for arrival in ({"slots": 2}, {"slots": 1000}, {"slots": 5, "shuffle": 0}, {"slots": 7, "shuffle": 1}):
            assert self._search(3, None, **arrival) == expected
        for start in (0, self.budget // 2, self.budget):
            expected = self._search(6, self._flaky(start))
            assert self._search(6, self._flaky(start), slots=4, shuffle=0) == expected

    def test_ask_that_returns_none_changes_nothing(self) -> None:
        """Further asks while all candidates are pending have no effect on the search."""
        problem = self.problem()
        driver = self.make(problem, 4)
        asked: list[Proposal] = []
        pending: list[Proposal] = []
        while len(asked) < self.budget:
            batch = list(itertools.islice(iter(driver.ask, None), self.budget - len(asked)))
            asked += batch
            pending += batch
            if len(asked) < self.budget:
                assert driver.ask() is None
                first = pending.pop(0)
                driver.tell(first, problem.evaluate(first))
        assert _ids(asked) == self._search(4)


class SteadySuite(DriverSuite):
    """The further contract of steady-state drivers, whose search depends on the order in which evaluations arrive."""

    def state(self, driver: Driver) -> object:
        """Return the visible state of a driver."""
        return driver.members()

    def test_evaluation_that_never_arrives_blocks_nothing(self) -> None:
        """While one candidate stays pending, each further evaluation allows a further proposal."""
        problem = self.problem()
        driver = self.make(problem, 8)
        pending: dict[int, Proposal] = {}
        for number in range(self.budget):
            proposal = _ask(driver)
            assert proposal.number == number
            pending[number] = proposal
            others = [other for other in pending if other != self.sure]
            if len(pending) == 3 or number < self.sure:
                arrived = pending.pop(others[0])
                driver.tell(arrived, problem.evaluate(arrived))
        assert self.sure in pending

    def test_replay_restores_every_state_and_the_order_of_arrival_has_an_effect(self) -> None:
        """The driver is the same after the same asks and tells, and different after others."""

        def passed(shuffle: int) -> list[object]:
            driver = self.make(self.problem(), 5)
            states: list[object] = []
            flaky = self._flaky(0)

            def evaluate(proposal: Proposal) -> Evaluation:
                states.append((proposal.number, proposal.recipe.id, self.state(driver)))
                return flaky(proposal)

            drive(driver, evaluate, self.budget, slots=5, shuffle=shuffle)
            return states

        assert passed(1) == passed(1)
        assert {state[1] for state in passed(1)} != {state[1] for state in passed(2)}  # type: ignore[index]  # a tuple


class PopulationSuite(SteadySuite):
    """The further contract of populations of models; `make` takes all experts as seeds."""

    sure = 2
    budget = 120

    def problem(self) -> Problem:
        """Return the problem to search."""
        return family()

    def state(self, driver: Driver) -> object:
        """Return the visible state of a population."""
        assert isinstance(driver, Population)
        cells = [([edges.tolist() for edges in grid.edges], dict(grid.elites)) for grid in driver.maps()]
        return driver.members(), driver.diagnostics(), cells

    def test_experts_come_first_and_then_children_of_members(self) -> None:
        """Numbers count from 0; a child is decoded from its genome and members."""
        problem = self.problem()
        driver = self.make(problem, 0)
        for number in range(self.budget):
            before = driver.members()
            proposal = _ask(driver)
            assert proposal.number == number
            if number < self.sure:
                assert proposal.recipe == expert(("left", "right")[number])
                assert proposal.genome is None
            else:
                assert proposal.genome is not None
                assert (proposal.genome >= problem.space.lower).all()
                assert (proposal.genome <= problem.space.upper).all()
                members = proposal.recipe.members
                orders = itertools.product(members, repeat=len(problem.space.parents))
                assert any(proposal.recipe == problem.space.decode(proposal.genome, parents) for parents in orders)
                assert set(members) <= set(before)
            driver.tell(proposal, problem.evaluate(proposal))

    def test_it_waits_for_two_seeds_and_for_nothing_else(self) -> None:
        """`ask` returns None, and changes nothing, until two seeds are evaluated."""
        problem = self.problem()
        driver = self.make(problem, 4)
        asked = [_ask(driver), _ask(driver)]
        for seed in asked[:]:
            assert driver.ask() is None
            driver.tell(seed, problem.evaluate(seed))
        asked += [_ask(driver) for _ in range(18)]
        assert _ids(asked)[:3] == self._search(4)[:3]
        assert len({proposal.recipe.id for proposal in asked}) == 20

    def test_members_are_successful_candidates_and_parents_are_members(self) -> None:
        """Also with pending candidates; each member is listed once."""
        driver = self.make(self.problem(), 2)
        evaluate = self._flaky(0)
        pending: list[Proposal] = []
        succeeded: set[str] = set()
        arrival = np.random.default_rng(0)
        for _ in range(self.budget):
            before = driver.members()
            assert set(before) <= succeeded
            assert len(set(before)) == len(before)
            while len(pending) < 8 and (proposal := driver.ask()) is not None:
                assert set(proposal.recipe.members) <= set(before)
                pending.append(proposal)
            arrived = pending.pop(int(arrival.integers(len(pending))))
            evaluation = evaluate(arrived)
            driver.tell(arrived, evaluation)
            succeeded |= set() if evaluation.error else {arrived.recipe.id}

    def test_failed_seeds_end_the_search_with_an_error(self) -> None:
        """A crossover takes two seeds."""
        problem = self.problem()
        driver = self.make(problem, 0)
        one, other = _ask(driver), _ask(driver)
        driver.tell(other, Evaluation(error="out of memory"))
        assert driver.ask() is None
        driver.tell(one, problem.evaluate(one))
        for _ in range(2):
            message = ""
            try:
                driver.ask()
            except DriverError as error:
                message = str(error)
            assert message.startswith("driver: 1 of 2 seeds could be evaluated")
            assert "out of memory" in message
