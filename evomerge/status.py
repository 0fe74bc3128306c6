"""Status: what a study's folder says of its search, on any machine that sees it. It only reads, and needs neither torch nor models.

Not to be confused with the report, which scores models on examples that the search never saw.
"""

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import ge
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evomerge import costs, journal, pareto, presence
from evomerge.errors import JournalError, StudyError
from evomerge.history import cost
from evomerge.presence import Presence
from evomerge.trial import Evaluation, ScoreTable

State = Literal["not started", "running", "stopped", "done"]

NUMBERS = re.compile(r"\d[\d.]*(?:e[+-]?\d+)?")
"""Numbers in an error, by which errors of one cause may differ."""
_HOLDER = re.compile(r"process (\d+) on (.+)")
_LOCKS = Path("/proc/locks")
_CURVE = 40  # values of a curve at most
_FIRST = 8  # candidates, whose lowest scores are the reference of the hypervolume
_REPEATS = 1000  # a hypervolume that takes a thousandth of what a report allows


@dataclass(frozen=True, slots=True)
class Best:
    """The candidate with the best mean over the objectives, by its scores on the search examples."""

    number: int
    mean: float
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a study's search. Times are in seconds."""

    study: str
    folder: str
    state: State
    process: str | None
    """The process that runs the search, or did so last."""
    certain: bool
    """Whether this machine can see the process; if not, the search runs by its own last word."""
    ended: str | None
    """Why the last run ended; None while it lasts, if it was killed, or if a version before runs were recorded ran it."""
    spent: float
    """The used budget, in full evaluations."""
    budget: int
    """The whole budget, in full evaluations."""
    times: Mapping[str, tuple[float, float]]
    """Budgets of time, `hours` and `worker_hours`: what is used, and the whole."""
    evaluated: int
    """Number of evaluations, parts and failures included."""
    pending: int
    """Candidates that were asked and have no result."""
    failed: int
    failures: tuple[tuple[str, int], ...]
    """The first error of each cause and their number; errors that differ only in numbers have one cause."""
    seconds: Mapping[str, float]
    """Of all evaluations by `split: part`, and of the driver: `search: driver`."""
    elapsed: float
    """Of all runs of the search."""
    since: float | None
    """Since the last result."""
    idle: float | None
    """Share of the workers' time in which they evaluated nothing, from the first results on."""
    left: float | None
    """Until a budget is used, at the rate from the first results on; None while that is unknown, and where no search runs."""
    workers: int
    """Workers of the search now: those that live, of a queue; otherwise as many as were started. 0 where no search runs."""
    queue: Presence | None
    """Who is at the queue of a search that runs; None of other searches."""
    best: Best | None
    """None where the mean of different metrics says nothing: see `bests`."""
    bests: Mapping[str, tuple[int, float]]
    """For each objective the number of its best candidate, and the score."""
    curve: tuple[float, ...]
    """The best mean so far, from the first candidate to the last, at most 40 values; empty where there is no `best`."""
    hypervolume: float | None
    """What the front dominates above the lowest scores of the first 8 candidates: it never falls once these are there. Not to be
    confused with the report's, above the scores of its references. None without a candidate, and where it takes too long."""


def read(folder: Path) -> Status:
    """Return the status of the study in `folder`. Raises `StudyError` if there is none, `JournalError` if its journal is damaged."""
    return Reader(folder).read()


class Reader:
    """Reads a study's status again and again; of journal and costs only what is new."""

    def __init__(self, folder: Path) -> None:
        """Begin with the study in `folder`."""
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._journal = journal.Followed(self._folder / "journal.jl")
        self._costs = costs.Ledger(self._folder)
        self._found: _Found | None = None

    def read(self) -> Status:
        """Return the status now. Raises `StudyError` if there is no study, `JournalError` if its journal is damaged."""
        folder, settings = self._folder, _settings(self._folder)
        if self._journal.replaced or self._costs.replaced:
            self._begin()
        earlier = bool(self._costs.runs)
        runs, seconds = self._costs.read().runs, dict(self._costs.seconds)
        if self._found is None or (runs and not earlier):
            self._journal = journal.Followed(self._journal.path)
            known = (runs[-1].examples, runs[-1].objectives) if runs else ({}, ())
            self._found = _Found(settings.get("merge_examples", 0), *known)
        found = self._found
        try:
            for record in self._journal.skim():
                found.add(record)
        except JournalError:
            self._begin()
            raise
        path = self._journal.path
        last = runs[-1] if runs else None
        process, running, certain = _process(folder, last)
        finished = found.spent >= settings["evaluations"] or (last is not None and last.ended == costs.DONE)
        state: State = "running" if running else "done" if finished else "stopped" if path.exists() else "not started"
        rate, idle = _rate(runs, found.units)
        queue = _queue(settings) if running else None
        slots = last.slots if running and last is not None else 0
        if runs:
            seconds["search: driver"] = sum(run.driver for run in runs)
        return Status(
            study=settings["name"],
            folder=str(folder),
            state=state,
            process=process,
            certain=certain,
            ended=None if running or last is None else last.ended,
            spent=found.spent,
            budget=settings["evaluations"],
            times=(times := _times(settings, runs)),
            evaluated=found.evaluated,
            pending=len(found.pending),
            failed=sum(count for _, count in found.failures.values()),
            failures=tuple(sorted(found.failures.values(), key=lambda failure: -failure[1])),
            seconds=seconds,
            elapsed=sum(run.elapsed for run in runs),
            since=max(time.time() - path.stat().st_mtime, 0.0) if found.evaluated else None,
            idle=idle,
            left=_left(times, runs, settings["evaluations"] - found.spent, rate) if running else None,
            workers=slots if queue is None else queue.workers,
            queue=queue,
            best=found.best,
            bests=dict(found.bests),
            curve=tuple(found.means[i] for i in np.linspace(0, len(found.means) - 1, _CURVE).astype(int))
            if len(found.means) > _CURVE
            else tuple(found.means),
            hypervolume=found.hypervolume,
        )


@dataclass(slots=True)
class _Found:
    """What the journal says so far."""

    merge: int
    examples: Mapping[str, int]
    """Numbers of search examples; of a study from before runs were recorded, those of its first full evaluation."""
    objectives: Sequence[str]
    pending: dict[int, journal.Sketch] = field(default_factory=dict)
    evaluated: int = 0
    units: dict[int, float] = field(default_factory=dict)
    """The share of a full evaluation that each evaluation is, by number."""
    failures: dict[str, tuple[str, int]] = field(default_factory=dict)
    best: Best | None = None
    bests: dict[str, tuple[int, float]] = field(default_factory=dict)
    means: list[float] = field(default_factory=list)
    """The best mean after each full evaluation."""
    _parts: dict[str, ScoreTable] = field(default_factory=dict)
    _first: list[list[float]] = field(default_factory=list)
    """Scores of the first candidates."""
    _front: list[list[float]] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """The used budget, in full evaluations."""
        return sum(self.units.values())

    @property
    def hypervolume(self) -> float | None:
        """The hypervolume so far, as `Status` has it."""
        if not self._front or not pareto.affordable(len(self._front), len(self.objectives), _REPEATS):
            return None
        return pareto.hypervolume(self._front, np.min(self._first, axis=0))

    def add(self, record: journal.Sketch | journal.Tell) -> None:
        """Add the next record."""
        if isinstance(record, journal.Sketch):
            self.pending[record.number] = record
            return
        proposal, evaluation = self.pending.pop(record.number), record.evaluation
        self.evaluated += 1
        if evaluation.error is not None:
            cause = NUMBERS.sub("#", evaluation.error)
            first, count = self.failures.get(cause, (evaluation.error, 0))
            self.failures[cause] = first, count + 1
        elif proposal.examples is None and not self.examples:
            self.examples = {name.rpartition("/")[0]: len(scores) for name, scores in evaluation.scores.items()}
        full = sum(self.examples.values())
        whole = proposal.examples is None and proposal.slopes is None
        self.units[record.number] = 1.0 if whole or not full else cost(proposal, full, self.merge) / (full + self.merge)
        complete = self._assembled(proposal, evaluation)
        if complete is not None:
            self._compare(record.number, complete)

    def _assembled(self, proposal: journal.Sketch, evaluation: Evaluation) -> Evaluation | None:
        """Return the evaluation on all examples, once all parts of it are there."""
        if evaluation.error is not None or proposal.examples is None:
            return None if evaluation.error is not None else evaluation
        if not self.examples:
            return None
        table = self._parts.setdefault(proposal.recipe, ScoreTable(self.examples))
        if table.complete:
            return None
        table.add(proposal.examples, evaluation)
        return table.take() if table.complete else None

    def _compare(self, number: int, evaluation: Evaluation) -> None:
        objectives = self.objectives = self.objectives or sorted(evaluation.scores)
        scores = dict(zip(objectives, evaluation.means(objectives).tolist(), strict=True))
        point = [*scores.values()]
        if len(self._first) < _FIRST:
            self._first.append(point)
        if not any(all(map(ge, other, point)) for other in self._front):
            self._front = [other for other in self._front if not all(map(ge, point, other))] + [point]
        for name, score in scores.items():
            if name not in self.bests or score > self.bests[name][1]:
                self.bests[name] = number, score
        if len({name.rpartition("/")[2] for name in objectives}) == 1:
            mean = sum(scores.values()) / len(scores)
            if self.best is None or mean > self.best.mean:
                self.best = Best(number, mean, scores)
            self.means.append(self.best.mean)


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings in `study.json`, which are validated when the study is opened."""
    path = folder / "study.json"
    try:
        settings = json.loads(path.read_bytes())["settings"]
        return {**settings, "name": str(settings["name"]), "evaluations": int(settings["evaluations"])}
    except (FileNotFoundError, NotADirectoryError):
        raise StudyError(f"{folder}: no study here (no study.json); expected a study's directory") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StudyError(f"{path}: expected the JSON of a study ({error}); restore the file from a copy") from None


def _queue(settings: Mapping[str, Any]) -> Presence | None:
    """Return who is at the queue of the settings, if they have one."""
    workers = settings.get("workers")
    if not isinstance(workers, dict):
        return None
    try:
        return presence.read(Path(workers["queue"]), float(workers["lease"]))
    except (KeyError, TypeError, ValueError, PermissionError):  # of another account, or no settings of ours
        return None


def _process(folder: Path, run: costs.Run | None) -> tuple[str | None, bool, bool]:
    """Return the process that locked the study last, whether it runs, and whether this machine can tell."""
    path = folder / "lock"
    try:
        holder = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None, False, True
    match = _HOLDER.fullmatch(holder)
    if match is None:
        return None, False, True
    process, host = int(match[1]), match[2]
    if host != socket.gethostname():
        last = run is not None and (run.process, run.host) == (process, host)
        return holder, last and run is not None and run.ended is None, False
    return holder, _locks(process, path), True


def _locks(process: int, path: Path) -> bool:
    """Return whether a process of this machine holds the lock. To try the lock could keep a search from starting."""
    with suppress(OSError):
        ending = f":{path.stat().st_ino}"
        held = [line.split() for line in _LOCKS.read_text().splitlines() if " FLOCK " in line and " -> " not in line]
        return any(fields[4] == str(process) and fields[5].endswith(ending) for fields in held)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _rate(runs: Sequence[costs.Run], units: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Return full evaluations per second and the idle share, None where no run has told them yet.

    They are those of the last run that has evaluated two candidates in each slot, from the end of the first ones on: start-up
    and the compilation of merges take no part, wherever that falls.
    """
    for run in reversed(runs):
        slots, since = run.slots, run.finished[: run.slots]
        later = run.finished[slots:]
        if len(later) < slots:
            continue
        compiling = sum(run.compiling.get(number, 0.0) for number, _, _ in later)
        seconds = run.slot_seconds(since[-1][1], later[-1][1]) - compiling
        done = sum(units.get(number, 0.0) for number, _, _ in later)
        if seconds <= 0 or not done:
            continue
        busy = (sum(work for _, _, work in later) - compiling) / seconds
        return done / seconds * runs[-1].slots, min(max(1 - busy, 0.0), 1.0)
    return None, None


def _times(settings: Mapping[str, Any], runs: Sequence[costs.Run]) -> dict[str, tuple[float, float]]:
    """Return what is used of the budgets of time that are set, and the whole."""
    used = {
        costs.HOURS: sum(run.elapsed for run in runs) / 3600,
        costs.WORKER_HOURS: sum(run.slot_seconds() for run in runs) / 3600,
    }
    return {name: (hours, settings[name]) for name, hours in used.items() if settings.get(name) is not None}


def _left(
    times: Mapping[str, tuple[float, float]], runs: Sequence[costs.Run], rest: float, rate: float | None
) -> float | None:
    """Return the seconds until the first of the budgets is used, None before the last run's first result."""
    if not runs or not runs[-1].finished:
        return None
    ends = [] if rate is None else [rest / rate]
    for name, (used, whole) in times.items():
        ends.append(3600 * (whole - used) / (runs[-1].slots if name == costs.WORKER_HOURS else 1))
    return max(min(ends), 0.0) if ends else None
