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


class Perceptron(nn.Module):
    """64 - 256 - 10 with ReLU, 19,210 numbers. Its tensors' names are in the order in which it is flattened to be split."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_1_weight = nn.Parameter(torch.zeros(INPUTS, HIDDEN))
        self.hidden_2_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.output_1_weight = nn.Parameter(torch.zeros(HIDDEN, CLASSES))
        self.output_2_bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return logits `(images, 10)` of images `(images, 1, 8, 8)`, grey values from 0 to 16."""
        hidden = torch.addmm(self.hidden_2_bias, pixel_values.flatten(1), self.hidden_1_weight).relu_()
        return linear(hidden, self.output_1_weight.T.contiguous(), self.output_2_bias)  # twice as fast as turned


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


def write_tasks(folder: Path, groups: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Write each group's digits as a task, and return the tasks' settings: searched on `train`, reported on `test`."""
    splits = {"search": digits()["train"], "report": digits()["test"]}
    tasks: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        tasks[name] = {"kind": "classification", "input": "pixels", "label": "label", "search_metric": "accuracy"}
        tasks[name] |= {"metrics": ["accuracy"], "batch": 2048}
        for split, (images, labels) in splits.items():
            chosen = torch.isin(labels, torch.tensor(group))
            rows = zip(images[chosen].view(-1, 1, 8, 8).tolist(), labels[chosen].tolist(), strict=True)
            path = folder / f"{name}-{split}.jsonl"
            path.write_text("".join(json.dumps({"pixels": p, "label": n}) + "\n" for p, n in rows), encoding="utf-8")
            tasks[name][split] = str(path)
    return tasks
