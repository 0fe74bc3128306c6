"""SharedBlocks: hidden states that candidates with the same first blocks share; not to be confused with `Prefixes`, those of stacks.

Where consecutive candidates have the same bytes in all that the first L blocks depend on, the output of block L - 1 for the same
inputs is computed for one of them, kept, and taken by the next ones: their outputs are the same bit for bit. That the first L blocks
may be replaced by that output is proved by a trace of the pass (`evomerge.models.dataflow`); where it is not, they run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import ModelError
from evomerge.models.blocks import find_blocks
from evomerge.models.dataflow import Flow, address, single, trace
from evomerge.models.prefixes import Count, digest

_IDLE = 8
"""Candidates without a use after which hidden states are dropped."""

_SAMPLE = 4096


@dataclass(slots=True)
class _Kept:
    output: Any
    nbytes: int
    used: int  # by which candidate last


@dataclass(slots=True)
class _Pass:
    """A pass through the module whose first `depth` blocks are replaced by `kept`, or whose output is to be kept."""

    depth: int
    key: tuple[Any, ...]
    kept: _Kept | None


class SharedBlocks:
    """Compares the first blocks of each candidate with those of the one before, and keeps their hidden states."""

    def __init__(self, module: nn.Module, budget: int, used: Callable[[], int] = lambda: 0) -> None:
        """Keep at most `budget` bytes, those `used` by others included; 0, or a module without one stack of blocks, shares nothing."""
        self.count = Count()
        self.variant: str | None = None
        """The head that is on the module."""
        self._budget, self._used = budget, used
        self._module = module
        self._blocks: Sequence[nn.Module] = ()
        if budget:
            try:
                self._blocks = list(find_blocks(module))
            except ModelError:
                self._blocks = ()
        self._plain: list[Any] = []  # the forwards of the blocks while they are exchanged
        self._flows: dict[Any, Flow | None] = {}
        self._needs: dict[int, int] = {}
        self._moving: set[int] = set()  # the memory of tensors that changed when they were compared last
        self._kept: dict[Any, _Kept] = {}
        self._nbytes = 0
        self._candidate = 0
        self._depth = 0  # the number of first blocks whose output is kept
        self._same = self._before = (
            0  # those of the candidate being written, and the one before it, that had not changed
        )
        self._nesting = 0
        self._on = True
        self._pass: _Pass | None = None
        if self._blocks:
            self.watch(module)
            if (backbone := getattr(module, "base_model", module)) is not module:
                self.watch(backbone)

    def watch(self, module: nn.Module) -> None:
        """Share in passes through `module`, which has the same blocks."""
        if self._blocks:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave, always_call=True)

    @property
    def nbytes(self) -> int:
        """Bytes of all kept hidden states."""
        return self._nbytes

    def begin(self) -> None:
        """Begin to write a candidate."""
        self._candidate += 1
        self.count = Count()
        self._same, self._on = len(self._blocks) if self._needs else 0, True
        self._nesting, self._pass = 0, None  # of a pass that was interrupted
        for key in [key for key, kept in self._kept.items() if kept.used < self._candidate - _IDLE]:
            self._nbytes -= self._kept.pop(key).nbytes

    def write(self, view: Tensor, fill: Callable[[Tensor], object]) -> None:
        """Let `fill` write a tensor of the candidate into `view`, and note whether its bytes have changed."""
        depth = self._needs.get(address(view), len(self._blocks)) if self._same else 0
        if depth >= self._same:
            fill(view)
            return
        if address(view) in self._moving:  # it has changed before, and so has again: a few elements show that for less
            before = _sample(view)
            fill(view)
            self._same = depth
            if torch.equal(_bytes(before), _bytes(_sample(view))):
                self._moving.remove(address(view))
            return
        written = torch.empty_like(view)
        fill(written)
        if not torch.equal(_bytes(written), _bytes(view)):
            self._same = depth
            self._moving.add(address(view))
            view.copy_(written)

    def end(self) -> None:
        """End a candidate, or what was written of it."""
        # A recipe that is scored again would else replace states that many share by states of its own.
        depth = self._same if self._same < len(self._blocks) else self._before
        self._before = self._same
        if self._same < self._depth or depth > self._depth:
            self._drop()
            self._depth = depth
        if self._depth and not self._plain:
            for number, block in enumerate(self._blocks):
                self._plain.append((block.__dict__.get("forward"), block.forward))
                block.forward = _Shared(self, number, block.forward)
        elif not self._depth:
            self._detach()

    def pause(self) -> None:
        """Share nothing until the next `begin`: the module has other blocks."""
        self._on = False
        self._detach()
        self._drop()

    def reset(self) -> None:
        """Begin anew: the module has other parameters than it had."""
        self._detach()
        self._drop()
        self._flows, self._needs, self._moving = {}, {}, set()
        self._depth = self._same = self._before = 0

    def release(self) -> None:
        """Keep nothing any more, after the device ran out of memory."""
        self._drop()
        self._budget = 0

    def run(self, number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the output of block `number`, whose own `forward` is run where it is needed."""
        now = self._pass
        if now is None or number >= now.depth:
            self.count.run += now is not None
            return forward(*args, **kwargs)
        if now.kept is not None:
            self.count.spared += 1
            return now.kept.output
        self.count.run += 1
        output = forward(*args, **kwargs)
        hidden = single(output) if number == now.depth - 1 else None
        if hidden is None or hidden.requires_grad or self._nbytes + self._used() + hidden.nbytes > self._budget:
            return output
        self._kept[now.key] = _Kept(output, hidden.nbytes, self._candidate)
        self._nbytes += hidden.nbytes
        return output

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._nesting += 1
        if self._nesting > 1 or not self._on or not self._budget or _caches(module, kwargs):
            return
        signature = _signature(args, kwargs)
        if signature is None:
            return
        flow = self._flow((id(module), self.variant, torch.is_grad_enabled(), signature), module, args, kwargs)
        depth = max((depth for depth in flow.replaceable if depth <= self._depth), default=0) if flow else 0
        if not depth or self._differentiated(depth) or _watched(self._blocks[:depth]):
            return
        inputs = digest(args, kwargs)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        key = (id(module), self.variant, modes, inputs)
        kept = self._kept.get(key)
        if kept is not None:
            kept.used = self._candidate
        self._pass = _Pass(depth, key, kept)

    def _leave(self, *_: object) -> None:
        self._nesting -= 1
        if not self._nesting:
            self._pass = None

    def _flow(self, key: Any, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flow | None:
        """Return the flow of passes with such arguments, from a pass that is made once, whose output is not used."""
        if key not in self._flows:
            try:
                flow = trace(self._module, self._blocks, lambda: module(*args, **kwargs))
            except Exception:  # noqa: BLE001  # the pass itself raises it again, where it is the candidate's error
                flow = None
            self._flows[key] = flow
            for where, depth in flow.needs.items() if flow and flow.replaceable else ():
                if depth < self._needs.get(where, len(self._blocks)):
                    self._needs[where] = depth
                    self._depth = self._before = 0  # the candidate was not compared so
            if not self._depth:
                self._drop()
        return self._flows[key]

    def _differentiated(self, depth: int) -> bool:
        """Return whether a gradient is wanted of what the first `depth` blocks depend on."""
        return torch.is_grad_enabled() and any(
            parameter.requires_grad and self._needs.get(address(parameter), depth) < depth
            for parameter in self._module.parameters()
        )

    def _detach(self) -> None:
        for block, (own, _) in zip(self._blocks, self._plain, strict=False):
            if own is None:
                del block.__dict__["forward"]
            else:
                block.forward = own
        self._plain = []

    def _drop(self) -> None:
        self._kept, self._nbytes = {}, 0


class _Shared:
    """The forward of a block while its output may be shared."""

    def __init__(self, shared: SharedBlocks, number: int, forward: Callable[..., Any]) -> None:
        self._shared, self._number, self._forward = shared, number, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._shared.run(self._number, self._forward, args, kwargs)


def _bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes: numbers that are equal may have different ones, as 0 and -0."""
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def _sample(tensor: Tensor) -> Tensor:
    """Return a copy of a few elements, all over the tensor."""
    return tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLE)].clone()


def _caches(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Return whether a pass keeps keys and values, of every block, for the next tokens."""
    can_generate: Callable[[], bool] = getattr(module, "can_generate", lambda: False)
    return kwargs.get("past_key_values") is not None or (can_generate() and kwargs.get("use_cache") is not False)


def _signature(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what a pass through the module may depend on beside its tensors' elements; None for other arguments than tensors and constants."""
    kinds: list[Any] = []
    for name, value in (*enumerate(args), *sorted(kwargs.items())):
        if isinstance(value, Tensor):
            kinds.append((name, value.dtype, value.ndim))
        elif value is None or isinstance(value, bool | int | float | str):
            kinds.append((name, value))
        else:
            return None
    return tuple(kinds)


def _watched(blocks: Sequence[nn.Module]) -> bool:
    """Return whether hooks observe what is inside of blocks, which would not be run."""
    return any(
        part._forward_hooks or part._forward_pre_hooks  # noqa: SLF001  # torch has no other way to see them
        for block in blocks
        for part in block.modules()
    )
