"""Permuted: a checkpoint with its units in another order."""

from collections.abc import Callable

import torch

from evomerge.alignment.symmetries import Permutations, Symmetry
from evomerge.checkpoints.folder import Checkpoint
from evomerge.merging.prepared import Key
from evomerge.models.tensor_mapping import TensorMapping


class Permuted(Checkpoint):
    """The checkpoint of the same function as `source`, whose units are in the order of `permutations`, tensor by tensor.

    No number changes, only its place: the outputs are the same up to rounding.
    """

    def __init__(
        self, source: Checkpoint, symmetry: Symmetry, permutations: Callable[[], Permutations], key: Key = ()
    ) -> None:
        """Take what finds the permutations, which is called when the first tensor is read.

        `key` is all that the tensors depend on, by content, for what is kept of them; empty where nothing is kept.
        """
        self.key = key
        self.source, self.info = source, source.info
        self.symmetry, self.permutations = symmetry, permutations
        self._places: dict[str, list[TensorMapping]] = {}
        for target, mappings in symmetry.mappings.items():
            if symmetry.tied.get(target, target) in symmetry.pieces:
                for mapping in mappings:
                    self._places.setdefault(mapping.source, []).append(mapping)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, computed at each call where units are in it."""
        return self.read(name, self.source.tensor)

    def read(self, name: str, tensor: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return a tensor, with those of the source as `tensor` returns them."""
        if name not in self._places:
            return tensor(name)
        result = tensor(name).clone()
        for mapping in self._places[name]:
            whole = self.symmetry.assembled(mapping.target, tensor)
            permuted = self.symmetry.permute(mapping.target, whole, self.permutations())[mapping.filled]
            box = result[mapping.taken].permute(mapping.order)
            box.copy_(permuted.reshape(box.shape))
        return result

    def forget(self) -> None:
        """Close the files of the source."""
        self.source.forget()
