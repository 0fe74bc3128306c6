"""Models of equal shapes with other settings are refused where weights cannot make up for it, and noted elsewhere."""

import json

import pytest
import torch
from adapters import Q, base_tensors, embedding_factors, factors, write_adapter
from pools import CONFIG, write_checkpoint
from tiny_models import tiny_model

from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError
from evomerge.models.pretrained import new_model

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
    ({"rope_interleave": True}, {"rope_interleave": False}),
    ({"output_stride": 32}, {"output_stride": 8}),
    ({"scale_decoder_outputs": True}, {"scale_decoder_outputs": False}),
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
    ({"output_multiplier": 1.0}, {"output_multiplier": 0.5}),
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
    ({"output_attentions": False, "output_router_logits": True}, {"output_attentions": True}),
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


def test_t5_whose_outputs_are_scaled_is_not_merged_with_one_whose_are_not(tmp_path):
    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    for name, tied in (("base", True), ("a", False)):
        config = {"model_type": "t5", **sizes, "tie_word_embeddings": tied}
        model = new_model(config, "AutoModelForSeq2SeqLM")
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(
            json.dumps({**config, "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True})
        )
    with pytest.raises(PoolError, match="`scale_decoder_outputs`: False in the expert, True in the base"):
        Pool(tmp_path / "base", {"a": tmp_path / "a"})


def experts(folder, *, tokens=({}, {}), labels=(None, None)):
    """A base that says nothing of tokens and labels, and two experts that do."""
    for name, shift, added, said in (
        ("base", 0, {}, None),
        ("a", 1, tokens[0], labels[0]),
        ("b", 2, tokens[1], labels[1]),
    ):
        config = CONFIG if said is None else CONFIG | {"id2label": said}
        write_checkpoint(folder / name, {"layers.0.a.weight": TENSORS["layers.0.a.weight"] + shift}, config)
        (folder / name / "added_tokens.json").write_text(json.dumps(added))
    return Pool(folder / "base", {name: folder / name for name in "ab"})


def test_experts_that_give_one_token_two_ids_are_refused_where_the_base_lacks_it(tmp_path):
    with pytest.raises(
        PoolError, match=r"`b` .* differs from expert `a` .*'<x>': id 10 in `b`, 9 in `a`.* `tokenizer: union`"
    ):
        experts(tmp_path / "moved", tokens=({"<x>": 9, "<y>": 10}, {"<x>": 10, "<y>": 9}))
    (note,) = experts(tmp_path / "other", tokens=({"<x>": 9}, {"<z>": 9})).notes
    assert note == "`b` differs from `a` in id 9: the token '<z>' in `b`, '<x>' in `a`. A merge mixes their rows"
    assert experts(tmp_path / "equal", tokens=({"<x>": 9}, {"<x>": 9})).notes == []


def test_experts_whose_labels_are_in_another_order_are_refused_where_the_base_has_no_names(tmp_path):
    turned = {"0": "positive", "1": "negative"}
    with pytest.raises(
        PoolError, match=r"differs from expert `a` .*`id2label`: .*'positive'.* in `b`, .*'negative'.* in `a`"
    ):
        experts(tmp_path / "turned", labels=(LABELS, turned))
    (note,) = experts(tmp_path / "other", labels=(LABELS, {"0": "ham", "1": "spam"})).notes
    assert "`b` differs from `a` in `id2label`" in note
    assert experts(tmp_path / "unnamed", labels=(LABELS, {"0": "LABEL_0", "1": "LABEL_1"})).notes == []


@pytest.mark.parametrize(("module", "refused"), [("model.embed", True), (Q, False)])
def test_tokens_of_adapters_are_compared_and_matter_where_they_change_rows(tmp_path, module, refused):
    base = write_checkpoint(tmp_path / "base", base_tensors(), CONFIG)
    (base / "added_tokens.json").write_text(json.dumps({"<x>": 9}))
    adapter = write_adapter(tmp_path / "a", embedding_factors(module) if refused else factors(module))
    (adapter / "added_tokens.json").write_text(json.dumps({"<x>": 10}))
    if refused:
        with pytest.raises(PoolError, match=r"'<x>': id 10 in the expert, 9 in the base.*`tokenizer: union`"):
            Pool(base, {"a": adapter})
    else:
        (note,) = Pool(base, {"a": adapter}).notes
        assert "'<x>': id 10 in the expert, 9 in the base" in note
