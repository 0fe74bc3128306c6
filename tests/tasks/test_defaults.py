"""Settings that tasks share are below what a task says itself."""

import pytest

from evomerge.errors import TaskError
from evomerge.tasks import complete


def test_defaults_and_same_as_are_below_what_a_task_says_itself():
    tasks = {
        "a": {"kind": "x", "batch": 4},
        "b": {"same_as": "a", "metric": "m"},
        "c": {"kind": "y"},
        "d": {"same_as": "z"},
    }
    found = complete(tasks, {"batch": 16, "limit": 8}, {"c": {"file": "c", "limit": 1}, "z": {"file": "z"}})
    assert found == {
        "a": {"kind": "x", "batch": 4, "limit": 8},
        "b": {"kind": "x", "batch": 4, "limit": 8, "metric": "m"},
        "c": {"kind": "y", "file": "c", "batch": 16, "limit": 8},
        "d": {"file": "z", "batch": 16, "limit": 8},
    }
    assert tasks["b"] == {"same_as": "a", "metric": "m"}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("aa", "task `b`: `same_as` is `aa`, and there is no such other task; "),
        ("b", "task `b`: `same_as` is `b`, and there is no such other task; "),
        ("c", "`same_as` is `c`, which is itself the same as `a`; type that"),
    ],
)
def test_same_as_names_another_task(other, says):
    with pytest.raises(TaskError, match=says):
        complete({"a": {}, "b": {"same_as": other}, "c": {"same_as": "a"}}, {})
