"""A frozen linear classifier on an encoder, read from a file. Not to be confused with the heads of a pool's experts.

Those are modules of transformers, `evomerge.models.heads`, and a task names one by `head_of`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from evomerge.checkpoints.header import read_header
from evomerge.errors import nearest
from evomerge.tasks.data import task_error

Pooling = Literal["mean", "cls", "last"]
"""The state that a head is applied to: the mean of the last hidden states without padding, the first, or the last one."""


@dataclass(frozen=True, slots=True)
class Head:
    """A frozen linear classifier, by default on the direction of a state.

    logits = scale · (h - mean) / |h - mean| @ weightᵀ + bias; with `plain`, scale · (h - mean) @ weightᵀ + bias.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    plain: bool = False

    def __call__(self, state: Tensor) -> Tensor:
        """Return logits `(batch, classes)` for states `(batch, width)`."""
        centred = state - self.mean
        direction = centred if self.plain else normalize(centred, dim=1)
        return self.scale * direction @ self.weight.T + self.bias


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one state for each example, `(batch, width)`, of hidden states `(batch, tokens, width)`; `mask` is 0 at padding."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        places = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden)), (places * (mask != 0)).argmax(1)]
    return mean_state(hidden, mask)


def mean_state(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean without padding, `(batch, width)`, of hidden states `(batch, tokens, width)`; `mask` is 0 at padding."""
    weights = mask.to(hidden)[:, :, None]
    return (hidden * weights).sum(1) / weights.sum(1)


def read_head(task: str, path: Path, *, plain: bool) -> Head:
    """Return the head in a safetensors file, as fp32. Raises `TaskError`."""
    if not path.is_file():
        msg = f"no such file: {path}; expected the head as safetensors; for the head of an expert, type `head_of: {path.name}`"
        raise task_error(task, msg)
    known = ("weight", "bias", "mean", "scale")
    for name in read_header(path).info:
        if name not in known:
            raise task_error(task, f"{path}: unknown tensor `{name}`; {nearest(name, known)}")
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    weight = tensors.get("weight")
    if weight is None or weight.ndim != 2:  # (classes, width)
        raise task_error(task, f"{path}: expected a tensor `weight` of shape (classes, width)")
    classes, width = weight.shape
    defaults = {"weight": weight, "bias": torch.zeros(classes), "mean": torch.zeros(width), "scale": torch.ones(())}
    for name, tensor in tensors.items():
        expected = defaults[name].shape
        if tensor.shape != expected and not (name == "scale" and tensor.numel() == 1):
            raise task_error(task, f"{path}: expected `{name}` of shape {list(expected)}, got {list(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise task_error(task, f"{path}: `{name}` has elements that are not finite")
    tensors = {name: tensors.get(name, default).reshape(default.shape) for name, default in defaults.items()}
    return Head(**tensors, plain=plain)
