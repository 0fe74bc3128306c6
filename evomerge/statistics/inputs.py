"""Statistics of the inputs of each matrix: Gram matrices, means and norms of activations, use of the experts of a mixture."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evomerge.merging import Tables, Watch
from evomerge.statistics.products import Products, watched
from evomerge.statistics.statistic import Statistic, Subject

Sums = dict[str, Tensor]
"""Sums over tokens, by name."""

ROWS = 2048
"""About the number of tokens whose inputs `inputs` keeps: at least one of each example."""

ROUTER = re.compile(r"(?P<parent>.+)\.gate\.weight")
"""The name of a mixture's router: the parent has its experts, too. A gate of an expert has another name, as `gate_proj`."""


def _collector(
    start: Callable[[Tensor], Sums], add: Callable[[Sums, Tensor], None], finish: Callable[[Sums, Tensor], Tables]
) -> Callable[[Subject, Watch], dict[str, Tables]]:
    """Return a collector that sums over the tokens of each matrix's inputs.

    `start` makes the sums for inputs `(tokens, d)`, `add` adds inputs to them, `finish` makes tables of the sums and the number of
    tokens. Matrices that always share their inputs share their tables.
    """

    def collect(subject: Subject, watch: Watch) -> dict[str, Tables]:
        sums: dict[tuple[str, ...], Sums] = {}
        tokens: dict[tuple[str, ...], int] = {}

        def take(inputs: Tensor, names: tuple[str, ...]) -> None:
            rows = inputs.float()
            if names not in sums:
                sums[names], tokens[names] = start(rows), 0
            add(sums[names], rows)
            tokens[names] += len(rows)

        products = Products(subject.live, subject.matrices, subject.shapes, take)
        _run(subject, products, watch)
        groups: dict[str, list[tuple[str, ...]]] = {}
        for names, summed in sums.items():
            for name in names:
                if name not in products.embedded and _complete(subject, name, products.axes[name], summed):
                    groups.setdefault(name, []).append(names)
        made: dict[tuple[Any, ...], Tables] = {}
        tables: dict[str, Tables] = {}
        for name in sorted(groups):
            key = (products.axes[name], *groups[name])
            if key not in made:
                summed = {
                    field: _total([sums[names][field] for names in groups[name]]) for field in sums[groups[name][0]]
                }
                count = torch.tensor(sum(tokens[names] for names in groups[name]))
                axis = torch.tensor(products.axes[name])
                finished = finish(summed, count)
                made[key] = {**{field: table.cpu() for field, table in finished.items()}, "tokens": count, "axis": axis}
            tables[name] = made[key]
        return tables

    return collect


def _run(subject: Subject, products: Products, watch: Watch) -> None:
    """Score the examples while products are watched."""
    with watched(subject.live, products):
        for examples in subject.batches(watch):
            subject.task.score(subject.live, "search", examples)


def _routers(subject: Subject, watch: Watch) -> dict[str, Tables]:
    """Collect the products of the logits of each router of mixtures, if there are any."""
    sums: dict[str, Tensor] = {}
    tokens: defaultdict[str, int] = defaultdict(int)

    def take(inputs: Tensor, names: tuple[str, ...]) -> None:
        for name in names:
            logits = inputs.float() @ next(subject.live.views(name)).float().mT
            sums[name] = sums.get(name, 0.0) + (logits.mT @ logits).double()
            tokens[name] += len(logits)

    routers = {name: matrix for name, matrix in subject.matrices.items() if ROUTER.fullmatch(name)}
    products = Products(subject.live, routers, subject.shapes, take)
    if routers:
        _run(subject, products, watch)
    return {
        name: {
            "logits": (summed / tokens[name]).float().cpu(),
            "tokens": torch.tensor(tokens[name]),
            "axis": torch.tensor(products.axes[name]),
        }
        for name, summed in sums.items()
    }


def _routers_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) != 2 or not all(shape):  # a matrix
        return {}
    logits = torch.randn(2 * shape[0] + 1, shape[0], generator=generator)
    return {"logits": logits.mT @ logits / len(logits), "tokens": torch.tensor(len(logits)), "axis": torch.tensor(1)}


def _total(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _complete(subject: Subject, name: str, axis: int, sums: Mapping[str, Tensor]) -> bool:
    """Return whether sums are of all the inputs of a matrix, which a module may have in pieces."""
    size = _width(subject, name, axis)
    return all(not table.ndim or len(table) == size for table in sums.values())


def _width(subject: Subject, name: str, axis: int) -> int:
    shape = subject.shape(name)
    return shape[0] if axis == 0 else torch.Size(shape[1:]).numel()


def _collect_rows(subject: Subject, watch: Watch) -> dict[str, Tables]:
    """Return the inputs of some tokens. Matrices that always share their inputs share their tables."""
    each = max(1, ROWS // len(subject.examples))
    running = 0
    parts: dict[str, list[Tensor]] = {}
    counts: dict[str, list[int]] = {}

    def take(inputs: Tensor, names: tuple[str, ...]) -> None:
        kept = drawn(inputs, each * running, len(counts.get(names[0], ()))).float().cpu().clone()
        for name in names:
            parts.setdefault(name, []).append(kept)
            counts.setdefault(name, []).append(len(inputs))

    products = Products(subject.live, subject.matrices, subject.shapes, take)
    with watched(subject.live, products):
        for examples in subject.batches(watch):
            running = len(examples)
            subject.task.score(subject.live, "search", examples)
    made: dict[tuple[int, ...], Tables] = {}
    tables: dict[str, Tables] = {}
    for name in sorted(parts):
        axis, key = products.axes[name], (products.axes[name], *map(id, parts[name]))
        if name in products.embedded or any(part.shape[1] != _width(subject, name, axis) for part in parts[name]):
            continue
        if key not in made:
            rows = drawn(torch.cat(parts[name]), each * len(subject.examples), 0)
            made[key] = {"rows": rows, "counts": torch.tensor(counts[name]), "axis": torch.tensor(axis)}
        tables[name] = made[key]
    return tables


def drawn(rows: Tensor, most: int, seed: int) -> Tensor:
    """Return at most so many rows, drawn by `seed` alone: at even spaces, the first token of each sequence might never be among them."""
    if len(rows) <= most:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:most].to(rows.device)]


def _rows_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) < 2 or not all(shape):  # a matrix
        return {}
    rows = torch.randn(17, torch.Size(shape[1:]).numel(), generator=generator)
    return {"rows": rows, "counts": torch.tensor([17]), "axis": torch.tensor(1)}


def _gram_add(sums: Sums, rows: Tensor) -> None:
    sums["gram"].addmm_(rows.mT, rows)


def _gram_finish(sums: Mapping[str, Tensor], tokens: Tensor) -> Tables:
    return {"gram": sums["gram"] / tokens}


def _square(shape: tuple[int, ...]) -> int:
    """Return the bytes of a Gram matrix, whichever way round the matrix is stored."""
    if len(shape) < 2:  # a matrix
        return 0
    inputs = torch.Size(shape[1:]).numel()
    return 4 * (inputs if len(shape) > 2 else max(shape)) ** 2  # a convolution


def _gram_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) < 2 or not all(shape):  # a matrix
        return {}
    inputs = torch.Size(shape[1:]).numel()
    rows = torch.randn(2 * inputs + 1, inputs, generator=generator)
    return {"gram": rows.mT @ rows / len(rows), "tokens": torch.tensor(len(rows)), "axis": torch.tensor(1)}


def _moments_start(rows: Tensor) -> Sums:
    width = rows.shape[1]
    return {name: rows.new_zeros(width, dtype=torch.float64) for name in ("sum", "sizes", "squares")}


def _moments_add(sums: Sums, rows: Tensor) -> None:
    wide = rows.double()
    sums["sum"] += wide.sum(0)
    sums["sizes"] += wide.abs().sum(0)
    sums["squares"] += wide.square().sum(0)


def _moments_finish(sums: Mapping[str, Tensor], tokens: Tensor) -> Tables:
    mean, square = sums["sum"] / tokens, sums["squares"] / tokens
    variance = (square - mean.square()).clamp(min=0)
    size = sums["sizes"] / tokens
    return {"mean": mean.float(), "size": size.float(), "norm": square.sqrt().float(), "variance": variance.float()}


def _moments_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) < 2 or not all(shape):  # a matrix
        return {}
    rows = torch.randn(17, torch.Size(shape[1:]).numel(), generator=generator)
    sums = _moments_start(rows)
    _moments_add(sums, rows)
    count = torch.tensor(len(rows))
    return {**_moments_finish(sums, count), "tokens": count, "axis": torch.tensor(1)}


def _usage_sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) < 2:  # a matrix
        return {}
    return {"tokens": torch.randint(1, 99, (), generator=generator), "axis": torch.tensor(1)}


_ACTIVATION = Statistic(
    "`mean`, `size` (the mean magnitude), `norm` (the root of the mean square) and `variance` of each input channel of a matrix over "
    "tokens, float32 `(d,)`; `tokens` and `axis` as of `gram`",
    _collector(_moments_start, _moments_add, _moments_finish),
    lambda shape: 24 * max(shape, default=0),
    _moments_sample,
    version=2,
)

_GRAM = Statistic(
    "`gram`, XᵀX / tokens of the inputs X `(tokens, d)` of a matrix, float32 `(d, d)`, of a convolution of its unfolded inputs; "
    "`tokens`, their number without padding; `axis`, 1 where the matrix is stored (out, in), 0 where it is (in, out)",
    _collector(lambda rows: {"gram": rows.new_zeros(rows.shape[1], rows.shape[1])}, _gram_add, _gram_finish),
    _square,
    _gram_sample,
    version=2,
)

INPUTS = {
    "gram": _GRAM,
    "gram_merged": replace(
        _GRAM,
        about=f"{_GRAM.about}; of each expert's own block after the merged blocks before it, and `experts`, the number of experts "
        "that are merged there",
        of_merge=True,
        version=1,
    ),
    "activation": _ACTIVATION,
    "base_activation": replace(
        _ACTIVATION, about=f"{_ACTIVATION.about}, of the base on the expert's examples", of_base=True
    ),
    "inputs": Statistic(
        f"`rows`, the inputs X of a matrix for tokens drawn at random, about {ROWS} in all, float32 `(rows, d)`, the same tokens for all models; "
        "`counts`, int64, how many there were each time that it was used; `axis` as of `gram`",
        _collect_rows,
        lambda shape: 4 * ROWS * (torch.Size(shape[1:]).numel() if len(shape) > 2 else max(shape, default=0)),
        _rows_sample,
        version=2,
    ),
    "usage": Statistic(
        "`tokens`, the number of tokens, without padding, that a matrix was multiplied with: of the matrices of a mixture's expert, the "
        "tokens that were routed to it; `axis` as of `gram`",
        _collector(lambda rows: {}, lambda sums, rows: None, lambda sums, tokens: {}),
        lambda shape: 0,
        _usage_sample,
        version=2,
    ),
    "router": Statistic(
        "`logits`, LᵀL / tokens of the logits L `(tokens, experts)` of a mixture's router, float32 `(experts, experts)`; `tokens` and `axis` as "
        "of `gram`",
        _routers,
        lambda shape: 0,
        _routers_sample,
    ),
}
"""The statistics of inputs, by name."""
