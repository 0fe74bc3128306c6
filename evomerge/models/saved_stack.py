"""A stack on disk: the configuration of its layers, and its scales where they are not in the weights.

The folder is an ordinary checkpoint without code, which plain transformers loads.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from evomerge.checkpoints.save import SCALES
from evomerge.errors import ModelError
from evomerge.models.assembly import per_layer
from evomerge.models.blocks import find_blocks
from evomerge.models.pretrained import library, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COUNT = "num_hidden_layers"  # transformers' name; the file of an architecture may use another


class _Scales(BaseModel):
    model_config = ConfigDict(strict=True)
    scales: list[FiniteFloat]


def stack_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return the base's `config.json` for a stack whose layer i has the settings of the base's layer `layers[i]`.

    The number of layers changes, under the key that the file uses, and every list with an entry for each layer. Such a list
    is also written where the file lacks it, since the architecture would derive it from the number of layers. Raises
    `ModelError` where transformers reads other settings from the result.
    """
    try:
        config_class = library().CONFIG_MAPPING[config.get("model_type")]
    except KeyError as error:
        raise ModelError(f"config.json: expected a `model_type` of transformers, got {error}") from None
    parsed = config_class.from_dict(dict(config))
    count = getattr(parsed, _COUNT, None)
    if not isinstance(count, int):
        msg = f"config.json of type `{config['model_type']}` does not give the number of layers (`{_COUNT}`); its stacks cannot be saved"
        raise ModelError(msg)
    key = _COUNT if _COUNT in config else config_class.attribute_map.get(_COUNT, _COUNT)
    lists = {name: [values[layer] for layer in layers] for name, values in per_layer(parsed.to_dict(), count).items()}
    stacked = {**config, key: len(layers), **lists}
    parsed = config_class.from_dict(dict(stacked))
    for name, value in {_COUNT: len(layers), **lists}.items():
        came = getattr(parsed, name, None)
        if (list(came) if isinstance(came, tuple) else came) != value:
            msg = f"config.json of type `{config['model_type']}`: transformers reads {came} for `{name}` instead of {value}; its stacks cannot be saved"
            raise ModelError(msg)
    return stacked


def load_stack(
    folder: str | os.PathLike[str], auto: str = "AutoModel", dtype: torch.dtype | None = None, **options: object
) -> "PreTrainedModel":
    """Return the model of a stack in `folder`, whose layers multiply the residual stream by their scales.

    The arguments are those of `load_model`. Other checkpoints, and stacks whose scales are in their weights, are loaded as
    `load_model` loads them. Raises `ModelError`.
    """
    model = load_model(folder, auto, dtype, **options)
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
