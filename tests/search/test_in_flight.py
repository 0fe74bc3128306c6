"""Points in flight: what a candidate may depend on, how many may wait, and that searches stay good and reproducible."""

from typing import ClassVar

import numpy as np
import pytest

from evomerge import search
from evomerge.search.driver import Generational
from evomerge.space import Box
from evomerge.testing import GenomeSuite, SurfaceSuite, drive, scattered_spheres, two_spheres
from evomerge.trial import Evaluation, Metric

KINDS = {
    "front": {"kind": "front", "tolerance": 0, "points": 8, "batch": 2},
    "slopes": {"kind": "front", "slopes": True},
    "surrogates": {"kind": "front", "slopes": "surrogates", "tolerance": 0},
    "gradient": {"kind": "gradient", "ridge": 20},
}


def make(problem, seed, settings):
    metrics = {name: Metric(name.rpartition("/")[2], slopes=True) for name in problem.objectives}
    return search.make(settings, problem.space, metrics, seed, getattr(problem, "sizes", {}))


class InFlightSuite(GenomeSuite):
    budget = 24
    settings: ClassVar = KINDS["front"]

    def problem(self):
        return scattered_spheres(4)

    def make(self, problem, seed):
        return make(problem, seed, {**self.settings, "in_flight": 5})


class TestFront(InFlightSuite):
    budget = 16
    settings: ClassVar = {**KINDS["front"], "batch": 4}

    def problem(self):
        return two_spheres(2)


class TestContinuation(InFlightSuite):
    settings: ClassVar = KINDS["slopes"]


class TestSlopedFront(InFlightSuite):
    settings: ClassVar = KINDS["surrogates"]


class TestGradient(InFlightSuite):
    settings: ClassVar = KINDS["gradient"]

    def quality(self, problem, proposals):
        return max(problem.evaluate(proposal).means(problem.objectives).sum() for proposal in proposals)


class TestSurface(SurfaceSuite):
    def make(self, problem, seed):
        return make(problem, seed, {"kind": "front", "tolerance": 0, "in_flight": 8})


@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_depends_on_the_results_of_all_but_the_last_in_flight(kind):
    """A result that changes has no effect on the next `in_flight` candidates, and has one later."""
    problem = scattered_spheres(4)
    settings: ClassVar = {**KINDS[kind], "in_flight": 6}
    batch = settings.get("batch", 4 if kind == "surrogates" else 2)

    def searched(changed):
        def evaluate(proposal):
            return Evaluation(error="other") if proposal.number == changed else problem.evaluate(proposal)

        return [proposal.recipe.id for proposal in drive(make(problem, 0, settings), evaluate, 32)]

    expected = searched(None)
    other = searched(15)
    first = next(number for number in range(32) if other[number] != expected[number])
    assert 15 + 6 - batch < first <= 15 + 6 + 2 * batch


@pytest.mark.parametrize("kind", KINDS)
def test_while_one_candidate_takes_long_others_are_asked_for(kind):
    problem = scattered_spheres(4)
    driver = make(problem, 0, {**KINDS[kind], "in_flight": 6})
    for _ in range(16):
        proposal = driver.ask()
        driver.tell(proposal, problem.evaluate(proposal))
    driver.ask()
    for _ in range(4):
        proposal = driver.ask()
        driver.tell(proposal, problem.evaluate(proposal))
    waiting = driver.unfinished()
    assert len(waiting[0]) == len(waiting[1]) >= 4


def test_by_default_a_generation_waits_for_the_last():
    problem = scattered_spheres(4)
    for kind, settings in KINDS.items():
        driver = make(problem, 0, settings)
        assert driver.breeder.in_flight == 1, kind
        drive(driver, problem.evaluate, 24, slots=100)
        assert sum(len(generation.genomes) for generation in driver._waiting) <= 4


class Halting:
    """A breeder of generations of one candidate, whose draws say what happened before."""

    in_flight = 3

    def __init__(self):
        self.log = []
        self.left = 4

    def draw(self, pending=None):
        self.log.append(f"draw {0 if pending is None else len(pending)}")
        rows = 1 if self.left and len(self.log) != 5 else 0
        self.left -= rows
        return np.full((rows, 1), 0.1 * self.left)

    def learn(self, genomes, means, evaluations):
        self.log.append(f"learn {means[0, 0]:g}")


def test_draws_and_lessons_alternate_in_the_order_of_the_candidates_whatever_arrives_first():
    breeder = Halting()
    driver = Generational(Box({"x": (0, 1)}), ["y"], breeder)
    first, second, third = driver.ask(), driver.ask(), driver.ask()
    assert driver.ask() is None
    driver.tell(third, Evaluation.of({"y": 3}))
    driver.tell(second, Evaluation.of({"y": 2}))
    assert driver.ask() is None
    assert breeder.log == ["draw 0", "draw 1", "draw 2"]
    driver.tell(first, Evaluation.of({"y": 1}))
    last = driver.ask()
    assert breeder.log[3:] == [
        "learn 1",
        "draw 2",
        "learn 2",
        "draw 1",
    ]  # a draw without rows is repeated after a lesson more
    driver.tell(last, Evaluation.of({"y": 4}))
    assert driver.ask() is None
    assert [line for line in breeder.log if line.startswith("learn")] == ["learn 1", "learn 2", "learn 3", "learn 4"]
