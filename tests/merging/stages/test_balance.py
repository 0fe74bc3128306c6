"""PCB-Merging's balance: worked examples of its four definitions."""

import pytest
from merging.vectors import each, merged

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
