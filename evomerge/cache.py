"""The cache on this machine: prepared tables of merges, and statistics; the least recently used go first."""

import fcntl
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evomerge import files

LIMIT = 64 << 30
"""Bytes of the cache above which collecting statistics removes those that have not been used for longest."""

_FRESH = 3600.0
"""Seconds after its last use in which an entry stays: a search may be about to read it again."""


@dataclass(frozen=True, slots=True)
class Cached:
    """One entry: a file of prepared tables, or the folder of a statistic."""

    what: str
    path: Path
    nbytes: int
    used: float
    """When it was last used, in seconds since 1970."""

    @property
    def in_use(self) -> bool:
        """Whether a process reads or writes it now."""
        with suppress(OSError), (self.path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def remove(self) -> None:
        """Delete it. A process that has mapped its files keeps their content."""
        with suppress(OSError):
            if self.path.is_dir():
                shutil.rmtree(self.path)
            else:
                self.path.unlink()


def entries() -> list[Cached]:
    """Return what is in the cache and can be made again, the least recently used first."""
    folder = files.cache()
    found = [
        *_read("prepared", folder.glob("prepared/*/*.safetensors")),
        *_read("statistics", folder.glob("statistics/*/*")),
    ]
    return sorted(found, key=lambda entry: entry.used)


def prune(limit: int, keep: Collection[Path] = (), *, fresh: float = _FRESH) -> list[Cached]:
    """Remove the least recently used entries until the cache has at most `limit` bytes, and return those that were removed.

    Entries in `keep`, in use now, or used in the last `fresh` seconds stay, whatever their size.
    """
    known, removed, now = entries(), [], time.time()
    held = sum(entry.nbytes for entry in known)
    for entry in known:
        if held <= limit:
            break
        if entry.path not in keep and now - entry.used >= fresh and not entry.in_use:
            entry.remove()
            held -= entry.nbytes
            removed.append(entry)
    return removed


def _read(what: str, paths: Iterator[Path]) -> Iterator[Cached]:
    for path in paths:
        with suppress(OSError):  # another process removes it
            inside = [path, *path.iterdir()] if path.is_dir() else [path]
            stats = [file.stat() for file in inside]
            nbytes = sum(stat.st_size for file, stat in zip(inside, stats, strict=True) if file.is_file())
            yield Cached(what, path, nbytes, max(stat.st_mtime for stat in stats))
