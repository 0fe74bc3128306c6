"""A stack on disk: the configuration of its layers, and its scales where they are in no weight.

The folder is an ordinary checkpoint without code of its own, which plain transformers loads.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evomerge.checkpoints.save import SCALES
from evomerge.errors import ModelError
from evomerge.models.assembly import per_layer
from evomerge.models.blocks import find_blocks
from evomerge.models.pretrained import library, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COUNT = "num_hidden_layers"  # transformers' own name for it, whatever an architecture's file says


def stack_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return the base's `config.json` as that of a stack whose layer i is made like the base's layer `layers[i]`.

    The number of layers changes, under the key that the file has for it, and every list with an entry for each layer; such
    a list is written out also where the file left it to the architecture, which would make it from the number of layers.
    Raises `ModelError` where transformers does not take the result for such a stack's.
    """
    try:
        own = library().CONFIG_MAPPING[config.get("model_type")]
    except KeyError as error:
        msg = f"config.json: expected a `model_type` that transformers knows, got {error}"
        raise ModelError(msg) from None
    count = getattr(_made(own, config), _COUNT, None)
    if not isinstance(count, int):
        msg = f"config.json of type `{config['model_type']}` does not say how many layers there are (`{_COUNT}`); its stacks cannot be saved"
        raise ModelError(msg)
    key = own.attribute_map.get(_COUNT, _COUNT)
    if _COUNT in config:
        key = _COUNT
    lists = {
        name: [values[layer] for layer in layers]
        for name, values in per_layer(_made(own, config).to_dict(), count).items()
    }
    found = {**config, key: len(layers), **lists}
    made = _made(own, found)
    wanted = {_COUNT: len(layers), **lists}
    for name, value in wanted.items():
        came = getattr(made, name, None)
        if (list(came) if isinstance(came, tuple) else came) != value:
            msg = f"config.json of type `{config['model_type']}`: transformers makes `{name}` {came} of {value}; its stacks cannot be saved"
            raise ModelError(msg)
    return found


def _made(own: Any, config: Mapping[str, Any]) -> Any:
    return own.from_dict(dict(config))


def load_stack(
    folder: str | os.PathLike[str], auto: str = "AutoModel", dtype: torch.dtype | None = None, **options: object
) -> "PreTrainedModel":
    """Return the model of a stack that was saved to `folder`, whose layers multiply the residual stream by their scales.

    The arguments are those of `load_model`. Any other checkpoint is loaded as it is, and so is a stack whose scales are in
    its weights. Raises `ModelError`.
    """
    model = load_model(folder, auto, dtype, **options)
    path = Path(folder) / SCALES
    if path.is_file():
        blocks = find_blocks(model)
        for block, scale in zip(blocks, _scales(path, len(blocks)), strict=True):
            if scale != 1:
                block.register_forward_pre_hook(_multiply(scale))
    return model


def _multiply(scale: float) -> Any:
    def multiply(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        return hidden * scale, *rest

    return multiply


def _scales(path: Path, count: int) -> list[float]:
    """Return the `count` scales in a file."""
    try:
        scales = json.loads(path.read_text(encoding="utf-8"))["scales"]
        good = len(scales) == count and all(type(s) in (int, float) and math.isfinite(s) for s in scales)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError):
        good = False
    if not good:
        msg = f'{path}: expected {{"scales": [{count} finite numbers, one for each layer]}}; export the stack again'
        raise ModelError(msg)
    return [float(scale) for scale in scales]
