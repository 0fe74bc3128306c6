"""Pools for the codecs: the tiny one, one in bf16, and one whose experts are of low rank."""

import pytest
import torch
from pools import Models, write_pool

from evomerge.checkpoints.pool import Pool


def opened(folder, models):
    write_pool(folder, models)
    return Pool(folder / "base", {name: folder / name for name in models.experts})


@pytest.fixture(scope="session")
def bf16_pool(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("bf16"), Models.random(dtype=torch.bfloat16))


@pytest.fixture(scope="session")
def lora_pool(tmp_path_factory):
    """Four experts of rank 2 in each of two matrices, with different biases, and a tensor that none changed."""
    random = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    base = {
        "layers.0.up.weight": normal(24, 16),
        "layers.1.up.weight": normal(20, 16),
        "layers.1.up.bias": normal(20),
        "layers.0.norm.weight": torch.ones(16),
    }
    experts = {}
    for name in ("maths", "code", "prose", "law"):
        experts[name] = {key: tensor.clone() for key, tensor in base.items()}
        for key in ("layers.0.up.weight", "layers.1.up.weight"):
            rows, columns = base[key].shape
            experts[name][key] += 0.1 * normal(rows, 2) @ normal(2, columns)
        experts[name]["layers.1.up.bias"] += 0.1 * normal(20)
    return opened(tmp_path_factory.mktemp("lora"), Models(base, experts))
