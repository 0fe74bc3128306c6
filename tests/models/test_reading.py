"""What the class of a folder makes of its tensors is what transformers loads."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from evomerge.checkpoints.folder import Folder
from evomerge.models.pretrained import new_model, save_model
from evomerge.models.reading import read

T5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}


def test_tensors_are_named_as_in_the_module_and_ignored_ones_fill_nothing(tmp_path):
    base = tiny_model(tmp_path / "base", "gpt2")
    expected = read(Folder(base)).fills
    tensors = load_file(base / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(plain | {"h.0.attn.bias": torch.ones(1, 1, 64, 64).tril()}, base / "model.safetensors")
    reading = read(Folder(base))
    assert reading.fills.pop("h.0.attn.bias") == []
    assert {f"transformer.{name}": places for name, places in reading.fills.items()} == expected
    assert reading.fills["wte.weight"] == [("transformer.wte.weight", None), ("lm_head.weight", None)]
    assert reading.land(["h.1.ln_1.weight", "lm_head.weight", "no.such"]) == {
        "h.1.ln_1.weight": "transformer.h.1.ln_1.weight",
        "lm_head.weight": "lm_head.weight",
    }


def test_ties_of_an_encoder_decoder_are_those_of_its_module(tmp_path):
    save_model(new_model(T5, "AutoModelForSeq2SeqLM"), tmp_path / "t5")
    reading = read(Folder(tmp_path / "t5"))
    embeddings = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert reading.ties == dict.fromkeys(embeddings, frozenset(embeddings))
    assert reading.encoder_decoder


@pytest.mark.parametrize("key", ["auto_map", "quantization_config"])
def test_what_transformers_cannot_load_from_here_is_not_read(tmp_path, key):
    base = tiny_model(tmp_path / "base", "llama")
    folder = Folder(base)
    folder.config[key] = {}
    assert read(folder) is None
