"""RayEvaluator: worker processes that may die, hang or run out of memory, which costs the study only time.

The only module that imports ray. Workers are plain actors that Ray neither restarts nor retries: it would
hide why one died, and try for ever a candidate that kills them all. Experts do not pass through Ray: every
worker maps the same files, which the operating system holds in memory once.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Collection
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

# Ray prints each worker's death to standard output, which is the study's, and reports its use to its makers.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # reads the environment when it is imported
from ray.exceptions import OutOfMemoryError, RayError

_REMEMBERED = 16  # stacks of which a worker may still have hidden states
_START_SECONDS = 600.0  # for a worker to get its CPUs, load its model and read its tasks
_OBJECT_STORE = 256 << 20  # bytes; only scores pass through it, never weights
# Ray turns 127.0.0.1 into the machine's public address, but none of Linux's other loopback addresses.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None


class RayEvaluator(Evaluator):
    """Evaluates in worker processes, one candidate in each at a time.

    A worker is given candidates only after it has reported that its model is in memory, so a candidate's
    deadline counts from the moment it begins, however long the start-up took. When a worker dies, it is
    replaced and its candidate is next in line again, up to `ATTEMPTS` times. A worker that is past the
    deadline is killed; its candidate gets one more try, since once may be the machine's fault.
    """

    def __init__(self, setup: Setup, workers: int, deadline: float | None = None, address: str | None = None) -> None:
        """Start workers on the cluster in use, else at `address` or `RAY_ADDRESS`, else a new local one.

        `deadline` is in seconds, None for no limit. Raises `EvaluatorError` where the cluster cannot be
        reached, is too small, or can be used by anyone in the network.
        """
        self.slots = workers
        self.lineage: dict[str, Recipe] = {}
        members = None if setup.members is None else Path(setup.members).resolve()
        self._members = Members(0, members)
        self._setup = replace(
            setup, folder=str(Path(setup.folder).resolve()), members=None if members is None else str(members)
        )
        self._deadline = math.inf if deadline is None else deadline
        self._connected = connect(address, workers * setup.threads)
        _check_size(workers, setup.threads)
        self._queue: deque[_Job] = deque()
        self._finished: deque[tuple[int, Evaluation]] = deque()
        self._deaths = 0  # of workers that never began, in a row
        self._slots = [_Slot() for _ in range(workers)]
        for slot in self._slots:
            self._start(slot)

    def submit(self, proposal: Proposal) -> None:
        """Take a proposal, and begin at once where a worker is free."""
        self._queue.append(_Job(proposal))
        self._dispatch()

    def wait(self) -> tuple[int, Evaluation]:
        """Return what finishes first."""
        if not (self._finished or self._queue or any(slot.job for slot in self._slots)):
            msg = "no proposal is in flight; submit one before waiting"
            raise EvaluatorError(msg)
        while not self._finished:
            self._dispatch()
            busy = {slot.future: slot for slot in self._slots if slot.future is not None}
            ray.wait(list(busy), num_returns=1, timeout=self._patience())
            ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
            for future in ready:  # before the late ones are killed: what is ready was in time, if nobody looked
                self._collect(busy[future])
            self._kill_overdue()
        return self._finished.popleft()

    def retain(self, members: Collection[str]) -> None:
        """Remove the weights of all earlier candidates but these from the disk; workers forget theirs by and by."""
        self._members.retain(members)

    def close(self) -> None:
        """Kill the workers, and leave the cluster if it was joined here; one that was started here ends."""
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
        """Put a new worker on a slot; it reports by keeping the future."""
        slot.actor = _ACTOR.options(
            num_cpus=self._setup.threads,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._setup.threads)}},
        ).remote(self._setup)
        slot.future, slot.job, slot.since = slot.actor.prepare.remote(), None, time.monotonic()
        slot.had.clear()
        slot.known = frozenset()

    def _dispatch(self) -> None:
        """Begin what can begin: each time the pair of a free slot and a waiting job that have most layers in common."""
        while self._queue and (free := [slot for slot in self._slots if slot.future is None]):
            waiting = self._queue if self._queue[0].proposal.recipe.prefix_digests else [self._queue[0]]
            pairs = ((slot, job) for job in waiting for slot in free)
            slot, job = max(pairs, key=lambda pair: pair[0].shared(pair[1]))  # of equals the first in line
            self._queue.remove(job)
            slot.take(job)
            proposal = job.proposal
            recipe, examples = proposal.recipe, proposal.examples
            lineage = {key: own.json for key, own in ancestors(recipe, self.lineage, self._members.on_disk)}
            slot.future = slot.actor.evaluate.remote(recipe.json, proposal.split, examples and dict(examples), lineage)

    def _collect(self, slot: "_Slot") -> None:
        """Take what a worker has to say, or that it died."""
        try:
            answer = ray.get(slot.future)
        except RayError as error:
            self._lose(slot, OUT_OF_MEMORY if isinstance(error, OutOfMemoryError) else type(error).__name__)
            return
        job, slot.future, slot.job = slot.job, None, None
        if job is not None:
            self._finished.append((job.proposal.number, _own(answer)))
        elif answer is not None:
            msg = f"the workers cannot start: {answer}"
            raise EvaluatorError(msg)
        else:
            self._deaths = 0

    def _lose(self, slot: "_Slot", cause: str) -> None:
        """Replace the worker on a slot, and decide about its candidate."""
        ray.kill(slot.actor)
        job = slot.job
        if job is None:
            self._deaths += 1
            if self._deaths >= ATTEMPTS:
                msg = (
                    f"{ATTEMPTS} workers in a row did not start ({cause}); look for the reason "
                    "in Ray's logs, by default in /tmp/ray/session_latest/logs, or type --workers 1"
                )
                raise EvaluatorError(msg)
        else:
            job.lost.append(cause)
            error = final_error(job.lost, self._deadline)
            if error is None:
                self._queue.appendleft(job)
            else:
                self._finished.append((job.proposal.number, Evaluation(error=error)))
        self._start(slot)

    def _patience(self) -> float | None:
        """Return the seconds until the next deadline, None if there is none."""
        end = min(map(self._due, self._slots))
        return None if math.isinf(end) else max(end - time.monotonic(), 0.0)

    def _kill_overdue(self) -> None:
        for slot in self._slots:
            if time.monotonic() >= self._due(slot):
                self._lose(slot, DEADLINE)

    def _due(self, slot: "_Slot") -> float:
        """Return the time at which a worker must have kept its future."""
        if slot.future is None:
            return math.inf
        return slot.since + (_START_SECONDS if slot.job is None else self._deadline)


@dataclass(slots=True, eq=False)
class _Job:
    """A proposal in flight, and why it lost each of its workers so far."""

    proposal: Proposal
    lost: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for a worker, which starts (future, no job) or is busy (both) since a time, or is free (neither)."""

    actor: Any = None
    future: Any = None
    job: _Job | None = None
    since: float = 0.0
    had: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    known: frozenset[str] = frozenset()  # all that is in `had`

    def take(self, job: _Job) -> None:
        """Begin a job now."""
        self.job, self.since = job, time.monotonic()
        self.had.append(job.proposal.recipe.prefix_digests)
        self.known = frozenset().union(*self.had)

    def shared(self, job: _Job) -> int:
        """Return how many layers a job's stack has in common with one that this slot has had."""
        return sum(beginning in self.known for beginning in job.proposal.recipe.prefix_digests)


_ACTOR: Any = ray.remote(max_restarts=0, max_task_retries=0)(RemoteWorker)


def _own(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation in memory of this process, which outlives Ray's."""
    return replace(
        evaluation,
        scores={name: np.array(vector) for name, vector in evaluation.scores.items()},
        outputs={name: np.array(array) for name, array in evaluation.outputs.items()},
    )


def connect(address: str | None = None, cpus: int = 1) -> bool:
    """Connect to a Ray cluster, a new one if need be, and return whether the connection was made here.

    A new cluster is on this machine, with `cpus` CPUs. Raises `EvaluatorError`.
    """
    if ray.is_initialized():
        check_authentication(ray.get_runtime_context().gcs_address)
        return False
    address = address or os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        options |= {"_node_ip_address": _LOOPBACK}
    elif address != "auto":
        check_authentication(address)
    try:
        ray.init(address, **options)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        msg = f"no Ray cluster at `{address}`: {describe(error)}; type --workers 1 to do without"
        raise EvaluatorError(msg) from error
    if address == "auto":  # only now is it known where that is
        try:
            check_authentication(ray.get_runtime_context().gcs_address)
        except EvaluatorError:
            ray.shutdown()
            raise
    return True


def _check_size(workers: int, threads: int) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]  # the library has no types here
    if cpus < workers * threads:
        msg = (
            f"the Ray cluster has {cpus} CPUs, {workers} workers with {threads} threads each need "
            f"{workers * threads}; type --workers {max(cpus // threads, 1)}"
        )
        raise EvaluatorError(msg)
