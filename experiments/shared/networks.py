"""Networks: perceptrons trained from initialisations of their own, pools of them with statistics, and the line between two models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from shared import deep_perceptron
from shared.deep_perceptron import start, write
from shared.perceptron import task, write_rows
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge import tasks
from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Setup
from evomerge.evidence import Evidence
from evomerge.models.live import LiveModel
from evomerge.recipe import Recipe
from evomerge.statistics import EvidenceSettings

BATCH = 128
RATE = 1e-3
DECAY = 1e-2
POINTS = 11
EXAMPLES = 256
"""Of the digits to train, for matching and correcting by activations."""


def train(width: int, seed: int, steps: int, data: tuple[Tensor, Tensor], folder: Path) -> Path:
    """Write a network that learned the digits from its own initialisation, and return its folder."""
    images, labels = data
    network = start(width, seed)
    drawn = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=drawn)
        optimiser.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
    return write(dict(network.state_dict()), width, folder)


def turn(images: Tensor, quarters: int) -> Tensor:
    return images.view(-1, 8, 8).rot90(quarters, (1, 2)).reshape(len(images), -1)


def write_task(folder: Path, name: str, data: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write digits as the two splits of a task: `search` from those to train, `report` from those to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (images, labels) in zip(("search", "report"), data.values(), strict=True):
        write_rows(folder / f"{name}-{split}.jsonl", images[:EXAMPLES], labels[:EXAMPLES])


def measured(
    experts: Mapping[str, Path],
    out: Path,
    names: Sequence[str],
    kinds: Sequence[str],
    repairs: Sequence[Recipe] = (),
    settings: Mapping[str, Any] | None = None,
    module: str | None = f"{deep_perceptron.__file__}:make",
) -> tuple[Pool, Any, LiveModel]:
    """Return a pool with statistics of some kinds, these, and a model in memory."""
    base = next(iter(experts.values()))
    settings = settings or {name: task(out, name) for name in names}
    setup = Setup(str(base), {name: str(folder) for name, folder in experts.items()}, settings, module=module)
    pool = Pool(base, experts)
    made = {name: tasks.make(name, entry, out) for name, entry in settings.items()}
    given = {
        expert: EvidenceSettings(task=name, examples=EXAMPLES) for expert, name in zip(experts, names, strict=False)
    }
    Evidence(pool, setup, made, given, kinds, repairs).collect(Console(quiet=True))
    return pool, pool.evidence, LiveModel(pool.open_base(), module=module)


def mixes(one: Checkpoint, other: Checkpoint) -> list[dict[str, Tensor]]:
    """Return the models on the line from one network to another."""
    shares = np.linspace(0, 1, POINTS).tolist()

    def mix(name: str, share: float) -> Tensor:
        tensors = one.tensor(name), other.tensor(name)
        return torch.lerp(*tensors, share) if tensors[0].is_floating_point() else tensors[0]

    return [{name: mix(name, share) for name in one.info} for share in shares]


def barrier(losses: Sequence[float], accuracies: Sequence[float]) -> dict[str, Any]:
    """Return losses and accuracies along a line, and the barrier: the largest loss above the straight line."""
    shares = np.linspace(0, 1, POINTS)
    straight = (1 - shares) * losses[0] + shares * losses[-1]
    return {"barrier": float((np.array(losses) - straight).max()), "losses": losses, "accuracies": accuracies}


@torch.no_grad()
def scores(
    module: nn.Module, model: Checkpoint | Mapping[str, Tensor], data: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """Return a model's loss and accuracy."""
    images, labels = data
    module.load_state_dict(model if isinstance(model, Mapping) else {name: model.tensor(name) for name in model.info})
    logits = module(images)
    return float(cross_entropy(logits, labels)), float((logits.argmax(-1) == labels).float().mean())
