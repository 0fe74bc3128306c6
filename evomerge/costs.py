"""Costs: what took how long, in `costs.jl` beside the journal, whose bytes must not depend on the clock.

One JSON object a line: the beginning of a run of the search, an evaluation, the end of a run. A process that is killed writes no
end; its run then ends with its last evaluation.
"""

import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge import files, interrupts
from evomerge.trial import LONGEST_ERROR, Evaluation, Proposal

NAME = "costs.jl"
DONE, INTERRUPTED, TERMINATED, HOURS, WORKER_HOURS = "done", "interrupted", "terminated", "hours", "worker_hours"
"""Why a run of the search ended; others ended by an error, which is said instead."""


@dataclass(slots=True)
class Run:
    """One run of a study's search, by one process. Not to be confused with the study, which may have several."""

    process: int
    host: str
    slots: int
    """How many candidates are evaluated at a time; the last number, where it changed."""
    examples: Mapping[str, int]
    """Number of search examples of each task."""
    objectives: Sequence[str]
    ended: str | None = None
    """Why it ended; None while it lasts, or if it was killed."""
    elapsed: float = 0.0
    """Seconds from its beginning to its last line."""
    driver: float = 0.0
    """Seconds of the driver, which asks and tells."""
    sizes: list[tuple[float, int]] = field(default_factory=list)
    """When the number of slots changed, in seconds from the beginning, and to what; the first is that at the beginning."""
    finished: list[tuple[int, float, float]] = field(default_factory=list)
    """The number of each evaluation, the seconds from the beginning of the run to its end, and the seconds of its work."""
    compiling: dict[int, float] = field(default_factory=dict)
    """Those of them in which merges were compiled, by number: the first few evaluations of each worker have them."""

    def slot_seconds(self, start: float = 0.0, end: float | None = None) -> float:
        """Return the seconds of all slots, busy or idle, between two times of the run; by default until its last line."""
        end = self.elapsed if end is None else end
        until = [*(since for since, _ in self.sizes[1:]), end]
        return sum(
            slots * max(min(last, end) - max(since, start), 0.0)
            for (since, slots), last in zip(self.sizes, until, strict=True)
        )


class Clock:
    """The clock of a run that lasts, which is recorded in the study's folder. Only for reports and budgets of time."""

    def __init__(self, folder: Path, slots: int, examples: Mapping[str, int], objectives: Sequence[str]) -> None:
        """Begin a run."""
        self._folder, self._slots, self._start = folder, slots, time.monotonic()
        earlier, _ = runs(folder)
        self._hours = sum(run.elapsed for run in earlier) / 3600
        self._worker_hours = sum(run.slot_seconds() for run in earlier) / 3600
        self._changed = 0.0, 0.0
        self._driver = 0.0
        self.stopped: str | None = None
        """Why the search stops before its end; None while it does not."""
        began = {"began": time.time(), "process": os.getpid(), "host": socket.gethostname(), "slots": slots}
        _append(folder, {**began, "examples": dict(examples), "objectives": list(objectives)})

    def start(self) -> None:
        """Count from now on: the replay of the journal uses no budget."""
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began to search."""
        return time.monotonic() - self._start

    @property
    def hours(self) -> float:
        """Hours of all runs of the study so far."""
        return self._hours + self.elapsed / 3600

    @property
    def worker_hours(self) -> float:
        """Hours of all runs of the study so far, each times its number of workers."""
        since, before = self._changed
        return self._worker_hours + (before + self._slots * (self.elapsed - since)) / 3600

    def resize(self, slots: int) -> None:
        """Record that the run has so many slots from now on, where it had another number."""
        if slots == self._slots:
            return
        now, (since, before) = self.elapsed, self._changed
        self._slots, self._changed = slots, (now, before + self._slots * (now - since))
        _append(self._folder, {"slots": slots, "elapsed": round(now, 3), "driver": round(self._driver, 6)})

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Count the seconds of the block as the driver's."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._driver += time.monotonic() - start

    def add(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Record an evaluation of the search."""
        append(self._folder, proposal, evaluation, elapsed=round(self.elapsed, 3), driver=round(self._driver, 6))

    def end(self, why: str) -> None:
        """End the run."""
        _append(self._folder, {"ended": why, "elapsed": round(self.elapsed, 3), "driver": round(self._driver, 6)})


@contextmanager
def timed(folder: Path, slots: int, examples: Mapping[str, int], objectives: Sequence[str]) -> Iterator[Clock]:
    """Record the block as a run of the search: from its beginning to its end, and why it ended."""
    clock = Clock(folder, slots, examples, objectives)
    try:
        yield clock
    except KeyboardInterrupt:
        why = TERMINATED if interrupts.terminated() else INTERRUPTED
        raise
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
        raise
    else:
        why = clock.stopped or DONE
    finally:
        with suppress(OSError):  # as on a full disk, which has ended the run
            clock.end(why)


def append(folder: Path, proposal: Proposal, evaluation: Evaluation, **more: float) -> None:
    """Append one evaluation of the study in `folder`, with `more` numbers about it."""
    seconds = dict(evaluation.seconds)
    _append(folder, {"number": proposal.number, "split": proposal.split, "seconds": seconds, **more})


class Ledger:
    """What `costs.jl` says so far; `read` adds what is new. Not to be confused with the `Clock`, which writes it."""

    def __init__(self, folder: Path) -> None:
        """Begin with nothing, for the study in `folder`."""
        self._tail = files.Tail(folder / NAME)
        self.seconds = defaultdict[str, float](float)
        """Of evaluations by `split: phase`."""
        self.runs: list[Run] = []
        """The runs of the search in their order; a study from before runs were recorded has none."""
        self.damaged = 0, 0
        """Numbers of damaged lines, which are skipped: of evaluations, and of what runs say."""

    @property
    def replaced(self) -> bool:
        """Whether another file is in its place: then begin anew."""
        return self._tail.replaced

    def read(self, *, torn: bool = False) -> "Ledger":
        """Add the new lines; with `torn` also one without an end, as the last of a file that is no more written to."""
        for line in self._tail.new(torn=torn):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            self._add(entry if isinstance(entry, dict) else {})
        return self

    def _add(self, entry: dict[str, Any]) -> None:
        if not entry.keys() & {"began", "ended", "slots"}:
            try:
                seconds = {f"{entry['split']}: {kind}": float(value) for kind, value in entry["seconds"].items()}
            except (ValueError, TypeError, KeyError, AttributeError):
                self.damaged = self.damaged[0] + 1, self.damaged[1]
            else:
                for phase, value in seconds.items():
                    self.seconds[phase] += value
        try:
            if "began" in entry:
                who = int(entry["process"]), str(entry["host"]), int(entry["slots"])
                self.runs.append(Run(*who, {**entry["examples"]}, [*entry["objectives"]], sizes=[(0.0, who[-1])]))
            elif self.runs and "elapsed" in entry:
                run, elapsed, driver = self.runs[-1], float(entry["elapsed"]), float(entry["driver"])
                if "slots" in entry:
                    run.slots = int(entry["slots"])
                    run.sizes.append((elapsed, run.slots))
                elif "ended" in entry:
                    run.ended = str(entry["ended"])
                else:
                    number = int(entry["number"])
                    run.finished.append((number, elapsed, sum(map(float, entry["seconds"].values()))))
                    if "compile" in entry["seconds"]:
                        run.compiling[number] = float(entry["seconds"]["compile"])
                run.elapsed, run.driver = elapsed, driver
            elif "seconds" not in entry:
                self.damaged = self.damaged[0], self.damaged[1] + 1
        except (ValueError, TypeError, KeyError, AttributeError):
            self.damaged = self.damaged[0], self.damaged[1] + 1


def totals(folder: Path) -> tuple[dict[str, float], int]:
    """Return the seconds of evaluations by `split: phase`, and the number of damaged lines, which are skipped."""
    ledger = Ledger(folder).read(torn=True)
    return dict(ledger.seconds), ledger.damaged[0]


def runs(folder: Path) -> tuple[list[Run], int]:
    """Return the runs of the study's search in their order, and the number of damaged lines, which are skipped.

    A study from before runs were recorded has none.
    """
    ledger = Ledger(folder).read(torn=True)
    return ledger.runs, ledger.damaged[1]


def _append(folder: Path, entry: Mapping[str, Any]) -> None:
    """Append a line, on a new one even if the last is torn."""
    with (folder / NAME).open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")
