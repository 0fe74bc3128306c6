"""Worker processes give the same scores as this one, even if some of them die."""

import dataclasses
import os
from collections import deque
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from evomerge import recipe
from evomerge.checkpoints.members import Members
from evomerge.errors import EvaluatorError
from evomerge.evaluate import Worker, make
from evomerge.evaluate.ray import RayEvaluator
from evomerge.evaluate.ray import evaluator as module
from evomerge.evaluate.ray.evaluator import _Slot
from evomerge.testing import EvaluatorSuite
from evomerge.trial import Proposal

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
DEADLINE = 3.0


@pytest.fixture(scope="module")
def evaluator(setup, cluster, tmp_path_factory):
    """Two workers that share hidden states and keep candidates: neither changes a score."""
    members = tmp_path_factory.mktemp("evaluator") / "members"
    evaluator = make(dataclasses.replace(setup, shared_mib=64, members=str(members)), 2)
    yield evaluator
    evaluator.close()
    evaluator.close()


class TestRay(EvaluatorSuite):
    pass


def test_workers_are_as_nice_as_the_driver(evaluator):
    @ray.remote(num_cpus=0)
    def niceness():
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)


def merge(scale):
    return recipe.merge("task_arithmetic", ["turned", "inverted"], {"lambda": scale})


FAULTS = {
    "kill once": merge(0.1),
    "terminate once": merge(0.2),
    "kill": merge(0.4),
    "hang in a lock": merge(0.5),
    "raise": merge(0.6),
    "unpicklable": merge(0.7),
    "exit": merge(0.8),
    "nan": merge(0.9),
}
GOOD = (recipe.base(), recipe.expert("shifted"), merge(1.0), merge(1.1))


@pytest.fixture(scope="module")
def storm(faulty, plan_faults, cluster):
    """Evaluations of candidates with every kind of fault, and of good ones, by recipe."""
    plan_faults({candidate: fault for fault, candidate in FAULTS.items()})
    candidates = [*FAULTS.values(), *GOOD]
    evaluations = {}
    with make(faulty, 2, deadline=DEADLINE) as evaluator:
        for number, candidate in enumerate(candidates):
            evaluator.submit(Proposal(number, candidate))
        for _ in candidates:
            number, evaluation = evaluator.wait()
            assert number not in evaluations
            evaluations[number] = evaluation
    return {candidate: evaluations[number] for number, candidate in enumerate(candidates)}


@pytest.fixture(scope="module")
def calm(storm, faulty, plan_faults):
    """Evaluations of the same candidates in this process without faults."""
    plan_faults({})
    worker = Worker(faulty)
    return {candidate: worker.evaluate(candidate) for candidate in storm}


@pytest.mark.parametrize("fault", ["kill once", "terminate once"])
def test_temporary_fault_changes_no_score(storm, calm, fault):
    assert storm[FAULTS[fault]].to_json() == calm[FAULTS[fault]].to_json()
    assert storm[FAULTS[fault]].error is None


def test_other_candidates_are_unaffected(storm, calm):
    for candidate in GOOD:
        assert storm[candidate].error is None
        assert storm[candidate].to_json() == calm[candidate].to_json()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("kill", "worker died 3 times on this candidate: ActorDiedError"),
        ("hang in a lock", f"no result within the deadline of {DEADLINE:g} seconds, twice"),
        ("raise", "ValueError: the answer is at <object at 0x…>"),
        ("unpicklable", "UnpicklableError"),
        ("exit", "SystemExit: 3"),
    ],
)
def test_permanent_fault_is_the_candidates_error(storm, fault, error):
    assert storm[FAULTS[fault]].error == error


def test_score_that_is_not_finite_is_the_candidates_error(storm):
    assert "`faults`" in storm[FAULTS["nan"]].error


def test_bad_setup_is_an_exception(setup):
    with RayEvaluator(dataclasses.replace(setup, tasks={"turned": {"kind": "nothing"}}), 1) as evaluator:
        evaluator.submit(Proposal(0, recipe.base()))
        with pytest.raises(EvaluatorError, match="workers cannot start: TaskError"):
            evaluator.wait()


def test_workers_that_never_start_are_an_exception(setup, monkeypatch):
    class Dying:
        def __init__(self, setup, digests):
            os._exit(1)

        def node(self):
            return None

    monkeypatch.setattr(module, "_ACTOR", ray.remote(max_restarts=0)(Dying))
    with RayEvaluator(setup, 2) as evaluator:
        evaluator.submit(Proposal(0, recipe.base()))
        with pytest.raises(EvaluatorError, match="3 workers in a row did not start"):
            evaluator.wait()


def test_more_workers_than_the_cluster_holds_are_refused(setup):
    with pytest.raises(EvaluatorError, match="type --workers 4"):
        make(setup, 5)


def stack(*names):
    slots = [{"source": name, "layer": layer} for layer, name in enumerate(names)]
    return recipe.Recipe.parse({"stack": {"slots": slots, "rest": "base"}})


STACKS = (
    stack("turned", "turned"),
    stack("inverted", "turned"),
    stack("inverted", "inverted"),
    stack("turned", "inverted"),
)


def test_stack_goes_to_the_free_worker_with_most_layers_in_common():
    evaluator = RayEvaluator.__new__(RayEvaluator)  # without processes, so that the choice does not depend on time
    evaluator._queue, evaluator.lineage, evaluator._members, evaluator._deadline = deque(), {}, Members(0), 1.0
    evaluator._too_small = None
    one, two = evaluator._slots = [_Slot(actor=Mock()), _Slot(actor=Mock())]

    def submit(number):
        evaluator.submit(Proposal(number, STACKS[number]))
        return [slot.proposal and slot.proposal.number for slot in (one, two)]

    assert submit(0) == [0, None]
    assert submit(1) == [0, 1]
    assert submit(2) == [0, 1]  # no slot is free
    assert submit(3) == [0, 1]
    two.proposal = two.future = None
    evaluator._dispatch()
    assert two.proposal.number == 2
    one.proposal = one.future = None
    evaluator._dispatch()
    assert one.proposal.number == 3
    one.proposal = one.future = two.proposal = two.future = None
    assert submit(1) == [None, 1]  # the second slot had this stack


def test_stacks_score_the_same_on_workers_that_share_hidden_states(evaluator, setup):
    worker = Worker(setup)
    for number, candidate in enumerate(STACKS):
        evaluator.submit(Proposal(number, candidate))
    evaluations = dict(evaluator.wait() for _ in STACKS)
    for number, candidate in enumerate(STACKS):
        assert evaluations[number].error is None
        assert evaluations[number].to_json() == worker.evaluate(candidate).to_json()


def test_children_score_the_same_on_any_worker_and_without_their_parents_weights(evaluator, setup, generations):
    worker = Worker(setup)
    for number, candidate in enumerate(generations):
        evaluator.lineage[candidate.id] = worker.members.lineage[candidate.id] = candidate
        evaluator.submit(Proposal(number, candidate))
        _, evaluation = evaluator.wait()
        assert evaluation.error is None
        assert evaluation.to_json() == worker.evaluate(candidate).to_json()
        evaluator.retain({candidate.id} if number % 2 else {candidate.id, generations[number - 1].id})
    folder = Path(evaluator._setup.members)
    assert {path.stem for path in folder.glob("*.safetensors")} == {generations[-1].id}
