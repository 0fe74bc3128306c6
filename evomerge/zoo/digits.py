"""The `digits` zoo: a tiny vision transformer on 8x8 digits, and experts on transformed digits.

It is built in seconds and evaluated in milliseconds: for tests, and for reference fronts of thousands of evaluations. The experts
conflict (all share one head, and half a turn makes a 6 of a 9), but the model has little in common with large pretrained ones.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge.errors import ZooError
from evomerge.models.pretrained import new_model, save_model
from evomerge.zoo.store import SPLITS, Contents, Plan, Progress, TaskConfig, write_splits
from evomerge.zoo.training import reproducible, train

# Of images `(examples, 1, 8, 8)`, with values from 0 (paper) to 1 (ink).
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "turned": lambda images: torch.rot90(images, 2, (2, 3)),
    "inverted": lambda images: 1 - images,
    "shifted": lambda images: torch.roll(images, (2, 2), (2, 3)),
    "mirrored": lambda images: images.flip(3),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the model, the training and the splits (the remaining digits of the 1,797 are the report split)."""

    width: int = 32
    layers: int = 3
    batch: int = 64
    base_steps: int = 400
    base_rate: float = 3e-3
    expert_steps: int = 120
    expert_rate: float = 2e-3
    train: int = 900
    search: int = 400


def plan(*, small: bool = False) -> Plan:
    """Return the plan of this zoo; the small one has two layers and shorter training."""
    settings = Settings(layers=2, base_steps=200, expert_steps=60) if small else Settings()
    return Plan(
        name="digits",
        about="a tiny vision transformer on scikit-learn's 8x8 digits; experts for turned, inverted, shifted "
        "and mirrored digits",
        experts=tuple(VIEWS),
        settings=asdict(settings),
        group="digits",
        packages=("torch", "transformers", "scikit-learn"),
        licences={"scikit-learn digits (UCI optical recognition of handwritten digits)": "BSD-3-Clause / CC BY 4.0"},
        make=lambda folder, seed, progress: _make(settings, folder, seed, progress),
    )


def _make(settings: Settings, folder: Path, seed: int, progress: Progress) -> Contents:
    images, labels = _digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # All views share the splits: no view of a report digit is in another split.
    ends = (settings.train, settings.train + settings.search)
    splits = dict(zip(SPLITS, (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]), strict=True))
    tasks: dict[str, TaskConfig] = {}
    for name, view in VIEWS.items():
        rows = [
            {"pixels": image.tolist(), "label": int(label)} for image, label in zip(view(images), labels, strict=True)
        ]
        files = write_splits(folder, name, {split: [rows[i] for i in chosen] for split, chosen in splits.items()})
        tasks[name] = {"kind": "classification", **files, "input": "pixels", "label": "label"}
    chosen, search = splits["train"], splits["search"]
    trained, searched = labels[chosen], labels[search]

    def fit(model: nn.Module, inputs: Tensor, steps: int, rate: float, seed: int) -> None:
        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(model(pixel_values=inputs[rows]).logits, trained[rows])

        train(model, loss, examples=len(trained), steps=steps, batch=settings.batch, rate=rate, seed=seed)

    figures: dict[str, Any] = {"accuracy": {}}
    with reproducible(seed):
        progress(0.0, "training the base on plain digits")
        base = new_model(
            {
                "model_type": "vit",
                "image_size": 8,
                "patch_size": 4,
                "num_channels": 1,
                "hidden_size": settings.width,
                "num_hidden_layers": settings.layers,
                "num_attention_heads": 4,
                "intermediate_size": 2 * settings.width,
                "num_labels": 10,
            },
            "AutoModelForImageClassification",
        )
        fit(base, images[chosen], settings.base_steps, settings.base_rate, seed)
        save_model(base, folder / "base")
        for number, (name, view) in enumerate(VIEWS.items()):
            progress((1.5 + number) / (2 + len(VIEWS)), f"training the expert for {name} digits")
            seen, expert = view(images), copy.deepcopy(base)
            fit(expert, seen[chosen], settings.expert_steps, settings.expert_rate, seed + 1 + number)
            save_model(expert, folder / "experts" / name)
            models = {"base": base, "expert": expert}
            figures["accuracy"][name] = {key: _accuracy(model, seen[search], searched) for key, model in models.items()}
    return tasks, figures


def _digits() -> tuple[Tensor, Tensor]:
    """Return the images `(1797, 1, 8, 8)` in [0, 1] (exact sixteenths) and the labels `(1797,)`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ZooError("the zoo `digits` needs scikit-learn's digits; type: pip install scikit-learn") from None
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@torch.inference_mode()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return round(float((model(pixel_values=images).logits.argmax(-1) == labels).double().mean()), 4)
