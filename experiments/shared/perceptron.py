"""A perceptron of one hidden layer, as M2N2's released code has it, and the hand-written digits that it reads.

It is no model of transformers: studies name `make` as the pool's `module`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

INPUTS, HIDDEN, CLASSES = 64, 256, 10
SIZES = (INPUTS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES)


class Perceptron(nn.Module):
    """64 - 256 - 10 with ReLU: 19,210 numbers, one after the other as they are split, in one tensor as in the released code."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(sum(SIZES)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits `(images, 10)` of images `(images, 1, 8, 8)`, grey values from 0 to 16."""
        return logits(self.weights, pixel_values.flatten(1))


def logits(weights: Tensor, images: Tensor) -> Tensor:
    """Return logits `(images, 10)` of images `(images, 64)`, by `weights` `(19210,)`."""
    hidden_weight, hidden_bias, output_weight, output_bias = weights.split(SIZES)
    hidden = torch.addmm(hidden_bias, images, hidden_weight.view(INPUTS, HIDDEN)).relu_()
    turned = output_weight.view(HIDDEN, CLASSES).T.contiguous()  # twice as fast as it lies
    return linear(hidden, turned, output_bias)


def make(folder: Path) -> Perceptron:
    """Return an empty perceptron, whatever the folder."""
    return Perceptron()


def save(module: Perceptron, folder: Path) -> None:
    """Write a perceptron as a checkpoint."""
    folder.mkdir(parents=True)
    save_file(dict(module.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "perceptron"}\n', encoding="utf-8")


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images `(n, 64)` and labels `(n,)` of scikit-learn's digits: the first 1,437 to train, the last 360 to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = torch.tensor(found.data, dtype=torch.float32), torch.tensor(found.target)
    return {"train": (images[:1437], labels[:1437]), "test": (images[1437:], labels[1437:])}


def write_tasks(folder: Path, groups: Mapping[str, tuple[int, ...]]) -> None:
    """Write each group's digits as the two splits of a task: `search` from those to train, `report` from those to test."""
    for split, (images, labels) in zip(("search", "report"), digits().values(), strict=True):
        for name, group in groups.items():
            chosen = torch.isin(labels, torch.tensor(group))
            write_rows(folder / f"{name}-{split}.jsonl", images[chosen], labels[chosen])


def write_rows(file: Path, images: Tensor, labels: Tensor) -> None:
    """Write images `(n, 64)` and their labels as the examples of a task's split."""
    rows = zip(images.view(-1, 1, 8, 8).tolist(), labels.tolist(), strict=True)
    text = "".join(json.dumps({"pixels": pixels, "label": label}) + "\n" for pixels, label in rows)
    file.write_text(text, encoding="utf-8")


def task(folder: Path, name: str) -> dict[str, Any]:
    """Return the settings of a task that was written: all its examples in one batch, and their accuracy."""
    splits = {split: str(folder / f"{name}-{split}.jsonl") for split in ("search", "report")}
    columns = {"kind": "classification", "input": "pixels", "label": "label"}
    return {**columns, **splits, "metrics": ["accuracy"], "batch": 2048}
