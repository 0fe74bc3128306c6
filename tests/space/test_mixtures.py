"""Mixtures: weights that sum to 1, and the spaces that have them."""

import numpy as np
import pytest
from scipy.stats import kstest, qmc

from evomerge import space as spaces
from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.space import SearchSpace
from evomerge.space.mixtures import shares

EXPERTS = ("maths", "code", "prose")


def of(method="task_arithmetic", weight=None, experts=EXPERTS, **parameters):
    weight = {"float": [0, 1.2], "per": ["expert"]} | (weight or {})
    parameters = {"weight": weight} | ({"lambda": 1.0} if method == "task_arithmetic" else {}) | parameters
    return SearchSpace({"merge": {"method": method, "inputs": "experts", "parameters": parameters}}, experts=experts)


def spread(space, count=10):
    """Return 2^count genomes spread evenly over the box."""
    return space.from_unit(qmc.Sobol(len(space.genes), rng=0).random_base2(count))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_shares_are_uniform_over_the_simplex(count):
    drawn = shares(np.random.default_rng(0).random((4000, count - 1)))
    assert (drawn >= 0).all()
    assert drawn.sum(axis=1) == pytest.approx(1)
    for column in drawn.T:  # of a flat Dirichlet distribution, each is Beta(1, n - 1)
        assert kstest(column, lambda x: 1 - (1 - x) ** (count - 1)).pvalue > 1e-3
    assert (shares(np.zeros((1, count - 1)))[0] == np.eye(count)[0]).all()
    assert (shares(np.ones((1, count - 1)))[0] == np.eye(count)[-1]).all()


def test_half_of_the_mixtures_sum_to_1_and_the_others_reach_the_edge_of_the_box():
    space = of()
    mixed = space.mixed(spread(space))
    assert (mixed >= 0).all()
    assert 1.19 < mixed.max() <= 1.2
    totals = mixed.sum(axis=1)
    assert np.mean(np.isclose(totals, 1)) == pytest.approx(0.5, abs=0.01)
    assert (totals >= 1 - 1e-9).all()
    assert totals.max() > 2
    assert np.allclose(mixed / totals[:, None], shares(space.to_unit(spread(space))[:, :-1]))


def test_a_fixed_scale_makes_mixtures_of_that_scale_and_other_genes_stay():
    half = of(**{"lambda": 0.5}).mixed(spread(of()))
    assert np.isclose(half.sum(axis=1), 2).any()
    short = half.sum(axis=1) < 2 - 1e-9
    assert half[short].max(axis=1) == pytest.approx(1.2), "as much of it as the box holds"
    space = of(**{"lambda": {"float": [0.1, 1.5]}})
    drawn = spread(space)
    assert np.isclose(space.mixed(drawn)[:, :-1].sum(axis=1), 1).any()
    assert (space.mixed(drawn)[:, -1] == drawn[:, -1]).all()


@pytest.mark.parametrize("high", [0.5, 1, 3])
def test_a_linear_mixture_is_scaled_only_to_fit_the_box(high):
    space = of("linear", {"float": [0, high]})
    drawn = spread(space)
    mixed = space.mixed(drawn)
    parts = shares(space.to_unit(drawn)[:, :-1])
    assert np.allclose(mixed, parts * np.minimum(1, high / parts.max(axis=1))[:, None])


@pytest.mark.parametrize("per", [["expert", "block/2"], ["block/2", "expert"], ["kind", "expert", "block/2"]])
def test_each_tile_has_its_own_mixture(per):
    space = of("linear", {"float": [0, 1], "per": per})
    genome = space.mixed(spread(space)[7])
    by_tile = {}
    for gene, number in zip(space.genes, genome, strict=True):
        cell = gene.name.removeprefix("weight[").removesuffix("]").split(",")
        by_tile.setdefault(tuple(word for word in cell if word not in EXPERTS), []).append(number)
    assert [sum(weights) for weights in by_tile.values()] == pytest.approx([1] * len(by_tile))
    assert len({weights[0] for weights in by_tile.values()}) == len(by_tile)


@pytest.mark.parametrize(
    "space",
    [
        of("ties"),
        of(experts=("maths",)),
        of(weight={"per": ["block/2"]}),
        of(weight={"float": [0.1, 1]}),
        of(weight={"float": [0.1, 1], "log": True}),
        of(weight={"float": [0, 1], "sd": 0.1}),
        SearchSpace(
            {
                "merge": {
                    "method": "linear",
                    "inputs": [{"choice": ["maths", "code"]}, "base"],
                    "parameters": {"weight": 1},
                }
            },
            experts=EXPERTS,
        ),
        SearchSpace({"merge": {"method": {"choice": ["linear", "ties"]}, "inputs": "experts"}}, experts=EXPERTS),
        SearchSpace(
            {"stack": {"rest": "base", "swap": {"source": {"choice": "experts", "per": ["layer"]}}}},
            experts=EXPERTS,
            blocks=2,
        ),
    ],
)
def test_other_spaces_have_no_mixtures(space):
    assert space.weights is None
    genome = space.initial
    assert (space.mixed(genome) == genome).all()


def shipped(name, count):
    return SearchSpace.parse(spaces.read(name), experts=[f"e{i}" for i in range(count)])


def weights_of(space, genome):
    return np.array(list(space.decode(genome).data["merge"]["parameters"]["weight"]["values"].values()))


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "shares_at"), [("linear_mixture", 0), ("task_arithmetic_mixture", 1)])
def test_every_point_is_a_mixture_and_encode_inverts_decode(name, shares_at, count):
    space = shipped(name, count)
    assert len(space.genes) == count - 1 + shares_at
    corners = [
        space.lower,
        space.upper,
        space.initial,
        np.where(np.arange(len(space.genes)) % 2, space.lower, space.upper),
    ]
    for genome in [*spread(space, 6), *corners, space.lower - 1, space.upper + 1]:
        weights = weights_of(space, genome)
        total = np.clip(genome[0], 0, 2) if shares_at else 1
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(total, abs=1e-9)
        recipe = space.decode(genome)
        assert space.decode(space.encode(recipe)) == recipe
    drawn = np.array([weights_of(space, genome) for genome in spread(space, 9)])
    parts = drawn / drawn.sum(axis=1, keepdims=True)
    assert np.allclose(parts.mean(axis=0), 1 / count, atol=0.01), "uniform genes are uniform shares"
    assert np.allclose(parts.var(axis=0), (count - 1) / count**2 / (count + 1), rtol=0.15)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_known_recipes_are_points_of_a_mixtures_box(count):
    space = shipped("task_arithmetic_mixture", count)
    marks = {name: weights_of(space, genome) for name, genome in space.landmarks().items()}
    assert (marks["base"] == 0).all()
    for i in range(count):
        assert (marks[f"expert e{i}"] == np.eye(count)[i]).all()
    assert marks["mean"] == pytest.approx(1 / count, abs=1e-12)
    assert (marks["init"] == marks["mean"]).all()
    averages = shipped("linear_mixture", count).landmarks()
    assert set(averages) == set(marks) - {"base"}


def test_surrogates_see_the_weights_of_a_mixture_and_as_many_coordinates_as_genes():
    space = shipped("task_arithmetic_mixture", 3)
    drawn = spread(space, 5)
    weights = np.array([weights_of(space, genome) for genome in drawn])
    assert space.coordinates(space.to_unit(drawn)) == pytest.approx(weights / 2)
    averages = shipped("linear_mixture", 3)
    drawn = spread(averages, 5)
    weights = np.array([weights_of(averages, genome) for genome in drawn])
    assert averages.coordinates(averages.to_unit(drawn)) == pytest.approx(weights[:, :-1])
    assert (of().coordinates(drawn) == drawn).all()


def test_weights_outside_of_a_mixture_are_refused():
    space = shipped("linear_mixture", 2)
    weight = {"per": ["expert"], "values": {"e0": 0.5, "e1": 0.4}}
    merge = {"method": "linear", "inputs": ["e0", "e1"], "parameters": {"weight": weight}}
    with pytest.raises(SpaceError, match=r"weights sum to 0.9; expected 1"):
        space.encode(Recipe.parse({"merge": merge}))


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ({"mixture": [2, 1], "per": ["expert"]}, "expected the total of the weights"),
        ({"mixture": 0, "per": ["expert"]}, "expected the total of the weights"),
        ({"mixture": [-1, 1], "per": ["expert"]}, "expected the total of the weights"),
        ({"mixture": "all", "per": ["expert"]}, "expected the total of the weights"),
        ({"mixture": 1}, r"expected `per: \[expert\]` of two inputs or more"),
        ({"mixture": 1, "per": ["expert", "block/2"]}, r"expected `per: \[expert\]`"),
        ({"mixture": [0, 1], "per": ["expert"], "log": True}, "no other key but `init`"),
        ({"mixture": [0, 1], "per": ["expert"], "float": [0, 1]}, "no other key but `init`"),
        ({"mixture": [0, 1], "per": ["expert"], "init": 3}, r"gene `weight\[total\]`: expected a number in \[0, 1\]"),
    ],
)
def test_a_wrong_mixture_is_refused_with_what_to_type(hole, message):
    merge = {"method": "linear", "inputs": "experts", "parameters": {"weight": hole}}
    with pytest.raises(SpaceError, match=message):
        SearchSpace({"merge": merge}, experts=EXPERTS)
