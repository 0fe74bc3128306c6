"""CMA-ES: against `cmaes`, at the faces of the cube, and after convergence."""

import cmaes
import numpy as np
import pytest
from problems import bits, mixed, sphere

from evomerge import search
from evomerge.search.cma import Cma, CmaSettings
from evomerge.space import SearchSpace
from evomerge.testing import drive, toy_space, two_spheres
from evomerge.trial import Evaluation


@pytest.mark.parametrize(("separable_above", "reference"), [(100, cmaes.CMA), (7, cmaes.SepCMA)])
def test_inside_the_cube_it_equals_cmaes(separable_above, reference):
    space = toy_space(8)
    settings = CmaSettings(seed_known=False, sigma=1e-3, separable_above=separable_above)
    ours = Cma(space, ["score"], 3, settings)
    theirs = reference(mean=np.full(8, 0.5), sigma=1e-3, seed=int(np.random.SeedSequence([3, 0]).generate_state(1)[0]))
    for _ in range(20):
        genomes = ours.draw()
        samples = [theirs.ask() for _ in range(theirs.population_size)]
        np.testing.assert_allclose(genomes, samples, rtol=0, atol=1e-12)
        values = -((genomes - 0.51) ** 2).sum(axis=1)
        ours.learn(genomes, values[:, None], [])
        theirs.tell(list(zip(samples, -values, strict=True)))


def test_samples_outside_of_the_cube_are_reflected():
    space = toy_space(8)
    space.__dict__["initial"] = np.array([0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0])
    breeder = Cma(space, ["score"], 0, CmaSettings(seed_known=False, sigma=0.3, population=200))
    genomes = breeder.draw()
    # Distances from a face are |N(0, 0.3)|: none is 0, all are inside, and their mean is 0.3·√(2/π) = 0.239.
    assert ((genomes > 0) & (genomes < 1)).all()
    assert genomes[:, 0].mean() == pytest.approx(0.239, abs=0.04)
    assert genomes[:, 7].mean() == pytest.approx(1 - 0.239, abs=0.04)


def test_search_starts_from_the_best_known_recipe():
    problem = sphere()
    driver = search.make({"kind": "cma", "sigma": 1e-6}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 20)
    known = proposals[:4]
    best = max(known, key=lambda p: problem.quality([p]))
    for proposal in proposals[4:14]:
        np.testing.assert_allclose(proposal.genome, best.genome, atol=1e-5)


@pytest.mark.parametrize("genes", [2, 8])
def test_search_finds_the_optimum_and_restarts_with_a_larger_population_after_convergence(genes):
    problem = sphere(genes)
    driver = search.make({"kind": "cma", "seed_known": False}, problem.space, problem.objectives, 0)
    population = 4 + int(3 * np.log(genes))
    assert f", {population} candidates" in str(driver)
    proposals = drive(driver, problem.evaluate, 3000)
    assert len(proposals) == 3000
    assert any(f", {population * 2**restarts} candidates" in str(driver) for restarts in range(1, 5))
    best = max(proposals, key=lambda p: problem.quality([p]))
    np.testing.assert_allclose(best.genome, 0.3, atol=1e-3)


@pytest.mark.parametrize("problem", [sphere(), mixed()], ids=["float", "mixed"])
def test_equal_scores_are_survived(problem):
    flat = Evaluation.of(dict.fromkeys(problem.objectives, 0.0))
    driver = search.make({"kind": "cma"}, problem.space, problem.objectives, 0)
    proposals = drive(driver, lambda p: flat, 1500)
    assert len({proposal.recipe.id for proposal in proposals}) > 1000


def test_weights_choose_the_point_of_the_front():
    problem = two_spheres()
    for weights, optimum in (({"near": 1}, 0.25), ({"near": 1, "far": 1}, 0.5), ({"near": 1, "far": 3}, 0.625)):
        driver = search.make({"kind": "cma", "weights": weights}, problem.space, problem.objectives, 0)
        last = drive(driver, problem.evaluate, 800)[-1]
        np.testing.assert_allclose(last.genome, optimum, atol=0.02)


@pytest.mark.parametrize("whole", ["categorical", "relaxed"])
def test_mixed_genes_reach_the_best_method_seed_and_density(whole):
    problem = mixed()
    driver = search.make({"kind": "cma", "whole": whole}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 600)
    best = max(proposals, key=lambda p: problem.evaluate(p).means(problem.objectives).sum())
    merge = best.recipe.root.merge
    assert (merge.method, merge.seed) == ("dare_ties", 7)
    assert merge.parameters["density"] == pytest.approx(0.1, rel=0.1)
    assert all(p.genome[0] in (0, 1) for p in proposals)


def test_float_genes_of_mixed_spaces_take_values_between_their_bounds():
    problem = mixed()
    index = [gene.name for gene in problem.space.genes].index("weight")  # in [0, 1]: two integers
    genomes = Cma(problem.space, problem.objectives, 0, CmaSettings(seed_known=False, population=50)).draw()
    assert len(np.unique(genomes[:, index])) > 40


@pytest.mark.parametrize(
    ("method", "parameters"),
    [({"choice": ["ties", "task_arithmetic"]}, {}), ("ties", {"reduce": {"choice": ["sum", "solve", "max"]}})],
)
def test_spaces_of_choices_only_are_searched(method, parameters):
    merge = {"method": method, "inputs": "experts", "parameters": parameters, "seed": {"int": [0, 1]}}
    space = SearchSpace({"merge": merge}, experts=("left", "right"))
    driver = search.make({"kind": "cma"}, space, ["score"], 0)
    proposals = drive(driver, lambda proposal: Evaluation.of({"score": proposal.genome[0]}), 200)
    late = [proposal.genome[0] for proposal in proposals[-50:]]
    assert np.mean(np.array(late) == space.upper[0]) > 0.6


@pytest.mark.parametrize("whole", ["categorical", "relaxed"])
@pytest.mark.parametrize("scaled", [False, True])
def test_bits_start_flipped_in_1_of_44_candidates(whole, scaled):
    problem = bits(scaled=scaled)
    settings = CmaSettings(seed_known=False, population=2000, whole=whole)
    genomes = Cma(problem.space, problem.objectives, 0, settings).draw()
    flipped = genomes[:, :12] != problem.space.initial[:12]
    assert flipped.mean(axis=0) == pytest.approx(0.023, abs=0.012)  # Φ(-2)
    assert set(np.unique(genomes[:, :12])) == {0, 1}


@pytest.mark.parametrize("whole", ["categorical", "relaxed"])
@pytest.mark.parametrize("scaled", [False, True])
def test_bits_reach_the_best_path(whole, scaled):
    problem = bits(scaled=scaled)
    driver = search.make({"kind": "cma", "whole": whole}, problem.space, problem.objectives, 0)
    best = max(drive(driver, problem.evaluate, 1500), key=lambda p: problem.evaluate(p).means(problem.objectives).sum())
    assert problem.score(best.genome).sum() > (1.8 if scaled else 1.99)


def test_discrete_genes_are_relaxed_where_the_float_genes_need_separable_cma():
    scaled, plain = bits(scaled=True), bits()
    for problem, settings, expected in (
        (plain, {}, "CatCMA with margin"),
        (scaled, {}, "CatCMA with margin"),
        (scaled, {"separable_above": 11}, "separable CMA-ES, discrete genes relaxed"),
        (scaled, {"separable_above": 11, "whole": "categorical"}, "CatCMA with margin"),
        (scaled, {"whole": "relaxed"}, "CMA-ES, discrete genes relaxed"),
        (mixed(), {"whole": "relaxed"}, "CMA-ES, discrete genes relaxed"),
        (sphere(), {"whole": "relaxed"}, "CMA-ES"),
    ):
        driver = search.make({"kind": "cma", **settings}, problem.space, problem.objectives, 0)
        assert str(driver).startswith(f"{expected}, ")


def test_space_of_the_data_flow_paper_is_searched_by_separable_cma():
    """192 bits and 4,096 scales (arXiv 2403.13187)."""
    scale = {"float": [0.5, 1.5], "init": 1, "per": ["from", "to"]}
    path = {"sources": "experts", "repeat": 3, "include": {"bit": "first", "per": ["slot"]}, "scale": scale}
    space = SearchSpace({"stack": {"rest": "base", "path": path}}, experts=("left", "right"), blocks=32)
    breeder = Cma(space, ["score"], 0, CmaSettings(seed_known=False))
    for _ in range(3):
        genomes = breeder.draw()
        breeder.learn(genomes, genomes.mean(axis=1, keepdims=True), [])
    assert str(breeder).startswith("separable CMA-ES, discrete genes relaxed, 29 candidates")
