"""Activations: those of a model's units, read from the statistic `inputs`: what a matrix takes is what units give.

Tables are by the checkpoint's tensors, and units by the module's: a table's columns are along the axes that the matrix sums over.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.alignment.axes import Positions
from evomerge.alignment.boxes import Box
from evomerge.alignment.symmetries import Permutations, Piece, Symmetry
from evomerge.models.tensor_mapping import TensorMapping

Read = Callable[[str], Mapping[str, Tensor]]
"""(tensor of the checkpoint) → the tables of the statistic `inputs`, {} where it has none."""

Activations = tuple[Read, Read]
"""Of the model that is aligned, and of the one that it is aligned to."""

_TOKENS = -(1 << 40)
"""The number of the axis of tokens, which no other axis has."""
_CONSTANT = 1e-5
"""Largest standard deviation, relative to the root of the mean square, of a unit that counts as constant."""


def observed(symmetry: Symmetry, source: Read, to: Read) -> list[Box]:
    """Return boxes of standardised activations, each of units and tokens; activations that several matrices share come once.

    Left out are matrices that saw other tokens in one model than in the other, as the experts of a mixture do.
    """
    boxes: list[Box] = []
    seen: set[tuple[bytes, tuple[int, ...]]] = set()
    for target, mappings in symmetry.mappings.items():
        for mapping in mappings:
            given, wanted = source(mapping.source), to(mapping.source)
            if not given or not wanted or not torch.equal(given["counts"], wanted["counts"]):
                continue
            rows, axis = wanted["rows"], int(wanted["axis"])
            digest = hashlib.sha256(rows.numpy().tobytes()).digest()
            shape, positions = _along(symmetry, target, mapping, axis)
            for at, axes in positions:
                flat = tuple(number for some in axes for number in some)
                if (digest, flat) in seen or not _is_observed(symmetry, flat):
                    continue
                seen.add((digest, flat))
                piece = Piece((np.arange(len(rows)), *at), ((_TOKENS,), *axes))
                boxes.append(Box(piece, _reader(to, mapping.source, shape), _reader(source, mapping.source, shape)))
    return boxes


def _reader(read: Read, name: str, shape: Sequence[int]) -> Callable[[], Tensor]:
    return lambda: standardised(read(name)["rows"]).view(-1, *shape)


def reordered(symmetry: Symmetry, name: str, tables: Mapping[str, Tensor], orders: Permutations) -> Tensor | None:
    """Return the rows of a matrix's inputs in another order of the model's units; None where it is not known what the columns are."""
    rows, axis = tables["rows"], int(tables["axis"])
    for target, mappings in symmetry.mappings.items():
        for mapping in mappings:
            if mapping.source != name or symmetry.tied.get(target, target) not in symmetry.pieces:
                continue
            shape, positions = _along(symmetry, target, mapping, axis)
            if not shape:
                return None
            given = rows.view(-1, *shape)
            rows = given.clone()
            for at, axes in positions:
                piece = Piece((np.arange(len(rows)), *at), ((_TOKENS,), *axes))
                if any(outer not in piece.flat for number in piece.flat for outer in symmetry.within.get(number, ())):
                    return None
                piece.put(rows, given[piece.sources(orders, symmetry.within)])
            return rows.flatten(1)
    return rows


def standardised(rows: Tensor) -> Tensor:
    """Return columns, `(rows, d)`, with mean 0 and norm 1, fp64, so that inner products are correlations; 0 for constant ones."""
    rows = rows.double()
    centred = rows - rows.mean(0)
    norm = centred.norm(dim=0)
    constant = norm <= _CONSTANT * rows.norm(dim=0)
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, norm))


def _along(
    symmetry: Symmetry, target: str, mapping: TensorMapping, axis: int
) -> tuple[list[int], list[tuple[tuple[Positions, ...], tuple[tuple[int, ...], ...]]]]:
    """Return the shape of a row of inputs, and what its positions are: those in the module's tensor, and their axes.

    `axis` is 1 where a matrix sums over all of the checkpoint's dimensions but the first, 0 where over the first.
    """
    shape = symmetry.shapes[target]
    inside = range(1, len(mapping.order)) if axis else range(1)
    dims = [dim for dim, of in enumerate(mapping.order) if of in inside]
    box = torch.empty(shape, device="meta")[mapping.filled].shape
    whole = len(mapping.order) == len(shape) and all(box[dim] == shape[dim] for dim in dims)
    if not whole or [mapping.order[dim] for dim in dims] != [*inside]:
        return [], []
    by_axes = {}
    for piece in symmetry.pieces.get(symmetry.tied.get(target, target), ()):
        at, axes = tuple(piece.at[dim] for dim in dims), tuple(piece.axes[dim] for dim in dims)
        by_axes[axes, tuple(positions.tobytes() for positions in at)] = at, axes
    return [shape[dim] for dim in dims], list(by_axes.values())


def _is_observed(symmetry: Symmetry, flat: Sequence[int]) -> bool:
    """Return whether there is a unit among the axes that can be reordered, and all that units are within."""
    units = [symmetry.units[number] for number in flat if number >= 0]
    return any(unit.free for unit in units) and all(outer in flat for unit in units for outer in unit.within)
