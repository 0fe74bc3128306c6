"""Headers of safetensors files: which tensors a file holds, and where, checked before any tensor is read.

A header is untrusted input: everything that the format forbids is refused.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from evomerge.errors import CheckpointError

DTYPES = {  # in the order in which safetensors lays them out in a file, so that every tensor is aligned
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LARGEST_HEADER = 16 << 20
_MOST_TENSORS = 200_000


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and storage dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in storage."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of one file by name, and the first byte and the byte past the last of each."""

    info: dict[str, TensorInfo] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, having checked that every tensor lies where it says.

    Raises `CheckpointError` for anything that the format forbids, and for headers over 16 MiB or 200,000 tensors.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, path.stat().st_size)
    except (OSError, ValueError) as error:
        what = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {what}") from None


def _parse(file: BinaryIO, size: int) -> Header:
    """Return the header of a file of `size` bytes. Raises `ValueError` with what is wrong, to follow the file's name."""
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"{size} bytes; not a safetensors file")
    if start == b"version ":
        raise ValueError("a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(start, "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"header of {length} bytes in a file of {size}; expected at most {_LARGEST_HEADER}")
    if 8 + length > size:
        raise ValueError(f"header of {length} bytes, but the file has {size}; download it again")
    try:
        text = file.read(length).decode("utf-8")
        entries = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, too many digits, too deep
        raise ValueError(f"its header is not JSON ({error})") from None
    if not isinstance(entries, dict):
        msg = f"its header is a {type(entries).__name__}; expected a JSON object"
        raise ValueError(msg)  # noqa: TRY004  # the file is wrong, not an argument
    entries.pop("__metadata__", None)
    if len(entries) > _MOST_TENSORS:
        raise ValueError(f"its header holds {len(entries)} tensors; expected at most {_MOST_TENSORS}")
    header = Header()
    data = at = 8 + length
    for name, entry in entries.items():
        header.info[name], (begin, end) = _entry(name, entry)
        header.spans[name] = data + begin, data + end
    for begin, end in sorted(header.spans.values()):
        if begin != at:
            raise ValueError("its tensors overlap or leave gaps; download it again")
        at = end
    if at != size:
        raise ValueError(f"needs {at} bytes, has {size}; download it again")
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"its header names `{next(name for name in names if names.count(name) > 1)}` twice")
    return entries


def _no_constant(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity are Python's, not JSON's


def _entry(name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        msg = f"its header does not describe tensor `{name}`: expected dtype, shape and data_offsets, got {str(entry)[:200]}"
        raise ValueError(msg)
    if dtype not in DTYPES:
        msg = f"tensor `{name}` has dtype {dtype}; expected one of {', '.join(DTYPES)} (quantised weights cannot be merged)"
        raise ValueError(msg)
    info = TensorInfo(shape, DTYPES[dtype])
    if end - begin != info.nbytes:
        msg = f"tensor `{name}` of shape {list(shape)} and dtype {dtype} needs {info.nbytes} bytes, the header gives it {end - begin}"
        raise ValueError(msg)
    return info, (begin, end)
