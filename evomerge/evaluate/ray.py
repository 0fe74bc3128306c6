"""RayEvaluator: evaluates in worker processes. A worker that dies, hangs or runs out of memory costs the study only time.

The only module that imports ray. Workers are plain actors without Ray's restarts and retries, which would hide the cause
of a death and repeat forever a candidate that kills every worker. Experts do not pass through Ray: all workers map the
same files, which the operating system holds in memory once.
"""

import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.checkpoints.members import Members, ancestors
from evomerge.errors import EvaluatorError
from evomerge.evaluate.authentication import check_authentication
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.remote import RemoteWorker
from evomerge.evaluate.retries import ATTEMPTS, DEADLINE, OUT_OF_MEMORY, final_error
from evomerge.evaluate.worker import Setup, describe
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal

# By default Ray prints each worker's death to the study's standard output, and sends usage statistics.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # reads the environment when it is imported
from ray.exceptions import OutOfMemoryError, RayError

_STACKS = 16  # recent stacks per worker, of which it may still have hidden states
_START_SECONDS = 600.0  # for a worker to get its CPUs, load its model and read its tasks
_OBJECT_STORE = 256 << 20  # bytes; only scores pass through it, never weights
# Ray turns 127.0.0.1 into the machine's public address, but none of Linux's other loopback addresses.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


class RayEvaluator(Evaluator):
    """Evaluates in worker processes, one candidate in each at a time.

    A worker gets candidates only after it has loaded its model, so a candidate's deadline does not include start-up. A
    worker that dies is replaced, and its candidate goes back to the head of the queue, up to `ATTEMPTS` times. A worker
    past the deadline is killed; its candidate is tried once more, in case the machine was the cause.
    """

    def __init__(self, setup: Setup, workers: int, deadline: float | None = None, address: str | None = None) -> None:
        """Start workers on the connected cluster, else at `address` or `RAY_ADDRESS`, else on a new local one.

        `deadline` is in seconds, None for no limit. Raises `EvaluatorError` if the cluster cannot be started or reached, is
        too small, or accepts commands from anyone in the network.
        """
        self.slots = workers
        self.lineage: dict[str, Recipe] = {}
        members = None if setup.members is None else Path(setup.members).resolve()
        self._members = Members(0, members)
        self._setup = replace(
            setup, folder=str(Path(setup.folder).resolve()), members=None if members is None else str(members)
        )
        self._deadline = math.inf if deadline is None else deadline
        self._queue: deque[_Job] = deque()
        self._finished: deque[tuple[int, Evaluation]] = deque()
        self._failed_starts = 0  # in a row
        self._slots = [_Slot() for _ in range(workers)]
        self._connected = connect(address, workers * setup.threads)
        try:
            with _start_errors("cannot start workers on the Ray cluster"):
                _check_size(workers, setup.threads)
                for slot in self._slots:
                    self._start(slot)
        except EvaluatorError:
            self.close()
            raise

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal, and start it if a worker is free."""
        self._queue.append(_Job(proposal))
        self._dispatch()

    def wait(self) -> tuple[int, Evaluation]:
        """Return the first evaluation that finishes."""
        if not (self._finished or self._queue or any(slot.job for slot in self._slots)):
            msg = "no proposal is pending; submit one before waiting"
            raise EvaluatorError(msg)
        while not self._finished:
            self._dispatch()
            busy = {slot.future: slot for slot in self._slots if slot.future is not None}
            ray.wait(list(busy), num_returns=1, timeout=self._timeout())
            ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
            for future in ready:  # before overdue workers are killed: a result that is ready counts as in time
                self._collect(busy[future])
            self._kill_overdue()
        return self._finished.popleft()

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
        slot.actor = _ACTOR.options(
            num_cpus=self._setup.threads,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._setup.threads)}},
        ).remote(self._setup)
        slot.future, slot.job, slot.due = slot.actor.prepare.remote(), None, time.monotonic() + _START_SECONDS
        slot.recent.clear()
        slot.prefixes = frozenset()

    def _dispatch(self) -> None:
        """Start queued jobs in free slots; each time the pair of slot and job with most layers in common."""
        while self._queue and (free := [slot for slot in self._slots if slot.future is None]):
            jobs = self._queue if self._queue[0].proposal.recipe.prefix_digests else [self._queue[0]]
            pairs = ((slot, job) for job in jobs for slot in free)
            slot, job = max(pairs, key=lambda pair: pair[0].shared(pair[1]))  # of equals the first in the queue
            self._queue.remove(job)
            slot.take(job, self._deadline)
            recipe, examples = job.proposal.recipe, job.proposal.examples
            lineage = {key: parent.json for key, parent in ancestors(recipe, self.lineage, self._members.on_disk)}
            slot.future = slot.actor.evaluate.remote(
                recipe.json, job.proposal.split, examples and dict(examples), lineage
            )

    def _collect(self, slot: "_Slot") -> None:
        """Take the result of a slot whose future is ready, or replace its worker."""
        try:
            answer = ray.get(slot.future)
        except RayError as error:
            self._replace(slot, OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else type(error).__name__)
            return
        job, slot.future, slot.job, slot.due = slot.job, None, None, math.inf
        if job is not None:
            self._finished.append((job.proposal.number, _copied(answer)))
        elif answer is not None:
            msg = f"the workers cannot start: {answer}"
            raise EvaluatorError(msg)
        else:
            self._failed_starts = 0

    def _replace(self, slot: "_Slot", cause: str) -> None:
        """Replace the lost worker of a slot; queue its candidate again, or give up on it."""
        ray.kill(slot.actor)
        job = slot.job
        if job is None:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS:
                msg = (
                    f"{ATTEMPTS} workers in a row did not start ({cause}); look for the reason "
                    "in Ray's logs, by default in /tmp/ray/session_latest/logs, or type --workers 1"
                )
                raise EvaluatorError(msg)
        else:
            job.causes.append(cause)
            error = final_error(job.causes, self._deadline)
            if error is None:
                self._queue.appendleft(job)
            else:
                self._finished.append((job.proposal.number, Evaluation(error=error)))
        self._start(slot)

    def _timeout(self) -> float | None:
        """Return the seconds until the next deadline, None if there is none."""
        end = min(slot.due for slot in self._slots)
        return None if math.isinf(end) else max(end - time.monotonic(), 0.0)

    def _kill_overdue(self) -> None:
        for slot in self._slots:
            if time.monotonic() >= slot.due:
                self._replace(slot, DEADLINE)


@dataclass(slots=True, eq=False)
class _Job:
    """A pending proposal, and the causes for which it lost workers so far."""

    proposal: Proposal
    causes: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Slot:
    """Room for one worker: starting (future, no job), busy (both) or free (neither)."""

    actor: Any = None
    future: Any = None
    job: _Job | None = None
    due: float = math.inf
    """The time by which the future must be ready."""
    recent: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=_STACKS))
    prefixes: frozenset[str] = frozenset()
    """The union of `recent`, prefix digests of this worker's last stacks."""

    def take(self, job: _Job, deadline: float) -> None:
        """Start a job now, with `deadline` in seconds."""
        self.job, self.due = job, time.monotonic() + deadline
        self.recent.append(job.proposal.recipe.prefix_digests)
        self.prefixes = frozenset().union(*self.recent)

    def shared(self, job: _Job) -> int:
        """Return how many leading layers a job's stack has in common with a recent one of this slot."""
        return sum(prefix in self.prefixes for prefix in job.proposal.recipe.prefix_digests)


_ACTOR: Any = ray.remote(max_restarts=0, max_task_retries=0)(RemoteWorker)


def _copied(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation copied out of Ray's shared memory."""
    return replace(
        evaluation,
        scores={name: np.array(vector) for name, vector in evaluation.scores.items()},
        outputs={name: np.array(table) for name, table in evaluation.outputs.items()},
    )


def connect(address: str | None = None, cpus: int = 1) -> bool:
    """Connect to a Ray cluster, by default a new one on this machine with `cpus` CPUs. Raises `EvaluatorError`.

    Returns whether the connection was made here: False where this process was connected before.
    """
    if ray.is_initialized():
        with _start_errors("cannot use the connected Ray cluster"):
            check_authentication(ray.get_runtime_context().gcs_address)
        return False
    address = address or os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options |= {"_node_ip_address": _LOOPBACK}
    elif address != "auto":
        check_authentication(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _start_errors(f"no Ray cluster at `{address}`"):
            ray.init(address, **options)
            if address == "auto":  # its address is known only now
                check_authentication(ray.get_runtime_context().gcs_address)
    except EvaluatorError:
        ray.shutdown()
        raise
    finally:  # Ray installs its own, which aborts the process
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return True


@contextmanager
def _start_errors(what: str) -> Iterator[None]:
    """Turn every exception into an `EvaluatorError` that begins with `what`. A time-out of Ray's start is a bare `Exception`."""
    try:
        yield
    except EvaluatorError:
        raise
    except Exception as error:
        msg = (
            f"{what}: {describe(error)}; try again when the machine is less busy, or type --workers 1 to do without Ray"
        )
        raise EvaluatorError(msg) from error


def _check_size(workers: int, threads: int) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]  # the library has no types here
    if cpus < workers * threads:
        msg = (
            f"the Ray cluster has {cpus} CPUs, {workers} workers with {threads} threads each need "
            f"{workers * threads}; type --workers {max(cpus // threads, 1)}"
        )
        raise EvaluatorError(msg)
