"""Assembly: the layers of a live model, exchanged for those of each stack; weights stay in memory between stacks.

A layer of one of the pool's models is loaded once; after that, a stack of such layers copies nothing.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.folder import Checkpoint, Folder
from evomerge.checkpoints.layout import block_number
from evomerge.checkpoints.stack import Stacked, StackedLayer
from evomerge.models.blocks import find_blocks
from evomerge.models.prefixes import Prefixes
from evomerge.models.stitches import linear, mapped
from evomerge.models.tensor_mapping import TensorMapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OWN_NUMBER = ("layer_idx", "layer_id")
"""The attributes in which modules of transformers have their layer's number."""

_Part = tuple[str, int | None]
"""A source by content, and the number of one of its layers, or None for the tensors in no layer."""


class Assembly:
    """Exchanges the layers and the other weights of a module for those of a stack, and restores them."""

    def __init__(self, module: "PreTrainedModel", mappings: Sequence[TensorMapping], prefixes: Prefixes) -> None:
        """Prepare `module`, whose tensors are filled by `mappings`. Raises `ModelError` where it has no stack of layers.

        `prefixes` keeps hidden states for later stacks that begin with the same layers.
        """
        blocks = find_blocks(module)
        self._module = module
        self._list = next(name for name, part in module.named_modules() if part is blocks)
        self._base_layers = blocks
        self._like = next(part for part in blocks.parameters() if part.is_floating_point())
        self._config = per_layer(module.config.to_dict(), len(blocks))
        self._chosen = numbers_of_layers(module.config.to_dict(), len(blocks))
        held = module.state_dict(keep_vars=True)
        self._mappings: dict[int | None, dict[str, list[TensorMapping]]] = {}
        for mapping in mappings:
            layer = block_number(mapping.target, self._list)
            self._mappings.setdefault(layer, {}).setdefault(mapping.target, []).append(mapping)
        self._outside = {target: held[target] for target in self._mappings.get(None, {})}
        self._rest = {target: place.data for target, place in self._outside.items()}
        self._weights: dict[_Part, Mapping[str, Tensor]] = {}
        self._layers: dict[_Part, list[_Layer]] = {}
        self._lasting: set[str] = set()  # sources that stay in memory
        self._prefixes = prefixes
        self._hook = module.register_forward_pre_hook(self._enter, with_kwargs=True)

    @torch.no_grad()
    def show(self, stack: Stacked) -> None:
        """Turn the module into that of `stack`: each layer has its own number, and with it its own cache slot."""
        self._forget(stack)
        used: dict[_Part, int] = {}
        layers = []
        for number, layer in enumerate(stack.layers):
            part = (layer.key, layer.index)
            copies = self._layers.setdefault(part, [])
            index = used[part] = used.get(part, -1) + 1
            if index == len(copies):
                copies.append(_Layer(self._copy(layer), self._prefixes))
            end = stack.end if number == len(stack.layers) - 1 else None
            maps = [None if affine is None else linear(affine(), self._like) for affine in (layer.stitch, end)]
            copies[index].place(number, layer.scale, *maps)
            layers.append(copies[index].block)
        for target, tensor in self._load(stack.rest, stack.rest_key, None).items():
            self._outside[target].data = tensor
        self._arrange(nn.ModuleList(layers), [layer.index for layer in stack.layers])
        self._prefixes.begin(stack.prefix_digests)

    def restore(self) -> None:
        """Restore the module's original layers and weights."""
        for target, tensor in self._rest.items():
            self._outside[target].data = tensor
        self._arrange(self._base_layers, range(len(self._base_layers)))
        self._prefixes.end()

    def remove(self) -> None:
        """Detach from the module, whose layers were restored."""
        self._hook.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        generates = self._module.can_generate() and kwargs.get("use_cache") is not False
        self._prefixes.enter(args, kwargs, caches=generates or kwargs.get("past_key_values") is not None)

    def _forget(self, stack: Stacked) -> None:
        sources = {stack.rest_key: stack.rest, **{layer.key: layer.source for layer in stack.layers}}
        self._lasting |= {key for key, source in sources.items() if isinstance(source, Folder | Adapter | Aligned)}
        used = {(stack.rest_key, None), *((layer.key, layer.index) for layer in stack.layers)}
        held: dict[_Part, Any]
        for held in (self._weights, self._layers):
            for part in [part for part in held if part not in used and part[0] not in self._lasting]:
                del held[part]

    def _copy(self, layer: StackedLayer) -> nn.Module:
        """Return a new module with the weights of `layer`, which it shares with other copies of that layer."""
        original = self._base_layers[layer.index]
        shared = [*original.parameters(), *original.buffers(), self._module.config]
        block = copy.deepcopy(original, {id(thing): thing for thing in shared})
        start = f"{self._list}.{layer.index}."
        for target, tensor in self._load(layer.source, layer.key, layer.index).items():
            path, _, name = target.removeprefix(start).rpartition(".")
            holder = block.get_submodule(path)
            if name in holder._parameters:  # noqa: SLF001  # torch has no other way to exchange a parameter
                holder.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                holder.register_buffer(name, tensor)
        return block

    def _load(self, source: Checkpoint, key: str, layer: int | None) -> Mapping[str, Tensor]:
        """Return a source's weights by their names in the module, loaded once."""
        if (key, layer) not in self._weights:
            held = self._module.state_dict(keep_vars=True) if layer is None else self._base_layers[layer].state_dict()
            start = "" if layer is None else f"{self._list}.{layer}."
            self._weights[key, layer] = {
                target: _filled(source, mappings, held[target.removeprefix(start)])
                for target, mappings in self._mappings.get(layer, {}).items()
            }
        return self._weights[key, layer]

    def _arrange(self, layers: nn.ModuleList, indices: Sequence[int]) -> None:
        """Put `layers` into the module; `indices` are the base layers whose settings in the configuration they take."""
        parent, _, name = self._list.rpartition(".")
        setattr(self._module.get_submodule(parent), name, layers)
        self._module.config.num_hidden_layers = len(layers)
        for key, values in self._config.items():
            setattr(self._module.config, key, [values[index] for index in indices])
        for key, chosen in self._chosen.items():
            if key not in self._config:
                setattr(self._module.config, key, [number for number, index in enumerate(indices) if index in chosen])


class _Layer:
    """A layer of a stack: maps the hidden states and multiplies them by its scale, and runs only where its output is not kept."""

    def __init__(self, block: nn.Module, prefixes: Prefixes) -> None:
        self.block = block
        self._numbered = [
            (part, name) for part in block.modules() for name in _OWN_NUMBER if type(getattr(part, name, None)) is int
        ]
        self._forward = block.forward
        self._prefixes = prefixes
        self._number = 0
        self._scale = 1.0
        self._before: nn.Module | None = None
        self._after: nn.Module | None = None
        block.forward = self

    def place(self, number: int, scale: float, before: nn.Module | None, after: nn.Module | None) -> None:
        """Prepare for the position `number` in the next stack, whose stream is mapped by `before` and `after` the layer."""
        self._number, self._scale = number, scale
        self._before, self._after = before, after
        for part, name in self._numbered:
            setattr(part, name, number)  # the cache slot of transformers

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self._prefixes.output(self._number)
        if output is None:
            hidden = hidden if self._before is None else self._before(hidden)
            output = self._forward(hidden if self._scale == 1 else hidden * self._scale, *args, **kwargs)
            self._prefixes.keep(self._number, output)
        return output if self._after is None else mapped(output, self._after)


def per_layer(config: Mapping[str, Any], layers: int) -> dict[str, list[Any]]:
    """Return the settings of a configuration that are lists with one entry for each of its `layers`."""
    return {
        key: list(value)
        for key, value in config.items()
        if isinstance(value, list | tuple) and len(value) == layers and ("layer" in key or "block" in key)
    }


def numbers_of_layers(config: Mapping[str, Any], layers: int) -> dict[str, list[int]]:
    """Return the settings of a configuration that list some of its `layers` by number, such as those with attention."""
    return {
        key: list(value)
        for key, value in config.items()
        if "layer" in key and isinstance(value, list) and _are_numbers(value, layers)
    }


def _are_numbers(value: Sequence[Any], count: int) -> bool:
    return len(set(map(str, value))) == len(value) > 0 and all(type(n) is int and 0 <= n < count for n in value)


def _filled(source: Checkpoint, mappings: Sequence[TensorMapping], like: Tensor) -> Tensor:
    """Return the tensor that `mappings` fill, in the dtype and on the device of `like`; a view of the source where possible."""
    first = mappings[0]
    identity = len(mappings) == 1 and first.is_identity(source.info[first.source].shape, like.shape)
    if identity and isinstance(source, Folder | Adapter | Aligned):
        return source.tensor(first.source).to(like)
    filled = torch.empty_like(like)
    if identity:
        source.write(first.source, filled)
        return filled
    for mapping in mappings:
        view = filled[mapping.filled]
        view.copy_(mapping.cut(source.tensor(mapping.source), view.shape))
    return filled
