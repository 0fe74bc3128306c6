"""Repairs: the outputs of a merge's layers, scaled and shifted to the mean and standard deviation of its models' outputs.

REPAIR (Jordan et al., https://arxiv.org/abs/2211.08403) and TACT (https://arxiv.org/abs/2410.12766): a channel z of the merge becomes
(z - mean) * goal_deviation / deviation + goal_mean, where the goals are means over the models. Layer by layer, in the order in which they
run: each is measured after those before it have been corrected. The output layer stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment import Permuted
from evomerge.build import Builder
from evomerge.checkpoints.corrected import Corrected
from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError
from evomerge.merging import Tables, Watch
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, RepairNode
from evomerge.statistics import Subject, store
from evomerge.statistics.outputs import bias_of, moments, order

KIND = "repair"
"""The kind of corrections among statistics."""
VERSION = 1
"""Version of the corrections: another finds other ones."""


def correction(own: Tables, mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """Return the `scale` and the `shift` that give outputs with the moments `own` this mean and standard deviation, float64 `(out,)`.

    A channel that is constant has its mean shifted alone.
    """
    root = own["variance"].sqrt()
    scale = torch.where(root > 0, deviation / torch.where(root > 0, root, 1.0), 1.0)
    return {"scale": scale, "shift": mean - scale * own["mean"], "axis": own["axis"]}


def pooled(parts: Sequence[Tables]) -> dict[str, Tensor]:
    """Return the moments of the outputs on the examples of several tasks together, from those on each."""
    tokens = sum(int(part["tokens"]) for part in parts)
    mean = sum(part["tokens"] * part["mean"] for part in parts) / tokens
    square = sum(part["tokens"] * (part["variance"] + part["mean"].square()) for part in parts) / tokens
    assert isinstance(mean, Tensor)
    assert isinstance(square, Tensor)
    return {"mean": mean, "variance": (square - mean.square()).clamp(min=0), "axis": parts[0]["axis"]}


def check(pool: Pool) -> None:
    """Raise `PoolError` for a pool whose layers have no biases, which would hold the shifts; batch norms may hold them."""
    without = [] if any(name.endswith("running_mean") for name in pool.base.info) else _without_bias(pool, pool.merged)
    if without:
        raise PoolError(_unfit(without))


def _without_bias(pool: Pool, names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return the matrices in blocks, or anywhere in a model without blocks, that have no bias."""
    layout = pool.layout
    return [
        name
        for name in names
        if len(pool.merged[name].shape) > 1
        and (layout.place(name).inside or (layout.prefix is None and layout.place(name).kind == "other"))
        and not _has_bias(pool, name)
    ]


def _has_bias(pool: Pool, weight: str) -> bool:
    return weight.endswith("weight") and bias_of(weight) in pool.merged


def _unfit(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more have" if len(names) > 1 else " has"
    return (
        f"repair: `{names[0]}`{more} no bias, and without one the mean of a layer's outputs cannot be shifted in a plain checkpoint; expected "
        "a model whose layers have biases, such as ViT, BERT or GPT-2, or batch norms; leave out `repair`"
    )


def collect(
    recipe: Recipe,
    pool: Pool,
    live: LiveModel,
    subject: Callable[[str], Subject],
    folder: Path,
    index: Mapping[str, Any],
    watch: Watch,
) -> None:
    """Collect the corrections of a `repair` into its folder; nothing if that is done. While another process does, this one waits.

    `subject(task)` returns what is in `live`, with the task's examples. The pool has the statistics of the models. What a process that
    was stopped has left is collected again. Raises `PoolError` for a layer without a bias.
    """
    assert isinstance(recipe.root, RepairNode)
    repair = recipe.root.repair
    with store.emptied([folder]) as to_do:
        if not to_do:
            return
        builder = Builder(pool)
        source = builder.build(repair.source)
        live.refit(source)
        corrections: dict[str, Tables] = {}
        corrected = Corrected(source, lambda name: corrections.get(name, {}), builder.load)
        groups = _chosen(order(subject(repair.tasks[0])), pool)
        for number, names in enumerate(groups):
            parts = []
            for place, task in enumerate(repair.tasks):
                of = subject(task)
                chosen = replace(of, matrices={name: of.matrices[name] for name in names})
                passes = len(groups) * len(repair.tasks)
                offset = (number * len(repair.tasks) + place) * len(of.examples)
                parts.append(moments(chosen, store.within(offset, passes * len(of.examples), watch)))
            for name in names:
                corrections[name] = correction(pooled([part[name] for part in parts]), *_goal(recipe, name, builder))
                for tensor in (name, bias_of(name)):
                    for view in live.views(tensor):
                        view.copy_(corrected.tensor(tensor))
        store.add(folder, list(corrections), corrections)
        store.finish(folder, index, list(corrections))


def _chosen(groups: Sequence[tuple[str, ...]], pool: Pool) -> list[tuple[str, ...]]:
    """Return the layers to be corrected: all with a bias but the last. Raises `PoolError` for one whose outputs stay uncorrected."""
    normed = [any(len(pool.merged[name].shape) == 1 for name in group) for group in groups]
    bare = [name for group, norm in zip(groups[:-1], normed[1:], strict=True) if not norm for name in group]
    if without := _without_bias(pool, bare):
        raise PoolError(_unfit(without))
    chosen = [tuple(name for name in group if _has_bias(pool, name)) for group in groups[:-1]]
    return [group for group in chosen if group]


def _goal(recipe: Recipe, name: str, builder: Builder) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation that a layer's outputs are to have, float64 `(out,)`."""
    assert isinstance(recipe.root, RepairNode)
    repair = recipe.root.repair
    goals: list[list[Tensor]] = []
    for model, share in zip(repair.models, repair.shares, strict=True):
        label = model.unaligned.root.label or ""
        reads = [_reader(builder.pool, repair.tasks, label, field) for field in ("mean", "variance")]
        aligned = builder.build(model)
        units = bias_of(name)  # units of a layer are in the order of its bias
        mean, variance = (aligned.read(units, read) if isinstance(aligned, Permuted) else read(units) for read in reads)
        goals.append([share * mean, share * variance.sqrt()])
    means, deviations = (torch.stack(column).sum(0) for column in zip(*goals, strict=True))
    return means, deviations


def _reader(pool: Pool, tasks: Sequence[str], label: str, field: str) -> Callable[[str], Tensor]:
    """Return what reads the moments of a model's outputs on tasks by the name of a bias; zeros where that belongs to no layer."""
    evidence = pool.evidence
    assert evidence is not None

    def read(bias: str) -> Tensor:
        weight = f"{bias.removesuffix('bias')}weight"
        tables = [evidence.tables(f"outputs@{task}", label, weight) for task in tasks]
        return pooled(tables)[field] if all(tables) else torch.zeros(pool.merged[bias].shape, dtype=torch.float64)

    return read
