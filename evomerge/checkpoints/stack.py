"""Stacked: the checkpoint of a model whose layers are layers of other checkpoints, renumbered.

Nothing is copied: each tensor is read from its source when it is requested.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from evomerge.checkpoints.folder import Checkpoint, Computed, differences
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import block_number
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, Stack
from evomerge.recipe.recipe import prefix_digests

Affine: TypeAlias = Callable[[], Mapping[str, torch.Tensor]]
"""Returns an affine map of the residual stream, fitted at the first call: `weight` `(out, in)` and `bias` `(out,)`, float32."""


@dataclass(frozen=True, slots=True, eq=False)
class StackedLayer:
    """Layer number `index` of `source`, and what the residual stream is mapped by, and then multiplied by, before it.

    `key` identifies the source by content: layers with equal keys and indices have equal weights.
    """

    source: Checkpoint
    key: str
    index: int
    scale: float = 1.0
    stitch: Affine | None = None


class Stacked(Computed):
    """A checkpoint whose block number i is `layers[i]`; the tensors outside of blocks are those of `rest`.

    Not to be confused with a merge: weights are those of the sources, and no tensor contains the scales and the stitches.
    """

    def __init__(
        self,
        layers: Sequence[StackedLayer],
        rest: Checkpoint,
        rest_key: str,
        prefix: str,
        stitching: str = "",
        end: Affine | None = None,
    ) -> None:
        """Assemble the checkpoint from names alone. Raises `RecipeError` for a layer that does not exist.

        `prefix` is the part of the names of tensors in blocks before the block's number. `stitching` says, beside the layers, how they
        are joined, and `end` is the map after the last of them.
        """
        self.layers = tuple(layers)
        self.stitching, self.end = stitching, end
        self.rest = rest
        self.rest_key = rest_key
        self.prefix = prefix
        names = {key: self._names(source) for key, source in self._by_id().items()}
        self._origin = {name: (rest, name) for name in names[id(rest)].pop(None, ())}
        for number, layer in enumerate(layers):
            blocks = names[id(layer.source)]
            if layer.index not in blocks:
                count = sum(block is not None for block in blocks)
                msg = f"stack: slot {number} names layer {layer.index}, its source has {count} layers; type 0 to {count - 1}"
                raise RecipeError(msg)
            start = self.start(layer.index)
            for name in blocks[layer.index]:
                self._origin[f"{self.start(number)}{name.removeprefix(start)}"] = (layer.source, name)
        info = {name: source.info[key] for name, (source, key) in sorted(self._origin.items())}
        super().__init__(info, self._read, tuple(self._by_id().values()))

    def each(self, change: Callable[[Checkpoint], Checkpoint]) -> "Stacked":
        """Return this stack with each of its sources replaced by what `change` returns for it."""
        changed = {key: change(source) for key, source in self._by_id().items()}
        layers = [replace(layer, source=changed[id(layer.source)]) for layer in self.layers]
        return Stacked(layers, changed[id(self.rest)], self.rest_key, self.prefix, self.stitching, self.end)

    @property
    def stitches(self) -> dict[int, Affine]:
        """The maps of the residual stream by the layer before which they are; that after the last one has the number of layers."""
        maps = [*(layer.stitch for layer in self.layers), self.end]
        return {number: stitch for number, stitch in enumerate(maps) if stitch is not None}

    @property
    def prefix_digests(self) -> tuple[str, ...]:
        """A digest for each layer, equal for stacks that compute the same up to and including that layer."""
        layers = [(layer.key, layer.index, layer.scale) for layer in self.layers]
        return prefix_digests(self.rest_key, layers, self.stitching)

    def start(self, block: int) -> str:
        """Return the beginning of the names of a block's tensors."""
        return f"{self.prefix}.{block}." if self.prefix else f"{block}."

    def origin(self, name: str) -> tuple[Checkpoint, str]:
        """Return the source of a tensor, and the tensor's name there."""
        return self._origin[name]

    def _read(self, name: str) -> torch.Tensor:
        source, key = self._origin[name]
        return source.tensor(key)

    def _by_id(self) -> dict[int, Checkpoint]:
        return {id(source): source for source in (*(layer.source for layer in self.layers), self.rest)}

    def _names(self, source: Checkpoint) -> dict[int | None, list[str]]:  # by block, None for no block
        names: dict[int | None, list[str]] = {}
        for name in source.info:
            names.setdefault(block_number(name, self.prefix), []).append(name)
        return names


def assembled(stack: Stack, build: Callable[[Recipe], Checkpoint], pool: Pool) -> Stacked:
    """Return the checkpoint of a stack, whose sources are built by `build`; equal ones are one checkpoint. It is not stitched yet.

    Raises `RecipeError`.
    """
    if pool.heads:
        raise RecipeError("a stack needs models without heads of their own; here heads stay outside: merge instead")
    prefix = pool.layout.prefix
    if prefix is None:
        raise RecipeError(
            f"a stack needs a model with a stack of blocks, whose tensors are named like `layers.0.…`; "
            f"{pool.base.path} has {', '.join(f'`{name}`' for name in list(pool.base.info)[:3])}, …"
        )
    sources: dict[str, Checkpoint] = {}

    def source(recipe: Recipe) -> Checkpoint:
        if recipe.id not in sources:
            sources[recipe.id] = build(recipe)
        return sources[recipe.id]

    layers = []
    for slot in stack.slots:
        built = source(slot.source)
        # A stack of layers of a stack is one stack.
        if isinstance(built, Stacked) and slot.layer < len(built.layers):
            inner = built.layers[slot.layer]
            layers.append(replace(inner, scale=inner.scale * slot.scale))
        else:
            layers.append(StackedLayer(built, slot.source.id, slot.layer, slot.scale))
    rest = source(stack.rest)
    if isinstance(rest, Stacked):
        return Stacked(layers, rest.rest, rest.rest_key, prefix)
    return Stacked(layers, rest, stack.rest.id, prefix)


def origin(checkpoint: Checkpoint, name: str) -> tuple[Checkpoint, str]:
    """Return the checkpoint that holds a tensor of a stack, and its name there; of another checkpoint, itself."""
    while isinstance(checkpoint, Stacked):
        checkpoint, name = checkpoint.origin(name)
    return checkpoint, name


def check_mergeable(label: str, stack: Stacked, base: Mapping[str, TensorInfo]) -> None:
    """Raise `RecipeError` unless a stack has the tensors of the base, and no scales, which are in no tensor."""
    different = differences(base, stack.info)
    scaled = [layer.scale for layer in stack.layers if layer.scale != 1]
    if different or scaled:
        blocks = len({block_number(name, stack.prefix) for name in base} - {None})
        what = f"has {len(stack.layers)} layers" + (f" and a scale of {scaled[0]:g}" if scaled else "")
        raise RecipeError(
            f"merge: the input {label} is a stack that {what}; only stacks of the base's {blocks} layers "
            "without scales can be merged: stack a merge instead"
        )
