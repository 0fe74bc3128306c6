"""The choice of a point of a front by a preference."""

import numpy as np
import pytest

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report.choose import Preference

CONCAVE = np.array([[0.0, 1.0], [0.4, 0.4], [1.0, 0.0], [0.2, 0.2]])
NAMES = ["maths", "code"]


def test_each_preference_has_its_rule_and_the_default_is_the_best_mean():
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
        Preference(**two).row(CONCAVE, NAMES)
    with pytest.raises(StudyError, match=r"`best` .* goes with floors|expected exactly one"):
        Preference(best="maths").row(CONCAVE, NAMES)
