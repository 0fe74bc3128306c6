"""Finds which tensors of a module a checkpoint's tensors fill, though transformers renames, splits or fuses some of them.

No architecture and no conversion rule is listed here. The loader is run on probes: tensors whose elements hold the number of
their tensor (first load) or their position in it (one more load for each dimension). Probes are broadcast views that take no
memory, except where the loader fuses them.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import ModelError

Box = tuple[slice, ...]
Load = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Loads a checkpoint's tensors in fp32, and returns the module's tensors by name."""

# Number of the first tensor, larger than any initial value of a parameter; fp32 is exact up to 1 << 24.
_FIRST = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """A box of a checkpoint's tensor, and the box of a module's tensor that it fills, element by element."""

    source: str
    taken: Box
    order: tuple[int, ...]
    target: str
    filled: Box

    def cut(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Return the box of the checkpoint's `tensor`, permuted and reshaped to the `shape` of the box that it fills."""
        return tensor[self.taken].permute(self.order).reshape(shape)

    def spread(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the gradient of the checkpoint's tensor, of `shape`, from that of the filled box; the adjoint of `cut`."""
        if self.is_identity(shape, gradient.shape):
            return gradient
        result = gradient.new_zeros(tuple(shape))
        box = result[self.taken].permute(self.order)
        box.copy_(gradient.reshape(box.shape))
        return result

    def uncut(self, filled: Tensor, shape: Sequence[int]) -> Tensor | None:
        """Return the filled box as a view with the axes of the checkpoint's tensor, which has `shape`; None where no view has them."""
        taken = torch.empty(tuple(shape), device="meta")[self.taken].shape
        try:
            box = filled.view([taken[axis] for axis in self.order])
        except RuntimeError:  # its elements are in another order in memory
            return None
        return box.permute([self.order.index(axis) for axis in range(len(self.order))])

    def is_identity(self, source: Sequence[int], shape: Sequence[int]) -> bool:
        """Return whether the complete tensor, of shape `source`, fills a box of `shape` as it is."""
        return tuple(source) == tuple(shape) and self.order == tuple(range(len(source)))


def find_mappings(shapes: Mapping[str, tuple[int, ...]], load: Load) -> list[TensorMapping]:
    """Return the mappings of a checkpoint with tensors of these `shapes`, in order of the module's names.

    Raises `ModelError` naming the tensor where the loader does more than move boxes of elements.
    """
    names = list(shapes)
    numbers = load({name: torch.tensor(float(_FIRST + i)).expand(shapes[name]) for i, name in enumerate(names)})
    axes = range(max(map(len, shapes.values()), default=0))
    sent = [{name: _coordinates(shape, axis) for name, shape in shapes.items()} for axis in axes]
    seen = [load(probe) for probe in sent]
    mappings = []
    for target, tensor in numbers.items():
        for number, filled in _boxes(tensor, len(names)):
            source = names[number]
            pairs = [(sent[i][source], seen[i][target][filled]) for i in range(len(shapes[source]))]
            mapping = _orient(source, target, filled, pairs)
            if mapping is None:
                msg = f"tensor `{source}` of the checkpoint cannot be written into `{target}` of the model in place: loading does more than move it; such an architecture is not supported"
                raise ModelError(msg)
            mappings.append(mapping)
    return mappings


def _coordinates(shape: tuple[int, ...], axis: int) -> Tensor:
    """Return a tensor of `shape` with each element's position along `axis`, or zeros where there is no such axis."""
    if axis >= len(shape):
        return torch.zeros(()).expand(shape)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return torch.arange(shape[axis], dtype=torch.float32).view(along).expand(shape)


def _boxes(numbers: Tensor, count: int) -> Iterator[tuple[int, Box]]:
    """Yield the number of each of `count` probes in a module's tensor, and the box that it fills there."""
    core = _core(numbers)
    for value in _values(core):
        number = int(value) - _FIRST
        if value != int(value) or not 0 <= number < count:
            continue
        mask = core == value
        box = tuple(_span(mask, axis) for axis in range(mask.ndim))
        if bool(mask[box].all()):
            yield number, box


def _orient(source: str, target: str, filled: Box, pairs: Sequence[tuple[Tensor, Tensor]]) -> TensorMapping | None:
    """Return the mapping that explains the coordinates in a box, as sent and as seen for each axis of the source, or None."""
    taken = tuple(_arithmetic([int(value) for value in _values(_core(seen))]) for _, seen in pairs)
    for order in itertools.permutations(range(len(pairs))):
        mapping = TensorMapping(source, taken, order, target, filled)
        if all(
            probe[taken].numel() == other.numel() and torch.equal(_core(mapping.cut(probe, other.shape)), _core(other))
            for probe, other in pairs
        ):
            return mapping
    return None


def _core(tensor: Tensor) -> Tensor:
    """Return the view of `tensor` with length 1 along each axis on which it is constant."""
    for axis in range(tensor.ndim):
        first = tensor.narrow(axis, 0, 1)
        if tensor.stride(axis) == 0 or bool((tensor == first).all()):
            tensor = first
    return tensor


def _values(tensor: Tensor) -> list[float]:
    values: list[float] = tensor.unique().tolist()  # type: ignore[no-untyped-call]  # the library has no types here
    return values


def _span(mask: Tensor, axis: int) -> slice:
    """Return the positions along `axis` at which any element of `mask` is set; an axis of length 1 stands for all."""
    size = mask.shape[axis]
    if size == 1:
        return slice(None)
    return _arithmetic(mask.movedim(axis, 0).reshape(size, -1).any(1).nonzero().flatten().tolist())


def _arithmetic(positions: Sequence[int]) -> slice:
    """Return the slice through ascending `positions`, in steps of the first difference."""
    step = positions[1] - positions[0] if len(positions) > 1 else 1
    return slice(positions[0], positions[-1] + 1, step)
