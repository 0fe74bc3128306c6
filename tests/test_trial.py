"""Proposals and evaluations keep every bit in JSON, and parts of scores add up."""

import json

import numpy as np
import pytest
from hypothesis import given
from strategies import evaluations

from evomerge.errors import EvaluatorError
from evomerge.trial import Evaluation, ScoreTable


@given(evaluations)
def test_scores_travel_bit_for_bit(scores):
    found = Evaluation.from_json(json.loads(json.dumps(Evaluation(scores=scores).to_json(), allow_nan=False)))
    assert found.error is None
    assert found.scores.keys() == scores.keys()
    for name, vector in scores.items():
        assert found.scores[name].dtype == np.float32
        assert found.scores[name].tobytes() == vector.tobytes()


def test_errors_travel_without_scores():
    evaluation = Evaluation(error="out of memory", scores={"a": np.zeros(2, np.float32)}, seconds={"merge": 1.0})
    assert evaluation.to_json() == {"error": "out of memory"}
    assert Evaluation.from_json(evaluation.to_json()).error == "out of memory"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x \ud800 y", r"x \ud800 y"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\x9bc\x7f", r"a\rb\x9bc\x7f"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("äöü\tzwei\nlines 🙂", "äöü\tzwei\nlines 🙂"),
        ("\x1b" * 10_000, r"\x1b" * 250),
    ],
)
def test_an_error_can_always_be_recorded_and_printed_to_a_terminal(text, kept):
    evaluation = Evaluation(error=text)
    assert evaluation.error == kept
    assert Evaluation.from_json(evaluation.to_json()).error == kept
    assert len(kept.encode()) <= 1100


def test_order_of_metrics_does_not_change_the_record():
    one, other = np.ones(2, np.float32), np.zeros(3, np.float32)
    forward = json.dumps(Evaluation(scores={"a": one, "b": other}).to_json())
    assert forward == json.dumps(Evaluation(scores={"b": other, "a": one}).to_json())


def test_time_is_not_recorded():
    assert Evaluation(scores={}, seconds={"merge": 1.0}).to_json() == {"scores": {}}


def test_outputs_come_back_with_their_bytes_and_shape():
    table = np.array([[1, 0.1], [np.pi, -2], [3, 1e-30]], np.float32)
    outputs = {"t/other": table[:, :1], "t/margins": table}
    found = Evaluation.from_json(json.loads(json.dumps(Evaluation(outputs=outputs).to_json()))).outputs
    assert found.keys() == outputs.keys()
    for name, expected in outputs.items():
        assert found[name].shape == expected.shape
        assert found[name].tobytes() == expected.tobytes()


def test_parts_of_outputs_and_scores_are_assembled():
    scores, table = np.arange(4, dtype=np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
    known = ScoreTable({"a": 4})
    for part in ((3, 1), (0, 2)):
        known.add({"a": part}, Evaluation({"a/m": scores[list(part)]}, outputs={"a/margins": table[list(part)]}))
    whole = known.take()
    np.testing.assert_array_equal(whole.scores["a/m"], scores)
    np.testing.assert_array_equal(whole.outputs["a/margins"], table)
    np.testing.assert_array_equal(known.take({"a": (2, 1)}).outputs["a/margins"], table[[2, 1]])


def test_means_are_in_the_order_of_the_objectives():
    scores = {"a": np.array([1, 2], np.float32), "b": np.array([1e8, 1, -1e8], np.float32)}
    found = Evaluation(scores=scores).means(["b", "a"])
    assert found.dtype == np.float64
    assert found.tolist() == [pytest.approx(1 / 3), 1.5]  # in float32 the 1 would be lost


def test_means_of_a_failure_are_nan():
    assert np.isnan(Evaluation(error="killed").means(["a", "b"])).all()


def test_parts_add_up_to_a_complete_table_with_the_missing_examples_listed():
    known = ScoreTable({"a": 3, "b": 2})
    known.add({"a": (2, 0)}, Evaluation({"a/m": np.array([2, 0.5], np.float32)}))
    assert known.missing({"a": (1, 2), "b": (1,)}) == {"a": (1,), "b": (1,)}
    assert known.missing(None) == {"a": (1,), "b": (0, 1)}
    assert known.take({"a": (0, 2)}).scores["a/m"].tolist() == [0.5, 2]
    rest = {"a/m": np.array([7, 1], np.float32), "b/k": np.array([4, 3], np.float32)}
    known.add({"a": (2, 1), "b": (1, 0)}, Evaluation(rest))  # example 2 again: its first score stays
    assert known.complete
    assert {name: vector.tolist() for name, vector in known.take().scores.items()} == {
        "a/m": [0.5, 1, 2],
        "b/k": [3, 4],
    }


@pytest.mark.parametrize(
    "scores", [{}, {"a/m": [1.0]}, {"a/m": [[1.0], [2.0]]}, {"a/k": [1.0, 2.0]}, {"a/m": [1.0, 2.0], "a/k": [1.0, 2.0]}]
)
def test_scores_of_other_examples_or_metrics_are_refused(scores):
    known = ScoreTable({"a": 3})
    known.add({"a": (2,)}, Evaluation({"a/m": np.ones(1, np.float32)}))
    evaluation = Evaluation({name: np.array(vector, np.float32) for name, vector in scores.items()})
    with pytest.raises(EvaluatorError, match=r"task `a`: expected a score for each of 2 examples.*\['a/m'\]"):
        known.add({"a": (0, 1)}, evaluation)
