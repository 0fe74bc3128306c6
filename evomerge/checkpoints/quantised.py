"""Quantised checkpoints, recognised by what they say and hold, not by dtypes alone: such weights cannot be merged."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from evomerge.checkpoints.folder import Folder
from evomerge.errors import PoolError

_KEYS = ("quantization_config", "compression_config")
_FILES = ("quantize_config.json", "quant_config.json", "quanto_qmap.json", "hf_quant_config.json")
_INSTEAD = "de-quantise the model before merging, such as by `model.dequantize()` and `save_pretrained` in transformers, or give the weights that it was quantised from"
_SMALL = (torch.int8, torch.uint8, torch.int16, torch.int32)
"""Dtypes of packed weights. Integers of 64 bits are counters and positions."""
_BUFFERS = ("position_ids", "mask", "token_type_ids")


def check_not_quantised(folder: Folder) -> None:
    """Raise `PoolError` where a checkpoint's configuration, its files or its tensors say that weights are quantised."""
    where = next(_configured(folder.config, "config.json"), None)
    where = where or next((f"`{name}` beside it" for name in _FILES if (folder.path / name).is_file()), None)
    if where is not None:
        msg = f"{folder.path}: the model is quantised, says {where}; {_INSTEAD}; where the weights are not quantised any more, remove that"
        raise PoolError(msg)
    for name, entry in folder.info.items():
        if entry.dtype in (torch.int8, torch.uint8) and len(entry.shape) == 2:  # masks and counters are not
            msg = f"{folder.path}: tensor `{name}` is quantised ({entry.dtype}); {_INSTEAD}"
            raise PoolError(msg)


def check_not_wrapped(folder: Folder) -> None:
    """Raise `PoolError` where all tensors have the names of a wrapper, by which transformers would load none of them."""
    for prefix, wrapper in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel")):
        if (
            folder.stored
            and all(name.startswith(prefix) for name in folder.stored)
            and "architectures" in folder.config
        ):
            inner = prefix.rstrip(".")
            msg = f"{folder.path}: all tensors have the prefix `{prefix}` of {wrapper}, with which transformers would load none of them; save the model inside, `model.{inner}.save_pretrained(DIR)`, and give that folder"
            raise PoolError(msg)


def check_same_integers(name: str, base: Folder, expert: Folder) -> None:
    """Raise `PoolError` where an expert has other packed weights than the base: a merge would copy the base's.

    Both have the same tensors. Counters, positions and masks may differ.
    """
    for tensor, entry in base.info.items():
        weights = entry.dtype in _SMALL and entry.numel > 1 and not any(word in tensor for word in _BUFFERS)
        if weights and not torch.equal(base.tensor(tensor), expert.tensor(tensor)):
            msg = (
                f"expert `{name}` ({expert.path}): the integers of tensor `{tensor}` ({entry.dtype}) differ from the base's; integers "
                f"cannot be merged, and a merge would have the base's. If they are packed weights, {_INSTEAD}; else copy the tensor from the base"
            )
            raise PoolError(msg)


def _configured(config: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield where a configuration, or that of a part of the model, says that weights are quantised."""
    for key, value in config.items():
        if key in _KEYS and value:
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            yield f"`{key}` in {where}" + (f" ({method})" if method else "")
        elif key.endswith("_config") and isinstance(value, Mapping):
            yield from _configured(value, f"`{key}` of {where}")
