"""A stack on disk: the configuration of its layers, and its scales where they are not in the weights.

The folder is an ordinary checkpoint without code, which plain transformers loads.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from evomerge.checkpoints.save import SCALES
from evomerge.errors import ModelError
from evomerge.models.assembly import numbers_of_layers, per_layer
from evomerge.models.blocks import find_blocks
from evomerge.models.pretrained import auto_class, library, load_model
from evomerge.models.stitches import attach, plain_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COUNT = "num_hidden_layers"  # transformers' name; the file of an architecture may use another
_FIRST = ("first_k_dense_replace", "num_dense_layers")
"""Settings that give the number of first layers that are dense."""
_STAGES = ("out_features", "out_indices", "stage_names")
"""Settings that a backbone has for the layers that it gives out."""
_FLOAT = "__float__"


class _Scales(BaseModel):
    model_config = ConfigDict(strict=True)
    scales: list[FiniteFloat]


class StackConfigs:
    """The `config.json` of each stack of a base's layers, or why there is none.

    What it refuses is neither scored nor exported: plain transformers would not make that model from a folder.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the base's `config.json`. Raises `ModelError` where transformers makes no stack of layers from it."""
        self._config = config
        self._kind = config.get("model_type")
        try:
            self._class = library().CONFIG_MAPPING[self._kind]
        except KeyError as error:
            raise ModelError(f"config.json: expected a `model_type` of transformers, got {error}") from None
        self.parsed = self._parsed(config)
        count = getattr(self.parsed, _COUNT, None)
        if not isinstance(count, int):
            msg = f"config.json of type `{self._kind}` does not give the number of layers (`{_COUNT}`); its stacks cannot be saved"
            raise ModelError(msg)
        self._count = count
        self._expected = _signatures(self.parsed, count)
        self._known: dict[tuple[int, ...], dict[str, Any] | str] = {}

    def of(self, layers: Sequence[int]) -> dict[str, Any]:
        """Return the configuration of a stack whose layer i has the settings of the base's layer `layers[i]`.

        The number of layers changes, under the key that the file uses, and so do settings that single out layers: a list with an
        entry for each layer, which is also written where the file lacks it, since the architecture would derive it from the number
        of layers; a list of layers' numbers; and the number of first layers that are dense. Raises `ModelError` where transformers
        would make another kind of layer from the result than the base has.
        """
        key = tuple(layers)
        if key not in self._known:
            self._known[key] = self._find(layers)
        known = self._known[key]
        if isinstance(known, str):
            msg = f"config.json of type `{self._kind}`: {known}; its stacks of the layers {_shortened(layers)} cannot be saved, so they are not scored: take layers of one kind, or in the base's order"
            raise ModelError(msg)
        return known

    def _find(self, layers: Sequence[int]) -> dict[str, Any] | str:
        config = self._config
        key = _COUNT if _COUNT in config else self._class.attribute_map.get(_COUNT, _COUNT)
        ends = config.get("out_indices") in (
            [self._count],
            None,
        )  # of a backbone, whose output is that of its last layer
        kept = {name: value for name, value in config.items() if not (ends and name in _STAGES)}
        why = ""
        for settings in _rewritten(self.parsed.to_dict(), config, layers, self._count):
            stacked = {**kept, key: len(layers), **settings}
            try:
                parsed = self._parsed(stacked)
                why = _difference(parsed, {_COUNT: len(layers), **settings}, self._expected, layers)
            except ModelError as error:
                why = str(error).partition(": ")[2]
            if not why:
                return stacked
        return why

    def _parsed(self, config: Mapping[str, Any]) -> Any:
        try:
            return self._class.from_dict(_decoded(dict(config)))
        except Exception as error:  # a class may check its settings as it likes
            msg = f"config.json of type `{self._kind}`: transformers refuses its settings ({type(error).__name__}: {error})"
            raise ModelError(msg) from error


def _decoded(value: Any) -> Any:
    """Return settings with the numbers that JSON lacks, which transformers writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, Mapping):
        return (
            float(value[_FLOAT]) if value.keys() == {_FLOAT} else {key: _decoded(part) for key, part in value.items()}
        )
    return [_decoded(part) for part in value] if isinstance(value, list) else value


def _rewritten(
    parsed: Mapping[str, Any], config: Mapping[str, Any], layers: Sequence[int], count: int
) -> Iterator[dict[str, Any]]:
    """Yield the settings of a stack that depend on its layers, in each way in which the base's can be read."""
    lists = per_layer(parsed, count)
    moved = {name: [values[layer] for layer in layers] for name, values in lists.items()}
    numbered = {
        name: [number for number, layer in enumerate(layers) if layer in value]
        for name, value in numbers_of_layers({**parsed, **config}, count).items()
    }
    first = {
        name: len(list(takewhile(lambda layer: layer < parsed[name], layers)))  # noqa: B023  # used at once
        for name in _FIRST
        if isinstance(parsed.get(name), int)
    }
    yield moved | {name: value for name, value in numbered.items() if name not in moved} | first
    if numbered.keys() & moved.keys():  # a list of as many numbers as there are layers may be either
        yield moved | numbered | first


def _difference(parsed: Any, settings: Mapping[str, Any], expected: Sequence[object], layers: Sequence[int]) -> str:
    """Return how the configuration `parsed` fails to describe a stack of the base's `layers`; empty where it does."""
    for name, value in settings.items():
        came = getattr(parsed, name, None)
        if (list(came) if isinstance(came, tuple) else came) != value:
            return f"transformers reads {came} for `{name}` instead of {value}"
    for number, (layer, came) in enumerate(zip(layers, _signatures(parsed, len(layers)), strict=True)):
        if came != expected[layer]:
            return f"transformers makes another kind of layer at position {number} than the base's layer {layer}"
    return ""


def _signatures(parsed: Any, count: int) -> list[object]:
    """Return for each of the layers that transformers makes from a configuration what is in it beside the weights' values.

    That is the classes, plain attributes, and shapes of its modules. Attributes that hold the layer's number count as equal.
    """
    try:
        with torch.device("meta"):
            module = _named_class(parsed)(parsed)
    except Exception as error:
        msg = f"config.json of type `{parsed.model_type}`: transformers makes no model from it ({type(error).__name__}: {error})"
        raise ModelError(msg) from error
    lists = [part for part in module.modules() if type(part) is torch.nn.ModuleList and len(part) == count]
    if not lists:
        msg = f"config.json of type `{parsed.model_type}`: its model has no list of {count} layers; its stacks cannot be saved"
        raise ModelError(msg)
    blocks = max(lists, key=lambda part: sum(tensor.numel() for tensor in part.parameters()))
    return [_signature(block, number) for number, block in enumerate(blocks)]


def _signature(block: torch.nn.Module, number: int) -> object:
    tensors = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in block.state_dict().items()}
    modules = {}
    for path, part in block.named_modules():
        plain = {
            name: "its number" if value == number and name.startswith("layer_") and type(value) is int else value
            for name, value in vars(part).items()
            if isinstance(value, int | float | str | tuple | None)
        }
        modules[path] = (type(part), plain)
    return tensors, modules


def _named_class(parsed: Any) -> Any:
    for name in parsed.architectures or ():
        if isinstance(named := getattr(library(), name, None), type):
            return named
    return auto_class("AutoModel").from_config


def _shortened(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers[:12])) + (", …" if len(layers) > 12 else "")


def load_stack(
    folder: str | os.PathLike[str], auto: str = "AutoModel", dtype: torch.dtype | None = None, **options: object
) -> "PreTrainedModel":
    """Return the model of a stack in `folder`, whose layers map the residual stream by its stitches, and multiply it by their scales.

    The arguments are those of `load_model`. Other checkpoints, and stacks whose scales are in their weights, are loaded as
    `load_model` loads them. Raises `ModelError`.
    """
    config = plain_config(Path(folder))
    if config is not None:
        options = {"config": StackConfigs(config).parsed, **options}
    model = load_model(folder, auto, dtype, **options)
    if config is not None:
        attach(find_blocks(model), Path(folder), next(part for part in model.parameters() if part.is_floating_point()))
    path = Path(folder) / SCALES
    if path.is_file():
        blocks = find_blocks(model)
        for block, scale in zip(blocks, _scales(path, len(blocks)), strict=True):
            if scale != 1:
                block.register_forward_pre_hook(lambda _, args, scale=scale: (args[0] * scale, *args[1:]))
    return model


def _scales(path: Path, count: int) -> list[float]:
    with contextlib.suppress(ValidationError):
        scales = _Scales.model_validate_json(path.read_bytes()).scales
        if len(scales) == count:
            return scales
    msg = f'{path}: expected {{"scales": [{count} finite numbers, one for each layer]}}; export the stack again'
    raise ModelError(msg)
