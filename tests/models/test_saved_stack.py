"""A stack's folder: its configuration says what its layers are, and its scales are applied or refused."""

import json

import pytest
import torch
from tiny_models import TINY, tiny_model

from evomerge.errors import ModelError
from evomerge.models import load_stack
from evomerge.models.pretrained import load_model
from evomerge.models.saved_stack import SCALES, StackConfigs


def stack_config(config, layers):
    return StackConfigs(config).of(layers)


KEPT = {"name_or_path": "mine", "unknown": [1, 2], "torch_dtype": "bfloat16"}


@pytest.mark.parametrize("architecture", TINY)
def test_number_of_layers_stands_where_the_file_has_it(architecture, tmp_path):
    config = json.loads((tiny_model(tmp_path, architecture) / "config.json").read_text()) | KEPT
    stacked = stack_config(config, [1, 0, 0])
    key = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
    changed = {name for name in stacked if name not in config or stacked[name] != config[name]}
    assert changed - {"layer_types"} == {key}
    assert stacked[key] == 3
    assert list(stacked)[: len(config)] == list(config)


def test_the_common_name_of_the_number_of_layers_is_kept_too():
    config = {"model_type": "gpt2", "num_hidden_layers": 2}
    assert stack_config(config, [0]) == {"model_type": "gpt2", "num_hidden_layers": 1}


def test_number_of_layers_that_the_file_leaves_out_is_written():
    assert stack_config({"model_type": "gpt2"}, [0, 11]) == {"model_type": "gpt2", "n_layer": 2}


def test_lists_with_an_entry_for_each_layer_follow_the_layers():
    types = ["full_attention", "sliding_attention", "full_attention"]
    config = {"model_type": "qwen3", "num_hidden_layers": 3, "layer_types": types, "sliding_window": 8}
    stacked = stack_config(config | {"use_sliding_window": True}, [1, 1, 0, 2])
    assert stacked["layer_types"] == ["sliding_attention"] * 2 + ["full_attention"] * 2


def test_kinds_of_layers_that_follow_from_their_number_are_written_out():
    stacked = stack_config({"model_type": "gemma2", "num_hidden_layers": 4}, [0, 0, 3])
    assert stacked["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "moe_intermediate_size": 8,
    "num_experts_per_tok": 1,
}
QWEN = {"model_type": "qwen3_moe", **SIZES, "num_experts": 2}
DENSE_FIRST = {"model_type": "glm4_moe", **SIZES, "n_routed_experts": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(
    ("config", "layers", "key", "value"),
    [
        (QWEN | {"mlp_only_layers": [0]}, [1, 0, 2, 0, 0], "mlp_only_layers", [1, 3, 4]),
        (QWEN | {"mlp_only_layers": [0, 1, 2, 3]}, [3, 1, 1, 2, 0], "mlp_only_layers", [0, 1, 2, 3, 4]),
        (QWEN | {"mlp_only_layers": [0]}, [1, 2], "mlp_only_layers", []),
        (DENSE_FIRST | {"first_k_dense_replace": 1}, [0, 0, 3, 2], "first_k_dense_replace", 2),
        (DENSE_FIRST | {"first_k_dense_replace": 2}, [2, 3], "first_k_dense_replace", 0),
    ],
)
def test_settings_that_single_out_layers_follow_them(config, layers, key, value):
    assert stack_config(config, layers)[key] == value


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (DENSE_FIRST | {"first_k_dense_replace": 1}, [1, 0, 2, 3]),
        (QWEN | {"decoder_sparse_step": 2}, [1, 0, 2, 3]),
        (
            {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "scale_attn_by_inverse_layer_idx": True},
            [1, 0],
        ),
    ],
)
def test_stack_that_its_own_configuration_cannot_describe_is_refused(config, layers):
    with pytest.raises(ModelError, match=r"another kind of layer at position \d than the base's layer"):
        stack_config(config, layers)
    assert stack_config(config, [0, 1])["model_type"] == config["model_type"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "none"}, "a `model_type` of transformers"),
        ({}, "a `model_type` of transformers"),
        ({"model_type": "gemma3"}, "the number of layers"),
    ],
)
def test_configuration_that_cannot_be_a_stacks_is_refused(config, message):
    with pytest.raises(ModelError, match=message):
        stack_config(config, [0])


def test_checkpoint_without_scales_is_loaded_as_it_is(tmp_path):
    folder = tiny_model(tmp_path, "llama")
    ids = torch.arange(3, 9)[None]
    models = load_stack(folder, "AutoModelForCausalLM"), load_model(folder, "AutoModelForCausalLM")
    with torch.inference_mode():
        assert torch.equal(*(model(input_ids=ids).logits for model in models))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"scales": [1]}', '{"scales": [1, NaN]}', '{"scales": [1, "2"]}', '{"scales": 2}', "\udcff"],
)
def test_scales_that_are_not_one_for_each_layer_are_refused(text, tmp_path):
    folder = tiny_model(tmp_path, "llama")
    (folder / SCALES).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="2 finite numbers"):
        load_stack(folder)
