"""Checkpoints: whatever is wrong with a folder is said before a tensor is touched; what is written appears whole."""

import errno
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import CONFIG, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as reference_bytes
from strategies import plain

from evomerge.checkpoints import folder as folder_module
from evomerge.checkpoints.folder import DTYPES, Folder, TensorInfo, read_header
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.save import save
from evomerge.errors import CheckpointError
from evomerge.recipe import Place

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 4)}


def raw(path, header, data=b"", length=None):
    """Write the bytes of a safetensors file as told, right or wrong."""
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body) if length is None else length) + body + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# -- headers --


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_header_of_every_dtype(tmp_path, dtype):
    tensors = {"x": torch.zeros(3, 5, dtype=dtype), "y": torch.ones((), dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "model.safetensors")
    assert found == {"x": TensorInfo((3, 5), dtype), "y": TensorInfo((), dtype)}
    assert found["x"].nbytes == 15 * dtype.itemsize


HEADERS = [
    ("empty file", lambda p: p.write_bytes(b""), "0 bytes; not a safetensors file"),
    ("a few bytes", lambda p: p.write_bytes(b"abc"), "3 bytes; not a safetensors file"),
    (
        "a git-lfs pointer",
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "Git LFS pointer.*run `git lfs pull`",
    ),
    ("header longer than the file", lambda p: raw(p, {}, length=1000), "header of 1000 bytes, but the file has 10"),
    (
        "header of 2^63 bytes",
        lambda p: raw(p, {}, length=2**63),
        "header of 9223372036854775808 bytes in a file of 10; expected at most 16777216",
    ),
    ("header that is no text", lambda p: raw(p, b"\xff\xfe\xfd"), "header is not JSON"),
    ("header that is no JSON", lambda p: raw(p, b"{'a': 1}"), "header is not JSON"),
    ("header nested beyond reason", lambda p: raw(p, b"[" * 100_000), "header is not JSON"),
    ("number beyond reason", lambda p: raw(p, b'{"a":' + b"9" * 5000 + b"}"), "header is not JSON"),
    ("header that is a list", lambda p: raw(p, []), "header is a list; expected a JSON object"),
    ("header that is a number", lambda p: raw(p, 3), "header is a int; expected a JSON object"),
    (
        "truncated data",
        lambda p: raw(p, {"a": entry([2], 0, 8)}, b"1234"),
        "needs 49 bytes, has 45|needs .* bytes, has .*; download it again",
    ),
    (
        "trailing bytes",
        lambda p: raw(p, {"a": entry([1], 0, 4)}, b"12345"),
        "needs .* bytes, has .*; download it again",
    ),
    (
        "overlapping tensors",
        lambda p: raw(p, {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"0" * 12),
        "overlap or leave gaps",
    ),
    ("a gap", lambda p: raw(p, {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12), "overlap or leave gaps"),
    ("reversed offsets", lambda p: raw(p, {"a": entry([1], 4, 0)}, b"0" * 4), "needs 4 bytes, the header gives it -4"),
    (
        "shape that is not the bytes",
        lambda p: raw(p, {"a": entry([3], 0, 8)}, b"0" * 8),
        r"`a` of shape \[3\] and dtype F32 needs 12 bytes, the header gives it 8",
    ),
    (
        "an unknown dtype",
        lambda p: raw(p, {"a": entry([1], 0, 1, "F8_E4M3")}, b"0"),
        "dtype F8_E4M3; expected one of I64, .*quantised weights cannot be merged",
    ),
    ("a dtype that is no word", lambda p: raw(p, {"a": entry([1], 0, 4, ["F32"])}, b"0000"), "has dtype"),
    (
        "a name twice",
        lambda p: raw(
            p,
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"0",
        ),
        "names `a` twice",
    ),
    ("a negative size", lambda p: raw(p, {"a": entry([-1], 0, 4)}, b"0000"), "does not describe tensor `a`"),
    ("a shape in words", lambda p: raw(p, {"a": entry("ab", 0, 4)}, b"0000"), "does not describe tensor `a`"),
    ("a size that is no number", lambda p: raw(p, {"a": entry([None], 0, 4)}, b"0000"), "does not describe tensor `a`"),
    ("no offsets", lambda p: raw(p, {"a": {"dtype": "F32", "shape": [1]}}, b"0000"), "does not describe tensor `a`"),
    ("an entry that is a number", lambda p: raw(p, {"a": 3}), "does not describe tensor `a`"),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in HEADERS], ids=[case[0] for case in HEADERS])
def test_broken_files_are_refused_by_name(tmp_path, make, message):
    path = tmp_path / "model.safetensors"
    make(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{path}: .*{message}"):
        Folder(tmp_path)


def test_too_many_tensors_are_refused_quickly(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_MOST_TENSORS", 100)
    raw(tmp_path / "model.safetensors", {f"t{i}": entry([0], 0, 0) for i in range(101)})
    with pytest.raises(CheckpointError, match="101 tensors; expected at most 100"):
        Folder(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | plain.map(lambda data: json.dumps(data).encode()), st.binary(max_size=8))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    path = raw(tmp_path / "model.safetensors", header, data)
    try:
        found = read_header(path)
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as reference:  # what we accept, safetensors must accept too
        assert set(reference.keys()) == set(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 250), st.integers(0, 7))
def test_any_flipped_bit_of_a_header_is_read_as_safetensors_does_or_refused(tmp_path, at, bit):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    content[at % (len(content) - 40)] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = read_header(path)
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as reference:
        assert {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()} == {  # noqa: SIM118  # a file of safetensors is no mapping
            name: info.shape for name, info in found.items()
        }


# -- folders --


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
        ("{", r"not a safetensors index \(JSONDecodeError\)"),
        ("[]", r"not a safetensors index \(TypeError\)"),
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


# -- layout --


def layout(*names, shape=(2, 2)):
    return Layout(
        {
            name: TensorInfo(shape if not name.endswith(("bias", "norm.weight")) else (2,), torch.float32)
            for name in names
        }
    )


CASES = {
    "bert": (
        "bert.encoder.layer.{}.attention.self.query.weight",
        "bert.encoder.layer.{}.attention.output.dense.weight",
        "bert.encoder.layer.{}.intermediate.dense.weight",
        "bert.encoder.layer.{}.output.LayerNorm.weight",
    ),
    "gpt2": ("h.{}.attn.c_attn.weight", "h.{}.attn.c_proj.weight", "h.{}.mlp.c_fc.weight", "h.{}.ln_1.weight"),
    "llama": (
        "model.layers.{}.self_attn.q_proj.weight",
        "model.layers.{}.self_attn.o_proj.weight",
        "model.layers.{}.mlp.up_proj.weight",
        "model.layers.{}.input_layernorm.weight",
    ),
    "vit": (
        "vit.encoder.layer.{}.attention.attention.key.weight",
        "vit.encoder.layer.{}.attention.output.dense.weight",
        "vit.encoder.layer.{}.output.dense.weight",
        "vit.encoder.layer.{}.layernorm_before.weight",
    ),
    "mixtral": (
        "model.layers.{}.self_attn.v_proj.weight",
        "model.layers.{}.self_attn.o_proj.weight",
        "model.layers.{}.block_sparse_moe.experts.3.w1.weight",
        "model.layers.{}.post_attention_layernorm.weight",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_and_kinds_are_found_from_names(case):
    names = [pattern.format(block) for block in range(12) for pattern in CASES[case]]
    found = layout(*names)
    assert found.blocks == 12
    for block in (0, 7, 11):
        kinds = [found.place(pattern.format(block)) for pattern in CASES[case]]
        assert kinds == [Place(block, 12, kind) for kind in ("attention", "attention", "mlp", "norm")]
    assert found.kinds == ("attention", "mlp", "norm")


def test_what_is_outside_of_the_stack_counts_with_its_nearest_end():
    found = layout(
        "model.embed_tokens.weight",
        "embeddings.LayerNorm.weight",
        "model.layers.0.mlp.weight",
        "model.layers.1.mlp.weight",
        "model.norm.weight",
        "lm_head.weight",
    )
    assert found.place("model.embed_tokens.weight") == Place(0, 2, "embedding", inside=False)
    assert found.place("embeddings.LayerNorm.weight") == Place(0, 2, "norm", inside=False)
    assert found.place("model.norm.weight") == Place(1, 2, "norm", inside=False)
    assert found.place("lm_head.weight") == Place(1, 2, "head", inside=False)
    assert found.block("lm_head.weight") is None


def test_largest_stack_counts_and_gaps_do_not_make_one():
    assert layout("tower.0.w", "tower.1.w", "tower.2.w", "stem.0.w", "stem.1.w").prefix == "tower"
    assert layout("layers.0.w", "layers.2.w").blocks == 1
    assert layout("0.weight", "1.weight").prefix == ""
    assert layout("weight").blocks == 1


# -- writing --


def wait_for(happened):
    """Wait until another thread has done what it will."""
    end = time.monotonic() + 5
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_folder_is_written_whole_with_what_lies_beside_the_weights(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    beside = {
        "tokenizer.json": "{}",
        "vocab.txt": "a",
        "README.md": "old",
        "pytorch_model.bin": "",
        "tf_model.h5": "",
        "model.safetensors.index.json.bak": "",
    }
    for name, text in beside.items():
        (source / name).write_text(text)
    (source / "folder").mkdir()
    seen = []
    save(
        Folder(source),
        tmp_path / "new" / "out",
        like=source,
        extra={"README.md": "card"},
        progress=lambda done, total: seen.append((done, total)),
    )
    out = tmp_path / "new" / "out"
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json.bak",
    }
    assert (out / "README.md").read_text() == "card"
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(out / "model.safetensors").items())
    assert seen[-1] == (32, 32)
    assert stat.S_IMODE((out / "model.safetensors").stat().st_mode) == 0o644
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("shard_bytes", [1, 64, 100, 10**9])
def test_shards_hold_what_they_may_and_read_back(tmp_path, shard_bytes):
    tensors = {f"t{i}": torch.full((8,), float(i)) for i in range(5)}  # 32 bytes each
    source = write_checkpoint(tmp_path / "source", tensors)
    save(Folder(source), tmp_path / "out", like=source, shard_bytes=shard_bytes)
    written = Folder(tmp_path / "out")
    assert len(written.files) == {1: 5, 64: 3, 100: 2, 10**9: 1}[shard_bytes]
    assert list(written.info) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(written.tensor(name), tensor)
    assert all(
        sum(read_header(file)[name].nbytes for name in read_header(file)) <= max(shard_bytes, 32)
        for file in written.files
    )


class Held:
    """A checkpoint of tensors in memory, as they are: not contiguous, tied, of any dtype."""

    def __init__(self, tensors, info=None):
        self.tensors = tensors
        self.info = info or {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    def tensor(self, name):
        return self.tensors[name]

    def forget(self):
        pass


@st.composite
def held(draw):
    """Tensors of any dtype under any names, of 0 to 3 dimensions, some transposed, some the same under two names."""
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8, unique=True))
    tensors = {}
    for i, name in enumerate(names):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        tensors[name] = draw(
            st.sampled_from([tensor, tensor.mT if tensor.ndim > 1 else tensor, tensors[names[0]] if i else tensor])
        )
    return tensors


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(held())
def test_files_are_byte_for_byte_those_of_safetensors(tmp_path, tensors):
    write_checkpoint(tmp_path / "source", {})
    save(Held(tensors), tmp_path / "out", like=tmp_path / "source")
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert written == reference_bytes(copies, metadata={"format": "pt"})


def test_weights_may_be_read_by_others_whatever_the_umask(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    before = os.umask(0o077)
    try:
        save(Folder(source), tmp_path / "out", like=source)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == 0o644


@pytest.mark.parametrize("made", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.bfloat16)])
def test_tensor_that_is_not_what_the_header_says_is_refused(tmp_path, made):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    lying = Held({"a": made}, {"a": TensorInfo((2, 3), torch.float32)})
    with pytest.raises(
        CheckpointError, match=r"`a`: expected torch.float32 of shape \[2, 3\].* got .*has the file changed"
    ):
        save(lying, tmp_path / "out", like=source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_full_disk_is_said_before_any_work(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    beside = (source / "config.json").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 7, 7))
    with pytest.raises(CheckpointError, match=rf"out: needs {32 + beside} bytes, its disk has 7; make room"):
        save(Held({}, Folder(source).info), tmp_path / "out", like=source)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path, monkeypatch, code):
    source = write_checkpoint(tmp_path / "source", TENSORS)

    def fail(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    expected = OSError if code == errno.EIO else CheckpointError
    with pytest.raises(expected, match=os.strerror(code)) as caught:
        save(Folder(source), tmp_path / "out", like=source)
    assert caught.type is expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_sources_are_read_ahead_of_the_merge_and_may_lack_a_tensor(tmp_path, monkeypatch):
    tensors = {f"t{i}": torch.full((8,), float(i)) for i in range(5)}
    whole = Folder(write_checkpoint(tmp_path / "whole", tensors))
    part = Folder(write_checkpoint(tmp_path / "part", {"t3": torch.zeros(2)}))
    read = []
    ahead = Folder.read_ahead
    monkeypatch.setattr(
        Folder, "read_ahead", lambda self, name: (read.append((self.path.name, name)), ahead(self, name))
    )
    save(
        whole,
        tmp_path / "out",
        like=whole.path,
        sources=[whole, part],
        progress=lambda done, total: wait_for(lambda: len(read) == 2 * min(5, done // 32 + 2)),
    )
    assert read == [(folder, name) for name in tensors for folder in ("whole", "part")]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


def test_reading_ahead_of_a_file_that_is_gone_or_shorter_is_no_error(tmp_path):
    folder = Folder(write_checkpoint(tmp_path / "model", TENSORS))
    folder.files[0].write_bytes(b"")
    folder.read_ahead("a.weight")
    folder.files[0].unlink()
    folder.read_ahead("a.weight")


def test_what_is_there_is_never_overwritten(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for place in ("full", "file", "source"):
        with pytest.raises(CheckpointError, match=f"{place}: exists and is not empty; give another folder"):
            save(Folder(source), tmp_path / place, like=source)
    (tmp_path / "empty").mkdir()
    save(Folder(source), tmp_path / "empty", like=source)
    assert Folder(tmp_path / "empty").info.keys() == TENSORS.keys()


def test_failure_in_the_middle_leaves_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "source", TENSORS)

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(Folder(source), tmp_path / "out", like=source, progress=fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_kill_in_the_middle_leaves_no_folder(tmp_path):
    """SIGKILL while the second shard is made: the folder that was asked for does not exist, so nobody takes it for whole."""
    tensors = {f"t{i}": torch.zeros(1000) for i in range(20)}
    source = write_checkpoint(tmp_path / "source", tensors)
    code = """
        import sys, time
        from pathlib import Path
        from evomerge.checkpoints.folder import Folder
        from evomerge.checkpoints.save import save
        source, out = map(Path, sys.argv[1:])
        def progress(done, total):
            if done * 2 > total:
                print("half", flush=True)
                time.sleep(60)
        save(Folder(source), out, like=source, shard_bytes=4000, progress=progress)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(source), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    save(
        Folder(source), tmp_path / "out", like=source, shard_bytes=4000
    )  # and what is left lying about is in nobody's way
    assert len(Folder(tmp_path / "out").info) == 20


# -- larger than memory --

MERGE = """
    import sys, threading
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from evomerge.build import Builder
    from evomerge.checkpoints.save import save
    from evomerge.checkpoints.pool import Pool
    from evomerge.recipe import merge
    folder, out, method, shard = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    pool = Pool(folder / "base", {name: folder / name for name in ("maths", "code")})
    recipe = merge(method, ["maths", "code"])
    built = Builder(pool).build(recipe)
    built.tensor("layers.0.mlp.weight")  # what is loaded and compiled once, whatever is merged, does not count

    def anonymous():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    start, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    save(built, out, like=folder / "base", shard_bytes=shard)
    done.set()
    watcher.join()
    print(max(peak, anonymous()) - start)
"""


@pytest.fixture(scope="module")
def large_pool(tmp_path_factory):
    """Three checkpoints of 96 MB in bf16, the largest tensor of 16 MB."""
    folder = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    base = {"embed.weight": torch.randn(4096, 2048, generator=generator).bfloat16()}
    base |= {f"layers.{i}.mlp.weight": torch.randn(1024, 2048, generator=generator).bfloat16() for i in range(20)}
    write_checkpoint(folder / "base", base)
    for i, name in enumerate(("maths", "code")):
        write_checkpoint(folder / name, {key: t * (1 + (i + 1) / 64) for key, t in base.items()})
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(("method", "shard"), [("linear", 1 << 30), ("ties", 20 << 20)])
def test_merge_streams_to_disk(large_pool, tmp_path, method, shard):
    """Peak of anonymous memory: what waits to be written, and a few of the largest tensor; not the result, nor a shard of it."""
    waiting, largest = 32 << 20, 16 << 20
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MERGE), str(large_pool), str(tmp_path / "out"), method, str(shard)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < waiting + 3 * largest
    assert len(Folder(tmp_path / "out").files) == {20 << 20: 5, 1 << 30: 1}[shard]
    shutil.rmtree(tmp_path / "out")
