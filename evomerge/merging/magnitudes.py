"""Exact selection of the k-th largest magnitude from a stream of any length, in O(64K) memory.

A radix histogram: for |x| >= 0 the order of float32 values is the order of their bit patterns. The upper 16 bits are
counted once; for a given k the lower 16 bits are counted only inside the one bin that holds the k-th value.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

Chunks = Callable[[], Iterable[torch.Tensor]]
"""Starts a pass over a stream of float32 chunks of any shapes."""

_BINS = 1 << 16


class Magnitudes:
    """The magnitudes of a stream of numbers. The stream is read once, and once more for each new bin asked for."""

    def __init__(self, chunks: Chunks) -> None:
        """Count the stream that `chunks` starts; it must yield the same numbers at every pass."""
        self._chunks = chunks
        self._upper = _Counts(_bits(chunk) >> 16 for chunk in chunks())
        self._lower: dict[int, _Counts] = {}

    @property
    def count(self) -> int:
        """How many numbers the stream has."""
        return self._upper.total

    def largest(self, k: int) -> float:
        """Return the `k`-th largest magnitude, k from 1 to `count`; infinity for k = 0 (nothing is as large)."""
        if k <= 0 or self.count == 0:
            return float("inf")
        upper, above = self._upper.largest(min(k, self.count))
        if upper not in self._lower:
            bits = (_bits(chunk) for chunk in self._chunks())
            self._lower[upper] = _Counts(chunk[chunk >> 16 == upper] & 0xFFFF for chunk in bits)
        lower, _ = self._lower[upper].largest(min(k, self.count) - above)
        return float(np.array((upper << 16) | lower, dtype=np.int32).view(np.float32))


class _Counts:
    """How often each 16-bit number occurs, without those that never do."""

    def __init__(self, chunks: Iterable[NDArray[np.int32]]) -> None:
        counts = np.zeros(_BINS, dtype=np.int64)
        for chunk in chunks:
            counts += np.bincount(chunk, minlength=_BINS)
        self._bins = np.flatnonzero(counts)[::-1]  # from the largest down
        self._from_top = np.cumsum(counts[self._bins])
        self.total = int(counts.sum())

    def largest(self, k: int) -> tuple[int, int]:
        """Return the k-th largest number, and how many are larger than it."""
        at = int(np.searchsorted(self._from_top, k))
        return int(self._bins[at]), int(self._from_top[at - 1]) if at else 0


def _bits(chunk: torch.Tensor) -> NDArray[np.int32]:
    return chunk.abs().reshape(-1).contiguous().numpy().view(np.int32)
