"""Recipes as heat maps: the numbers of a recipe over experts, depth and kinds of tensor."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.recipe import Place, Recipe, StackNode
from evomerge.recipe.merges import MergeNode
from evomerge.recipe.tiling import Tiled


def panels(recipe: Recipe, pool: Pool) -> list[dict[str, Any]]:
    """Return a heat map for each parameter of each merge in `recipe`, and one for the layers of each stack.

    A map has `rows` (experts; one that is empty where the parameter has no axis over experts), `columns` (blocks; one that is empty
    where it is the same for all) and, by kind of tensor, `values` `(rows, columns)`: means over the kind's tensors in a block, None
    where it has none there. Kinds are left out, as the one kind ``, where they do not differ.
    """
    places = [pool.layout.place(name) for name in pool.merged]
    return list(_panels(recipe, places, ""))


def _panels(recipe: Recipe, places: Sequence[Place], where: str) -> Iterator[dict[str, Any]]:
    node = recipe.root
    if isinstance(node, MergeNode):
        merge = node.merge
        stages = () if merge.stages is None else (*merge.stages.edit, *merge.stages.weigh, *merge.stages.post)
        parts: list[tuple[str, Mapping[str, Any]]] = [(merge.method or "", merge.parameters)]
        parts += [next(iter(stage.items())) for stage in stages if isinstance(stage, Mapping)]
        for name, parameters in parts:
            for key, value in parameters.items():
                shown = _panel(value, places, merge.labels)
                if shown is not None:
                    yield {"name": f"{where}{name}: {key}" if name else f"{where}{key}", **shown}
        for label, child in zip(merge.labels, merge.inputs, strict=True):
            yield from _panels(child, places, f"{where}{label} / ")
    elif isinstance(node, StackNode):
        yield _layers(node, where)
        sources = dict.fromkeys(slot.source for slot in node.stack.slots)
        for source in (*sources, node.stack.rest):
            yield from _panels(source, places, f"{where}{source.root.label or source.id[:8]} / ")
    elif node.children:  # the model that the node changes
        yield from _panels(node.children[0], places, where)


def _panel(value: Any, places: Sequence[Place], labels: Sequence[str]) -> dict[str, Any] | None:
    """Return one parameter's map; None for one that is no number."""
    if not isinstance(value, Tiled):
        number = _number(value)
        return None if number is None else {"rows": [""], "columns": [""], "values": {"": [[number]]}}
    axes = {axis.partition("/")[0] for axis in value.per}
    rows = list(labels) if "expert" in axes else [""]
    deep, sorted_by = bool(axes & {"block", "depth", "tensor"}), bool(axes & {"kind", "tensor"})
    columns = sorted({place.block for place in places}) if deep else [0]
    cells: dict[str, dict[tuple[int, int], list[float]]] = {}
    for place in dict.fromkeys(places if "tensor" in axes else (one.unnamed for one in places)):
        for row, label in enumerate(rows):
            try:
                number = _number(value.at(place, label or None))
            except RecipeError:  # a table that leaves a kind out that the model has
                number = None
            if number is not None:
                kind, column = place.kind if sorted_by else "", columns.index(place.block) if deep else 0
                cells.setdefault(kind, {}).setdefault((row, column), []).append(number)
    if not cells:
        return None
    values = {
        kind: [[_mean(found.get((row, column))) for column in range(len(columns))] for row in range(len(rows))]
        for kind, found in cells.items()
    }
    return {"rows": rows, "columns": [str(block) for block in columns] if deep else [""], "values": values}


def _layers(node: StackNode, where: str) -> dict[str, Any]:
    """Return the layers of a stack: columns are slots, rows their sources, values the number of the layer."""
    slots = node.stack.slots
    names = [slot.source.root.label or slot.source.id[:8] for slot in slots]
    rows = list(dict.fromkeys(names))
    table = [[slot.layer if name == row else None for slot, name in zip(slots, names, strict=True)] for row in rows]
    return {
        "name": f"{where}layers",
        "rows": rows,
        "columns": [str(i) for i in range(len(slots))],
        "values": {"": table},
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


def _mean(numbers: Sequence[float] | None) -> float | None:
    if not numbers:
        return None
    return numbers[0] if len({*numbers}) == 1 else sum(numbers) / len(numbers)
