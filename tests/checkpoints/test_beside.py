"""The files beside the weights: configuration is copied, weights never, and whose tokenizer it is can be chosen."""

import json

import pytest
from pools import TENSORS, write_checkpoint

from evomerge.checkpoints.beside import differences_in_text, files_beside, unmerged, with_token_ids
from evomerge.errors import CheckpointError

COPIED = (
    "config.json",
    "tokenizer.model",
    "preprocessor_config.json",
    "LICENSE",
    "1_Pooling/config.json",
    "additional_chat_templates/tool_use.jinja",
)
WEIGHTS = (
    "rust_model.ot",
    "model.onnx_data",
    "model.TFLITE",
    "x.mlmodel",
    "weights.npz",
    "model.safetensors.index.json",
    "model.ckpt.data-00000-of-00001",
    "model.ckpt.index",
    "openvino_model.xml",
    "pytorch_model.bin",
    "tf_model.h5",
)
ELSEWHERE = (
    "adapter_config.json",  # transformers would load the adapter's base instead
    "README.md",
    "onnx/model.onnx",
    "onnx/config.json",
    "checkpoint-500/trainer_state.json",
    "checkpoint-500/optimizer.pt",
    "original/params.json",
    "original/consolidated.00.pth",
    "runs/events.out.tfevents.1",
    ".cache/huggingface/tokenizer.json",
    "images/loss.png",
)


def folder(path, *names, **texts):
    write_checkpoint(path, TENSORS)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(texts.get(name, "{}"))
    return path


def speaking(path, end="</s>", number=2, template=None, vocabulary=("a", "b"), **files):
    """Write a folder whose tokenizer says this."""
    tokens = {token: i for i, token in enumerate(vocabulary)}
    settings = {"eos_token": end, **({} if template is None else {"chat_template": template})}
    write_checkpoint(path, TENSORS)
    for name, content in {
        "tokenizer.json": {"model": {"vocab": tokens}, "added_tokens": []},
        "tokenizer_config.json": settings,
        "generation_config.json": {"eos_token_id": number},
        **files,
    }.items():
        (path / name).write_text(json.dumps(content))
    return path


def test_configuration_in_folders_is_copied_and_weights_in_no_form(tmp_path):
    source = folder(tmp_path, *COPIED, *WEIGHTS, *ELSEWHERE)
    found = files_beside(source)
    assert sorted(found) == sorted(COPIED)
    assert all(file == source / name for name, file in found.items())


def test_folders_that_modules_list_are_complete_and_said(tmp_path):
    source = folder(tmp_path, "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    assert set(files_beside(source)) >= {"1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"}
    assert unmerged(source) == ["2_Dense"]


def test_nested_links_stay_within_the_checkpoint_or_the_hubs_blobs(tmp_path):
    snapshot = folder(tmp_path / "model" / "snapshots" / "1a2b", "1_Pooling/other.json")
    blob = tmp_path / "model" / "blobs" / "f00"
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "1_Pooling" / "config.json").symlink_to(blob)
    assert "1_Pooling/config.json" in files_beside(snapshot)
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (snapshot / "1_Pooling" / "stolen.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"stolen.json: links to .*secret.json, outside"):
        files_beside(snapshot)


def test_an_experts_tokenizer_replaces_all_files_about_text(tmp_path):
    base = speaking(tmp_path / "base")
    folder(base, "merges.txt", "chat_template.jinja", "preprocessor_config.json")
    expert = speaking(tmp_path / "expert", **{"special_tokens_map.json": {}, "preprocessor_config.json": {}})
    found = files_beside(base, expert)
    texts = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
    expected = {name: expert / name for name in texts}
    assert found == expected | {name: base / name for name in ("config.json", "preprocessor_config.json")}


def test_an_adapters_tokenizer_leaves_the_bases_generation_settings(tmp_path):
    base, adapter = speaking(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "tokenizer.json", "chat_template.jinja"):
        (adapter / name).write_text("{}")
    found = files_beside(base, adapter)
    assert found["generation_config.json"] == base / "generation_config.json"
    assert found["chat_template.jinja"] == adapter / "chat_template.jinja"
    assert "adapter_config.json" not in found


def test_an_expert_without_a_tokenizer_cannot_give_one(tmp_path):
    base, expert = speaking(tmp_path / "base"), folder(tmp_path / "expert", "generation_config.json")
    with pytest.raises(CheckpointError, match=r"no tokenizer here; expected tokenizer\.json"):
        files_beside(base, expert)


def test_differences_in_text_name_both_sides(tmp_path):
    base = speaking(tmp_path / "base")
    chat = {name: speaking(tmp_path / name, "<end>", 3, "{{ messages }}", ("b", "a")) for name in ("a", "b")}
    notes = differences_in_text(base, {**chat, "silent": folder(tmp_path / "silent")})
    assert notes[:2] == [
        "chat template: none (base), `{{ messages }}` (a, b)",
        "end tokens: </s> 2 (base), <end> 3 (a, b)",
    ]
    assert notes[2].startswith("vocabulary: 2 tokens, sha256")
    assert differences_in_text(base, {"same": speaking(tmp_path / "same")}) == []


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_chat_template_is_found_where_it_may_be(name, tmp_path):
    base, expert = speaking(tmp_path / "base"), speaking(tmp_path / "expert")
    text = "hello" if name.endswith("jinja") else json.dumps({"chat_template": "hello", "eos_token": "</s>"})
    (expert / name).write_text(text)
    assert differences_in_text(base, {"a": expert}) == ["chat template: none (base), `hello` (a)"]


def test_token_ids_of_the_configuration_follow_the_tokenizer(tmp_path):
    config = {"eos_token_id": 2, "bos_token_id": 1, "hidden_size": 8}
    expert = speaking(tmp_path, **{"config.json": {"eos_token_id": [3, 4], "hidden_size": 9}})
    assert with_token_ids(config, expert) == config | {"eos_token_id": [3, 4]}
    assert with_token_ids(config, None) is config


def test_vocabularies_are_equal_whose_tokens_have_equal_numbers(tmp_path):
    added = [{"id": 1, "content": "b", "special": True}]
    words = {"tokenizer.json": {"model": {"vocab": {"a": 0}}, "added_tokens": added}}
    pieces = {"tokenizer.json": {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": []}}
    swapped = {"tokenizer.json": {"model": {"vocab": [["b", -1.0], ["a", -2.0]]}, "added_tokens": []}}
    base = speaking(tmp_path / "base")
    like = {f"{i}": speaking(tmp_path / f"{i}", **files) for i, files in enumerate((words, pieces))}
    assert differences_in_text(base, like) == []
    [note] = differences_in_text(base, {"c": speaking(tmp_path / "c", **swapped)})
    assert note.startswith("vocabulary: 2 tokens")
