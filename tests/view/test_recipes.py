"""Heat maps of recipes: numbers over experts, depth and kinds, computed here by hand."""

import pytest

from evomerge.recipe import Recipe
from evomerge.view.recipes import panels


def shown(pool, data):
    return {panel["name"]: panel for panel in panels(Recipe.parse(data), pool)}


def merge(**parameters):
    return {"merge": {"method": "task_arithmetic", "inputs": ["maths", "code"], "parameters": parameters}}


def test_one_number_is_one_cell(pool):
    panel = shown(pool, merge(weight=0.5))["task_arithmetic: weight"]
    assert (panel["rows"], panel["columns"], panel["values"]) == ([""], [""], {"": [[0.5]]})


def test_experts_are_rows_and_blocks_columns(pool):
    blocks = pool.layout.blocks
    values = {"maths": [0.1, 0.2], "code": [0.3, 0.4]}
    panel = shown(pool, merge(weight={"per": ["expert", "block/2"], "values": values}))["task_arithmetic: weight"]
    assert panel["rows"] == ["maths", "code"]
    assert panel["columns"] == [str(i) for i in range(blocks)]
    half = [i * 2 // blocks for i in range(blocks)]
    assert panel["values"] == {"": [[values[name][at] for at in half] for name in ("maths", "code")]}


def test_kinds_are_apart(pool):
    kinds = pool.layout.kinds
    table = {"per": ["kind"], "values": {kind: float(i) for i, kind in enumerate(kinds)}}
    panel = shown(pool, merge(weight=table))["task_arithmetic: weight"]
    merged = {pool.layout.place(name).kind for name in pool.merged}
    assert panel["values"] == {kind: [[float(i)]] for i, kind in enumerate(kinds) if kind in merged}


def test_tensors_are_averaged_within_a_kind_and_block(pool):
    values = {name: float(i) for i, name in enumerate(pool.merged)}
    panel = shown(pool, merge(weight={"per": ["tensor"], "values": values}))["task_arithmetic: weight"]
    for kind, [line] in panel["values"].items():
        for block, value in enumerate(line):
            place = [
                v for n, v in values.items() if (pool.layout.place(n).kind, pool.layout.place(n).block) == (kind, block)
            ]
            assert value == (pytest.approx(sum(place) / len(place)) if place else None)


def test_nested_merges_and_stages_are_named_by_their_place(pool):
    inner = merge(weight=0.3)
    data = {"merge": {"inputs": ["prose", inner], "stages": {"edit": [{"trim": {"density": 0.4}}], "reduce": "sum"}}}
    assert [*shown(pool, data)] == ["trim: density", "#1 / task_arithmetic: weight"]


def test_a_stack_shows_which_layer_of_which_source_is_where(pool):
    slots = [{"source": "maths", "layer": 1}, {"source": "code", "layer": 0}, {"source": "maths", "layer": 0}]
    panel = shown(pool, {"stack": {"slots": slots, "rest": "maths"}})["layers"]
    assert panel["rows"] == ["maths", "code"]
    assert panel["values"] == {"": [[1, None, 0], [None, 0, None]]}
