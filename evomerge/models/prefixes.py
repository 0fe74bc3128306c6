"""Prefixes: hidden states of stacks, kept at layers where later stacks are likely to fork off.

Two stacks that begin with the same layers and scales have the same hidden states after them, on the same inputs. The
later one takes them from here instead of computing them again; its outputs are the same to the bit.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_REMEMBERED = 64
"""Stacks of the past whose paths say where the next one is likely to fork."""

Node = str
"""A stack's beginning, up to and with some layer, as `evomerge.recipe.prefix_digests` writes it."""


@dataclass(slots=True)
class Count:
    """How many layers were run for the stack shown last, and how many were not: a run is one layer on one batch."""

    run: int = 0
    spared: int = 0


@dataclass(slots=True)
class _Call:
    """One pass through the module: on which inputs, and from which layer on it must be computed."""

    inputs: str
    fork: int = 0
    output: Any = None


@dataclass(slots=True)
class _States:
    """A node's hidden states by the inputs that they are of."""

    outputs: dict[str, Any] = field(default_factory=dict)
    nbytes: int = 0


class Prefixes:
    """The hidden states kept, at most `budget` bytes of them.

    Where not all fit, `choose` says which.
    """

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes; 0 keeps nothing."""
        self.count = Count()
        self._budget = budget
        self._path: tuple[Node, ...] = ()
        self._past: deque[tuple[Node, ...]] = deque(maxlen=_REMEMBERED)
        self._chosen: set[Node] = set()
        self._kept: dict[Node, _States] = {}
        self._call: _Call | None = None
        self._seen = 0  # bytes of hidden states after one layer, over all calls of the stack shown last
        self._largest = 0  # the most that was seen so

    def begin(self, path: tuple[Node, ...]) -> None:
        """Begin with another stack, of which `path` has the prefix digests."""
        self._path = path
        self._past.append(self._path)
        self._largest, self._seen = max(self._largest, self._seen), 0
        self.count = Count()
        room = self._budget // self._largest if self._largest else 0
        self._chosen = choose(self._past, room)
        self._kept = {node: states for node, states in self._kept.items() if node in self._chosen}

    def end(self) -> None:
        """Be idle: what is shown is no stack."""
        self._path, self._call, self.count = (), None, Count()

    def enter(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, caches: bool) -> None:
        """Begin a pass through the module with these arguments; `caches` says whether it fills a key-value cache."""
        self._call = None
        if not self._path or caches or not self._budget:
            return
        inputs = _digest(args, kwargs)
        if inputs is None:
            return
        self._call = _Call(inputs)
        for fork in range(len(self._path), 0, -1):
            states = self._kept.get(self._path[fork - 1])
            if states is not None and inputs in states.outputs:
                self._call.fork, self._call.output = fork, states.outputs[inputs]
                return

    def output(self, number: int) -> Any:
        """Return what layer `number` puts out, if that need not be computed, else None.

        The layers before the fork all pass on what the last of them put out then.
        """
        if self._call is None or number >= self._call.fork:
            self.count.run += 1
            return None
        self.count.spared += 1
        return self._call.output

    def keep(self, number: int, output: Any) -> None:
        """Keep what layer `number` has put out, if it is worth it."""
        call = self._call
        if call is None:
            return
        hidden = output if isinstance(output, Tensor) else output[0] if _is_single(output) else None
        if hidden is None:
            return
        if number == len(self._path) - 1:
            self._seen += hidden.nbytes
        node = self._path[number]
        if node in self._chosen and self.nbytes + hidden.nbytes <= self._budget:
            states = self._kept.setdefault(node, _States())
            if call.inputs not in states.outputs:
                states.outputs[call.inputs] = output
                states.nbytes += hidden.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(states.nbytes for states in self._kept.values())


def choose(paths: Sequence[tuple[Node, ...]], room: int) -> set[Node]:
    """Return at most `room` nodes where the next path, which is not known, is likely to fork off `paths`, the latest last.

    First those which would have spared the most layers, had they been kept when some path came to a node where another had
    been before: chosen one by one, which gives at least 63% of what the best choice would (Nemhauser, Wolsey & Fisher 1978).
    Then the others, by how many paths go through them, and of these the first of the latest paths.
    """
    if not room:
        return set()
    through: dict[Node, list[int]] = {}
    depth: dict[Node, int] = {}
    for number, path in enumerate(paths):
        for level, node in enumerate(path, start=1):
            through.setdefault(node, []).append(number)
            depth[node] = level
    if len(through) <= room:
        return set(through)
    spared = [0] * len(paths)

    def gain(node: Node) -> int:
        return sum(max(depth[node] - spared[i], 0) for i in through[node])

    chosen: set[Node] = set()
    queue = [(-gain(node), node) for node, numbers in through.items() if len(numbers) > 1]
    heapq.heapify(queue)  # gains only shrink: the first that is still right is the largest
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


def _is_single(output: Any) -> bool:
    """Return whether a layer's output is a tuple of hidden states and nothing more."""
    return isinstance(output, tuple) and isinstance(output[0], Tensor) and all(part is None for part in output[1:])


def _digest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Return the sha256 of a module's arguments, None where they are more than tensors and constants."""
    digest = hashlib.sha256()
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        if isinstance(value, Tensor):
            text = f"{name} {value.dtype} {tuple(value.shape)}"
            digest.update(text.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif value is None or isinstance(value, bool | int | float | str):
            digest.update(f"{name} {value!r}".encode())
        else:
            return None
    return digest.hexdigest()
