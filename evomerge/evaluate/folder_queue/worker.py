"""QueueWorker: claims candidates from a queue and evaluates them one at a time, for as long as there is a search."""

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evomerge import interrupts
from evomerge.evaluate.folder_queue.folder import Opened, QueueFolder, Result, touch
from evomerge.evaluate.losses import DEADLINE
from evomerge.evaluate.worker import Worker
from evomerge.recipe import Recipe

_PAUSE = 0.2  # seconds between looks for a job


def restart() -> None:
    """Replace this process by a new one of the same command, whatever its threads do."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # what the user typed


class QueueWorker:
    """A worker of a queue. Not to be confused with `Worker`, which evaluates.

    It touches its claim from a second thread, so that only a worker whose process is dead or stopped is taken for lost. A candidate
    past its deadline is given up by that thread, which replaces the process: there is no other way out of a hanging task.
    """

    def __init__(self, queue: QueueFolder, opened: Opened, restart: Callable[[], None] = restart) -> None:
        """Load nothing yet. `restart` replaces the process."""
        self.worker = Worker(opened.setup, alone=False)
        self._queue, self._lease, self._restart = queue, opened.lease, restart
        self._current: _Current | None = None
        self._guard = threading.Lock()  # of what ends the current claim
        self._ended = threading.Event()

    def serve(self, prepare: Callable[[Worker], None], idle: float, most: int | None = None) -> int:
        """Evaluate until the search is over, or there is nothing to do for `idle` seconds, or `most` jobs are done. Return their number.

        `prepare` is called with the worker before its first claim. An interrupt gives the claim back. Raises the exceptions of
        `prepare`, and KeyboardInterrupt.
        """
        done = 0
        identity, file, started = self._queue.new_worker(socket.gethostname())
        beat = threading.Thread(target=self._beat, args=(file,), daemon=True)
        beat.start()
        try:
            quiet, prepared = time.monotonic(), False
            while not self._queue.stopped(started) and time.monotonic() - quiet < idle and done != most:
                interrupts.check()
                if not prepared and self._queue.names("todo"):
                    prepare(self.worker)
                    prepared, quiet = True, time.monotonic()
                if not prepared or (claim := self._claim(identity)) is None:
                    time.sleep(_PAUSE)
                    continue
                with self._held(claim):
                    self._evaluate(claim)
                done, quiet = done + 1, time.monotonic()
        finally:
            self._ended.set()
            beat.join()
            file.unlink(missing_ok=True)
        return done

    def _claim(self, identity: str) -> Path | None:
        """Return the claim of the first job that is free."""
        names = self._queue.names("todo")
        return next(filter(None, (self._queue.claim(name, identity) for name in names)), None)

    def _evaluate(self, claim: Path) -> None:
        """Evaluate a claimed job and write its result."""
        try:
            job = self._queue.read_job(claim)
            recipe = Recipe.parse(job.recipe)
            lineage = {key: Recipe.parse(parent) for key, parent in job.lineage.items()}
        except FileNotFoundError:  # taken back
            return
        except ValueError:
            self._queue.write_result(claim, Result("", lost="a damaged job"))
            return
        if job.deadline is not None:
            self._current = _Current(claim, time.monotonic() + job.deadline)
        self.worker.members.lineage.update(lineage)
        evaluation = self.worker.evaluate(recipe, job.split, job.examples, job.slopes)
        with self._guard:
            self._queue.write_result(claim, Result(recipe.id, evaluation))
            self._current = None

    @contextmanager
    def _held(self, claim: Path) -> Iterator[None]:
        """Keep the claim alive during the block, and give it back if the block raises."""
        self._current = _Current(claim)
        try:
            yield
        except BaseException:
            self._queue.give_back(claim)
            raise
        finally:
            self._current = None

    def _beat(self, file: Path) -> None:
        """Touch the worker's file and its claim, until the worker ends or its candidate is past the deadline."""
        while not self._ended.wait(self._lease / 4):
            with suppress(FileNotFoundError):  # the queue was removed
                file.touch()  # made again, if this worker was taken for dead
            with self._guard:
                current = self._current
                if current is None:
                    continue
                if time.monotonic() < current.due:
                    touch(current.claim)
                    continue
                self._queue.write_result(current.claim, Result("", lost=DEADLINE))
                file.unlink(missing_ok=True)
                self._restart()


@dataclass(frozen=True, slots=True)
class _Current:
    """The claim that a worker holds, and the time, of the monotonic clock, by which it must be done."""

    claim: Path
    due: float = math.inf
