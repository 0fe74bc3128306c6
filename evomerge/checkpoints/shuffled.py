"""Shuffled: an expert whose task vector is permuted within each tensor, a sham for controls of a search.

Shuffled experts have the norms and the values of the real ones, tensor by tensor, and nothing of what these have learned.
Adaptive merging gains nearly as much from such experts as from recycled ones (https://arxiv.org/abs/2602.12323): what a search
gives beyond them is what the experts know.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.header import TensorInfo

if TYPE_CHECKING:
    from evomerge.checkpoints.adapter import Adapter
    from evomerge.checkpoints.aligned import Aligned
    from evomerge.checkpoints.folder import Folder


class Shuffled(Checkpoint):
    """The checkpoint base + P(expert - base), P a permutation of a tensor's elements, computed at each read.

    The permutation is drawn from the seed, the expert's label and the tensor's name. Its tensors are in fp32 (fp64 where a
    model is), so that nothing is rounded before it is merged. A read takes about four copies of one tensor.
    """

    def __init__(
        self,
        label: str,
        model: "Folder | Adapter | Aligned | Shuffled",
        base: "Folder | Aligned",
        seed: int,
        keys: Mapping[str, str],
    ) -> None:
        """Permute those tensors of `model`, called `label`, that are in `keys`: each by the name under which it is drawn.

        Tied tensors have one name there. All others are the model's own. No weights are read.
        """
        self.model, self._base = model, base
        self._label, self._seed, self._keys = label, seed, keys
        self.info: Mapping[str, TensorInfo] = {name: self._described(name, entry) for name, entry in model.info.items()}

    @property
    def path(self) -> Path:
        """The folder of the real expert."""
        return self.model.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with the real expert's weights."""
        return self.model.files

    @property
    def config(self) -> dict[str, Any]:
        """The content of the real expert's `config.json`."""
        return self.model.config

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, computed where it is permuted."""
        if not self.makes(name):
            return self.model.tensor(name)
        wide, origin = self.info[name].dtype, self._base.tensor(name)
        change = self.model.tensor(name).to(wide).sub(origin.to(wide)).flatten()
        digest = hashlib.sha256(f"{self._seed}\0{self._label}\0{self._keys[name]}".encode()).digest()
        drawn = torch.Generator().manual_seed(int.from_bytes(digest[:4]))
        index = torch.int32 if len(change) < 1 << 31 else torch.int64
        order = torch.randperm(len(change), generator=drawn, dtype=index, device="cpu")
        return change.index_select(0, order).view(origin.shape).add_(origin)

    def makes(self, name: str) -> bool:
        """Return whether the tensor is computed, which costs more than reading it."""
        return name in self._keys

    def forget(self) -> None:
        """Close the files of the expert and of the base."""
        self.model.forget()
        self._base.forget()

    def _described(self, name: str, entry: TensorInfo) -> TensorInfo:
        if not self.makes(name):
            return entry
        dtype = torch.promote_types(entry.dtype, self._base.info[name].dtype)
        return TensorInfo(entry.shape, torch.promote_types(dtype, torch.float32))
