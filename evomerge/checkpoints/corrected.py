"""Corrected: a checkpoint whose layers' outputs are scaled and shifted, channel by channel."""

from collections.abc import Callable, Mapping

import torch

from evomerge.checkpoints.folder import Checkpoint


class Corrected(Checkpoint):
    """The checkpoint of `source` with each layer's outputs z replaced by `scale ∘ z + shift`, folded into its weight and bias.

    `tables` returns those two, floating `(out,)`, and `axis`, int64 `()`, by the name of a layer's weight; {} for a layer that stays as
    it is. The outputs are along the other axis of the weight: the first if `axis` is 1. Its bias has the weight's name with `bias` in
    place of `weight`.
    """

    def __init__(
        self,
        source: Checkpoint,
        tables: Callable[[str], Mapping[str, torch.Tensor]],
        load: Callable[[Checkpoint, str], torch.Tensor],
    ) -> None:
        """Take `load`, which returns a tensor of a checkpoint before its cast."""
        self.source, self.info = source, source.info
        self._tables, self._load = tables, load

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its storage dtype, computed at each call."""
        return self.read(name).to(self.info[name].dtype) if self._of(name) else self.source.tensor(name)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor before the last cast; of a layer that is corrected in float32."""
        tensor, tables = self._load(self.source, name), self._of(name)
        if not tables:
            return tensor
        wide, scale = tensor.float(), tables["scale"].float()
        if name.endswith("weight"):
            return wide * (scale.view(-1, *[1] * (wide.ndim - 1)) if int(tables["axis"]) else scale)
        return wide * scale + tables["shift"].float()

    def forget(self) -> None:
        """Close the files of the source."""
        self.source.forget()

    def _of(self, name: str) -> Mapping[str, torch.Tensor]:
        """Return the tables of the layer that a tensor is the weight or the bias of."""
        if not name.endswith(("weight", "bias")):
            return {}
        return self._tables(name if name.endswith("weight") else f"{name.removesuffix('bias')}weight")
