"""Tiny LoRA adapters in PEFT's format, and the products that they stand for."""

import json

import numpy as np
import torch
from pools import write_checkpoint
from safetensors.torch import save_file

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder

SHAPES = {
    "model.embed.weight": (11, 6),
    "model.layers.0.attn.q.weight": (8, 6),
    "model.layers.0.attn.q.bias": (8,),
    "model.layers.0.mlp.up.weight": (5, 6),
    "model.layers.1.attn.q.weight": (8, 6),
    "model.layers.1.mlp.up.weight": (5, 6),
    "model.conv.weight": (6, 4, 3, 2),
    "model.wave.weight": (6, 4, 3),
    "model.norm.weight": (6,),
    "head.weight": (3, 6),
}
Q, UP = "model.layers.0.attn.q", "model.layers.0.mlp.up"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "author/model"}


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def base_tensors(dtype=torch.float32):
    tensors = {name: draw(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(SHAPES.items())}
    return tensors | {"steps": torch.tensor(3)}


def factors(module, rank=2, *, seed=50, shape=None, transposed=False):
    """Random factors for a matrix or a convolution, under PEFT's names."""
    out, into, *kernel = shape or SHAPES[f"{module}.weight"]
    if transposed:
        out, into = into, out
    return {
        f"base_model.model.{module}.lora_A.weight": draw(rank, into, *kernel, seed=seed),
        f"base_model.model.{module}.lora_B.weight": draw(out, rank, *(1 for _ in kernel), seed=seed + 1),
    }


def embedding_factors(module, rank=2, seed=70):
    rows, columns = SHAPES[f"{module}.weight"]
    return {
        f"base_model.model.{module}.lora_embedding_A": draw(rank, rows, seed=seed),
        f"base_model.model.{module}.lora_embedding_B": draw(columns, rank, seed=seed + 1),
    }


def write_adapter(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def opened(folder, tensors, base=None, **config):
    """The adapter of `tensors` on `base`, both written first."""
    write_checkpoint(folder / "base", base_tensors() if base is None else base)
    return Adapter(write_adapter(folder / "lora", tensors, **config), Folder(folder / "base"))


def exact(weight, tensors, module, scale):
    """W + s·Σᵣ B[o, r]·A[r, i, ...] in float64, by numpy."""
    a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double().numpy() for x in "AB")
    return weight.double().numpy() + scale * np.einsum("or,ri...->oi...", b.reshape(b.shape[:2]), a)


def same_bytes(left, right):
    return left.dtype == right.dtype and torch.equal(
        left.flatten().view(torch.uint8), right.flatten().view(torch.uint8)
    )
