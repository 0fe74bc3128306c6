"""Folders: whatever is wrong with one is an error before any tensor is read."""

import io
import json
import os
from pathlib import Path

import pytest
import torch
from pools import CONFIG, TENSORS, write_checkpoint
from safetensors.torch import save_file

from evomerge.checkpoints.folder import INDEX, Folder, all_finite
from evomerge.checkpoints.header import TensorInfo
from evomerge.errors import CheckpointError


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_come_back_as_they_were_written(tmp_path, shards):
    folder = Folder(write_checkpoint(tmp_path, TENSORS, shards=shards))
    assert list(folder.info) == sorted(TENSORS)
    assert folder.config == CONFIG
    assert len(folder.files) == shards
    for name, tensor in TENSORS.items():
        assert torch.equal(folder.tensor(name), tensor)
        assert folder.info[name] == TensorInfo(tuple(tensor.shape), tensor.dtype)
    folder.forget()
    out = torch.empty(2, 3, dtype=torch.bfloat16)
    folder.write("a.weight", out)
    assert torch.equal(out, TENSORS["a.weight"].bfloat16())


def index(folder, weight_map):
    folder.mkdir(exist_ok=True)
    content = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def test_missing_folder_and_folder_without_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"none: no such folder; expected a checkpoint folder"):
        Folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="no such folder"):
        Folder(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"no safetensors file; expected model.safetensors"):
        Folder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(CheckpointError, match=rf"only pickle weights \({name}\).*convert them with"):
        Folder(tmp_path)


def test_gguf_is_refused_by_folder_and_by_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(CheckpointError, match=r"only GGUF weights \(model.gguf\).*gguf_file='model.gguf'"):
            Folder(path)


def test_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="a LoRA adapter, not a whole model; merge it into its base first"):
        Folder(tmp_path)


def test_several_files_need_an_index(tmp_path):
    for name in ("one", "two"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"2 safetensors files but no model\.safetensors\.index\.json"):
        Folder(tmp_path)


def test_single_file_goes_before_an_index_as_in_transformers(tmp_path):
    """Both are there after saving twice into one folder: see `transformers.modeling_utils`, which takes the single file."""
    write_checkpoint(tmp_path, {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}, shards=2)
    write_checkpoint(tmp_path, TENSORS)
    folder = Folder(tmp_path)
    assert folder.files == (tmp_path / "model.safetensors",)
    assert torch.equal(folder.tensor("a.weight"), TENSORS["a.weight"])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors"}, "shard model-1.safetensors is missing; download the checkpoint again"),
        (
            {"a": "../outside.safetensors"},
            "names the shard '../outside.safetensors'; expected a file name inside the folder, no path",
        ),
        ({"a": "/etc/passwd"}, "names the shard '/etc/passwd'"),
        ({"a": ".."}, "names the shard '..'"),
        ({"a": ""}, "names the shard ''"),
        ({"a": 3}, "shard 3 is missing"),
        ({"none": "whole.safetensors"}, "the index puts tensor `none` into whole.safetensors, which does not hold it"),
        ({"a": "a" * 300}, "shard a{200} is missing"),
        ({"a": "\ud800"}, r"shard .* is missing"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"weight_map": []}', "not a safetensors index"),
    ],
)
def test_broken_indexes_are_refused(tmp_path, weight_map, message):
    save_file(TENSORS, tmp_path / "outside.safetensors")
    index(tmp_path / "model", weight_map)
    save_file(TENSORS, tmp_path / "model" / "whole.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Folder(tmp_path / "model")


def test_links_that_leave_the_folder_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to("../secret.safetensors")
    with pytest.raises(CheckpointError, match=r"links to .*secret.safetensors, outside of the checkpoint's folder"):
        Folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_json_that_is_no_file_of_the_folder_is_refused_unread(tmp_path, name, kind):
    folder = write_checkpoint(tmp_path / "model", TENSORS, shards=3)
    (folder / name).unlink()
    if kind == "link":
        (tmp_path / "secret").write_text("secret")
        (folder / name).symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(folder / name)  # reading it would wait for ever
    else:
        (folder / name).mkdir()
    with pytest.raises(
        CheckpointError, match=r"outside of the checkpoint's folder|expected a file with a JSON"
    ) as error:
        assert Folder(folder).config
    assert "secret is" not in str(error.value)


def test_links_of_the_hugging_face_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file(TENSORS, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert torch.equal(Folder(snapshot).tensor("a.weight"), TENSORS["a.weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; expected the model's configuration"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "expected a JSON object, got list"),
    ],
)
def test_broken_configurations_are_refused(tmp_path, content, message):
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        _ = Folder(tmp_path).config


def test_file_that_changes_after_it_was_checked_is_an_error(tmp_path):
    folder = Folder(write_checkpoint(tmp_path, TENSORS))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot be opened .* has it changed"):
        folder.tensor("a.weight")


def test_reading_ahead_of_a_file_that_is_gone_or_shorter_is_no_error(tmp_path):
    folder = Folder(write_checkpoint(tmp_path / "model", TENSORS))
    folder.files[0].write_bytes(b"")
    folder.read_ahead("a.weight")
    folder.files[0].unlink()
    folder.read_ahead("a.weight")


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is cached")
def test_reading_ahead_leaves_out_what_is_cached_and_reads_what_may_not_be(tmp_path, monkeypatch):
    folder = Folder(write_checkpoint(tmp_path, {"a": torch.zeros(1 << 19)}))  # two pieces of 1 MiB
    folder.files[0].read_bytes()
    asked, preadv = [], os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, at, flags: asked.append(at) or preadv(file, buffers, at, flags)
    )
    opened = []

    class File(io.FileIO):
        def readinto(self, buffer):
            opened.append((self.tell(), len(buffer)))
            return super().readinto(buffer)

    monkeypatch.setattr(Path, "open", lambda self, *_, **__: File(self))
    begin, end = folder.stored["a"].span
    folder.read_ahead("a")
    assert opened == []
    assert asked == [begin, begin + (1 << 20) - 1, begin + (1 << 20), end - 1]
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    folder.read_ahead("a")
    assert opened == [(begin, 1 << 20), (begin + (1 << 20), 1 << 20)]


def in_shards(folder, held, weight_map):
    """A folder with files of tensors, and an index that says `weight_map` of them."""
    folder.mkdir()
    for file, tensors in held.items():
        save_file(tensors, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_tensors_that_an_index_leaves_out_are_read_as_in_transformers(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    folder = Folder(in_shards(tmp_path / "model", {"one.safetensors": tensors}, {"a": "one.safetensors"}))
    assert list(folder.info) == ["a", "b"]
    assert torch.equal(folder.tensor("b"), tensors["b"])


def test_tensor_in_two_shards_is_refused(tmp_path):
    held = {
        "one.safetensors": {"a": torch.ones(2), "b": torch.ones(2)},
        "two.safetensors": {"a": torch.zeros(2), "c": torch.ones(1)},
    }
    index = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    with pytest.raises(CheckpointError, match=r"`a` is in one.safetensors and in two.safetensors"):
        Folder(in_shards(tmp_path / "model", held, index))


def test_weights_of_another_name_in_the_configuration_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", {"a": torch.ones(2)})
    for name, read in (("model.safetensors", True), ("other.safetensors", False)):
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny", "transformers_weights": name}))
        if read:
            assert list(Folder(folder).info) == ["a"]
            continue
        with pytest.raises(CheckpointError, match=r"`transformers_weights`: 'other.safetensors'.*rename"):
            Folder(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("place", [0, 299_999])
def test_an_element_that_is_not_finite_is_found_wherever_it_is(dtype, place):
    largest = torch.finfo(dtype).max
    tensor = torch.tensor([largest, -largest, 0.0, -0.0, 1e-3], dtype=dtype).repeat(60_000)
    assert all(map(all_finite, (tensor, tensor.view(300, 1000).T, tensor[:0])))
    for value in (torch.inf, -torch.inf, torch.nan, -torch.nan):
        broken = tensor.clone()
        broken[place] = value
        assert not all_finite(broken)
        assert not all_finite(broken.view(300, 1000).T)
