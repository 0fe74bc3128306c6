"""No example of a recipe is scored twice, except after a failure."""

from collections import Counter, deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge import recipe
from evomerge.errors import EvaluatorError
from evomerge.evaluate import CachingEvaluator, Evaluator, Serial, Worker
from evomerge.testing import EvaluatorSuite
from evomerge.trial import Evaluation, Proposal

BASE, EXPERT = recipe.base(), recipe.expert("maths")
SIZES = {"search": {"a": 4, "b": 2}, "report": {"a": 1, "b": 1}}


class Counting(Evaluator):
    """Gives each example of a recipe a distinct score, or fails with the next of `errors`, and counts."""

    slots = 3

    def __init__(self, *errors):
        self.lineage = {}
        self.errors = deque(errors)
        self.queue = deque()
        self.evaluated = []
        self.scored = Counter()
        self.closed = False

    def submit(self, proposal):
        self.queue.append(proposal)

    def wait(self):
        proposal = self.queue.popleft()
        self.evaluated.append(proposal.number)
        if self.errors and (error := self.errors.popleft()):
            return proposal.number, Evaluation(error=error, seconds={"score": 1.0})
        asked = asked_for(proposal).items()
        self.scored.update((proposal.recipe.id, task, i) for task, indices in asked for i in indices)
        return proposal.number, replace(truth(proposal), seconds={"score": 1.0})

    def close(self):
        self.closed = True


def asked_for(proposal):
    complete = {task: tuple(range(size)) for task, size in SIZES["search"].items()}
    return complete if proposal.examples is None else proposal.examples


def truth(proposal):
    mark = int(proposal.recipe.id[:4], 16)
    return Evaluation(
        {
            f"{task}/{metric}": np.array([mark + 10 * i + (task == "b") + sign for i in numbers], np.float32)
            for task, numbers in asked_for(proposal).items()
            for metric, sign in (("m", 0), ("k", 0.5))
        }
    )


@pytest.fixture
def evaluator(setup, sizes):
    with CachingEvaluator(Serial(setup), sizes) as evaluator:
        yield evaluator


class TestCachingEvaluator(EvaluatorSuite):
    pass


def test_cached_recipes_are_answered_without_evaluation():
    inner = Counting()
    with CachingEvaluator(inner) as evaluator:
        evaluator.submit(Proposal(0, BASE))
        first = evaluator.wait()[1]
        evaluator.submit(Proposal(1, BASE))
        number, second = evaluator.wait()
    assert number == 1
    assert second.to_json() == first.to_json()
    assert (first.seconds, second.seconds) == ({"score": 1.0}, {})
    assert inner.evaluated == [0]
    assert inner.closed


def test_splits_are_cached_separately():
    inner = Counting()
    evaluator = CachingEvaluator(inner)
    for number, split in enumerate(("search", "report", "report")):
        evaluator.submit(Proposal(number, BASE, split=split))
        evaluator.wait()
    assert inner.evaluated == [0, 1]


def test_equal_pending_recipes_are_evaluated_once():
    inner = Counting()
    evaluator = CachingEvaluator(inner)
    for number, what in enumerate((BASE, EXPERT, BASE, BASE)):
        evaluator.submit(Proposal(number, what))
    assert sorted(evaluator.wait()[0] for _ in range(4)) == [0, 1, 2, 3]
    assert inner.evaluated == [0, 1]


def test_failures_are_not_cached():
    inner = Counting("out of memory", None)
    evaluator = CachingEvaluator(inner)
    for number, error in enumerate(("out of memory", None, None)):
        evaluator.submit(Proposal(number, BASE))
        assert evaluator.wait()[1].error == error
    assert inner.evaluated == [0, 1]


def test_equal_pending_recipes_share_a_failure():
    inner = Counting("out of memory")
    evaluator = CachingEvaluator(inner)
    evaluator.submit(Proposal(0, BASE))
    evaluator.submit(Proposal(1, BASE))
    assert [evaluator.wait()[1].error for _ in range(2)] == ["out of memory"] * 2


def test_seeded_evaluations_are_cached():
    inner = Counting()
    evaluator = CachingEvaluator(inner)
    evaluator.seed(BASE.id, "search", Evaluation({"a/m": np.zeros(4, np.float32)}))
    evaluator.seed(EXPERT.id, "search", Evaluation(error="out of memory"))
    evaluator.submit(Proposal(0, BASE))
    evaluator.submit(Proposal(1, EXPERT))
    assert evaluator.wait()[1].means(["a/m"]) == 0
    assert evaluator.wait()[1].to_json() == truth(Proposal(1, EXPERT)).to_json()
    assert inner.evaluated == [1]


PARTS = st.fixed_dictionaries(
    {}, optional={task: st.permutations(range(size)).flatmap(lambda order: st.integers(1, len(order)).map(lambda k: tuple(order[:k]))) for task, size in SIZES["search"].items()}
)  # fmt: skip
PROPOSED = st.lists(st.tuples(st.sampled_from([BASE, EXPERT]), st.none() | PARTS, st.booleans()), max_size=12)


@given(PROPOSED)
def test_every_example_is_scored_once_and_every_answer_has_the_asked_examples(proposed):
    inner = Counting()
    evaluator = CachingEvaluator(inner, SIZES)
    pending = {}
    for number, (what, examples, then_wait) in enumerate(proposed):
        pending[number] = Proposal(number, what, examples=examples)
        evaluator.submit(pending[number])
        if then_wait or number == len(proposed) - 1:
            for _ in range(len(pending)):
                back, evaluation = evaluator.wait()
                assert evaluation.to_json() == truth(pending.pop(back)).to_json()
    wanted = {
        (what.id, task, i)
        for number, (what, examples, _) in enumerate(proposed)
        for task, numbers in asked_for(Proposal(number, what, examples=examples)).items()
        for i in numbers
    }
    assert set(inner.scored) == wanted
    assert set(inner.scored.values()) <= {1}


def test_seeded_parts_are_cached():
    inner = Counting()
    evaluator = CachingEvaluator(inner, SIZES)
    for examples in ({"a": (3, 1)}, {"b": (0, 1)}):
        evaluator.seed(BASE.id, "search", truth(Proposal(0, BASE, examples=examples)), examples)
    evaluator.submit(Proposal(0, BASE, examples={"b": (1,), "a": (1, 3)}))
    assert evaluator.wait()[1].to_json() == truth(Proposal(0, BASE, examples={"b": (1,), "a": (1, 3)})).to_json()
    assert not inner.scored
    evaluator.submit(Proposal(1, BASE))
    assert evaluator.wait()[1].to_json() == truth(Proposal(1, BASE)).to_json()
    assert sorted(inner.scored) == [(BASE.id, "a", 0), (BASE.id, "a", 2)]


def test_failed_part_fails_waiting_proposals_and_is_tried_again_later():
    inner = Counting("out of memory")
    evaluator = CachingEvaluator(inner, SIZES)
    evaluator.submit(Proposal(0, BASE, examples={"a": (0,)}))
    evaluator.submit(Proposal(1, BASE))
    assert [evaluator.wait()[1].error for _ in range(2)] == ["out of memory"] * 2
    evaluator.submit(Proposal(2, BASE))
    assert evaluator.wait()[1].to_json() == truth(Proposal(2, BASE)).to_json()


def test_parts_without_sizes_are_refused():
    with pytest.raises(EvaluatorError, match=r"expected `sizes`.*CachingEvaluator\(evaluator, sizes\)"):
        CachingEvaluator(Counting()).submit(Proposal(0, BASE, examples={"a": (0,)}))


def test_assembled_parts_equal_a_full_evaluation_up_to_rounding(setup, sizes):
    mean = recipe.merge("task_arithmetic", list(setup.experts), {"lambda": 0.3})
    full = Worker(setup).evaluate(mean)
    with CachingEvaluator(Serial(setup), sizes) as evaluator:
        orders = {task: np.random.default_rng(0).permutation(size) for task, size in sizes["search"].items()}
        for number, (start, stop) in enumerate([(0, 1), (1, 30), (30, None)]):
            examples = {task: tuple(order[start:stop].tolist()) for task, order in orders.items()}
            evaluator.submit(Proposal(number, mean, examples=examples))
            assert evaluator.wait()[1].error is None
        evaluator.submit(Proposal(3, mean))
        _, assembled = evaluator.wait()
    assert assembled.seconds == {}  # nothing was left to score
    assert assembled.scores.keys() == full.scores.keys()
    for name, vector in assembled.scores.items():
        np.testing.assert_allclose(vector, full.scores[name], rtol=1e-4, atol=1e-5)
