"""symmetry(live): which units of a module may be reordered together without another output, proved on the module.

Units are hidden neurons, attention heads and the dims in them, channels, the positions of the residual stream, experts of a
mixture. Their tensors are found by following axes through a pass (`trace`); then the module is permuted at random, and must
give the same outputs. What fails is left out: a symmetry may be smaller than it could be, never wrong.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from evomerge.alignment.axes import Axis, Positions, find, leaves, segments
from evomerge.alignment.rules import SELECTED, Axes
from evomerge.alignment.trace import trace
from evomerge.errors import ModelError
from evomerge.models.live import LiveModel
from evomerge.models.probes import probes
from evomerge.models.residual_stream import run
from evomerge.models.tensor_mapping import TensorMapping

TOLERANCE = 2.0**-12
"""Largest difference of a permuted module's outputs, relative to the largest: sums in another order, over dozens of layers.
A wrong permutation of random units changes outputs by their own size."""

Permutations: TypeAlias = Mapping[int, Positions]
"""By a unit's number the source of each target: int64, of the sizes of `within`, then of its own."""


@dataclass(frozen=True, slots=True)
class Unit:
    """An axis whose positions may be reordered, in all its tensors at once."""

    size: int
    tensors: tuple[str, ...]
    """Where it occurs: names in the module."""
    within: tuple[int, ...] = ()
    """The units in each of whose positions it may be reordered on its own: the dims of each head."""
    free: bool = True
    """Whether it may be reordered; others are only what free ones are within, such as experts that stay in their order."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a module's tensor whose dimensions are products of axes: its positions along each, and the axes' numbers.

    `at` has for each dimension int64 positions, of the shape of its axes' sizes. The numbers are those of units, or negative for
    other axes, whose order is fixed.
    """

    at: tuple[Positions, ...]
    axes: tuple[tuple[int, ...], ...]

    @property
    def flat(self) -> tuple[int, ...]:
        """The numbers of all axes, in order."""
        return tuple(number for some in self.axes for number in some)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of all axes, in order."""
        return tuple(size for positions in self.at for size in positions.shape)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the box with a dimension for each axis."""
        return tensor[self._open()].reshape(self.sizes)

    def sources(self, permutations: Permutations, within: Mapping[int, tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Return positions in the tensor, one int64 array for each of its dimensions, that together index the permuted box."""
        flat, taken = self.flat, []
        for own, (number, size) in enumerate(zip(flat, self.sizes, strict=True)):
            order: Positions = permutations.get(number, np.arange(size))
            # A unit may come twice, as in a square matrix, but then it is within no other.
            places = [*(flat.index(outer) for outer in within.get(number, ())), own]
            shape = [1] * len(flat)
            for place, length in zip(places, order.shape, strict=True):
                shape[place] = length
            taken.append(np.transpose(order, np.argsort(places)).reshape(shape))
        result, start = [], 0
        for positions in self.at:
            result.append(torch.from_numpy(np.asarray(positions[tuple(taken[start : start + positions.ndim])])))
            start += positions.ndim
        return tuple(result)

    def put(self, tensor: Tensor, box: Tensor) -> None:
        """Write the box into a tensor."""
        places = self._open()
        tensor[places] = box.expand(self.sizes).reshape([positions.size for positions in self.at])

    def _open(self) -> tuple[Tensor, ...]:
        """Return the positions such that indexing with them takes every combination."""
        return tuple(
            torch.from_numpy(positions.reshape(-1)).view([-1 if place == dim else 1 for place in range(len(self.at))])
            for dim, positions in enumerate(self.at)
        )


@dataclass(frozen=True)
class Symmetry:
    """The units of a module, the boxes of its tensors that have them, and what could not be reordered."""

    units: tuple[Unit, ...]
    pieces: Mapping[str, tuple[Piece, ...]]
    """By the module's tensor: those of its boxes in which there are units; tied tensors under one name."""
    mappings: Mapping[str, tuple[TensorMapping, ...]]
    """By the module's tensor, what fills it from a checkpoint."""
    shapes: Mapping[str, torch.Size] = field(repr=False)
    tied: Mapping[str, str] = field(default_factory=dict)
    """By the name of a tensor in the module, the name under which `pieces` has it."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Tensors without any unit, and what fixes their order."""

    @property
    def within(self) -> dict[int, tuple[int, ...]]:
        """By the number of a unit, the units that it is within."""
        return {number: unit.within for number, unit in enumerate(self.units)}

    def identity(self) -> dict[int, Positions]:
        """Return the permutations that change nothing."""
        return {
            number: np.broadcast_to(
                np.arange(unit.size), (*(self.units[outer].size for outer in unit.within), unit.size)
            ).copy()
            for number, unit in enumerate(self.units)
        }

    def random(self, seed: int, only: Iterable[int] | None = None) -> dict[int, Positions]:
        """Return random permutations of the units, or of `only` some; the same for a seed."""
        chosen = self.identity()
        for number in chosen if only is None else only:
            if not self.units[number].free:
                continue
            drawn = np.random.default_rng([seed, number])
            chosen[number] = drawn.permuted(chosen[number], axis=-1)
        return chosen

    def permute(self, name: str, tensor: Tensor, permutations: Permutations) -> Tensor:
        """Return a module's tensor with its units in another order: target i of a unit is its source `permutations[unit][i]`."""
        pieces = self.pieces.get(self.tied.get(name, name), ())
        if not pieces:
            return tensor
        result = tensor.clone()
        for piece in pieces:
            piece.put(result, tensor[piece.sources(permutations, self.within)])
        return result

    def assembled(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """Return a module's tensor from those of a checkpoint, which `read` returns by name."""
        mappings = self.mappings[name]
        first = read(mappings[0].source)
        if len(mappings) == 1 and mappings[0].is_identity(first.shape, self.shapes[name]):
            return first
        result = first.new_zeros(self.shapes[name])
        for mapping in mappings:
            box = result[mapping.filled]
            box.copy_(mapping.cut(read(mapping.source), box.shape))
        return result


def symmetry(live: LiveModel, inputs: Sequence[Mapping[str, Tensor]] | None = None) -> Symmetry:
    """Return the symmetry of a module, whose weights should be in general position, as any trained or random ones are.

    `inputs` are arguments of the module by name, for modules of the user; for others they are drawn. The weights are as before
    afterwards. Raises `ModelError` for a module that cannot be run on random inputs, or none of whose units can be reordered,
    with the tensors and what stood in the way.
    """
    module = live.module
    given = _inputs(module) if inputs is None else list(inputs)
    try:
        axes, unknown = trace(module, lambda: _run(module, given[0]))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{type(module).__name__} cannot be run on random inputs here, which would prove its symmetry "
            f"({type(error).__name__}: {error}); leave out `align`"
        ) from None
    found = _Search(live, given, axes).largest()
    if any(unit.free for unit in found.units):
        return found
    shown = "; ".join(f"`{name}`: {why}" for name, why in list(found.refused.items())[:5])
    ops = f"; operations that are not followed: {', '.join(unknown)}" if unknown else ""
    raise ModelError(
        f"no units of {type(module).__name__} are known to be free to reorder, so it cannot be aligned. What fixes the order: "
        f"{shown}{ops}. Leave out `align`"
    )


class _Search:
    """Looks for the largest symmetry that holds on the module."""

    def __init__(self, live: LiveModel, inputs: Sequence[Mapping[str, Tensor]], axes: Mapping[str, Axes]) -> None:
        self._live, self._inputs = live, inputs
        self._state = {name: one for name, one in live.module.state_dict().items() if name in axes}
        first: dict[tuple[object, ...], str] = {}
        self._tied = {
            name: first.setdefault((one.data_ptr(), one.shape, one.stride()), name) for name, one in self._state.items()
        }
        self._axes = {name: some for name, some in axes.items() if self._tied[name] == name}
        self._joined: dict[int, Axis] = {}  # by the id of a leaf, the leaf that it is one with
        self._alone: set[int] = set()  # ids of leaves that are reordered within no others
        self._outputs = self._run()

    def largest(self) -> Symmetry:
        """Return the symmetry."""
        while True:
            found, leaf_of = self._made()
            if self._holds(found):
                break
            wrong = [number for number in leaf_of if not self._holds(found, number)] or list(leaf_of)
            for number in wrong:
                if found.units[number].within and number in leaf_of and id(leaf_of[number]) not in self._alone:
                    self._alone.add(id(leaf_of[number]))
                else:
                    leaf_of[number].pins.add("another order changes the outputs")
        for module in sorted(
            (name for name, _ in self._live.module.named_modules()), key=lambda name: -name.count(".")
        ):
            for group in self._selected(f"{module}."):
                self._joined |= dict.fromkeys(map(id, group), group[0])
                trial, leaf_of = self._made()
                number = next(number for number, leaf in leaf_of.items() if leaf is group[0])
                if self._holds(trial, number) and self._holds(trial):
                    found = trial
                else:
                    for leaf in group:
                        del self._joined[id(leaf)]
        return found

    def _selected(self, prefix: str) -> list[list[Axis]]:
        """Return groups of axes from which positions are selected, and that may be one: the experts, in all tensors of a mixture."""
        by_size: dict[int, dict[int, Axis]] = {}
        for name, some in self._axes.items():
            for axis in map(find, some if name.startswith(prefix) else ()):
                if axis.pins == {SELECTED} and axis.size > 1 and id(axis) not in self._joined:
                    by_size.setdefault(axis.size, {})[id(axis)] = axis
        return [list(group.values()) for group in by_size.values() if len(group) > 1]

    def _made(self) -> tuple[Symmetry, dict[int, Axis]]:
        """Return the symmetry of the axes as they are, and the leaf of each free unit."""
        boxes: dict[str, list[tuple[tuple[Positions, ...], list[list[Axis]]]]] = {}
        for name, some in self._axes.items():
            parts = [
                [(at, [self._joined.get(id(leaf), leaf) for leaf in inside]) for at, inside in segments(axis)]
                for axis in some
            ]
            boxes[name] = [
                (tuple(at for at, _ in chosen), [inside for _, inside in chosen])
                for chosen in itertools.product(*parts)
            ]
        where: dict[int, list[list[int]]] = {}  # by leaf, the leaves in each of its places with which it may change
        tensors: dict[int, dict[str, None]] = {}
        every: dict[int, Axis] = {}
        for name, some_boxes in boxes.items():
            for _, inside in some_boxes:
                selected = [id(leaf) for dim in inside for leaf in dim if SELECTED in leaf.pins]
                for dim in inside:
                    for leaf in dim:
                        every[id(leaf)] = leaf
                        beside = [id(other) for other in dim]
                        # An expert's units are its own; the positions along another dimension are summed over.
                        beside += [other for other in selected if other not in beside]
                        where.setdefault(id(leaf), []).append(beside)
                        tensors.setdefault(id(leaf), {})[name] = None
        free = [key for key, leaf in every.items() if leaf.size > 1 and (not leaf.pins or key in self._joined)]
        within = {key: () if key in self._alone else _outer(key, where, free) for key in free}
        needed = {outer for some_keys in within.values() for outer in some_keys} - set(free)
        numbers = {key: number for number, key in enumerate([*free, *sorted(needed, key=list(every).index)])}
        others = {key: -1 - number for number, key in enumerate(every) if key not in numbers}
        units = tuple(
            Unit(
                every[key].size,
                tuple(tensors[key]),
                tuple(numbers[outer] for outer in within.get(key, ())),
                key in within,
            )
            for key in numbers
        )
        pieces = {}
        for name, some_boxes in boxes.items():
            made = tuple(
                Piece(
                    at, tuple(tuple(numbers.get(id(leaf), others.get(id(leaf), 0)) for leaf in dim) for dim in inside)
                )
                for at, inside in some_boxes
                if any(id(leaf) in within for dim in inside for leaf in dim)
            )
            if made:
                pieces[name] = made
        refused = {
            name: ", ".join(sorted({why for axis in some for leaf in leaves(axis) for why in leaf.pins}))
            or "nothing to reorder"
            for name, some in self._axes.items()
            if name not in pieces
        }
        mappings: dict[str, tuple[TensorMapping, ...]] = {}
        for mapping in self._live.mappings:
            mappings[mapping.target] = (*mappings.get(mapping.target, ()), mapping)
        shapes = {name: one.shape for name, one in self._state.items()}
        return Symmetry(units, pieces, mappings, shapes, self._tied, refused), {
            numbers[key]: every[key] for key in free
        }

    @torch.no_grad()
    def _holds(self, found: Symmetry, number: int | None = None) -> bool:
        """Return whether random permutations, of one unit or of all, leave the outputs as they are up to rounding."""
        permutations = found.random(0, None if number is None else [number])
        kept = {name: self._state[name].clone() for name in found.pieces}
        try:
            for name, tensor in kept.items():
                self._state[name].copy_(found.permute(name, tensor, permutations))
            outputs = self._run()
        finally:
            for name, tensor in kept.items():
                self._state[name].copy_(tensor)
        return all(
            float((came - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())
            for came, wanted in zip(outputs, self._outputs, strict=True)
        )

    @torch.no_grad()
    def _run(self) -> list[Tensor]:
        return [_run(self._live.module, given) for given in self._inputs]


def _outer(key: int, where: Mapping[int, list[list[int]]], free: Sequence[int]) -> tuple[int, ...]:
    """Return the leaves in each of whose positions a leaf can be reordered on its own: those in all of its boxes, once.

    Of two that are always together, the second is within the first.
    """
    boxes = where[key]
    if any(box.count(key) > 1 for box in boxes):
        return ()
    return tuple(
        other
        for other in dict.fromkeys(boxes[0])
        if other != key
        and all(box.count(other) == 1 for box in boxes)
        and (len(where[other]) > len(boxes) or other not in free or list(where).index(other) < list(where).index(key))
    )


def _inputs(module: Any) -> list[dict[str, Tensor]]:
    if getattr(module, "config", None) is None:
        raise ModelError(
            f"{type(module).__name__} is a module of yours, whose inputs are not known; `align` needs a model of transformers"
        )
    inputs = probes(module)
    if inputs is None:
        raise ModelError(
            f"a model whose input is `{module.main_input_name}` cannot be run on random inputs here, which would prove its "
            "symmetry; leave out `align`"
        )
    if getattr(module.config, "is_encoder_decoder", False):
        inputs = [{**given, "decoder_input_ids": given["input_ids"].flip(1)} for given in inputs]
    return inputs


def _run(module: Any, given: Mapping[str, Tensor]) -> Tensor:
    if getattr(module, "config", None) is not None:
        return run(module, given)
    output: Tensor = module(**given)
    return output
