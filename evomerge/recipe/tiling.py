"""Tiling: a parameter as one number, or as a table over experts, towers, groups of blocks, depth, kinds of tensor, or tensors."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Tag, model_validator

from evomerge.errors import RecipeError, nearest
from evomerge.recipe.form import KeyPath
from evomerge.recipe.validation import TAG, FrozenModel

KINDS = ("attention", "mlp", "norm", "embedding", "head", "other")
"""Kinds of tensor, the axis `kind`."""

TOWERS = ("language", "vision", "audio", "projector")
"""Towers of a model, the axis `tower`; a model of text alone is its language tower."""

_AXIS = re.compile(r"expert|kind|tensor|tower|(block|depth)/[1-9]\d{0,3}")

_NAMED = ("expert", "kind", "tower", "tensor")
"""Axes whose entries have names; those of others have numbers."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tensor in a model: its block, the number of `blocks` of its stack, its kind, tower, and name in the checkpoint.

    `model` is the number of blocks of the model's largest stack where this is another one, else 0. Tensors outside the blocks
    (`inside` is false) belong to the nearest one: embeddings to block 0, others to the last. Without a name it is the place
    of all tensors like it.
    """

    block: int
    blocks: int
    kind: str
    inside: bool = True
    tensor: str = ""
    model: int = 0
    tower: str = "language"

    @property
    def depth(self) -> float:
        """How far up the block is in its stack, from 0 to 1."""
        return self.block / max(self.blocks - 1, 1)

    @property
    def unnamed(self) -> "Place":
        """The same place without the tensor's name."""
        return replace(self, tensor="")


class Tiled(FrozenModel):
    """A parameter as a table over the model: one number for each expert, group of blocks, depth, kind, or tensor.

    `per` names the axes from the outside in; `values` nests in the same order: a mapping by name for `expert`, `kind`, `tower`
    and `tensor` (names in the checkpoint), a list of N entries for `block/N` (N groups of consecutive blocks) and `depth/N` (N
    control points, interpolated linearly from the first block to the last). `tensor` stands alone or with `expert`.
    """

    per: tuple[str, ...]
    values: Any

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_axes(self.per)
        _check_table(self.values, self.per, "values")
        return self

    def at(self, place: Place, label: str | None) -> bool | int | float | str:
        """Return the entry for a tensor at `place` and the input `label`. Raises `RecipeError` if there is none."""
        value: bool | int | float | str = _look_up(self.values, self.per, place, label)
        return value

    def shares(self, place: Place, label: str | None) -> dict[KeyPath, float]:
        """Return by which coefficients the table's entries make up `at`: key path inside `values` → coefficient.

        That is {path: 1} for an entry that is looked up; on a curve over depth, there are up to two, whose sum is 1. Raises
        `RecipeError` if there is no entry.
        """
        shares: dict[KeyPath, float] = {}
        for path, share in _shares(self.values, self.per, place, label):
            shares[path] = shares.get(path, 0.0) + share
        return shares

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise `RecipeError` unless a table over `expert` has an entry for each input of its merge, and no other."""
        self._check_names("expert", labels, "input")

    def check_tensors(self, names: Collection[str]) -> None:
        """Raise `RecipeError` unless a table over `tensor` has an entry for each of the merged tensors, and no other."""
        self._check_names("tensor", names, "merged tensor")

    def _check_names(self, axis: str, names: Collection[str], noun: str) -> None:
        if axis not in self.per:
            return
        for table in _tables(self.values, self.per.index(axis)):
            for name in names:
                if name not in table:
                    msg = f"a table over `{axis}` has no entry for the {noun} `{name}`; it has {_listed(name, table)}"
                    raise RecipeError(msg)
            if len(table) > len(names):
                name = next(name for name in table if name not in names)
                msg = (
                    f"a table over `{axis}` has an entry for `{name}`, which is no {noun}; {nearest(str(name), names)}"
                )
                raise RecipeError(msg)


def _one_or_table(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | Mapping | Tiled):
        return value
    msg = f"expected one number or word, or a table such as {{per: [expert], values: {{...}}}}; got {value!r}"
    raise RecipeError(msg)


Value: TypeAlias = Annotated[
    Annotated[bool | int | float | str | None, Tag(f"{TAG}one")] | Annotated[Tiled, Tag(f"{TAG}table")],
    Discriminator(lambda value: f"{TAG}table" if isinstance(value, Mapping | Tiled) else f"{TAG}one"),
    BeforeValidator(_one_or_table),
]


def check_axes(per: Any) -> None:
    """Raise `RecipeError` unless `per` is a list of distinct axes such as `expert`, `block/4`, `kind`, `tower`, `depth/3`, `tensor`."""
    if isinstance(per, str) or not isinstance(per, Sequence):
        raise RecipeError(f"`per` is {per!r}; expected a list of axes, such as [expert, block/4]")
    for axis in per:
        if not isinstance(axis, str) or not _AXIS.fullmatch(axis):
            msg = f"`per`: unknown axis {axis!r}; expected `expert`, `kind`, `tower`, `tensor`, `block/N` or `depth/N`, N up to 9999, for example `block/4`"
            raise RecipeError(msg)
    if (
        not per
        or len({axis.split("/")[0] for axis in per}) != len(per)
        or {"block", "depth"} <= {a.split("/")[0] for a in per}
    ):
        msg = f"`per` is {list(per)}; expected one or more different axes, and only one of `block/N` and `depth/N`"
        raise RecipeError(msg)
    if "tensor" in per and set(per) - {"expert", "tensor"}:
        raise RecipeError(f"`per` is {list(per)}; expected `tensor` alone or with `expert`: it tells all tensors apart")


def axis_size(axis: str) -> int:
    """Return N of `block/N` or `depth/N`."""
    return int(axis.partition("/")[2])


def _check_table(values: Any, per: Sequence[str], where: str) -> None:
    if not per:
        if isinstance(values, bool | int | float | str):
            return
        raise RecipeError(f"`{where}` is {values!r}; expected one number or name here")
    axis = per[0]
    if axis in _NAMED:
        if not isinstance(values, Mapping) or not values:
            raise RecipeError(f"`{where}` is {values!r}; expected a mapping from {axis} to values")
        for name, inner in values.items():
            if axis == "kind" and name not in KINDS:
                raise RecipeError(f"`{where}`: unknown kind of tensor {name!r}; {nearest(str(name), KINDS)}")
            if axis == "tower" and name not in TOWERS:
                raise RecipeError(f"`{where}`: unknown tower {name!r}; {nearest(str(name), TOWERS)}")
            _check_table(inner, per[1:], f"{where}.{name}")
        return
    if not isinstance(values, list | tuple) or len(values) != axis_size(axis):
        raise RecipeError(f"`{where}` is {values!r}; expected a list of {axis_size(axis)} entries for `{axis}`")
    if len(per) > 1 or any(
        type(inner) is not float for inner in values
    ):  # a list of floats, the usual table, needs no calls
        for i, inner in enumerate(values):
            _check_table(inner, per[1:], f"{where}[{i}]")


def _tables(table: Any, depth: int) -> Iterator[Mapping[Any, Any]]:
    """Yield the mappings `depth` levels inside a nested table."""
    if depth == 0:
        yield table
        return
    for inner in table.values() if isinstance(table, Mapping) else table:
        yield from _tables(inner, depth - 1)


def _listed(name: str, table: Collection[Any]) -> str:
    """Return the names that a table has, or of many the one nearest to `name`."""
    names = [str(other) for other in table]
    if len(names) <= 30:
        return ", ".join(names)
    return f"{len(names)} entries, the nearest for `{difflib.get_close_matches(name, names, 1, 0.0)[0]}`"


def _look_up(table: Any, per: Sequence[str], place: Place, label: str | None) -> Any:
    if not per:
        return table
    axis = per[0]
    near, far, share = _cells(table, axis, place, label)
    value = _look_up(table[near], per[1:], place, label)
    if not axis.startswith("depth"):
        return value
    other = _look_up(table[far], per[1:], place, label)
    if isinstance(value, str) or isinstance(other, str):
        raise RecipeError(f"`{axis}` interpolates between {value!r} and {other!r}; expected numbers")
    return value + (other - value) * share


def _shares(table: Any, per: Sequence[str], place: Place, label: str | None) -> Iterator[tuple[KeyPath, float]]:
    if not per:
        yield (), 1.0
        return
    near, far, share = _cells(table, per[0], place, label)
    for key, part in ((near, 1.0 - share), (far, share)):
        if part:
            for path, inner in _shares(table[key], per[1:], place, label):
                yield (key, *path), part * inner


def _cells(table: Any, axis: str, place: Place, label: str | None) -> tuple[Any, Any, float]:
    """Return the keys of the two entries between which a tensor lies along the outermost axis, and the second's share."""
    if axis in _NAMED:
        key = {"expert": label, "kind": place.kind, "tower": place.tower, "tensor": place.tensor}[axis]
        if key not in table:
            raise RecipeError(f"a table over `{axis}` has no entry for `{key}`; it has {_listed(str(key), table)}")
        return key, key, 0.0
    size = axis_size(axis)
    if axis.startswith("block"):
        if size > max(place.blocks, place.model):
            msg = f"`{axis}` makes {size} groups, but the model has {place.blocks} blocks; type `block/{place.blocks}` or less"
            raise RecipeError(msg)
        group = place.block * size // place.blocks
        return group, group, 0.0
    depth = place.depth * (size - 1)
    left = min(int(depth), max(size - 2, 0))
    return left, min(left + 1, size - 1), depth - left
