"""Source: one study as the page sees it. It follows the journal by byte offset, and writes nothing."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from evomerge import header, pareto, status
from evomerge.errors import JournalError, StudyError
from evomerge.history import Completed
from evomerge.journal import Event, Followed
from evomerge.report import bootstrap
from evomerge.report.data import Interval
from evomerge.report.results import Results
from evomerge.report.scorer import RECORD, Scorer
from evomerge.study import Study
from evomerge.trial import Evaluation, Split

_T = TypeVar("_T")


class Source:
    """A study that may be running. Hold `lock` while using it: several requests may come at a time."""

    def __init__(self, folder: Path, study: Study | None = None) -> None:
        """Follow the study in `folder`, which is opened when something is asked of it, if it is not given."""
        self.folder = folder
        if study is not None:
            self.study = study
        self.lock = RLock()
        self.generation = 0
        """How often it began anew, as after a repair of the journal: rows from before no longer hold."""
        self._status = status.Reader(folder)
        self._results: tuple[tuple[int, int], Results] | None = None
        self._begin()

    def _begin(self) -> None:
        self._recorded: tuple[tuple[int, int], Scorer] | None = None
        self._cache: dict[str, tuple[Any, Any]] = {}
        self._journal = Followed(self.folder / "journal.jl")
        self._events: list[Event] = []
        self.population: Completed = []
        """All full evaluations so far, in order of number."""
        self.rows: Completed = []
        """The same in the order in which they were first seen: rows are only added at the end."""
        self._means: dict[int, pareto.Points] = {}
        self._seen: set[int] = set()
        self._intervals: dict[int, list[Interval] | None] = {}

    @cached_property
    def name(self) -> str:
        """The study's name."""
        return header.read(self.folder).settings.name

    @cached_property
    def study(self) -> Study:
        """The study, opened. Raises the errors of `Study.open`."""
        return Study.open(self.folder)

    def status(self) -> status.Status:
        """Return the status of the search. Raises `StudyError` or `JournalError`."""
        return self._status.read()

    def update(self) -> None:
        """Read what is new in the journal. Raises `JournalError` if it is damaged."""
        if self._journal.replaced:
            self._begin()
            self.generation += 1
            for kept in ("study", "name"):  # it may be another study, in the place of one that was deleted
                self.__dict__.pop(kept, None)
        study, before = self.study, len(self._events)
        try:
            self._events += (event for event in self._journal.events() if event[1] is not None)
        except JournalError:
            self._begin()
            self.generation += 1
            raise
        again = self._changed("retried", self.folder / "retried.jl")
        if len(self._events) == before and not again:
            return
        self.population = study.history(self._events).population
        if again and self.rows:  # failures have scores now
            self.rows, self._seen, self._means, self._intervals = [], set(), {}, {}
            self.generation += 1
        self.rows += (pair for pair in self.population if pair[0].number not in self._seen)
        self._seen.update(proposal.number for proposal, _ in self.population)

    def _changed(self, name: str, path: Path) -> bool:
        stamp = _stamp(path)
        before = self._cache.get(name, (None, None))[0]
        self._cache[name] = stamp, None
        return bool(stamp != before)

    @property
    def good(self) -> Completed:
        """The evaluations that did not fail, in order of number."""
        return [pair for pair in self.population if pair[1].error is None]

    def means(self, evaluations: Completed) -> pareto.Points:
        """Return the means of the searched metrics, `(evaluations, objectives)`, NaN for a failure."""
        searched = self.study.parts.searched
        for proposal, evaluation in evaluations:
            if proposal.number not in self._means:
                self._means[proposal.number] = evaluation.means(searched)
        return np.array([self._means[p.number] for p, _ in evaluations]).reshape(-1, len(searched))

    def front(self) -> Completed:
        """Return those of the candidates that no other dominates on the search examples, as `Study.front`."""
        return self.once("front", lambda: _front(self))

    def intervals(self, evaluation: Evaluation, split: Split = "search") -> list[Interval] | None:
        """Return the mean of each objective's metric on `split` with its 95% interval; None where it was not all scored.

        On the search split the metrics are those searched, elsewhere those reported.
        """
        parts = self.study.parts
        names = parts.searched if split == "search" else parts.reported
        if any(name not in evaluation.scores for name in names):
            return None
        found = bootstrap.intervals({name: evaluation.scores[name] for name in names}, self._draws(split))
        return [found[name] for name in names]

    def front_intervals(self) -> dict[int, list[Interval] | None]:
        """Return the intervals of the front on the search examples, by number; those of earlier fronts are kept."""
        for proposal, evaluation in self.front():
            if proposal.number not in self._intervals:
                self._intervals[proposal.number] = self.intervals(evaluation)
        return {proposal.number: self._intervals[proposal.number] for proposal, _ in self.front()}

    def _draws(self, split: Split) -> bootstrap.Resamples:
        key = f"draws {split}"
        if key not in self._cache:
            parts = self.study.parts
            names = parts.searched if split == "search" else parts.reported
            self._cache[key] = None, Scorer(self.study, (), split=split).draws(names)
        found: bootstrap.Resamples = self._cache[key][1]
        return found

    def candidate(self, number: int) -> int:
        """Return the row of the candidate of this number. Raises `StudyError` for one that has no evaluation."""
        for row, (proposal, _) in enumerate(self.population):
            if proposal.number == number:
                return row
        raise StudyError(f"{self.folder}: no candidate {number} was evaluated on all search examples")

    def results(self) -> Results | None:
        """Return the last report, None before the first. Raises `StudyError` for one of another version."""
        path = self.folder / "report.json"
        stamp = _stamp(path)
        if stamp is None:
            return None
        if self._results is None or self._results[0] != stamp:
            try:
                self._results = stamp, Results.model_validate_json(path.read_bytes())
            except ValueError:
                msg = f"{path}: no report of this version; type: evomerge show {self.folder}"
                raise StudyError(msg) from None
        return self._results[1]

    def reported(self) -> int:
        """Return a number that changes with the report; 0 before the first."""
        stamp = _stamp(self.folder / "report.json")
        return 0 if stamp is None else stamp[0]

    def scored(self, recipe_id: str, split: Split) -> Evaluation | None:
        """Return what the reports have recorded of a recipe's scores on `split`, or else the search; None for nothing."""
        stamp = _stamp(self.folder / RECORD)
        if stamp is None:
            return None
        if self._recorded is None or self._recorded[0] != stamp:
            scorer = Scorer(self.study, ())
            scorer.attempt([])
            self._recorded = stamp, scorer
        try:
            return Evaluation(self._recorded[1].scores(recipe_id, split))
        except KeyError:  # a report does not score again what the search has
            return next((e for p, e in self.good if (p.recipe.id, p.split) == (recipe_id, split)), None)

    def once(self, what: str, make: Callable[[], _T]) -> _T:
        """Return what `make` returns, made once for each state of the search."""
        state = self.generation, len(self.rows)
        if self._cache.get(what, (None, None))[0] != state:
            self._cache[what] = state, make()
        found: _T = self._cache[what][1]
        return found

    def lately(self, what: str, make: Callable[[], _T]) -> _T:
        """Return what `make` returns, as `once`, but keep it while the search runs and has no tenth more candidates: for what takes seconds."""
        (generation, rows), found = self._cache.get(what, ((None, 0), None))
        if generation == self.generation and len(self.rows) < 1.1 * rows and self.status().state == "running":
            kept: _T = found
            return kept
        return self.once(what, make)

    def volumes(self, corner: Sequence[float]) -> list[float]:
        """Return the hypervolume above `corner` of the first 1, 2, … candidates that did not fail; only what is new is computed."""
        numbers, above = [proposal.number for proposal, _ in self.good], (self.generation, *corner)
        kept: tuple[tuple[float, ...], pareto.Growing, list[int], list[float]] | None
        kept = self._cache.get("volumes", (None, None))[1]
        if kept is None or kept[0] != above or numbers[: len(kept[2])] != kept[2]:
            kept = above, pareto.Growing(corner), [], []
        _, growing, known, found = kept
        found = found + [growing.add(point) for point in self.means(self.good[len(known) :])]
        self._cache["volumes"] = None, (above, growing, numbers, found)
        return found


def _front(source: Source) -> Completed:
    good = source.good
    return [good[row] for row in np.flatnonzero(pareto.nondominated(source.means(good))).tolist()]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's time of change and size, None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size
