import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.choose import Preference, tchebycheff

INWARDS = np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0], [0.2, 0.2]])
NAMES = ["maths", "code"]


def test_tchebycheff_reaches_the_point_where_a_front_bends_inwards_and_no_weighted_sum_does():
    # By hand: equal weights make the worst gaps 0.5, 0.3 and 0.5; nine to one makes them 0.9, 0.54 and 0.1.
    assert tchebycheff(INWARDS, NAMES, {"maths": 1, "code": 1}) == 1
    assert tchebycheff(INWARDS, NAMES, {"maths": 9, "code": 1}) == 2
    sums = {pareto.pick(INWARDS, NAMES, weights={"maths": w, "code": 1 - w}) for w in np.linspace(0.01, 0.99, 50)}
    assert sums == {0, 2}


def test_tchebycheff_tells_points_of_one_worst_gap_apart_by_their_sum():
    # By hand: the fourth and the fifth have the worst gap 0.25, and gaps of 1.5 and 1.2 together.
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0.5, 0.9, 0.4]])
    assert tchebycheff(points, ["a", "b", "c"], {"a": 1, "b": 1}) == 4


def test_tchebycheff_is_in_units_of_the_front_and_does_not_see_what_is_dominated():
    scaled = INWARDS * [1000, 0.001] + [5, -7]
    assert tchebycheff(scaled, NAMES, {"maths": 1, "code": 1}) == 1
    worse = np.concatenate([INWARDS, [[-50.0, -50.0]]])  # would stretch the range, were it in the front
    assert tchebycheff(worse, NAMES, {"maths": 9, "code": 1}) == 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12))
def test_tchebycheff_chooses_from_the_front(scores):
    points = np.array(scores, dtype=float)
    row = tchebycheff(points, NAMES, {"maths": 2, "code": 3})
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
def test_tchebycheff_weights_that_say_nothing_are_refused(weights, message):
    with pytest.raises(StudyError, match=message.replace("?", r"\?")):
        tchebycheff(INWARDS, NAMES, weights)


def test_each_preference_is_answered_by_its_rule_and_none_by_the_best_mean():
    points = np.array([[0.0, 1.0], [0.6, 0.7], [1.0, 0.0]])
    assert Preference().row(points, NAMES) == 1
    assert Preference(weights={"maths": 1}).row(points, NAMES) == 2
    assert Preference(floors={"maths": 0.5}, best="code").row(points, NAMES) == 1
    assert Preference(wish={"maths": 0.1, "code": 1}).row(points, NAMES) == 0
    assert Preference(tchebycheff={"code": 1}).row(points, NAMES) == 0
    assert Preference(knee=True).row(points, NAMES) == pareto.knee(points) == 1


@pytest.mark.parametrize(
    "two",
    [
        {"knee": True, "weights": {"maths": 1}},
        {"knee": True, "best": "maths"},
        {"tchebycheff": {"maths": 1}, "wish": {"maths": 1}},
        {"weights": {"maths": 1}, "floors": {"code": 0.5}},
    ],
)
def test_two_preferences_are_refused(two):
    with pytest.raises(StudyError, match="expected one of knee, tchebycheff, weights, floors and wish, got"):
        Preference(**two).row(INWARDS, NAMES)
    with pytest.raises(StudyError, match=r"`best` .* goes with floors|expected exactly one"):
        Preference(best="maths").row(INWARDS, NAMES)
