"""Store: cache of the tables prepared of a pool, in memory for this search, and on disk by content for the next."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evomerge import locks, memory
from evomerge.merging.site import Prepared
from evomerge.recipe import canonical_json

T = TypeVar("T")

Key = tuple[str | float, ...]

_MIN_ELEMENTS = 1 << 16
"""Minimum number of elements for which caching on disk pays off."""

_MAX_MEASURES = 1 << 14
"""Maximum number of cached measurements."""


class Store:
    """Tables and measurements of the merges of one pool."""

    def __init__(self, folder: Path | None = None) -> None:
        """Cache tables of large tensors in files in `folder`, if there is one, and the rest in memory."""
        self._folder = folder
        self._prepared: dict[Key, Prepared] = {}
        self._measures: dict[Hashable, Any] = {}

    def prepared(self, key: Key, numel: int, make: Callable[[], Prepared]) -> Prepared:
        """Return the tables that `make` prepares of a tensor of `numel` elements; `key` is all that they depend on, by content."""
        if key not in self._prepared:
            on_disk = self._folder is not None and numel >= _MIN_ELEMENTS
            self._prepared[key] = self._on_disk(key, make) if on_disk else make()
        return self._prepared[key]

    def small(self, key: Hashable, most: int, make: Callable[[], Prepared]) -> Prepared:
        """Return the tables of `make`, which are kept in memory if they have at most `most` bytes."""
        if key in self._measures:
            return self._measures[key]  # type: ignore[no-any-return]  # the type of this key's value
        tables = make()
        if sum(table.nbytes for table in tables.values()) <= most:
            self._measures[key] = tables
        return tables

    def measure(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the measurement of `make`; `key` is all that it depends on. The oldest are dropped first."""
        if key not in self._measures:
            result = make()
            while len(self._measures) >= _MAX_MEASURES:
                del self._measures[next(iter(self._measures))]
            self._measures[key] = result
        return self._measures[key]  # type: ignore[no-any-return]  # the type of this key's value

    def _on_disk(self, key: Key, make: Callable[[], Prepared]) -> Prepared:
        assert self._folder is not None
        name = hashlib.sha256(canonical_json(key).encode()).hexdigest()
        file = self._folder / name[:2] / f"{name}.safetensors"
        if (known := _read(file)) is not None:
            return known
        with locks.single_flight(file):  # the other workers of this machine need it now, too
            if (known := _read(file)) is not None:
                return known
            tables = make()
            with contextlib.suppress(OSError):  # an unwritable cache only costs time
                file.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".", dir=file.parent) as temporary:
                    save_file(tables, Path(temporary, name))
                    Path(temporary, name).chmod(0o444)  # a change in place would end the processes that map it
                    Path(temporary, name).replace(file)
                tables = load_file(file)  # mapped from the file, so that the tables need no memory
            memory.give_back()  # what was needed to prepare them
            return tables


def _read(file: Path) -> Prepared | None:
    """Return the tables in a file, mapped; None if it is missing, or broken by a crash: they are prepared again."""
    try:
        tables = load_file(file)
    except (OSError, SafetensorError):
        return None
    with contextlib.suppress(OSError):  # of another user
        os.utime(file)  # the latest use, by which the cache is pruned
    return tables
