"""Fronts by surrogates of scores and slopes: what is asked for, what it costs, failures, surfaces, errors."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from evomerge import pareto, search
from evomerge.errors import DriverError
from evomerge.search.fronts.sloped import read_slopes
from evomerge.space import Box, SearchSpace
from evomerge.testing import GenomeSuite, SurfaceSuite, drive, scattered_spheres, toy_space
from evomerge.trial import Evaluation, Metric

FAILED = Evaluation(error="out of memory")


def make(problem, seed=0, **settings):
    settings = {"kind": "front", "slopes": "surrogates", **settings}
    return search.make(settings, problem.space, problem.metrics, seed, problem.sizes)


class TestSlopedFront(GenomeSuite):
    budget = 16

    def problem(self):
        return scattered_spheres(4)

    def make(self, problem, seed):
        return make(problem, seed, tolerance=0, batch=9)


class TestSlopedFrontSurface(SurfaceSuite):
    budget = 24

    def problem(self):
        problem = scattered_spheres(4)
        # Its scores are means over examples.
        score = lambda x: np.array([-np.mean((x - c) ** 2) for c in problem.centres.values()])  # noqa: E731  # one line of mathematics
        return replace(problem, score=score)

    def make(self, problem, seed):
        return make(problem, seed, tolerance=0, batch=8)


def curved(genes):
    """Return `scattered_spheres` with each gene scaled by another number: quadratics whose curvatures differ."""
    problem = scattered_spheres(genes)
    scales = np.linspace(0.3, 1.7, genes)[::-1]

    def evaluate(proposal):
        genome = problem.space.genome_of(proposal)
        away = {
            name: centres - genome for name, centres in zip(problem.objectives, problem.centres.values(), strict=True)
        }
        scores = {name: -np.mean(scales * rows**2, axis=1).astype(np.float32) for name, rows in away.items()}
        slopes = {}
        if proposal.slopes is not None:
            for name, rows in away.items():
                numbers = np.full(len(proposal.recipe.numbers), np.nan)
                at = problem.space.slopes(genome, np.arange(len(numbers), dtype=np.float64)).astype(int)
                numbers[at] = 2 * (scales * rows).mean(axis=0) / genes
                slopes[name] = numbers
        return Evaluation(scores, slopes=slopes)

    return SimpleNamespace(
        space=problem.space,
        metrics=problem.metrics,
        sizes=problem.sizes,
        objectives=problem.objectives,
        reference=problem.reference,
        evaluate=evaluate,
    )


def cost(proposals):
    return np.cumsum([3 if proposal.slopes is not None else 1 for proposal in proposals])


def volume(problem, proposals):
    return pareto.hypervolume([problem.evaluate(p).means(problem.objectives) for p in proposals], problem.reference)


def test_the_design_has_slopes_and_known_recipes_and_batches_have_none():
    problem = scattered_spheres()
    driver = make(problem, tolerance=0)
    proposals = drive(driver, problem.evaluate, 24)
    known = len({problem.space.decode(genome).id for genome in problem.space.landmarks().values()})
    sloped = [proposal.number for proposal in proposals if proposal.slopes is not None]
    assert sloped == list(range(known, sloped[-1] + 1))
    assert len(sloped) == 5
    assert all(p.examples is None for p in proposals)
    assert search.climbs(driver)
    assert not search.climbs(search.make({"kind": "front"}, problem.space, problem.metrics, 0))


def test_more_hypervolume_at_equal_cost_than_by_scores_alone_or_steps():
    problem = curved(8)
    reached = {}
    for name, slopes in (("surrogates", "surrogates"), ("scores", False), ("steps", True)):
        driver = make(problem, slopes=slopes, tolerance=0, batch=4)
        proposals = drive(driver, problem.evaluate, 36)
        reached[name] = volume(problem, [p for p, spent in zip(proposals, cost(proposals), strict=True) if spent <= 36])
    assert reached["surrogates"] > 1.02 * max(reached["scores"], reached["steps"])


def test_scores_that_are_exactly_quadratic_do_not_end_the_search():
    problem = curved(4)
    driver = make(problem, tolerance=0, points=12)
    assert len(drive(driver, problem.evaluate, 20)) == 20


def test_surface_from_the_journal_is_that_of_the_search():
    problem = scattered_spheres(6)
    driver = make(problem, tolerance=0, batch=8)
    done = []

    def evaluate(proposal):
        done.append((proposal, problem.evaluate(proposal)))
        return done[-1][1]

    drive(driver, evaluate, 20)
    expected = search.surfaced(driver).surface(*driver.unfinished())
    written = [Evaluation.from_json(evaluation.to_json()) for _, evaluation in done]
    surface = search.surfaced(make(problem)).surface(np.array([p.genome for p, _ in done]), written)
    np.testing.assert_allclose(surface.means, expected.means, atol=1e-9)
    assert surface.refused is expected.refused is None
    without = [replace(evaluation, slopes={}) for evaluation in written]
    poorer = search.surfaced(make(problem)).surface(np.array([p.genome for p, _ in done]), without)
    for name, fit in poorer.fits.items():
        assert fit.r2 < surface.fits[name].r2


def test_a_surface_that_predicts_badly_is_refused_and_more_slopes_are_asked_for():
    problem = scattered_spheres(6)
    rng = np.random.default_rng(0)

    def noisy(proposal):
        done = problem.evaluate(proposal)
        scores = {name: rng.standard_normal(20).astype(np.float32) - 9 for name in done.scores}
        slopes = {name: rng.standard_normal(len(slope)) for name, slope in done.slopes.items()}
        return replace(done, scores=scores, slopes=slopes)

    driver = make(problem)
    proposals = drive(driver, noisy, 30)
    surface = search.surfaced(driver).surface(*driver.unfinished())
    assert "explains R²" in surface.refused
    assert sum(proposal.slopes is not None for proposal in proposals) > 4


def test_failures_are_replaced_with_slopes():
    problem = scattered_spheres()
    proposals = drive(make(problem), lambda p: FAILED if 4 < p.number < 9 else problem.evaluate(p), 16)
    assert sum(proposal.slopes is not None for proposal in proposals) > 4


def test_slopes_that_are_not_finite_leave_the_scores():
    problem = scattered_spheres()
    genomes = problem.space.from_unit(np.random.default_rng(0).random((3, 8)))
    driver = make(problem, seed_known=False)
    done = [problem.evaluate(driver.ask()) for _ in genomes]
    broken = {name: np.full_like(slope, np.nan) for name, slope in done[1].slopes.items()}
    done[1] = replace(done[1], slopes=broken)
    found = read_slopes(problem.space, problem.objectives, genomes, done)
    assert set(found) == set(problem.objectives)
    assert all(set(slopes.rows.tolist()) == {0, 2} for slopes in found.values())
    proposals = drive(
        make(problem, tolerance=0),
        lambda p: replace(problem.evaluate(p), slopes=broken) if p.number == 6 else problem.evaluate(p),
        16,
    )
    assert len(proposals) == 16


def test_slopes_are_of_unit_coordinates_and_int_genes_have_none():
    space = Box({"scale": {"float": [0.01, 1], "log": True}, "weight": (0, 4), "count": {"int": [0, 9]}})
    genome = np.array([0.1, 3.0, 2.0])
    done = Evaluation({"x/y": np.zeros(1, np.float32)}, slopes={"x/y": np.array([5.0, 7.0, 1.0])})
    [slopes] = read_slopes(space, ["x/y"], space.to_unit(genome)[None], [done]).values()
    assert slopes.values == pytest.approx([5 * 0.1 * np.log(100), 7 * 4])
    assert (slopes.directions == np.eye(3)[:2]).all()


def test_slopes_of_mixtures_are_along_their_weights():
    weight = {"mixture": [0.5, 1.5], "per": ["expert"]}
    merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": weight, "lambda": 1.0}}
    space = SearchSpace({"merge": merge}, experts=["a", "b", "c"])
    unit, step = np.array([0.4, 0.3, 0.6]), 1e-6
    genome = space.from_unit(unit)
    rise = np.array([1.0, -2.0, 0.5])  # of the score with each weight, which is linear

    def score(point):
        return space.coordinates(point) * 1.5 @ rise

    numbers = np.full(len(space.decode(genome).numbers), np.nan)
    paths = [path[-1] for path in space.decode(genome).numbers]
    for name, value in zip("abc", rise, strict=True):
        numbers[paths.index(name)] = value
    done = Evaluation({"x/y": np.zeros(1, np.float32)}, slopes={"x/y": numbers})
    [slopes] = read_slopes(space, ["x/y"], unit[None], [done]).values()
    assert len(slopes.rows) == 3
    np.testing.assert_allclose(slopes.values, slopes.directions @ (1.5 * rise), rtol=1e-6)
    for direction, gene in zip(slopes.directions, np.eye(3), strict=True):
        moved = (space.coordinates(unit + step * gene) - space.coordinates(unit - step * gene)) / (2 * step)
        np.testing.assert_allclose(direction, moved / np.linalg.norm(moved), atol=1e-5)
        assert direction @ (1.5 * rise) * np.linalg.norm(moved) == pytest.approx(
            (score(unit + step * gene) - score(unit - step * gene)) / (2 * step), rel=1e-4
        )


def test_it_says_what_it_needs():
    problem = scattered_spheres()
    with pytest.raises(DriverError, match="needs slopes, and `near/distance` has none"):
        search.make({"kind": "front", "slopes": "surrogates"}, problem.space, problem.objectives, 0, problem.sizes)
    with pytest.raises(DriverError, match="up to 40 genes, and the space has 42"):
        search.make({"kind": "front", "slopes": "surrogates"}, toy_space(42), problem.metrics, 0, problem.sizes)
    with pytest.raises(DriverError, match="expected `sizes`"):
        search.make({"kind": "front", "slopes": "surrogates"}, problem.space, problem.metrics, 0)
    ints = Box({"count": {"int": [0, 9]}})
    with pytest.raises(DriverError, match="needs genes with slopes"):
        search.make({"kind": "front", "slopes": "surrogates"}, ints, {"x/y": Metric("y", slopes=True)}, 0, {"x": 1})
    with pytest.raises(DriverError, match="slopes"):
        search.make({"kind": "front", "slopes": "surrogate"}, problem.space, problem.metrics, 0, problem.sizes)
    with pytest.raises(DriverError, match="scores and no slopes of near/distance"):
        drive(make(problem), lambda p: replace(problem.evaluate(p), slopes={}), 20)
