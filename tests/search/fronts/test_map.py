"""MAP: its design, its fits, the front that it proposes, failures and bounds."""

import numpy as np
import pytest
from problems import mixed, sphere, three_corners
from pydantic import ValidationError

from evomerge import pareto, surrogate
from evomerge.errors import DriverError
from evomerge.search.driver import Generational
from evomerge.search.fronts.map import Map, MapSettings
from evomerge.search.fronts.quadratic import predicted_front
from evomerge.space import Box, SearchSpace
from evomerge.surrogate.map_quadratic import MapQuadratic, SquashedQuadratic, fit_map_quadratic
from evomerge.surrogate.rungs import Quadratic
from evomerge.surrogate.warps import IDENTITY
from evomerge.testing import GenomeSuite, Problem, SurfaceSuite, drive, two_spheres
from evomerge.trial import Evaluation


def driver(problem, seed=0, **settings):
    breeder = Map(problem.space, problem.objectives, seed, MapSettings(**settings))
    return Generational(problem.space, problem.objectives, breeder)


class TestMap(GenomeSuite):
    budget = 40

    def problem(self):
        return two_spheres(4)  # p = 15

    def make(self, problem, seed):
        return driver(problem, seed, points=20, validated=20)


class TestMapSurface(SurfaceSuite):
    def problem(self):
        return classifier()

    def make(self, problem, seed):
        return driver(problem, seed)


def coefficients(genes=2, seed=0, size=0.5):
    return size * np.random.default_rng(seed).standard_normal(surrogate.unknowns(genes))


def classifier(objectives=("left/accuracy", "right/accuracy")):
    """Two experts' weights, whose accuracies are sigmoids of quadratics, far from saturated."""
    space = SearchSpace(
        {
            "merge": {
                "method": "task_arithmetic",
                "inputs": "experts",
                "parameters": {"weight": {"float": [-0.2, 1.3], "per": ["expert"]}, "lambda": 1.0},
            }
        },
        experts=("left", "right"),
    )
    middles = np.array([[0.9, 0.2], [0.1, 0.8]])
    return Problem(
        space,
        objectives,
        lambda x: 1 / (1 + np.exp(-1.5 + 2 * ((x - middles) ** 2).sum(axis=1))),
        np.array([0.2, 0.2]),
    )


def test_design_is_the_known_recipes_and_a_part_of_the_grid_that_identifies_a_quadratic():
    problem = classifier()
    proposals = drive(driver(problem), problem.evaluate, 12)  # 2p = 12
    genomes = np.array([proposal.genome for proposal in proposals])
    known = {problem.space.decode(genome).id for genome in problem.space.landmarks().values()}
    assert {proposal.recipe.id for proposal in proposals[: len(known)]} == known
    unit = problem.space.to_unit(genomes)
    grid = unit[len(known) :] * 4  # ⌈24^(1/2)⌉ = 5 levels
    np.testing.assert_allclose(grid, grid.round(), atol=1e-9)
    assert len({proposal.recipe.id for proposal in proposals}) == 12
    assert surrogate.identifies(unit)


def test_eight_genes_have_three_levels_and_full_rank():
    # The released code has two levels here: rank 37 of 45.
    problem = two_spheres(8)
    proposals = drive(driver(problem), problem.evaluate, 90)
    unit = np.array([proposal.genome for proposal in proposals])
    assert surrogate.identifies(unit)
    assert all(len(np.unique(column.round(9))) >= 3 for column in unit.T)


def test_search_ends_after_the_design_and_what_is_validated():
    problem = classifier()
    searching = driver(problem, points=14, validated=5)
    assert len(drive(searching, problem.evaluate, 100)) == 19
    assert searching.ask() is None


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 1.0), (-1.0, 3.0), (-np.inf, 0.0), (2.0, np.inf)])
def test_fit_finds_a_quadratic_within_each_kind_of_bounds(bounds):
    true = SquashedQuadratic(coefficients(), bounds)
    points = surrogate.design(2, [], 12, 0)
    fitted = fit_map_quadratic(points, true.predict(points), bounds)
    np.testing.assert_allclose(fitted.coefficients, true.coefficients, atol=1e-6)
    elsewhere = surrogate.design(2, [], 50, 1)
    np.testing.assert_allclose(fitted.predict(elsewhere), true.predict(elsewhere), atol=1e-6)


def test_bounded_scores_are_the_papers_three_warps():
    # By hand, of the value 0.4: 1 / (1 + exp(-0.4)) = 0.598688, log(1 + exp(0.4)) = 0.913015.
    constant = np.zeros(6)
    constant[0] = 0.4
    point = np.array([[0.3, 0.9]])
    expected = {(0, 1): 0.598688, (0, 10): 5.98688, (1, np.inf): 1.913015, (-np.inf, 0): -0.913015}
    for bounds, score in expected.items():
        np.testing.assert_allclose(SquashedQuadratic(constant, bounds).predict(point), [score], atol=1e-5)
    np.testing.assert_allclose(SquashedQuadratic(constant, (-np.inf, np.inf)).predict(point), [0.4])


@pytest.mark.parametrize("seed", range(3))
def test_fit_of_few_points_does_not_stall_where_the_released_codes_start_does(seed):
    # Started from all ones, the sigmoid is saturated: the published defect. 8 points, T = 2.
    true = SquashedQuadratic(coefficients(seed=seed), (0.0, 1.0))
    points = surrogate.design(2, np.vstack([np.zeros(2), np.eye(2)]), 8, seed)
    noisy = true.predict(points) + 0.005 * np.random.default_rng(seed).standard_normal(8)
    elsewhere = surrogate.design(2, [], 64, 9)
    assert (
        np.abs(fit_map_quadratic(points, noisy, (0.0, 1.0)).predict(elsewhere) - true.predict(elsewhere)).mean() < 0.02
    )


def test_polish_never_fits_worse_than_where_it_starts():
    means = np.array([0.0, 1.0, 0.2, 0.9, 0.4, 0.6, 0.5, 1.0])
    points = surrogate.design(2, [], 8, 3)
    terms = surrogate.quadratic_terms(points)
    clipped = np.clip(means, 0.01, 0.99)
    start = np.linalg.lstsq(terms, np.log(clipped / (1 - clipped)))[0]
    before = np.sum((1 / (1 + np.exp(-terms @ start)) - means) ** 2)
    assert np.sum((fit_map_quadratic(points, means, (0.0, 1.0)).predict(points) - means) ** 2) < before


def test_front_of_two_spheres_is_the_line_between_their_middles():
    terms = surrogate.design(2, [], 12, 0)
    fits = [
        fit_map_quadratic(terms, -((terms - middle) ** 2).mean(axis=1), (-np.inf, np.inf)) for middle in (0.25, 0.75)
    ]
    points, scores = predicted_front(fits, 2, 0)
    assert np.abs(points[:, 0] - points[:, 1]).max() < 0.2
    assert pareto.nondominated(scores).all()
    assert pareto.hypervolume(scores, [-0.25, -0.25]) > 0.98 * 5 / 96
    assert points.min() >= 0
    assert points.max() <= 1


def test_validated_candidates_are_on_the_front_and_spread_from_end_to_end():
    problem = classifier()
    proposals = drive(driver(problem, validated=8), problem.evaluate, 100)
    scores = np.array([problem.evaluate(p).means(problem.objectives) for p in proposals[12:]])
    dense = problem.space.from_unit(surrogate.design(2, [], 2048, 0))
    best = np.array([problem.score(genome) for genome in dense])
    volume = pareto.hypervolume(best, problem.reference)
    assert len(scores) == 8
    assert pareto.hypervolume(scores, problem.reference) > 0.97 * volume
    np.testing.assert_allclose(scores.max(axis=0), best.max(axis=0), atol=0.01)
    order = scores[np.argsort(scores[:, 0])] / np.ptp(best[pareto.nondominated(best)], axis=0)
    steps = np.linalg.norm(np.diff(order, axis=0), axis=1)
    assert steps.max() < 4 * steps.min()


def test_failures_are_left_out_of_the_fit():
    problem = classifier()

    def broken(proposal):
        return Evaluation(error="out of memory") if proposal.number == 3 else problem.evaluate(proposal)

    searching = driver(problem)
    proposals = drive(searching, broken, 12)
    fitted = [problem.evaluate(p).means(problem.objectives) for p in proposals if p.number != 3]
    np.testing.assert_array_equal(searching.breeder.means, fitted)  # no stand-in for the failure


def test_failures_are_replaced_until_the_quadratic_is_identified():
    problem = classifier()

    def broken(proposal):
        return Evaluation(error="out of memory") if proposal.number < 10 else problem.evaluate(proposal)

    proposals = drive(driver(problem, validated=4), broken, 100)
    assert len(proposals) == 12 + 10 + 4
    replaced = np.array([proposal.genome for proposal in proposals[10:22]])
    assert surrogate.identifies(problem.space.to_unit(replaced))


def test_objective_that_does_not_vary_is_survived():
    problem = classifier()
    flat = Problem(problem.space, problem.objectives, lambda x: np.array([0.5, problem.score(x)[1]]), problem.reference)
    proposals = drive(driver(flat), flat.evaluate, 100)
    best = max(problem.score(p.genome)[1] for p in proposals)
    assert best > 0.81  # of 1 / (1 + exp(-1.5)) = 0.8176


def test_task_that_all_agree_on_ends_with_the_one_best_candidate():
    problem = classifier()
    same = Problem(problem.space, problem.objectives, lambda x: np.repeat(problem.score(x)[:1], 2), problem.reference)
    proposals = drive(driver(same), same.evaluate, 100)
    assert 12 < len(proposals) <= 18
    np.testing.assert_allclose(problem.score(proposals[12].genome)[0], 0.8176, atol=1e-3)


@pytest.mark.parametrize(
    ("objectives", "bounds", "score", "expected"),
    [
        (("a/accuracy", "b/accuracy"), {}, 1.2, r"`a/accuracy` scores 1.2, outside of its bounds \[0, 1\]"),
        (("a/rouge_l", "b/accuracy"), {}, -0.1, r"`a/rouge_l` scores -0.1"),
        (
            ("a/log_likelihood", "b/accuracy"),
            {},
            0.3,
            r"`a/log_likelihood` scores 0.3, outside of its bounds \[-inf, 0\]",
        ),
        (("a/score", "b/accuracy"), {"a/score": (None, 2)}, 3.0, "`a/score` scores 3"),
    ],
)
def test_score_out_of_bounds_is_refused_with_what_to_type(objectives, bounds, score, expected):
    problem = classifier(objectives)

    def evaluate(proposal):
        scores = {objectives[0]: np.array([score if proposal.number == 3 else -0.0], np.float32)}
        return Evaluation(scores={**scores, objectives[1]: np.array([0.5], np.float32)})

    with pytest.raises(DriverError, match=expected):
        drive(driver(problem, bounds=bounds), evaluate, 12)


def test_genes_that_are_no_floats_are_refused_by_name():
    with pytest.raises(DriverError, match=r"gene `method` is choice.*nsga2"):
        driver(mixed())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"points": 5}, "`points` is 5; expected 6 or more, for 2 genes"),
        ({"bounds": {"left/acuracy": (0, 1)}}, "did you mean `left/accuracy`"),
        ({"bounds": {"left/accuracy": (1, 0)}}, "expected a lower and a higher number"),
    ],
)
def test_bad_settings_are_refused(settings, expected):
    with pytest.raises(DriverError, match=expected):
        driver(classifier(), **settings)


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError, match="box"):
        MapSettings(box="published")


def test_a_space_with_a_gene_for_each_tensor_is_refused():
    """A quadratic in 309 genes has 47,895 unknowns; its design alone would take 34 GiB."""
    box = Box({f"weight {i}": (0, 1) for i in range(309)})
    with pytest.raises(
        DriverError, match=r"`map` reaches up to 100 genes, and the space has 309; .* type `kind: nsga2`"
    ):
        Map(box, ("left/accuracy", "right/accuracy"), 0, MapSettings())


def test_one_objective_is_refused():
    with pytest.raises(DriverError, match="two or more objectives"):
        driver(sphere())


def test_dry_run_is_one_line_that_counts_candidates():
    line = str(driver(three_corners(), validated=9))
    assert "\n" not in line
    assert "4 known recipes and 52 points of a grid of 3 levels" in line  # p = 28
    assert "9 candidates of their front" in line


@pytest.mark.parametrize(("bounds", "close"), [((-np.inf, np.inf), 1e-9), ((0.0, 1.0), 1e-3), ((-np.inf, 1.0), 1e-3)])
def test_left_out_is_what_a_fit_of_the_others_predicts(bounds, close):
    points = surrogate.design(2, [], 16, 0)
    means = SquashedQuadratic(coefficients(), bounds).predict(points) + 0.01 * np.random.default_rng(1).standard_normal(
        16
    )
    left_out = MapQuadratic(points, means, bounds).left_out[0]
    refitted = [
        fit_map_quadratic(np.delete(points, i, 0), np.delete(means, i), bounds).predict(points[i : i + 1])[0]
        for i in range(16)
    ]
    np.testing.assert_allclose(left_out, refitted, atol=close)
    assert np.abs(refitted - means).max() > 5 * close  # it is no small matter which


def test_deviations_are_those_of_least_squares():
    # Without bounds: sigma² (1 + tᵀ(TᵀT)⁻¹t), by the textbook's matrices.
    points, new = surrogate.design(2, [], 200, 0), surrogate.design(2, [], 5, 1)
    noise = np.random.default_rng(0).standard_normal(200)
    rung = MapQuadratic(points, surrogate.quadratic_terms(points) @ coefficients() + 0.1 * noise, (-np.inf, np.inf))
    terms, at = surrogate.quadratic_terms(points), surrogate.quadratic_terms(new)
    spread = 1 + np.einsum("ij,jk,ik->i", at, np.linalg.inv(terms.T @ terms), at)
    ratio = rung.predict(new)[1] / np.sqrt(spread)
    np.testing.assert_allclose(ratio, ratio[0])
    assert ratio[0] == pytest.approx(0.1, rel=0.1)
    between = at[0] - at[1]
    expected = ratio[0] ** 2 * between @ np.linalg.inv(terms.T @ terms) @ between
    np.testing.assert_allclose(rung.change_variance(new[:1], new[1:2]), [expected])
    np.testing.assert_allclose(rung.change_variance(new, new), 0)


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 1.0)])
def test_intervals_hold_nine_of_ten_scores(bounds):
    points, elsewhere = surrogate.design(2, [], 24, 0), surrogate.design(2, [], 100, 1)
    true, inside = SquashedQuadratic(coefficients(), bounds), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means = true.predict(points) + 0.02 * rng.standard_normal(24)
        mean, deviation = MapQuadratic(points, means, bounds).predict(elsewhere)
        measured = true.predict(elsewhere) + 0.02 * rng.standard_normal(100)
        inside.append(np.mean(np.abs(mean - measured) <= surrogate.NORMAL_90 * deviation))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.04)


def test_figures_of_a_judged_rung_are_those_of_a_surrogate():
    # The ladder's quadratic without a ridge is the same least squares.
    points = surrogate.design(2, [], 20, 0)
    scores = surrogate.quadratic_terms(points) @ coefficients() + 0.1 * np.random.default_rng(0).standard_normal(20)
    table = scores[:, None] + np.array([-1.0, 0.0, 1.0])
    ours = surrogate.judge(points, table, MapQuadratic(points, scores, (-np.inf, np.inf)))
    ladder = surrogate.judge(points, table, Quadratic("quadratic", points, scores, [IDENTITY]))
    assert ours.r2 == pytest.approx(ladder.r2, abs=0.02)
    assert ours.factor == pytest.approx(ladder.factor, rel=0.1)
    assert ours.standard_error == ladder.standard_error == pytest.approx(1 / np.sqrt(3))


def test_surface_of_what_is_no_quadratic_or_of_too_few_is_refused():
    problem = classifier()
    wavy = Problem(
        problem.space,
        problem.objectives,
        lambda x: np.array([0.5 + 0.4 * np.sin(40 * x[0] * x[1]), problem.score(x)[1]]),
        problem.reference,
    )
    searching = driver(wavy, points=20)
    proposals = drive(searching, wavy.evaluate, 100)
    surface = searching.breeder.surface()
    assert "`left/accuracy`: the surrogate (MAP's quadratic) explains R²" in surface.refused
    assert surface.best_for_all is None
    assert surface.fits["right/accuracy"].r2 > 0.99
    few = driver(problem).breeder.surface(
        np.array([p.genome for p in proposals[:6]]), [problem.evaluate(p) for p in proposals[:6]]
    )
    assert few.refused == "6 candidates could be evaluated; expected 7 or more that identify a quadratic"
    assert len(few.recipes) == 0
    flat = Problem(problem.space, problem.objectives, lambda x: np.array([0.5, problem.score(x)[1]]), problem.reference)
    searching = driver(flat)
    drive(searching, flat.evaluate, 100)
    assert "`left/accuracy` does not vary over" in searching.breeder.surface().refused
