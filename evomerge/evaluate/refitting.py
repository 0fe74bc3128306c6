"""Refitting: what evomerge adds to the workers of an engine, where candidates are built from mapped files, tensor by tensor."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from evomerge.build import Builder
from evomerge.checkpoints.members import Members
from evomerge.evaluate.loaded import checked
from evomerge.evaluate.setup import Setup, open_pool
from evomerge.evaluate.worker import describe
from evomerge.recipe import Recipe


class Refitting:
    """Two methods that `vllm.LLM(worker_extension_cls=…)` adds to its workers. Its names begin with `evomerge_`, to meet no other's."""

    def evomerge_open(self, setup: str) -> None:
        """Open the pool of a `Setup` in JSON."""
        self.evomerge_source = Source(TypeAdapter(Setup).validate_json(setup))

    def evomerge_refit(self, candidate: str) -> str | None:
        """Replace the model's weights by those of a candidate, and return its error, if it has one: see `Source.refit`."""
        worker: Any = self
        error = self.evomerge_source.refit(candidate, worker.reload_weights)
        repack_tied(worker.get_model())
        return error


class Source:
    """The tensors of candidates, in the order of a model's layers, in which an engine needs the least memory to load them."""

    def __init__(self, setup: Setup) -> None:
        pool = open_pool(setup)
        self._members = Members(folder=None if setup.members is None else Path(setup.members))
        self._builder = Builder(pool, search=True, members=self._members)
        self._order = sorted(pool.base.info, key=lambda name: pool.layout.place(name).block)

    def refit(self, candidate: str, reload: Callable[..., object]) -> str | None:
        """Call `reload(weights_iterator=…)` with names and tensors of a candidate: JSON of its `recipe`, and by id those of `lineage`.

        Return its error, if a tensor cannot be merged or holds NaN: that one and the rest are then the base's, so that the engine is
        left whole.
        """
        data = json.loads(candidate)
        self._members.lineage |= {identity: Recipe.parse(parent) for identity, parent in data["lineage"].items()}
        recipe = Recipe.parse(data["recipe"])
        errors: list[str] = []

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            built = checked(self._members.find(recipe.id) or self._builder.build(recipe))
            for name in self._order:
                if not errors:
                    try:
                        tensor = built.tensor(name)
                    except Exception as error:  # noqa: BLE001  # a merge may raise anything
                        errors.append(describe(error))
                if errors:
                    tensor = self._builder.pool.base.tensor(name)
                yield name, tensor

        with torch.inference_mode():
            reload(weights_iterator=tensors())
        return errors[0] if errors else None


def repack_tied(model: torch.nn.Module) -> None:
    """Let each layer whose weight is that of an earlier layer make anew what its kernels read of it.

    vLLM does so only for layers that tensors were loaded into. On a CPU it packs a copy of the head's weight: a head that is tied to
    the embedding would go on with the weight that the engine started with.
    """
    seen: set[int] = set()
    for layer in model.modules():
        weight, method = getattr(layer, "weight", None), getattr(layer, "quant_method", None)
        if isinstance(weight, torch.Tensor) and weight.numel():  # a packed weight may have been emptied
            if method is not None and weight.data_ptr() in seen:
                method.process_weights_after_loading(layer)
            seen.add(weight.data_ptr())
