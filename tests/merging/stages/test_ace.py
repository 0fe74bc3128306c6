"""ACE-Merging by hand, and where it is something simpler."""

import pytest
from merging.vectors import merged, staged

SMALL, LARGE = [[1.0], [-1.0]], [[10.0], [-10.0]]
"""Task vectors of one column, whose covariances are 2 and 200."""


def test_alone_an_input_is_shrunk_by_the_prior():
    """Σ = 2: Δ = (2 + 0.01) / (2 + 0.01 + 2)."""
    assert merged("ace", [SMALL])[0] == pytest.approx([2.01 / 4.01])


def test_of_inputs_that_are_alike():
    """(2.01 + 10·200.01) / (2.01 + 200.01 + 202)."""
    found = merged("ace", [SMALL, LARGE], {"heterogeneity": 10})
    assert [row[0] for row in found] == pytest.approx([2002.11 / 404.02, -2002.11 / 404.02], abs=1e-5)


def test_of_inputs_that_differ_each_covariance_has_trace_one():
    """The norms differ by h = 1.18: (1.005 + 10·1.00005) / (1.005 + 1.00005 + 2/101); then the only direction of 5.435212 - 11·0.002525 is added."""
    found = merged("ace", [SMALL, LARGE])
    assert [row[0] for row in found] == pytest.approx([10.842650, -10.842650], abs=1e-5)


def test_columns_are_told_apart():
    """Σ = diag(2, 8), its mean row [1, 4]: by hand Δ = C(Σ + εI)(Σ + εI + 1sᵀ)⁻¹ of the one input."""
    left = [[3.01, 4.0], [1.0, 12.01]]
    determinant = left[0][0] * left[1][1] - left[0][1] * left[1][0]
    inverse = [
        [left[1][1] / determinant, -left[0][1] / determinant],
        [-left[1][0] / determinant, left[0][0] / determinant],
    ]
    expected = [2.01 * inverse[0][0], 2.01 * inverse[0][1]]
    found = merged("ace", [[[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]])
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_an_input_that_is_the_base_says_nothing():
    assert merged("ace", [SMALL, [[0.0], [0.0]]]) == merged("ace", [SMALL])


def test_other_tensors_and_rows_that_do_not_differ_have_the_mean():
    assert merged("ace", [[1.0, 4.0], [3.0, 0.0]]) == [2.0, 2.0]
    assert merged("ace", [[[1.0, 4.0]], [[3.0, 0.0]]]) == [[2.0, 2.0]]


def test_it_is_an_edit_among_others():
    found = staged([SMALL], edit=["ace"], reduce="sum", post=[{"scale": {"lambda": 0.5}}])
    assert found[0] == pytest.approx([0.5 * 2.01 / 4.01])
