"""Axes: how they are joined, cut and reshaped."""

import numpy as np

from evomerge.alignment.axes import Axis, cut, find, leaves, pin, product, regroup, segments, unify


def test_reshape_and_back_is_the_same_axis():
    axis = Axis(12)
    heads, dims = regroup([axis], [3, 4])
    assert leaves(axis) == [heads, dims]
    (back,) = regroup([heads, dims], [12])
    assert leaves(back) == [heads, dims]


def test_unified_products_share_their_factors():
    one, other = Axis(12), Axis(12)
    regroup([one], [3, 4])
    regroup([other], [2, 6])  # has no common factors with 3 · 4
    unify(one, other)
    assert all(leaf.pins for leaf in (*leaves(one), *leaves(other)))
    third = Axis(24)
    regroup([third], [6, 4])
    fourth = Axis(24)
    regroup([fourth], [2, 12])
    unify(third, fourth)
    assert [leaf.size for leaf in leaves(third)] == [2, 3, 4] == [leaf.size for leaf in leaves(fourth)]
    assert not any(leaf.pins for leaf in leaves(third))


def test_sums_are_cut_to_common_pieces():
    one, other = Axis(6), Axis(6)
    cut(one, [2])
    cut(other, [4])
    unify(one, other)
    assert [leaf.size for leaf in leaves(one)] == [2, 2, 2]
    assert list(map(find, leaves(one))) == list(map(find, leaves(other)))


def test_pin_reaches_all_that_was_unified():
    one, other = Axis(4), Axis(4)
    unify(one, other)
    pin(one, "output")
    assert find(other).pins == {"output"}


def test_segments_are_the_positions_of_each_product():
    axis = Axis(12)
    outer, inner = regroup([axis], [2, 6])
    first, second = cut(inner, [2])
    (at, some), (more, others) = segments(axis)
    assert (some, others) == ([outer, first], [outer, second])
    assert np.array_equal(at, [[0, 1], [6, 7]])
    assert np.array_equal(more, [[2, 3, 4, 5], [8, 9, 10, 11]])
    assert product([outer, inner]).size == 12
