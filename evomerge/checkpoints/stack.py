"""Stacked: the checkpoint of a model whose layers are other checkpoints' layers, renumbered.

Nothing is copied: a tensor is read from the checkpoint that it belongs to when it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from evomerge.checkpoints.folder import Checkpoint, TensorInfo
from evomerge.checkpoints.layout import block_number
from evomerge.errors import RecipeError


@dataclass(frozen=True, slots=True, eq=False)
class StackedLayer:
    """Layer number `index` of `source`, and what the residual stream is multiplied by before it.

    `key` identifies the source by content: layers with equal keys and indices have equal weights.
    """

    source: Checkpoint
    key: str
    index: int
    scale: float = 1.0


class Stacked:
    """A checkpoint whose block number i is `layers[i]`; all that is in no block comes from `rest`.

    Not to be confused with a merge: weights are the sources' own, and the scales are in no tensor.
    """

    def __init__(self, layers: Sequence[StackedLayer], rest: Checkpoint, rest_key: str, prefix: str) -> None:
        """Put the checkpoint together from names alone. Raises `RecipeError` for a layer that does not exist.

        `prefix` is how the names of tensors in blocks begin, before the block's number.
        """
        self.layers = tuple(layers)
        self.rest = rest
        self.rest_key = rest_key
        self.prefix = prefix
        names = {key: self._names(source) for key, source in self._sources().items()}
        self._origin = {name: (rest, name) for name in names[id(rest)].pop(None, ())}
        for number, layer in enumerate(layers):
            blocks = names[id(layer.source)]
            if layer.index not in blocks:
                count = sum(block is not None for block in blocks)
                msg = f"stack: slot {number} asks for layer {layer.index}, its source has {count} layers; type 0 to {count - 1}"
                raise RecipeError(msg)
            start = self.start(layer.index)
            for name in blocks[layer.index]:
                self._origin[f"{self.start(number)}{name.removeprefix(start)}"] = (layer.source, name)
        self.info: Mapping[str, TensorInfo] = {
            name: source.info[own] for name, (source, own) in sorted(self._origin.items())
        }

    def each(self, change: Callable[[Checkpoint], Checkpoint]) -> "Stacked":
        """Return this stack of the checkpoints that `change` makes of its own, once of each."""
        changed = {key: change(source) for key, source in self._sources().items()}
        layers = [replace(layer, source=changed[id(layer.source)]) for layer in self.layers]
        return Stacked(layers, changed[id(self.rest)], self.rest_key, self.prefix)

    def start(self, block: int) -> str:
        """Return how the names of a block's tensors begin."""
        return f"{self.prefix}.{block}." if self.prefix else f"{block}."

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the checkpoint that a tensor comes from, and its name there."""
        return self._origin[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, as it is in the checkpoint that it comes from."""
        source, own = self._origin[name]
        return source.tensor(own)

    def write(self, name: str, out: torch.Tensor) -> None:
        """Put the tensor into `out`."""
        source, own = self._origin[name]
        source.write(own, out)

    def forget(self) -> None:
        """Close the sources' files."""
        for source in self._sources().values():
            source.forget()

    def _sources(self) -> dict[int, Checkpoint]:
        """Return each checkpoint that the stack is made of once, under its identity."""
        return {id(source): source for source in (*(layer.source for layer in self.layers), self.rest)}

    def _names(self, source: Checkpoint) -> dict[int | None, list[str]]:
        """Return the names of a checkpoint's tensors by their block's number, None for those in no block."""
        found: dict[int | None, list[str]] = {}
        for name in source.info:
            found.setdefault(block_number(name, self.prefix), []).append(name)
        return found
