"""Heads: modules with the heads of several models on one backbone, whose weights they share."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.checkpoints.heads import Head
from evomerge.errors import ModelError
from evomerge.models.loaders import Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Heads:
    """The heads of a pool's experts, to be put on the backbone of `module`, which has the base's own head or none."""

    def __init__(
        self,
        module: "PreTrainedModel",
        shared: Collection[str],
        heads: Mapping[str, Head],
        auto: str | None,
        dtype: torch.dtype,
    ) -> None:
        """Load the heads. `shared` are the tensors in the state of `module` that all models of the pool share.

        `auto` names the class that chooses a head's class, None takes the one in its `config.json`. Raises `ModelError` for a
        head that does not fit on the backbone.
        """
        self._base = module
        self._backbone: Any = module.base_model
        prefix = "" if self._backbone is module else f"{module.base_model_prefix}."
        self._shared = {name.removeprefix(prefix) for name in shared}
        self._modules: dict[str, PreTrainedModel] = {}
        self._parts: dict[str, dict[str, nn.Module]] = {}
        self._original: dict[str, nn.Module | None] = {}
        for name, head in heads.items():
            if name != "base" and head.own:
                self._add(name, head, auto, dtype)

    @property
    def modules(self) -> Mapping[str, "PreTrainedModel"]:
        """The module of each head, by expert."""
        return self._modules

    def put_on(self, name: str | None) -> "PreTrainedModel":
        """Return the module with the head of the expert `name`, None for the base's own."""
        for part, original in {**self._original, **self._parts.get(name or "", {})}.items():
            setattr(self._backbone, part, original)
        return self._base if name is None else self._modules[name]

    def _add(self, name: str, head: Head, auto: str | None, dtype: torch.dtype) -> None:
        folder, complete = head.model, head.complete
        loaded = Pretrained(folder, auto).load_base({key: complete.tensor(key) for key in complete.info}, dtype)
        _settle(loaded.config, head.settings or {})
        loaded = loaded.to(self._backbone.device).requires_grad_(requires_grad=False)
        own: Any = loaded.base_model
        if own is loaded or type(own) is not type(self._backbone):
            wanted = f"a {type(self._backbone).__name__} with a head on it"
            raise ModelError(f"expert `{name}` ({folder.path}) is a {type(loaded).__name__}; expected {wanted}")
        # Parts of the backbone without a shared tensor, such as a pooler that only some of the models have.
        common = {target.partition(".")[0] for target in self._shared}
        parts = {place: part for place, part in own.named_children() if place not in common}
        held = self._backbone.state_dict()
        for target, tensor in own.state_dict().items():
            replaced = target in self._shared or target.partition(".")[0] in parts
            if not (replaced or (target in held and torch.equal(held[target], tensor))):
                msg = f"expert `{name}` ({folder.path}): `{target}` in its backbone is neither merged nor in its head"
                raise ModelError(msg)
        for place in parts:
            self._original.setdefault(place, getattr(self._backbone, place, None))
        setattr(loaded, loaded.base_model_prefix, self._backbone)
        loaded.tie_weights()
        kept = [part for part in loaded.children() if part is not self._backbone] + [*parts.values()]
        backbone = {id(tensor) for tensor in self._backbone.parameters()}
        for tensor in (tensor for part in kept for tensor in (*part.parameters(), *part.buffers())):
            if id(tensor) not in backbone:  # a tied one is not the head's own
                tensor.data = tensor.data.clone()  # it may be a view of the file
        self._modules[name], self._parts[name] = loaded, parts


def _settle(config: Any, settings: Mapping[str, Any]) -> None:
    """Give a configuration the numbers in `settings`, such as those of tokens, also in the configurations nested in it."""
    for key, value in settings.items():
        held = getattr(config, key, None)
        if isinstance(value, dict) and hasattr(held, "to_dict"):
            _settle(held, value)
        elif type(held) is int and type(value) is int:
            setattr(config, key, value)
