"""Prefixes: hidden states of stacks, kept at layers where later stacks are likely to fork.

Two stacks that begin with the same layers and scales have the same hidden states after them, on the same inputs. The later
one reads them from here instead of computing them again; its outputs are the same bit for bit.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_HISTORY = 64  # past stacks from which the next fork is predicted

PrefixId = str
"""The digest of a stack's first layers, up to and including some layer: see `evomerge.recipe.recipe.prefix_digests`."""


@dataclass(slots=True)
class Count:
    """Layers that were run for the last stack, and layers that were spared, each counted once per batch."""

    run: int = 0
    spared: int = 0


class Prefixes:
    """The kept hidden states, at most `budget` bytes. Where not all fit, `choose` selects the prefixes."""

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes; 0 keeps nothing."""
        self.count = Count()
        self._budget = budget
        self._path: tuple[PrefixId, ...] = ()
        self._past: deque[tuple[PrefixId, ...]] = deque(maxlen=_HISTORY)
        self._chosen: set[PrefixId] = set()
        self._kept: dict[tuple[PrefixId, str], tuple[Any, int]] = {}  # by prefix and inputs, with the bytes
        self._inputs: str | None = None  # the digest of the inputs of this pass, None where nothing is reused
        self._fork = 0  # the first layer that must be computed
        self._output: Any = None  # of the layer before it
        self._seen = 0  # bytes of hidden states after one layer, over all calls of the last stack
        self._largest = 0  # the largest of these over all stacks

    def begin(self, path: tuple[PrefixId, ...]) -> None:
        """Begin with another stack, whose prefixes are `path`."""
        self._path = path
        self._past.append(path)
        self._largest, self._seen = max(self._largest, self._seen), 0
        self.count = Count()
        room = self._budget // self._largest if self._largest else 0
        self._chosen = choose(self._past, room)
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] in self._chosen}

    def end(self) -> None:
        """Stop: the module is no stack until the next `begin`."""
        self._path, self._inputs, self._fork, self._output, self.count = (), None, 0, None, Count()

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, caches: bool) -> None:
        """Begin a pass through the module with these arguments; nothing is reused if it `caches` keys and values."""
        self._inputs, self._fork, self._output = None, 0, None
        if not self._path or caches or not self._budget:
            return
        self._inputs = digest(args, kwargs)
        for number, node in enumerate(self._path, start=1):
            if self._inputs is not None and (node, self._inputs) in self._kept:
                self._fork, (self._output, _) = number, self._kept[node, self._inputs]

    def output(self, number: int) -> Any:
        """Return the output of layer `number` if it need not be computed, else None.

        Before the fork, each layer passes on the kept output of the last layer before the fork.
        """
        if number >= self._fork:
            self.count.run += 1
            return None
        self.count.spared += 1
        return self._output

    def keep(self, number: int, output: Any) -> None:
        """Keep the output of layer `number` if its prefix is selected and it fits."""
        single = isinstance(output, tuple) and all(part is None for part in output[1:])
        hidden = output[0] if single else output
        if self._inputs is None or not isinstance(hidden, Tensor):
            return
        if number == len(self._path) - 1:
            self._seen += hidden.nbytes
        node = self._path[number]
        if node in self._chosen and self.nbytes + hidden.nbytes <= self._budget:
            self._kept.setdefault((node, self._inputs), (output, hidden.nbytes))

    def release(self) -> None:
        """Keep nothing any more, after the device ran out of memory."""
        self._budget, self._kept = 0, {}

    @property
    def nbytes(self) -> int:
        """Bytes of all kept hidden states."""
        return sum(nbytes for _, nbytes in self._kept.values())


def choose(paths: Sequence[tuple[PrefixId, ...]], room: int) -> set[PrefixId]:
    """Return at most `room` prefixes at which the next path is likely to fork from `paths`, which are ordered by time.

    First the prefixes that would have spared the most layers of `paths`, chosen greedily: that spares at least 63% of the
    layers that the best choice spares (Nemhauser, Wolsey & Fisher 1978). Then the others, by the number of paths through
    them; among equals those of the latest paths, and the shortest.
    """
    if not room:
        return set()
    through: dict[PrefixId, list[int]] = {}
    depth: dict[PrefixId, int] = {}
    for number, path in enumerate(paths):
        for level, node in enumerate(path, start=1):
            through.setdefault(node, []).append(number)
            depth[node] = level
    if len(through) <= room:
        return set(through)
    spared = [0] * len(paths)

    def gain(node: PrefixId) -> int:
        return sum(max(depth[node] - spared[i], 0) for i in through[node])

    chosen: set[PrefixId] = set()
    queue = [(-gain(node), node) for node, indices in through.items() if len(indices) > 1]
    heapq.heapify(queue)  # gains only shrink: the first one that is up to date is the largest
    while queue and len(chosen) < room:
        before, node = heapq.heappop(queue)
        now = gain(node)
        if now and -before != now:
            heapq.heappush(queue, (-now, node))
        elif now:
            chosen.add(node)
            for i in through[node]:
                spared[i] = max(spared[i], depth[node])
    others = sorted(
        through.keys() - chosen, key=lambda node: (-len(through[node]), -through[node][-1], depth[node], node)
    )
    return chosen | set(others[: room - len(chosen)])


def digest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the sha256 of a module's arguments, None where some are neither tensors nor constants."""
    digest = hashlib.sha256()
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif value is None or isinstance(value, bool | int | float | str):
            digest.update(f"{name} {value!r}".encode())
        else:
            return None
    return digest.hexdigest()
