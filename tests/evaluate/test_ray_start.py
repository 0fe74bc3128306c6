"""Any failure to start, reach or size a Ray cluster is one `EvaluatorError` that says what to type. Ray is a stand-in here."""

import socket
import time
from unittest.mock import Mock

import pytest
import ray
from ray.exceptions import RaySystemError

from evomerge.errors import EvaluatorError
from evomerge.evaluate import Setup
from evomerge.evaluate import ray as module
from evomerge.evaluate.losses import ATTEMPTS
from evomerge.evaluate.ray import RayEvaluator, check_reachable
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


@pytest.fixture
def stand_in(monkeypatch):
    """A Ray that starts and has four CPUs, unless a test sets a failure."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    parts = {
        "is_initialized": Mock(return_value=False),
        "init": Mock(),
        "shutdown": Mock(),
        "cluster_resources": Mock(return_value={"CPU": 4.0}),
        "get_runtime_context": Mock(return_value=Mock(gcs_address="127.0.0.2:6379")),
    }
    for name, part in parts.items():
        monkeypatch.setattr(ray, name, part)
    monkeypatch.setattr(module, "_ACTOR", parts.setdefault("actor", Mock()))
    return parts


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("step", ["init", "cluster_resources", "get_runtime_context", "actor"])
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
    stand_in["cluster_resources"].return_value = {"CPU": 8.0, "GPU": there}
    with pytest.raises(EvaluatorError, match=message):
        RayEvaluator(on_gpus(gpus), workers)


def test_workers_ask_for_their_share_and_see_one_gpu(stand_in):
    stand_in["cluster_resources"].return_value = {"CPU": 8.0, "GPU": 1.0}
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


def test_workers_that_cannot_be_replaced_end_nothing_while_another_works(stand_in, monkeypatch):
    monkeypatch.setattr(ray, "kill", Mock())
    evaluator = RayEvaluator(SETUP, 2)
    lost, other = evaluator._slots
    other.future = None  # its model is loaded
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
