"""Evidence: for each expert, the task and the search examples that say what it is good at; and the statistics collected of them.

A study's pool names it (`evidence:`), by default the task of the expert's name. What a search space, or a recipe, needs is
collected before any work, and read by all workers.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console

from evomerge import cache, masks, partial_merges, placement
from evomerge import repairs as repairing
from evomerge.checkpoints.beside import text_files
from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.digests import code_digests, data_digest
from evomerge.errors import PoolError, nearest
from evomerge.evaluate import Setup
from evomerge.evaluate.setup import open_model
from evomerge.evaluate.worker import reproducible
from evomerge.merging import needs
from evomerge.models import LiveModel
from evomerge.progress import Progress
from evomerge.recipe import Recipe, RepairNode
from evomerge.statistics import STATISTICS, Collected, EvidenceSettings, Statistic, Subject, store
from evomerge.statistics.outputs import moments, order
from evomerge.tasks import Task

REPAIR = "repair"
"""The kind of the corrections of a `repair`, which are of the merge in it, under the repair's id."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One statistic of one model."""

    kind: str
    """The name of a statistic, or `KIND@TASK`."""
    expert: str
    """The expert's name; of `KIND@TASK` also `base`; of `repair` the id of its recipe."""
    task: str
    examples: tuple[int, ...]
    about: Mapping[str, Any]
    """All that it depends on."""

    @property
    def statistic(self) -> Statistic:
        """What collects it."""
        return STATISTICS[self.kind.partition("@")[0]]

    @property
    def folder(self) -> Path:
        """Where it is, or will be, in the cache."""
        return store.place(store.key_of(self.about))

    @property
    def index(self) -> dict[str, Any]:
        """What its index says beside its tables."""
        expert = self.expert[:12] if self.kind == REPAIR else self.expert
        return {"kind": self.kind, "expert": expert, "task": self.task, "number": len(self.examples)}

    @property
    def is_complete(self) -> bool:
        """Whether it has been collected."""
        return store.is_complete(self.folder)


@dataclass(frozen=True, slots=True)
class Price:
    """What collecting will cost: an estimate from one example."""

    seconds: float
    nbytes: int


class Evidence:
    """The statistics of some kinds of a pool's experts. It adds them to the pool, collected or not."""

    def __init__(
        self,
        pool: Pool,
        setup: Setup,
        tasks: Mapping[str, Task],
        given: Mapping[str, EvidenceSettings],
        kinds: Sequence[str],
        recipes: Sequence[Recipe] = (),
        *,
        searched: bool = False,
    ) -> None:
        """Find the examples of each expert. Nothing is run.

        `recipes` are those that read the statistics: `KIND@TASK` is of the models that they name, by default of all, and `repair` of the
        repairs in them. With `searched` they are examples of a space, whose other paths may have layers of other models: `hidden@TASK` is
        then of all.

        Raises `PoolError` for wrong evidence, and for models that cannot be repaired.
        """
        self._pool, self._setup, self._tasks = pool, setup, tasks
        for expert in given:
            if expert not in pool.experts:
                raise PoolError(
                    f"`evidence` names `{expert}`, which is no expert of the pool; {nearest(expert, pool.experts)}"
                )
        # An expert without evidence is refused by the merge that needs it.
        chosen = {one: _chosen(one, given.get(one), tasks) for one in pool.experts if one in given or one in tasks}
        common = {
            "precision": setup.precision,
            "device": placement.described(setup.device),
            "threads": setup.threads,
            "auto": setup.auto,
            "text": {
                name: hashlib.sha256(file.read_bytes()).hexdigest()
                for name, file in text_files(pool.base.path, pool.tokenizer).items()
            },
            "config": pool.base.config,
            **code_digests(setup),
        }
        self.entries = []
        named = dict.fromkeys(model for recipe in recipes for model in recipe.models)
        repairs = dict.fromkeys(repair for recipe in recipes for repair in recipe.repairs)
        for kind in kinds:
            if kind == REPAIR:
                continue
            name, _, task = kind.partition("@")
            models = named if named and not (searched and name == "hidden") else ("base", *pool.experts)
            judged = dict.fromkeys(models, _shared(task, given, tasks)) if task else chosen
            about = {model: self._about(name, model, *of, common) for model, of in judged.items()}
            if (together := _together(STATISTICS[name])) is not None:  # each depends on all
                more = together.settings(pool)
                about = {one: {**of, **more, "merged": [*about.items()]} for one, of in about.items()}
            self.entries += [Entry(kind, model, *of, about[model]) for model, of in judged.items()]
        self._repairs = {repair.id: repair for repair in repairs}
        self._examples = {task: _shared(task, given, tasks)[1] for repair in repairs for task in _tasks(repair)}
        if repairs:
            repairing.check(pool)
        for repair in repairs:
            self.entries.append(self._repair(repair))
        folders: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
        for entry in self.entries:
            folders[entry.kind][entry.expert] = str(entry.folder)
        self.folders = folders
        pool.evidence = Collected(folders)

    def _about(
        self, kind: str, expert: str, task: str, examples: Sequence[int], common: Mapping[str, Any]
    ) -> dict[str, Any]:
        settings = dict(self._setup.tasks[task])
        data = data_digest(settings, self._setup.folder)
        return {
            "kind": kind,
            "version": STATISTICS[kind].version,
            "model": self._pool.digests["base" if STATISTICS[kind].of_base else expert],
            "base": self._pool.digests["base"],
            "examples": list(examples),
            "task": {key: value for key, value in settings.items() if key not in data and key != "group"},
            "data": {key: digest for key, digest in data.items() if key not in ("report", "final")},
            "read": self._tasks[task].digest(),
            "common": common,
        }

    def _repair(self, repair: Recipe) -> Entry:
        """Return the entry of a repair, whose statistics and inner repairs are among the entries."""
        needed = {*needs(repair)}
        inner = {other.id for other in repair.repairs} - {repair.id}
        read = [entry for entry in self.entries if (entry.kind in needed - {REPAIR} or entry.expert in inner)]
        about = {
            "kind": REPAIR,
            "version": repairing.VERSION,
            "recipe": repair.json,
            "models": {label: self._pool.digests[label] for label in ("base", *repair.experts)},
            "read": [[entry.kind, entry.expert, store.key_of(entry.about)] for entry in read],
        }
        examples = [example for task in _tasks(repair) for example in self._examples[task]]
        return Entry(REPAIR, repair.id, ", ".join(_tasks(repair)), tuple(examples), about)

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """The key of each statistic, by kind and expert."""
        return {kind: {expert: Path(folder).name for expert, folder in of.items()} for kind, of in self.folders.items()}

    @property
    def left(self) -> list[Entry]:
        """Those that have not been collected."""
        return [entry for entry in self.entries if not entry.is_complete]

    def collect(self, console: Console) -> None:
        """Collect what is not in the cache, and show progress."""
        if not (left := self.left):
            return
        live = self._load()
        statistics = sorted((entry for entry in left if entry.kind != REPAIR), key=lambda entry: entry.expert)
        for number, entry in enumerate(statistics, start=1):  # one model after the other
            if _together(entry.statistic) is not None:
                self._collect_together(live, entry.kind, console)
                continue
            about = entry.index
            what = f"{entry.kind} of {entry.expert} ({number} of {len(left)})"
            with Progress(what, len(entry.examples), console) as bar, reproducible(self._setup.threads, live.device):
                subject, memory = self._subject(live, entry, entry.examples), _room(live.device)
                watch = partial(_show, bar)
                store.collect(entry.statistic, subject, entry.folder, about, memory, watch)
        for entry in left:
            if entry.kind == REPAIR:  # it reads the others
                self._collect_repair(live, entry, console)
        cache.prune(cache.LIMIT, keep=[entry.folder for entry in self.entries])

    def _collect_together(self, live: LiveModel, kind: str, console: Console) -> None:
        """Collect a statistic of all experts, each after the merged blocks before its own; nothing if that is done."""
        of = {entry.expert: entry for entry in self.entries if entry.kind == kind}

        def subject(expert: str, model: Checkpoint) -> Subject:
            return self._subject(live, of[expert], of[expert].examples, model)

        folders = {expert: (entry.folder, entry.index) for expert, entry in of.items()}
        examples = sum(len(entry.examples) for entry in of.values())
        with (
            Progress(f"{kind} of {', '.join(of)}", examples, console) as bar,
            reproducible(self._setup.threads, live.device),
        ):
            together = _together(STATISTICS[kind])
            assert together is not None
            together.collect(STATISTICS[kind], self._pool, subject, folders, partial(_show, bar))

    def _collect_repair(self, live: LiveModel, entry: Entry, console: Console) -> None:
        def subject(task: str) -> Subject:
            return self._measured(live, task, self._examples[task], store.key_of(entry.about))

        what = f"repair {entry.index['expert']}"
        with Progress(what, len(entry.examples), console) as bar, reproducible(self._setup.threads, live.device):
            watch, recipe = partial(_show, bar), self._repairs[entry.expert]
            repairing.collect(recipe, self._pool, live, subject, entry.folder, entry.index, watch)

    def price(self) -> dict[str, Price]:
        """Return what collecting the rest costs, by kind, measured on one example of one expert."""
        prices: dict[str, Price] = {}
        if not self.left:
            return prices
        live = self._load()
        for entry in self.left:
            if entry.kind in prices:
                continue
            if entry.kind == REPAIR:
                prices[entry.kind] = self._price_of_repairs(live)
                continue
            statistic, left = entry.statistic, [other for other in self.left if other.kind == entry.kind]
            with reproducible(self._setup.threads, live.device):
                subject = self._subject(live, entry, entry.examples[:1])
                statistic.collect(subject, lambda *_: None)
                start = time.perf_counter()
                made = statistic.collect(subject, lambda *_: None)
                seconds = time.perf_counter() - start
            held = sum(statistic.nbytes(subject.shape(name)) for name in subject.matrices)
            passes = math.ceil(held / max(_room(live.device), 1)) or 1
            nbytes = sum(table.nbytes for table in store.unique(made).values())
            examples = sum(len(other.examples) for other in left)
            if statistic.of_merge:
                passes *= len(set(partial_merges.turns(self._pool).values()))
            elif statistic.of_mask:
                examples = masks.STEPS * masks.BATCH * len(left)
            prices[entry.kind] = Price(seconds * examples * passes, nbytes * len(left))
        return prices

    def _price_of_repairs(self, live: LiveModel) -> Price:
        """Return what the repairs cost that are left: a pass for each layer, of the base's speed."""
        left = [entry for entry in self.left if entry.kind == REPAIR]
        task = _tasks(self._repairs[left[0].expert])[0]
        live.refit(self._pool.base)
        with reproducible(self._setup.threads, live.device):
            subject = self._measured(live, task, self._examples[task][:1], "")
            layers = order(subject)
            start = time.perf_counter()
            made = moments(subject, lambda *_: None)
            seconds = time.perf_counter() - start
        nbytes = sum(table.nbytes for table in store.unique(made).values())
        return Price(seconds * len(layers) * sum(len(entry.examples) for entry in left), nbytes * len(left))

    def _load(self) -> LiveModel:
        return open_model(self._setup, self._pool, placement.find(self._setup.device))

    def _subject(
        self, live: LiveModel, entry: Entry, examples: Sequence[int], model: Checkpoint | None = None
    ) -> Subject:
        """Return an expert, the base, or another model, in memory, with what is to be measured."""
        pool = self._pool
        of_base = entry.statistic.of_base or entry.expert == "base"
        live.refit(model or (pool.base if of_base else pool.experts[entry.expert]))
        return self._measured(live, entry.task, examples, store.key_of(entry.about))

    def _measured(self, live: LiveModel, name: str, examples: Sequence[int], seed: str) -> Subject:
        """Return the model in memory, with the head and examples of a task, and what is to be measured."""
        task, pool = self._tasks[name], self._pool
        task.put_head_on(live)
        live.module.train(mode=False)
        matrices = {matrix.name: matrix for name in pool.merged for matrix in pool.layout.matrices(name)}
        shapes = {name: info.shape for name, info in pool.merged.items()}
        return Subject(live, task, examples, matrices, shapes, seed)


def _together(statistic: Statistic) -> ModuleType | None:
    """Return the module that collects a statistic of all experts together, None for one of each by itself."""
    return partial_merges if statistic.of_merge else masks if statistic.of_mask else None


def _show(bar: Progress, what: str, done: int, total: int) -> None:
    bar(done, total)


def _chosen(expert: str, given: EvidenceSettings | None, tasks: Mapping[str, Task]) -> tuple[str, tuple[int, ...]]:
    """Return an expert's task, and the indices of its examples: drawn evenly, the same in every study. Raises `PoolError`."""
    name = expert if given is None else given.task
    if name not in tasks:
        raise PoolError(f"`evidence` of `{expert}`: no task `{name}`; {nearest(name, tasks)}")
    size = tasks[name].size("search")
    number = _most(name, tasks) if given is None else given.examples
    if number > size:
        raise PoolError(
            f"`evidence` of `{expert}`: {number} examples of the task `{name}`, which has {size} to search; type `examples: {size}`"
        )
    order = np.random.default_rng(0).permutation(size)[:number]
    return name, tuple(sorted(order.tolist()))


def _tasks(repair: Recipe) -> tuple[str, ...]:
    assert isinstance(repair.root, RepairNode)
    return repair.root.repair.tasks


def _shared(task: str, given: Mapping[str, EvidenceSettings], tasks: Mapping[str, Task]) -> tuple[str, tuple[int, ...]]:
    """Return a task that all models are run on, and the indices of its examples: as many as an expert's evidence of it has."""
    if task not in tasks:
        raise PoolError(f"the recipe names the task `{task}`, which there is not; {nearest(task, tasks)}")
    named = {expert: evidence for expert, evidence in given.items() if evidence.task == task}
    expert, evidence = next(iter(named.items()), (task, None))
    return _chosen(expert, evidence or EvidenceSettings(task=task, examples=_most(task, tasks)), tasks)


def _most(task: str, tasks: Mapping[str, Task]) -> int:
    """Return the default number of a task's search examples."""
    return min(int(EvidenceSettings(task=task).examples), tasks[task].size("search"))


def _room(device: torch.device) -> int:
    """Return the bytes for sums: a quarter of what is free where they are."""
    free = placement.free(device)
    return (16 << 30 if free is None else free) // 4
