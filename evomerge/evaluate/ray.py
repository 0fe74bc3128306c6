"""RayEvaluator: evaluates in worker processes. A worker that dies, hangs or runs out of memory costs the study only time.

The only module that imports ray. Workers are plain actors without Ray's restarts and retries, which would hide the cause
of a death and repeat forever a candidate that kills every worker. Experts do not pass through Ray: all workers map the
same files, which the operating system holds in memory once.
"""

import math
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import interrupts
from evomerge.checkpoints.members import Members, ancestors
from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.losses import ATTEMPTS, DEADLINE, OUT_OF_MEMORY, final_error
from evomerge.evaluate.worker import RemoteWorker, Setup, describe
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal

# By default Ray prints each worker's death to the study's standard output, and sends usage statistics.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Workers are as nice as this process, not by 15 more: on a shared machine they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")
# A try to connect takes 40 seconds where nothing answers as Ray does, and by default Ray makes 20 of them.
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")

import ray  # reads the environment when it is imported
from ray.exceptions import OutOfMemoryError, RayError

_STACKS = 16  # recent stacks per worker, of which it may still have hidden states
_START_SECONDS = 600.0  # for a worker to get its CPUs, load its model and read its tasks
_REST_SECONDS = 60.0  # before another try where workers do not start, and others work
_LONGEST_WAIT = 1.0  # seconds between looks for an interrupt that Ray swallowed
_CONNECT_SECONDS = 5.0  # to open a connection to a cluster
_MOST_PER_CPU = 8  # threads of workers on this machine: more only fill its memory
_CLIENT_PORT = 10001  # Ray's default in `ray://HOST`
_OBJECT_STORE = 256 << 20  # bytes; only scores pass through it, never weights
# Ray turns 127.0.0.1 into the machine's public address, but none of Linux's other loopback addresses.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


class RayEvaluator(Evaluator):
    """Evaluates in worker processes, one candidate in each at a time.

    A worker gets candidates only after it has loaded its model, so a candidate's deadline does not include start-up. A
    worker that dies is replaced, and its candidate goes back to the head of the queue, up to `ATTEMPTS` times. A worker
    past the deadline is killed; its candidate is tried once more, in case the machine was the cause. Where a worker cannot be
    replaced, as when its node is lost, the others go on.
    """

    def __init__(self, setup: Setup, workers: int, deadline: float | None = None) -> None:
        """Start workers on the connected cluster, else at `RAY_ADDRESS`, else on a new local one.

        `deadline` is in seconds, None for no limit. Raises `EvaluatorError` if the cluster cannot be started or reached, is
        too small, or accepts commands from anyone in the network.
        """
        self.slots = workers
        self.lineage: dict[str, Recipe] = {}
        members = None if setup.members is None else Path(setup.members).resolve()
        self._members = Members(0, members)
        folder = str(Path(setup.folder).resolve())
        kind, _, index = setup.device.partition(":")
        if int(index or 0):
            raise EvaluatorError(
                f"`device` is `{setup.device}`, and Ray gives each worker its GPU; type `device: {kind}`, or --workers 1"
            )
        self._gpus = setup.gpus if kind == "cuda" else 0.0
        members_folder = None if members is None else str(members)
        self._setup = replace(setup, folder=folder, members=members_folder, device=kind)  # Ray shows a worker one GPU
        self._deadline = math.inf if deadline is None else deadline
        self._queue: deque[Proposal] = deque()
        self._causes: dict[int, list[str]] = {}  # of each proposal that lost workers, by number
        self._finished: deque[tuple[int, Evaluation]] = deque()
        self._failed_starts = 0  # in a row
        self._slots = [_Slot() for _ in range(workers)]
        self._connected = connect(workers * setup.threads)
        try:
            with _start_errors("cannot start workers on the Ray cluster"):
                _check_size(workers, setup.threads, self._gpus)
                for slot in self._slots:
                    self._start(slot)
        except EvaluatorError:
            self.close()
            raise

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal, and start it if a worker is free."""
        self._queue.append(proposal)
        self._dispatch()

    def wait(self) -> tuple[int, Evaluation]:
        """Return the first evaluation that finishes."""
        if not (self._finished or self._queue or any(slot.proposal for slot in self._slots)):
            raise EvaluatorError("no proposal is pending; submit one before waiting")
        while not self._finished:
            interrupts.check()
            self._dispatch()
            busy = {slot.future: slot for slot in self._slots if slot.future is not None}
            due = min(slot.due for slot in self._slots)
            timeout = min(max(due - time.monotonic(), 0.0), _LONGEST_WAIT)
            ray.wait(list(busy), num_returns=1, timeout=timeout)
            ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
            for future in ready:  # before overdue workers are killed: a result that is ready counts as in time
                self._collect(busy[future])
            for slot in self._slots:
                if time.monotonic() >= slot.due:
                    if slot.actor is None:
                        self._start(slot)
                    else:
                        self._replace(slot, DEADLINE)
        number, evaluation = self._finished.popleft()
        self._causes.pop(number, None)
        return number, evaluation

    def retain(self, members: Collection[str]) -> None:
        """Delete the weights of all earlier candidates except these from the disk; in memory workers replace the oldest."""
        self._members.retain(members)

    def close(self) -> None:
        """Kill the workers, and disconnect from the cluster if this evaluator connected; a cluster it started ends."""
        for slot in self._slots:
            if slot.actor is not None and ray.is_initialized():
                ray.kill(slot.actor)
        self._slots = []
        self._queue.clear()
        self._finished.clear()
        if self._connected:
            ray.shutdown()
            self._connected = False

    def _start(self, slot: "_Slot") -> None:
        """Start a new worker in a slot; its future is ready when its model is loaded."""
        threads = self._setup.threads
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        gpus = {"num_gpus": self._gpus} if self._gpus else {}
        slot.actor = _ACTOR.options(num_cpus=threads, runtime_env=environment, **gpus).remote(self._setup)
        slot.future, slot.proposal, slot.due = slot.actor.prepare.remote(), None, time.monotonic() + _START_SECONDS
        slot.recent.clear()
        slot.prefixes = frozenset()

    def _dispatch(self) -> None:
        """Start queued proposals in free slots; each time the pair of slot and proposal with most layers in common."""
        while self._queue and (free := [slot for slot in self._slots if slot.free]):
            queue = self._queue if self._queue[0].recipe.prefix_digests else [self._queue[0]]
            pairs = ((slot, proposal) for proposal in queue for slot in free)
            slot, proposal = max(pairs, key=lambda pair: pair[0].shared(pair[1]))  # of equals the first in the queue
            self._queue.remove(proposal)
            slot.take(proposal, self._deadline)
            recipe = proposal.recipe
            examples, slopes = (part and dict(part) for part in (proposal.examples, proposal.slopes))
            lineage = {key: parent.json for key, parent in ancestors(recipe, self.lineage, self._members.on_disk)}
            slot.future = slot.actor.evaluate.remote(recipe.json, proposal.split, examples, slopes, lineage)

    def _collect(self, slot: "_Slot") -> None:
        """Take the result of a slot whose future is ready, or replace its worker."""
        try:
            answer = ray.get(slot.future)
        except RayError as error:
            self._replace(slot, OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else type(error).__name__)
            return
        proposal, slot.future, slot.proposal, slot.due = slot.proposal, None, None, math.inf
        if proposal is not None:
            self._finished.append((proposal.number, _copied(answer)))
        elif answer is not None:
            raise EvaluatorError(f"the workers cannot start: {answer}")
        else:
            self._failed_starts = 0

    def _replace(self, slot: "_Slot", cause: str) -> None:
        """Replace the lost worker of a slot; queue its candidate again, or give up on it."""
        ray.kill(slot.actor)
        proposal = slot.proposal
        if proposal is None:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                slot.actor, slot.future, slot.due = None, None, time.monotonic() + _REST_SECONDS
                if any(other.free or other.proposal for other in self._slots):  # as when a node is lost
                    return
                raise EvaluatorError(
                    f"{ATTEMPTS} workers in a row did not start ({cause}); look for the reason "
                    "in Ray's logs, by default in /tmp/ray/session_latest/logs, or type --workers 1"
                )
        else:
            causes = self._causes.setdefault(proposal.number, [])
            causes.append(cause)
            error = final_error(causes, self._deadline)
            if error is None:
                self._queue.appendleft(proposal)
            else:
                self._finished.append((proposal.number, Evaluation(error=error)))
        self._start(slot)


@dataclass(slots=True, eq=False)
class _Slot:
    """Room for one worker: starting (future, no proposal), busy (both), free (neither), or without a worker until it is due."""

    actor: Any = None
    future: Any = None
    proposal: Proposal | None = None
    due: float = math.inf
    """The time by which the future must be ready, or at which a worker is started."""
    recent: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=_STACKS))
    prefixes: frozenset[str] = frozenset()
    """The union of `recent`, prefix digests of this worker's last stacks."""

    @property
    def free(self) -> bool:
        """Whether there is a worker that waits for a proposal."""
        return self.actor is not None and self.future is None

    def take(self, proposal: Proposal, deadline: float) -> None:
        """Hold a proposal from now on, for `deadline` seconds."""
        self.proposal, self.due = proposal, time.monotonic() + deadline
        self.recent.append(proposal.recipe.prefix_digests)
        self.prefixes = frozenset().union(*self.recent)

    def shared(self, proposal: Proposal) -> int:
        """Return how many leading layers a proposal's stack has in common with a recent one of this slot."""
        return sum(prefix in self.prefixes for prefix in proposal.recipe.prefix_digests)


_ACTOR: Any = ray.remote(max_restarts=0, max_task_retries=0)(RemoteWorker)


def _copied(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation copied out of Ray's shared memory."""
    scores, outputs = (
        {name: np.array(table) for name, table in tables.items()} for tables in (evaluation.scores, evaluation.outputs)
    )
    return replace(evaluation, scores=scores, outputs=outputs)


def connect(cpus: int) -> bool:
    """Connect to the Ray cluster at `RAY_ADDRESS`, by default a new one on this machine with `cpus` CPUs. Raises `EvaluatorError`.

    Returns whether the connection was made here: False where this process was connected before.
    """
    if ray.is_initialized():
        with _start_errors("cannot use the connected Ray cluster"):
            check_authentication(ray.get_runtime_context().gcs_address)
        return False
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        most = _MOST_PER_CPU * (os.cpu_count() or 1)
        if cpus > most:
            raise EvaluatorError(
                f"workers with {cpus} threads in all were asked for on this machine; expected at most {most}, {_MOST_PER_CPU} per CPU; "
                "type a smaller --workers, or give a cluster by RAY_ADDRESS"
            )
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options["_node_ip_address"] = _LOOPBACK
    elif address != "auto":
        check_authentication(address)
        check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _start_errors(f"no Ray cluster at `{address}`"):
            ray.init(address, **options)
            _hide_token()
            if address == "auto":  # its address is known only now
                check_authentication(ray.get_runtime_context().gcs_address)
    except EvaluatorError:
        ray.shutdown()
        raise
    finally:  # Ray installs its own, which aborts the process
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return True


def check_start() -> int:
    """Connect as a search with one worker does, disconnect, and return the CPUs of the cluster. Raises `EvaluatorError`."""
    connected = connect(1)
    try:
        return int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]  # the library has no types here
    finally:
        if connected:
            ray.shutdown()


def _hide_token() -> None:
    """Let only this user read the file in which Ray keeps a cluster's token: Ray writes it for all to read."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def check_authentication(address: str) -> None:
    """Raise `EvaluatorError` unless the cluster at `address` (`host:port`) is local or requires a token.

    Ray's sockets listen on every interface, and only token authentication protects them (CVE-2023-48022).
    """
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise EvaluatorError(
            f"the Ray cluster at {address} is open to its network; expected token authentication: "
            "type RAY_AUTH_MODE=token before `ray start` and before this command"
        )


def check_reachable(address: str) -> None:
    """Raise `EvaluatorError` unless something accepts connections at `address`, `HOST:PORT` or `ray://HOST:PORT`.

    Ray itself tries for minutes without a word.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme not in ("", "ray"):  # of a plug-in of Ray's
        return
    host, colon, port = rest.partition("/")[0].rpartition(":")
    if scheme and (not colon or port.endswith("]")):
        host, port = f"{host}{colon}{port}", str(_CLIENT_PORT)
    problem = "" if host and port.isdecimal() and int(port) < 1 << 16 else "expected HOST:PORT"
    if not problem:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            problem = error.strerror or str(error)
    if problem:
        raise EvaluatorError(
            f"no Ray cluster at `{address}` (RAY_ADDRESS): {problem}; start the cluster, type `unset RAY_ADDRESS` to start one on "
            "this machine, or type --workers 1 to do without Ray"
        )


@contextmanager
def _start_errors(what: str) -> Iterator[None]:
    """Turn every exception into an `EvaluatorError` that begins with `what`. A time-out of Ray's start is a bare `Exception`."""
    try:
        yield
    except EvaluatorError:
        raise
    except Exception as error:
        advice = "try again when the machine is less busy, or type --workers 1 to do without Ray"
        raise EvaluatorError(f"{what}: {describe(error)}; {advice}") from error


def _check_size(workers: int, threads: int, gpus: float) -> None:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # the library has no types here
    cpus, there = int(resources.get("CPU", 0)), resources.get("GPU", 0.0)
    places = int(there // 1) * int(1 / gpus + 1e-9) if gpus else workers  # a worker is on one GPU
    if places < workers:
        share = f", or a smaller share, such as `gpus: {gpus / 2:g}`" if there else ""
        raise EvaluatorError(
            f"the Ray cluster has {there:g} GPUs, {workers} workers with `gpus: {gpus:g}` need {workers * gpus:g}; type "
            f"--workers {max(places, 1)}{share}, or `device: cpu`"
        )
    if cpus < workers * threads:
        raise EvaluatorError(
            f"the Ray cluster has {cpus} CPUs, {workers} workers with {threads} threads each need "
            f"{workers * threads}; type --workers {max(cpus // threads, 1)}"
        )
