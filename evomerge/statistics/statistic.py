"""Statistic: what a model and examples say of the model's tensors. Not to be confused with a score, which says how good it is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from evomerge.checkpoints.fused import Matrix
from evomerge.merging import Tables, Watch
from evomerge.models import LiveModel
from evomerge.tasks import Task


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statistic is collected of: a model in memory, and examples of the search split of one task."""

    live: LiveModel
    """With the weights to be measured, and the head that the task is scored with."""
    task: Task
    examples: Sequence[int]
    """Indices of search examples."""
    matrices: Mapping[str, Matrix]
    """The tensors to be measured, and the matrices inside of fused ones, by their names in merges."""
    shapes: Mapping[str, tuple[int, ...]]
    """The shape of each of the checkpoint's tensors that they are in."""
    seed: str
    """What random draws depend on, beside the example: the digest of the evidence."""

    def batches(self, watch: Watch) -> Iterator[Sequence[int]]:
        """Yield the indices of the examples in groups that run in one batch without padding, and tell `watch` how many are done."""
        done = 0
        for examples in self.task.unpadded(self.live, "search", self.examples):
            watch("examples", done, len(self.examples))
            yield examples
            done += len(examples)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one of the `matrices`."""
        matrix = self.matrices[name]
        return tuple(matrix.of(torch.empty(self.shapes[matrix.tensor], device="meta")).shape)


@dataclass(frozen=True, slots=True)
class Statistic:
    """One kind of statistic."""

    about: str
    """What its tables hold, with their names and shapes."""
    collect: Callable[[Subject, Watch], dict[str, Tables]]
    """(subject, progress in examples) → the tables of each matrix of which the model says something, on the CPU.

    The same subject gives the same bytes. Raises `TaskError` for a task that cannot be measured.
    """
    nbytes: Callable[[tuple[int, ...]], int]
    """(shape) → most bytes of memory that one matrix of this shape takes while it is collected."""
    sample: Callable[[tuple[int, ...], torch.Generator], Tables]
    """(shape, generator) → random tables as `collect` might return them, for the suites of what reads them."""
    version: int = 1
    """To be raised whenever the content of a table changes."""
    of_base: bool = False
    """Whether the model is the base, on the examples of each expert, and not the expert."""
    of_merge: bool = False
    """Whether the earlier blocks of the model are those of the merge of all experts: see `evomerge.evidence.partial_merges`."""
    of_mask: bool = False
    """Whether it is learnt of all experts together, from slopes that `collect` returns: see `evomerge.evidence.masks`."""
