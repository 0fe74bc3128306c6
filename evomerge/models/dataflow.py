"""Dataflow of one pass through a module: which memory its blocks read, and after which block the rest needs only that block's output.

Every operation of the pass is recorded as torch dispatches it, with the memory that it reads and writes; no name of a module or
parameter is looked at.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VALUES = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::resolve_neg")
"""Operations by which numbers leave torch, and may go anywhere; the last one comes before `tolist` and `numpy`."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one pass has shown of a stack of blocks.

    The first L blocks are replaceable if all that is computed of them and read outside of them is the output of block L - 1.
    """

    replaceable: frozenset[int]
    """The numbers L from 1 to that of all blocks for which the first L are replaceable; none where nothing is proved."""
    needs: Mapping[int, int]
    """By address of a parameter's or buffer's memory, the largest L for which the first L blocks do not depend on it."""


def trace(module: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], Any]) -> Flow:
    """Return the flow of the pass that `run` makes through `module`, with its stack of `blocks`.

    Raises what `run` raises.
    """
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()]
    recorder = _Recorder({address(tensor) for tensor in held}, len(blocks))
    hooks = []
    for number, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(lambda *_, number=number: recorder.enter(number)))
        hooks.append(block.register_forward_hook(lambda *came, number=number: recorder.leave(number, came[-1])))
    try:
        with recorder:
            output = run()
    finally:
        for hook in hooks:
            hook.remove()
    recorder.end(output)
    needs = recorder.first
    for number, block in enumerate(blocks):  # those of experts that no token was sent to, too
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.numel():
                needs[address(tensor)] = min(needs.get(address(tensor), number), number)
    return Flow(frozenset(range(1, len(blocks) + 1)) - recorder.refused, needs)


def address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, the same for all of its views."""
    return tensor.untyped_storage().data_ptr()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the library has no types here
    """Follows memory through a pass: which block wrote it last, and who reads it then.

    Memory that is freed and allocated anew begins anew: the first to write it is the operation that returns it.
    """

    def __init__(self, held: set[int], blocks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.first: dict[
            int, int
        ] = {}  # by address of a parameter or buffer, the number of blocks done at its first reading
        self.refused: set[int] = set()
        self._held, self._blocks = held, blocks
        self._done = 0
        self._inside: int | None = None
        self._written: dict[
            int, tuple[int, bool]
        ] = {}  # by address: the block that wrote it, and whether it returned it

    def enter(self, number: int) -> None:
        """Begin a block. They must come in order, and once."""
        if self._inside is not None or number != self._done:
            self._refuse(0)
        self._inside = number

    def leave(self, number: int, output: Any) -> None:
        """End a block, which returns `output`."""
        self._inside, self._done = None, number + 1
        hidden = single(output)
        if hidden is None:
            self._refuse(number)
        else:
            self._written[address(hidden)] = number, True

    def end(self, output: Any) -> None:
        """End the pass, which returns `output`."""
        if self._done != self._blocks:
            self._refuse(0)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._access(leaf, writes=True)  # whose it is now may change it
            elif not (leaf is None or isinstance(leaf, bool | int | float | str)):
                self._refuse(0)  # an object that may hold states of blocks, such as a cache

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        changed = [id(tensor) for tensor in _changed(operation, args, kwargs)]
        for tensor in given:
            self._access(tensor, writes=id(tensor) in changed)
        known = {address(tensor) for tensor in given}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and address(leaf) not in known:
                self._write(address(leaf))
        if self._inside is not None and operation._schema.name in _VALUES:  # noqa: SLF001  # no public name exists
            self._refuse(self._inside)
        return result

    def _access(self, tensor: Tensor, *, writes: bool) -> None:
        where = address(tensor)
        if where in self._held:
            self.first.setdefault(where, self._done)
        if where in self._written and self._written[where][0] != self._inside:
            number, returned = self._written[where]
            last = self._blocks if self._inside is None else self._inside
            # With the first L of these replaced, the block that wrote it is not run, and this operation is.
            self.refused.update(range(number + 2 if returned and not writes else number + 1, last + 1))
        if writes:
            self._write(where)

    def _write(self, where: int) -> None:
        if self._inside is None:
            self._written.pop(where, None)
        else:
            self._written[where] = self._inside, False

    def _refuse(self, number: int) -> None:
        """Prove nothing of stacks of first blocks that hold block `number`."""
        self.refused.update(range(number + 1, self._blocks + 1))


def _changed(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the arguments that an operation writes to."""
    for place, argument in enumerate(operation._schema.arguments):  # noqa: SLF001  # no public name exists
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def single(output: Any) -> Tensor | None:
    """Return the hidden states that a block returns, alone or with nothing but None; else None."""
    alone = isinstance(output, tuple) and output and all(part is None for part in output[1:])
    hidden = output[0] if alone else output
    return hidden if isinstance(hidden, Tensor) else None
