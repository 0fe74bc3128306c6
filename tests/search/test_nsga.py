"""NSGA-II and NSGA-III: fronts, reference directions, discrete genes."""

import numpy as np
import pytest
from problems import bits, mixed, three_corners

from evomerge import pareto, search
from evomerge.errors import DriverError
from evomerge.search.nsga import reference_directions
from evomerge.space import SearchSpace
from evomerge.testing import drive, two_spheres
from evomerge.trial import Evaluation


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_two_objectives_reach_nearly_all_of_the_known_hypervolume(kind):
    problem = two_spheres(4)
    driver = search.make({"kind": kind}, problem.space, problem.objectives, 0)
    # 24 points cannot dominate all of a continuous front's volume; 95 % shows that they are on the front and spread.
    assert problem.quality(drive(driver, problem.evaluate, 1500)) > 0.95 * problem.volume


def test_three_objectives_spread_over_the_triangle_between_the_corners():
    problem = three_corners(6)
    driver = search.make({"kind": "nsga3", "population": 36}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 2000)
    scores = np.array([problem.evaluate(p).means(problem.objectives) for p in proposals])
    front = scores[pareto.nondominated(scores)]
    assert (front.max(axis=0) == 0).all()  # the corners are known recipes, and survive
    # Mean squared distances of the genome (1/3, …): 1/9 from the base; from an expert 4/9 in half of the genes, else 1/9.
    middle = -np.array([2, 5, 5]) / 18
    assert (np.abs(front - middle).max(axis=1) < 0.05).sum() > 3
    assert pareto.hypervolume(front, problem.reference) > 1.05 * pareto.hypervolume(scores[:36], problem.reference)


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_first_generation_is_the_known_recipes_filled_up_to_the_population(kind):
    problem = two_spheres(4)
    driver = search.make({"kind": kind, "population": 9}, problem.space, problem.objectives, 0)
    first = [proposal.genome for proposal in search.asks(driver, 100)]
    assert len(first) == 9
    fill = np.array(first[4:])
    for column in fill.T:  # a Latin hypercube: one of the five in each fifth
        assert sorted(np.floor(column * 5)) == [0, 1, 2, 3, 4]


def test_more_known_recipes_than_the_population_are_all_evaluated():
    parameters = {"weight": {"float": [0, 1], "per": ["expert"]}, "lambda": 1.0}
    merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": parameters}
    space = SearchSpace({"merge": merge}, experts=tuple("abcdefgh"))
    driver = search.make({"kind": "nsga2", "population": 4}, space, ["x", "y"], 0)
    assert len(list(search.asks(driver, 100))) == len(space.landmarks()) > 4


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_mixed_genes_keep_their_kinds_and_reach_the_optimum(kind):
    problem = mixed()
    driver = search.make({"kind": kind, "population": 16}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 800)
    discrete = [i for i, gene in enumerate(problem.space.genes) if gene.kind != "float"]
    assert all((p.genome[discrete] == np.round(p.genome[discrete])).all() for p in proposals)
    scores = np.array([problem.evaluate(p).means(problem.objectives) for p in proposals])
    merges = [proposals[i].recipe.root.merge for i in np.flatnonzero(pareto.nondominated(scores))]
    assert {merge.method for merge in merges} == {"dare_ties"}
    assert {merge.seed for merge in merges} == {7}
    assert problem.quality(proposals) > 0.9 * problem.volume


def test_children_are_never_in_the_population():
    problem = mixed()
    driver = search.make({"kind": "nsga2", "population": 8}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 80)
    for start in range(8, 80, 8):
        ids = [p.recipe.id for p in proposals[start : start + 8]]
        assert len(set(ids)) == len(ids)


def test_small_discrete_space_is_exhausted_and_the_search_ends():
    merge = {"method": {"choice": ["ties", "dare_ties"]}, "inputs": "experts", "seed": {"int": [0, 1]}}
    space = SearchSpace({"merge": merge}, experts=("left", "right"))
    driver = search.make({"kind": "nsga2"}, space, ["x", "y"], 0)
    proposals = drive(driver, lambda p: Evaluation.of({"x": p.genome[0], "y": -p.genome[1]}), 500)
    assert len(proposals) < 500
    assert len({p.recipe.id for p in proposals}) == 4
    assert driver.ask() is None


@pytest.mark.parametrize(
    ("objectives", "population", "expected"),
    # Das & Dennis (1998): C(p + m - 1, m - 1) directions for m objectives and p parts; two layers where p < m.
    [(2, 24, 24), (3, 24, 21), (3, 91, 91), (4, 24, 20 + 4), (8, 24, 8 + 8), (8, 160, 120 + 36), (6, 6, 6)],
)
def test_reference_directions_are_the_finest_lattice_within_the_population(objectives, population, expected):
    directions = reference_directions(objectives, population)
    assert directions.shape == (expected, objectives)
    np.testing.assert_allclose(directions.sum(axis=1), 1)
    assert len(np.unique(directions.round(9), axis=0)) == expected


def test_population_smaller_than_the_number_of_objectives_has_no_directions():
    with pytest.raises(DriverError, match="expected 5 or more"):
        reference_directions(5, 4)


def test_first_generation_has_few_and_different_bits_flipped():
    problem = bits()
    driver = search.make({"kind": "nsga2", "population": 40}, problem.space, problem.objectives, 0)
    first = [proposal.genome for proposal in search.asks(driver, 100)]
    flips = (np.array(first) != problem.space.initial).sum(axis=1)
    assert flips[0] == 0  # the known recipe
    assert (flips[1:] >= 1).all()
    assert flips.mean() < 3
    assert len({genome.tobytes() for genome in first}) == 40


def test_first_generation_of_a_path_is_as_long_as_its_first_source():
    path = {"sources": "experts", "repeat": 3, "include": {"bit": "first", "per": ["slot"]}, "ends": False}
    space = SearchSpace({"stack": {"rest": "base", "path": path}}, experts=("left", "right"), blocks=32)
    driver = search.make({"kind": "nsga2"}, space, ["x", "y"], 0)
    for _ in range(24):
        assert abs(len(driver.ask().recipe.root.stack.slots) - 32) < 15  # of 192, half would be on in a uniform draw


@pytest.mark.parametrize("scaled", [False, True])
def test_bits_reach_the_best_path(scaled):
    problem = bits(scaled=scaled)
    driver = search.make({"kind": "nsga2"}, problem.space, problem.objectives, 0)
    best = max(drive(driver, problem.evaluate, 1500), key=lambda p: problem.evaluate(p).means(problem.objectives).sum())
    assert problem.score(best.genome).sum() > (1.8 if scaled else 1.99)
