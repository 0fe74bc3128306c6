"""Axis: what the positions along a dimension of a tensor are, found by following them through the operations of a module.

Two dimensions with one axis are in the same order: if units are reordered in one, they must be in the other. An axis is refined
as operations take it apart: a product where a dimension is reshaped into several (heads times their dims), a sum where it is
cut (a fused q, k, v). An axis is pinned where an operation depends on the order, such as the tokens of a vocabulary.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Positions: TypeAlias = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Axis:
    """An axis of `size` positions. It is one axis with `same`, if that is given; else made of its `parts`, if it has any."""

    size: int
    pins: set[str] = field(default_factory=set)
    """Why its order is fixed: the names of operations; empty where it is free."""
    same: "Axis | None" = None
    parts: "tuple[Axis, ...]" = ()
    product: bool = False
    """Whether it is the product of its parts, row-major, not their sum."""


def find(axis: Axis) -> Axis:
    """Return the axis that stands for `axis` and all that were unified with it."""
    while axis.same is not None:
        axis = axis.same
    return axis


def leaves(axis: Axis) -> list[Axis]:
    """Return the axes without parts that it is made of, in order."""
    axis = find(axis)
    return [leaf for part in axis.parts for leaf in leaves(part)] if axis.parts else [axis]


def pin(axis: Axis, why: str) -> None:
    """Fix the order of an axis."""
    for leaf in leaves(axis):
        leaf.pins.add(why)


def fixed(size: int, why: str) -> Axis:
    """Return a new axis whose order is fixed."""
    return Axis(size, {why})


def product(parts: Sequence[Axis]) -> Axis:
    """Return the product of axes, the first outermost."""
    parts = [factor for part in parts for factor in _factors(part) if factor.size != 1]
    if len(parts) == 1:
        return parts[0]
    return Axis(prod(part.size for part in parts), parts=tuple(parts), product=True) if parts else Axis(1)


def concatenated(parts: Sequence[Axis]) -> Axis:
    """Return the sum of axes, one after the other."""
    parts = [part for part in parts if part.size]
    return parts[0] if len(parts) == 1 else Axis(sum(part.size for part in parts), parts=tuple(parts))


def unify(one: Axis, other: Axis) -> None:
    """Make two axes of equal size one."""
    one, other = find(one), find(other)
    if one is other or one.size == 1:
        return
    if one.size != other.size:
        pin(one, "another size")
        pin(other, "another size")
    elif not one.parts or not other.parts:
        leaf, kept = (one, other) if not one.parts else (other, one)
        if any(inner is leaf for inner in leaves(kept)):
            pin(kept, "itself")
            return
        leaf.same = kept
        for why in leaf.pins:
            pin(kept, why)
    elif one.product and other.product:
        _unify_factors(_factors(one), _factors(other))
    else:
        points = sorted({*_boundaries(one), *_boundaries(other)})
        for left, right in zip(cut(one, points), cut(other, points), strict=True):
            unify(left, right)


def cut(axis: Axis, points: Sequence[int]) -> list[Axis]:
    """Return the axis in pieces: `points` are ascending, strictly between 0 and its size."""
    axis = find(axis)
    if not points:
        return [axis]
    sizes = np.diff([0, *points, axis.size]).tolist()
    if not axis.parts:
        axis.parts = tuple(Axis(size, set(axis.pins)) for size in sizes)
        return list(axis.parts)
    if axis.product:
        outer, *inner = axis.parts
        step = prod(part.size for part in inner)
        if all(point % step == 0 for point in points):
            return [product([piece, *inner]) for piece in cut(outer, [point // step for point in points])]
        pin(axis, "a cut")
        return [fixed(size, "a cut") for size in sizes]
    pieces, start = [], 0
    for part in axis.parts:
        inside = [point - start for point in points if start < point < start + part.size]
        pieces += cut(part, inside)
        start += part.size
    ends = np.cumsum([piece.size for piece in pieces]).tolist()
    groups: list[list[Axis]] = [[]]
    for piece, end in zip(pieces, ends, strict=True):
        groups[-1].append(piece)
        if end in points:
            groups.append([])
    return [concatenated(group) for group in groups]


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Return the axes of a tensor with the dimensions `axes` after it is reshaped to `sizes`."""
    left = [factor for axis in axes for factor in _factors(axis) if factor.size != 1]
    grouped: list[Axis] = []
    for size in reversed(sizes):
        parts: list[Axis] = []
        missing = size
        while missing > 1:
            last = left.pop()
            if missing % last.size == 0:
                parts.insert(0, last)
                missing //= last.size
            elif last.size % missing == 0 and len(halves := _split(last, missing)) == 2:
                left += [*_factors(halves[0])]
                parts.insert(0, halves[1])
                missing = 1
            else:
                for axis in axes:
                    pin(axis, "reshape")
                return [fixed(size, "reshape") for size in sizes]
        grouped.insert(0, product(parts))
    return grouped


def segments(axis: Axis) -> list[tuple[Positions, list[Axis]]]:
    """Return the parts of a sum: the positions of each, and the leaves whose product it is.

    The positions are int64, of the shape of the leaves' sizes.
    """
    axis = find(axis)
    if axis.size == 1 and not axis.parts:
        return [(np.zeros((), np.int64), [])]
    if not axis.parts:
        return [(np.arange(axis.size), [axis])]
    inner = [segments(part) for part in axis.parts]
    if not axis.product:
        starts = np.cumsum([0, *(part.size for part in axis.parts)])[:-1]
        return [(at + start, some) for start, part in zip(starts, inner, strict=True) for at, some in part]
    made = []
    for chosen in itertools.product(*inner):
        at = np.zeros((), np.int64)
        some: list[Axis] = []
        for (positions, more), part in zip(chosen, axis.parts, strict=True):
            at = at[(...,) + (None,) * positions.ndim] * part.size + positions
            some += more
        made.append((at, some))
    return made


def _factors(axis: Axis) -> list[Axis]:
    axis = find(axis)
    return [factor for part in axis.parts for factor in _factors(part)] if axis.product else [axis]


def _boundaries(axis: Axis) -> list[int]:
    """Return the points between the parts of a sum."""
    return [] if axis.product else np.cumsum([part.size for part in axis.parts])[:-1].tolist()


def _split(axis: Axis, size: int) -> list[Axis]:
    """Return the factors of an axis, the inner of them of `size`; nothing where it has no such factors."""
    axis = find(axis)
    outer = axis.size // size
    if axis.parts:
        return []
    axis.parts, axis.product = (Axis(outer, set(axis.pins)), Axis(size, set(axis.pins))), True
    return list(axis.parts)


def _unify_factors(ones: list[Axis], others: list[Axis]) -> None:
    ones, others = list(ones), list(others)
    while ones and others:
        one, other = find(ones.pop()), find(others.pop())
        if one.parts and one.product:
            ones += one.parts
            others.append(other)
        elif other.parts and other.product:
            others += other.parts
            ones.append(one)
        elif one.size == other.size:
            unify(one, other)
        elif one.size % other.size == 0 and (halves := _split(one, other.size)):
            ones.append(halves[0])
            unify(halves[1], other)
        elif other.size % one.size == 0 and (halves := _split(other, one.size)):
            others.append(halves[0])
            unify(one, halves[1])
        else:
            for axis in (one, other, *ones, *others):
                pin(axis, "reshape")
            return
