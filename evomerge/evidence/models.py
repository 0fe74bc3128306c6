"""Models: those of a pool that statistics are collected of, in memory one after the other."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from rich.console import Console

from evomerge import placement
from evomerge.checkpoints.beside import text_files
from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.digests import code_digests, data_digest
from evomerge.evaluate import Setup
from evomerge.evaluate.setup import open_model
from evomerge.evaluate.worker import reproducible
from evomerge.evidence.entries import Entry
from evomerge.merging import Watch
from evomerge.models import LiveModel
from evomerge.progress import Progress
from evomerge.statistics import STATISTICS, Subject, store
from evomerge.tasks import Task


@dataclass(frozen=True)
class Models:
    """A pool, and what its models are run on."""

    pool: Pool
    setup: Setup
    tasks: Mapping[str, Task]

    def entry(self, kind: str, expert: str, task: str, examples: tuple[int, ...]) -> Entry:
        """Return the entry of a statistic, or of `KIND@TASK`, of one model."""
        name = kind.partition("@")[0]
        settings = dict(self.setup.tasks[task])
        data = data_digest(settings, self.setup.folder)
        about = {
            "kind": name,
            "version": STATISTICS[name].version,
            "model": self.pool.digests["base" if STATISTICS[name].of_base else expert],
            "base": self.pool.digests["base"],
            "examples": list(examples),
            "task": {key: value for key, value in settings.items() if key not in data and key != "group"},
            "data": {key: digest for key, digest in data.items() if key not in ("report", "final")},
            "read": self.tasks[task].digest(),
            "common": self._common,
        }
        return Entry(kind, expert, task, examples, about, expert)

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What all statistics depend on."""
        setup, pool = self.setup, self.pool
        files = text_files(pool.base.path, pool.tokenizer)
        return {
            "precision": setup.precision,
            "device": placement.described(setup.device),
            "threads": setup.threads,
            "auto": setup.auto,
            "text": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
            "config": pool.base.config,
            **code_digests(setup),
        }

    def load(self) -> LiveModel:
        """Return a model in memory, of the base."""
        return open_model(self.setup, self.pool, placement.find(self.setup.device))

    def subject(
        self, live: LiveModel, entry: Entry, examples: Sequence[int], model: Checkpoint | None = None
    ) -> Subject:
        """Write an entry's model, or another, into `live`, and return it with what is to be measured."""
        of_base = STATISTICS[entry.kind.partition("@")[0]].of_base or entry.expert == "base"
        live.refit(model or (self.pool.base if of_base else self.pool.experts[entry.expert]))
        return self.measured(live, entry.task, examples, store.key_of(entry.about))

    def measured(self, live: LiveModel, name: str, examples: Sequence[int], seed: str) -> Subject:
        """Return what is in `live`, with the head and examples of a task, and what is to be measured."""
        task, pool = self.tasks[name], self.pool
        task.put_head_on(live)
        live.module.train(mode=False)
        matrices = {matrix.name: matrix for name in pool.merged for matrix in pool.layout.matrices(name)}
        shapes = {name: info.shape for name, info in pool.merged.items()}
        return Subject(live, task, examples, matrices, shapes, seed)

    @contextmanager
    def progress(self, live: LiveModel, what: str, entries: Sequence[Entry], console: Console) -> Iterator[Watch]:
        """Show the progress over the examples of entries, and give the block the same results in every process."""
        total = sum(len(entry.examples) for entry in entries)
        with Progress(what, total, console) as bar, reproducible(self.setup.threads, live.device):
            yield lambda _, done, of: bar(done, of)

    @staticmethod
    def room(device: torch.device) -> int:
        """Return the bytes for sums: a quarter of what is free on a device."""
        free = placement.free(device)
        return (16 << 30 if free is None else free) // 4
