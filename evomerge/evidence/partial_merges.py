"""Partial merges: Gram matrices of experts whose earlier blocks are merged already (RegMean++, arXiv 2508.03121).

Block by block: each expert's own block runs on what the merged blocks before it make of the expert's examples, and then the block
is merged from these Gram matrices by RegMean, with equal weights at `ALPHA`. What is outside of the blocks comes before or after
all of them. All experts are collected together; of Gram matrices, those of one block are in memory at a time.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evomerge.build import Builder
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError
from evomerge.merging import Tables, Watch
from evomerge.recipe import merge
from evomerge.statistics import Statistic, Subject, store

ALPHA = 0.95
"""Factor of the off-diagonal elements in the partial merges: the paper's."""


class _Found:
    """The Gram matrices of the block in turn, as evidence of a merge."""

    def __init__(self) -> None:
        self.tables_of: dict[str, Mapping[str, Tables]] = {}

    def digest(self, kind: str, expert: str) -> str:
        """Return a name: nothing is cached of what still grows."""
        return f"{kind} of {expert}"

    def tables(self, kind: str, expert: str, name: str) -> Tables:
        """Return the tables of a matrix of the block in turn, {} of any other."""
        return self.tables_of[expert].get(name, {})


def settings(pool: Pool) -> dict[str, Any]:
    """Return what the statistics depend on beside models and examples. Raises `PoolError`, see `turns`."""
    turns(pool)
    return {"alpha": ALPHA}


def turns(pool: Pool) -> dict[str, int]:
    """Return when each tensor is merged: 0 before all blocks, n + 1 in block n, last after all of them.

    Raises `PoolError` for a model of several stacks of blocks: names do not tell which stack is run first.
    """
    layout = pool.layout
    if len(layout.stacks) > 1:
        raise PoolError(
            f"the statistic `gram_merged` takes models with one stack of blocks, got {len(layout.stacks)}: "
            f"{', '.join(f'`{prefix}`' for prefix in layout.stacks)}; type `method: regmean`"
        )
    found = {}
    for name in pool.base.info:
        place = layout.place(name)
        first = place.kind == "embedding" or (place.block == 0 and place.blocks > 1)
        found[name] = place.block + 1 if place.inside else 0 if first else place.blocks + 1
    return found


def collect(
    statistic: Statistic,
    pool: Pool,
    subject: Callable[[str, Checkpoint], Subject],
    folders: Mapping[str, tuple[Path, Mapping[str, Any]]],
    watch: Watch,
) -> None:
    """Collect a statistic of all experts together, of each into its folder; its index holds the mapping that stands beside that.

    `subject(expert, model)` writes a model into the live one, and returns it with the expert's examples. While another process
    collects the same, this one waits for it. What a process that was stopped has left is collected again.
    """
    turn_of, names = turns(pool), list(folders)
    order = sorted(set(turn_of.values()))
    with store.emptied([folder for folder, _ in folders.values()]) as to_do:
        if not to_do:
            return
        found, merged = _Found(), dict[str, torch.Tensor]()
        grown = copy.copy(pool)
        grown.evidence = found
        whole = Builder(grown).build(merge("regmean", names, {"alpha": ALPHA, "grams": "merged"}))
        matrices: list[str] = []
        for number, turn in enumerate(order):
            for i, expert in enumerate(names):
                of = subject(expert, _partial(pool.experts[expert], merged))
                chosen = {name: one for name, one in of.matrices.items() if turn_of[one.tensor] == turn}
                offset, total = (number * len(names) + i) * len(of.examples), len(order) * len(names) * len(of.examples)
                made = statistic.collect(replace(of, matrices=chosen), store.within(offset, total, watch))
                count = torch.tensor(len(names))
                found.tables_of[expert] = {name: {**tables, "experts": count} for name, tables in made.items()}
                store.add(folders[expert][0], list(chosen), found.tables_of[expert])
                matrices += chosen if not i else ()
            merged |= {name: whole.tensor(name).clone() for name in pool.merged if turn_of[name] == turn}
        for folder, about in folders.values():
            store.finish(folder, about, matrices)


def _partial(expert: Checkpoint, merged: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Return an expert with the tensors that are merged already in place of its own."""
    return Computed(expert.info, lambda name: merged[name] if name in merged else expert.tensor(name), (expert,))
