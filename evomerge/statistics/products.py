"""Products: every product of inputs and a model's weights, while the model runs; whatever class of module makes it.

Modules are not asked, as there are too many kinds: torch's operations are watched, and a weight is known by its place in
memory. So linear layers, GPT-2's Conv1D, convolutions, the experts of a fused mixture and projections that a module stores in
one piece are all the same here.
"""

import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from evomerge.checkpoints.fused import Matrix
from evomerge.errors import ModelError
from evomerge.models import LiveModel

Take: TypeAlias = Callable[[Tensor, tuple[str, ...]], None]
"""(inputs `(tokens, d)` without padding, names of the matrices that they are multiplied with): receives each product."""

_aten: Any = torch.ops.aten
_COMPOSITE = {_aten.linear.default, _aten.matmul.default, _aten.einsum.default, _aten.tensordot.default}
_COMPOSITE |= {operation.default for operation in (_aten.conv1d, _aten.conv2d, _aten.conv3d)}
_COMPOSITE |= {operation.padding for operation in (_aten.conv1d, _aten.conv2d, _aten.conv3d)}
"""Operations that consist of others, and reach a watcher undivided in inference mode."""


_UNFOLDED = 8
"""Images of a batch that are unfolded at once: unfolded they may take many times the memory."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A matrix in the memory of a module: two lengths, their steps, and the first element."""

    name: str
    sizes: tuple[int, int]
    steps: tuple[int, int]
    start: int

    def contracted(self, weight: Tensor, inner: int) -> int | None:
        """Return which axis of the matrix a product sums over, if it multiplies all of the matrix along that axis.

        `weight` is a view `(d, outputs)` of the same memory, or `(outputs, d)`; `inner` is the axis d.
        """
        outer = 1 - inner
        for axis in (1, 0):
            other = 1 - axis
            alike = self.sizes[axis] == weight.shape[inner] and (
                self.sizes[axis] == 1 or self.steps[axis] == weight.stride(inner)
            )
            step = max(weight.stride(outer), 1)
            first, rest = divmod(self.start - int(weight.storage_offset()), step)
            spread, uneven = divmod(self.steps[other], step) if self.sizes[other] > 1 else (0, 0)
            last = first + (self.sizes[other] - 1) * spread
            if alike and not rest and not uneven and first >= 0 and last < weight.shape[outer]:
                return axis
        return None


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the library has no types here
    """Hands the inputs of products with some matrices to a function, while the mode is entered."""

    def __init__(
        self,
        live: LiveModel,
        matrices: Mapping[str, Matrix],
        shapes: Mapping[str, Sequence[int]],
        take: Take,
    ) -> None:
        """Watch the `matrices`, by name, of the checkpoint's tensors of these `shapes`."""
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._take = take
        self._placed = _places(live, matrices, shapes)
        self.axes: dict[str, int] = {}
        """By matrix: the axis that its products sum over, 1 where it is stored (out, in)."""
        self.embedded: set[str] = set()
        """Those of the matrices of which rows are looked up too, as in an embedding that is tied to a head."""
        self.paused = False
        self._last: tuple[Any, ...] = ()
        self._inputs: Tensor | None = None
        self._names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and look at what it multiplies."""
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func in _COMPOSITE:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self._look(func, args)
        if func._schema.is_mutable:  # noqa: SLF001  # the library has no public name; inputs may change in place
            self.flush()
        return func(*args, **kwargs)

    def flush(self) -> None:
        """Hand over the inputs that may still be multiplied with further matrices."""
        inputs, names = self._inputs, tuple(self._names)
        self._last, self._inputs, self._names = (), None, []
        if inputs is not None and len(inputs):
            with torch.inference_mode(mode=False), torch.no_grad():
                self._take(inputs, names)

    def _look(self, func: Any, args: tuple[Any, ...]) -> None:
        match func:
            case _aten.mm.default:
                self._product(args[0], args[1])
            case _aten.addmm.default:
                self._product(args[1], args[2])
            case _aten.bmm.default:
                self._products(args[0], args[1])
            case _aten.baddbmm.default:
                self._products(args[1], args[2])
            case _aten.convolution.default:
                self._convolution(*args)
            case _aten.embedding.default:
                self.embedded.update(placed.name for placed in self._at(args[0]))

    def _at(self, weight: Tensor) -> list[_Placed]:
        return self._placed.get(weight.untyped_storage().data_ptr(), [])

    def _product(self, left: Tensor, right: Tensor) -> None:
        """Look at a product of `(n, d)` and `(d, m)`, of which either may be a weight."""
        if self._at(right):
            self._multiplied(left, right, 0)
        elif self._at(left):
            self._multiplied(right.mT, left, 1)

    def _products(self, left: Tensor, right: Tensor) -> None:
        """Look at a batch of products, `(b, n, d)` and `(b, d, m)`."""
        weight, inputs, inner = (right, left, 0) if self._at(right) else (left, right.mT, 1)
        if not self._at(weight):
            return
        if weight.stride(0) == 0:
            self._multiplied(inputs.reshape(-1, inputs.shape[-1]), weight[0], inner)
            return
        for i in range(len(weight)):
            rows = inputs[i]
            self._multiplied(rows[rows.any(1)], weight[i], inner)  # a token that was not routed here is zero

    def _convolution(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,  # in the order of the operation
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        """Look at a convolution as the product of unfolded inputs; not at those in groups, whose outputs have other inputs each."""
        if not self._at(weight) or transposed or groups != 1 or not weight.is_contiguous():
            return
        axes = weight.ndim - 2
        unfolded = pad(inputs, list(itertools.chain(*((size, size) for size in reversed(padding)))))
        for axis in range(axes):
            length = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
            unfolded = unfolded.unfold(2 + axis, length, stride[axis])[..., :: dilation[axis]]
        for some in torch.split(unfolded, _UNFOLDED):
            self._multiplied(some.movedim(1, 1 + axes).flatten(1 + axes).flatten(0, axes), weight.flatten(1), 1)

    def _multiplied(self, inputs: Tensor, weight: Tensor, inner: int) -> None:
        """Note the inputs `(n, d)` of the matrices in a weight, whose axis `inner` is d."""
        found = [
            (placed.name, axis) for placed in self._at(weight) if (axis := placed.contracted(weight, inner)) is not None
        ]
        if not found:
            return
        place = (inputs.untyped_storage().data_ptr(), inputs.storage_offset(), inputs.shape, inputs.stride())
        if place != self._last:
            self.flush()
            self._last, self._inputs = place, inputs
        self.axes.update(found)
        self._names += [name for name, _ in found if name not in self._names]


def _places(
    live: LiveModel, matrices: Mapping[str, Matrix], shapes: Mapping[str, Sequence[int]]
) -> dict[int, list[_Placed]]:
    """Return where the matrices are in the model's memory, by the memory's address."""
    places: defaultdict[int, list[_Placed]] = defaultdict(list)
    wanted: defaultdict[str, list[tuple[str, Matrix]]] = defaultdict(list)
    for name, matrix in matrices.items():
        wanted[matrix.tensor].append((name, matrix))
    for tensor, named in wanted.items():
        for view in live.views(tensor):
            whole = tuple(view.shape) == tuple(shapes[tensor])
            for name, matrix in named:
                if view.ndim < 2 or (matrix.at and not whole):  # a matrix
                    continue
                part = matrix.of(view)
                part = part.flatten(1) if part.ndim > 2 and part.is_contiguous() else part  # a convolution
                if part.ndim != 2:  # a matrix
                    continue
                sizes, steps = (part.shape[0], part.shape[1]), (part.stride(0), part.stride(1))
                placed = _Placed(name, sizes, steps, int(part.storage_offset()))
                if placed not in places[part.untyped_storage().data_ptr()]:
                    places[part.untyped_storage().data_ptr()].append(placed)
    return dict(places)


@contextmanager
def watched(live: LiveModel, products: Products) -> Iterator[None]:
    """Watch the products of all runs of the model in the block, each sequence of a padded batch by itself."""
    module: nn.Module = live.module
    inside = getattr(module, "base_model", module)  # which tasks with a head of their own call
    runs = [_Unpadded(part, products) for part in dict.fromkeys((module, inside))]
    fast, live.watched = torch.backends.mha.get_fastpath_enabled(), True
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer
        with _plain_experts(module), products:
            yield
            products.flush()
    finally:
        live.watched = False
        torch.backends.mha.set_fastpath_enabled(fast)
        for run in runs:
            run.remove()


@contextmanager
def _plain_experts(module: Any) -> Iterator[None]:
    """Let mixtures of transformers multiply expert by expert: their faster ways copy weights."""
    if not hasattr(module, "set_experts_implementation") or not module._can_set_experts_implementation():  # noqa: SLF001  # no public name
        yield
        return
    before = module.get_experts_implementation()
    module.set_experts_implementation("eager")
    try:
        yield
    finally:
        module.set_experts_implementation(before)


class _Unpadded:
    """Runs each sequence of a padded batch without its padding, and pauses the watcher for the batch itself."""

    def __init__(self, module: nn.Module, products: Products) -> None:
        self._module, self._products = module, products
        self._inside = self._pauses = False
        self._hooks = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Watch the module no more."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside or self._products.paused:
            return
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):  # (sequences, tokens)
            return
        if given.get("past_key_values") is not None:
            raise ModelError(
                f"{type(module).__name__} continues a padded batch, whose padding cannot be left out of statistics; expected a task that "
                "scores one example without others"
            )
        self._inside = True
        try:
            for i, kept in enumerate(mask.bool()):
                places = kept.nonzero().flatten()
                if len(places):
                    span = slice(int(places[0]), int(places[-1]) + 1)
                    module(**{name: _cut(value, mask.shape, i, span) for name, value in given.items()})
        finally:
            self._inside = False
        self._products.flush()
        self._products.paused = self._pauses = True

    def _after(self, *_: object) -> None:
        if self._pauses and not self._inside:
            self._products.paused = self._pauses = False


def _cut(value: Any, shape: torch.Size, i: int, span: slice) -> Any:
    """Return one sequence's part of an argument."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[0] != shape[0]:
        return value
    return value[i : i + 1, span] if value.shape[:2] == shape else value[i : i + 1]
