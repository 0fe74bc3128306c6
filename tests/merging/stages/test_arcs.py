"""Arcs and means on the sphere: Shoemake's, Karcher's and Model Stock's numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from merging.vectors import RIGHT, each, merged, staged

from evomerge.errors import RecipeError


@pytest.mark.parametrize(
    ("t", "slerp", "multislerp", "karcher"),
    [
        (0.5, [0.707107, 1.414214], [1.060660, 1.060660], [1.060660, 1.060660]),
        # sin 67.5° = 0.923880 and 2 sin 22.5°; then the direction of (0.75, 0.25), and that of 22.5°, at length 1.25
        (0.25, [0.923880, 0.765367], [1.185854, 0.395285], [1.154849, 0.478354]),
        (0, [1, 0], [1, 0], [1, 0]),
        (1, [0, 2], [0, 2], [0, 2]),
    ],
)
def test_a_right_angle_by_hand(t, slerp, multislerp, karcher):
    weights = {"weight": each(1 - t, t)}
    assert merged("slerp", RIGHT, {"t": t}) == pytest.approx(slerp, abs=5e-7)
    assert merged("nuslerp", RIGHT, weights) == pytest.approx(slerp, abs=5e-7)
    assert merged("multislerp", RIGHT, weights) == pytest.approx(multislerp, abs=5e-7)
    assert merged("karcher", RIGHT, weights) == pytest.approx(karcher, abs=5e-7)


@pytest.mark.parametrize("factor", [0.5, 3])
@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_only_the_weights_shares_matter(method, factor):
    one, other = (merged(method, RIGHT, {"weight": each(f, 3 * f)}) for f in (1, factor))
    assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher"])
def test_weights_that_sum_to_zero_are_equal_ones(method):
    assert merged(method, RIGHT, {"weight": each(1, -1)}) == pytest.approx(merged(method, RIGHT), rel=1e-6)


def test_one_direction_is_linear():
    assert merged("slerp", [[1.0, 2.0], [2.0, 4.0]], {"t": 0.25}) == pytest.approx([1.25, 2.5])
    assert merged("slerp", [[0.0, 0.0], [2.0, 4.0]], {"t": 0.25}) == [0.5, 1.0]
    assert merged("slerp", [[1.0], [-3.0]], {"t": 0.25}) == [0.0]


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_one_number_is_averaged(method):
    assert merged(method, [[1.0], [-4.0]], {"weight": each(3, 1)}) == [-0.25]


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_what_has_no_direction_counts_for_the_length_alone(method):
    """The mean length of 0, 3 and 3 is 2."""
    rows = [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]
    assert merged(method, rows) == pytest.approx([2**0.5, 2**0.5], rel=1e-6)


def test_arc_between_opposites_is_refused_not_guessed():
    for method in ("slerp", "nuslerp"):
        with pytest.raises(RecipeError, match=r"anti-parallel in `layers.0.mlp.weight`.*use linear"):
            merged(method, [[1.0, 2.0], [-2.0, -4.0]])


@pytest.mark.parametrize("method", ["multislerp", "karcher"])
def test_directions_that_cancel(method):
    """Two are averaged; more have no mean direction, and that is said."""
    assert merged(method, [[1.0, 0.0], [-3.0, 0.0]]) == [-1, 0]
    with pytest.raises(RecipeError, match=r"directions cancel in `layers.0.mlp.weight`.*use linear"):
        merged(method, [[1.0, 0.0], [-3.0, 0.0], [0.0, 0.0]])


def test_angles_may_be_taken_over_the_whole_model():
    with pytest.raises(RecipeError, match="anti-parallel in the model"):
        merged("slerp", [[1.0, 2.0], [-2.0, -4.0]], {"scope": "model"})
    assert merged("slerp", RIGHT, {"scope": "model"}) == merged("slerp", RIGHT)


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-5])
def test_small_angles_are_not_lost(angle):
    """For such angles arccos of an fp32 cosine is 0. Exaggerated by long vectors, the arc and the chord differ."""
    far = 1e4
    rows = [[far, 0.0], [far * np.cos(angle), far * np.sin(angle)]]
    seen = np.arctan2(*np.float32(rows[1])[::-1].astype(float))
    middle = merged("slerp", rows, {"t": 0.5})
    assert middle[1] == pytest.approx(far * np.sin(seen / 2), rel=1e-6)


@given(st.floats(0, 1), arrays(np.float64, (2, 5), elements=st.floats(-1, 1, width=16)))
def test_slerp_between_equal_lengths_keeps_the_length(t, ends):
    lengths = np.linalg.norm(ends, axis=1, keepdims=True)
    if (lengths < 0.1).any():
        return
    rows = ends / lengths
    if rows[0] @ rows[1] < -0.999:
        return
    assert np.linalg.norm(merged("slerp", rows.tolist(), {"t": t})) == pytest.approx(1, abs=1e-5)


@given(arrays(np.float64, (3, 4), elements=st.floats(0.125, 1, width=16)), st.floats(0.05, 0.95))
def test_length_of_a_mean_is_the_mean_length(rows, share):
    """And of two inputs, Karcher's mean is in slerp's direction."""
    weights = [share, (1 - share) / 3, (1 - share) * 2 / 3]
    for method in ("multislerp", "karcher"):
        found = merged(method, rows.tolist(), {"weight": each(*weights)})
        assert np.linalg.norm(found) == pytest.approx(weights @ np.linalg.norm(rows, axis=1), rel=1e-5)
    units = (rows[:2] / np.linalg.norm(rows[:2], axis=1, keepdims=True)).tolist()
    along = merged("slerp", units, {"t": share})
    assert merged("karcher", units, {"weight": each(1 - share, share)}) == pytest.approx(along, abs=2e-6)


def test_model_stock_by_hand():
    """[1, 1] and [1, 0]: cos = .707107, t = 2c / (1 + c) = .828427, of the mean [1, .5]."""
    assert merged("model_stock", [[1.0, 1.0], [1.0, 0.0]]) == pytest.approx([0.828427, 0.414214], abs=5e-7)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0, 0]),  # nothing in common
        ([[1.0, 0.1], [-1.0, 0.1]], [0, 0]),  # the formula would be beyond -1 / (K - 1)
        ([[3.0, 4.0], [3.0, 4.0]], [3, 4]),
        ([[3.0, 4.0], [0.0, 0.0]], [0, 0]),
    ],
)
def test_model_stock_stays_between_the_base_and_the_mean(rows, expected):
    assert merged("model_stock", rows) == pytest.approx(expected, rel=1e-6)


def test_model_stock_of_one_is_refused():
    with pytest.raises(RecipeError, match="`model_stock` takes at least 2 inputs, got 1: e0"):
        merged("model_stock", [[1.0, 2.0]])


def test_arcs_multiply_with_other_weights():
    """A field of numbers is a weight like any other."""
    rows = [[1.0, 1.0], [1.0, 0.0]]
    doubled = staged(rows, weigh=["stock", {"weight": {"weight": 2}}])
    assert doubled == pytest.approx([2 * 0.828427, 2 * 0.414214], abs=1e-6)
