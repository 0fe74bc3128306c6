"""Checkpoint: a lazy mapping from tensor name to tensor; Layout: which tensor is in which block, and of what kind.

On disk a checkpoint is an ordinary Hugging Face folder: safetensors (one file, or shards with an index), `config.json`,
and whatever else belongs to the model. Weights load only from safetensors. The reader trusts nothing in the folder: every
header is checked before a tensor is touched, and no path in an index leaves the folder.
"""

import contextlib
import errno
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import SafetensorError, safe_open

from evomerge import files
from evomerge.errors import CheckpointError
from evomerge.recipe import KINDS, Place
from evomerge.write_behind import write_behind

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
_AHEAD = 2  # tensors that are being read from the disk while one is merged
_GULP = 1 << 20  # bytes read at a time to no other end than to have them in the kernel's cache
_KEPT_OPEN = 64 << 20  # bytes made before files are closed: what is read stays mapped, but to open reads a whole header
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SCALES = "evomerge_stack.json"
"""The file beside a stack's weights with those scales of the residual stream that are not in the weights."""
_NOT_COPIED = (  # the base's weights in any form, and what was written about them
    ".safetensors",
    ".index.json",
    *(pattern[1:] for pattern in _PICKLES),
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".md",
    SCALES,
)


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
            gulp = memoryview(bytearray(min(_GULP, end - begin)))
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
        pickles = sorted(entry.name for pattern in _PICKLES for entry in self.path.glob(pattern))
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


# -- layout ------------------------------------------------------------------------------------------------------------

_WORDS = {
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv"),
    "mlp": ("mlp", "ffn", "feed_forward", "feedforward", "intermediate", "output", "experts", "moe", "fc1", "fc2"),
}


class Layout:
    """Which tensor is in which block of the model's stack, and of what kind; found from names and shapes alone."""

    def __init__(self, info: Mapping[str, TensorInfo]) -> None:
        """Read the names and shapes of a checkpoint's tensors."""
        stacks: dict[str, dict[int, int]] = {}
        for name, entry in info.items():
            parts = name.split(".")
            for i, part in enumerate(parts):
                if part.isdecimal():
                    sizes = stacks.setdefault(".".join(parts[:i]), {})
                    sizes[int(part)] = sizes.get(int(part), 0) + entry.numel
                    break  # the outermost number is the block; numbers inside it are experts or sub-layers
        whole = {
            prefix: sizes
            for prefix, sizes in stacks.items()
            if sorted(sizes) == list(range(len(sizes))) and len(sizes) > 1
        }
        self.stacks = tuple(sorted(whole, key=lambda prefix: -sum(whole[prefix].values())))
        self.prefix = self.stacks[0] if self.stacks else None
        self.blocks = len(whole[self.prefix]) if self.prefix is not None else 1
        self._places = {name: self._place(name, entry) for name, entry in info.items()}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensor that the model has, in the vocabulary's order."""
        present = {place.kind for place in self._places.values()}
        return tuple(kind for kind in KINDS if kind in present)

    def place(self, name: str) -> Place:
        """Return where the tensor is."""
        return self._places[name]

    def _place(self, name: str, entry: TensorInfo) -> Place:
        block = self.block(name)
        kind = _kind(name, len(entry.shape), inside=block is not None)
        if block is None:
            block = 0 if "embed" in name.lower() or kind == "embedding" else self.blocks - 1
            return Place(block, self.blocks, kind, inside=False)
        return Place(block, self.blocks, kind)

    def block(self, name: str) -> int | None:
        """Return the number of the block that the tensor is in, or None outside of the stack."""
        return None if self.prefix is None else block_number(name, self.prefix)


def block_number(name: str, prefix: str) -> int | None:
    """Return the number after `prefix` in a tensor's name, or None where the name begins otherwise."""
    if prefix and not name.startswith(f"{prefix}."):
        return None
    number = name[len(prefix) + 1 if prefix else 0 :].partition(".")[0]
    return int(number) if number.isdecimal() else None


def _kind(name: str, dimensions: int, *, inside: bool) -> str:
    words = re.split(r"[._]", name.lower())
    if "norm" in name.lower() or any(re.fullmatch(r"ln\d*|ln|layernorm", word) for word in words):
        return "norm"
    if not inside:
        if any("embed" in word or word in ("wte", "wpe", "token", "position") for word in words):
            return "embedding"
        if any(word in ("head", "classifier", "score", "pooler", "cls", "predictions") for word in words):
            return "head"
        return "other"
    for kind in ("attention", "mlp"):
        if any(word in name.lower() for word in _WORDS[kind]):
            return kind
    return "other" if dimensions < 2 else "mlp"


# -- writing -----------------------------------------------------------------------------------------------------------


def check_free(folder: Path) -> None:
    """Raise `CheckpointError` if something is at `folder` already, other than an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder}: exists and is not empty; give another folder, or remove it first"
        raise CheckpointError(msg)


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    like: Path,
    extra: Mapping[str, str | bytes] | None = None,
    shard_bytes: int = 2 << 30,
    sources: Sequence[Folder] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a checkpoint as a folder that transformers loads; the folder appears whole or not at all.

    Everything beside the weights (configuration, tokenizer) is copied from the folder `like`; `extra` maps file names to
    what to write over it. One tensor is made while others are written, and while the pages of the next ones are read
    from `sources`, the folders that `checkpoint` is made of: a few tensors are in memory, never a shard of
    `shard_bytes`. `progress` gets bytes made and in all. Raises `CheckpointError` if `folder` exists and is not empty,
    and if the disk is too full: before anything is written, unless the space goes meanwhile.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shards = _split(checkpoint.info, shard_bytes)
    beside = [entry for entry in sorted(like.iterdir()) if entry.is_file() and not entry.name.endswith(_NOT_COPIED)]
    needed = sum(entry.nbytes for entry in checkpoint.info.values()) + sum(entry.stat().st_size for entry in beside)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        msg = f"{folder}: needs {needed:,} bytes, its disk has {free:,}; make room, or give a folder on another disk"
        raise CheckpointError(msg)
    try:
        with files.new_folder(folder) as new:
            for entry in beside:
                shutil.copy(entry, new / entry.name)
            _write_shards(checkpoint, new, shards, sources, progress)
            for file, content in (extra or {}).items():
                (new / file).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            for entry in (*new.iterdir(), new):
                files.sync(entry)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        msg = f"{folder}: {error.strerror} while writing its {needed:,} bytes; make room, or give a folder on another disk"
        raise CheckpointError(msg) from None


def _write_shards(
    checkpoint: Checkpoint,
    folder: Path,
    shards: Sequence[Sequence[str]],
    sources: Sequence[Folder],
    progress: Callable[[int, int], None],
) -> None:
    """Write the tensors named for each shard, and the index where there are several."""
    ahead = iter([name for names in shards for name in names])
    total = sum(entry.nbytes for entry in checkpoint.info.values())
    done = closed = 0
    weight_map = {}
    reader = ThreadPoolExecutor(1, "read")

    def read_ahead(count: int) -> None:
        for name in islice(ahead, count):
            for source in sources:
                reader.submit(source.read_ahead, name)

    try:
        read_ahead(_AHEAD)
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with write_behind(folder / file) as append:
                append(memoryview(_header({name: checkpoint.info[name] for name in names})))
                for name in names:
                    read_ahead(1)
                    append(_bytes(checkpoint, name))
                    weight_map[name] = file
                    done += checkpoint.info[name].nbytes
                    if done - closed >= _KEPT_OPEN:
                        checkpoint.forget()
                        closed = done
                    progress(done, total)
            (folder / file).chmod(0o644)  # whatever the umask: others on a cluster read it too
    finally:
        reader.shutdown(cancel_futures=True)
    checkpoint.forget()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def _split(info: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    """Return the names of each shard's tensors, in the order in which they lie in the file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in info.items():
        if shards[-1] and size + entry.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.nbytes
    rank = {dtype: number for number, dtype in enumerate(DTYPES.values())}
    return [sorted(names, key=lambda name: (rank[info[name].dtype], name)) for names in shards]


def _header(info: Mapping[str, TensorInfo]) -> bytes:
    """Return the start of a safetensors file whose tensors follow in the order of `info`: byte for byte the library's."""
    words = {dtype: word for word, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, entry in info.items():
        end = begin + entry.nbytes
        header[name] = {"dtype": words[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(checkpoint: Checkpoint, name: str) -> memoryview:
    """Return the tensor's elements in row-major order, without a copy where they lie so in memory."""
    tensor, expected = checkpoint.tensor(name).detach(), checkpoint.info[name]
    found = TensorInfo(tuple(tensor.shape), tensor.dtype)
    if found != expected:  # the header, which is written by now, would lie
        msg = (
            f"tensor `{name}`: expected {expected.dtype} of shape {list(expected.shape)}, as its file's header said, "
            f"got {found.dtype} of shape {list(found.shape)}; has the file changed?"
        )
        raise CheckpointError(msg)
    return tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data


def first_difference(left: Mapping[str, TensorInfo], right: Mapping[str, TensorInfo]) -> Sequence[str]:
    """Return the names of tensors that are only in one of two checkpoints, or that differ in shape, in order."""
    return [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left or name not in right or left[name].shape != right[name].shape
    ]
