"""Fronts by slopes: how good they are, what they take from an evaluation, and what they refuse."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from scipy.optimize import LbfgsInvHessProduct

from evomerge import pareto, search
from evomerge.errors import DriverError
from evomerge.search.fronts.continuation import newton_direction
from evomerge.space import Box
from evomerge.testing import GenomeSuite, Problem, drive
from evomerge.trial import Evaluation, Metric, Proposal


class Sloped(Problem):
    """A problem whose evaluations have the slopes that a proposal asks for, by central differences of `score`."""

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation of a proposal, with the slopes that it asks for."""
        done = super().evaluate(proposal)
        if proposal.slopes is None:
            return done
        genome, step = np.array(proposal.genome), 1e-4
        moves = step * np.eye(len(genome))
        rises = np.array([self.score(genome + move) - self.score(genome - move) for move in moves]) / (2 * step)
        return replace(done, slopes=dict(zip(self.objectives, rises.T, strict=True)))


def metrics(problem):
    return {name: Metric(name, slopes=True) for name in problem.objectives}


def box(genes, *, low=0.0, high=1.0, init=0.5):
    return Box({f"x{i}": {"float": [low, high], "init": init} for i in range(genes)})


def spheres(genes, *, scales=1.0):
    """Return the problem of the mean squared distances to 1/4 and to 3/4; its front has the volume 5/96 with scales of 1."""
    ends = np.array([[0.25], [0.75]])
    score = lambda x: -np.mean(scales * (x - ends) ** 2, axis=1)  # noqa: E731  # one line of mathematics
    return Sloped(box(genes, init=0.1), ("near", "far"), score, np.array([-0.25, -0.25]), 5 / 96)


def front(problem, seed=0, **settings):
    return search.make({"kind": "front", "slopes": True, **settings}, problem.space, metrics(problem), seed, {"": 1})


class TestContinuation(GenomeSuite):
    budget = 24

    def problem(self):
        return spheres(8)

    def make(self, problem, seed):
        return front(problem, seed)


class TestContinuationOfThreeObjectives(GenomeSuite):
    settings: ClassVar = {"batch": 3}
    budget = 20

    def problem(self):
        corners = np.array([[0.2] * 6, [0.8] * 3 + [0.2] * 3, [0.2] * 3 + [0.8] * 3])
        score = lambda x: -np.mean((corners - x) ** 2, axis=1)  # noqa: E731  # one line of mathematics
        return Sloped(box(6), ("a", "b", "c"), score, np.full(3, -0.4))

    def make(self, problem, seed):
        return front(problem, seed, **self.settings)


@pytest.mark.parametrize("genes", [8, 200])
def test_few_evaluations_cover_the_front_of_badly_scaled_objectives(genes):
    scales = np.geomspace(0.2, 5, genes)
    problem = spheres(genes, scales=scales / scales.mean())
    volume = problem.quality(drive(front(problem), problem.evaluate, 36))
    evolved = search.make({"kind": "nsga2", "population": 12}, problem.space, problem.objectives, 0)
    assert volume > 0.9 * problem.volume
    assert problem.quality(drive(evolved, problem.evaluate, 36)) < 0.8 * volume


def test_slopes_are_wanted_of_all_examples_but_not_of_the_known_recipes():
    problem = spheres(3)
    problem = Sloped(problem.space, ("one/entropy", "two/entropy"), problem.score, problem.reference)

    def evaluate(proposal):
        done = problem.evaluate(proposal)
        return replace(done, scores={name: np.repeat(s, 3 if name < "t" else 2) for name, s in done.scores.items()})

    settings = {"kind": "front", "slopes": True}
    driver = search.make(settings, problem.space, metrics(problem), 0, {"one": 3, "two": 2})
    proposals = drive(driver, evaluate, 12)
    assert proposals[0].slopes is None
    assert {str(p.slopes) for p in proposals[1:]} == {str({"one": (0, 1, 2), "two": (0, 1)})}
    assert (proposals[1].genome == proposals[0].genome).all()


def test_genes_on_a_logarithmic_scale_climb_like_others():
    space = Box({f"x{i}": {"float": [0.01, 100], "log": True, "init": 0.05} for i in range(5)})
    ends = np.array([[0.25], [0.75]])
    score = lambda x: -np.mean((np.log10(x) / 4 + 0.5 - ends) ** 2, axis=1)  # noqa: E731  # one line of mathematics
    problem = Sloped(space, ("near", "far"), score, np.array([-0.25, -0.25]), 5 / 96)
    assert problem.quality(drive(front(problem), problem.evaluate, 36)) > 0.9 * problem.volume


def test_genes_without_slopes_keep_their_start():
    space = Box({"x": (0, 1), "y": (0, 1), "method": ["a", "b", "c"]})
    ends = np.array([[0.25], [0.75]])
    score = lambda x: -np.mean((x[:2] - ends) ** 2, axis=1)  # noqa: E731  # one line of mathematics
    problem = Sloped(space, ("near", "far"), score, np.array([-0.25, -0.25]))
    driver = front(problem)
    assert "1 of the genes have no slopes" in str(driver)
    proposals = drive(driver, problem.evaluate, 20)
    assert {proposal.genome[2] for proposal in proposals} == {proposals[0].genome[2]}


def test_units_of_the_objectives_have_little_effect():
    plain = spheres(20)
    factors = np.array([1.0, 1000.0])
    scaled = Sloped(plain.space, plain.objectives, lambda x: factors * plain.score(x), factors * plain.reference)
    volume = scaled.quality(drive(front(scaled), scaled.evaluate, 24)) / factors.prod()
    assert volume == pytest.approx(plain.quality(drive(front(plain), plain.evaluate, 24)), rel=0.02)


def test_candidates_in_flight_differ_and_spread_over_the_front():
    problem = spheres(50)
    proposals = drive(front(problem, batch=4), problem.evaluate, 40, slots=4)
    assert len({proposal.recipe.id for proposal in proposals[1:]}) == 39
    scores = np.array([problem.score(proposal.genome) for proposal in proposals])
    best = scores[pareto.nondominated(scores)]
    assert len(best) > 8
    assert np.ptp(best, axis=0).min() > 0.15


def test_step_that_fails_is_followed_by_shorter_ones():
    problem = spheres(10)
    driver = front(problem)
    lengths = []
    for number in range(7):
        proposal = driver.ask()
        failed = number >= 2
        driver.tell(proposal, Evaluation(error="out of memory") if failed else problem.evaluate(proposal))
        lengths.append(np.abs(proposal.genome - 0.1).max())
    assert lengths[:2] == [0, 0]
    np.testing.assert_allclose(
        lengths[2:], 0.06 * 0.5 ** np.arange(5)
    )  # the slopes of this problem are equal in all genes


def test_newton_direction_is_that_of_another_library():
    rng = np.random.default_rng(0)
    hessian = rng.standard_normal((6, 6))
    hessian = hessian @ hessian.T + np.eye(6)
    moves = rng.standard_normal((4, 6))
    bends = moves @ hessian
    moves[-1] = bends[-1]  # a last pair of curvature 1: our scale of the diagonal is then 1, as there
    slope = rng.standard_normal(6)
    expected = LbfgsInvHessProduct(moves, bends) @ slope
    np.testing.assert_allclose(newton_direction(slope, moves, bends, np.full(6, 3.0)), expected)


def test_newton_direction_needs_a_pair_of_negative_curvature():
    slope, move = np.ones(2), np.array([[1.0, 0.0]])
    assert newton_direction(slope, np.zeros((1, 2)), np.zeros((1, 2)), slope) is None
    assert newton_direction(slope, move, -move, slope) is None
    direction = newton_direction(slope, np.array([[1.0, 0], [0, 1.0]]), np.array([[2.0, 0], [0, 4.0]]), slope)
    np.testing.assert_allclose(direction, [0.5, 0.25])


@pytest.mark.parametrize(
    ("space", "named", "settings", "expected"),
    [
        (box(3), {"a": True}, {"slopes": True}, "two or more objectives, got one; type `kind: cma`"),
        (box(3), {"a": True, "b": False}, {"slopes": True}, "driver `front` needs slopes, and `b` has none"),
        (Box({"x": ["a", "b"]}), {"a": True, "b": True}, {"slopes": True}, "driver `front` needs genes with slopes"),
        (box(41), {"a": True, "b": False}, {}, "up to 40 genes, and the space has 41"),
        (box(41), {"a": True, "b": True}, {"slopes": False}, "up to 40 genes, and the space has 41"),
    ],
)
def test_what_has_no_slopes_is_refused_with_what_to_type(space, named, settings, expected):
    given = {name: Metric(name, slopes=slopes) for name, slopes in named.items()}
    with pytest.raises(DriverError, match=expected):
        search.make({"kind": "front", **settings}, space, given, 0, {"": 1})


def test_evaluation_without_slopes_is_refused_with_what_to_type():
    problem = spheres(3)
    driver = front(problem)
    expected = "no slopes of near, far; expected slopes of every objective"
    with pytest.raises(DriverError, match=expected):
        drive(driver, super(Sloped, problem).evaluate, 3)


@pytest.mark.parametrize(
    ("genes", "slopes", "expected"),
    [
        (41, True, {"kind": "front", "slopes": True}),
        (41, False, {"kind": "nsga2"}),
        (40, True, {"kind": "front"}),
    ],
)
def test_default_driver_follows_slopes_of_more_than_forty_genes(genes, slopes, expected):
    given = {name: Metric(name, slopes=slopes) for name in ("a", "b")}
    settings = search.default(box(genes), given)
    assert settings == expected
    by_slopes = "by slopes" in str(search.make(settings, box(genes), given, 0, {"": 1}))
    assert by_slopes == settings.get("slopes", False)
