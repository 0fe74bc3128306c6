"""Populations of models: seeds, warm-up, keyed draws, diagnostics; which driver accepts which space."""

import itertools

import numpy as np
import pytest

from evomerge import search
from evomerge.errors import DriverError
from evomerge.recipe import Recipe, base, expert
from evomerge.search.populations.population import draw
from evomerge.space import SearchSpace
from evomerge.testing import drive, family, two_spheres
from evomerge.trial import Evaluation, Proposal

FROM_SCRATCH = {"merge": {"method": "linear", "inputs": ["base"], "parameters": {"weight": 0.5}, "seed": 3}}


def make(seed=0, **settings):
    problem = family()
    return problem, search.make({"kind": "niches", **settings}, problem.space, problem.objectives, seed)


def scored(*values):
    vector = np.array(values, dtype=np.float32)
    return Evaluation(scores={"left": vector[:1], "right": vector[1:]})


def test_seeds_are_all_experts_or_those_of_the_settings():
    _, driver = make()
    assert [driver.ask().recipe, driver.ask().recipe] == [expert("left"), expert("right")]
    _, driver = make(seeds=[FROM_SCRATCH, "base", {"expert": "left"}])
    assert [driver.ask().recipe for _ in range(3)] == [Recipe.parse(FROM_SCRATCH), base(), expert("left")]
    assert driver.ask() is None


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("all", "driver `niches` `seeds`: expected `experts` or a list of recipes"),
        ([], "expected two or more different recipes, got none"),
        (["left"], 'expected two or more different recipes, got {"expert":"left"}'),
        (["left", "right", {"expert": "left"}], "expected two or more different recipes"),
        (["left", "rihgt"], "the pool has no expert `rihgt`; did you mean `right`?"),
        (["left", {"merge": {"method": "tise", "inputs": ["base"]}}], "did you mean `ties`?"),
        (["left", {"member": "1" * 64}], "names an earlier candidate, and there is none before the seeds"),
        (["left", {"expart": "right"}], "`expart`: did you mean `expert`?"),
    ],
)
def test_invalid_seeds_are_refused_with_what_to_type(seeds, message):
    with pytest.raises(DriverError) as caught:
        make(seeds=seeds)
    assert message in str(caught.value)


def test_first_child_follows_two_evaluated_seeds():
    problem, driver = make(seeds=["left", "right", "base"])
    seeds = [driver.ask() for _ in range(3)]
    for seed in seeds[:2]:
        assert driver.ask() is None
        driver.tell(seed, problem.evaluate(seed))
    assert driver.ask().number == 3
    driver.tell(seeds[2], Evaluation(error="out of memory"))
    assert driver.ask().number == 4


def test_warm_up_crosses_different_seeds_and_keeps_them_as_members():
    problem, driver = make(seeds=["left", "right", "base"], warm_up=30, population=2)
    problem.skills[base().id] = np.zeros(24)
    for proposal in [driver.ask() for _ in range(3)]:
        driver.tell(proposal, scored(*np.eye(3)[proposal.number]))
    seeds = {expert("left").id, expert("right").id, base().id}
    pairs = set()
    for _ in range(30):
        assert seeds <= set(driver.members())
        child = driver.ask()
        pairs.add(child.recipe.members)
        driver.tell(child, scored(1, 1, 1))
    assert pairs == set(itertools.permutations(seeds, 2))
    assert not seeds & set(driver.members())
    assert not seeds & set(driver.ask().recipe.members)


def test_child_depends_only_on_the_archive_and_its_number():
    problem, driver = make()
    others = make()[1]
    for one in (driver, others):
        for seed in [one.ask(), one.ask()]:
            one.tell(seed, problem.evaluate(seed))
    first = [driver.ask() for _ in range(5)]
    for number in range(5):  # failures in between leave the archive unchanged
        child = others.ask()
        assert child.recipe == first[number].recipe
        others.tell(child, Evaluation(error="out of memory"))


def test_genes_of_children_are_uniform_and_integers_in_their_full_range():
    problem, driver = make()
    children = np.array([p.genome for p in drive(driver, problem.evaluate, 402)[2:]])
    share, seed = ([gene.name for gene in problem.space.genes].index(name) for name in ("t", "seed"))
    assert np.histogram(children[:, share], 4, (0, 1))[0].tolist() == pytest.approx([100] * 4, abs=30)
    assert np.histogram(children[:, seed], 4, (0, 2**31))[0].tolist() == pytest.approx([100] * 4, abs=30)
    assert len(np.unique(children[:, seed])) == 400
    assert (children[:, seed] == np.floor(children[:, seed])).all()


def test_draw_is_proportional_to_the_weights_without_the_excluded_index():
    rng = np.random.default_rng(0)
    weights = np.array([0, 1, 3, 4.0])
    counts = np.bincount([draw(rng, weights) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, weights / 8, atol=0.03)
    counts = np.bincount([draw(rng, weights, without=3) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0, 1 / 4, 3 / 4, 0], atol=0.03)
    assert {draw(rng, np.array([0, 0, 5.0]), without=2) for _ in range(50)} == {0, 1}
    assert draw(rng, np.array([2.0]), without=0) == 0


def test_diagnostics_are_coverage_and_entropy_of_the_examples():
    _, driver = make()
    assert driver.diagnostics() == {}
    driver.tell(driver.ask(), scored(1, 1, 0, 0))
    assert driver.diagnostics() == {"coverage": 0.5, "entropy": 0}
    driver.tell(driver.ask(), scored(1, 0, 0, 0))
    assert driver.diagnostics() == {"coverage": 0.5, "entropy": pytest.approx(1 / 4)}


def test_entropy_of_continuous_scores_is_that_of_their_mean():
    _, driver = make()
    driver.tell(driver.ask(), scored(0.25, 0.25))
    # H(1/4) = 2 - 3/4 log2(3)
    assert driver.diagnostics() == {"coverage": 0.25, "entropy": pytest.approx(2 - 0.75 * np.log2(3))}


def test_scores_without_a_scale_have_no_entropy():
    _, driver = make(relative=True)
    driver.tell(driver.ask(), scored(-1, -5))
    driver.tell(driver.ask(), scored(-3, -1))
    assert driver.diagnostics() == {"coverage": -1}


def test_telling_a_proposal_not_in_flight_raises_an_error_with_those_that_are():
    _, driver = make()
    first = driver.ask()
    driver.ask()
    with pytest.raises(DriverError, match=r"proposal 7 is not in flight; expected one of \[0, 1\]"):
        driver.tell(Proposal(7, first.recipe), scored(1, 1))
    driver.tell(first, scored(1, 1))
    with pytest.raises(DriverError, match=r"proposal 0 is not in flight; expected one of \[1\]"):
        driver.tell(first, scored(1, 1))


@pytest.mark.parametrize("kind", search.POPULATIONS)
def test_description_names_seeds_and_warm_up(kind):
    problem = family()
    line = str(search.make({"kind": kind, "warm_up": 5}, problem.space, problem.objectives, 0))
    assert line.endswith("from 2 seeds, 5 children of seeds first")
    assert "\n" not in line


@pytest.mark.parametrize("kind", search.POPULATIONS)
def test_population_needs_a_space_with_parents(kind):
    with pytest.raises(
        DriverError, match=f"driver `{kind}` crosses . or . earlier candidates, and the space has 0; give"
    ):
        search.make({"kind": kind}, two_spheres().space, ["a", "b"], 0)


@pytest.mark.parametrize("kind", [kind for kind in search.KINDS if kind not in search.POPULATIONS])
def test_driver_of_genomes_refuses_a_space_with_parents(kind):
    with pytest.raises(DriverError, match="the space crosses mother, father; type `kind: niches`"):
        search.make({"kind": kind}, family().space, ["a", "b"], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "niches", "alpah": 1}, "unknown key `alpah`; did you mean `alpha`?"),
        ({"kind": "niches", "alpha": -1}, "`alpha`: input should be greater than or equal to 0, got -1"),
        ({"kind": "niches", "population": 1}, "`population`: input should be greater than or equal to 2, got 1"),
        ({"kind": "niches", "warm_up": -1}, "`warm_up`: input should be greater than or equal to 0, got -1"),
        ({"kind": "map_elites", "bins": 0}, "`bins`: input should be greater than or equal to 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    problem = family()
    with pytest.raises(DriverError) as caught:
        search.make(settings, problem.space, problem.objectives, 0)
    assert message in str(caught.value)


def test_child_in_a_space_with_one_parent_has_the_first_parent_only():
    """Both parents are drawn as usual, and the first is mutated."""
    problem = family()
    noise = {
        "merge": {"inputs": [{"member": "mother"}], "stages": {"post": [{"noise": {"sigma": {"float": [0, 0.1]}}}]}}
    }
    space = SearchSpace(noise, experts=["left", "right"])
    for kind in ("niches", "map_elites"):
        driver = search.make({"kind": kind}, space, problem.objectives, 0)
        for _ in range(2):
            seed = driver.ask()
            driver.tell(seed, problem.evaluate(seed))
        child = driver.ask()
        assert len(child.recipe.members) == 1
        assert set(child.recipe.members) <= set(driver.members())
