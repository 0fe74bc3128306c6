"""A perceptron of two hidden layers, which reads the digits of `perceptron`. It is no model of transformers: pools name `make` as their `module`."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from shared.perceptron import CLASSES, INPUTS
from torch import Tensor, nn


class Network(nn.Module):
    """64 - width - width - 10 with ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, width), nn.Linear(width, width)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits `(n, 10)` of images `(n, …)` of 64 grey values from 0 to 16."""
        images = pixel_values.flatten(1) / 16
        return self.last(torch.relu(self.second(torch.relu(self.first(images)))))


def start(width: int, seed: int) -> Network:
    """Return a network with the initialisation of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(width)


def make(folder: Path) -> Network:
    """Return an empty network of the width in `config.json`."""
    return Network(json.loads((folder / "config.json").read_text(encoding="utf-8"))["width"])


def write(state: Mapping[str, Tensor], width: int, folder: Path) -> Path:
    """Write a network's tensors as a checkpoint, and return its folder."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": width}), encoding="utf-8")
    return folder
