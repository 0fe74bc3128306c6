"""Can models without a common ancestor be averaged once the units of one are in the order of the other's?

Perceptrons of two hidden layers learn scikit-learn's digits from different initialisations. On the line between two of them, the
barrier is the largest loss above the line between their losses, on digits that neither saw. It is measured before and after weight
matching (Git Re-Basin, arXiv 2209.04836), over widths.

    python experiments/non_local.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from shared.harness import Findings, Switches, main, say, table
from shared.perceptron import CLASSES, INPUTS, digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge.alignment import Permuted, match, symmetry
from evomerge.checkpoints.folder import Checkpoint, Folder
from evomerge.models.live import LiveModel

SEEDS = 5
WIDTHS = (16, 32, 64, 128, 256)
STEPS = 600
BATCH = 128
RATE = 1e-3
DECAY = 1e-2
POINTS = 11
TARGET = 0.1
"""Largest barrier after matching, as a share of the barrier before, of the widest perceptrons."""
PAPER = "The paper, on MNIST and CIFAR-10: no barrier between wide multilayer perceptrons after matching, and a large one between narrow ones."


class Network(nn.Module):
    """64 - width - width - 10 with ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, width), nn.Linear(width, width)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(n, 10)` of images `(n, 64)`."""
        return self.last(torch.relu(self.second(torch.relu(self.first(images)))))


def make(folder: Path) -> Network:
    """Return an empty network of the width in `config.json`."""
    return Network(json.loads((folder / "config.json").read_text(encoding="utf-8"))["width"])


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    widths = WIDTHS[:2] if switches.smoke else WIDTHS
    steps = 60 if switches.smoke else STEPS
    data = {split: (images / 16, labels) for split, (images, labels) in digits().items()}
    found: dict[int, list[dict[str, Any]]] = {width: [] for width in widths}
    for width in widths:
        for seed in switches.seeds:
            with tempfile.TemporaryDirectory(prefix="non_local-") as scratch:
                folders = [_train(width, 2 * seed + i, steps, data["train"], Path(scratch, str(i))) for i in range(2)]
                found[width].append(_pair(folders, data["test"]))
            before, after = (found[width][-1][key]["barrier"] for key in ("before", "after"))
            say(f"width {width}, seed {seed}: barrier {before:.3f}, after matching {after:.3f}")
    return Findings({"target": TARGET, "widths": found}, _table(found), _figure(found))


def _train(width: int, seed: int, steps: int, data: tuple[Tensor, Tensor], folder: Path) -> Path:
    """Write a network that learned the digits from its own initialisation, and return its folder."""
    images, labels = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(width)
    drawn = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=drawn)
        optimiser.zero_grad()
        cross_entropy(network(images[rows]), labels[rows]).backward()
        optimiser.step()
    folder.mkdir()
    save_file(dict(network.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": width}), encoding="utf-8")
    return folder


def _pair(folders: list[Path], data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return the line between two networks, before and after the second is in the order of the first."""
    one, other = map(Folder, folders)
    live = LiveModel(one, module=f"{__file__}:make")
    units = symmetry(live, [{"images": data[0][:64]}])
    order = match(other, one, units)
    return {
        "before": _line(live.module, one, other, data),
        "after": _line(live.module, one, Permuted(other, units, lambda: order), data),
    }


@torch.no_grad()
def _line(module: nn.Module, one: Checkpoint, other: Checkpoint, data: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return losses and accuracies on the line from one network to another, and the barrier between them."""
    images, labels = data
    shares = np.linspace(0, 1, POINTS)
    losses, accuracies = [], []
    for share in shares.tolist():
        mixed = {name: torch.lerp(one.tensor(name), other.tensor(name), share) for name in one.info}
        module.load_state_dict(mixed)
        logits = module(images)
        losses.append(float(cross_entropy(logits, labels)))
        accuracies.append(float((logits.argmax(-1) == labels).float().mean()))
    straight = (1 - shares) * losses[0] + shares * losses[-1]
    return {"barrier": float((losses - straight).max()), "losses": losses, "accuracies": accuracies}


def _table(found: Mapping[int, list[dict[str, Any]]]) -> str:
    rows = []
    for width, pairs in found.items():
        before, after = (np.array([pair[key]["barrier"] for pair in pairs]) for key in ("before", "after"))
        ends = np.mean([pair["before"]["accuracies"][end] for pair in pairs for end in (0, -1)])
        middle = [np.mean([pair[key]["accuracies"][POINTS // 2] for pair in pairs]) for key in ("before", "after")]
        rows.append(
            [
                str(width),
                f"{before.mean():.3f} ± {before.std():.3f}",
                f"{after.mean():.3f} ± {after.std():.3f}",
                f"{after.mean() / before.mean():.1%}",
                f"{ends:.1%}",
                *(f"{accuracy:.1%}" for accuracy in middle),
            ]
        )
    columns = [
        "width",
        "barrier",
        "after matching",
        "left of it",
        "accuracy of both",
        "of their mean",
        "after matching",
    ]
    width, pairs = list(found.items())[-1]
    left = [np.mean([pair[key]["barrier"] for pair in pairs]) for key in ("after", "before")]
    verdict = "reached" if left[0] <= TARGET * left[1] else "missed"
    return (
        f"Loss barriers between perceptrons of two hidden layers, mean and standard deviation over {len(pairs)} pairs.\n\n"
        f"{table(columns, rows)}\n\nTarget for width {width}: at most {TARGET:.0%} of the barrier is left ({verdict}). {PAPER}\n"
    )


def _figure(found: Mapping[int, list[dict[str, Any]]]) -> Figure:
    figure = Figure(figsize=(3 * len(found), 3), layout="constrained")
    for axes, (width, pairs) in zip(
        np.atleast_1d(figure.subplots(1, len(found), sharey=True)), found.items(), strict=True
    ):
        for key, label in (("before", "as they are"), ("after", "matched")):
            lines = np.array([pair[key]["losses"] for pair in pairs])
            axes.plot(np.linspace(0, 1, POINTS), lines.mean(0), label=label)
        axes.set(title=f"width {width}", xlabel="share of the second model")
    figure.axes[0].set_ylabel("loss on unseen digits")
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    main("non_local", __doc__, measure, seeds=SEEDS)
