"""Nested MAP: its tree, its pairs, what it answers, and what it says of how sure it is."""

import numpy as np
import pytest
from problems import mixed

from evomerge import pareto, search
from evomerge.errors import DriverError
from evomerge.search.driver import Generational
from evomerge.search.fronts import nested
from evomerge.search.fronts.nested import NestedMap, NestedMapSettings
from evomerge.search.fronts.tree import minimise, preferences
from evomerge.space import SearchSpace
from evomerge.testing import GenomeSuite, Problem, SurfaceSuite, drive, toy_space
from evomerge.trial import Evaluation


def driver(problem, seed=0, **settings):
    breeder = NestedMap(problem.space, problem.objectives, seed, NestedMapSettings(**settings))
    return Generational(problem.space, problem.objectives, breeder)


def space(experts, high=1.2):
    merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": {"lambda": 1.0}}
    merge["parameters"]["weight"] = {"float": [0, high], "init": 0.4, "per": ["expert"]}
    return SearchSpace({"merge": merge}, experts=experts)


def conflict(objectives=None, coupling=0.0, experts=("a", "b", "c"), best=0.9, cost=0.3):
    """Each task is best at 0.9 of its expert, and worse by 0.3 w² for each other; `coupling` w_i w_j between all others."""
    tasks = np.arange(len(experts))

    def score(x):
        own = 1 - (x - best) ** 2
        squares = cost * (np.sum(x**2) - x**2)
        products = [sum(x[i] * x[j] for i in tasks for j in tasks if i < j and t not in (i, j)) for t in tasks]
        return own - squares - coupling * np.array(products)

    names = tuple(f"{expert}/score" for expert in experts) if objectives is None else objectives
    return Problem(space(experts), names, score, np.full(len(experts), -0.5))


def true_best(problem, shares, ideal, units):
    """The least true distance on a grid of 0.02, in [0, 1] for each gene."""
    steps = np.linspace(0, 1, 51)
    genes = np.stack(np.meshgrid(*[steps] * len(problem.space.genes), indexing="ij"), -1).reshape(-1, len(shares))
    scores = np.array([problem.score(x) for x in genes[:: 1 if len(genes) < 1e4 else 7]])
    return pareto.tchebycheff_distances(scores, ideal, units, shares).min()


class TestNested(GenomeSuite):
    budget = 32

    def problem(self):
        return conflict()

    def make(self, problem, seed):
        return search.make({"kind": "nested_map", "validated": 20}, problem.space, problem.objectives, seed)


class TestNestedSurface(SurfaceSuite):
    budget = 60

    def problem(self):
        return conflict()

    def make(self, problem, seed):
        return driver(problem, seed, validated=8)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A surface of few answers is a quick one."""
    monkeypatch.setattr(nested, "_SURFACE_PREFERENCES", 30)


@pytest.fixture(scope="module")
def three():
    """The problem of three experts, and a search that is over."""
    problem = conflict()
    searching = driver(problem)
    drive(searching, problem.evaluate, 1000)
    return problem, searching.breeder


def test_search_is_known_recipes_pairs_of_twenty_and_a_compromise_then_answers():
    problem = conflict()
    searching = driver(problem, validated=7)
    proposals = drive(searching, problem.evaluate, 1000)
    known = {problem.space.decode(genome).id for genome in problem.space.landmarks().values()}
    assert len(proposals) == len(known) + 2 * 21 + 7
    assert {proposal.recipe.id for proposal in proposals[: len(known)]} == known
    first = np.array([proposal.genome for proposal in proposals[len(known) : len(known) + 21]])
    assert (first > 0).any(axis=0).sum() == 2  # a pair leaves the other expert out
    assert len({proposal.recipe.id for proposal in proposals}) == len(proposals)
    assert searching.ask() is None
    assert all((proposal.genome <= 1).all() for proposal in proposals)


def test_pairs_of_one_level_are_evaluated_together():
    problem = conflict(experts=tuple("abcd"))
    searching = driver(problem)
    known = len({problem.space.decode(genome).id for genome in problem.space.landmarks().values()})
    drive(searching, problem.evaluate, known)
    flying = [searching.ask() for _ in range(40)]
    assert None not in flying
    assert searching.ask() is None
    assert len(drive(driver(problem, validated=1), problem.evaluate, 1000)) == known + 3 * 21 + 1


def test_pairs_are_those_whose_models_do_most_alike_on_the_tasks_of_both():
    # a and c, b and d: each does 0.8 of what the other's own expert does, and nothing else, but for another scale.
    alike = np.array([[1, 0, 0.8, 0], [0, 1, 0, 0.8], [0.8, 0, 1, 0], [0, 0.8, 0, 1]])
    scale = np.array([1.0, 100.0, 0.01, 5.0])
    problem = Problem(space(tuple("abcd")), tuple(f"{x}/s" for x in "abcd"), lambda x: scale * (alike @ x), np.zeros(4))
    searching = driver(problem)
    drive(searching, problem.evaluate, 1000)
    leaves = {node.leaves for node in searching.breeder.tree.root.walk()}
    assert leaves == {(0, 2), (1, 3), (0, 2, 1, 3)}


def test_each_pairs_quadratics_and_compromise_are_those_of_its_plane():
    # In the plane of a and b alone: 1 - (a - 0.9)² - 0.3 b² and the same of b. Equal preferences: a = b by symmetry,
    # and there the best is at -2 (a - 0.9) - 0.6 a = 0, a = 1.8 / 2.6.
    problem = conflict(experts=("a", "b"))
    searching = driver(problem)
    drive(searching, problem.evaluate, 1000)
    [root] = searching.breeder.tree.root.walk()
    points = np.array([[0.2, 0.7], [1.0, 0.3], [0.5, 0.5]])
    for column, fitted in enumerate(root.fits):
        expected = [problem.score(point)[column] for point in points]
        np.testing.assert_allclose(fitted.fit.predict(points), expected, atol=1e-6)
    np.testing.assert_allclose(root.compromise, 1.8 / 2.6, atol=2e-3)


@pytest.mark.parametrize(
    "preference", [{"a": 1, "b": 1, "c": 1}, {"a": 1}, {"a": 3, "b": 1, "c": 1}, {"b": 1, "c": 1}, {"a": 1, "c": 4}]
)
def test_separable_problem_is_answered_near_the_true_optimum(preference, three):
    problem, breeder = three
    tree = breeder.tree
    shares = np.array([preference.get(name, 0) for name in "abc"]) / sum(preference.values())
    genome = tree.answer(shares)
    truth = problem.score(genome)
    # Nothing interacts across pairs: the prediction is exact.
    np.testing.assert_allclose(tree.means(genome[None])[0], truth, atol=1e-4)
    distance = pareto.tchebycheff_distances(truth[None], tree.ideal, tree.units, shares)[0]
    assert distance < true_best(problem, shares, tree.ideal, tree.units) + 0.02


def test_answers_of_four_experts_are_nearer_than_the_best_of_thousands_of_draws():
    problem = conflict(experts=tuple("abcd"))
    searching = driver(problem)
    drive(searching, problem.evaluate, 1000)
    tree = searching.breeder.tree
    draws = np.random.default_rng(0).random((2000, 4))
    blind = np.array([problem.score(x) for x in draws])
    gains = []
    for shares in preferences(4, 15, 5):
        truth = problem.score(tree.answer(shares))[None]
        answered, best = (
            pareto.tchebycheff_distances(scores, tree.ideal, tree.units, shares).min() for scores in (truth, blind)
        )
        gains.append(best - answered)
    assert min(gains) > -0.002
    assert np.mean(gains) > 0.005


def test_surface_is_a_front_that_agrees_with_the_truth(three, monkeypatch):
    monkeypatch.setattr(nested, "_SURFACE_PREFERENCES", 200)
    problem, breeder = three
    surface = breeder.surface()
    assert surface.refused is None
    truth = np.array([problem.score(genome) for genome in surface.genomes])
    np.testing.assert_allclose(surface.means, truth, atol=1e-3)
    assert pareto.nondominated(surface.means).all()
    assert len({recipe.id for recipe in surface.recipes}) == len(surface.recipes) > 100
    steps = np.linspace(0, 1, 21)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    scores = np.array([problem.score(x) for x in grid])
    assert pareto.hypervolume(truth, problem.reference) > 0.97 * pareto.hypervolume(scores, problem.reference)
    for name, fit in surface.fits.items():
        unit = problem.space.to_unit(surface.genomes[:5])
        mean, deviation = fit.predict(unit)
        column = problem.objectives.index(name)
        np.testing.assert_allclose(mean, surface.means[:5, column])
        np.testing.assert_allclose(deviation, surface.deviations[:5, column])


def test_what_experts_do_to_each_other_across_pairs_is_found_out_by_the_answers_and_refused():
    # a and b are wanted in different shares for each preference, and what that does depends on the third.
    problem = conflict(coupling=0.0)
    wild = Problem(
        problem.space,
        problem.objectives,
        lambda x: problem.score(x) + 3 * np.sin(9 * x[0] * x[1] * x[2]),
        problem.reference,
    )
    searching = driver(wild, validated=20)
    drive(searching, wild.evaluate, 1000)
    surface = searching.breeder.surface()
    assert surface.refused is not None
    assert "tree of pairs" in surface.refused


def test_mild_interactions_are_within_the_intervals():
    problem = conflict(coupling=0.1)
    searching = driver(problem, validated=20)
    drive(searching, problem.evaluate, 1000)
    surface = searching.breeder.surface()
    assert surface.refused is None
    truth = np.array([problem.score(genome) for genome in surface.genomes])
    inside = np.abs(surface.means - truth) <= 1.645 * surface.deviations
    assert inside.mean() > 0.5  # the quadratics know nothing of it but by the answers
    assert np.abs(surface.means - truth).max() < 0.1


def test_objectives_go_with_the_expert_of_their_name_else_with_the_one_that_scores_best():
    named = conflict(("b/score", "a/score", "c/score"))
    assert driver(named).breeder._task_of.tolist() == [1, 0, 2]
    assert "the expert of its name" in str(driver(named))
    turned = conflict(("x", "y", "z"))
    order = [2, 0, 1]
    problem = Problem(turned.space, turned.objectives, lambda x: turned.score(x)[order], turned.reference)
    searching = driver(problem)
    assert "the expert that alone scores best on it" in str(searching)
    drive(searching, problem.evaluate, 30)
    assert searching.breeder._task_of.tolist() == np.argsort(order).tolist()


def test_surface_of_a_fresh_driver_is_that_of_the_search_whatever_the_order():
    problem = conflict()

    def broken(proposal):
        return Evaluation(error="out of memory") if proposal.number % 7 == 6 else problem.evaluate(proposal)

    searching = driver(problem)
    proposals = drive(searching, broken, 1000)
    surface = searching.breeder.surface()
    order = np.random.default_rng(0).permutation(len(proposals))
    genomes = np.array([problem.space.encode(proposals[i].recipe) for i in order])
    fresh = driver(problem).breeder
    again = fresh.surface(genomes, [broken(proposals[i]) for i in order])
    for name in ("genomes", "means", "deviations"):
        np.testing.assert_allclose(getattr(surface, name), getattr(again, name), atol=1e-12)
    assert fresh.surface().refused == "the tree is not complete: 0 of 2 pairs are known"
    part = fresh.surface(genomes[order < 45], [broken(proposals[i]) for i in order if i < 45])
    assert part.refused == "the tree is not complete: 1 of 2 pairs are known"


def test_failures_are_left_out_of_the_fits_and_replaced_until_they_are_identified():
    problem = conflict(experts=("a", "b"))
    known = len({problem.space.decode(genome).id for genome in problem.space.landmarks().values()})

    def broken(proposal):
        lost = known <= proposal.number < known + 18
        return Evaluation(error="out of memory") if lost else problem.evaluate(proposal)

    searching = driver(problem, validated=3)
    proposals = drive(searching, broken, 1000)
    root = searching.breeder.tree.root
    assert len(proposals) == known + 20 + 18 + 1 + 3
    assert len(root.scales) == 3 + 2 + 18 + 1
    expected = [problem.score(genome) for genome in root.plane(root.scales)]
    np.testing.assert_allclose([done.means(problem.objectives) for done in root.evaluations], expected, atol=1e-6)


def test_base_and_experts_that_fail_do_not_end_the_search():
    problem = conflict()
    known = len({problem.space.decode(genome).id for genome in problem.space.landmarks().values()})

    def broken(proposal):
        return Evaluation(error="out of memory") if proposal.number < known - 1 else problem.evaluate(proposal)

    searching = driver(problem, validated=3)
    assert len(drive(searching, broken, 1000)) == known + 2 * 21 + 3
    assert searching.breeder.tree.answer(np.array([0.0, 1.0, 0.0]))[1] > 0.85


def test_expert_that_learnt_nothing_leaves_units_that_are_positive():
    problem = conflict()
    flat = Problem(
        problem.space, problem.objectives, lambda x: problem.score(x) * [0, 1, 1] - [0.5, 0, 0], problem.reference
    )
    searching = driver(flat)
    drive(searching, flat.evaluate, 1000)
    assert (searching.breeder._units > 0).all()
    surface = searching.breeder.surface()
    assert "`a/score` does not vary" in surface.refused


def test_score_out_of_bounds_is_refused():
    problem = conflict(("a/accuracy", "b/accuracy", "c/accuracy"))
    with pytest.raises(DriverError, match=r"driver `nested_map`: objective `./accuracy` scores -?\d"):
        drive(driver(problem), lambda p: Evaluation(scores={n: np.float32([-1]) for n in problem.objectives}), 100)


@pytest.mark.parametrize(
    ("chosen", "objectives", "expected"),
    [
        (toy_space(4), ("a", "b"), "got 4 genes for 2 experts; type `space: task_arithmetic`"),
        (space(("a", "b"), high=0.8), ("a", "b"), "none of which makes the expert a at 0 and 1"),
        (mixed().space, ("a", "b"), "needs one float gene for each expert"),
        (space(("a", "b", "c")), ("a", "b"), "an objective for each of two or more experts, got 2 for 3"),
        (space(("a",)), ("a",), "an objective for each of two or more experts, got 1 for 1"),
    ],
)
def test_spaces_and_objectives_that_do_not_fit_are_refused(chosen, objectives, expected):
    with pytest.raises(DriverError, match=expected):
        NestedMap(chosen, objectives, 0, NestedMapSettings())


def test_experts_in_another_order_than_the_pools_keep_their_names():
    merge = {"method": "task_arithmetic", "inputs": [{"expert": "b"}, {"expert": "a"}]}
    merge["parameters"] = {"lambda": 1.0, "weight": {"float": [0, 1], "per": ["expert"]}}
    swapped = SearchSpace({"merge": merge}, experts=("a", "b"))
    assert NestedMap(swapped, ("a/s", "b/s"), 0, NestedMapSettings())._task_of.tolist() == [1, 0]


def test_distance_is_the_papers():
    # By hand: gaps (0.2 / 2, 0.3 / 1); 0.5 · 0.3 + 0.01 · 0.4.
    distance = pareto.tchebycheff_distances(
        np.array([[0.8, 0.7]]), np.ones(2), np.array([2.0, 1.0]), np.array([0.5, 0.5])
    )
    np.testing.assert_allclose(distance, [0.154])


def test_least_is_found_within_the_square():
    inside = minimise(lambda x: ((x - [0.337, 0.771]) ** 2).sum(axis=1), 0.0)
    np.testing.assert_allclose(inside, [0.337, 0.771], atol=1e-3)
    np.testing.assert_allclose(minimise(lambda x: x.sum(axis=1), 0.1), [0.1, 0.1])


def test_preferences_begin_with_the_corners_and_are_spread():
    chosen = preferences(3, 20, 0)
    np.testing.assert_array_equal(chosen[:3], np.eye(3))
    np.testing.assert_allclose(chosen.sum(axis=1), 1)
    away = np.linalg.norm(chosen[:, None] - chosen[None], axis=2)[np.triu_indices(20, 1)]
    assert away.min() > 0.15
