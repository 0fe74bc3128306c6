"""What every driver promises."""

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
