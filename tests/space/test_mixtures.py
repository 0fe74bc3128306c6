"""Mixtures: weights that sum to 1, and the spaces that have them."""

import numpy as np
import pytest
from scipy.stats import kstest, qmc

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
    assert shares(np.ones((1, count - 1)))[0] == pytest.approx(np.eye(count)[0])
    assert shares(np.zeros((1, count - 1)))[0] == pytest.approx(np.eye(count)[-1])


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
