"""Exact selection of the k-th largest of very many numbers, without sorting them for every query.

A radix of two digits: a float32 has a key of 32 bits in the same order, of which the upper half picks a bin and the lower
half a number in it. `Ranked` reads tables that were sorted once, tensor by tensor, for any union of tensors; `Streamed`
reads numbers that exist only for one candidate, or are asked for only once, in constant memory.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

_BINS = 1 << 16

_WIDEST = 1 << 22
"""Maximum number of float32 between two numbers of a sample for which each one is counted."""

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


class Ranked:
    """The numbers of K parallel streams, from their tables by tensor."""

    def __init__(self, tables: Sequence[Table]) -> None:
        """Join the tables of one or more tensors."""
        self._inputs = sum(key.startswith("bins.") for key in tables[0])
        self._tables = [{key: value.numpy() for key, value in table.items()} for table in tables]
        self._counts = [np.zeros(_BINS, dtype=np.int64) for _ in range(self._inputs)]
        for table in self._tables:
            for i, counts in enumerate(self._counts):
                counts[table[f"bins.{i}"]] += np.diff(table[f"ends.{i}"], prepend=0)
        self.count = int(self._counts[0].sum()) if self._counts else 0
        """Number of elements of each stream."""

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


class Streamed:
    """The numbers of K parallel streams, read anew for each query: in one pass where a sample tells where to look, else in two."""

    def __init__(
        self,
        chunks: Callable[[], Iterable[Sequence[torch.Tensor]]],
        count: int,
        sample: Callable[[], Iterable[Sequence[torch.Tensor]]] = list,
    ) -> None:
        """Take what starts the streams, of `count` numbers each: rows float32 `(n,)` of any lengths, the same at every pass.

        `sample` starts streams of some of the numbers, at equal distances in short runs; of none by default.
        """
        self._chunks, self._sample, self.count = chunks, sample, count

    @cached_property
    def _counts(self) -> list[NDArray[np.int64]]:
        counts: list[NDArray[np.int64]] = []
        for rows in self._chunks():
            counts = counts or [np.zeros(_BINS, dtype=np.int64) for _ in rows]
            for i, row in enumerate(rows):
                counts[i] += np.bincount(_keys(row) >> 16, minlength=_BINS)
        return counts

    def largest(self, ks: Sequence[int]) -> list[float]:
        """Return each stream's k-th largest number; infinity for k = 0."""
        wanted = {i: min(k, self.count) for i, k in enumerate(ks) if k > 0 and self.count}
        brackets = self._brackets(wanted)
        for rows in self._chunks() if brackets else ():
            for i, bracket in brackets.items():
                bracket.add(rows[i])
        found = {i: number for i, bracket in brackets.items() if (number := bracket.largest(wanted[i])) is not None}
        found |= self._by_bins({i: k for i, k in wanted.items() if i not in found})
        return [found.get(i, np.inf) for i in range(len(ks))]

    def _brackets(self, wanted: Mapping[int, int]) -> dict[int, "_Bracket"]:
        """Return two numbers for each stream, between which its k-th largest is, as far as a sample tells."""
        pieces = list(self._sample()) if wanted else []
        brackets = {}
        for i, k in wanted.items() if pieces else ():
            row = np.sort(np.concatenate([_keys(rows[i]) for rows in pieces]))[::-1]
            share = k / self.count
            # Three standard deviations, even if all numbers of a piece were equal.
            slack = 3 * math.sqrt(share * (1 - share) / len(pieces)) + 1e-4
            high, low = (int(np.clip((share + way * slack) * len(row), 0, len(row) - 1)) for way in (-1, 1))
            if int(row[high]) - int(row[low]) < _WIDEST:
                brackets[i] = _Bracket(int(row[low]), int(row[high]))
        return brackets

    def _by_bins(self, wanted: Mapping[int, int]) -> dict[int, float]:
        """Return the k-th largest numbers: a pass finds the bins, the next one numbers in them."""
        places = {i: _bin(self._counts[i], k) for i, k in wanted.items()}
        inside = {i: np.zeros(_BINS, dtype=np.int64) for i in places}
        for rows in self._chunks() if places else ():
            for i in inside:
                keys = _keys(rows[i])
                inside[i] += np.bincount(keys[keys >> 16 == places[i][0]] & 0xFFFF, minlength=_BINS)
        return {i: _number(upper, _bin(inside[i], wanted[i] - above)[0]) for i, (upper, above) in places.items()}


class _Bracket:
    """The numbers of a stream between two of them: how many are above, and a count of each one inside."""

    def __init__(self, low: int, high: int) -> None:
        """Take the keys of the two numbers, which are inside."""
        self._low, self._ends = low, (_number(low >> 16, low & 0xFFFF), _number(high >> 16, high & 0xFFFF))
        self._above, self._inside = 0, np.zeros(high - low + 1, dtype=np.int64)
        self._waiting: list[NDArray[np.uint32]] = []

    def add(self, row: torch.Tensor) -> None:
        """Count the numbers of a part of the stream."""
        numbers = row.numpy()
        above, inside = numbers > np.float32(self._ends[1]), numbers >= np.float32(self._ends[0])
        more = int(np.count_nonzero(above))
        self._above += more
        if len(self._inside) == 1:
            self._inside += int(np.count_nonzero(inside)) - more
            return
        self._waiting.append(_keys(torch.from_numpy(numbers[inside ^ above])) - np.uint32(self._low))
        if sum(map(len, self._waiting)) > _WIDEST:
            self._flush()

    def largest(self, k: int) -> float | None:
        """Return the k-th largest number of the stream; None if it is not inside."""
        self._flush()
        if not self._above < k <= self._above + int(self._inside.sum()):
            return None
        from_top = np.cumsum(self._inside[::-1])
        key = self._low + len(from_top) - 1 - int(np.searchsorted(from_top, k - self._above))
        return _number(key >> 16, key & 0xFFFF)

    def _flush(self) -> None:
        if self._waiting:
            self._inside += np.bincount(np.concatenate(self._waiting), minlength=len(self._inside))
            self._waiting = []


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
