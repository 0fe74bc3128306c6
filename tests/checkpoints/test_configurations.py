"""Models of equal shapes with other settings are refused where weights cannot make up for it, and noted elsewhere."""

import json

import pytest
import torch
from pools import CONFIG, write_checkpoint
from tiny_models import tiny_model

from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError

TENSORS = {"layers.0.a.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
LABELS = {"0": "negative", "1": "positive"}


def pool(folder, base, expert, *, added=(None, None), steps=7):
    for name, config, tokens in (("base", base, added[0]), ("a", expert, added[1])):
        tensors = {key: tensor + (name == "a") * tensor.is_floating_point() for key, tensor in TENSORS.items()}
        write_checkpoint(folder / name, tensors | {"steps": torch.tensor(steps if name == "a" else 7)}, CONFIG | config)
        if tokens is not None:
            (folder / name / "added_tokens.json").write_text(json.dumps(tokens))
    return Pool(folder / "base", {"a": folder / "a"})


FATAL = [
    ({"num_attention_heads": 4}, {"num_attention_heads": 8}),
    ({"num_key_value_heads": 4}, {"num_key_value_heads": 2}),
    ({"head_dim": 4}, {"head_dim": 8}),
    ({"n_head": 4}, {"n_head": 2}),
    ({"hidden_act": "silu"}, {"hidden_act": "relu"}),
    ({"activation_function": "gelu"}, {"activation_function": "gelu_new"}),
    ({"position_embedding_type": "absolute"}, {"position_embedding_type": "relative_key"}),
    ({"is_decoder": False}, {"is_decoder": True}),
    ({"text_config": {"num_attention_heads": 4}}, {"text_config": {"num_attention_heads": 8}}),
    ({"num_query_heads": [2, 4, 4]}, {"num_query_heads": [2, 4, 8]}),
    ({"num_key_value_heads": 4}, {"num_key_value_heads": [4, 2, 4]}),
    ({"layer_types": ["full_attention", "conv"]}, {"layer_types": ["conv", "full_attention"]}),
    ({"no_rope_layers": [1, 1, 1, 0]}, {"no_rope_layers": [1, 0, 1, 0]}),
    ({"num_kv_shared_layers": 0}, {"num_kv_shared_layers": 2}),
    ({"rope_parameters": {"mrope_section": [16, 24, 24]}}, {"rope_parameters": {"mrope_section": [24, 20, 20]}}),
    (
        {"block_configs": [{"attention": {"n_heads_in_group": 4}}, {"attention": {"n_heads_in_group": 4}}]},
        {"block_configs": [{"attention": {"n_heads_in_group": 4}}, {"attention": {"n_heads_in_group": 8}}]},
    ),
    ({"block_configs": [{"ffn": {"no_op": False}}]}, {"block_configs": [{"ffn": {"no_op": True}}]}),
    ({"vision_feature_layer": -2}, {"vision_feature_layer": -1}),
    ({"id2label": LABELS}, {"id2label": {"0": "positive", "1": "negative"}}),
    ({"id2label": LABELS}, {"id2label": {"0": "Positive", "1": "neutral"}}),
]


@pytest.mark.parametrize(("base", "expert"), FATAL)
def test_setting_that_weights_cannot_make_up_for_is_refused(tmp_path, base, expert):
    with pytest.raises(
        PoolError, match=rf"expert `a` .*differs from the base .*{next(iter(expert))}.* in the expert, .* in the base"
    ):
        pool(tmp_path, base, expert)


NOTED = [
    ({"rope_theta": 1e4}, {"rope_theta": 1e6}),
    ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}),
    ({"sliding_window": None}, {"sliding_window": 64}),
    ({"num_experts_per_tok": 2}, {"num_experts_per_tok": 4}),
    ({"eos_token_id": 2}, {"eos_token_id": [2, 3]}),
    ({"text_config": {"rope_theta": 1e4}}, {"text_config": {"rope_theta": 1e6}}),
    ({"id2label": LABELS}, {"id2label": {"0": "toxic", "1": "harmless"}}),
    ({}, {"head_dim": 8}),
    ({"layer_types": ["full_attention"] * 2}, {"layer_types": ["full_attention", "sliding_attention"]}),
    ({"attention_window": [64, 64]}, {"attention_window": [64, 128]}),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e5}}},
    ),
]


@pytest.mark.parametrize(("base", "expert"), NOTED)
def test_any_other_setting_is_noted_with_both_values(tmp_path, base, expert):
    (note,) = pool(tmp_path, base, expert).notes
    assert note.startswith("`a` differs from the base in ")
    assert next(iter(expert)) in note


EQUAL = [
    ({"torch_dtype": "float32"}, {"dtype": "bfloat16"}),
    ({"transformers_version": "4.40.0", "_name_or_path": "x"}, {"transformers_version": "5.0.0", "use_cache": False}),
    ({"attention_dropout": 0.0}, {"attention_dropout": 0.1}),
    ({"id2label": LABELS}, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}),
    ({"num_key_value_heads": 4}, {"num_key_value_heads": [4, 4, 4]}),
    ({"intermediate_size": [24, 24]}, {"intermediate_size": 24}),
]


@pytest.mark.parametrize(("base", "expert"), EQUAL)
def test_settings_of_training_and_saving_are_not_noted(tmp_path, base, expert):
    assert pool(tmp_path, base, expert).notes == []


def test_layers_that_differ_are_named_with_both_values(tmp_path):
    types = ["sliding_attention", "full_attention"] * 6
    other = [*types[:3], "sliding_attention", *types[4:9], "sliding_attention", *types[10:]]
    (note,) = pool(tmp_path / "types", {"layer_types": types}, {"layer_types": other}).notes
    said = "`layer_types[3]`: 'sliding_attention' in the expert, 'full_attention' in the base, and 1 more of its 12 entries"
    assert said in note
    blocks = [{"attention": {"window": size}} for size in (4, 4, 4)]
    changed = [*blocks[:2], {"attention": {"window": 8}}]
    (note,) = pool(tmp_path / "blocks", {"block_configs": blocks}, {"block_configs": changed}).notes
    assert "`block_configs[2].attention.window`: 8 in the expert, 4 in the base" in note


def test_layers_of_real_classes_are_compared_with_their_defaults(tmp_path):
    explicit = ["full_attention", "sliding_attention"]
    folders = [tiny_model(tmp_path / name, "qwen3", seed) for seed, name in enumerate(("base", "a"))]
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**config, "use_sliding_window": True, "layer_types": explicit}))
    (note,) = Pool(folders[0], {"a": folders[1]}).notes
    assert "`layer_types`: ['full_attention', 'sliding_attention'] in the expert" in note


def test_defaults_of_the_class_are_the_settings_that_a_file_leaves_out(tmp_path):
    folders = [tiny_model(tmp_path / name, "llama", seed) for seed, name in enumerate(("base", "a"))]
    config = json.loads((folders[1] / "config.json").read_text())
    rope = config.pop("rope_parameters")["rope_theta"]
    (folders[1] / "config.json").write_text(json.dumps({**config, "rope_theta": rope}))
    del config["hidden_act"]
    assert Pool(folders[0], {"a": folders[1]}).notes == []
    (folders[1] / "config.json").write_text(json.dumps({**config, "rope_theta": 2 * rope}))
    assert "rope_parameters.rope_theta" in Pool(folders[0], {"a": folders[1]}).notes[0]


def test_added_token_with_another_id_is_refused_and_an_id_with_another_token_noted(tmp_path):
    with pytest.raises(PoolError, match="the token '<b>': id 9 in the expert, 10 in the base"):
        pool(tmp_path / "moved", {}, {}, added=({"<a>": 9, "<b>": 10}, {"<b>": 9, "<a>": 10}))
    (note,) = pool(tmp_path / "other", {}, {}, added=({"<a>": 9}, {"<tool>": 9})).notes
    assert "id 9: the token '<tool>' in the expert, '<a>' in the base" in note
    assert pool(tmp_path / "more", {}, {}, added=({"<a>": 9}, {"<a>": 9, "<b>": 10})).notes == []


def test_integers_that_differ_are_noted(tmp_path):
    (note,) = pool(tmp_path, {}, {}, steps=8).notes
    assert "the integers in `steps`, which are not merged" in note
