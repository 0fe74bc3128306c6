"""What a class of transformers makes of the names in a folder: which tensor fills what, what is ignored, what is tied."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from evomerge.checkpoints.folder import Folder
from evomerge.errors import ModelError
from evomerge.models.loaders import Pretrained
from evomerge.models.pretrained import from_pretrained, library
from evomerge.models.tensor_mapping import TensorMapping, find_mappings

_Box = TensorMapping | None
"""A mapping without names, None where a complete tensor fills another as it is."""


class ClassReading:
    """Reads one folder as its class does. Its attributes are those of the protocol `checkpoints.naming.Reading`."""

    def __init__(self, folder: Folder, auto: str | None = None) -> None:
        """Load probes in the place of the folder's tensors. Raises `ModelError` where the class does more than move them."""
        self._loader = Pretrained(folder, auto)
        module = self._loader.create_empty()
        held = module.state_dict(keep_vars=True)
        self._names = {name: tuple(tensor.shape) for name, tensor in held.items()}
        self.prefix = "" if module.base_model is module else module.base_model_prefix
        self._prefix = module.base_model_prefix
        self.encoder_decoder = bool(getattr(module.config, "is_encoder_decoder", False))
        self.transposed, self.linear, self.embeddings = (
            frozenset(f"{name}.weight" for name, part in module.named_modules() if isinstance(part, kind))
            for kind in (library().pytorch_utils.Conv1D, torch.nn.Linear, torch.nn.Embedding)
        )
        shared: dict[int, set[str]] = {}
        for name, tensor in held.items():
            shared.setdefault(id(tensor), set()).add(name)
        self.ties: Mapping[str, frozenset[str]] = {
            name: frozenset(names) for names in shared.values() if len(names) > 1 for name in names
        }
        shapes = {name: e.info.shape for name, e in folder.stored.items() if e.info.dtype.is_floating_point}
        self.fills: dict[str, list[tuple[str, _Box]]] = {name: [] for name in folder.stored}
        for mapping in find_mappings(shapes, self._loader.load):
            shape = shapes[mapping.source]
            whole = mapping.is_identity(shape, self._names.get(mapping.target, ()))
            box = None if whole else TensorMapping("", mapping.taken, mapping.order, "", mapping.filled)
            self.fills[mapping.source].append((mapping.target, box))
        for name in folder.stored.keys() - shapes.keys():
            self.fills[name] += [(target, None) for target in self._spellings(name) if target in self._names]
        filled = {target for places in self.fills.values() for target, _ in places}
        self.missing = tuple(
            name
            for name, _ in module.named_parameters(remove_duplicate=False)
            if filled.isdisjoint(self.ties.get(name, {name}))
        )

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The module's tensors that grow with the number of tokens, by name: the axis that does."""
        larger = self._loader.create_empty(more_tokens=1).state_dict(keep_vars=True)
        shapes = [(name, shape, tuple(larger[name].shape)) for name, shape in self._names.items()]
        return {
            name: next(axis for axis, (few, more) in enumerate(zip(shape, grown, strict=True)) if few != more)
            for name, shape, grown in shapes
            if shape != grown
        }

    def land(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the module's names of `names` from another file, as the class translates them; unknown ones are left out."""
        landed = {}
        for name in names:
            known = [target for target in (*self._spellings(name), *self._translated(name)) if target in self._names]
            if known:
                landed[name] = known[0]
        return landed

    def _spellings(self, name: str) -> tuple[str, ...]:
        return name, f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}.")

    def _translated(self, name: str) -> tuple[str, ...]:
        return self._spellings(self._loader.translate(name))


def read(folder: Folder, auto: str | None = None) -> ClassReading | None:
    """Return what transformers makes of `folder`, None for an architecture that it does not load by moving tensors."""
    try:
        return ClassReading(folder, auto)
    except (ModelError, OSError):
        return None


def shapes(folder: Folder, auto: str | None = None) -> tuple[str, Mapping[str, tuple[int, ...]]] | None:
    """Return the name of the class of `folder`, and the shapes of its module's tensors; None for an unknown class."""
    try:
        module = Pretrained(folder, auto).create_empty()
    except (ModelError, OSError):
        return None
    return type(module).__name__, {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def settings(folder: Folder) -> dict[str, Any] | None:
    """Return the configuration with the defaults of its class, by transformers' present names, None for an unknown one."""
    try:
        config = from_pretrained(library().AutoConfig, folder.path, "no configuration of transformers")
    except ModelError:
        return None
    data: dict[str, Any] = config.to_dict()
    return data
