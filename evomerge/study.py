"""Study: a directory, a driver, an evaluator and a budget. The file to read first.

A study's directory holds `study.json` (what it is), `journal.jl` (all that was asked and told: the truth), `costs.jl`
(where the time went), and what `evomerge.report` writes. Resuming replays the journal through a fresh, seeded driver, so
no optimiser's state is ever stored.
"""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge import evaluate, files, journal
from evomerge.errors import StudyError
from evomerge.journal import Ask, Journal
from evomerge.recipe import Recipe
from evomerge.search import Driver
from evomerge.settings import Parts, StudySettings, identity, open_parts, versions
from evomerge.trial import Evaluation, Proposal, ScoreTable, Split

_DEADLINE = 3600.0
"""Seconds that a candidate may take where workers can be stopped and nobody has said otherwise: no hung night."""

Watcher = Callable[[Proposal, Evaluation], None]
"""Is told of each evaluation, also of a part, once it is safe on disk."""

Told = list[tuple[Proposal, Evaluation]]
"""Proposals and what became of them, in order of number."""

Sizes = Mapping[Split, Mapping[str, int]]
"""Number of examples of each task, by split."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a journal holds of evaluations that have come back, failures included."""

    told: Told
    """Each as it was asked for, parts by themselves: what `digest` is to cover."""
    population: Told
    """Whole evaluations alone: scores of a part cannot be compared with those of all examples."""
    partial: tuple[int, ...]
    """For each candidate that was stopped early, or is not done yet, the number of its last part. It is in no population."""
    spent: float
    """Scores of search examples that came back, in units of a whole evaluation, as a budget counts them."""


class Study:
    """A search that survives anything. Not to be confused with its settings, the YAML that describes it."""

    def __init__(self, folder: Path, settings: StudySettings, parts: Parts) -> None:
        """Hold a study whose directory exists. Use `Study.create` or `Study.open`."""
        self.folder = folder
        self.settings = settings
        self.parts = parts
        self.driver: Driver | None = None
        """The driver that `run` searches with: to be looked at by whoever watches, never told."""
        self.spent = 0.0
        """How much of the budget has come back to `run` by now, in evaluations; of a part, its share of one."""

    @classmethod
    def create(
        cls, folder: Path, settings: StudySettings, progress: Callable[[str], None] = lambda what: None
    ) -> "Study":
        """Start a study in `folder`, or go on with the same one there. Raises `StudyError` if another one is there."""
        if (folder / "study.json").exists():
            return cls.open(folder, settings, progress)
        if folder.exists() and any(folder.iterdir()):
            msg = f"{folder}: exists, is not empty, and is no study; give another directory with `-o`"
            raise StudyError(msg)
        parts = open_parts(settings, progress)
        study = cls(folder, settings, parts)
        study._save_header()
        return study

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: StudySettings | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> "Study":
        """Open the study in `folder`, with its own settings or with `settings` that differ only where they may.

        Raises `StudyError` showing what differs, if anything does that would make it another study.
        """
        path = folder / "study.json"
        if not path.is_file():
            msg = f"{folder}: no study here (no study.json); start one with `evomerge run STUDY.yaml -o {folder}`"
            raise StudyError(msg)
        header = json.loads(path.read_text(encoding="utf-8"))
        recorded = StudySettings.model_validate(header["settings"])
        parts = open_parts(settings or recorded, progress)
        now = json.loads(json.dumps(identity(settings or recorded, parts)))
        if now != header["identity"]:
            lines = "\n".join(_differences(header["identity"], now, ""))
            msg = f"{folder}: not the study that was started here:\n{lines}\nundo the change, or give another directory with `-o`"
            raise StudyError(msg)
        study = cls(folder, settings or recorded, parts)
        if settings is not None and settings != recorded:
            study._save_header()
        return study

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, evaluator: evaluate.CachingEvaluator, watch: Watcher = lambda proposal, evaluation: None) -> None:
        """Search until the budget is spent or the driver has no more to ask, after replaying what is recorded.

        The budget is counted in examples; the last proposal may exceed it by less than a whole evaluation.
        """
        driver = self.driver = self.parts.new_driver(self.settings.seed)
        whole = self.parts.whole
        flying: dict[int, Proposal] = {}
        asked = told = 0  # examples
        with self.lock(), Journal(self.journal_path) as record:
            for waiting, found in self.replay(driver):  # resume
                if found is None:
                    flying[waiting.number] = waiting
                    evaluator.lineage[waiting.recipe.id] = waiting.recipe
                    asked += _cost(waiting, whole)
                else:
                    del flying[waiting.number]
                    evaluator.seed(waiting.recipe.id, waiting.split, found, waiting.examples)
                    told += _cost(waiting, whole)
            self.spent = told / whole
            for waiting in flying.values():
                evaluator.submit(waiting)
            while True:
                while (
                    len(flying) < evaluator.slots
                    and asked < self.settings.evaluations * whole
                    and (proposal := driver.ask()) is not None
                ):
                    record.ask(proposal)
                    evaluator.lineage[proposal.recipe.id] = proposal.recipe
                    evaluator.submit(proposal)
                    flying[proposal.number] = proposal
                    asked += _cost(proposal, whole)
                if not flying:
                    break
                number, evaluation = evaluator.wait()
                record.tell(number, evaluation)
                done = flying.pop(number)
                driver.tell(done, evaluation)
                if self.parts.space.parents:
                    evaluator.retain(_needed(driver, flying.values()))
                self.record_cost(done, evaluation)
                told += _cost(done, whole)
                self.spent = told / whole
                watch(done, evaluation)

    def replay(self, driver: Driver) -> Iterator[tuple[Proposal, Evaluation | None]]:
        """Feed the journal through a fresh, seeded `driver`: yield each proposal asked for (with None), and again when told.

        Raises `StudyError` if the driver proposes anything but what is recorded.
        """
        flying: dict[int, Proposal] = {}
        for event in journal.read(self.journal_path):
            if isinstance(event, Ask):
                proposal = flying[event.number] = self._same(event, driver.ask())
                yield proposal, None
            else:
                proposal = flying.pop(event.number)
                driver.tell(proposal, event.evaluation)
                yield proposal, event.evaluation

    def evaluator(self) -> evaluate.CachingEvaluator:
        """Return a new evaluator as the settings ask for; close it after use."""
        deadline = self.settings.deadline
        if deadline is None and self.settings.workers > 1:
            deadline = _DEADLINE
        setup = self.parts.setup
        if not self.parts.space.parents:
            return evaluate.CachingEvaluator(evaluate.make(setup, self.settings.workers, deadline), self.parts.sizes)
        setup = replace(setup, members=str(self.folder / "members"))
        made = evaluate.CachingEvaluator(evaluate.make(setup, self.settings.workers, deadline), self.parts.sizes)
        made.lineage.update(self.lineage())
        return made

    def lineage(self) -> dict[str, Recipe]:
        """Return the recipes of all candidates by id, which tell how those that are made of others can be made again."""
        asked = (event for event in journal.read(self.journal_path) if isinstance(event, Ask))
        return {event.recipe.id: event.recipe for event in asked}

    def record(self) -> Record:
        """Return all that has been evaluated so far."""
        told = read_told(self.journal_path)
        population, partial = _assembled(told, self.parts.sizes)
        whole = self.parts.whole
        spent = sum(_cost(proposal, whole) for proposal, _ in told) / whole
        return Record(told, population, tuple(partial), spent)

    def population(self) -> Told:
        """Return all that has been evaluated whole, in order of number, failures included."""
        return self.record().population

    @property
    def journal_path(self) -> Path:
        """The file of the journal."""
        return self.folder / "journal.jl"

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Hold the study's journal (or, with `report.lock`, its report) against every other process.

        A report may be made while a search runs. Raises `StudyError` naming the process that holds the lock.
        """
        with (self.folder / name).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                msg = f"{self.folder}: in use by {holder}; wait for it, or stop it"
                raise StudyError(msg) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    # -- inside --------------------------------------------------------------------------------------------------------

    def _same(self, event: Ask, proposal: Proposal | None) -> Proposal:
        """Return the driver's proposal, which must be the recorded one."""
        what = "another recipe than the recorded one"
        if proposal is not None and (proposal.number, proposal.recipe) == (event.number, event.recipe):
            if proposal.examples == event.examples:
                return proposal
            what = "other examples than the recorded ones"
        then = json.loads((self.folder / "study.json").read_text(encoding="utf-8"))["versions"]
        now = versions()
        changed = [f"{name} {then.get(name)} → {now[name]}" for name in now if then.get(name) != now[name]]
        msg = (
            f"{self.journal_path}: replaying proposal {event.number} gave {what}; "
            f"{'changed since: ' + ', '.join(changed) if changed else 'no version has changed: please report this'}; "
            "install the recorded versions, or start a new study"
        )
        raise StudyError(msg)

    def record_cost(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Record where an evaluation's time went: beside the journal, whose bytes depend on no clock."""
        with (self.folder / "costs.jl").open("a", encoding="utf-8") as file:
            line = {"number": proposal.number, "split": proposal.split, "seconds": dict(evaluation.seconds)}
            file.write(json.dumps(line) + "\n")

    def _save_header(self) -> None:
        header: dict[str, Any] = {
            "format": 1,
            "settings": self.settings.model_dump(mode="json"),
            "identity": identity(self.settings, self.parts),
            "versions": versions(),
        }
        files.write(self.folder / "study.json", json.dumps(header, indent=2) + "\n")  # unsorted: tasks have an order


def _needed(driver: Driver, flying: Iterable[Proposal]) -> set[str]:
    """Return the ids of candidates whose weights may still be asked for: by the driver, or for those in flight."""
    own = {identity for proposal in flying for identity in (proposal.recipe.id, *proposal.recipe.members)}
    return own.union(driver.members())


def read_told(path: Path) -> Told:
    """Return the proposals and evaluations in the journal at `path`, in order of number, each part by itself."""
    asks: dict[int, Proposal] = {}
    tells: dict[int, Evaluation] = {}
    for event in journal.read(path):
        if isinstance(event, Ask):
            asks[event.number] = Proposal(event.number, event.recipe, split=event.split, examples=event.examples)
        else:
            tells[event.number] = event.evaluation
    return [(asks[number], tells[number]) for number in sorted(tells)]


def read_population(path: Path, sizes: Sizes | None = None) -> Told:
    """Return what the journal at `path` has of whole evaluations, in order of number.

    Parts of one recipe are put together: when all examples are there, they are one evaluation, under the number of the last
    part; a part that failed is a failed evaluation. What was stopped before is left out. `sizes` say how many examples
    there are; without, a journal with parts is a `StudyError`.
    """
    return _assembled(read_told(path), sizes)[0]


def _assembled(told: Told, sizes: Sizes | None) -> tuple[Told, list[int]]:
    """Return the whole evaluations, and the last number of each recipe that is known in part and has not failed."""
    population: Told = []
    known: dict[tuple[str, Split], ScoreTable] = {}
    last: dict[tuple[str, Split], int] = {}
    for proposal, evaluation in told:
        key = proposal.recipe.id, proposal.split
        if proposal.examples is None or evaluation.error is not None:
            last.pop(key, None)
            population.append((replace(proposal, examples=None), evaluation))
            continue
        if sizes is None:
            msg = f"proposal {proposal.number} is of a part of the examples; expected `sizes`, such as `study.parts.sizes`"
            raise StudyError(msg)
        before = known.setdefault(key, ScoreTable(sizes[proposal.split]))
        if before.complete:
            continue
        before.add(proposal.examples, evaluation)
        last[key] = proposal.number
        if before.complete:
            del last[key]
            population.append((replace(proposal, examples=None), before.take()))
    return population, sorted(last.values())


def digest(told: Told) -> str:
    """Return the sha256 over recipe ids, examples and scores in order of number: equal for equal searches, whatever the workers."""
    total = hashlib.sha256()
    for proposal, evaluation in told:
        total.update(proposal.recipe.id.encode())
        if proposal.examples is not None:
            total.update(json.dumps(dict(proposal.examples), sort_keys=True).encode())
        total.update(json.dumps(evaluation.to_json(), sort_keys=True).encode())
    return total.hexdigest()


def _cost(proposal: Proposal, whole: int) -> int:
    """Return how many examples a proposal on the search split asks for, of the `whole` that there are."""
    return whole if proposal.examples is None else sum(map(len, proposal.examples.values()))


def _differences(then: Any, now: Any, where: str) -> Iterator[str]:
    """Yield one line for each leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif then != now:
        yield f"  {where}: was {json.dumps(then)}, is {json.dumps(now)}"
