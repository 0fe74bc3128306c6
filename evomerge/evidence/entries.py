"""Entries: one statistic of one model each; and the search examples that it is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from evomerge.errors import PoolError, nearest
from evomerge.statistics import EvidenceSettings, store
from evomerge.tasks import Task

Chosen: TypeAlias = tuple[str, tuple[int, ...]]
"""A task, and the indices of some of its search examples."""


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
    name: str
    """What `expert` is called where it is shown."""

    @property
    def folder(self) -> Path:
        """Where it is, or will be, in the cache."""
        return store.place(store.key_of(self.about))

    @property
    def index(self) -> dict[str, Any]:
        """What its index says beside its tables."""
        return {"kind": self.kind, "expert": self.name, "task": self.task, "number": len(self.examples)}

    @property
    def is_complete(self) -> bool:
        """Whether it has been collected."""
        return store.is_complete(self.folder)


def chosen(expert: str, given: EvidenceSettings | None, tasks: Mapping[str, Task]) -> Chosen:
    """Return an expert's task and examples: drawn evenly, the same in every study. Raises `PoolError`."""
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


def shared(task: str, given: Mapping[str, EvidenceSettings], tasks: Mapping[str, Task]) -> Chosen:
    """Return a task that all models are run on, and as many of its examples as an expert's evidence of it has. Raises `PoolError`."""
    if task not in tasks:
        raise PoolError(f"the recipe names the task `{task}`, which there is not; {nearest(task, tasks)}")
    named = {expert: evidence for expert, evidence in given.items() if evidence.task == task}
    expert, evidence = next(iter(named.items()), (task, None))
    return chosen(expert, evidence or EvidenceSettings(task=task, examples=_most(task, tasks)), tasks)


def _most(task: str, tasks: Mapping[str, Task]) -> int:
    """Return the default number of a task's search examples."""
    return min(int(EvidenceSettings(task=task).examples), tasks[task].size("search"))


def left(entries: Sequence[Entry]) -> list[Entry]:
    """Return those that have not been collected."""
    return [entry for entry in entries if not entry.is_complete]
