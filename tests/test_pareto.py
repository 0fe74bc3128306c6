"""Fronts, checked by hand and by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge import pareto
from evomerge.errors import StudyError

clouds = st.integers(1, 4).flatmap(
    lambda m: arrays(np.float64, st.tuples(st.integers(0, 12), st.just(m)), elements=st.integers(-3, 5).map(float))
)


def dominates(a, b):
    return (a >= b).all() and (a > b).any()


@given(clouds)
def test_front_has_the_points_that_no_other_point_dominates(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.nondominated(points).tolist() == expected


@given(clouds)
def test_hypervolume_of_integer_points_is_the_number_of_unit_boxes_below_them(points):
    m = points.shape[1]
    boxes = itertools.product(range(5), repeat=m)
    expected = sum(any((np.array(box) < point).all() for point in points) for box in boxes)
    assert pareto.hypervolume(points, np.zeros(m)) == pytest.approx(expected)


@given(clouds)
def test_hypervolume_history_has_the_hypervolume_of_each_prefix(points):
    reference = np.zeros(points.shape[1])
    expected = [pareto.hypervolume(points[: i + 1], reference) for i in range(len(points))]
    np.testing.assert_allclose(pareto.hypervolume_history(points, reference), expected)


def test_front_of_more_objectives_than_moocore_takes():
    points = np.random.default_rng(0).integers(0, 3, (40, 33)).astype(float)
    points[20:, 3:] = points[20:, :1]  # so that some points dominate others
    points[7, 2] = np.nan
    wide, narrow = points, np.delete(points, slice(20, 30), axis=1)  # 20 to 29 are copies of column 0 or noise
    for table in (wide, narrow):
        rows = np.isfinite(table).all(axis=1)
        expected = [
            bool(row) and not any(dominates(other, point) for other in table[rows])
            for row, point in zip(rows, table, strict=True)
        ]
        assert 0 < sum(expected) < 40
        assert pareto.nondominated(table).tolist() == expected
    assert not pareto.affordable(1, 33)
    with pytest.raises(StudyError, match="expected at most 31 objectives, got 33"):
        pareto.hypervolume(wide, np.zeros(33))


def test_hypervolumes_that_take_hours_are_not_affordable():
    assert pareto.affordable(100_000, 4)
    assert pareto.affordable(16, 10, repeats=4000)
    assert not pareto.affordable(300, 10)
    assert not pareto.affordable(60, 31)


def test_hypervolume_by_hand():
    # Two rectangles 1x2 and 2x1 that share a unit square; a cube beside a slab.
    assert pareto.hypervolume([[1, 2], [2, 1]], [0, 0]) == 3
    assert pareto.hypervolume([[2, 2, 2], [3, 1, 1]], [0, 0, 0]) == 9
    assert pareto.hypervolume([[-0.5, -0.25]], [-1, -1]) == 0.375
    assert pareto.hypervolume([[0.7]], [0.5]) == pytest.approx(0.2)


def test_points_at_or_below_the_reference_or_not_finite_add_nothing():
    assert pareto.hypervolume([[1, 1], [5, 0], [-1, 9], [np.nan, 3], [np.inf, np.inf]], [0, 0]) == 1
    assert pareto.hypervolume(np.empty((0, 2)), [0, 0]) == 0
    assert pareto.nondominated([[np.nan, 1], [0, 0]]).tolist() == [False, True]
    assert pareto.nondominated(np.empty((0, 3))).tolist() == []


def test_knee_is_farthest_above_the_line_between_the_ends():
    points = np.array([[0, 10], [0.5, 9], [0.8, 8], [0.9, 4], [1, 0]])
    ends = points[-1] - points[0]
    normal = np.array([1 / ends[0], 1 / -ends[1]])  # of the line, in units of the ranges
    assert pareto.knee(points) == int(np.argmax((points - points[0]) @ normal)) == 2


def test_knee_of_degenerate_fronts():
    assert pareto.knee([[3, 4]]) == 0
    assert pareto.knee([[1, 1], [1, 1]]) == 0
    assert pareto.knee([[0, 0], [2, 2], [np.nan, 9]]) == 1
    assert pareto.knee([[0, 1], [0.1, 0.1], [1, 0]]) in (0, 2)
    with pytest.raises(StudyError, match="at least one point with finite scores"):
        pareto.knee([[np.nan, 1]])


FRONT = np.array([[0.9, 0.2], [0.85, 0.5], [0.8, 0.6], [0.4, 0.9], [0.3, 0.3]])
NAMES = ("maths", "code")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"weights": {"maths": 1}}, 0),
        ({"weights": {"maths": 1, "code": 1}}, 2),
        ({"weights": {"code": 0.1}}, 3),
        ({"floors": {"maths": 0.8}}, 2),
        ({"floors": {"maths": 0.8}, "best": "maths"}, 0),
        ({"floors": {"maths": 0.85, "code": 0.3}}, 1),
        ({"wish": {"maths": 0.9, "code": 0.5}}, 1),
        ({"wish": {"code": 0.89}}, 3),
    ],
)
def test_pick(how, expected):
    assert pareto.pick(FRONT, NAMES, **how) == expected


def test_pick_takes_the_better_mean_among_equals():
    assert pareto.pick([[1, 0], [1, 0.5], [0, 1]], NAMES, weights={"maths": 1}) == 1
    assert pareto.pick([[1, 0], [0, 1]], NAMES, weights={"maths": 1, "code": 1}) == 0


@pytest.mark.parametrize("way", ["weights", "floors", "wish"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pick_refuses_numbers_that_are_not_finite(way, number):
    with pytest.raises(StudyError, match=rf"pick: {way.rstrip('s')} code={number:g}; expected a "):
        pareto.pick(FRONT, NAMES, **{way: {"maths": 0.5, "code": number}})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": {"maths": 1, "code": -0.1}}, "weight code=-0.1; expected a number of 0 or more"),
        ({"weights": {"maths": 0, "code": 0}}, "all weights are 0; expected at least one above 0, such as maths=1"),
        ({"weights": {"mats": 1}}, "unknown objective `mats`; did you mean `maths`?"),
        ({"floors": {"maths": 0.1}, "best": "cod"}, "unknown objective `cod`; did you mean `code`?"),
        ({"weights": {"maths": 1}, "best": "code"}, "`best` (code) goes with floors"),
        (
            {"floors": {"maths": 0.8, "code": 0.65}},
            "no point of the front has maths ≥ 0.8 and code ≥ 0.65; the nearest has maths 0.8, code 0.6",
        ),
    ],
)
def test_pick_says_what_to_type(how, message):
    with pytest.raises(StudyError) as caught:
        pareto.pick(FRONT, NAMES, **how)
    assert message in str(caught.value)


def test_subset_takes_the_largest_gain_first_and_stops_when_nothing_adds():
    points = [[1, 4], [3, 3], [4, 1], [2, 2], [3, 3]]
    # (3, 3) dominates 9; then (1, 4) and (4, 1) add 1 each.
    assert pareto.subset(points, [0, 0], 2).tolist() == [1, 0]
    assert pareto.subset(points, [0, 0], 9).tolist() == [1, 0, 2]
    assert pareto.subset(np.empty((0, 2)), [0, 0], 3).tolist() == []


@given(clouds, st.integers(1, 3))
def test_subset_has_most_of_the_best_choices_volume(points, size):
    reference = np.zeros(points.shape[1])
    volume = pareto.hypervolume(points[pareto.subset(points, reference, size)], reference)
    choices = itertools.combinations(range(len(points)), min(size, len(points)))
    best = max((pareto.hypervolume(points[list(choice)], reference) for choice in choices), default=0)
    assert volume >= (1 - 1 / np.e) * best - 1e-9


CONCAVE = np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0], [0.2, 0.2]])


def test_tchebycheff_reaches_a_concave_front_and_weighted_sums_do_not():
    # By hand: equal weights make the worst gaps 0.5, 0.3 and 0.5; nine to one makes them 0.9, 0.54 and 0.1.
    assert pareto.tchebycheff(CONCAVE, NAMES, {"maths": 1, "code": 1}) == 1
    assert pareto.tchebycheff(CONCAVE, NAMES, {"maths": 9, "code": 1}) == 2
    sums = {pareto.pick(CONCAVE, NAMES, weights={"maths": w, "code": 1 - w}) for w in np.linspace(0.01, 0.99, 50)}
    assert sums == {0, 2}


def test_tchebycheff_breaks_ties_of_the_largest_gap_by_the_sum_of_gaps():
    # By hand: the fourth and the fifth have the worst gap 0.25, and gaps of 1.5 and 1.2 together.
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0.5, 0.9, 0.4]])
    assert pareto.tchebycheff(points, ["a", "b", "c"], {"a": 1, "b": 1}) == 4


def test_tchebycheff_is_in_units_of_the_front_and_ignores_dominated_points():
    scaled = CONCAVE * [1000, 0.001] + [5, -7]
    assert pareto.tchebycheff(scaled, NAMES, {"maths": 1, "code": 1}) == 1
    worse = np.concatenate([CONCAVE, [[-50.0, -50.0]]])  # would stretch the range, were it in the front
    assert pareto.tchebycheff(worse, NAMES, {"maths": 9, "code": 1}) == 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12))
def test_tchebycheff_chooses_from_the_front(scores):
    points = np.array(scores, dtype=float)
    row = pareto.tchebycheff(points, NAMES, {"maths": 2, "code": 3})
    assert pareto.nondominated(points)[row]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"math": 1}, "did you mean `maths`?"),
        ({"maths": -1}, "maths=-1; expected a number of 0 or more"),
        ({"maths": float("nan")}, "expected a number of 0 or more"),
        ({"maths": 0, "code": 0}, "all Tchebycheff weights are 0"),
    ],
)
def test_invalid_tchebycheff_weights_are_refused(weights, message):
    with pytest.raises(StudyError, match=message.replace("?", r"\?")):
        pareto.tchebycheff(CONCAVE, NAMES, weights)
