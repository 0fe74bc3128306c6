"""Exact selection of the k-th largest of very many numbers, without sorting them for every query.

A radix of two digits: a float32 has a key of 32 bits in the same order, of which the upper half picks a bin and the lower
half a number in it. `Ranked` reads tables that were sorted once, tensor by tensor, for any union of tensors; `Streamed`
reads numbers that exist only for one candidate, in two passes and constant memory.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_BINS = 1 << 16

Table = dict[str, torch.Tensor]


def rank(numel: int, streams: Iterable[Iterable[torch.Tensor]]) -> Table:
    """Return the sorted table of streams of `numel` numbers each: 2 bytes a number, and a little for each bin that occurs.

    A stream is float32 chunks; one stream's keys, 4 bytes a number, are in memory at a time.
    """
    table: Table = {}
    for i, chunks in enumerate(streams):
        keys = np.empty(numel, dtype=np.uint32)
        start = 0
        for chunk in chunks:
            keys[start : start + chunk.numel()] = _keys(chunk)
            start += chunk.numel()
        keys[::-1].sort()  # from the largest down
        upper = (keys >> 16).astype(np.uint16)
        ends = np.append(np.flatnonzero(upper[1:] != upper[:-1]) + 1, len(upper)) if len(upper) else np.zeros(0, int)
        table[f"bins.{i}"] = torch.from_numpy(upper[ends - 1])
        table[f"ends.{i}"] = torch.from_numpy(ends.astype(np.int64))
        table[f"lower.{i}"] = torch.from_numpy((keys & 0xFFFF).astype(np.uint16))
    return table


class _Counted:
    _counts: list[NDArray[np.int64]]

    @property
    def count(self) -> int:
        """Number of elements of each stream."""
        return int(self._counts[0].sum()) if self._counts else 0


class Ranked(_Counted):
    """The numbers of K parallel streams, from their tables by tensor."""

    def __init__(self, tables: Sequence[Table]) -> None:
        """Join the tables of one or more tensors."""
        self._inputs = sum(key.startswith("bins.") for key in tables[0])
        self._tables = [{key: value.numpy() for key, value in table.items()} for table in tables]
        self._counts = [np.zeros(_BINS, dtype=np.int64) for _ in range(self._inputs)]
        for table in self._tables:
            for i, counts in enumerate(self._counts):
                counts[table[f"bins.{i}"]] += np.diff(table[f"ends.{i}"], prepend=0)

    def largest(self, ks: Sequence[int]) -> list[float]:
        """Return each stream's k-th largest number; infinity for k = 0."""
        return [self._largest(i, min(k, self.count)) if k > 0 and self.count else np.inf for i, k in enumerate(ks)]

    def _largest(self, i: int, k: int) -> float:
        upper, above = _bin(self._counts[i], k)
        inside = []
        for table in self._tables:
            bins, ends = table[f"bins.{i}"], table[f"ends.{i}"]
            at = len(bins) - int(np.searchsorted(bins[::-1], upper, side="right"))  # bins run from the largest down
            if at < len(bins) and bins[at] == upper:
                inside.append(table[f"lower.{i}"][ends[at - 1] if at else 0 : ends[at]])
        if len(inside) == 1:
            return _number(upper, int(inside[0][k - above - 1]))
        lower, _ = _bin(np.bincount(np.concatenate(inside), minlength=_BINS), k - above)
        return _number(upper, lower)


class Streamed(_Counted):
    """The numbers of K parallel streams, read once to count them and once more for each query."""

    def __init__(self, chunks: Callable[[], Iterable[Sequence[torch.Tensor]]]) -> None:
        """Count the streams that `chunks` starts: rows float32 `(n,)` of any lengths, the same at every pass."""
        self._chunks = chunks
        self._counts = []
        for rows in chunks():
            self._counts = self._counts or [np.zeros(_BINS, dtype=np.int64) for _ in rows]
            for i, row in enumerate(rows):
                self._counts[i] += np.bincount(_keys(row) >> 16, minlength=_BINS)

    def largest(self, ks: Sequence[int]) -> list[float]:
        """Return each stream's k-th largest number; infinity for k = 0."""
        places = {i: _bin(self._counts[i], min(k, self.count)) for i, k in enumerate(ks) if k > 0 and self.count}
        inside = {i: np.zeros(_BINS, dtype=np.int64) for i in places}
        for rows in self._chunks() if places else ():
            for i in inside:
                keys = _keys(rows[i])
                inside[i] += np.bincount(keys[keys >> 16 == places[i][0]] & 0xFFFF, minlength=_BINS)
        largest = [np.inf] * len(ks)
        for i, (upper, above) in places.items():
            lower, _ = _bin(inside[i], min(ks[i], self.count) - above)
            largest[i] = _number(upper, lower)
        return largest


def _bin(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """Return the bin of the k-th largest, and the count of the bins above it."""
    from_top = np.cumsum(counts[::-1])
    at = int(np.searchsorted(from_top, k))
    return _BINS - 1 - at, int(from_top[at - 1]) if at else 0


def _keys(row: torch.Tensor) -> NDArray[np.uint32]:
    """Return 32-bit keys in the order of the float32 numbers; -0 counts as 0."""
    bits = (row + 0.0).contiguous().numpy().view(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.uint32) ^ np.uint32(0x80000000)


def _number(upper: int, lower: int) -> float:
    key = np.uint32((upper << 16 | lower) ^ 0x80000000).view(np.int32)
    return float(np.int32(key ^ ((key >> 31) & 0x7FFFFFFF)).view(np.float32))
