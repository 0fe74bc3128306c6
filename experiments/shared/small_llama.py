"""A Llama of 0.4 million random parameters that reads characters, for smoke runs."""

import json
from pathlib import Path

import tokenizers
import torch

from evomerge.models.pretrained import new_model, save_model

_SPECIAL = ("<pad>", "<end>", "<unk>")


def write_small_llama(folder: Path, seed: int = 0) -> Path:
    """Write a model of two layers and its tokenizer to `folder`, and return it."""
    config = {
        "model_type": "llama",
        "vocab_size": 98,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(config, "AutoModelForCausalLM")
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *map(chr, range(32, 127))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106  # a token
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
