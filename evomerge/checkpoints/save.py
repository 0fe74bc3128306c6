"""save: write a checkpoint as a folder that transformers loads, one tensor at a time."""

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from evomerge import files
from evomerge.checkpoints.beside import files_beside
from evomerge.checkpoints.folder import INDEX, WEIGHTS, Checkpoint, Folder, all_finite
from evomerge.checkpoints.header import DTYPES, TensorInfo
from evomerge.errors import CheckpointError

_AHEAD = 2  # tensors that are read from the disk while one is merged
# Bytes written between two closings of the sources: pages stay mapped, but opening reads a header.
_OPEN_BYTES = 64 << 20
# Bytes between two syncs. With many dirty pages the kernel stalls the writer for longer than the disk needs.
_PIECE = 32 << 20
SHARD_BYTES = 2 << 30
"""Bytes of tensors in one file by default."""
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SCALES = "evomerge_stack.json"
"""The file beside a stack's weights with the scales of the residual stream that are not in the weights."""
STITCHES = "stitches.safetensors"
"""The file beside a stitched stack's weights with the affine maps of its residual stream."""


def parse_size(text: str) -> int:
    """Return the bytes that `5GB`, `500 MiB` or a plain number says: GB is 10^9, GiB 2^30. Raises `CheckpointError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip(), re.IGNORECASE)
    unit = None if match is None else _UNITS.get(match[2].upper())
    if match is None or unit is None or (count := int(float(match[1]) * unit)) < 1:
        raise CheckpointError(f"size {text!r}: expected a number and a unit, such as `5GB`, `500MB` or `2GiB`")
    return count


def check_free(folder: Path) -> None:
    """Raise `CheckpointError` if `folder` exists, unless it is an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not empty; give another folder, or remove it first")


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    like: Path,
    tokenizer: Path | None = None,
    extra: Mapping[str, str | bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    sources: Sequence[Folder] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a checkpoint as a folder that transformers loads; the folder appears complete or not at all.

    The files beside the weights (configuration, tokenizer) are copied from the folder `like`, those about text from
    `tokenizer`, see `files_beside`; `extra` maps file names to contents that replace them. One tensor is computed while others are written, and while the pages of the next ones are
    read from `sources`, the folders that `checkpoint` reads: a few tensors are in memory, never a shard of
    `shard_bytes`. `progress` receives the bytes done and the total. Raises `CheckpointError` if `folder` exists and is not
    empty, if a file in `like` links out of it, if the disk is too full, before anything is written where possible, and for a
    tensor with NaN or infinity.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shards = _split(checkpoint.info, shard_bytes)
    beside = {name: file for name, file in files_beside(like, tokenizer).items() if name not in (SCALES, STITCHES)}
    sizes = [file.stat().st_size for file in beside.values()]
    needed = sum(entry.nbytes for entry in checkpoint.info.values()) + sum(sizes)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        msg = f"{folder}: needs {needed:,} bytes, its disk has {free:,}; make room, or give a folder on another disk"
        raise CheckpointError(msg)
    try:
        with files.new_folder(folder) as new:
            for name, file in beside.items():
                _copy(file, new, name)
            _write_shards(checkpoint, new, shards, sources, progress)
            for name, content in (extra or {}).items():
                (new / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            for entry in (*new.rglob("*"), new):
                files.sync(entry)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        msg = f"{folder}: {error.strerror} while writing its {needed:,} bytes; make room, or give a folder on another disk"
        raise CheckpointError(msg) from None


def _copy(file: Path, folder: Path, name: str) -> None:
    for inner in reversed(Path(name).parents[:-1]):
        (folder / inner).mkdir(exist_ok=True)
        (folder / inner).chmod(0o755)  # whatever the umask, as the folder itself
    shutil.copy(file, folder / name)


def _write_shards(
    checkpoint: Checkpoint,
    folder: Path,
    shards: Sequence[Sequence[str]],
    sources: Sequence[Folder],
    progress: Callable[[int, int], None],
) -> None:
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
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with write_behind(folder / file) as append:
                append(memoryview(_header({name: checkpoint.info[name] for name in names})))
                for name in names:
                    read_ahead(1)
                    append(_bytes(checkpoint, name))
                    weight_map[name] = file
                    done += checkpoint.info[name].nbytes
                    if done - closed >= _OPEN_BYTES:
                        checkpoint.forget()
                        closed = done
                    progress(done, total)
            (folder / file).chmod(0o644)  # whatever the umask: other users of a cluster read it, too
    finally:
        reader.shutdown(cancel_futures=True)
    checkpoint.forget()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))


def _split(info: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
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
    """Return the header of a safetensors file with tensors in the order of `info`, byte for byte as the library writes it."""
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
    tensor, expected = checkpoint.tensor(name).detach(), checkpoint.info[name]
    actual = TensorInfo(tuple(tensor.shape), tensor.dtype)
    if actual != expected:  # the header that is already written would be wrong
        msg = f"tensor `{name}`: expected {expected.dtype} of shape {list(expected.shape)}, as the header of its file says, got {actual.dtype} of shape {list(actual.shape)}; has the file changed?"
        raise CheckpointError(msg)
    if not all_finite(tensor):
        largest = torch.finfo(tensor.dtype).max
        msg = (
            f"tensor `{name}` of the result holds {int((~tensor.isfinite()).sum())} elements that are NaN or infinite, of {tensor.numel()}; expected "
            f"finite numbers. The largest number of {str(tensor.dtype).removeprefix('torch.')}, by default the base's dtype, is {largest:.3g}; "
            "type `--dtype bfloat16` or `--dtype float32`, or give smaller weights"
        )
        raise CheckpointError(msg)
    return tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data


@contextlib.contextmanager
def write_behind(path: Path, most: int = 32 << 20) -> Iterator[Callable[[memoryview], None]]:
    """Yield a function that appends bytes to the new file `path` in a separate thread; it is durable when the block ends.

    The bytes must not change until then. At most `most` of them wait to be written, or one larger view: further appends
    block. An error of the thread (`OSError`) is raised by a later append, or at the end of the `with` block. If the block
    raises, bytes that still wait are dropped, and the file is left incomplete.
    """
    waiting: deque[tuple[Future[None], int]] = deque()
    held = unsynced = 0
    stopped = threading.Event()

    def write(data: memoryview) -> None:
        nonlocal unsynced
        while data and not stopped.is_set():
            written = file.write(data[: _PIECE - unsynced])
            data = data[written:]
            unsynced += written
            if unsynced == _PIECE:
                os.fsync(file.fileno())
                unsynced = 0

    def settle() -> None:
        nonlocal held
        future, size = waiting.popleft()
        future.result()
        held -= size

    def append(data: memoryview) -> None:
        nonlocal held
        while waiting and (waiting[0][0].done() or held + data.nbytes > most):
            settle()
        waiting.append((thread.submit(write, data), data.nbytes))
        held += data.nbytes

    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(1, "write") as thread:
        try:
            yield append
            while waiting:
                settle()
            os.fsync(file.fileno())
        except BaseException:
            stopped.set()
            thread.shutdown(cancel_futures=True)
            raise
