"""Study: a directory, a driver, an evaluator and a budget. The file to read first.

A study's directory holds `study.json` (its settings and identity), `journal.jl` (all proposals and evaluations: the only
truth), `costs.jl` (the time they took), `retried.jl` (failed candidates, evaluated again), and the output of
`evomerge.report`. A study is resumed by replaying its journal through a fresh, seeded driver, so no optimiser state is ever
stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Console

from evomerge import (
    attempts,
    costs,
    evaluate,
    header,
    interrupts,
    journal,
    locks,
    notices,
    pareto,
    placement,
    search,
    trust,
    workers,
)
from evomerge.errors import EvaluatorError, SpaceError, StudyError, StudyInUseError
from evomerge.evaluate.worker import OUT_OF_DEVICE_MEMORY
from evomerge.history import Completed, History, cost, digest
from evomerge.journal import Event, Journal
from evomerge.parts import Parts, code, open_parts, versions
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.search import Driver
from evomerge.settings import StudySettings
from evomerge.tasks import PythonTask
from evomerge.trial import Evaluation, Proposal

if TYPE_CHECKING:
    from pandas import DataFrame

_HOPELESS = 8  # candidates, the first of a search, after which one error of all of them ends it

Watcher = Callable[[Proposal, Evaluation], None]
"""Called with each evaluation, also of a part of the examples, after it is in the journal."""


class Study:
    """A search that can be stopped and resumed at any moment. Not to be confused with its settings, the YAML."""

    def __init__(self, folder: Path, settings: StudySettings, parts: Parts) -> None:
        """Hold a study whose directory exists. Use `Study.create` or `Study.open`."""
        self.folder = folder
        self.settings = settings
        self.parts = parts
        self.driver: Driver | None = None
        """The driver of `run`. Watchers may read it; only `run` may call `tell`."""
        self.spent = 0.0
        """The budget that `run` has used so far, in full evaluations; a part counts as its share of one."""
        self.stopped: str | None = None
        """Why the last `run` stopped before its end, `hours`, `worker_hours` or `terminated`, if it did."""

    @classmethod
    def create(
        cls,
        folder: Path,
        settings: StudySettings,
        progress: Callable[[str], None] = lambda step: None,
        python_tasks: Mapping[str, PythonTask] = MappingProxyType({}),
    ) -> "Study":
        """Start a study in `folder`, or open it if it is there. Raises `StudyError` if the folder has anything else.

        The code that the settings name may run from now on: see `evomerge.trust`.
        """
        with suppress(OSError):  # without a cache, only `open` without settings refuses it
            trust.record(code(settings))
        if (folder / "study.json").exists():
            return cls.open(folder, settings, progress, python_tasks)
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise StudyError(f"{folder}: is no directory; give another one with `-o`")
        if folder.exists() and any(folder.iterdir()):
            raise StudyError(f"{folder}: exists, is not empty, and is no study; give another directory with `-o`")
        settings = settings.pinned().settled()
        placement.find(settings.device)
        parts = open_parts(settings, progress, python_tasks)
        if not settings.evaluations:
            number, _ = search.budget(parts.new_driver(settings.seed), parts.space)
            settings = settings.model_copy(update={"evaluations": number})
        parts.check_here()
        study = cls(folder, settings, parts)
        header.write(folder, settings, parts)
        return study

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: StudySettings | None = None,
        progress: Callable[[str], None] = lambda step: None,
        python_tasks: Mapping[str, PythonTask] = MappingProxyType({}),
    ) -> "Study":
        """Open the study in `folder` with its own settings, or with `settings` that change only `settings.CHANGEABLE`.

        A study whose driver is named as it was, or still is not, keeps the one it started with, whatever the defaults are now; so it
        does its budget, where `settings` name none. Changed settings are saved by `run`. Raises `StudyError` with the differences
        if `settings` describe another study, and, without `settings`, before any code of the study's own runs, if this account has
        not run it before: see `evomerge.trust`.
        """
        started = header.read(folder)
        if settings is None:
            settings = started.settings
            trust.check(code(settings), folder)
        settings = settings.pinned().settled(started.settings)
        if not settings.evaluations:
            settings = settings.model_copy(update={"evaluations": started.settings.evaluations})
        recorded = started.identity.get("driver") if settings.driver == started.settings.driver else None
        parts = open_parts(settings, progress, python_tasks, recorded)
        header.check_same(started, settings, parts, folder)
        return cls(folder, settings, parts)

    @classmethod
    def fork(cls, folder: Path, new: Path, progress: Callable[[str], None] = lambda step: None) -> "Study":
        """Start a study in `new` with the settings and the driver of the one in `folder`, whose code or data may have changed.

        All candidates are evaluated anew. Raises `StudyError` if `new` has anything else than this fork, and for code that this account
        has not agreed to run: see `evomerge.trust`.
        """
        started = header.read(folder)
        trust.check(code(started.settings), folder)
        driver = started.identity.get("driver", started.settings.driver)
        return cls.create(new, started.settings.model_copy(update={"driver": driver}), progress)

    def run(
        self,
        evaluator: evaluate.CachingEvaluator | None = None,
        watch: Watcher = lambda proposal, evaluation: None,
        *,
        progress: bool = True,
        grace: float = interrupts.GRACE,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Replay the journal, then search until a budget is used or the driver proposes no more.

        The budget is counted in examples; the last proposal may exceed it by less than a full evaluation. A budget of time ends the
        search when what runs has finished; so does SIGTERM, where `interrupts.install` was called, for at most `grace` seconds:
        `stopped` says which. Without an `evaluator` the study makes its own, and shows progress unless `progress` is False. `say` is
        called with a line if notices cannot be posted. Raises `StudyError` where the first candidates all fail with one error.
        """
        if evaluator is None:
            total = self.settings.evaluations
            with Progress("search", total, Console(quiet=not progress)) as bar, self.evaluator(say=bar.remind) as own:

                def show(proposal: Proposal, evaluation: Evaluation) -> None:
                    bar(min(int(self.spent), total))
                    watch(proposal, evaluation)

                self.run(own, show, grace=grace, say=bar.say)
            return
        driver = self.driver = self.parts.new_driver(self.settings.seed)
        full, merge = sum(self.parts.sizes["search"].values()), self.settings.merge_examples
        pending: dict[int, Proposal] = {}
        asked = completed = 0  # examples
        errors: list[str | None] = []  # of the first candidates

        def ask() -> Proposal | None:
            nonlocal asked
            clock.resize(evaluator.slots)
            if asked >= self.settings.evaluations * (full + merge) or self._out_of_time(clock):
                return None
            with clock.driving():
                proposal = driver.ask()
            asked += 0 if proposal is None else cost(proposal, full, merge)
            return proposal

        run = costs.timed(self.folder, evaluator.slots, self.parts.sizes["search"], self.parts.searched)
        posts = notices.Notices(self.settings.notify, self.folder, say)
        with posts, self.lock(), Journal(self.journal_path) as record, run as clock, interrupts.graceful(grace):
            for proposal, evaluation in self.replay(driver):
                if evaluation is None:
                    pending[proposal.number] = proposal
                    evaluator.lineage[proposal.recipe.id] = proposal.recipe
                    asked += cost(proposal, full, merge)
                else:
                    del pending[proposal.number]
                    evaluator.seed(proposal.recipe.id, proposal.split, evaluation, proposal.examples)
                    completed += cost(proposal, full, merge)
                    errors.append(evaluation.error)
            if header.read(self.folder).settings.model_dump() != self.settings.model_dump():
                header.write(self.folder, self.settings, self.parts)
            self.spent = completed / (full + merge)
            clock.start()
            posts.began()
            alone = self.settings.workers == 1 and self.settings.deadline is None  # a candidate may kill this process
            with attempts.counted(self.folder, pending) if alone else nullcontext() as hopeless:
                driven = _until_terminated(clock, evaluate.drive(evaluator, record, ask, pending))
                for proposal, evaluation in chain(_given_up(hopeless, record, pending), driven):
                    with clock.driving():
                        driver.tell(proposal, evaluation)
                    if self.parts.space.parents:
                        evaluator.retain(_needed(driver, pending.values()))
                    clock.add(proposal, evaluation)
                    posts.add(proposal.number, evaluation)
                    completed += cost(proposal, full, merge)
                    self.spent = completed / (full + merge)
                    watch(proposal, evaluation)
                    self._check_hope(errors, evaluation)
        self.stopped = clock.stopped

    def _out_of_time(self, clock: costs.Clock) -> bool:
        """Return whether the search stops before its end, and note why."""
        if interrupts.terminated():
            clock.stopped = costs.TERMINATED
        elif self.settings.hours is not None and clock.hours >= self.settings.hours:
            clock.stopped = costs.HOURS
        elif self.settings.worker_hours is not None and clock.worker_hours >= self.settings.worker_hours:
            clock.stopped = costs.WORKER_HOURS
        return clock.stopped is not None

    def _check_hope(self, errors: list[str | None], evaluation: Evaluation) -> None:
        """Add the error of the next evaluation. Raises `StudyError` if the first ones all failed with one error."""
        if len(errors) < _HOPELESS:
            errors.append(evaluation.error)
            if len(errors) == 1 and (evaluation.error or "").startswith(OUT_OF_DEVICE_MEMORY):
                raise StudyError(
                    f"the first candidate of {self.folder} is too large: {evaluation.error}; and start the study in a new "
                    f"directory, or type `evomerge resume {self.folder}` to go on all the same"
                )
            if len(errors) == _HOPELESS and errors[0] is not None and len({*errors}) == 1:
                raise StudyError(
                    f"the first {_HOPELESS} candidates of {self.folder} all failed with one error: {errors[0]}; remove its cause, and start "
                    f"the study in a new directory, or type `evomerge resume {self.folder}` to go on all the same"
                )

    def retry_failed(
        self, evaluator: evaluate.CachingEvaluator, watch: Watcher = lambda proposal, evaluation: None
    ) -> int:
        """Evaluate the failed candidates again, for `population` and the report. Return their number.

        The results go into `retried.jl`. The journal, and what the driver was told, stay as they are: a search is replayed from them.
        """
        failed = {
            proposal.recipe.id: proposal.recipe for proposal, error in self.population() if error.error is not None
        }
        start = max((proposal.number for proposal, _ in self._retried()), default=-1) + 1
        proposals = (Proposal(start + i, recipe) for i, recipe in enumerate(failed.values()))
        with self.lock("report.lock"), Journal(self.folder / "retried.jl") as record:
            for proposal, evaluation in evaluate.drive(evaluator, record, lambda: next(proposals, None)):
                costs.append(self.folder, proposal, evaluation)
                watch(proposal, evaluation)
        return len(failed)

    def trials(self) -> "DataFrame":
        """Return all full evaluations as a DataFrame: number, recipe id, error, mean score of each objective, genes."""
        from pandas import DataFrame

        space, objectives = self.parts.space, self.parts.searched
        rows = []
        for proposal, evaluation in self.population():
            row = {"number": proposal.number, "recipe_id": proposal.recipe.id, "error": evaluation.error}
            row |= zip(objectives, evaluation.means(objectives), strict=True)
            with suppress(SpaceError):  # a journal of format 1 has no genomes of stacks
                genome = space.genome_of(proposal)
                row |= {gene.name: gene.value(number) for gene, number in zip(space.genes, genome, strict=True)}
            rows.append(row)
        return DataFrame(rows)

    def front(self) -> "DataFrame":
        """Return those of `trials` that no other dominates on the search examples. Not to be confused with the report's front."""
        trials = self.trials()
        good = trials[trials["error"].isna()] if len(trials) else trials
        if not len(good):
            return good
        return good[pareto.nondominated(good[self.parts.searched].to_numpy())].reset_index(drop=True)

    def digest(self) -> str:
        """Return the sha256 over all proposals and scores: equal for equal searches."""
        return digest(self.history().completed)

    def replay(self, driver: Driver) -> Iterator[tuple[Proposal, Evaluation | None]]:
        """Replay the journal through a fresh, seeded `driver`. Yield each proposal with None, and again with its evaluation.

        Raises `StudyError` if the driver proposes anything other than the recorded recipe and examples.
        """
        for proposal, evaluation in journal.replay(self.journal_path, driver.ask, self._matching):
            if evaluation is not None:
                driver.tell(proposal, evaluation)
            yield proposal, evaluation

    def evaluator(
        self, *, queue: bool = True, say: Callable[[str], None] = lambda line: None
    ) -> evaluate.CachingEvaluator:
        """Return a new evaluator for these settings. The caller closes it. Raises `StudyError` on another device than the study's.

        Without `queue`, workers that share a folder are left out, as they may have ended: all is evaluated in this process. `say` is
        called with a line while candidates wait and there is no worker.
        """
        self.parts.collect()
        evaluator = workers.start(self.settings, self.parts, self.folder, queue=queue, say=say)
        if self.parts.space.parents:
            evaluator.lineage.update(self.lineage())
        return evaluator

    def lineage(self) -> dict[str, Recipe]:
        """Return the recipes of all candidates by id, from which candidates that are merges of others can be built again."""
        return {proposal.recipe.id: proposal.recipe for proposal, _ in journal.events(self.journal_path)}

    def history(self, events: Iterable[Event] | None = None) -> History:
        """Return all evaluations so far, or those in `events`. A failure that `retry_failed` could evaluate has that one in `population`."""
        recorded = journal.events(self.journal_path) if events is None else events
        history = History.of(recorded, self.parts.sizes, self.settings.merge_examples)
        retried = {proposal.recipe.id: again for proposal, again in self._retried() if again.error is None}
        population = [
            (proposal, evaluation if evaluation.error is None else retried.get(proposal.recipe.id, evaluation))
            for proposal, evaluation in history.population
        ]
        return replace(history, population=population)

    def population(self) -> Completed:
        """Return all full evaluations so far in order of number, failures included."""
        return self.history().population

    @property
    def journal_path(self) -> Path:
        """The file of the journal."""
        return self.folder / "journal.jl"

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Lock the study's journal (or, with `report.lock`, its report) against all other processes.

        A report may be made while a search runs. Raises `StudyInUseError` naming the process that holds the lock.
        """
        try:
            file = locks.take(self.folder / name)
        except locks.TakenError as error:
            raise StudyInUseError(f"{self.folder}: in use by {error}; wait for it, or stop it") from None
        with file:
            yield

    def holder(self, name: str = "lock") -> str | None:
        """Return the process that holds a lock of the study, None if it is free."""
        return locks.holder(self.folder / name)

    def _retried(self) -> Completed:
        """Return the evaluations of candidates that had failed."""
        return History.read(self.folder / "retried.jl", retried=True).population

    def _matching(self, recorded: Proposal, proposal: Proposal | None) -> Proposal:
        """Return the driver's proposal. Raises `StudyError` if it is not the recorded one."""
        what = "another recipe than the recorded one"
        if proposal is not None and (proposal.number, proposal.recipe) == (recorded.number, recorded.recipe):
            if (proposal.examples, proposal.slopes) == (recorded.examples, recorded.slopes):
                return proposal
            what = "other examples than the recorded ones"
        then, now = header.read(self.folder).versions, versions()
        changed = [f"{name} {then.get(name)} → {now[name]}" for name in now if then.get(name) != now[name]]
        raise StudyError(
            f"{self.journal_path}: replaying proposal {recorded.number} gave {what}; "
            f"{'changed since: ' + ', '.join(changed) if changed else 'no version has changed: please report this'}; "
            "install the recorded versions, or start a new study"
        )


def _until_terminated(
    clock: costs.Clock, driven: Iterator[tuple[Proposal, Evaluation]]
) -> Iterator[tuple[Proposal, Evaluation]]:
    """Yield evaluations. A scheduler sends SIGTERM to the workers too, which is no error of theirs."""
    try:
        yield from driven
    except EvaluatorError:
        if not interrupts.terminated():
            raise
        clock.stopped = costs.TERMINATED


def _given_up(
    number: int | None, record: Journal, pending: dict[int, Proposal]
) -> Iterator[tuple[Proposal, Evaluation]]:
    """Yield the failure of the pending proposal of this `number`, if there is one, having recorded it."""
    if number is not None:
        failure = Evaluation(error=attempts.ERROR)
        record.tell(number, failure)
        yield pending.pop(number), failure


def _needed(driver: Driver, pending: Iterable[Proposal]) -> set[str]:
    """Return the ids of candidates whose weights later or pending proposals may use."""
    ids = {identity for proposal in pending for identity in (proposal.recipe.id, *proposal.recipe.members)}
    return ids.union(driver.members())
