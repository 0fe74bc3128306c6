"""Finds where each tensor of a checkpoint lands in a module, whatever transformers renames, splits or fuses on the way.

Nothing is known here of architectures or of transformers' conversion rules. The loader itself is asked, with
tensors whose every element says which tensor it is from (first load) and where it was in it (one more load
for each dimension). These probes are broadcast views that take no memory, except where the loader fuses them.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import ModelError

Box = tuple[slice, ...]
Load = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Loads a checkpoint's tensors in fp32, and returns the module's by their names there."""

_FIRST = 1 << 20  # tensors are numbered from here, where no initial value of a parameter lies; fp32 is exact to 1 << 24


@dataclass(frozen=True, slots=True)
class TensorMapping:
    """A box of a checkpoint's tensor, and the box of a module's tensor that it fills, element by element."""

    source: str
    taken: Box
    order: tuple[int, ...]
    target: str
    filled: Box

    def cut(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Return what lands: the box of the checkpoint's `tensor`, turned and shaped to the `shape` of the box it fills."""
        return tensor[self.taken].permute(self.order).reshape(shape)

    def whole(self, source: Sequence[int], shape: Sequence[int]) -> bool:
        """Say whether all of a tensor of shape `source` lands as it is in a box of `shape`."""
        return tuple(source) == tuple(shape) and self.order == tuple(range(len(source)))


def find_mappings(shapes: Mapping[str, tuple[int, ...]], load: Load) -> list[TensorMapping]:
    """Return all mappings of a checkpoint with tensors of these `shapes`, in order of the module's names.

    Raises `ModelError` naming the tensor where the loader does more than to move elements in boxes.
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
            own = range(len(shapes[source]))
            mapping = _orient(
                source, target, filled, [sent[i][source] for i in own], [seen[i][target][filled] for i in own]
            )
            if mapping is None:
                msg = (
                    f"tensor `{source}` of the checkpoint cannot be written into `{target}` of the model in place: "
                    "loading does more than to move it; such an architecture is not supported"
                )
                raise ModelError(msg)
            mappings.append(mapping)
    return mappings


def _coordinates(shape: tuple[int, ...], axis: int) -> Tensor:
    """Return a tensor of `shape` that holds each element's position along `axis`, or zeros where there is no such axis."""
    if axis >= len(shape):
        return torch.zeros(()).expand(shape)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return torch.arange(shape[axis], dtype=torch.float32).view(along).expand(shape)


def _boxes(numbers: Tensor, count: int) -> Iterator[tuple[int, Box]]:
    """Yield the number of each of `count` probes found in a module's tensor, and the box that it fills there."""
    core = _core(numbers)
    for value in _values(core):
        number = int(value) - _FIRST
        if value != int(value) or not 0 <= number < count:
            continue
        mask = core == value
        box = tuple(_span(mask, axis) for axis in range(mask.ndim))
        if bool(mask[box].all()):
            yield number, box


def _orient(
    source: str, target: str, filled: Box, sent: Sequence[Tensor], seen: Sequence[Tensor]
) -> TensorMapping | None:
    """Return the mapping that explains the coordinates `seen` in a box, one tensor per axis of the source, or None."""
    taken = tuple(_arithmetic([int(value) for value in _values(_core(tensor))]) for tensor in seen)
    for order in itertools.permutations(range(len(sent))):
        mapping = TensorMapping(source, taken, order, target, filled)
        if all(
            one[taken].numel() == other.numel() and _equal(mapping.cut(one, other.shape), other)
            for one, other in zip(sent, seen, strict=True)
        ):
            return mapping
    return None


def _core(tensor: Tensor) -> Tensor:
    """Return the view of `tensor` that has length 1 along each axis along which nothing changes."""
    for axis in range(tensor.ndim):
        first = tensor.narrow(axis, 0, 1)
        if tensor.stride(axis) == 0 or bool((tensor == first).all()):
            tensor = first
    return tensor


def _values(tensor: Tensor) -> list[float]:
    """Return the different values in `tensor`, ascending."""
    values: list[float] = tensor.unique().tolist()  # type: ignore[no-untyped-call]  # the library has no types here
    return values


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(_core(one), _core(other))


def _span(mask: Tensor, axis: int) -> slice:
    """Return the positions along `axis` at which anything of `mask` is set; an axis of length 1 stands for all."""
    size = mask.shape[axis]
    if size == 1:
        return slice(None)
    return _arithmetic(mask.movedim(axis, 0).reshape(size, -1).any(1).nonzero().flatten().tolist())


def _arithmetic(positions: Sequence[int]) -> slice:
    """Return the slice from the first to the last of ascending `positions`, in steps of the first difference."""
    step = positions[1] - positions[0] if len(positions) > 1 else 1
    return slice(positions[0], positions[-1] + 1, step)
