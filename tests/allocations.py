"""Bytes of tensors in memory, counted operation by operation."""

import weakref
from typing import Any

import torch
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Counts the bytes of storages that operations inside the block make, until they are freed. Those from before are left out.

    Backward passes count, for they run in this thread on the CPU. Memory that no operation of torch makes, as numpy's, does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._note(storage, 0)
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, nbytes)

    def _free(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of activations: what graphs made inside the block save for their backward passes, each storage once.

    Weights, which are there without a graph, do not count: `held` are their tensors.
    """

    def __init__(self, held: list[torch.Tensor]) -> None:
        self._sizes: dict[int, int] = {}
        weights = {tensor.untyped_storage()._cdata for tensor in held}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                self._sizes[storage._cdata] = storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in trees.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
