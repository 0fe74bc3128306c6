"""Any failure to start, reach or size a Ray cluster is one `EvaluatorError` that says what to type. Ray is a stand-in here."""

import socket
import time
from unittest.mock import Mock

import pytest
import ray
from ray.exceptions import RaySystemError

from evomerge.errors import EvaluatorError
from evomerge.evaluate import Setup
from evomerge.evaluate.fleet import Fleet
from evomerge.evaluate.losses import ATTEMPTS, NODE, OUT_OF_MEMORY
from evomerge.evaluate.ray import RayEvaluator, check_reachable
from evomerge.evaluate.ray import evaluator as module
from evomerge.recipe import base
from evomerge.trial import Proposal

FAILURES = [
    Exception("The current node timed out during startup."),  # the class that Ray 2 raises, on a loaded machine
    RuntimeError("the GCS cannot be reached"),
    ConnectionError("refused"),
    RaySystemError("down"),
    SystemError("no shared memory"),
]
SETUP = Setup(base="base", experts={}, tasks={})


def node(name, labels=(), **resources):
    """A node as `ray.nodes()` has it."""
    return {"NodeID": name, "Alive": True, "Resources": resources, "Labels": {"ray.io/node-id": name, **dict(labels)}}


@pytest.fixture
def stand_in(monkeypatch):
    """A Ray that starts and has four CPUs, unless a test sets a failure."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    parts = {
        "is_initialized": Mock(return_value=False),
        "init": Mock(),
        "shutdown": Mock(),
        "nodes": Mock(return_value=[node("a", CPU=4.0)]),
        "kill": Mock(),
        "get_runtime_context": Mock(return_value=Mock(gcs_address="127.0.0.2:6379")),
    }
    for name, part in parts.items():
        monkeypatch.setattr(ray, name, part)
    monkeypatch.setattr(module, "_ACTOR", parts.setdefault("actor", Mock()))
    return parts


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("step", ["init", "nodes", "get_runtime_context", "actor"])
@pytest.mark.parametrize("address", ["local", "auto", "joined"])
def test_failure_is_one_error_and_leaves_no_connection(step, failure, address, stand_in, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    stand_in["is_initialized"].return_value = joined = address == "joined"
    (stand_in["actor"].options if step == "actor" else stand_in[step]).side_effect = failure
    if (address, step) in {("local", "get_runtime_context"), ("joined", "init")}:  # steps that are not taken
        RayEvaluator(SETUP, 2)
        return
    with pytest.raises(EvaluatorError, match=f"Ray cluster.*{type(failure).__name__}: .*type --workers 1") as error:
        RayEvaluator(SETUP, 2)
    assert error.value.__cause__ is failure
    assert stand_in["shutdown"].call_count == (0 if joined else 1)


def test_interrupt_during_start_passes(stand_in):
    stand_in["init"].side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        RayEvaluator(SETUP, 2)


def test_too_small_cluster_is_refused_and_left(stand_in):
    with pytest.raises(EvaluatorError, match=r"has 4 CPUs, 3 workers with 2 threads each need 6; type --workers 2$"):
        RayEvaluator(Setup(base="base", experts={}, tasks={}, threads=2), 3)
    stand_in["shutdown"].assert_called_once()


def on_gpus(gpus, device="cuda"):
    return Setup(base="base", experts={}, tasks={}, device=device, gpus=gpus)


@pytest.mark.parametrize(
    ("there", "gpus", "workers", "message"),
    [
        (0.0, 1.0, 2, "has 0 GPUs, 2 workers with `gpus: 1` need 2; type --workers 1, or `device: cpu`"),
        (
            2.0,
            1.0,
            3,
            "has 2 GPUs, 3 workers with `gpus: 1` need 3; type --workers 2, or a smaller share, such as `gpus: 0.5`",
        ),
        (2.0, 0.7, 3, "need 2.1; type --workers 2, or a smaller share"),  # a worker is on one GPU
    ],
)
def test_more_workers_than_gpus_are_refused(there, gpus, workers, message, stand_in):
    stand_in["nodes"].return_value = [node("a", CPU=8.0, GPU=there)]
    with pytest.raises(EvaluatorError, match=message):
        RayEvaluator(on_gpus(gpus), workers)


def test_workers_ask_for_their_share_and_see_one_gpu(stand_in):
    stand_in["nodes"].return_value = [node("a", CPU=8.0, GPU=1.0)]
    RayEvaluator(on_gpus(0.25, "cuda:0"), 4)
    options = stand_in["actor"].options
    assert [call.kwargs["num_gpus"] for call in options.call_args_list] == [0.25] * 4
    assert options.return_value.remote.call_args.args[0].device == "cuda"
    RayEvaluator(SETUP, 2)
    assert "num_gpus" not in options.call_args.kwargs


def test_a_gpu_of_a_number_is_refused_where_ray_chooses(stand_in):
    with pytest.raises(EvaluatorError, match=r"`device` is `cuda:1`.*type `device: cuda`, or --workers 1"):
        RayEvaluator(on_gpus(1.0, "cuda:1"), 2)


@pytest.fixture
def port():
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_address_at_which_nothing_listens_is_refused_before_ray_tries(address, port, stand_in, monkeypatch):
    check_reachable(address.format(port))
    monkeypatch.setenv("RAY_ADDRESS", address.format(1))
    with pytest.raises(
        EvaluatorError, match=r"no Ray cluster at `.*:1` \(RAY_ADDRESS\): .*refused; .*unset RAY_ADDRESS"
    ):
        RayEvaluator(SETUP, 2)
    assert not stand_in["init"].called


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", "127.0.0.1:123456", ":6379"])
def test_address_that_is_none_is_refused(address):
    with pytest.raises(EvaluatorError, match="expected HOST:PORT"):
        check_reachable(address)


def test_empty_address_starts_a_cluster_here(stand_in, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    RayEvaluator(SETUP, 2)
    assert stand_in["init"].call_args.args == ("local",)


def test_token_of_a_cluster_is_readable_by_this_user_alone(stand_in, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    RayEvaluator(SETUP, 2)
    assert token.stat().st_mode & 0o777 == 0o600


def test_more_workers_than_this_machine_can_run_are_refused_before_ray_starts(stand_in):
    with pytest.raises(
        EvaluatorError, match=r"10000 threads in all .* expected at most \d+, 8 per CPU; type a smaller"
    ):
        RayEvaluator(SETUP, 10_000)
    stand_in["init"].assert_not_called()


def test_workers_that_cannot_be_replaced_end_nothing_while_another_works(stand_in):
    evaluator = RayEvaluator(SETUP, 2)
    lost, other = evaluator._slots
    other.node, other.future = "a", None  # its model is loaded
    for _ in range(ATTEMPTS):
        assert lost.actor is not None
        evaluator._replace(lost, "ActorDiedError")
    assert lost.actor is None
    assert not lost.free
    assert 0 < lost.due - time.monotonic() <= module._REST_SECONDS
    evaluator.submit(Proposal(0, base()))
    assert other.proposal is not None, "it goes to the worker that there is"
    evaluator._start(lost)
    evaluator._replace(lost, "deadline")
    assert lost.actor is None, "one try at a time"
    evaluator._start(lost)
    other.proposal = None  # it is starting, too
    with pytest.raises(EvaluatorError, match="3 workers in a row did not start"):
        evaluator._replace(lost, "deadline")


ELASTIC = Fleet(1, 3, memory=10**9, labels={"kind": "work"})


@pytest.fixture
def elastic(stand_in, monkeypatch):
    """An evaluator of up to three workers, which have places: two on node `a`, one on `b`."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    stand_in["nodes"].return_value = [node(name, {"kind": "work"}, CPU=2.0, memory=4e9) for name in "ab"]
    evaluator = RayEvaluator(SETUP, ELASTIC, say=Mock())
    for slot, name in zip(evaluator._slots, "aab", strict=True):
        evaluator._placed(slot, name)
        slot.future = None
    return evaluator


def wishes(stand_in):
    """The options of the worker that was started last."""
    return stand_in["actor"].options.call_args.kwargs


def test_workers_ask_for_cpus_memory_and_labels(elastic, stand_in):
    assert wishes(stand_in) == {
        "num_cpus": 1,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
        "memory": 10**9,
        "label_selector": {"kind": "work"},
    }
    RayEvaluator(SETUP, Fleet(1, 2, cpus=0.5))
    assert wishes(stand_in)["num_cpus"] == 0.5


def test_a_node_without_memory_gets_one_worker_less(elastic, stand_in):
    first, second, _ = elastic._slots
    elastic.submit(Proposal(0, base()))
    assert first.proposal is not None
    elastic._replace(first, OUT_OF_MEMORY)
    elastic._dispatch()
    assert second.proposal is not None, "the candidate goes to another worker"
    assert wishes(stand_in)["label_selector"] == {"kind": "work", "ray.io/node-id": "!in(a)"}
    elastic._say.assert_called_once_with(
        "a worker ran out of memory beside 1 others; its node gets at most 1 workers from now on"
    )
    elastic._replace(second, OUT_OF_MEMORY)
    assert wishes(stand_in)["label_selector"] == {"kind": "work"}, "alone on its node it may try again"
    assert elastic._failed_starts == 0


def test_a_worker_that_waited_for_room_does_not_take_that_of_the_one_too_many(elastic, stand_in):
    waiting = module._Slot()
    elastic._slots.append(waiting)
    elastic._start(waiting)
    elastic._replace(elastic._slots[0], OUT_OF_MEMORY)
    elastic._placed(waiting, "a")
    assert waiting.node is None
    assert wishes(stand_in)["label_selector"]["ray.io/node-id"] == "!in(a)"
    elastic._placed(waiting, "b")
    assert waiting.node == "b"


def test_a_candidate_is_not_to_blame_for_its_nodes(elastic):
    slot = elastic._slots[0]
    elastic.submit(Proposal(0, base()))
    for _ in range(ATTEMPTS + 1):
        assert slot.proposal is not None
        elastic._slots[1].future = elastic._slots[2].future = "busy"
        elastic._replace(slot, NODE)
        assert not elastic._finished
        elastic._placed(slot, "a")
        slot.future = None
        elastic._dispatch()
    assert elastic._failed_starts == 0


def test_a_cluster_that_may_grow_is_waited_for_and_the_lack_is_said(stand_in, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    say = Mock()
    evaluator = RayEvaluator(SETUP, Fleet(6, 8), say=say)
    assert stand_in["actor"].options.call_count == 8, "room for all is asked for at once"
    evaluator._placed(evaluator._slots[0], "a")
    evaluator._slots[0].future = None
    evaluator.submit(Proposal(0, base()))
    assert evaluator._slots[0].proposal is None, "it begins with six"
    evaluator._said -= module._SAY_SECONDS
    evaluator._look_for_room()
    say.assert_called_once_with("1 of 6 workers have room on the Ray cluster, each needs 1 CPU; waiting for nodes")
    evaluator._began -= module._GROW_SECONDS
    with pytest.raises(
        EvaluatorError, match=r"in 10 minutes .* has 4 CPUs, 6 workers .* type `min: 4` under `workers`"
    ):
        evaluator._look_for_room()
    for slot in evaluator._slots[1:7]:
        evaluator._placed(slot, "b")
    evaluator._look_for_room()
    evaluator._dispatch()
    assert evaluator._slots[0].proposal is not None
    assert evaluator.slots == 7


def test_a_cluster_of_this_machine_cannot_grow(stand_in):
    with pytest.raises(EvaluatorError, match="has 4 CPUs, 5 workers"):
        RayEvaluator(SETUP, Fleet(5, 8))
