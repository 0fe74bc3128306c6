"""Which parameters have slopes."""

import pytest

from evomerge.merging import inputs_sloped, sloped
from evomerge.recipe import Recipe, merge


def names(recipe):
    return {"/".join(map(str, path)) for path in sloped(recipe.root.merge)}


@pytest.mark.parametrize(
    ("method", "inputs", "expected"),
    [
        ("task_arithmetic", 2, {"weight", "lambda"}),
        ("ties", 2, {"weight", "lambda"}),
        ("dare_linear", 2, {"weight", "lambda"}),
        ("slerp", 2, {"t"}),
        ("split_slerp", 2, {"t"}),
        ("pcb", 2, {"factor", "lambda"}),
        ("opcm", 2, set()),
        ("layer_swap", 2, set()),
    ],
)
def test_methods_have_slopes_where_they_are_smooth(method, inputs, expected):
    assert names(merge(method, ["a", "b"][:inputs])) == {f"parameters/{name}" for name in expected}


def test_weights_before_a_measured_scale_have_none():
    assert names(merge("lines", ["a", "b"])) == {
        "parameters/alpha",
        "parameters/beta",
    }  # alpha is `auto`, of the merged length
    assert "parameters/weight" in names(merge("lines", ["a", "b"], {"alpha": 0.4}))
    table = {"per": ["block/2"], "values": [0.4, "auto"]}
    assert "parameters/weight" not in names(merge("lines", ["a", "b"], {"alpha": table}))


def test_stages_are_named_by_their_place():
    stages = {"edit": ["none", {"multiply": {}}], "weigh": [{"elect": {"weight": 0.5}}], "post": ["scale"]}
    recipe = Recipe.parse({"merge": {"inputs": ["a", "b"], "stages": stages}})
    assert names(recipe) == {
        "stages/edit/1/multiply/factor",
        "stages/weigh/0/elect/weight",
        "stages/post/0/scale/lambda",
    }


def test_slopes_pass_to_inputs_unless_the_merge_measures_them():
    assert inputs_sloped(merge("ties", ["a", "b"]).root.merge)
    for method in ("slerp", "tsv", "sce"):
        assert not inputs_sloped(merge(method, ["a", "b"]).root.merge)
