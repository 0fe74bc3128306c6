"""The matrices of a tensor: one, unless it holds the weights of all experts of a mixture in one piece.

What works matrix by matrix, such as singular vectors, norms and densities, then treats each expert's matrices by themselves,
and gate and up projections apart, as in a checkpoint that stores them apart.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_FUSED = re.compile(r"(?P<parent>.+)\.(?P<what>(?!weight$|bias$)\w+?)(?P<bias>_bias|\.bias)?(\.weight)?")
_GATED = ("gate_up_proj", "input_linear")
"""Gate and up projections in one: the first and the second half of the outputs, unless they alternate."""
_DOWN = ("down_proj", "output_linear")
_ALTERNATING = ("gpt_oss",)
"""Architectures whose outputs are gate, up, gate, up, ..."""
_TURNED = ("gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe", "qwen3_vl_moe_text")
"""Architectures that store (in, out), where the shape does not tell."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix, or bias, in a tensor: the tensor itself, or one expert's part of it.

    `name` tells it from all others; `tensor` is the tensor's, and `number` the matrix's place in it.
    """

    name: str
    tensor: str
    number: int = 0
    at: tuple[Any, ...] = ()
    turned: bool = False

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the matrix as a view of its tensor, (out, in) where its meaning is known."""
        part = tensor[self.at]
        return part.mT if self.turned else part


def matrices(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[Matrix, ...]:
    """Return the matrices of a tensor in a block, by its name and shape and the model's `config.json`."""
    match = _FUSED.fullmatch(name)
    words = () if match is None else re.split(r"[._]", match["parent"].lower())
    dimensions = 2 if match is not None and match["bias"] else 3
    if match is None or len(shape) != dimensions or not {"experts", "moe"} & set(words):
        return (Matrix(name, name),)
    return tuple(_split(name, match, shape, config))


def _split(name: str, match: re.Match[str], shape: tuple[int, ...], config: Mapping[str, Any]) -> Iterator[Matrix]:
    what, kind = match["what"], "bias" if match["bias"] else "weight"
    model = str(config.get("model_type"))
    text = config.get("text_config")
    hidden = (text if isinstance(text, Mapping) else config).get("hidden_size")
    turned = not match["bias"] and what in (*_GATED, *_DOWN) and _is_turned(what, shape, hidden, model)
    outputs = shape[-1] if turned or match["bias"] else shape[1]
    parts: list[tuple[str, slice]] = [(what, slice(None))]
    if what in _GATED and outputs % 2 == 0:
        half = outputs // 2
        halves = (slice(0, half), slice(half, outputs))
        parts = list(zip(("gate_proj", "up_proj"), halves, strict=True))
        if model in _ALTERNATING:
            parts = [("gate_proj", slice(0, None, 2)), ("up_proj", slice(1, None, 2))]
    number = 0
    for expert in range(shape[0]):
        for part, span in parts:
            at = (expert, slice(None), span) if turned else (expert, span)
            yield Matrix(f"{match['parent']}.{expert}.{part}.{kind}", name, number, at, turned)
            number += 1


def _is_turned(what: str, shape: tuple[int, ...], hidden: Any, model: str) -> bool:
    """Return whether the matrices are stored as (in, out): the side of the hidden size says so, where only one is."""
    _, rows, columns = shape
    inputs, outputs = (columns, rows) if what in _GATED else (rows, columns)
    if (inputs == hidden) != (outputs == hidden):
        return bool(outputs == hidden)
    return model in _TURNED
