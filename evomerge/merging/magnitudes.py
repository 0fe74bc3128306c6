"""Exact selection of the k-th largest magnitude from streams of any length, in memory that does not grow with them.

A radix histogram: for |x| >= 0 the order of float32 values is the order of their bit patterns. The upper 16 bits are
counted once; for a given k the lower 16 bits are counted only inside the one bin that holds the k-th value.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Chunks = Callable[[], Iterable[torch.Tensor]]
"""Starts a pass over K parallel streams: float32 chunks `(K, n)`, each n as it comes."""

_BINS = 1 << 16
_KEPT = 1 << 22  # distinct magnitudes whose counts are kept for the next question: some 40 MB


class Magnitudes:
    """The magnitudes of K streams of numbers. They are read once, and once more for bins that were not asked for lately."""

    def __init__(self, chunks: Chunks) -> None:
        """Count the streams that `chunks` starts; it must yield the same numbers at every pass."""
        self._chunks = chunks
        counts = np.zeros((0, _BINS), dtype=np.int64)
        for chunk in chunks():
            if not len(counts):
                counts = np.zeros((len(chunk), _BINS), dtype=np.int64)
            for i, bits in enumerate(_bits(chunk)):
                counts[i] += np.bincount(bits >> 16, minlength=_BINS)
        self._upper = [_Counts(row) for row in counts]
        self._lower: dict[tuple[int, int], _Counts] = {}

    @property
    def count(self) -> int:
        """How many numbers each stream has."""
        return self._upper[0].total if self._upper else 0

    def largest(self, ks: Sequence[int]) -> list[float]:
        """Return each stream's `k`-th largest magnitude, k from 1 to `count`; infinity for k = 0: nothing is as large."""
        places = {i: self._upper[i].largest(min(k, self.count)) for i, k in enumerate(ks) if k > 0 and self.count}
        self._count_lower([(i, upper) for i, (upper, _) in places.items()])
        found = [float("inf")] * len(ks)
        for i, (upper, above) in places.items():
            lower, _ = self._lower[i, upper].largest(min(ks[i], self.count) - above)
            found[i] = float(np.array((upper << 16) | lower, dtype=np.int32).view(np.float32))
        return found

    def _count_lower(self, bins: list[tuple[int, int]]) -> None:
        """Make sure that the lower halves inside these bins (stream, upper half) are counted: in one pass for them all."""
        missing = {key: np.zeros(_BINS, dtype=np.int64) for key in bins if key not in self._lower}
        if not missing:
            return
        for chunk in self._chunks():
            bits = _bits(chunk)
            for row, upper in missing:
                inside = bits[row][bits[row] >> 16 == upper]
                if len(inside):
                    missing[row, upper] += np.bincount(inside & 0xFFFF, minlength=_BINS)
        self._lower.update({key: _Counts(counts) for key, counts in missing.items()})
        kept = sum(counts.size for counts in self._lower.values())
        for key in [key for key in self._lower if key not in bins]:  # from the oldest on
            if kept <= _KEPT:
                break
            kept -= self._lower.pop(key).size


class _Counts:
    """How often each 16-bit number occurs, without those that never do."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        bins = np.flatnonzero(counts)[::-1]  # from the largest down
        self._bins = bins.astype(np.uint16)
        self._from_top = np.cumsum(counts[bins])
        self.size = len(bins)
        self.total = int(counts.sum())

    def largest(self, k: int) -> tuple[int, int]:
        """Return the k-th largest number, and how many are larger than it."""
        at = int(np.searchsorted(self._from_top, k))
        return int(self._bins[at]), int(self._from_top[at - 1]) if at else 0


def _bits(chunk: torch.Tensor) -> NDArray[np.int32]:
    return chunk.abs().contiguous().numpy().view(np.int32)
