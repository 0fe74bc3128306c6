"""Statistic of the hidden states before and after each block, of the same tokens for all models. Not to be confused with `inputs`, those of a matrix."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.layout import block_number
from evomerge.merging import Tables, Watch
from evomerge.models.blocks import find_blocks
from evomerge.models.dataflow import single
from evomerge.models.prefixes import digest
from evomerge.statistics.inputs import drawn
from evomerge.statistics.products import Products, watched
from evomerge.statistics.statistic import Statistic, Subject

ROWS = 4096
"""About the number of tokens whose hidden states are kept, of models up to a quarter as wide."""


def rows_of(width: int) -> int:
    """Return about how many tokens are kept of hidden states of this width: enough for an affine map of them."""
    return max(ROWS, 4 * width)


def _collect(subject: Subject, watch: Watch) -> dict[str, Tables]:
    """Return the hidden states around each block; its matrices share their tables."""
    live = subject.live
    blocks = find_blocks(live.module)
    named = _named(subject, blocks)
    read, running = hashlib.sha256(), 0
    parts: dict[tuple[int, str], list[Tensor]] = {
        (number, when): [] for number in named for when in ("before", "after")
    }
    products = Products(live, {}, subject.shapes, lambda *_: None)

    def take(number: int, when: str, hidden: Tensor | None) -> None:
        if hidden is not None and not products.paused:
            rows = hidden.flatten(0, -2)
            kept = drawn(rows, _each(rows, subject) * running, len(parts[number, when]))
            parts[number, when].append(kept.float().cpu().clone())

    hooks = []
    for number in named:
        before, after = partial(take, number, "before"), partial(take, number, "after")
        hooks.append(blocks[number].register_forward_pre_hook(lambda _, args, take=before: take(args[0])))
        hooks.append(blocks[number].register_forward_hook(lambda *came, take=after: take(single(came[-1]))))
    try:
        with watched(live, products), _reading(live.module, read.update):
            for examples in subject.batches(watch):
                running = len(examples)
                subject.task.score(live, "search", examples)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = torch.frombuffer(bytearray(read.digest()), dtype=torch.uint8)
    made = {at: torch.cat(some) for at, some in parts.items() if some}
    made = {at: drawn(rows, _each(rows, subject) * len(subject.examples), 0) for at, rows in made.items()}
    for number in named:  # what one block gives is mostly what the next one takes, and is written once
        here, there = made.get((number, "after")), made.get((number + 1, "before"))
        if here is not None and there is not None and torch.equal(here, there):
            made[number, "after"] = there
    return {
        name: {"before": made[number, "before"], "after": made[number, "after"], "read": tokens}
        for number, names in named.items()
        for name in names
        if (number, "before") in made and (number, "after") in made
    }


def _each(rows: Tensor, subject: Subject) -> int:
    return max(1, rows_of(rows.shape[1]) // len(subject.examples))


def _named(subject: Subject, blocks: nn.ModuleList) -> dict[int, list[str]]:
    """Return by block those of the subject's matrices that it is filled from."""
    prefix = next(name for name, part in subject.live.module.named_modules() if part is blocks)
    inside = {mapping.source: block_number(mapping.target, prefix) for mapping in subject.live.mappings}
    named: dict[int, list[str]] = {}
    for name, matrix in subject.matrices.items():
        if (number := inside.get(matrix.tensor)) is not None:
            named.setdefault(number, []).append(name)
    return named


@contextmanager
def _reading(module: nn.Module, note: Callable[[bytes], object]) -> Iterator[None]:
    """Note the tensors that the model is called with in the block."""
    depth = 0

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            given = dict(enumerate(args)) | dict(kwargs)
            tensors = {str(name): value for name, value in given.items() if isinstance(value, Tensor)}
            note((digest((), tensors) or "").encode())

    def leave(*_: object) -> None:
        nonlocal depth
        depth -= 1

    inside = getattr(module, "base_model", module)  # which tasks with a head of their own call
    hooks = []
    for part in dict.fromkeys((module, inside)):
        hooks.append(part.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if not shape or not all(shape):
        return {}
    before, after = torch.randn(2, 17, min(shape), generator=generator)
    return {"before": before, "after": after, "read": torch.zeros(32, dtype=torch.uint8)}


HIDDEN = {
    "hidden": Statistic(
        f"`before` and `after`, the hidden states before and after the block of a matrix for tokens drawn at random, about {ROWS} in all or four "
        "times the width, float32 `(rows, d)`, the same for all matrices of a block; `read`, the sha256 of what the model was called "
        "with, uint8 `(32,)`: models with the same one have run on the same tokens",
        _collect,
        lambda shape: 8 * rows_of(min(shape, default=0)) * min(shape, default=0),
        _sample,
        version=2,
    )
}
"""The statistic of hidden states, by name."""
