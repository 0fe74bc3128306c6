"""Generational drivers, and `make`."""

import numpy as np
import pytest
from problems import bits, mixed
from scipy.stats import truncnorm

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.driver import Generational, known_recipes, latin_hypercube, read_metrics
from evomerge.space import Box
from evomerge.testing import drive, family, toy_space, two_spheres
from evomerge.trial import Evaluation, Metric, Proposal

GENOME_KINDS = [
    kind for kind in search.KINDS if kind not in search.POPULATIONS and kind not in ("racing", "nested_map", "gradient")
]


class Recorder:
    """A breeder of pairs that records what it learns from."""

    def __init__(self, genes, generations=3):
        self.genes, self.left, self.learnt, self.errors = genes, generations, [], []

    def draw(self):
        self.left -= 1
        return np.full((2 if self.left >= 0 else 0, self.genes), 0.5)

    def learn(self, genomes, means, evaluations):
        self.learnt.append(means)
        self.errors.append([evaluation.error for evaluation in evaluations])


def scored(x, y):
    return Evaluation(scores={"x": np.array([x], np.float32), "y": np.array([y], np.float32)})


FAILED = Evaluation(error="boom")


@pytest.fixture
def recorder():
    return Recorder(4)


@pytest.fixture
def driver(recorder):
    return Generational(toy_space(4), ("x", "y"), recorder)


def test_breeder_learns_from_completed_generations_sorted_by_number(driver, recorder):
    first, second = driver.ask(), driver.ask()
    assert driver.ask() is None
    driver.tell(second, scored(2, 3))
    assert driver.ask() is None
    assert recorder.learnt == []
    driver.tell(first, scored(0, 1))
    np.testing.assert_array_equal(recorder.learnt, [[[0, 1], [2, 3]]])
    assert driver.ask().number == 2


def test_failure_is_a_tenth_of_the_range_below_the_worst_success_of_the_study(driver, recorder):
    for evaluation in (scored(0, 5), scored(10, 4), FAILED, scored(3, 4.5)):
        driver.tell(driver.ask(), evaluation)
    np.testing.assert_allclose(recorder.learnt[1], [[0 - 1 - 1e-6, 4 - 0.1 - 1e-6], [3, 4.5]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_non_finite_mean_of_one_objective_is_a_failure(driver, recorder, broken):
    driver.tell(driver.ask(), scored(1, 1))
    driver.tell(driver.ask(), scored(2, broken))
    np.testing.assert_allclose(recorder.learnt[0], [[1, 1], [1 - 1e-6, 1 - 1e-6]])
    assert recorder.errors == [[None, "scores whose mean is not finite"]]


def test_breeder_gets_the_evaluations_in_the_order_of_its_generation(driver, recorder):
    first, second = driver.ask(), driver.ask()
    driver.tell(second, FAILED)
    driver.tell(first, scored(1, 1))
    assert recorder.errors == [[None, "boom"]]


def test_unfinished_generation_is_visible(driver):
    first, second = driver.ask(), driver.ask()
    assert len(driver.unfinished()[0]) == 0
    driver.tell(second, scored(1, 2))
    genomes, evaluations = driver.unfinished()
    np.testing.assert_array_equal(genomes, [second.genome])
    assert evaluations[0].means("xy").tolist() == [1, 2]
    driver.tell(first, FAILED)
    assert driver.unfinished()[0].shape == (0, 4)


def test_generation_before_the_first_success_is_not_learnt_from_and_the_next_is_drawn(driver, recorder):
    for _ in range(2):
        driver.tell(driver.ask(), FAILED)
    assert recorder.learnt == []
    assert driver.ask().number == 2


def test_empty_generation_ends_the_search_for_good(driver):
    assert len(drive(driver, lambda p: scored(1, 2), budget=100, slots=4)) == 6
    assert driver.ask() is None
    assert driver.ask() is None


def test_telling_a_proposal_that_is_not_pending_is_an_error(driver):
    proposal = driver.ask()
    driver.ask()
    with pytest.raises(DriverError, match=r"proposal 7 is not pending; expected one of \[0, 1\]"):
        driver.tell(Proposal(7, proposal.recipe), FAILED)
    driver.tell(proposal, FAILED)
    with pytest.raises(DriverError, match=r"proposal 0 is not pending; expected one of \[1\]"):
        driver.tell(proposal, FAILED)


def test_genome_of_a_proposal_is_read_only(driver):
    with pytest.raises(ValueError, match="read-only"):
        driver.ask().genome[0] = 1


def test_slopes_are_wanted_where_the_breeder_says_so():
    class Climbing(Recorder):
        @property
        def slopes(self):
            return {"x": (0, 2)} if self.left == 1 else None  # the second of three generations

    space = toy_space()
    proposals = drive(Generational(space, ["x", "y"], Climbing(len(space.genes))), lambda p: scored(1, 2), 6)
    assert [p.slopes for p in proposals] == [None, None, {"x": (0, 2)}, {"x": (0, 2)}, None, None]


def test_known_recipes_have_no_duplicates():
    space = toy_space(4)  # here `init` and the mean are the same recipe
    assert len(space.landmarks()) == 5
    assert known_recipes(space).tolist() == [[0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]


def test_latin_hypercube_has_one_point_in_each_stratum_and_uses_discrete_values_equally_often():
    space = mixed().space
    genomes = latin_hypercube(space, 20, np.random.default_rng(0))
    columns = {gene.name: genomes[:, i] for i, gene in enumerate(space.genes)}
    assert sorted(np.floor(columns["weight"] * 20)) == list(range(20))
    assert np.bincount(columns["seed"].astype(int)).tolist() == [2] * 10
    assert np.bincount(columns["method"].astype(int)).tolist() == [10, 10]
    assert sorted(np.floor((np.log10(columns["density"]) + 2) * 10)) == list(range(20))


def test_latin_hypercube_draws_holes_with_a_standard_deviation_normally_and_within_their_bounds():
    space = Box({"weight": {"float": [0.5, 1.02], "init": 1, "sd": 0.01}})
    drawn = latin_hypercube(space, 2000, np.random.default_rng(0))[:, 0]
    expected = truncnorm((0.5 - 1) / 0.01, 2, loc=1, scale=0.01)
    assert np.allclose(np.sort(drawn), expected.ppf((np.arange(2000) + 0.5) / 2000), atol=5e-4)
    assert 0.5 <= drawn.min() < drawn.max() <= 1.02


@pytest.mark.parametrize("kind", GENOME_KINDS)
def test_without_seed_known_the_landmarks_are_not_proposed(kind):
    problem = two_spheres()
    known = {problem.space.decode(genome).id for name, genome in problem.space.landmarks().items() if name != "init"}
    driver = search.make({"kind": kind, "seed_known": False}, problem.space, problem.objectives, 0)
    assert not known & {proposal.recipe.id for proposal in drive(driver, problem.evaluate, 6)}


@pytest.mark.parametrize(
    ("space", "objectives", "expected"),
    [
        (mixed().space, 2, {"kind": "nsga2"}),
        (two_spheres(2).space, 2, {"kind": "front", "mixtures": True}),
        (Box({"x": (0, 1), "y": (0, 1)}), 2, {"kind": "front"}),
        (two_spheres(60).space, 2, {"kind": "nsga2"}),
        (two_spheres(2).space, 1, {"kind": "cma"}),
        (family().space, 2, {"kind": "niches"}),
    ],
)
def test_default_driver_depends_on_the_space_and_the_objectives(space, objectives, expected):
    names = ["a/accuracy", "b/accuracy"][:objectives]
    settings = search.default(space, names)
    assert settings == expected
    search.make(settings, space, names, 0)


def test_new_studies_by_front_and_random_draw_mixtures_where_there_are_weights_and_no_slopes():
    weights, none, many = two_spheres(2).space, Box({"x": (0, 1), "y": (0, 1)}), two_spheres(60).space
    for kind, more in (("front", {"most": 1000}), ("random", {})):
        assert search.completed({"kind": kind}, weights) == {"kind": kind, "mixtures": True, **more}
        assert search.completed({"kind": kind, "mixtures": False}, weights) == {"kind": kind, "mixtures": False, **more}
        assert search.completed({"kind": kind}, none) == {"kind": kind, **more}
    for settings, space in (
        ({"kind": "front", "slopes": True}, weights),
        ({"kind": "front"}, many),
        ({"kind": "cma"}, weights),
        ({"kind": "front", "mixtures": False, "most": 300}, weights),
    ):
        assert search.completed(settings, space) == settings
    assert search.completed({"kind": "front", "slopes": "surrogates"}, weights)["most"] == 1000
    busy = {"kind": "front", "in_flight": 4000}
    assert search.completed(busy, none) == {**busy, "most": 400, "batch": 125}
    assert search.completed({**busy, "batch": 8, "most": 1000}, none) == {**busy, "batch": 8, "most": 1000}
    assert search.completed({**busy, "slopes": True}, many) == {**busy, "slopes": True, "batch": 125}
    assert search.completed({"kind": "front", "in_flight": 255}, none) == {
        "kind": "front",
        "in_flight": 255,
        "most": 1000,
    }


def test_default_driver_for_one_smooth_objective_over_many_genes_climbs_along_slopes():
    smooth = {"a/log_likelihood": Metric("log_likelihood", high=0.0, slopes=True)}
    assert search.default(toy_space(42), smooth) == {"kind": "gradient", "ridge": 120}
    assert search.default(toy_space(40), smooth) == {"kind": "cma"}
    assert search.default(toy_space(42), ["a/log_likelihood"]) == {"kind": "cma"}
    assert search.default(bits().space, smooth) == {"kind": "cma"}


@pytest.mark.parametrize("kind", GENOME_KINDS)
def test_dry_run_line_describes_the_driver(kind):
    problem = two_spheres()
    line = str(search.make({"kind": kind}, problem.space, problem.objectives, 0))
    assert "known recipes" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected `kind:`, one of cma, nsga2, nsga3, tpe, gp, qmc, map, front, random, niches, map_elites"),
        ({"kind": "nsga4"}, "unknown kind `nsga4`; did you mean `nsga"),
        ({"kind": "nsga2", "populaton": 8}, "unknown key `populaton`; did you mean `population`?"),
        ({"kind": "nsga2", "population": 1}, "`population`: input should be greater than or equal to 4, got 1"),
        ({"kind": "cma", "sigma": 0}, "`sigma`: input should be greater than 0, got 0"),
        ({"kind": "cma", "weights": {"nera": 1}}, "unknown objective `nera`; did you mean `near`?"),
        ({"kind": "cma", "weights": {"near": -1}}, "`near` is -1.0; expected a number of 0 or more"),
        ({"kind": "cma", "weights": {"near": 0}}, "all are 0"),
        ({"kind": "tpe", "options": {"startup": 3}}, "`options` do not suit optuna's TPESampler"),
    ],
)
def test_unsuitable_settings_are_refused(settings, message):
    problem = two_spheres()
    with pytest.raises(DriverError) as caught:
        search.make(settings, problem.space, problem.objectives, 0)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["nsga2", "nsga3"])
def test_one_objective_has_no_front(kind):
    with pytest.raises(DriverError, match="type `kind: cma`"):
        search.make({"kind": kind}, toy_space(), ["only"], 0)


@pytest.mark.parametrize("objectives", [[], ["same", "same"]])
def test_objectives_must_be_different_and_at_least_one(objectives):
    with pytest.raises(DriverError, match="one or more different objectives"):
        search.make({"kind": "random"}, toy_space(), objectives, 0)


def test_bounds_are_the_declared_ones_unless_the_settings_override_them():
    objectives = {"t/accuracy": Metric("accuracy", 0.0, 1.0), "t/gain": Metric("gain", -1.0, 3.0)}
    assert [metric.bounds for metric in read_metrics(objectives).values()] == [(0, 1), (-1, 3)]
    overridden = read_metrics(objectives, {"t/gain": (None, 2.0)})
    assert [metric.bounds for metric in overridden.values()] == [(0, 1), (-np.inf, 2)]
    by_name = read_metrics(["t/accuracy", "t/exact_match", "t/rougeL", "t/log_likelihood", "t/score"])
    assert [metric.bounds for metric in by_name.values()] == [(0, 1)] * 3 + [(-np.inf, 0), (-np.inf, np.inf)]
    assert by_name["t/accuracy"].margins == "margins"
    for bounds, says in (
        ({"t/gian": (0, 1)}, "did you mean `t/gain`"),
        ({"t/gain": (1, 1)}, r"has \[1, 1\]; expected"),
    ):
        with pytest.raises(DriverError, match=says):
            read_metrics(objectives, bounds)
