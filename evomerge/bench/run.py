"""Runner: scores the rows of a bench, one file each, and searches those that are searched, one study each.

A bench's folder holds `identity.json` (what all scores depend on), `rows/NAME.json` (each written when its row is done), and
`searches/METHOD`, ordinary studies. Whatever is there is not done again.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from evomerge import costs, files, locks
from evomerge.bench.rows import Row, plan, statistics
from evomerge.bench.settings import Bench
from evomerge.errors import EvaluatorError, EvomergeError, StudyError, StudyInUseError
from evomerge.evaluate import Worker
from evomerge.evidence import Evidence
from evomerge.merging import METHODS, Store, needs
from evomerge.parts import Parts, identity, open_parts
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.report.measure import contenders
from evomerge.report.scorer import Scorer
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal, Split

_FORMAT = 1
_SCRATCH = ".prepared-"


@dataclass(frozen=True)
class Done:
    """What is known of a row: its model's scores on the unseen examples and their price; or why there are none."""

    recipe: Recipe | None = None
    evaluation: Evaluation | None = None
    """On the unseen examples of all tasks, held-out ones too."""
    cpu_s: float = 0.0
    """CPU seconds of this process for merging and scoring that model, once."""
    merge_s: float = 0.0
    """Seconds of it for merging."""
    search_s: float = 0.0
    """Seconds of the search's evaluations, over its workers, and of collecting statistics."""
    evaluations: int = 0
    examples: int = 0
    """Different examples that the model was made with: those of the search, or of statistics."""
    reason: str | None = None


class Stopped(Exception):  # noqa: N818  # no error: SIGTERM came, and the same command goes on
    """A search was stopped by SIGTERM."""


class Runner:
    """A bench in a folder."""

    def __init__(self, bench: Bench, folder: Path, progress: Callable[[str], None] = lambda step: None) -> None:
        """Open models and tasks, and plan the rows; nothing is written. Raises their errors."""
        self.bench, self.folder = bench, folder
        settings = bench.all_tasks.pinned().settled()
        self.parts: Parts = open_parts(settings, progress)
        """The pool, and all tasks: those that are merged for, then those held out."""
        evidence = settings.pool.evidence
        own = {"held_out": list(bench.held_out), "evidence": {name: one.model_dump() for name, one in evidence.items()}}
        self._identity: dict[str, Any] = {"format": _FORMAT, **own, **identity(settings, self.parts)}
        kinds = sorted({kind for name in bench.methods for kind in statistics(METHODS[name])})
        folders = self._evidence(kinds).folders if kinds else {}
        self.rows = plan(self.parts.pool, bench.methods, searched=bench.budget > 0)
        self._setup = replace(self.parts.setup, statistics=folders, shared_mib=0)

    @property
    def merged(self) -> list[str]:
        """The names of the tasks that are merged for."""
        return list(self.bench.study.tasks)

    @property
    def left(self) -> dict[Split, int]:
        """How many evaluations are left to do at most: on the search examples, and on the unseen ones."""
        rows = [row for row in self.rows if self._to_do(row)]
        searched = sum(row.kind == "searched" for row in rows)
        return {"search": searched * self.bench.budget, "report": len(rows)}

    def done(self) -> dict[str, Done]:
        """Return what is known of the rows, by name; rows that are not done are missing."""
        known = {row.name: self._read(row) for row in self.rows}
        return {name: done for name, done in known.items() if done is not None}

    def run(self, console: Console) -> None:
        """Do what is left, and show progress. Raises `StudyError` where the folder has another bench, and `Stopped`."""
        with self._locked():
            self._check_folder()
            for left_over in self.folder.glob(f"{_SCRATCH}*"):  # by a kill
                shutil.rmtree(left_over, ignore_errors=True)
            left = [row for row in self.rows if self._to_do(row)]
            with Progress("bench", len(left), console) as bar:
                plain = [row for row in left if row.kind != "searched"]
                for number, row in enumerate(plain):
                    bar(number, note=row.name)
                    self._keep(row, self._scored(row))
            for number, row in enumerate((row for row in left if row.kind == "searched"), start=1):
                what = f"{row.name} ({number} of {len(left) - len(plain)})"
                self._keep(row, self._searched(row, what, console))
            if left:
                self.worker.close()

    @cached_property
    def worker(self) -> Worker:
        """The worker that scores all models: it shares nothing between them, so that each pays for itself."""
        worker = Worker(self._setup)
        worker.evaluate(self.rows[0].recipe or Recipe.parse("base"), "report")  # reads the model and the data
        return worker

    @cached_property
    def singles(self) -> dict[str, tuple[Recipe, Evaluation]]:
        """Base and experts, by name, with their scores on the search examples of the tasks that are merged for."""
        examples = {name: tuple(range(self.parts.tasks[name].size("search"))) for name in self.merged}
        models = {}
        for row in self.rows[: 1 + len(self.parts.pool.experts)]:
            assert row.recipe is not None  # base and experts
            path = self._path(row, "search")
            if not path.exists():
                evaluation = self.worker.evaluate(row.recipe, "search", examples)
                if evaluation.error is not None:
                    raise StudyError(f"cannot score {row.name}: {evaluation.error}")
                files.write(path, json.dumps(evaluation.to_json()) + "\n")
            models[row.name] = row.recipe, Evaluation.from_json(json.loads(path.read_bytes()))
        return models

    def _scored(self, row: Row) -> Done:
        """Return the scores of a row that needs no search."""
        assert row.recipe is not None
        try:
            seconds, examples = self._collect(needs(row.recipe))
        except EvomergeError as error:
            return Done(reason=str(error))
        return replace(self._measured(row.recipe), search_s=seconds, examples=examples)

    def _measured(self, recipe: Recipe) -> Done:
        """Merge and score a recipe on the unseen examples, with nothing prepared before."""
        builder = self.worker.prepare().builder
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=_SCRATCH) as scratch:
            builder.store = Store(Path(scratch))
            start = time.process_time()
            evaluation = self.worker.evaluate(recipe, "report")
            cpu_s = time.process_time() - start
        merge_s = evaluation.seconds.get("merge", 0.0) + evaluation.seconds.get("compile", 0.0)
        return Done(recipe, evaluation, round(cpu_s, 4), round(merge_s, 4), reason=evaluation.error)

    def _collect(self, kinds: Sequence[str]) -> tuple[float, int]:
        """Collect statistics, where a method reads any; return the CPU seconds, and how many examples they are of."""
        if not kinds:
            return 0.0, 0
        evidence = self._evidence(kinds)
        start = time.process_time()
        evidence.collect(Console(stderr=True))
        examples = {entry.expert: len(entry.examples) for entry in evidence.entries}
        return round(time.process_time() - start, 4), sum(examples.values())

    def _evidence(self, kinds: Sequence[str]) -> Evidence:
        parts, given = self.parts, self.bench.study.pool.evidence
        return Evidence(parts.pool, parts.setup, parts.tasks, given, kinds)

    def _searched(self, row: Row, what: str, console: Console) -> Done:
        """Search a method's coefficients as a study of its own, or go on with it; return the scores of the one that is picked."""
        settings = self.bench.study.model_copy(
            update={"name": row.method, "space": row.space, "evaluations": self.bench.budget}
        )
        try:
            study = Study.create(self.folder / "searches" / str(row.method), settings)
            with Progress(what, self.bench.budget, console) as bar, study.evaluator(say=bar.remind) as evaluator:
                study.run(evaluator, lambda proposal, evaluation: bar(min(int(study.spent), self.bench.budget)))
            if study.stopped is not None:
                raise Stopped(study.stopped)
            best = self._best(study)
            if best is None:
                return Done(reason=f"all of its candidates failed: {study.population()[-1][1].error}")
        except (StudyInUseError, EvaluatorError):
            raise
        except EvomergeError as error:
            return Done(reason=str(error))
        measured = self._measured(best)
        seconds, _ = costs.totals(study.folder)
        return replace(
            measured,
            search_s=round(sum(taken for kind, taken in seconds.items() if kind.startswith("search")), 4),
            evaluations=len(study.population()),
            examples=sum(study.parts.sizes["search"].values()),
        )

    def _best(self, study: Study) -> Recipe | None:
        """Return the recipe of the best estimated mean over tasks, on the search examples; None where all have failed."""
        good = [(proposal, evaluation) for proposal, evaluation in study.population() if evaluation.error is None]
        if not good:
            return None
        searched = np.array([evaluation.means(study.parts.searched) for _, evaluation in good])
        recipes = {good[i][0].recipe.id: good[i][0].recipe for i in contenders(searched)}
        known = [(Proposal(-1 - i, recipe), scores) for i, (recipe, scores) in enumerate(self.singles.values())]
        scorer = Scorer(study, [*good, *known])
        estimates = scorer.estimates(recipes, {name: recipe for name, (recipe, _) in self.singles.items()})
        return recipes[estimates.best(list(recipes))]

    def _path(self, row: Row, split: str = "report") -> Path:
        name = re.sub(r"[^\w.-]+", "-", row.name)
        return self.folder / "rows" / (f"{name}.json" if split == "report" else f"{name}.{split}.json")

    def _keep(self, row: Row, done: Done) -> None:
        data = {
            "name": row.name,
            "budget": self.bench.budget if row.kind == "searched" else None,
            "recipe": None if done.recipe is None else done.recipe.data,
            "evaluation": None if done.evaluation is None else done.evaluation.to_json(),
            **{key: getattr(done, key) for key in _NUMBERS},
        }
        files.write(self._path(row), json.dumps(data) + "\n")

    def _to_do(self, row: Row) -> bool:
        """Return whether a row is possible and not done, or has failed: then it is tried again."""
        if row.reason is not None:
            return False
        done = self._read(row)
        return done is None or done.reason is not None

    def _read(self, row: Row) -> Done | None:
        """Return what the file of a row says, None where there is none of this budget."""
        if row.reason is not None:
            return Done(reason=row.reason)
        try:
            data = json.loads(self._path(row).read_bytes())
            if data["budget"] != (self.bench.budget if row.kind == "searched" else None):
                return None
            recipe = None if data["recipe"] is None else Recipe.parse(data["recipe"])
            evaluation = None if data["evaluation"] is None else Evaluation.from_json(data["evaluation"])
            return Done(recipe, evaluation, **{key: data[key] for key in _NUMBERS})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{self._path(row)}: damaged ({error}); remove it, and type the command again") from None

    def _check_folder(self) -> None:
        """Write what this bench is, or raise `StudyError` where the folder has another one."""
        path = self.folder / "identity.json"
        ours = json.loads(json.dumps(self._identity))
        if not path.exists():
            if others := [entry.name for entry in self.folder.iterdir() if entry.name != "lock"]:
                raise StudyError(f"{self.folder}: is no bench, and has {others[0]}; give another directory with `-o`")
            files.write(path, json.dumps(ours, indent=2) + "\n")
            return
        theirs = json.loads(path.read_bytes())
        if changed := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]:
            raise StudyError(
                f"{self.folder}: has a bench with other {', '.join(f'`{key}`' for key in changed)}; give another directory with `-o`. "
                "Only `methods`, `budget` and `report` may change"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            file = locks.take(self.folder / "lock")
        except locks.TakenError as error:
            raise StudyInUseError(f"{self.folder}: in use by {error}; wait for it, or stop it") from None
        with file:
            yield


_NUMBERS = ("cpu_s", "merge_s", "search_s", "evaluations", "examples", "reason")
