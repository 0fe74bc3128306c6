"""Worker processes give the same scores as this one, whatever happens to them."""

import dataclasses
import os
from collections import deque
from unittest.mock import Mock

import pytest
import ray

import evomerge.evaluate.ray
from evomerge import recipe
from evomerge.checkpoints.members import Members
from evomerge.errors import EvaluatorError
from evomerge.evaluate import Worker, make
from evomerge.evaluate.ray import RayEvaluator, _Slot, connect
from evomerge.testing import EvaluatorSuite
from evomerge.trial import Proposal

pytestmark = pytest.mark.ray
DEADLINE = 3.0


@pytest.fixture(scope="session", autouse=True)
def cluster():
    """One cluster for all: starting it takes ten seconds."""
    assert connect(cpus=4)  # room for two evaluators at a time
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def evaluator(setup):
    evaluator = make(setup, 2)
    yield evaluator
    evaluator.close()
    evaluator.close()


class TestRay(EvaluatorSuite):
    pass


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
def storm(faulty, plan_faults):
    """What becomes of candidates with every kind of fault, and of good ones between them, by recipe."""
    plan_faults({candidate: fault for fault, candidate in FAULTS.items()})
    candidates = [*FAULTS.values(), *GOOD]
    found = {}
    with make(faulty, 2, deadline=DEADLINE) as evaluator:
        for number, candidate in enumerate(candidates):
            evaluator.submit(Proposal(number, candidate))
        for _ in candidates:
            number, evaluation = evaluator.wait()
            assert number not in found
            found[number] = evaluation
    return {candidate: found[number] for number, candidate in enumerate(candidates)}


@pytest.fixture(scope="module")
def calm(storm, faulty, plan_faults):
    """What becomes of the same candidates in this process when nothing happens."""
    plan_faults({})
    worker = Worker(faulty)
    return {candidate: worker.evaluate(candidate) for candidate in storm}


@pytest.mark.parametrize("fault", ["kill once", "terminate once"])
def test_fault_that_passes_leaves_no_trace(storm, calm, fault):
    assert storm[FAULTS[fault]].to_json() == calm[FAULTS[fault]].to_json()
    assert storm[FAULTS[fault]].error is None


def test_the_rest_completes_as_if_nothing_happened(storm, calm):
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
def test_fault_that_stays_is_the_candidates_error(storm, fault, error):
    assert storm[FAULTS[fault]].error == error


def test_score_that_is_not_finite_is_the_candidates_error(storm):
    assert "`faults`" in storm[FAULTS["nan"]].error


def test_bad_setup_is_an_exception(setup):
    with RayEvaluator(dataclasses.replace(setup, tasks={"turned": {"kind": "nothing"}}), 1) as evaluator:
        evaluator.submit(Proposal(0, recipe.base()))
        with pytest.raises(EvaluatorError, match="workers cannot start: TaskError"):
            evaluator.wait()


def test_workers_that_never_start_are_an_exception(setup, monkeypatch):
    class Stillborn:
        def __init__(self, setup):
            os._exit(1)

        def prepare(self):
            return None

    monkeypatch.setattr(evomerge.evaluate.ray, "_ACTOR", ray.remote(max_restarts=0)(Stillborn))
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


def test_stack_goes_to_the_free_worker_that_had_one_which_begins_alike():
    evaluator = RayEvaluator.__new__(RayEvaluator)  # without its processes: whom it chooses is no matter of time
    evaluator._queue, evaluator.lineage, evaluator._members = deque(), {}, Members(0)
    one, two = evaluator._slots = [_Slot(actor=Mock()), _Slot(actor=Mock())]

    def submit(number):
        evaluator.submit(Proposal(number, STACKS[number]))
        return [slot.job and slot.job.proposal.number for slot in (one, two)]

    assert submit(0) == [0, None]
    assert submit(1) == [0, 1]
    assert submit(2) == [0, 1]  # nobody is free: it waits
    assert submit(3) == [0, 1]
    two.job = two.future = None
    evaluator._dispatch()
    assert two.job.proposal.number == 2
    one.job = one.future = None
    evaluator._dispatch()
    assert one.job.proposal.number == 3
    one.job = one.future = two.job = two.future = None
    assert submit(1) == [None, 1]  # the second had it, whoever is first


def test_stacks_score_the_same_on_workers_that_share_hidden_states(setup):
    worker = Worker(setup)
    with RayEvaluator(dataclasses.replace(setup, shared_mib=64), 2) as evaluator:
        for number, candidate in enumerate(STACKS):
            evaluator.submit(Proposal(number, candidate))
        found = dict(evaluator.wait() for _ in STACKS)
    for number, candidate in enumerate(STACKS):
        assert found[number].error is None
        assert found[number].to_json() == worker.evaluate(candidate).to_json()


def test_children_score_the_same_on_any_worker_and_after_their_parents_weights_were_removed(setup, tmp_path):
    made = [recipe.expert("turned"), recipe.expert("inverted")]
    for weight in (0.3, 0.6, 0.5, 0.4):
        inputs = [{"member": one.id} for one in made[-2:]]
        data = {"merge": {"method": "linear", "inputs": inputs, "parameters": {"weight": weight}}}
        made.append(recipe.Recipe.parse(data))
    setup = dataclasses.replace(setup, members=str(tmp_path / "members"))
    worker = Worker(dataclasses.replace(setup, members=None))
    with RayEvaluator(setup, 2) as evaluator:
        for number, one in enumerate(made):
            evaluator.lineage[one.id] = worker.members.lineage[one.id] = one
            evaluator.submit(Proposal(number, one))
            _, evaluation = evaluator.wait()
            assert evaluation.error is None
            assert evaluation.to_json() == worker.evaluate(one).to_json()
            evaluator.retain({one.id} if number % 2 else {one.id, made[number - 1].id})
        assert {path.stem for path in (tmp_path / "members").glob("*.safetensors")} == {made[-1].id}
