"""CycleQD: cells, elite sampling and aggregation by hand, the grids against a plain loop, and its space."""

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge import recipe, search, space
from evomerge.build import Builder
from evomerge.checkpoints.members import Members
from evomerge.errors import DriverError
from evomerge.recipe import Recipe
from evomerge.search.populations.cycle import Cycle, CycleSettings, cell_of, elite_weights, reach
from evomerge.settings import StudySettings
from evomerge.space import SearchSpace
from evomerge.study import Study
from evomerge.testing import drive, family
from evomerge.trial import Evaluation

UNIT = {"a/x": (0, 1), "b/x": (0, 1), "c/x": (0, 1)}
FINITE = st.floats(-1e6, 1e6)


def insert(archive, name, *means):
    archive.insert(name, [np.array([mean]) for mean in means])


def grids(objectives=3, seeds=("s", "t"), **settings):
    """Return an archive over [0, 1]."""
    names = list(UNIT)[:objectives]
    ranges = {name: UNIT[name] for name in names}
    return Cycle(names, CycleSettings(**{"ranges": ranges, "bins": 4, **settings}), seeds)


def test_mean_on_an_edge_is_in_the_cell_below_and_means_outside_in_the_first_or_last():
    edges = np.array([0, 0.25, 0.5, 0.75, 1])
    means = [-3, 0, 0.001, 0.25, 0.2500001, 0.5, 0.75, 0.76, 1, 1.5]
    assert [cell_of(mean, edges) for mean in means] == [0, 0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert cell_of(0.3, np.array([0.0, 1.0])) == 0


@given(FINITE, st.lists(FINITE, min_size=2, max_size=9, unique=True).map(sorted))
def test_cell_contains_the_mean_unless_it_is_outside_the_ends(mean, edges):
    cell = cell_of(mean, np.array(edges))
    assert cell == min(max(int(np.digitize(mean, edges, right=True)) - 1, 0), len(edges) - 2)
    assert edges[cell] < mean <= edges[cell + 1] or mean <= edges[0] or mean > edges[-1]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0.2, 0.4, 0.3], (0.17, 0.46)),  # the paper's 85% and 115%
        ([-2, -1], (-2.3, -0.85)),
        ([-1, 2], (-1.15, 2.3)),
        ([0, 0.4], (0, 0.46)),
        ([-3, 0], (-3.45, 0)),
        ([0.5, 0.5], (0.425, 0.575)),
        ([0, 0], (0, 1)),
    ],
)
def test_axis_extends_15_percent_beyond_the_seeds(means, expected):
    assert reach(np.array(means)) == pytest.approx(expected)


@given(st.lists(FINITE, min_size=1, max_size=5))
def test_axis_always_contains_the_seeds(means):
    low, high = reach(np.array(means))
    assert low < high
    assert low <= min(means) <= max(means) <= high


def test_ranges_come_from_the_settings_or_else_from_the_seeds_only():
    archive = Cycle(["a/x", "b/x"], CycleSettings(bins=2, ranges={"b/x": (0, 4)}), ["s", "t"])
    assert archive.maps() == ()
    insert(archive, "s", 0.2, 1)
    insert(archive, "t", 0.4, 2)
    insert(archive, "child", 0.9, 9)
    by_quality = {grid.quality: grid for grid in archive.maps()}
    assert list(by_quality) == ["a/x", "b/x"]
    assert by_quality["b/x"].axes == ("a/x",)
    np.testing.assert_allclose(by_quality["b/x"].edges, [[0.17, 0.315, 0.46]])
    np.testing.assert_allclose(by_quality["a/x"].edges, [[0, 2, 4]])
    assert by_quality["a/x"].elites == {(0,): ("t", 0.4), (1,): ("child", 0.9)}
    assert by_quality["b/x"].elites == {(0,): ("s", 1.0), (1,): ("child", 9.0)}


def test_late_seed_moves_the_edges_and_all_elites_are_offered_again():
    archive = Cycle(["a/x", "b/x"], CycleSettings(bins=2), ["s", "t", "u"])
    insert(archive, "s", 0.2, 0.2)
    insert(archive, "t", 0.4, 0.4)
    insert(archive, "child", 0.3, 0.35)  # edges 0.17, 0.315, 0.46: in the second cell of b, where t has the larger a
    assert archive.maps()[0].elites == {(0,): ("s", 0.2), (1,): ("t", 0.4)}
    assert archive.maps()[1].elites == {(0,): ("child", 0.35), (1,): ("t", 0.4)}
    insert(archive, "u", 0.1, 0.8)  # of b: edges 0.17, 0.545, 0.92; of a: 0.085, 0.2725, 0.46
    assert archive.maps()[0].elites == {(0,): ("t", 0.4), (1,): ("u", 0.1)}
    assert archive.maps()[1].elites == {(0,): ("u", 0.8), (1,): ("t", 0.4)}


def test_candidate_is_offered_to_all_grids_and_stored_where_it_is_strictly_better():
    archive = grids()
    insert(archive, "s", 0.5, 0.5, 0.5)
    assert archive.members == ("s",)
    insert(archive, "equal", 0.5, 0.5, 0.5)
    assert archive.members == ("s",)
    insert(archive, "better", 0.6, 0.5, 0.5)  # in grid a in the same cell; in the others in a new one
    a, b, c = archive.maps()
    assert a.elites == {(1, 1): ("better", 0.6)}
    assert b.elites == {(1, 1): ("s", 0.5), (2, 1): ("better", 0.5)}
    assert c.elites == {(1, 1): ("s", 0.5), (2, 1): ("better", 0.5)}


@pytest.mark.parametrize("objectives", [2, 3])
def test_grids_equal_those_of_a_plain_loop(objectives):
    rng = np.random.default_rng(0)
    archive = grids(objectives)
    cells = [{} for _ in range(objectives)]
    for number in range(400):
        means = np.round(rng.random(objectives) * 20) / 20  # ties, and means on edges
        name = "s" if number == 0 else str(number)
        insert(archive, name, *means)
        for k, grid in enumerate(cells):
            others = [means[j] for j in range(objectives) if j != k]
            cell = tuple(next(i for i in range(4) if mean <= (i + 1) / 4) for mean in others)
            if cell not in grid or means[k] > grid[cell][1]:
                grid[cell] = name, means[k]
        assert [dict(grid.elites) for grid in archive.maps()] == cells
    assert set(archive.members) - {"s"} == {name for grid in cells for name, _ in grid.values()} - {"s"}


@given(
    st.lists(st.tuples(*[st.floats(-3, 3, width=16)] * 3), min_size=2, max_size=40),
    st.integers(1, 5),
    st.integers(2, 4),
)
def test_elites_are_in_their_cells_and_each_grid_has_the_best_of_its_objective(means, bins, seeds):
    archive = Cycle(list(UNIT), CycleSettings(bins=bins), [str(i) for i in range(seeds)])
    for i, row in enumerate(means):
        insert(archive, str(i), *row)
    assert len(set(archive.members)) == len(archive.members) == len(archive.scores)
    for name, scores in zip(archive.members, archive.scores, strict=True):
        np.testing.assert_array_equal(scores, means[int(name)])
    for k, grid in enumerate(archive.maps()):
        assert max(quality for _, quality in grid.elites.values()) == max(row[k] for row in means)
        for cell, (name, quality) in grid.elites.items():
            row = means[int(name)]
            assert quality == row[k]
            others = [row[j] for j in range(3) if j != k]
            assert cell == tuple(cell_of(mean, edges) for mean, edges in zip(others, grid.edges, strict=True))


def test_specialists_stay_members_after_all_grids_replaced_them():
    archive = grids(2, bins=1)
    archive.insert("s", [np.array([0.5, 0.3]), np.array([0.1])])
    archive.insert("t", [np.array([0.2, 0.0]), np.array([0.6])])
    archive.insert("child", [np.array([1.0, 1.0]), np.array([0.9])])
    assert archive.members == ("child", "s", "t")
    np.testing.assert_array_equal(archive.scores, [[1, 1, 0.9], [0.5, 0.3, 0.1], [0.2, 0, 0.6]])


def test_scores_may_have_any_range():
    archive = Cycle(["a/logp", "b/logp"], CycleSettings(), ["s", "t"])
    insert(archive, "s", -700.5, -0.25)
    insert(archive, "t", -300.0, -9.0)
    rng = np.random.default_rng(0)
    assert {archive.choose(rng, number)[:2] for number in range(50)} == {("s", "t"), ("t", "s")}


def test_elite_weight_is_the_product_over_quality_and_cells_by_hand():
    # norm: 0, 1, 1/2 for the qualities 0.2, 0.4, 0.3 and 1, 0, 1/2 for the cells 7, 1, 4; equal cells have the factor 1.
    values = np.array([[0.2, 7, 3], [0.4, 1, 3], [0.3, 4, 3]])
    np.testing.assert_allclose(elite_weights(values, 0.5, 0.8), [0.5 * 0.8, 0.8 * 0.5, 0.65 * 0.65])
    np.testing.assert_allclose(elite_weights(values, 0.5, 1.3), [0.5 * 1.3, 1.3 * 0.5, 0.9 * 0.9])
    np.testing.assert_array_equal(elite_weights(np.full((2, 3), 4.0), 0.5, 0.8), [1, 1])


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 14)), min_size=1, max_size=30))
def test_weights_are_between_the_products_of_the_lowest_and_highest_factors(values):
    weights = elite_weights(np.array(values, dtype=float), 0.5, 0.8)
    assert (weights >= 0.25 - 1e-12).all()
    assert (weights <= 1 + 1e-12).all()


@pytest.mark.parametrize(("sampling", "high"), [("paper", 0.8), ("code", 1.3)])
def test_parents_are_two_elites_of_the_grid_without_replacement(sampling, high):
    archive = grids(2, sampling=sampling)
    for name, a, b in (("s", 0.9, 0.2), ("t", 0.6, 0.45), ("u", 0.3, 0.9)):
        insert(archive, name, a, b)
    # Grid a: qualities 0.9, 0.6, 0.3 in the cells 0, 1, 3 along b.
    middle = {i: 0.5 + (high - 0.5) * i for i in (1 / 2, 1 / 3)}
    weight = {"s": high * 0.5, "t": middle[1 / 2] * middle[1 / 3], "u": 0.5 * high}
    total = sum(weight.values())
    rng = np.random.default_rng(0)
    counts = collections.Counter(archive.choose(rng, 4)[:2] for _ in range(6000))
    assert set(counts) == set(itertools.permutations("stu", 2))
    for (one, other), count in counts.items():
        expected = weight[one] / total * weight[other] / (total - weight[one])
        assert count / 6000 == pytest.approx(expected, abs=0.02)


def test_active_grid_of_parents_and_specialist_rotates_with_the_number():
    archive = grids(2, bins=2)
    insert(archive, "s", 0.4, 0.1)
    insert(archive, "t", 0.1, 0.4)
    insert(archive, "high a", 0.8, 0.2)
    insert(archive, "high b", 0.2, 0.8)
    insert(archive, "low a", 0.0, 0.5)
    # Grid a keeps the best a in each half of b; grid b the best b in each half of a.
    assert [{name for name, _ in grid.elites.values()} for grid in archive.maps()] == [
        {"high a", "high b"},
        {"high b", "high a"},
    ]
    rng = np.random.default_rng(0)
    assert [archive.choose(rng, number)[2] for number in range(6)] == ["s", "t"] * 3
    insert(archive, "low b", 0.1, 0.9)  # now the grids differ
    assert {frozenset(archive.choose(rng, 2)[:2]) for _ in range(50)} == {frozenset({"high a", "high b"})}
    assert {frozenset(archive.choose(rng, 3)[:2]) for _ in range(50)} == {frozenset({"high a", "low b"})}


def test_only_elite_of_a_grid_is_crossed_with_any_other_member():
    archive = grids(2, bins=1)
    insert(archive, "s", 0.4, 0.1)
    rng = np.random.default_rng(0)
    assert archive.choose(rng, 0) == ("s", "s", "s")
    insert(archive, "t", 0.1, 0.4)
    insert(archive, "high a", 0.8, 0.2)
    assert {archive.choose(rng, 0)[:2] for _ in range(50)} == {("high a", "s"), ("high a", "t")}


def test_aggregation_weights_are_the_softmax_of_the_best_qualities():
    ids = {name: name * 64 for name in "abc"}
    archive = Cycle(list(UNIT), CycleSettings(ranges=UNIT, aggregate=100), [ids["a"], ids["b"]])
    insert(archive, ids["a"], 0.5, 0.7, 0.1)
    insert(archive, ids["b"], 0.2, 0.3, 0.4)
    insert(archive, ids["c"], 0.4, 0.6, 0.3)
    assert [n for n in range(400) if archive.special(n) is not None] == [99, 199, 299, 399]
    total = math.exp(0.5) + math.exp(0.7) + math.exp(0.4)  # a is the best on the first two objectives
    merge = archive.special(99).root.merge
    assert [entry.root.member for entry in merge.inputs] == [ids["a"], ids["b"]]
    assert merge.method == "task_arithmetic"
    assert merge.parameters["lambda"] == 1
    assert merge.parameters["weight"].values == pytest.approx(
        {"#0": (math.exp(0.5) + math.exp(0.7)) / total, "#1": math.exp(0.4) / total}
    )


def test_no_aggregation_with_a_single_best_elite_or_without_the_setting():
    archive = grids(2, aggregate=1)
    insert(archive, "s", 0.9, 0.9)
    insert(archive, "t", 0.1, 0.1)
    assert archive.special(1) is None
    archive = grids(2, seeds=["1" * 64, "2" * 64])
    insert(archive, "1" * 64, 0.9, 0.1)
    insert(archive, "2" * 64, 0.1, 0.9)
    assert all(archive.special(number) is None for number in range(300))


def test_aggregation_is_the_base_plus_weighted_task_vectors(pool, models):
    experts = [recipe.expert("maths"), recipe.expert("code")]
    archive = grids(2, seeds=[one.id for one in experts], aggregate=1)
    insert(archive, experts[0].id, 0.9, 0.1)
    insert(archive, experts[1].id, 0.2, 0.4)
    members = Members()
    members.lineage |= {one.id: one for one in experts}
    merged = Builder(pool, members=members).build(archive.special(1))
    share = 1 / (1 + math.exp(0.4 - 0.9))
    for name in ("layers.0.attn.weight", "layers.0.norm.weight"):
        assert name in merged.info
        parent, one, other = (
            tensors[name].double() for tensors in (models.base, *map(models.experts.get, ("maths", "code")))
        )
        expected = parent + share * (one - parent) + (1 - share) * (other - parent)
        torch.testing.assert_close(merged.tensor(name).double(), expected, rtol=0, atol=1e-6)


def test_aggregations_are_ordinary_candidates_and_become_parents():
    problem = family(specialist=True)
    driver = search.make({"kind": "cycle", "aggregate": 10}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 300, slots=3, shuffle=0)
    merged = [p.number for p in proposals if p.genome is None and p.number > 1]
    assert len(merged) > 20
    assert all(number % 10 == 9 for number in merged)
    parents = {member for p in proposals for member in p.recipe.members if p.number not in merged}
    assert parents & {proposals[number].recipe.id for number in merged}


def test_search_improves_each_objective_and_keeps_diverse_members():
    for seed in range(3):
        problem = family()
        driver = search.make({"kind": "cycle"}, problem.space, problem.objectives, seed)
        best = []
        for number in range(600):
            proposal = driver.ask()
            driver.tell(proposal, problem.evaluate(proposal))
            if number in (59, 599):
                best.append([max(quality for _, quality in grid.elites.values()) for grid in driver.maps()])
        assert best[1] >= best[0]
        assert sum(best[1]) > sum(best[0]) + 0.1
        assert len(driver.members()) >= 10


def test_failed_seeds_are_no_specialists_and_move_no_edges():
    problem = family(specialist=True)
    settings = {"kind": "cycle", "seeds": ["left", "right", "base"]}
    driver = search.make(settings, problem.space, problem.objectives, 0)
    first, second, third = (driver.ask() for _ in range(3))
    driver.tell(second, Evaluation(error="out of memory"))
    assert driver.ask() is None
    scored = Evaluation(scores={name: np.full(4, 0.5, dtype=np.float32) for name in problem.objectives})
    driver.tell(first, scored)
    assert driver.ask() is None
    driver.tell(third, scored)
    assert all(grid.edges[0][[0, -1]].tolist() == pytest.approx([0.425, 0.575]) for grid in driver.maps())
    assert second.recipe.id not in driver.members()
    assert set(driver.ask().recipe.members) <= {first.recipe.id, third.recipe.id}


def test_shipped_space_is_a_mutated_crossover_of_task_vectors(pool, models):
    searched = SearchSpace.parse(space.read("cycle_qd"), experts=pool.experts, blocks=4)
    assert searched.driver == {"kind": "cycle"}
    assert searched.parents == ("mother", "father", "specialist")
    assert {gene.sd for gene in searched.genes if gene.kind == "float"} == {0.01}
    driver = search.make(searched.driver, searched, ["a/x", "b/x"], 0)
    mother, father, specialist = (recipe.expert(name) for name in ("maths", "code", "prose"))
    members = Members()
    members.lineage |= {one.id: one for one in (mother, father, specialist)}
    builder = Builder(pool, members=members)
    seeds = [driver.ask() for _ in range(3)]
    for seed, scores in zip(seeds, np.eye(3), strict=True):
        vectors = {"a/x": scores[:1], "b/x": scores[1:2]}
        driver.tell(seed, Evaluation(scores={name: vector.astype(np.float32) for name, vector in vectors.items()}))
    first, second = (builder.build(driver.ask().recipe) for _ in range(2))
    assert not torch.equal(first.tensor("layers.0.attn.weight"), second.tensor("layers.0.attn.weight"))

    genome = searched.initial.copy()
    genome[[gene.kind == "float" for gene in searched.genes]] = 0.95, 1.05
    child = builder.build(searched.decode(genome, [one.id for one in (mother, father, specialist)]))
    for name in ("layers.0.attn.weight", "layers.0.norm.weight"):
        parent = models.base[name].double()
        taus = {expert: tensors[name].double() - parent for expert, tensors in models.experts.items()}
        crossed = parent + (0.95 * taus["maths"] + 1.05 * taus["code"]) / 2
        change = child.tensor(name).double() - crossed
        if "norm" in name:
            torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-6)
            continue
        left, values, right = torch.linalg.svd(taus["prose"], full_matrices=False)
        shares = left.T @ change @ right.T
        torch.testing.assert_close(shares, torch.diag(shares.diag()), rtol=0, atol=1e-5)
        portions = shares.diag() / values
        assert (portions > -1e-4).all()
        assert (portions < 0.1 + 1e-4).all()
        assert portions.max() > 0.01


def test_shipped_space_is_searched_on_real_models(small_digits, tmp_path):
    tasks = {name: task | {"search_metric": "accuracy"} for name, task in list(small_digits.tasks.items())[:2]}
    data = {"name": "cycle", "pool": small_digits.pool, "tasks": tasks, "space": "cycle_qd", "evaluations": 24}
    settings = StudySettings.parse({**data, "driver": {"kind": "cycle", "aggregate": 10}}, "test", tmp_path)
    study = Study.create(tmp_path / "study", settings)
    with study.evaluator() as evaluator:
        study.run(evaluator)
    candidates = study.population()
    assert [evaluation.error for _, evaluation in candidates] == [None] * 24
    methods = [proposal.recipe.data["merge"]["method"] for proposal, _ in candidates if proposal.recipe.members]
    assert set(methods) == {"svd_mutate", "task_arithmetic"}
    assert Recipe.parse(candidates[9][0].recipe.data).root.merge.method == "task_arithmetic"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranges": {"lfet": [0, 1]}}, "driver `cycle` `ranges`: unknown objective `lfet`; did you mean `left`?"),
        (
            {"ranges": {"left": [1, 1]}},
            "driver `cycle` `ranges`: `left` is [1, 1]; expected [low, high] with low < high",
        ),
        ({"ranges": {"left": [0, float("inf")]}}, "`left` is [0, inf]; expected [low, high] with low < high"),
        ({"ranges": {"left": [0]}}, "driver: `ranges.left"),
        ({"bins": 0}, "`bins`: input should be greater than or equal to 1, got 0"),
        ({"aggregate": -1}, "`aggregate`: input should be greater than or equal to 0, got -1"),
        ({"sampling": "mine"}, "`sampling`"),
        ({"bin": 3}, "unknown key `bin`; did you mean `bins`?"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    problem = family()
    with pytest.raises(DriverError) as caught:
        search.make({"kind": "cycle", **settings}, problem.space, problem.objectives, 0)
    assert message in str(caught.value)


def test_one_objective_is_refused():
    with pytest.raises(DriverError, match="got one objective; type `kind: niches`, or add a task"):
        search.make({"kind": "cycle"}, family().space, ["only"], 0)


def test_space_with_a_specialist_is_refused_by_other_drivers():
    searched = family(specialist=True).space
    with pytest.raises(DriverError, match="the space crosses mother, father, specialist; type `kind: cycle`"):
        search.make({"kind": "nsga2"}, searched, ["a", "b"], 0)
    with pytest.raises(DriverError, match="driver `niches` crosses 1 or 2 earlier candidates, and the space has 3"):
        search.make({"kind": "niches"}, searched, ["a", "b"], 0)


def test_description_names_the_grids():
    names = ["a/x", "b/x", "c/x"]
    assert str(search.make({"kind": "cycle", "aggregate": 100}, family().space, names, 0)) == (
        "CycleQD, 3 grids of 15 x 15 cells, their best merged every 100 proposals, from 2 seeds"
    )
