"""Templates and recipes as nested mappings and lists: reading, filling and comparing them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import SpaceError
from evomerge.recipe import Json
from evomerge.recipe.form import KeyPath


def get(data: Any, path: KeyPath) -> Any:
    """Return the value at `path`; None if there is no such place."""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def put(data: Any, path: KeyPath, value: Any) -> Any:
    """Return a copy of `data` with `value` at `path`; everything off the path is shared."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        return [put(item, rest, value) if i == head else item for i, item in enumerate(data)]
    return {key: put(item, rest, value) if key == head else item for key, item in data.items()}


def table(axes: Sequence[Sequence[str | int]], values: Iterator[Json]) -> Any:
    """Return `values`, in the order of the product of the axes, nested as in `Tiled.values`."""
    if not axes:
        return next(values)
    entries = [table(axes[1:], values) for _ in axes[0]]
    return entries if isinstance(axes[0][0], int) else dict(zip(axes[0], entries, strict=True))


def cell(value: Any, per: tuple[str, ...], key: KeyPath) -> Any:
    """Return the entry of `value` (a number, or a table over the same axes) at `key`."""
    if isinstance(value, Mapping) and "per" in value:
        if tuple(value["per"]) != per:
            raise SpaceError(f"the recipe tiles a parameter over {value['per']}, the space over {list(per)}")
        return get(value["values"], key)
    return value


def same(left: Any, right: Any, holes: set[KeyPath], path: KeyPath = ()) -> bool:
    """Return whether the data of two recipes are equal everywhere except in the holes."""
    if path in holes:
        return True
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[k], right[k], holes, (*path, k)) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            same(a, b, holes, (*path, i)) for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
    return bool(left == right)


def with_parents(data: Any, ids: Mapping[str, str]) -> Any:
    """Return filled data with the `ids` of its parents in place of their names."""
    if isinstance(data, Mapping):
        if len(data) == 1 and isinstance(name := data.get("member"), str) and name in ids:
            return {"member": ids[name]}
        return {key: with_parents(value, ids) for key, value in data.items()}
    if isinstance(data, list):
        return [with_parents(value, ids) for value in data]
    return data
