"""Weights: elections, shares and swaps, worked by hand."""

import pytest
from merging.vectors import each, merged, staged

from evomerge.errors import RecipeError


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


def test_energy_by_hand():
    """After selection [1, -2] and [3, 2] have energies 5 and 13 of 18."""
    assert staged([[1.0, -2.0], [3.0, 2.0]], weigh=["energy"]) == pytest.approx([44 / 18, 16 / 18])


def test_energies_of_nothing_are_equal():
    assert staged([[0.0], [0.0]], weigh=["energy"], post=["scale"]) == [0]


def test_swap_refuses_other_numbers_of_inputs():
    with pytest.raises(RecipeError, match="`layer_swap` takes exactly 2 inputs, got 3: e0, e1, e2"):
        merged("layer_swap", [[1.0], [2.0], [3.0]])


def test_stitching_is_the_mean_of_what_is_left():
    """Of the specification: masks 110 and 010."""
    assert staged([[2.0, 4.0, 0.0], [0.0, 2.0, 0.0]], weigh=["stitch"], reduce="solve") == [2.0, 3.0, 0.0]


def test_localize_and_stitch_by_hand():
    """The two largest of five of each: places 0 and 3, and 3 and 4."""
    rows = [[5.0, 0.1, -1.0, -2.0, 0.5], [0.3, 1.0, 1.0, 6.0, -2.0]]
    assert merged("localize_stitch", rows, {"density": 0.4}) == [5.0, 0.0, 0.0, 2.0, -2.0]
