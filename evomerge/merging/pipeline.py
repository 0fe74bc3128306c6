"""Pipeline: one merge, run one tensor at a time and one cache-sized block of it at a time.

fp32 arithmetic whatever the storage, one cast at the end, and no temporary of a tensor's full size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at, column
from evomerge.merging.stages import STAGES, Block, Stage
from evomerge.recipe import Merge, MergeNode, Place, Recipe, canonical_json

BLOCK = 1 << 16
"""Elements of one block. Part of every keyed mask, so a constant of the format, not a setting."""


class Inputs(Protocol):
    """What a merge reads: the base and the inputs, tensor by tensor."""

    names: Iterable[str]
    """The floating-point tensors to merge, in the order of the base."""
    ids: Sequence[str]
    """The inputs' recipe ids `(K,)`: what has been prepared for them may be used again."""

    def place(self, name: str) -> Place:
        """Where the tensor is in the model."""

    def load(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's tensor and the inputs' `(K,)`, in the dtype they are stored in."""


class Pipeline:
    """One merge over given inputs. Not to be confused with its `Merge`, the words that describe it."""

    def __init__(self, merge: Merge, inputs: Inputs, prepared: dict[str, Any]) -> None:
        """Read `merge`. `prepared` is kept by the caller and shared by all merges of a pool. Raises `RecipeError`."""
        spelled = spell_out(merge)
        self._origin: str = spelled["origin"]
        self._reduce = spelled["reduce"]
        self._steps: list[tuple[str, Stage, Mapping[str, Any]]] = [
            (name, STAGES[name], parameters) for name, parameters in spelled["steps"]
        ]
        self._labels = merge.labels
        self._seed = merge.seed
        self._inputs = inputs
        self._prepared = prepared
        self._measured: dict[str, Any] = {}

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor `name` into `out`, which has its shape and any floating-point dtype."""
        place = self._inputs.place(name)
        numbers = [self._numbers(stage, parameters, place) for _, stage, parameters in self._steps]
        measured = [self._measure(i, name, numbers[i]) for i in range(len(self._steps))]
        reduce = at(self._reduce, place)
        base, tensors = self._flat(name)
        flat = out.view(-1)
        for start, block, origin in self._blocks(name, base, tensors):
            stack = block.stack
            field = torch.ones(1, 1)
            for i, (_, stage, _) in enumerate(self._steps):
                if stage.role == "edit":
                    stack = block.stack = stage.apply(block, stack, numbers[i], measured[i])
                elif stage.role == "weigh":
                    field = field * stage.apply(block, stack, numbers[i], measured[i])
            delta = _reduce(stack, field, reduce)
            for i, (_, stage, _) in enumerate(self._steps):
                if stage.role == "post":
                    delta = stage.apply(block, delta, numbers[i], measured[i])
            # origin - (0 - Δ), not origin + Δ: where Δ is zero of either sign, the origin's own zero keeps its sign.
            flat[start : start + delta.numel()].copy_(origin - (0.0 - delta))

    def _flat(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        base, tensors = self._inputs.load(name)
        return base.reshape(-1), [tensor.reshape(-1) for tensor in tensors]

    def _blocks(
        self, name: str, base: torch.Tensor, tensors: list[torch.Tensor]
    ) -> Iterator[tuple[int, Block, torch.Tensor]]:
        for index, start in enumerate(range(0, base.numel(), BLOCK)):
            stop = min(start + BLOCK, base.numel())
            stack = torch.empty(len(tensors), stop - start)
            for row, tensor in zip(stack, tensors, strict=True):
                row.copy_(tensor[start:stop])
            if self._origin == "zero":
                origin = torch.zeros(stop - start)
            elif self._origin == "mean":
                origin = stack.mean(dim=0)
            else:
                origin = base[start:stop].float()
            if self._origin != "zero":
                stack -= origin
            yield start, Block(stack, name, index, self._labels, self._seed), origin

    def _numbers(self, stage: Stage, parameters: Mapping[str, Any], place: Place) -> dict[str, Any]:
        return {
            key: column(value, place, self._labels)
            if stage.parameters[key].per_input and not stage.parameters[key].choices
            else at(value, place)
            for key, value in parameters.items()
        }

    def _measure(self, step: int, name: str, numbers: Mapping[str, Any]) -> Any:
        """Return what a stage measures over its scope, after the edits before it."""
        stage_name, stage, _ = self._steps[step]
        scope = stage.scope(numbers)
        if scope == "block":
            return None
        names = [name] if scope == "tensor" else list(self._inputs.names)
        edits = [i for i in range(step) if self._steps[i][1].role == "edit"]

        def blocks() -> Iterator[Block]:
            for tensor in names:
                place = self._inputs.place(tensor)
                before = [self._numbers(self._steps[i][1], self._steps[i][2], place) for i in edits]
                known = [self._measure(i, tensor, before[j]) for j, i in enumerate(edits)]
                for _, block, _ in self._blocks(tensor, *self._flat(tensor)):
                    for j, i in enumerate(edits):
                        block.stack = self._steps[i][1].apply(block, block.stack, before[j], known[j])
                    yield block

        key = canonical_json([stage_name, scope, names if scope == "tensor" else [], self._origin, list(self._inputs.ids)])
        # Only what no gene changes is kept for the whole search; after other edits it lasts as long as this merge.
        store = self._measured if edits else self._prepared
        if key not in store:
            store[key] = stage.prepare(blocks)
        return stage.measure(store[key], blocks, numbers)


def _reduce(stack: torch.Tensor, field: torch.Tensor, how: str) -> torch.Tensor:
    """Σ P∘D, its quotient by Σ P, or the largest |P∘D|; stack `(K, n)`, field `(K or 1, n or 1)` → `(n,)`."""
    weighted = stack * field
    if how == "max":
        return weighted.gather(0, weighted.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    total = weighted.sum(dim=0)
    if how == "sum":
        return total
    weights = field.expand(stack.shape[0], field.shape[1]).sum(dim=0)
    return torch.where(weights == 0, 0.0, total / weights)


def check(recipe: Recipe) -> None:
    """Raise `RecipeError` unless every merge in `recipe` names known stages and valid parameters."""
    if isinstance(recipe.root, MergeNode):
        spell_out(recipe.root.merge)
        for inner in recipe.root.merge.inputs:
            check(inner)
