"""No recipe is evaluated twice, unless it failed."""

from collections import deque

import numpy as np
import pytest

from evomerge import recipe
from evomerge.evaluate import Evaluator, Remembering, Serial
from evomerge.testing import EvaluatorSuite
from evomerge.trial import Evaluation, Proposal


class Counting(Evaluator):
    """Scores 1, or fails, and counts."""

    slots = 3

    def __init__(self, *errors):
        self.lineage = {}
        self.errors = deque(errors)
        self.line = deque()
        self.evaluated = []
        self.closed = False

    def submit(self, proposal):
        self.line.append(proposal)

    def wait(self):
        proposal = self.line.popleft()
        self.evaluated.append(proposal.number)
        error = self.errors.popleft() if self.errors else None
        scores = {} if error else {"t/m": np.ones(2, np.float32)}
        return proposal.number, Evaluation(scores, error, seconds={"score": 1.0})

    def close(self):
        self.closed = True


BASE, EXPERT = recipe.base(), recipe.expert("maths")


@pytest.fixture
def evaluator(setup):
    with Remembering(Serial(setup)) as evaluator:
        yield evaluator


class TestRemembering(EvaluatorSuite):
    pass


def test_known_recipes_are_answered_without_evaluation():
    inner = Counting()
    with Remembering(inner) as evaluator:
        evaluator.submit(Proposal(0, BASE))
        first = evaluator.wait()[1]
        evaluator.submit(Proposal(1, BASE))
        number, second = evaluator.wait()
    assert number == 1
    assert second.to_json() == first.to_json()
    assert (first.seconds, second.seconds) == ({"score": 1.0}, {})
    assert inner.evaluated == [0]
    assert inner.closed


def test_splits_are_told_apart():
    inner = Counting()
    evaluator = Remembering(inner)
    for number, split in enumerate(("search", "report", "report")):
        evaluator.submit(Proposal(number, BASE, split=split))
        evaluator.wait()
    assert inner.evaluated == [0, 1]


def test_equal_recipes_in_flight_are_evaluated_once():
    inner = Counting()
    evaluator = Remembering(inner)
    for number, what in enumerate((BASE, EXPERT, BASE, BASE)):
        evaluator.submit(Proposal(number, what))
    assert sorted(evaluator.wait()[0] for _ in range(4)) == [0, 1, 2, 3]
    assert inner.evaluated == [0, 1]


def test_failures_are_not_remembered():
    inner = Counting("out of memory", None)
    evaluator = Remembering(inner)
    for number, error in enumerate(("out of memory", None, None)):
        evaluator.submit(Proposal(number, BASE))
        assert evaluator.wait()[1].error == error
    assert inner.evaluated == [0, 1]


def test_equal_recipes_in_flight_share_a_failure():
    inner = Counting("out of memory")
    evaluator = Remembering(inner)
    evaluator.submit(Proposal(0, BASE))
    evaluator.submit(Proposal(1, BASE))
    assert [evaluator.wait()[1].error for _ in range(2)] == ["out of memory"] * 2


def test_what_the_study_knows_is_known():
    inner = Counting()
    evaluator = Remembering(inner)
    evaluator.know(BASE.id, "search", Evaluation({"t/m": np.zeros(2, np.float32)}))
    evaluator.know(EXPERT.id, "search", Evaluation(error="out of memory"))
    evaluator.submit(Proposal(0, BASE))
    evaluator.submit(Proposal(1, EXPERT))
    assert evaluator.wait()[1].means(["t/m"]) == 0
    assert evaluator.wait()[1].means(["t/m"]) == 1
    assert inner.evaluated == [1]
