"""Templates and recipes as nested mappings and lists: looking into them, filling them, comparing them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import SpaceError
from evomerge.recipe import Json, short_forms


def get(data: Any, path: short_forms.Where) -> Any:
    """Return what is at `path`, `short_forms.IDLE` where the path leads into that, and None where there is nothing."""
    for part in path:
        if data is short_forms.IDLE:
            break
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def put(data: Any, path: short_forms.Where, value: Any) -> Any:
    """Return a copy of `data` with `value` at `path`; what lies off the path is shared."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        return [put(item, rest, value) if i == head else item for i, item in enumerate(data)]
    return {key: put(item, rest, value) if key == head else item for key, item in data.items()}


def table(axes: Sequence[Sequence[str | int]], values: Iterator[Json]) -> Any:
    """Nest `values`, which come in the order of the axes' product, as `Tiled.values` wants them."""
    if not axes:
        return next(values)
    entries = [table(axes[1:], values) for _ in axes[0]]
    return entries if isinstance(axes[0][0], int) else dict(zip(axes[0], entries, strict=True))


def cell(value: Any, per: tuple[str, ...], key: short_forms.Where) -> Any:
    """Return the entry of `value` (a number, or a table over the same axes) at `key`."""
    if isinstance(value, Mapping) and "per" in value:
        if tuple(value["per"]) != per:
            msg = f"the recipe tiles a parameter over {value['per']}, the space over {list(per)}"
            raise SpaceError(msg)
        return get(value["values"], key)
    return value


def same(left: Any, right: Any, holes: set[short_forms.Where], path: short_forms.Where = ()) -> bool:
    """Tell whether two recipes' data agree everywhere but at the holes."""
    if path in holes:
        return True
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[k], right[k], holes, (*path, k)) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(
            same(a, b, holes, (*path, i)) for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
    return bool(left == right)


def parents(template: Any) -> Iterator[str]:
    """Yield what a template calls the earlier candidates that it crosses: any word in place of a member's id."""
    if isinstance(template, Mapping):
        if isinstance(name := template.get("member"), str) and len(template) == 1:
            yield name
        for value in template.values():
            yield from parents(value)
    elif isinstance(template, list):
        for value in template:
            yield from parents(value)


def born(data: Any, parents: Mapping[str, str]) -> Any:
    """Return filled data with the ids of its parents."""
    if isinstance(data, Mapping):
        if len(data) == 1 and data.get("member") in parents:
            return {"member": parents[data["member"]]}
        return {key: born(value, parents) for key, value in data.items()}
    if isinstance(data, list):
        return [born(value, parents) for value in data]
    return data
