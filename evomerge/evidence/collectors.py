"""Collectors: what fills the entries of one kind. One model after the other, all experts together, or merges."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console

from evomerge.checkpoints.folder import Checkpoint
from evomerge.evaluate.worker import reproducible
from evomerge.evidence import masks, partial_merges, repairs
from evomerge.evidence.entries import Chosen, Entry
from evomerge.evidence.models import Models
from evomerge.merging import needs
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, RepairNode
from evomerge.statistics import STATISTICS, Statistic, Subject, store
from evomerge.statistics.outputs import moments, order


@dataclass(frozen=True, slots=True)
class Price:
    """What collecting will cost: an estimate from one example."""

    seconds: float
    nbytes: int


class Collector(Protocol):
    """Collects the entries of one kind."""

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries, collected or not."""

    def collect(self, live: LiveModel, left: Sequence[Entry], console: Console) -> None:
        """Collect what is left, with the model `live` for any weights, and show progress."""

    def price(self, live: LiveModel, left: Sequence[Entry]) -> Price:
        """Return what collecting the rest costs, measured on one example of one model."""


class Each:
    """A statistic of each model by itself."""

    def __init__(self, kind: str, models: Models, judged: Mapping[str, Chosen]) -> None:
        """Take the name of a statistic, or `KIND@TASK`, and the task and examples of each model."""
        self._models, self._statistic = models, _statistic(kind)
        self.entries = [models.entry(kind, model, *of) for model, of in judged.items()]

    def collect(self, live: LiveModel, left: Sequence[Entry], console: Console) -> None:
        """Collect one model after the other."""
        for number, entry in enumerate(left, start=1):
            what = f"{entry.kind} of {entry.name} ({number} of {len(left)})"
            with self._models.progress(live, what, [entry], console) as watch:
                subject, room = self._models.subject(live, entry, entry.examples), self._models.room(live.device)
                store.collect(self._statistic, subject, entry.folder, entry.index, room, watch)

    def price(self, live: LiveModel, left: Sequence[Entry]) -> Price:
        """Return what the rest costs: as many passes as the sums need, with the memory that there is."""
        statistic, first = self._statistic, left[0]
        with reproducible(self._models.setup.threads, live.device):
            subject = self._models.subject(live, first, first.examples[:1])
            statistic.collect(subject, lambda *_: None)
            start = time.perf_counter()
            made = statistic.collect(subject, lambda *_: None)
            seconds = time.perf_counter() - start
        held = sum(statistic.nbytes(subject.shape(name)) for name in subject.matrices)
        passes = math.ceil(held / max(self._models.room(live.device), 1)) or 1
        nbytes = sum(table.nbytes for table in store.unique(made).values())
        return Price(seconds * passes * self._runs(left), nbytes * len(left))

    def _runs(self, left: Sequence[Entry]) -> int:
        """Return on how many examples models are run in a pass over all."""
        return sum(len(entry.examples) for entry in left)


class Together(Each):
    """A statistic of all experts together, of each of which it depends on all."""

    def __init__(self, kind: str, models: Models, judged: Mapping[str, Chosen]) -> None:
        """Take what `Each` takes. Raises `PoolError` for a pool that has no such statistic."""
        super().__init__(kind, models, judged)
        self._way = partial_merges if self._statistic.of_merge else masks
        more = {**self._way.settings(models.pool), "merged": [(entry.expert, entry.about) for entry in self.entries]}
        self.entries = [replace(entry, about={**entry.about, **more}) for entry in self.entries]

    def collect(self, live: LiveModel, left: Sequence[Entry], console: Console) -> None:
        """Collect all; nothing if that is done meanwhile."""
        of = {entry.expert: entry for entry in self.entries}

        def subject(expert: str, model: Checkpoint) -> Subject:
            return self._models.subject(live, of[expert], of[expert].examples, model)

        folders = {expert: (entry.folder, entry.index) for expert, entry in of.items()}
        what = f"{left[0].kind} of {', '.join(of)}"
        with self._models.progress(live, what, self.entries, console) as watch:
            self._way.collect(self._statistic, self._models.pool, subject, folders, watch)

    def _runs(self, left: Sequence[Entry]) -> int:
        if self._statistic.of_mask:
            return masks.STEPS * masks.BATCH * len(left)
        return super()._runs(left) * len(set(partial_merges.turns(self._models.pool).values()))


class Repairs:
    """The corrections of the `repair` nodes of recipes, each of the merge in it, under the repair's id."""

    def __init__(
        self, recipes: Sequence[Recipe], models: Models, examples: Mapping[str, Sequence[int]], read: Sequence[Entry]
    ) -> None:
        """Take the repairs, each after those inside of it, the examples of each task, and the entries of the statistics that they read.

        Raises `PoolError` for models that cannot be repaired.
        """
        self._models, self._examples = models, examples
        self._recipes = {recipe.id: recipe for recipe in recipes}
        repairs.check(models.pool)
        self.entries: list[Entry] = []
        for recipe in recipes:
            self.entries.append(self._entry(recipe, read))

    def _entry(self, recipe: Recipe, read: Sequence[Entry]) -> Entry:
        tasks = tasks_of(recipe)
        needed, inner = {*needs(recipe)}, {other.id for other in recipe.repairs}
        statistics = [entry for entry in read if entry.kind in needed]
        statistics += [entry for entry in self.entries if entry.expert in inner]
        about = {
            "kind": repairs.KIND,
            "version": repairs.VERSION,
            "recipe": recipe.json,
            "models": {label: self._models.pool.digests[label] for label in ("base", *recipe.experts)},
            "read": [[entry.kind, entry.expert, store.key_of(entry.about)] for entry in statistics],
        }
        examples = tuple(example for task in tasks for example in self._examples[task])
        return Entry(repairs.KIND, recipe.id, ", ".join(tasks), examples, about, recipe.id[:12])

    def collect(self, live: LiveModel, left: Sequence[Entry], console: Console) -> None:
        """Collect one repair after the other; the statistics that they read are there."""
        for entry in left:

            def subject(task: str, entry: Entry = entry) -> Subject:
                return self._models.measured(live, task, self._examples[task], store.key_of(entry.about))

            with self._models.progress(live, f"repair {entry.name}", [entry], console) as watch:
                recipe, pool = self._recipes[entry.expert], self._models.pool
                repairs.collect(recipe, pool, live, subject, entry.folder, entry.index, watch)

    def price(self, live: LiveModel, left: Sequence[Entry]) -> Price:
        """Return what the rest costs: a pass for each layer, of the base's speed."""
        task = tasks_of(self._recipes[left[0].expert])[0]
        live.refit(self._models.pool.base)
        with reproducible(self._models.setup.threads, live.device):
            subject = self._models.measured(live, task, self._examples[task][:1], "")
            layers = order(subject)
            start = time.perf_counter()
            made = moments(subject, lambda *_: None)
            seconds = time.perf_counter() - start
        nbytes = sum(table.nbytes for table in store.unique(made).values())
        return Price(seconds * len(layers) * sum(len(entry.examples) for entry in left), nbytes * len(left))


def collector(kind: str, models: Models, judged: Mapping[str, Chosen]) -> Each:
    """Return the collector of a statistic, or of `KIND@TASK`."""
    statistic = _statistic(kind)
    return (Together if statistic.of_merge or statistic.of_mask else Each)(kind, models, judged)


def tasks_of(repair: Recipe) -> tuple[str, ...]:
    """Return the tasks on whose examples a repair runs models."""
    assert isinstance(repair.root, RepairNode)
    return repair.root.repair.tasks


def _statistic(kind: str) -> Statistic:
    return STATISTICS[kind.partition("@")[0]]
