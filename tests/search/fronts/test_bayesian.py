"""Bayesian MAP: its bins, where its candidates go, and when it ends."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import mixed, sphere

from evomerge import search, surrogate
from evomerge.errors import DriverError
from evomerge.search.driver import Generational
from evomerge.search.fronts.bayesian import BayesianMap, BayesianMapSettings, Bins, squared_errors
from evomerge.surrogate.map_quadratic import SquashedQuadratic, fit_map_quadratic
from evomerge.testing import GenomeSuite, Problem, SurfaceSuite, drive, toy_space, two_spheres
from evomerge.trial import Evaluation, Proposal


def driver(problem, seed=0, **settings):
    breeder = BayesianMap(problem.space, problem.objectives, seed, BayesianMapSettings(**settings))
    return Generational(problem.space, problem.objectives, breeder)


class TestBayesian(GenomeSuite):
    budget = 16  # twice as many reach the front

    def problem(self):
        return two_spheres(2)

    def make(self, problem, seed):
        settings = {"kind": "bayesian_map", "initial": 8, "points": 20, "validated": 20}
        return search.make(settings, problem.space, problem.objectives, seed)


class TestBayesianSurface(SurfaceSuite):
    budget = 24
    close = 1e-5

    def make(self, problem, seed):
        return driver(problem, seed)


def bumpy(size=1.0):
    """Two quadratics, one with a bump in the third of the four bins, half-way out: 0.5 (cos 56°, sin 56°)."""
    middle = 0.5 * np.array([math.cos(0.625 * math.pi / 2), math.sin(0.625 * math.pi / 2)])

    def score(x):
        bump = size * math.exp(-np.sum((x - middle) ** 2) / 0.02)
        return np.array([-np.sum((x - 0.25) ** 2), -np.sum((x - 0.75) ** 2) + bump])

    return Problem(toy_space(2), ("smooth", "bumpy"), score, np.full(2, -2.0))


def drawn(problem, seed, bins, **settings):
    proposals = drive(driver(problem, seed, **settings), problem.evaluate, 60)
    return bins.of(np.array([proposal.genome for proposal in proposals]))


def test_later_candidates_go_where_the_quadratics_are_wrong():
    bins = Bins(2)
    settings = {"initial": 20, "points": 60, "batch": 4}
    wrong = np.mean([np.mean(drawn(bumpy(), seed, bins, **settings)[20:] == 2) for seed in range(3)])
    right = np.mean([np.mean(drawn(bumpy(0.0), seed, bins, **settings)[20:] == 2) for seed in range(3)])
    sobol = np.mean(bins.of(surrogate.design(2, (), 1024, 0)) == 2)
    assert sobol == pytest.approx(0.29, abs=0.01)
    assert wrong > 1.5 * sobol
    assert wrong > 1.3 * right


def test_search_is_a_design_rounds_and_what_is_validated():
    problem = two_spheres(2)
    searching = driver(problem, initial=8, points=14, batch=4, validated=5)
    proposals = drive(searching, problem.evaluate, 100)
    assert len(proposals) == 19
    assert searching.ask() is None
    later = np.linalg.norm([proposal.genome for proposal in proposals[8:14]], axis=1)
    assert later.min() >= 0.2
    assert later.max() <= 0.8


def test_what_is_drawn_depends_on_all_that_was_evaluated():
    # The same first design and the same seed: the second round depends on the first.
    problem = two_spheres(2)

    def later(proposal):
        evaluation = problem.evaluate(proposal)
        if proposal.number < 12:
            return evaluation
        return Evaluation(scores={name: 5 * proposal.number * scores for name, scores in evaluation.scores.items()})

    settings = {"initial": 12, "points": 24}
    one, other = (drive(driver(problem, **settings), told, 20) for told in (problem.evaluate, later))
    assert [p.recipe.id for p in one[:16]] == [p.recipe.id for p in other[:16]]
    assert [p.recipe.id for p in one[16:]] != [p.recipe.id for p in other[16:]]


def test_last_batch_is_fitted():
    problem = two_spheres(2)
    searching = driver(problem, initial=8, points=12)
    proposals = drive(searching, problem.evaluate, 12)
    np.testing.assert_allclose(searching.breeder.points, [p.genome for p in proposals], atol=1e-12)


@given(genes=st.integers(1, 8), seed=st.integers(0, 100))
def test_what_is_drawn_of_a_bin_lies_in_it_and_in_the_cube(genes, seed):
    rng = np.random.default_rng(seed)
    bins = Bins(genes)
    chosen = rng.integers(len(bins.prior), size=50)
    points = bins.draw(chosen, rng)
    np.testing.assert_array_equal(bins.of(points), chosen)
    assert points.min() >= 0
    assert points.max() <= 1
    lengths = np.linalg.norm(points, axis=1)
    assert lengths.min() >= 0.2 - 1e-12
    assert lengths.max() <= 0.8 + 1e-12


@pytest.mark.parametrize(("genes", "count"), [(1, 1), (2, 4), (3, 16), (4, 8), (7, 64)])
def test_prior_is_the_share_of_directions(genes, count):
    bins = Bins(genes)
    assert len(bins.prior) == count
    directions = np.abs(np.random.default_rng(0).standard_normal((40_000, genes)))
    shares = np.bincount(bins.of(directions), minlength=count) / 40_000
    np.testing.assert_allclose(bins.prior, shares, atol=0.01)


def test_prior_of_three_genes_by_hand():
    # The first angle's density is sin φ: from 0 to π/8, 1 - cos(π/8) = 0.07612; the second's is constant.
    np.testing.assert_allclose(Bins(3).prior[:4], 0.07612 / 4, atol=1e-5)


def test_score_is_the_mean_error_and_half_its_deviation_over_independent_resamples():
    bins = Bins(2)
    errors = np.random.default_rng(1).random(30)
    points = bins.draw(np.zeros(30, int), np.random.default_rng(0))
    scores = np.array([bins.scores(points, errors, np.random.default_rng(seed))[0] for seed in range(100)])
    # 24 of 30 without replacement: variance of their mean s² / 24 · (1 - 24 / 30); nested subsets of down to 4 have far more.
    expected = errors.mean() + 0.5 * math.sqrt(errors.var(ddof=1) / 24 * 0.2)
    assert scores.mean() == pytest.approx(expected, rel=0.01)


def test_empty_bins_and_bins_of_one_can_be_explored():
    bins = Bins(2)
    points = bins.draw(np.array([0, 0, 0, 1]), np.random.default_rng(0))
    scores = bins.scores(points, np.array([0.1, 0.3, 0.2, 0.2]), np.random.default_rng(0))
    assert scores[0] > 0.2
    assert scores[1] == pytest.approx(scores[0])  # the same mean, the largest deviation
    assert scores[2] == scores[3] == scores[:2].max()
    assert (bins.scores(np.zeros((2, 2)), np.ones(2), np.random.default_rng(0)) == 0).all()


def test_origin_is_in_no_bin_and_experts_are_at_the_ends():
    assert Bins(2).of(np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.5]])).tolist() == [-1, 0, 3, 1]


def test_errors_are_on_a_common_scale():
    points = surrogate.design(2, [], 30, 0)
    wavy = np.sin(9 * points[:, 0])
    means = np.stack([wavy, 1000 * wavy, np.full(30, 7.0)], axis=1)
    fits = [fit_map_quadratic(points, column, (-np.inf, np.inf)) for column in means.T]
    one = squared_errors(fits[:1], points, means[:, :1])
    np.testing.assert_allclose(squared_errors(fits, points, means), 2 / 3 * one, atol=1e-9)
    flat = SquashedQuadratic(np.zeros(6), (-np.inf, np.inf))
    centred = means[:, :1] - means[:, :1].mean()
    assert squared_errors([flat], points, centred).mean() == pytest.approx(
        1
    )  # what predicts nothing misses the variance


def test_failures_are_left_out_and_replaced_until_the_quadratic_is_identified():
    problem = two_spheres(2)

    def broken(proposal):
        return Evaluation(error="out of memory") if proposal.number < 6 else problem.evaluate(proposal)

    searching = driver(problem, initial=8, points=12, validated=3)
    proposals = drive(searching, broken, 100)
    assert len(proposals) == 8 + 6 + 4 + 3
    np.testing.assert_allclose(searching.breeder.points, [p.genome for p in proposals[6:]], atol=1e-12)


def test_surface_of_what_is_no_quadratic_is_refused():
    problem = bumpy(3.0)
    points = surrogate.design(2, (), 40, 0)
    evaluations = [problem.evaluate(Proposal(i, problem.space.decode(x), x)) for i, x in enumerate(points)]
    refused = driver(problem).breeder.surface(points, evaluations).refused
    assert "`bumpy`: the surrogate (MAP's quadratic) explains R²" in refused


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"initial": 5}, "`initial` is 5; expected 6 or more, for 2 genes"),
        ({"initial": 8, "points": 7}, "`points` is 7; expected 8 or more"),
        ({"bounds": {"nea": (0, 1)}}, "did you mean `near`"),
    ],
)
def test_bad_settings_are_refused(settings, expected):
    with pytest.raises(DriverError, match=expected):
        driver(two_spheres(2), **settings)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (mixed(), r"driver `bayesian_map` .* gene `method` is choice"),
        (sphere(2), "two or more objectives"),
        (two_spheres(10), "up to 8 genes, .* the space has 10"),
    ],
)
def test_what_it_cannot_search_is_refused(problem, expected):
    with pytest.raises(DriverError, match=expected):
        driver(problem)


def test_dry_run_is_one_line_that_counts_candidates():
    line = str(driver(two_spheres(6)))  # p = 28
    assert "\n" not in line
    assert "4 known recipes and 38 points of a grid of 3 levels" in line
    assert "42 more, 4 at a time" in line
    assert "28 candidates of their front" in line
