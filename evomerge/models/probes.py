"""Probes: random inputs on which a module is run to prove what was found out about it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBES = 4
_TOKENS = 32


def probes(module: "PreTrainedModel") -> list[dict[str, Tensor]] | None:
    """Return a few random inputs of one example each, tokens or pixels of variance 1; None for another kind of input."""
    generator = torch.Generator().manual_seed(0)
    config: Any = module.config
    if module.main_input_name == "input_ids":
        length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
        tokens = config.get_text_config().vocab_size
        inputs = [torch.randint(tokens, (1, length), generator=generator) for _ in range(_PROBES)]
    elif module.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 32)  # networks of convolutions read any size
        sides = size if isinstance(size, list | tuple) else (size, size)
        inputs = [torch.randn(1, config.num_channels, *sides, generator=generator) for _ in range(_PROBES)]
    else:
        return None
    return [{module.main_input_name: value.to(module.device)} for value in inputs]
