"""Whole weights of a checkpoint, read once: are they finite, equal to another's, and their sha256; what was read is cached by the files' stamps."""

import contextlib
import filecmp
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge import files, locks
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder, Sparing, all_finite
from evomerge.checkpoints.ties import sample
from evomerge.errors import CheckpointError


def check_finite(folder: Folder | Adapter) -> None:
    """Raise `CheckpointError` naming the first tensor of a checkpoint that holds NaN or infinity; a pass is cached by `stamp`."""
    if isinstance(folder, Adapter):
        check_finite(folder.base)
    names = list(folder.changed if isinstance(folder, Adapter) else folder.info)
    cached = files.cache() / "finite" / stamp(folder, names)
    if cached.is_file():
        return
    read = Sparing([folder])
    for name in names:
        tensor = read.tensor(folder, name)
        if not all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            msg = f"{folder.path}: tensor `{name}` holds {bad} elements that are NaN or infinite, of {tensor.numel()}; such a model cannot be merged"
            raise CheckpointError(msg)
    read.close()
    with contextlib.suppress(OSError):  # without a cache, opening the pool again only takes longer
        files.write(cached, b"")


def same_weights(one: Folder | Adapter, other: Folder | Adapter) -> bool:
    """Return whether two checkpoints of a pool have the same tensors, adapters the same files; reads as far as they are equal."""
    if isinstance(one, Folder) and isinstance(other, Folder):
        read = Sparing((one, other))
        same = one.info == other.info and all(torch.equal(*read.tensors((one, other), name)) for name in one.info)
    else:
        pairs = zip(one.files, other.files, strict=False)
        same = type(one) is type(other) and all(filecmp.cmp(*pair, shallow=False) for pair in pairs)
    for model in (one, other):
        model.forget()
    return same


def nearly_same_weights(one: Folder, path: Path) -> bool:
    """Return whether the checkpoint at `path` has the tensors of another, as far as some elements of each tell, or cannot be read."""
    try:
        other = Folder(path)
    except CheckpointError:
        return True
    if one.info != other.info:
        return one.info.keys() != other.info.keys()  # with other names, nothing is known
    read = Sparing((one, other))
    rows = (tuple(map(sample, read.tensors((one, other), name))) for name in one.info)
    same = all(left == right for left, right in rows)
    read.close()
    return same


def fingerprint(folder: Folder | Adapter) -> str:
    """Return the sha256 of a checkpoint's weights, cached by `stamp`. For an adapter it covers its files and its base."""
    base = [fingerprint(folder.base)] if isinstance(folder, Adapter) else []
    cached = files.cache() / "fingerprints" / stamp(folder, base)
    if cached.is_file():
        return cached.read_text(encoding="ascii")
    with locks.single_flight(cached):
        if cached.is_file():  # another process of this machine has just read them
            return cached.read_text(encoding="ascii")
        digest = hashlib.sha256("".join(base).encode())
        for file in folder.files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        with contextlib.suppress(OSError):  # without a cache, opening the pool again only takes longer
            files.write(cached, digest.hexdigest())
    return digest.hexdigest()


def stamp(folder: Folder | Adapter, about: Sequence[str] = ()) -> str:
    """Return a key of a checkpoint's files by their paths, sizes and modification times, and of what it is `about`."""
    stamps: list[Any] = [*about]
    for file in folder.files:
        stat = file.resolve().stat()
        stamps.append([str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
