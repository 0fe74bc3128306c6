"""Headers of safetensors files: a broken file is refused by name before any tensor is read."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from strategies import plain

from evomerge.checkpoints import header as header_module
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.header import DTYPES, TensorInfo, read_header
from evomerge.errors import CheckpointError


def raw(path, header, data=b"", length=None):
    """Write the bytes of a safetensors file as told, right or wrong."""
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body) if length is None else length) + body + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_header_of_every_dtype(tmp_path, dtype):
    tensors = {"x": torch.zeros(3, 5, dtype=dtype), "y": torch.ones((), dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    info = read_header(tmp_path / "model.safetensors").info
    assert info == {"x": TensorInfo((3, 5), dtype), "y": TensorInfo((), dtype)}
    assert info["x"].nbytes == 15 * dtype.itemsize


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
    (
        "a number that JSON lacks",
        lambda p: raw(p, b'{"a":{"dtype":"F32","y":Infinity}}'),
        r"header is not JSON \(Infinity\)",
    ),
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
    monkeypatch.setattr(header_module, "_MOST_TENSORS", 100)
    raw(tmp_path / "model.safetensors", {f"t{i}": entry([0], 0, 0) for i in range(101)})
    with pytest.raises(CheckpointError, match="101 tensors; expected at most 100"):
        Folder(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | plain.map(lambda data: json.dumps(data).encode()), st.binary(max_size=8))
def test_any_header_is_read_or_refused(tmp_path, header, data):
    path = raw(tmp_path / "model.safetensors", header, data)
    try:
        info = read_header(path).info
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as reference:  # what we accept, safetensors must accept too
        assert set(reference.keys()) == set(info)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(0, 250), st.integers(0, 7))
def test_any_flipped_bit_of_a_header_is_read_as_safetensors_does_or_refused(tmp_path, at, bit):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    content[at % (len(content) - 40)] ^= 1 << bit
    path.write_bytes(content)
    try:
        info = read_header(path).info
    except CheckpointError:
        return
    with safe_open(path, framework="pt") as reference:
        assert {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()} == {  # noqa: SIM118  # a file of safetensors is no mapping
            name: entry.shape for name, entry in info.items()
        }
