"""A checkpoint is a lazy mapping from tensor names to tensors; a `Folder` is one in an ordinary Hugging Face folder.

Such a folder holds safetensors (one file, or shards with an index), `config.json`, and the tokenizer's files. It is
untrusted: weights load only from safetensors, headers are checked before a tensor is read, and no path leaves the folder.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from evomerge.checkpoints.header import TensorInfo, read_header
from evomerge.errors import CheckpointError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OPEN_BYTES = 8 << 20
"""Bytes that are read before files are closed: opening one again reads its header."""
_PREFETCH_BYTES = 1 << 20  # bytes read at a time only to have them in the kernel's cache


class Checkpoint(Protocol):
    """A model's tensors by name, each read or computed only when it is requested. Implementations inherit `write`."""

    info: Mapping[str, TensorInfo]
    """Shape and storage dtype of every tensor, in a fixed order."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its storage dtype. It may be a view of a file: never write into it."""

    def write(self, name: str, out: torch.Tensor) -> None:
        """Copy the tensor into `out`, of the same shape and any floating-point dtype, rounded to its storage dtype first."""
        out.copy_(self.tensor(name))

    def forget(self) -> None:
        """Close files and drop caches; the next read opens the files again."""


class Sparing:
    """Reads tensors one after the other, and closes the files so often that few pages of them count as memory of this process."""

    def __init__(self, models: Sequence[Checkpoint]) -> None:
        """Take the checkpoints whose files are closed. What was read stays valid as long as it is referenced."""
        self._models, self._read = models, 0

    def tensors(self, models: Sequence[Checkpoint], name: str) -> list[torch.Tensor]:
        """Return the tensor of each of some `models`. If it is no small one, the files were closed before."""
        count = sum(model.info[name].nbytes for model in models)
        if self._read and self._read + count > _OPEN_BYTES:
            self.close()
        self._read += count
        return [model.tensor(name) for model in models]

    def tensor(self, model: Checkpoint, name: str) -> torch.Tensor:
        """Return the tensor of one model."""
        return self.tensors([model], name)[0]

    def close(self) -> None:
        """Close the files."""
        for model in self._models:
            model.forget()
        self._read = 0


_FITTING = 1 << 18
"""Elements that are read twice, and stay in a processor's cache between."""

_INFINITIES = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}
"""By dtype, the integers as wide, and the bits of infinity."""


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.is_cpu and tensor.is_contiguous() and tensor.dtype in _INFINITIES:
        # As integers, NaN and infinity are the largest of either sign.
        integers, infinity = _INFINITIES[tensor.dtype]
        bits = tensor.detach().view(-1).view(integers).numpy()
        unsigned = bits.view(f"u{bits.dtype}")
        parts = [slice(first, first + _FITTING) for first in range(0, len(bits), _FITTING)]
        limit = infinity + 2 ** (8 * bits.itemsize - 1)
        return all(bits[part].max() < infinity and unsigned[part].max() < limit for part in parts)
    least, most = tensor.aminmax()
    return bool(least.isfinite() & most.isfinite())


class Computed(Checkpoint):
    """A checkpoint whose tensors a function computes from those of other checkpoints."""

    def __init__(
        self,
        info: Mapping[str, TensorInfo],
        compute: Callable[[str], torch.Tensor],
        sources: Sequence[Checkpoint] = (),
    ) -> None:
        """Take `compute(name)` for the tensor `name`, described by `info`; forgetting it forgets `sources`."""
        self.info, self._compute, self._sources = info, compute, sources

    def tensor(self, name: str) -> torch.Tensor:
        """The computed tensor."""
        return self._compute(name)

    def forget(self) -> None:
        """Close the files of the sources."""
        for source in self._sources:
            source.forget()


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its name and its bytes there."""

    file: Path
    name: str
    span: tuple[int, int]
    info: TensorInfo


class Folder(Checkpoint):
    """A checkpoint in a Hugging Face folder.

    `info` has the names in the files, unless a pool gives them other ones: see `read_as`.
    """

    def __init__(self, path: str | Path) -> None:
        """Read and check the headers in the folder at `path`; no tensor is read. Raises `CheckpointError`."""
        self.path = Path(path)
        if self.path.suffix == ".gguf" and self.path.is_file():
            raise CheckpointError(_gguf(self.path))
        if not self.path.is_dir():
            msg = f"{self.path}: no such folder; expected a checkpoint folder with config.json and safetensors"
            raise CheckpointError(msg)
        stored: dict[str, Stored] = {}
        for shard, names in self._shards().items():
            header = read_header(shard)
            for name in header.info if names is None else names:
                if name not in header.info:
                    msg = f"{self.path}: the index puts tensor `{name}` into {shard.name}, which does not hold it; download the checkpoint again"
                    raise CheckpointError(msg)
            for name in header.info:  # also those that the index leaves out, which transformers loads
                if name in stored:
                    msg = f"{self.path}: tensor `{name}` is in {stored[name].file.name} and in {shard.name}, and loaders differ in which they take; remove it from one, or download the checkpoint again"
                    raise CheckpointError(msg)
                stored[name] = Stored(shard, name, header.spans[name], header.info[name])
        self.stored: Mapping[str, Stored] = dict(sorted(stored.items()))
        self._named = dict(self.stored)
        self.info: Mapping[str, TensorInfo] = {name: entry.info for name, entry in self._named.items()}
        self._open: dict[Path, Any] = {}
        self._views: dict[str, torch.Tensor] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        path = self.path / "config.json"
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; expected the model's configuration beside its weights")
        return read_object(path)

    @property
    def settings(self) -> Path:
        """The folder with `config.json`."""
        return self.path

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, in order of name."""
        return tuple(sorted({entry.file for entry in self.stored.values()}))

    def read_as(self, names: Mapping[str, tuple["Folder", str]]) -> None:
        """Exchange the names of the tensors: each of `names` is a tensor in the files of a folder, this one or another."""
        self._named = {name: folder.stored[stored] for name, (folder, stored) in sorted(names.items())}
        self.info = {name: entry.info for name, entry in self._named.items()}
        self.forget()

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor as a view of the file, in its storage dtype."""
        if name not in self._views:
            entry = self._named[name]
            if entry.file not in self._open:
                self._open[entry.file] = open_weights(entry.file)
            self._views[name] = self._open[entry.file].get_tensor(entry.name)
        return self._views[name]

    def read_ahead(self, name: str) -> None:
        """Load the tensor's pages into the kernel's cache; an unknown tensor is ignored.

        The bytes are read, not advised: after `madvise` the pages are small, which are slower to map. Pieces that are there
        already, as far as their first and last byte tell, are left out.
        """
        if name in self.info:
            begin, end = self._named[name].span
            buffer = memoryview(bytearray(min(_PREFETCH_BYTES, end - begin)))
            with contextlib.suppress(OSError), self._named[name].file.open("rb", buffering=0) as file:
                while begin < end:
                    piece = buffer[: end - begin]
                    if not all(_cached(file.fileno(), at) for at in (begin, begin + len(piece) - 1)):
                        file.seek(begin)
                        if not file.readinto(piece):
                            return
                    begin += len(piece)

    def forget(self) -> None:
        """Close the files, whose pages then no longer count as memory of this process; reading opens them again."""
        self._open.clear()
        self._views.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_views": {}}

    def _shards(self) -> dict[Path, list[str] | None]:
        """Return the files with weights, and which tensors to take of each: None for all.

        As in transformers, `model.safetensors` goes before an index.
        """
        index = self.path / INDEX
        config = self.path / "config.json"
        named = read_object(config).get("transformers_weights") if config.exists() else None
        if named not in (None, WEIGHTS, INDEX):
            msg = f"{self.path}: config.json names other weights than usual (`transformers_weights`: {named!r}); rename that file to {WEIGHTS}, and remove the setting"
            raise CheckpointError(msg)
        if index.exists() and not (self.path / WEIGHTS).is_file():
            try:
                pairs = [(str(name), str(shard)) for name, shard in read_object(index)["weight_map"].items()]
            except (KeyError, AttributeError) as error:
                msg = f"{index}: not a safetensors index ({type(error).__name__}); download the checkpoint again"
                raise CheckpointError(msg) from None
            grouped: dict[Path, list[str]] = {}
            for name, shard in sorted(pairs):
                grouped.setdefault(self._shard(shard, index), []).append(name)
            return dict(grouped)
        files = sorted(self.path.glob("*.safetensors"))
        if (self.path / WEIGHTS) in files:
            files = [self.path / WEIGHTS]
        elif (self.path / "adapter_config.json").exists():
            msg = f"{self.path}: a LoRA adapter, not a whole model; merge it into its base first (peft: merge_and_unload, save_pretrained), or give it as an expert of that base"
            raise CheckpointError(msg)
        if len(files) == 1:
            return {self._shard(files[0].name, self.path): None}
        if files:
            msg = f"{self.path}: {len(files)} safetensors files but no {INDEX}; expected one file, or the index that says which tensor is where"
            raise CheckpointError(msg)
        pickles = sorted(entry.name for pattern in PICKLES for entry in self.path.glob(pattern))
        if pickles:
            msg = f"{self.path}: only pickle weights ({pickles[0]}), which can run code when read; convert them with transformers' save_pretrained and give that folder"
            raise CheckpointError(msg)
        if quantised := sorted(self.path.glob("*.gguf")):
            raise CheckpointError(_gguf(quantised[0]))
        raise CheckpointError(f"{self.path}: no safetensors file; expected model.safetensors, or shards with an index")

    def _shard(self, name: str, index: Path) -> Path:
        """Return the path of a shard, whose name must be a plain file name in this folder."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: names the shard {name!r}; expected a file name inside the folder, no path")
        path = self.path / name
        try:
            exists = path.is_file()
        except (OSError, ValueError):  # a name that is too long, or no text
            exists = False
        if not exists:
            raise CheckpointError(f"{self.path}: shard {name[:200]} is missing; download the checkpoint again")
        check_inside(path)
        return path


def _cached(file: int, at: int) -> bool:
    """Return whether a byte of an open file is in the kernel's cache, as far as the system tells."""
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except (AttributeError, OSError):  # macOS cannot be asked; elsewhere, the byte would have to be read from the disk
        return False


def check_inside(path: Path, folder: Path | None = None) -> None:
    """Raise `CheckpointError` if the file at `path` is a link out of its checkpoint's folder, by default that of the file.

    Links to the Hugging Face cache are allowed: snapshots/REVISION/FILE links to blobs/HASH of the same model.
    """
    real, home = path.resolve(), (folder or path.parent).resolve()
    if not real.is_relative_to(home) and not real.is_relative_to(home.parent.parent / "blobs"):
        raise CheckpointError(f"{path}: links to {real}, outside of the checkpoint's folder; put the file itself there")


def open_weights(file: Path) -> Any:
    """Return the opened safetensors file, whose header was read before. Raises `CheckpointError`."""
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be opened ({error}); it was readable before: has it changed?") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a checkpoint. Raises `CheckpointError` where it cannot be read or holds something else.

    A link out of the file's folder is not followed, and what is no regular file, such as a pipe, is not opened.
    """
    if path.is_symlink():
        check_inside(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file with a JSON object")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, too many digits, too deep
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def differences(
    left: Mapping[str, TensorInfo | torch.Tensor], right: Mapping[str, TensorInfo | torch.Tensor]
) -> list[tuple[str, str, str]]:
    """Return name, left shape and right shape, in words, of each tensor that two checkpoints do not both have alike."""
    sides = [{name: f"shape {list(tensor.shape)}" for name, tensor in side.items()} for side in (left, right)]
    rows = [(name, *(side.get(name, "missing") for side in sides)) for name in sorted(left.keys() | right.keys())]
    return [(name, was, came) for name, was, came in rows if was != came]


def _gguf(file: Path) -> str:
    return (
        f"{file.parent}: only GGUF weights ({file.name}), which are quantised and for other programs; give the weights that they were "
        f"made of, or type: AutoModelForCausalLM.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r}).save_pretrained(NEW), and give NEW"
    )
