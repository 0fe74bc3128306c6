"""QueueEvaluator: evaluates by workers that share a folder with this process, wherever they run."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge import interrupts, locks, presence
from evomerge.checkpoints.members import Members, ancestors
from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.folder_queue.folder import Opened, QueueFolder, job_name
from evomerge.evaluate.losses import final_error
from evomerge.evaluate.setup import Setup
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between looks at the folder
_NOTICE = 60.0  # seconds without a result after which, again and again, it is said that there is no worker


class QueueEvaluator(Evaluator):
    """Writes proposals into a folder, and reads the results that workers write there.

    The only process that tells a study anything: workers come, go and die as they like. A worker that has not touched its claim
    for a lease is lost, and its candidate is queued again, up to `losses.ATTEMPTS` times. A result stays in the folder until the
    next call of `wait`, by when it is in the study's journal: what was evaluated before a kill of this process is found again.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        in_flight: int = 16,
        lease: float = 120.0,
        deadline: float | None = None,
        *,
        study: Path | None = None,
        same: Mapping[str, Mapping[str, Any]] | None = None,
        versions: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Open the queue in `folder` for workers.

        Up to `in_flight` proposals are in it at a time. `lease` and `deadline`, the time of one candidate, are in seconds; None is no
        limit. `study` is the directory of the study, `same` the digests that workers must find again, `versions` those of packages
        here. `say` is called once a minute while candidates wait and there is no worker. Raises `EvaluatorError` for the queue of another study, or of one that another process runs now.
        """
        self.slots = in_flight
        self.lineage: dict[str, Recipe] = {}
        python = [name for name, task in setup.tasks.items() if task.get("kind") == "python"]
        if python:
            raise EvaluatorError(
                f"task `{python[0]}` is a Python function, which workers of a queue cannot import; expected `kind: callable` with "
                "`function: MODULE:FUNCTION` from a file"
            )
        members = None if setup.members is None else Path(setup.members).resolve()
        self._members = Members(0, members)
        base, *experts = (str(Path(setup.folder, path).resolve()) for path in (setup.base, *setup.experts.values()))
        setup = replace(
            setup,
            base=base,
            experts=dict(zip(setup.experts, experts, strict=True)),
            tasks={name: dict(task) for name, task in setup.tasks.items()},
            folder=str(Path(setup.folder).resolve()),
            members=None if members is None else str(members),
        )
        self._queue = QueueFolder(folder)
        self._lease, self._deadline, self._say = lease, deadline, say
        self._pending: dict[str, Proposal] = {}  # by job
        self._causes: dict[str, list[str]] = {}  # of each job that lost workers
        self._failed: dict[str, str] = {}  # the error of each job that lost too many
        self._told: str | None = None  # the job whose result was returned last
        self._next_look = -math.inf
        self._queue.create()
        try:
            self._lock = locks.take(folder / "lock")
        except locks.TakenError as error:
            raise EvaluatorError(
                f"{folder}: {error} runs a study on this queue; wait for it, or give another folder by --queue"
            ) from None
        opened = Opened(
            study=str(study or folder),
            lease=lease,
            setup=setup,
            same={key: dict(value) for key, value in (same or {}).items()},
            versions=dict(versions or {}),
        )
        try:
            self._queue.open(opened)
        except EvaluatorError:
            self.close()
            raise
        # Jobs of an earlier process: those that are submitted again go on, the others are stale.
        self._found: set[str] | None = {
            *self._queue.names("todo"),
            *(name for name, _ in self._queue.claims()),
            *self._queue.names("done"),
        }

    def submit(self, proposal: Proposal) -> None:
        """Write the proposal into the folder, unless an earlier process did."""
        name = job_name(proposal)
        if name == self._told:
            self._settle()
        self._pending[name] = proposal
        if name not in (self._found or ()):
            self._write(name)

    def wait(self) -> tuple[int, Evaluation]:
        """Return the first result in the folder. Without a worker this takes forever, which is said."""
        if not self._pending:
            raise EvaluatorError("no proposal is pending; submit one before waiting")
        self._settle()
        if self._found is not None:
            for name in self._found - self._pending.keys():
                self._queue.remove_job(name)
                self._queue.remove_result(name)
            self._found = None
        pause, notice = _SHORTEST_PAUSE, time.monotonic() + _NOTICE
        while True:
            interrupts.check()
            for name in self._queue.names("done"):
                if name not in self._pending:  # of a worker that was taken for dead
                    self._queue.remove_result(name)
                elif (evaluation := self._read(name)) is not None:
                    return self._finish(name, evaluation)
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self._lease / 4
                self._look_for_lost()
            if self._failed:
                name, error = next(iter(self._failed.items()))
                return self._finish(name, Evaluation(error=error))
            if time.monotonic() >= notice:
                notice += _NOTICE
                self._look_for_workers()
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def retain(self, members: Collection[str]) -> None:
        """Delete the weights of all earlier candidates except these from the disk; in memory workers replace the oldest."""
        self._members.retain(members)

    def close(self) -> None:
        """Leave the queue as it is: workers go on, and a study that is resumed finds their results."""
        self._pending.clear()
        self._lock.close()

    def __exit__(self, *error: object) -> None:
        """Close. Without an exception or a SIGTERM the search is over, and workers are told to end."""
        if error[0] is None and not interrupts.terminated():
            self._settle()
            for name in self._pending:
                self._queue.remove_job(name)
            self._queue.stop()
        self.close()

    def _write(self, name: str) -> None:
        recipe = self._pending[name].recipe
        lineage = {key: parent.data for key, parent in ancestors(recipe, self.lineage, self._members.on_disk)}
        self._queue.write_job(name, self._pending[name], lineage, self._deadline)

    def _read(self, name: str) -> Evaluation | None:
        """Return the evaluation in a job's result, or count the loss that it is."""
        try:
            result = self._queue.read_result(name)
        except (ValueError, KeyError, TypeError):
            cause = "a damaged result"
        else:
            if result.evaluation is not None and result.recipe == self._pending[name].recipe.id:
                return result.evaluation
            cause = result.lost or "the result of another recipe"
        self._queue.remove_result(name)
        self._lose(name, cause)
        return None

    def _finish(self, name: str, evaluation: Evaluation) -> tuple[int, Evaluation]:
        """Return the evaluation of a pending job, which is pending no more."""
        self._queue.remove_job(name)
        self._causes.pop(name, None)
        self._failed.pop(name, None)
        self._told = name
        return self._pending.pop(name).number, evaluation

    def _settle(self) -> None:
        """Remove the result that was returned last: it is in the journal."""
        if self._told is not None:
            self._queue.remove_result(self._told)
            self._told = None

    def _look_for_workers(self) -> None:
        """Say that candidates wait, if there is no worker."""
        here = presence.read(self._queue.path, self._lease)
        if here is not None and here.alone is not None and here.waiting:
            self._say(str(here))

    def _look_for_lost(self) -> None:
        """Count the loss of jobs whose workers are dead, and write again what is gone from the folder."""
        for name, claim in self._queue.expired(self._lease):
            claim.unlink(missing_ok=True)
            if name in self._pending and name not in self._queue.names("done"):
                self._lose(name, f"no sign of life for {self._lease:g} seconds")
        there = {*self._queue.names("todo")}
        there.update(name for name, _ in self._queue.claims())
        there.update(self._queue.names("done"))
        for name in self._pending.keys() - there - self._failed.keys():
            self._write(name)

    def _lose(self, name: str, cause: str) -> None:
        """Count a lost worker of a job, and queue the job again or give up on it."""
        causes = self._causes.setdefault(name, [])
        causes.append(cause)
        error = final_error(causes, self._deadline or math.inf)
        if error is None:
            self._write(name)
        else:
            self._failed[name] = error
