"""Two perceptrons in one of another width: PLeaS and ZipIt on all hidden layers of `deep_perceptron`, which have no residual stream."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shared.deep_perceptron import start
from shared.networks import measured, scores, train, write_task
from shared.networks import turn as rotated
from torch import Tensor

from evomerge.alignment.activations import standardised
from evomerge.alignment.grouping import paired, zipped
from evomerge.alignment.mlps import Mlp, Mlps, Place
from evomerge.alignment.zipped import Zipped, fitted_to
from evomerge.checkpoints.folder import Checkpoint, Computed

WIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0)
NARROW = 32
"""The width of the networks that PLeaS and ZipIt put into one."""
PAIRS = {"the same digits": (0, 0), "upright and turned, a head each": (0, 1)}
"""Quarter turns of the digits that each of two networks learns. Of two tasks, each has a head of its own."""
_LAST = ("last.weight", "last.bias")
BUDGET, DAMPING, RIDGE = 0.125, 0.3, 0.01
"""The defaults of the recipes."""


def accuracies(
    seed: int,
    turns: tuple[int, int],
    steps: int,
    out: Path,
    data: Mapping[str, tuple[Tensor, Tensor]],
    words: Sequence[str],
) -> dict[str, float]:
    """Return the accuracies of two networks, each on the digits that it learned, and on both kinds of what they are merged to."""
    names = [words[turn] for turn in dict.fromkeys(turns)]
    turned = {
        turn: {split: (rotated(images, turn), labels) for split, (images, labels) in data.items()} for turn in turns
    }
    for name, of in zip(names, turned.values(), strict=True):
        write_task(out, name, of)
    folders = [
        train(NARROW, 1000 + 2 * seed + i, steps, turned[turn]["train"], out / str(i)) for i, turn in enumerate(turns)
    ]
    experts = dict(zip(("one", "two"), folders, strict=True))
    pool, evidence, _ = measured(experts, out, names, [f"inputs@{name}" for name in names])
    models = [*pool.experts.values()]

    def read(model: int, tensor: str) -> Tensor:
        label = ("one", "two")[model]
        return torch.cat([evidence.tables(f"inputs@{name}", label, tensor)["rows"] for name in names])

    def accuracy(heads: Sequence[Checkpoint]) -> float:
        """Return the mean accuracy over tasks, each with the model that has its head."""
        module = start(heads[0].info["first.bias"].shape[0], 0)
        return float(
            np.mean([scores(module, head, turned[turn]["test"])[1] for head, turn in zip(heads, turned, strict=False)])
        )

    def merged(width: float, *, zips: bool = False, fitted: bool = False) -> float:
        return accuracy(in_groups(models, read, width, zips=zips, fitted=fitted, heads=len(names) > 1))

    both = [scores(start(NARROW, 0), model, turned[turn]["test"])[1] for model, turn in zip(models, turns, strict=True)]
    mean = {name: (models[0].tensor(name) + models[1].tensor(name)) / 2 for name in models[0].info}
    averages = [mean | {name: model.tensor(name) for name in _LAST} if len(names) > 1 else mean for model in models]
    return {
        "both": float(np.mean(both)),
        "average": accuracy([Computed(models[0].info, average.__getitem__) for average in averages]),
        "ZipIt": merged(1, zips=True),
        "ZipIt, fitted": merged(1, zips=True, fitted=True),
        **{f"pairs {width:g}": merged(width) for width in WIDTHS},
        **{f"PLeaS {width:g}": merged(width, fitted=True) for width in WIDTHS},
    }


def in_groups(
    models: Sequence[Checkpoint],
    read: Callable[[int, str], Tensor],
    width: float,
    *,
    zips: bool = False,
    fitted: bool = False,
    heads: bool = False,
) -> list[Checkpoint]:
    """Return two networks in one, `width` times as wide as they are, its alike units merged by PLeaS, or by ZipIt if `zips`.

    `read(model, name)` returns the inputs of a matrix, the same examples for both models. Matrices are `fitted` or not. With `heads`, there
    are two, which differ in their last layer: that of the first model, and that of the second, each of which reads its own units' groups.
    """
    one, other = models
    size = one.info["first.bias"].shape[0]
    hidden = round(width * size)
    mlps = Mlps([_units(size, "first", "second"), _units(size, "second", "last")])

    def groups(mlp: Mlp) -> Tensor:
        units = [standardised(read(model, mlp.out[0].tensor)) for model in (0, 1)]
        if zips:
            both = torch.cat(units, 1)
            return zipped(both.mT @ both, BUDGET, DAMPING)
        return paired(units[0].mT @ units[1], hidden)

    def rows(name: str) -> tuple[tuple[Tensor, Tensor], int]:
        return (read(0, name), read(1, name)), 1

    mean = Computed(one.info, lambda name: (one.tensor(name) + other.tensor(name)) / 2)
    fit = (rows, RIDGE) if fitted else None
    made = Zipped((one, other), mean, mlps, hidden, groups, {}, _load, fit)
    if not heads:
        return [made]
    group = groups(mlps.all[1])
    units = torch.cat([read(0, "last.weight"), read(1, "last.weight")], 1).double()
    means = units.new_zeros(len(units), hidden).index_add_(1, group, units) / group.bincount()
    found = []
    for number, model in enumerate(models):
        own = group[number * size : (number + 1) * size]
        weight = model.tensor("last.weight").double()
        head = weight.new_zeros(len(weight), hidden).index_add_(1, own, weight)
        if fitted:
            outputs = units[:, number * size : (number + 1) * size] @ weight.mT
            head = fitted_to(head, means, outputs, RIDGE)
        last = {"last.weight": head.float(), "last.bias": model.tensor("last.bias")}
        found.append(Computed(made.info, partial(_with, made, last)))
    return [*found]


def _with(model: Checkpoint, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return tensors[name] if name in tensors else model.tensor(name)


def _load(model: Checkpoint, name: str) -> Tensor:
    return model.tensor(name)


def _units(size: int, layer: str, after: str) -> Mlp:
    into = Place(f"{layer}.weight", 0, 0), Place(f"{layer}.bias", 0, 0)
    return Mlp(size, into, (Place(f"{after}.weight", 1, 0),))
