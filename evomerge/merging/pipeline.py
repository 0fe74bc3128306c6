"""Pipeline: one merge, run one tensor at a time and one cache-sized block of it at a time.

fp32 arithmetic whatever the storage, one cast at the end, and no temporary of a tensor's full size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import Parameter, at, column
from evomerge.merging.stages import STAGES, Block
from evomerge.recipe import Merge, MergeNode, Place, Recipe, canonical_json

BLOCK = 1 << 16
"""Elements of one block. Part of every keyed mask, so a constant of the format, not a setting."""


class Inputs(Protocol):
    """What a merge reads: the base and the inputs, tensor by tensor."""

    @property
    def names(self) -> Iterable[str]:
        """The floating-point tensors to merge, in the order of the base."""

    @property
    def ids(self) -> Sequence[str]:
        """The inputs' recipe ids `(K,)`: what has been prepared for them may be used again."""

    def place(self, name: str) -> Place:
        """Where the tensor is in the model."""

    def load(self, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The base's tensor and the inputs' `(K,)`, in the dtype they are stored in."""


class Pipeline:
    """One merge over given inputs. Not to be confused with its `Merge`, the words that describe it."""

    def __init__(self, merge: Merge, inputs: Inputs, prepared: dict[str, Any]) -> None:
        """Read `merge`, and check that its tables fit the inputs' model; no tensor is read.

        `prepared` is kept by the caller and shared by all merges of a pool. Raises `RecipeError`.
        """
        spelled = spell_out(merge)
        self._origin: str = spelled["origin"]
        self._steps = [(name, STAGES[name]) for name, _ in spelled["steps"]]
        self._labels = merge.labels
        self._seed = merge.seed
        self._inputs = inputs
        places = {inputs.place(name) for name in inputs.names}
        self._numbers = {place: _numbers(spelled, place, merge.labels) for place in places}
        self._reduce = {place: at(spelled["reduce"], place) for place in places}
        # What is prepared for the pool's own models serves the whole search; a nested merge's lasts as long as this one.
        self._shared = prepared if not any(isinstance(entry.root, MergeNode) for entry in merge.inputs) else {}
        self._own: dict[str, Any] = {}
        self._measured: dict[tuple[Any, ...], Any] = {}

    def write(self, name: str, out: torch.Tensor) -> None:
        """Merge the tensor `name` into `out`, which has its shape and any floating-point dtype."""
        place = self._inputs.place(name)
        numbers = self._numbers[place]
        flat = out.view(-1)
        base, tensors = self._flat(name)
        if self._unchanged(name, base, tensors):
            flat.copy_(base)
            return
        measured = [self._measure(i, name) for i in range(len(self._steps))] if base.numel() else []
        for start, block, origin in self._blocks(name, base, tensors):
            field = torch.ones(1, 1)
            for i, (_, stage) in enumerate(self._steps):
                if stage.role == "edit":
                    block.stack = stage.apply(block, block.stack, numbers[i], measured[i])
                elif stage.role == "weigh":
                    field = field * stage.apply(block, block.stack, numbers[i], measured[i])
            delta = _reduce(block.stack, field, self._reduce[place])
            for i, (_, stage) in enumerate(self._steps):
                if stage.role == "post":
                    delta = stage.apply(block, delta, numbers[i], measured[i])
            # origin - (0 - Δ), not origin + Δ: where Δ is zero of either sign, the origin's own zero keeps its sign.
            flat[start : start + delta.numel()].copy_(origin - (0.0 - delta))

    def _unchanged(self, name: str, base: torch.Tensor, tensors: list[torch.Tensor]) -> bool:
        """Return whether every task vector of the tensor is zero, as of frozen embeddings: so is their merge then."""
        if self._origin != "base":
            return False
        key = canonical_json(["unchanged", name, list(self._inputs.ids)])
        if key not in self._shared:
            self._shared[key] = all(tensor.dtype == base.dtype and torch.equal(tensor, base) for tensor in tensors)
        return bool(self._shared[key])

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

    def _measure(self, step: int, name: str) -> Any:
        """Return what a stage measures over its scope, after the edits before it."""
        stage_name, stage = self._steps[step]
        numbers = self._numbers[self._inputs.place(name)][step]
        scope = stage.scope(numbers)
        if scope == "block":
            return None
        whole = scope == "model"
        asked = (step, _frozen(numbers)) if whole else (step, name)
        if asked in self._measured:
            return self._measured[asked]
        edits = [i for i in range(step) if self._steps[i][1].role == "edit"]

        def blocks() -> Iterator[Block]:
            for tensor in self._inputs.names if whole else [name]:
                before = self._numbers[self._inputs.place(tensor)]
                known = {i: self._measure(i, tensor) for i in edits}
                for _, block, _ in self._blocks(tensor, *self._flat(tensor)):
                    for i in edits:
                        block.stack = self._steps[i][1].apply(block, block.stack, before[i], known[i])
                    yield block

        store = self._own if edits else self._shared
        where = "" if whole else name
        key = canonical_json([stage_name, step if edits else 0, where, self._origin, list(self._inputs.ids)])
        if key not in store:
            store[key] = stage.prepare(blocks)
        found = self._measured[asked] = stage.measure(store[key], blocks, numbers)
        return found


def _numbers(spelled: Mapping[str, Any], place: Place, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return each step's parameters for a tensor at `place`. Raises `RecipeError` where a table has no such entry."""
    return [
        {
            key: column(value, place, labels) if _varies(STAGES[name].parameters[key]) else at(value, place)
            for key, value in parameters.items()
        }
        for name, parameters in spelled["steps"]
    ]


def _varies(parameter: Parameter) -> bool:
    return parameter.per_input and not parameter.choices


def _frozen(numbers: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(v.flatten().tolist()) if isinstance(v, torch.Tensor) else v for v in numbers.values())


def _reduce(stack: torch.Tensor, field: torch.Tensor, how: str) -> torch.Tensor:
    """Σ P∘D, its quotient by Σ P, or the largest |P∘D|; stack `(K, n)`, field `(K or 1, n or 1)` → `(n,)`."""
    weighted = stack * field
    if how == "max":
        return weighted.gather(0, weighted.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    total = weighted.sum(dim=0)
    if how == "sum":
        return total
    weights = field.expand(stack.shape[0], field.shape[1]).sum(dim=0)
    return total / torch.where(weights == 0, torch.inf, weights)


def check(recipe: Recipe, places: Sequence[Place] = ()) -> None:
    """Raise `RecipeError` unless every merge in `recipe` names known stages and valid parameters.

    With `places`, those of a model's tensors, its tables must also have an entry for each of them.
    """
    if isinstance(recipe.root, MergeNode):
        merge = recipe.root.merge
        spelled = spell_out(merge)
        for place in places:
            _numbers(spelled, place, merge.labels)
            at(spelled["reduce"], place)
        for inner in merge.inputs:
            check(inner, places)
