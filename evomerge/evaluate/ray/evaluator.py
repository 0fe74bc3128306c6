"""RayEvaluator: evaluates in worker processes. A worker that dies, hangs or runs out of memory costs the study only time.

Workers are plain actors without Ray's restarts and retries, which would hide the cause of a death and repeat forever a candidate
that kills every worker. Ray itself waits for room: an actor that has none yet starts when a node joins, and an autoscaler reads it as
demand, which ends with this process. Experts do not pass through Ray: all workers of a node map the same files, which the operating
system holds in memory once.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayError

from evomerge import interrupts
from evomerge.checkpoints.members import Members, ancestors
from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.fleet import Fleet
from evomerge.evaluate.loaded import reserved_gpus
from evomerge.evaluate.losses import ATTEMPTS, DEADLINE, NODE, OUT_OF_MEMORY, final_error
from evomerge.evaluate.ray.connection import connect, is_local, start_errors
from evomerge.evaluate.setup import Setup
from evomerge.evaluate.worker import RemoteWorker
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal

_STACKS = 16  # recent stacks per worker, of which it may still have hidden states
_START_SECONDS = 600.0  # for a worker to load its model and read its tasks
_REST_SECONDS = 60.0  # before another try where workers do not start, and others work
_GROW_SECONDS = 600.0  # for a cluster to grow to the least number of workers
_SAY_SECONDS = 60.0  # between two lines about workers that have no room
_LONGEST_WAIT = 1.0  # seconds between looks for an interrupt that Ray swallowed
_NODE_LABEL = "ray.io/node-id"  # Ray's own label of each node


class RayEvaluator(Evaluator):
    """Evaluates in worker processes, one candidate in each at a time.

    A worker gets candidates only after it has loaded its model, so a candidate's deadline does not include start-up. A
    worker that dies is replaced, and its candidate goes back to the head of the queue, up to `ATTEMPTS` times. A worker
    past the deadline is killed; its candidate is tried once more, in case the machine was the cause. A worker whose node leaves is
    started again where there is room, and the others go on; its candidate is not to blame. Where a worker runs out of memory, its node
    gets one worker less from then on. `slots` is how many workers have a place now, and at least the least number.
    """

    def __init__(
        self,
        setup: Setup,
        workers: int | Fleet,
        deadline: float | None = None,
        say: Callable[[str], None] = lambda line: None,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start workers on the connected cluster, else at `RAY_ADDRESS`, else on a new local one.

        `deadline` is in seconds, None for no limit. `say` is called with a line about workers that have no room, or less memory than
        they need. `digests` are those that the pool's models must have on every node. Raises `ModelError` for an engine that takes more of a GPU than its worker has, and `EvaluatorError` if the cluster cannot be started or reached, is too small for a fixed number of workers and
        cannot grow, or accepts commands from anyone in the network.
        """
        self.lineage: dict[str, Recipe] = {}
        members = None if setup.members is None else Path(setup.members).resolve()
        self._members = Members(0, members)
        folder = str(Path(setup.folder).resolve())
        kind, _, index = setup.device.partition(":")
        if int(index or 0):
            raise EvaluatorError(
                f"`device` is `{setup.device}`, and Ray gives each worker its GPU; type `device: {kind}`, or --workers 1"
            )
        fleet = workers if isinstance(workers, Fleet) else Fleet(workers, workers)
        self._fleet = replace(fleet, threads=setup.threads, gpus=reserved_gpus(setup))
        self.slots = fleet.least
        self._say = say
        self._digests = dict(digests)
        members_folder = None if members is None else str(members)
        self._setup = replace(setup, folder=folder, members=members_folder, device=kind)  # Ray shows a worker one GPU
        self._deadline = math.inf if deadline is None else deadline
        self._queue: deque[Proposal] = deque()
        self._causes: dict[int, list[str]] = {}  # of each proposal that lost workers, by number
        self._finished: deque[tuple[int, Evaluation]] = deque()
        self._failed_starts = 0  # in a row
        self._most_on: dict[str, int] = {}  # of nodes whose memory was too small for more workers
        self._slots = [_Slot() for _ in range(fleet.most)]
        self._said = self._began = time.monotonic()
        self._connected = connect(self._cpus_here())
        try:
            with start_errors("cannot start workers on the Ray cluster"):
                self._too_small = self._checked_size()
                """Why no candidate starts yet: the cluster is still growing to the least number of workers."""
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
            self._look_for_room()
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
        """Start a new worker in a slot; its future is ready when it has a place. It may wait for one as long as the search lasts."""
        fleet = self._fleet
        options: dict[str, Any] = {"num_cpus": fleet.threads if fleet.cpus is None else fleet.cpus}
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(fleet.threads)}}
        if fleet.gpus:
            options["num_gpus"] = fleet.gpus
        if fleet.memory:
            options["memory"] = fleet.memory
        slot.clear()
        labels = dict(fleet.labels)
        if full := [node for node, most in self._most_on.items() if self._on(node) >= most]:
            labels.setdefault(_NODE_LABEL, f"!in({','.join(full)})")
        if labels:
            options["label_selector"] = labels
        slot.actor = _ACTOR.options(**options).remote(self._setup, self._digests)
        slot.future = slot.actor.node.remote()

    def _on(self, node: str) -> int:
        """Return how many workers have their place on a node."""
        return sum(slot.node == node for slot in self._slots)

    def _placed(self, slot: "_Slot", node: str) -> None:
        """Let a worker that has got a place load its model there, unless the node's memory is too small for one more."""
        slot.node = node
        if node in self._most_on and self._on(node) > self._most_on[node]:  # it waited since before that was known
            ray.kill(slot.actor)
            self._start(slot)
            return
        slot.future, slot.due = slot.actor.prepare.remote(), time.monotonic() + _START_SECONDS

    def _checked_size(self) -> str | None:
        """Return why the cluster is too small, if it is. Raises `EvaluatorError` where it cannot or need not grow."""
        problem = self._fleet.problem(_nodes())
        if problem is not None and (self._fleet.fixed or (self._connected and is_local())):
            raise EvaluatorError(problem)
        return problem

    def _look_for_room(self) -> None:
        """Count the workers that have a place. Raises `EvaluatorError` where the cluster has not grown to the least number in time."""
        placed, now = sum(slot.node is not None for slot in self._slots), time.monotonic()
        self.slots = max(self._fleet.least, placed)
        if self._too_small is not None:
            if placed >= self._fleet.least:
                self._too_small = None
            elif now - self._began >= _GROW_SECONDS:
                small = self._fleet.problem(_nodes()) or f"other work holds what {self._fleet.least} workers need"
                raise EvaluatorError(f"in {_GROW_SECONDS / 60:g} minutes the Ray cluster has not grown enough: {small}")
        if (self._too_small is None and placed) or now - self._said < _SAY_SECONDS:
            return
        self._said = now
        self._say(
            f"{placed} of {self._fleet.least} workers have room on the Ray cluster, each needs {self._fleet}; waiting for nodes"
        )

    def _cpus_here(self) -> int:
        """Return the CPUs of a new cluster on this machine, which cannot grow: those of the most workers that its cores run."""
        each = self._fleet.threads if self._fleet.cpus is None else self._fleet.cpus
        return math.ceil(min(self._fleet.most * each, max(self._fleet.least * each, os.cpu_count() or 1)))

    def _dispatch(self) -> None:
        """Start queued proposals in free slots; each time the pair of slot and proposal with most layers in common."""
        while self._too_small is None and self._queue and (free := [slot for slot in self._slots if slot.free]):
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
            self._replace(slot, _cause(error, slot.node))
            return
        if slot.node is None:
            self._placed(slot, answer)
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
        proposal, excused = slot.proposal, cause == NODE
        if cause == OUT_OF_MEMORY and slot.node is not None and (here := self._on(slot.node)) > 1:
            self._most_on[slot.node], excused = here - 1, True
            self._say(
                f"a worker ran out of memory beside {here - 1} others; its node gets at most {here - 1} workers from now on"
            )
        if proposal is None:
            self._failed_starts += not excused
            if self._failed_starts >= ATTEMPTS:
                slot.clear()
                slot.due = time.monotonic() + _REST_SECONDS
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
    node: str | None = None
    """The node on which the worker has its place; None while it waits for one."""
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

    def clear(self) -> None:
        """Be without a worker."""
        self.actor = self.node = self.future = self.proposal = None
        self.due = math.inf
        self.recent.clear()
        self.prefixes = frozenset()

    def take(self, proposal: Proposal, deadline: float) -> None:
        """Hold a proposal from now on, for `deadline` seconds."""
        self.proposal, self.due = proposal, time.monotonic() + deadline
        self.recent.append(proposal.recipe.prefix_digests)
        self.prefixes = frozenset().union(*self.recent)

    def shared(self, proposal: Proposal) -> int:
        """Return how many leading layers a proposal's stack has in common with a recent one of this slot."""
        return sum(prefix in self.prefixes for prefix in proposal.recipe.prefix_digests)


class _PlacedWorker(RemoteWorker):
    """A worker that knows its node."""

    def node(self) -> str:
        """Return the id of the node on which this runs."""
        return str(ray.get_runtime_context().get_node_id())


_ACTOR: Any = ray.remote(max_restarts=0, max_task_retries=0)(_PlacedWorker)


def _cause(error: RayError, node: str | None) -> str:
    """Return why a worker on a node is lost. Without restarts, Ray's `ActorUnavailableError` is about the node."""
    if isinstance(error, OutOfMemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, ActorUnavailableError | NodeDiedError):
        return NODE
    there = {entry["NodeID"] for entry in _nodes() if entry["Alive"]}
    return type(error).__name__ if node is None or node in there else NODE


def _nodes() -> list[dict[str, Any]]:
    return ray.nodes()  # type: ignore[no-untyped-call, no-any-return]  # the library has no types here


def _copied(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation copied out of Ray's shared memory."""
    scores, outputs = (
        {name: np.array(table) for name, table in tables.items()} for tables in (evaluation.scores, evaluation.outputs)
    )
    return replace(evaluation, scores=scores, outputs=outputs)
