"""Tiny models of real architectures, and a tiny tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch

from evomerge.alignment import Permuted, symmetry
from evomerge.checkpoints.folder import Folder
from evomerge.models.live import LiveModel
from evomerge.models.pretrained import new_model, save_model

_TEXT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DECODER = {**_TEXT, "num_key_value_heads": 1, "head_dim": 8}

TINY: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "vit": (
        {
            "model_type": "vit",
            "image_size": 4,
            "patch_size": 2,
            "num_channels": 1,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_labels": 3,
            "initializer_range": 0.3,
        },
        "AutoModelForImageClassification",
    ),
    "bert": ({"model_type": "bert", **_TEXT, "num_labels": 3}, "AutoModelForSequenceClassification"),
    "gpt2": (
        {
            "model_type": "gpt2",
            "vocab_size": 99,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "AutoModelForCausalLM",
    ),
    "llama": ({"model_type": "llama", **_DECODER}, "AutoModelForCausalLM"),
    "llama_tied": ({"model_type": "llama", **_DECODER, "tie_word_embeddings": True}, "AutoModelForCausalLM"),
    "qwen2": ({"model_type": "qwen2", **_DECODER}, "AutoModelForCausalLM"),
    "qwen3": ({"model_type": "qwen3", **_DECODER}, "AutoModelForCausalLM"),
    "gemma": ({"model_type": "gemma", **_DECODER}, "AutoModelForCausalLM"),
    "mixtral": (
        {"model_type": "mixtral", **_DECODER, "num_local_experts": 3, "num_experts_per_tok": 2},
        "AutoModelForCausalLM",
    ),
}
"""By architecture, the configuration of a model of a few thousand parameters, and the auto class that loads it."""


def tiny_model(folder: Path, architecture: str, seed: int = 0, auto: str | None = None, **changes: object) -> Path:
    """Write a checkpoint with random weights, and a tokenizer where the model reads text; return `folder`.

    The weights are large enough for the outputs to differ. `changes` replace settings of `TINY`; `auto` is another auto
    class. The global generator is not changed.
    """
    config, default = TINY[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model({**config, **changes}, auto or default)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(model, folder)
    if "vocab_size" in config:
        tiny_tokenizer(folder)
    return folder


def permuted_copy(folder: Path, out: Path, seed: int = 3) -> Path:
    """Write a copy of the model in `folder` with its units in a random order; return `out`."""
    live, model = LiveModel(folder), Folder(folder)
    found = symmetry(live)
    order = found.random(seed)
    live.refit(Permuted(model, found, lambda: order))
    live.module.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).exists():
            (out / name).write_bytes((folder / name).read_bytes())
    return out


def tiny_tokenizer(folder: Path, *, begin: bool = True) -> None:
    """Write a tokenizer of printable ASCII characters, 99 tokens, to `folder`; with `begin`, texts start with `<s>`."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=special[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(special)
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
