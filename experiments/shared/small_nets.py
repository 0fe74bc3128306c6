"""Small networks of three architectures of transformers, trained from an initialisation: a ViT and a ResNet on digits, a GPT-2 on English.

The text is that of Python's own help (`pydoc_data.topics`), by characters.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import tokenizers
import torch
from shared import perceptron
from shared.perceptron import digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge.models.pretrained import new_model, save_model
from evomerge.zoo.training import reproducible, train

CHARACTERS = [chr(code) for code in range(32, 127)]
LENGTH = 64
"""Characters of an example."""
TEXTS = {"train": 2048, "test": 256}

_IMAGE = {"num_channels": 1, "num_labels": 10}
CONFIGS: Mapping[str, tuple[Mapping[str, Any], str, int]] = {
    "ViT": (
        {
            **_IMAGE,
            "model_type": "vit",
            "image_size": 8,
            "patch_size": 4,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "AutoModelForImageClassification",
        400,
    ),
    "ResNet": (
        {
            **_IMAGE,
            "model_type": "resnet",
            "embedding_size": 32,
            "hidden_sizes": [32, 64],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "AutoModelForImageClassification",
        300,
    ),
    "GPT-2": (
        {
            "model_type": "gpt2",
            "vocab_size": len(CHARACTERS),
            "n_positions": LENGTH,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "AutoModelForCausalLM",
        400,
    ),
}
"""By architecture its configuration, auto class and steps of training."""


@cache
def data(net: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return inputs and labels of the splits `train` and `test`: images `(n, 1, 8, 8)` or tokens `(n, LENGTH)`, which are their own labels."""
    if net != "GPT-2":
        return {split: (images.view(-1, 1, 8, 8) / 16, labels) for split, (images, labels) in digits().items()}
    text = " ".join(" ".join(topics[name] for name in sorted(topics)).split())
    codes = torch.tensor([CHARACTERS.index(character) for character in text if character in CHARACTERS])
    rows, ends = codes[: LENGTH * (len(codes) // LENGTH)].view(-1, LENGTH), [*TEXTS.values()]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: sum(ends)]]
    return {split: (part, part) for split, part in zip(TEXTS, rows.split(ends), strict=True)}


def scores(net: str, module: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the accuracy of a network: of labels, or of the next characters."""
    if net == "GPT-2":
        logits, labels = module(input_ids=inputs).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    else:
        logits = module(pixel_values=inputs).logits
    return cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()


def write_rows(net: str, file: Path, inputs: Tensor, labels: Tensor) -> None:
    """Write examples of a task's split."""
    if net != "GPT-2":
        perceptron.write_rows(file, inputs.flatten(1), labels)
        return
    texts = ("".join(CHARACTERS[code] for code in row) for row in inputs.tolist())
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def task(net: str, folder: Path) -> dict[str, Any]:
    """Return the settings of the task `data` that was written."""
    if net != "GPT-2":
        return perceptron.task(folder, "data")
    splits = {split: str(folder / f"data-{split}.jsonl") for split in ("search", "report")}
    return {"kind": "language_modelling", "text": "text", **splits}


def trained(net: str, seed: int, folder: Path, *, share: float = 1.0) -> Path:
    """Write a network that learned from the initialisation of a seed, for a share of its steps, and return its folder."""
    config, auto, steps = CONFIGS[net]
    inputs, labels = data(net)["train"]
    with reproducible(seed):
        module = new_model(config, auto)
        _training(module, training=True)

        def loss(rows: Tensor) -> Tensor:
            return scores(net, module, inputs[rows], labels[rows])[0]

        train(module, loss, examples=len(inputs), steps=int(share * steps), batch=32, rate=3e-3, seed=seed)
        _training(module, training=False)
    save_model(module, folder)
    if net == "GPT-2":
        _tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8"
        )
    return folder


def _training(module: nn.Module, *, training: bool) -> None:
    """Let batch norms follow their batches, or not; nothing else is in training mode, as dropout would draw."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train(training)


def _tokenizer() -> Any:
    found = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({character: i for i, character in enumerate(CHARACTERS)}, unk_token=CHARACTERS[0])
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    found.decoder = tokenizers.decoders.Fuse()
    return found
