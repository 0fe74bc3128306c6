"""Weights: the suite that all must keep, and elections, shares and balances by hand."""

import pytest
from merging.vectors import each, merged, staged

from evomerge.errors import RecipeError
from evomerge.merging.stages.balance import BALANCE
from evomerge.merging.stages.weights import WEIGHTS
from evomerge.testing import StageSuite


class TestWeight(StageSuite):
    name = "weight"


class TestMetric(StageSuite):
    name = "metric"


class TestElect(StageSuite):
    name = "elect"


class TestEnergy(StageSuite):
    name = "energy"


class TestBalance(StageSuite):
    name = "balance"


class TestSwap(StageSuite):
    name = "swap"
    symmetric = False


def test_every_weight_is_held_to_the_suite():
    assert {suite.name for suite in StageSuite.__subclasses__() if suite.__module__ == __name__} == {*WEIGHTS, *BALANCE}


# -- the average of checkpoints by their metric: arXiv 2504.18580 --


@pytest.mark.parametrize(
    ("metric", "parameters", "expected"),
    [
        ((2, 1, 0.5), {"power": 1}, [0.142857, 0.285714, 0.571429]),  # losses
        ((2, 1, 0.5), {"power": 2}, [0.047619, 0.190476, 0.761905]),
        ((1, 2, 3), {"power": 1, "better": "higher"}, [1 / 6, 1 / 3, 1 / 2]),  # steps
        ((1, 2, 3), {"power": 2, "better": "higher"}, [0.071429, 0.285714, 0.642857]),
        ((2, 1, 0.5), {"power": 0}, [1 / 3, 1 / 3, 1 / 3]),
        ((2, 1, 0.5), {"power": 100}, [0, 0, 1]),
        ((1e-30, 1e30, 1), {"power": 100}, [1, 0, 0]),
    ],
)
def test_metric_by_hand(metric, parameters, expected):
    rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert merged("mwa", rows, {"metric": each(*metric), **parameters}) == pytest.approx(expected, abs=5e-7)


# -- elections --


@pytest.mark.parametrize(("elect", "expected"), [("mass", [3, 0]), ("count", [-1, 0])])
def test_election_by_mass_and_by_count(elect, expected):
    """3 against -1 - 1; 1 and -1 cancel either way, and 0 has no vote."""
    rows = [[3.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]]
    assert staged(rows, weigh=[{"elect": {"elect": elect}}], reduce="solve") == expected


@pytest.mark.parametrize(
    ("rows", "undecided", "expected"),
    [
        ([[2.0, 1.0], [-2.0, 1.0]], "none", [0, 1]),
        ([[2.0, 1.0], [-2.0, 1.0]], "positive", [2, 1]),
        ([[2.0, 1.0], [-2.0, 1.0]], "majority", [2, 1]),
        ([[2.0, -1.0], [-2.0, -1.0]], "majority", [-2, -1]),
        ([[2.0, -1.0, 1.0], [-2.0, -1.0, 1.0]], "majority", [0, -1, 1]),  # one elects +, one -: no majority
    ],
)
def test_undecided_votes(rows, undecided, expected):
    assert staged(rows, weigh=[{"elect": {"undecided": undecided}}], reduce="solve") == expected


def test_a_negative_weight_votes_with_its_negative():
    """2 and -(-1): both are for +."""
    weights = {"weight": each(1, -1)}
    assert staged([[2.0], [-1.0]], weigh=[{"elect": weights}]) == [3]


# -- energy: SCE's coefficients --


def test_energy_by_hand():
    """After selection [1, -2] and [3, 2] have energies 5 and 13 of 18."""
    assert staged([[1.0, -2.0], [3.0, 2.0]], weigh=["energy"]) == pytest.approx([44 / 18, 16 / 18])


def test_energies_of_nothing_are_equal():
    assert staged([[0.0], [0.0]], weigh=["energy"], post=["scale"]) == [0]


# -- balance: PCB-Merging --

PCB = [[1.0, -2.0, 0.5, 3.0], [2.0, 1.0, -0.5, 0.2]]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # β = [[.054734, .075287, .031284, .430525], [.549932, .051085, .038980, .038837]]; {1, 3} and {0, 1} are kept
        ("paper", [2, -0.787276, 0, 3]),
        # scores [[1.077930, 1.980530, 0, 7.389056], [7.388966, -1.130568, 0, .564900]]: the median maps to 0
        ("merging", [2, 0, 0, 3]),
        ("es", [2, 0, 0, 3]),
    ],
)
def test_pcb_by_hand(variant, expected):
    found = merged("pcb", PCB, {"variant": variant, "ratio": 0.5, "lambda": 1, "clip": 0})
    assert found == pytest.approx(expected, abs=5e-7)


def test_pcb_factors_are_not_taken_back_by_the_quotient():
    """At places where only one task is left, its λ_k is what it is multiplied by."""
    parameters = {"variant": "es", "ratio": 0.5, "lambda": 1, "clip": 0, "factor": each(0.5, 2)}
    assert merged("pcb", PCB, parameters) == [4, 0, 0, 1.5]


@pytest.mark.parametrize("variant", ["paper", "merging", "pcb", "es"])
def test_pcb_alone_is_the_task_vector_where_it_is_kept(variant):
    row = [0.1, -2.0, 0.5, 3.0, 1.0, -0.7]
    found = merged("pcb", [row], {"variant": variant, "ratio": 0.5, "lambda": 1, "clip": 0})
    assert all(v in (0, pytest.approx(tau)) for v, tau in zip(found, row, strict=True))
    assert found[3] == 3
    assert found[0] == 0


@pytest.mark.parametrize("variant", ["paper", "merging", "pcb", "es"])
def test_pcb_of_equal_numbers_is_finite(variant):
    """Where all are equal, there is nothing to normalise by."""
    for rows in ([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, -1.0]], [[2.0, -2.0], [-2.0, 2.0]]):
        assert all(abs(v) <= 2.4 for v in merged("pcb", rows, {"variant": variant}))


# -- swap: which block is whose --


def test_swap_refuses_other_numbers_of_inputs():
    with pytest.raises(RecipeError, match="`layer_swap` takes exactly 2 inputs, got 3: e0, e1, e2"):
        merged("layer_swap", [[1.0], [2.0], [3.0]])
