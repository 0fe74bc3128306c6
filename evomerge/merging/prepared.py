"""Store: what is prepared of a pool, kept in memory for the search and on disk, by content, for the next one."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from evomerge.merging.stage import Prepared
from evomerge.recipe import canonical_json

T = TypeVar("T")

Key = tuple[str | float, ...]

_WORTH = 1 << 20
"""Numbers of a tensor from which on its preparation is worth a file: smaller ones are sooner prepared than read."""

_KEPT = 1 << 14
"""How many measures are kept at most."""


class Store:
    """What is prepared for the merges of one pool."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keep large things in files in `folder`, if there is one, and the rest in memory."""
        self._folder = folder
        self._prepared: dict[Key, Prepared] = {}
        self._measures: dict[Hashable, Any] = {}

    def prepared(self, key: Key, numel: int, make: Callable[[], Prepared]) -> Prepared:
        """Return what `make` prepares of a tensor of `numel` numbers under a key that says all it depends on, by content."""
        if key not in self._prepared:
            found = self._on_disk(key, make) if self._folder is not None and numel >= _WORTH else make()
            self._prepared[key] = found
        return self._prepared[key]

    def measure(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` measures, under a key that says all it depends on; what was asked first is forgotten first."""
        if key not in self._measures:
            found = make()
            while len(self._measures) >= _KEPT:
                del self._measures[next(iter(self._measures))]
            self._measures[key] = found
        return self._measures[key]  # type: ignore[no-any-return]  # what was kept under this key

    def _on_disk(self, key: Key, make: Callable[[], Prepared]) -> Prepared:
        assert self._folder is not None
        name = hashlib.sha256(canonical_json(key).encode()).hexdigest()
        file = self._folder / name[:2] / f"{name}.safetensors"
        with contextlib.suppress(OSError, SafetensorError):  # not there, or broken by a crash: made again
            return load_file(file)
        made = make()
        with contextlib.suppress(OSError):  # a cache that cannot be written to costs time, nothing else
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=file.parent)
            os.close(handle)
            try:
                save_file(made, temporary)
                Path(temporary).replace(file)
            finally:
                Path(temporary).unlink(missing_ok=True)
            return load_file(file)  # as a view of the file: what was made takes memory of its own
        return made
