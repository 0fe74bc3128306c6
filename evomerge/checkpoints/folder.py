"""A checkpoint is a lazy mapping from tensor name to tensor; a `Folder` is one in an ordinary Hugging Face folder.

Such a folder holds safetensors (one file, or shards with an index), `config.json`, and whatever else belongs to the model.
Weights load only from safetensors. The reader trusts nothing in the folder: every header is checked before a tensor is
touched, and no path in an index leaves the folder.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import SafetensorError, safe_open

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
_PREFETCH_BYTES = 1 << 20  # bytes read at a time to no other end than to have them in the kernel's cache
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

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


class Checkpoint(Protocol):
    """A model's tensors by name, read or made only when asked for."""

    info: Mapping[str, TensorInfo]
    """Shape and storage dtype of every tensor, in a fixed order."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its storage dtype. It may be a view of a file: never write into it."""

    def write(self, name: str, out: torch.Tensor) -> None:
        """Put what `tensor` returns into `out`, of the same shape and any floating-point dtype."""

    def forget(self) -> None:
        """Close files and drop what is cached; the next read opens them again."""


class Folder:
    """A checkpoint in a Hugging Face folder."""

    def __init__(self, path: str | Path) -> None:
        """Read and check the headers in the folder at `path`; no tensor is read. Raises `CheckpointError`."""
        self.path = Path(path)
        if not self.path.is_dir():
            msg = f"{self.path}: no such folder; expected a checkpoint folder with config.json and safetensors"
            raise CheckpointError(msg)
        self._file: dict[str, Path] = {}
        self._span: dict[str, tuple[int, int]] = {}
        info: dict[str, TensorInfo] = {}
        for shard, names in self._shards().items():
            header = _read_header(shard)
            wanted = header.info if names is None else names
            for name in wanted:
                if name not in header.info:
                    msg = f"{self.path}: the index puts tensor `{name}` into {shard.name}, which does not hold it; download the checkpoint again"
                    raise CheckpointError(msg)
                info[name] = header.info[name]
                self._file[name] = shard
                self._span[name] = header.spans[name]
        self.info: Mapping[str, TensorInfo] = dict(sorted(info.items()))
        self._open: dict[Path, Any] = {}
        self._views: dict[str, torch.Tensor] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        path = self.path / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            msg = f"{path}: no such file; expected the model's configuration beside its weights"
            raise CheckpointError(msg) from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"{path}: not valid JSON ({error}); download the checkpoint again"
            raise CheckpointError(msg) from None
        if not isinstance(data, dict):
            msg = f"{path}: expected a JSON object, got {type(data).__name__}"
            raise CheckpointError(msg)
        return data

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in order of name."""
        return tuple(sorted(set(self._file.values())))

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as a view of the file, in its storage dtype."""
        if name in self._views:
            return self._views[name]
        file = self._file[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                msg = f"{file}: cannot be opened ({error}); it was readable before: has it changed?"
                raise CheckpointError(msg) from None
        self._views[name] = self._open[file].get_tensor(name)
        return self._views[name]

    def write(self, name: str, out: torch.Tensor) -> None:
        """Copy the tensor into `out`."""
        out.copy_(self.tensor(name))

    def read_ahead(self, name: str) -> None:
        """Bring the tensor's pages into the kernel's cache, and nothing into this process; a tensor not here is no error.

        Reading does this, rather than advice to the kernel: that gives small pages, which are slower to map.
        """
        if name in self.info:
            begin, end = self._span[name]
            gulp = memoryview(bytearray(min(_PREFETCH_BYTES, end - begin)))
            with contextlib.suppress(OSError), self._file[name].open("rb", buffering=0) as file:
                file.seek(begin)
                while begin < end and (got := file.readinto(gulp[: end - begin])):
                    begin += got

    def forget(self) -> None:
        """Close the files. What has been read is no longer counted as this process's memory; reading opens them again."""
        self._open.clear()
        self._views.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_views": {}}

    def _shards(self) -> dict[Path, list[str] | None]:
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                pairs = [(str(name), str(shard)) for name, shard in weight_map.items()]
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                msg = f"{index}: not a safetensors index ({type(error).__name__}); download the checkpoint again"
                raise CheckpointError(msg) from None
            grouped: dict[Path, list[str]] = {}
            for name, shard in sorted(pairs):
                grouped.setdefault(self._inside(shard, index), []).append(name)
            return dict(grouped)
        found = sorted(self.path.glob("*.safetensors"))
        if (self.path / "model.safetensors") in found:
            found = [self.path / "model.safetensors"]
        elif (self.path / "adapter_config.json").exists():
            msg = f"{self.path}: a LoRA adapter, not a whole model; merge it into its base first (peft: merge_and_unload, save_pretrained), or give it as an expert of that base"
            raise CheckpointError(msg)
        if len(found) == 1:
            return {self._inside(found[0].name, self.path): None}
        if found:
            msg = f"{self.path}: {len(found)} safetensors files but no model.safetensors.index.json; expected one file, or the index that says which tensor is where"
            raise CheckpointError(msg)
        pickles = sorted(entry.name for pattern in PICKLES for entry in self.path.glob(pattern))
        if pickles:
            msg = f"{self.path}: only pickle weights ({pickles[0]}), which can run code when read; convert them with transformers' save_pretrained and give that folder"
            raise CheckpointError(msg)
        msg = f"{self.path}: no safetensors file; expected model.safetensors, or shards with an index"
        raise CheckpointError(msg)

    def _inside(self, shard: str, index: Path) -> Path:
        """Return the path of a shard, which must be a plain file name in this folder."""
        if Path(shard).name != shard or shard in ("", ".", ".."):
            msg = f"{index}: names the shard {shard!r}; expected a file name inside the folder, no path"
            raise CheckpointError(msg)
        path = self.path / shard
        if not path.is_file():
            msg = f"{self.path}: shard {shard} is missing; download the checkpoint again"
            raise CheckpointError(msg)
        real = path.resolve()
        # Hugging Face's cache links snapshots/REVISION/FILE to blobs/HASH of the same model, and nowhere else.
        home = self.path.resolve()
        if not real.is_relative_to(home) and not real.is_relative_to(home.parent.parent / "blobs"):
            msg = f"{path}: links to {real}, outside of the checkpoint's folder; put the file itself there"
            raise CheckpointError(msg)
        return path


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return what a safetensors file holds, having checked that every tensor lies where the header says.

    Raises `CheckpointError` for anything that the format forbids, and for headers over 16 MiB or 200,000 tensors.
    """
    return _read_header(path).info


@dataclass(frozen=True, slots=True)
class _Header:
    """What a safetensors file holds, and between which of its bytes each tensor lies."""

    info: dict[str, TensorInfo]
    spans: dict[str, tuple[int, int]]


def _read_header(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            return _parse_header(file, path.stat().st_size)
    except _HeaderError as error:
        msg = f"{path}: {error}"
        raise CheckpointError(msg) from None
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise CheckpointError(msg) from None


class _HeaderError(Exception):
    """What is wrong with a header, to be said with the file's name."""


def _parse_header(file: BinaryIO, size: int) -> _Header:
    start = file.read(8)
    if len(start) < 8:
        msg = f"{size} bytes; not a safetensors file"
        raise _HeaderError(msg)
    if start == b"version ":
        raise _HeaderError("a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(start, "little")
    if length > _LARGEST_HEADER:
        msg = f"header of {length} bytes in a file of {size}; expected at most {_LARGEST_HEADER}"
        raise _HeaderError(msg)
    if 8 + length > size:
        msg = f"header of {length} bytes, but the file has {size}; download it again"
        raise _HeaderError(msg)
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, numbers or nesting beyond reason
        msg = f"its header is not JSON ({error})"
        raise _HeaderError(msg) from None
    if not isinstance(header, dict):
        msg = f"its header is a {type(header).__name__}; expected a JSON object"
        raise _HeaderError(msg)
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        msg = f"its header holds {len(header)} tensors; expected at most {_MOST_TENSORS}"
        raise _HeaderError(msg)
    found = _Header({}, {})
    data = at = 8 + length
    for name, entry in header.items():
        found.info[name], (begin, end) = _entry(name, entry)
        found.spans[name] = data + begin, data + end
    for begin, end in sorted(found.spans.values()):
        if begin != at:
            raise _HeaderError("its tensors overlap or leave gaps; download it again")
        at = end
    if at != size:
        msg = f"needs {at} bytes, has {size}; download it again"
        raise _HeaderError(msg)
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        msg = f"its header names `{next(name for name in names if names.count(name) > 1)}` twice"
        raise _HeaderError(msg)
    return found


def _entry(name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """Return one tensor's description, and where its bytes begin and end."""
    try:
        dtype, shape, (begin, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        numbers = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        numbers = False
    if not numbers:
        msg = f"its header does not describe tensor `{name}`: expected dtype, shape and data_offsets, got {str(entry)[:200]}"
        raise _HeaderError(msg)
    if dtype not in DTYPES:
        msg = f"tensor `{name}` has dtype {dtype}; expected one of {', '.join(DTYPES)} (quantised weights cannot be merged)"
        raise _HeaderError(msg)
    info = TensorInfo(shape, DTYPES[dtype])
    if end - begin != info.nbytes:
        msg = f"tensor `{name}` of shape {list(shape)} and dtype {dtype} needs {info.nbytes} bytes, the header gives it {end - begin}"
        raise _HeaderError(msg)
    return info, (begin, end)


def first_difference(left: Mapping[str, TensorInfo], right: Mapping[str, TensorInfo]) -> Sequence[str]:
    """Return the names of tensors that are only in one of two checkpoints, or that differ in shape, in order."""
    return [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left or name not in right or left[name].shape != right[name].shape
    ]
