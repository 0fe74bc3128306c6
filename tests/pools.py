"""Tiny checkpoints made of plain tensors: no transformers, any name, shape and dtype."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from evomerge.testing import random_statistics, tiny_tensors

EXPERTS = ("maths", "code", "prose", "law")
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 4)}
"""Three tensors of 32 bytes in all: two dimensions, none, and no element."""
CONFIG = {"model_type": "tiny", "vocab_size": 11, "hidden_size": 7, "num_hidden_layers": 4}


@dataclass(frozen=True)
class Models:
    """A base and its experts as tensors by name."""

    base: dict
    experts: dict

    @classmethod
    def random(cls, experts=3, dtype=torch.float32):
        base = tiny_tensors(0)
        experts_by_name = {name: tiny_tensors(1 + i, base) for i, name in enumerate(EXPERTS[:experts])}
        buffers = {
            "layers.0.attn.position_ids": torch.arange(12),
            "layers.0.attn.mask": torch.ones(1, 1, 4, 4, dtype=bool),
        }

        def finish(tensors, shift=0):
            integers = {
                name: buffer + shift if buffer.dtype == torch.int64 else buffer for name, buffer in buffers.items()
            }
            return {name: tensor.to(dtype) for name, tensor in tensors.items()} | integers

        return cls(finish(base), {name: finish(tensors, 5) for name, tensors in experts_by_name.items()})


def write_checkpoint(folder, tensors, config=CONFIG, shards=1):
    """Write a checkpoint folder, in `shards` files with an index where there are more than one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        held = {name: tensors[name] for name in names[i::shards]}
        save_file(held, folder / file)
        weight_map |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_pool(folder, models, shards=1, config=CONFIG):
    """Write a base and experts into folders named after them."""
    write_checkpoint(folder / "base", models.base, config, shards)
    for name, tensors in models.experts.items():
        write_checkpoint(folder / name, tensors, config, shards)
    return folder


class RandomEvidence:
    """Random statistics of every kind, of experts with the tensors of `like`: what `Pool.evidence` holds."""

    def __init__(self, like):
        self._like = like

    def digest(self, kind, expert):
        return f"{kind} of {expert}"

    def tables(self, kind, expert, name):
        (tables,) = random_statistics([expert], self._like).tables(kind, name)
        return tables
