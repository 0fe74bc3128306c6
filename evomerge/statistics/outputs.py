"""Statistic of the outputs of each layer: their mean and variance, the bias included.

A layer is a matrix or convolution with its bias, or a batch norm: what gives `weight ∘ x + bias`, whose outputs can be given any
mean and standard deviation by other weights. Not to be confused with statistics of inputs, which a matrix takes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.merging import Tables, Watch
from evomerge.statistics.products import Products, watched
from evomerge.statistics.statistic import Statistic, Subject

Give = Callable[[str], Tensor]
"""(layer) → its outputs `(tokens, out)`."""


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight of this name."""
    return f"{weight.removesuffix('weight')}bias"


def order(subject: Subject) -> list[tuple[str, ...]]:
    """Return the layers in the order in which the first example runs them, by their weights; those on the same inputs together."""
    groups: dict[tuple[str, ...], None] = {}
    with _layers(subject, lambda names, give: groups.setdefault(names)):
        subject.task.score(subject.live, "search", subject.examples[:1])
    return list(groups)


def moments(subject: Subject, watch: Watch) -> dict[str, Tables]:
    """Return the moments of the outputs of the subject's layers."""
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}

    def take(names: tuple[str, ...], give: Give) -> None:
        for name in names:
            rows = give(name).double()
            added = torch.stack([rows.sum(0), rows.square().sum(0)])
            sums[name] = sums[name] + added if name in sums else added
            tokens[name] = tokens.get(name, 0) + len(rows)

    with _layers(subject, take) as products:
        for examples in subject.batches(watch):
            subject.task.score(subject.live, "search", examples)
    tables: dict[str, Tables] = {}
    for name, summed in sorted(sums.items()):
        mean, square = (summed / tokens[name]).cpu().unbind()
        tables[name] = {
            "mean": mean.clone(),
            "variance": (square - mean.square()).clamp(min=0),
            "tokens": torch.tensor(tokens[name]),
            "axis": torch.tensor(products.axes.get(name, 1)),
        }
    return tables


@contextmanager
def _layers(subject: Subject, take: Callable[[tuple[str, ...], Give], Any]) -> Iterator[Products]:
    """Hand the outputs of layers to `take`, by the names of their weights, while the model runs in the block."""
    live, weights = subject.live, dict[str, Tensor]()
    for name, matrix in subject.matrices.items():
        whole = [
            view for view in live.views(matrix.tensor) if tuple(view.shape) == tuple(subject.shapes[matrix.tensor])
        ]
        if whole and not matrix.at and whole[0].ndim > 1:
            weights[name] = whole[0].flatten(1)

    def product(inputs: Tensor, names: tuple[str, ...]) -> None:
        rows = inputs.float()

        def give(name: str) -> Tensor:
            weight = weights[name].float()
            outputs = rows @ (weight.mT if products.axes[name] else weight)
            biases = list(live.views(bias_of(name))) if bias_of(name) in subject.shapes else []
            return outputs + biases[0].float() if biases and biases[0].shape == outputs.shape[1:] else outputs

        paused, products.paused = products.paused, True  # what is multiplied here is not the model's
        take(names, give)
        products.paused = paused

    products = Products(live, {name: subject.matrices[name] for name in weights}, subject.shapes, product)
    names = {mapping.target: mapping.source for mapping in live.mappings}
    hooks = []
    for path, module in live.module.named_modules():
        name = names.get(f"{path}.weight", "")
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and name in subject.matrices:  # noqa: SLF001  # the base of all three

            def norm(_: object, args: object, outputs: Tensor, name: str = name) -> None:
                products.flush()  # what was multiplied before comes first
                rows = outputs.movedim(1, -1).flatten(0, -2).float()
                take((name,), lambda _: rows)

            hooks.append(module.register_forward_hook(norm))
    try:
        with watched(live, products):
            yield products
    finally:
        for hook in hooks:
            hook.remove()


def _sample(shape: tuple[int, ...], generator: torch.Generator) -> Tables:
    if len(shape) < 2:  # a matrix
        return {}
    rows = torch.randn(17, shape[0], generator=generator, dtype=torch.float64)
    return {
        "mean": rows.mean(0),
        "variance": rows.var(0, correction=0),
        "tokens": torch.tensor(17),
        "axis": torch.tensor(1),
    }


OUTPUTS = {
    "outputs": Statistic(
        "`mean` and `variance` of each output channel of a matrix or batch norm over tokens, its bias included, float64 `(out,)`; `tokens` and "
        "`axis` as of `gram`",
        moments,
        lambda shape: 16 * max(shape, default=0),
        _sample,
    )
}
"""The statistic of outputs, by name."""
