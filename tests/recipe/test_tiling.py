"""Tiling: which entry of a table a tensor gets, and errors that name what is wrong with a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import numbers, tables

from evomerge.errors import RecipeError
from evomerge.recipe import KINDS, Place, Recipe, Tiled


def test_groups_are_consecutive_blocks():
    table = Tiled(per=("block/3",), values=[10, 20, 30])
    # group of block b of 7: floor(3 b / 7)
    assert [table.at(Place(block, 7, "mlp"), None) for block in range(7)] == [10, 10, 10, 20, 20, 30, 30]


def test_depth_is_interpolated_between_control_points():
    table = Tiled(per=("depth/3",), values=[0, 1, 3])
    # block b of 5 lies at 2 b / 4 of the two intervals
    assert [table.at(Place(block, 5, "mlp"), None) for block in range(5)] == [0, 0.5, 1, 2, 3]
    assert table.at(Place(0, 1, "mlp"), None) == 0


def test_tables_nest_from_the_outside_in():
    table = Tiled(per=("expert", "kind"), values={"maths": {"mlp": 1, "norm": 2}, "code": {"mlp": 3, "norm": 4}})
    assert table.at(Place(0, 1, "norm"), "maths") == 2
    assert table.at(Place(0, 1, "mlp"), "code") == 3
    with pytest.raises(RecipeError, match="a table over `kind` has no entry for `head`; it has mlp, norm"):
        table.at(Place(0, 1, "head"), "code")


def test_a_table_over_tensors_has_an_entry_for_each():
    table = Tiled(per=("expert", "tensor"), values={"maths": {"a.w": 1, "b.w": 2}, "code": {"a.w": 3, "b.w": 4}})
    place = Place(1, 4, "mlp", tensor="b.w")
    assert table.at(place, "maths") == 2
    assert table.shares(place, "code") == {("code", "b.w"): 1}
    table.check_tensors(["b.w", "a.w"])
    Tiled(per=("kind",), values={"mlp": 1}).check_tensors(["a.w"])


def test_a_table_over_other_tensors_than_the_models_names_the_nearest():
    names = [f"layers.{i}.mlp.weight" for i in range(40)]
    table = dict.fromkeys(names, 1.0)
    del table["layers.7.mlp.weight"]
    with pytest.raises(
        RecipeError, match=r"no entry for the merged tensor `layers.7.mlp.weight`; it has 39 entries, the n"
    ):
        Tiled(per=("tensor",), values=table).check_tensors(names)
    table |= {"layers.7.mlp.weight": 1.0, "layers.7.mlp.wieght": 1.0}
    with pytest.raises(
        RecipeError, match=r"`layers.7.mlp.wieght`, which is no merged tensor; did you mean `layers.7.mlp.we"
    ):
        Tiled(per=("tensor",), values=table).check_tensors(names)
    with pytest.raises(RecipeError, match=r"`b`, which is no merged tensor; known: layers.0.*, and 10 more$"):
        Tiled(per=("tensor",), values=dict.fromkeys([*names, "b"], 1)).check_tensors(names)
    with pytest.raises(RecipeError, match="no entry for `norm`; it has a, b"):
        Tiled(per=("tensor",), values={"a": 1, "b": 2}).at(Place(0, 1, "norm", tensor="norm"), None)


def test_more_groups_than_blocks_are_refused():
    with pytest.raises(RecipeError, match="makes 3 groups, but the model has 2 blocks; type `block/2` or less"):
        Tiled(per=("block/3",), values=[1, 2, 3]).at(Place(0, 2, "mlp"), None)


def test_shares_of_a_curve_are_those_of_the_control_points_on_both_sides():
    table = Tiled(per=("expert", "depth/3"), values={"maths": [0, 1, 3], "code": [5, 5, 5]})
    assert table.shares(Place(1, 5, "mlp"), "maths") == {("maths", 0): 0.5, ("maths", 1): 0.5}
    assert table.shares(Place(2, 5, "mlp"), "code") == {("code", 1): 1}
    assert table.shares(Place(4, 5, "mlp"), "code") == {("code", 2): 1}
    assert Tiled(per=("depth/1",), values=[7]).shares(Place(1, 5, "mlp"), None) == {(0,): 1}


@given(st.data(), tables(numbers, ["maths", "code"]), st.integers(4, 9))
def test_entries_by_their_shares_sum_to_the_value_and_shares_to_1(data, table, blocks):
    table = Tiled.model_validate(table)
    place = Place(data.draw(st.integers(0, blocks - 1)), blocks, data.draw(st.sampled_from(KINDS)))
    shares = table.shares(place, "maths")

    def entry(path):
        value = table.values
        for key in path:
            value = value[key]
        return value

    total = sum(share * entry(path) for path, share in shares.items())
    assert total == pytest.approx(table.at(place, "maths"), abs=1e-12)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0


def test_shares_refuse_what_a_look_up_refuses():
    with pytest.raises(RecipeError, match="no entry for `head`; it has mlp"):
        Tiled(per=("kind",), values={"mlp": 1}).shares(Place(0, 1, "head"), None)


def ties(**more):
    return {"merge": {"method": "ties", "inputs": ["maths", "code"], **more}}


WRONG = [
    (
        "a list as a value",
        ties(parameters={"density": [1]}),
        r"a table such as {per: \[expert\], values: {...}}; got \[1\]",
    ),
    ("a table without axes", ties(parameters={"density": {"values": 1}}), "`merge.parameters.density.per` is missing"),
    ("no axis", ties(parameters={"density": {"per": [], "values": 1}}), "expected one or more different axes"),
    (
        "an unknown axis",
        ties(parameters={"density": {"per": ["layer"], "values": [1]}}),
        "unknown axis 'layer'; expected `expert`",
    ),
    ("no groups", ties(parameters={"density": {"per": ["block/0"], "values": []}}), "unknown axis 'block/0'"),
    (
        "an axis twice",
        ties(parameters={"density": {"per": ["block/1", "depth/1"], "values": [[1]]}}),
        "only one of `block/N` and `depth/N`",
    ),
    (
        "too few groups",
        ties(parameters={"density": {"per": ["block/3"], "values": [1, 2]}}),
        "expected a list of 3 entries for `block/3`",
    ),
    (
        "a list over kinds",
        ties(parameters={"density": {"per": ["kind"], "values": [1]}}),
        "expected a mapping from kind to values",
    ),
    (
        "an unknown kind",
        ties(parameters={"density": {"per": ["kind"], "values": {"mpl": 1}}}),
        "unknown kind of tensor 'mpl'; did you mean `mlp`",
    ),
    (
        "a list over tensors",
        ties(parameters={"density": {"per": ["tensor"], "values": [1]}}),
        "expected a mapping from tensor to values",
    ),
    (
        "tensors of each kind",
        ties(parameters={"density": {"per": ["kind", "tensor"], "values": {"mlp": {"a": 1}}}}),
        "expected `tensor` alone or with `expert`: it tells all tensors apart",
    ),
    (
        "a table too deep",
        ties(parameters={"density": {"per": ["block/1"], "values": [[1]]}}),
        r"`values\[0\]` is \[1\]; expected one number",
    ),
    (
        "a table without an input",
        ties(parameters={"density": {"per": ["expert"], "values": {"maths": 1}}}),
        "no entry for the input `code`; it has maths",
    ),
    (
        "a table with a misspelt input",
        ties(parameters={"density": {"per": ["expert"], "values": {"maths": 1, "code": 1, "mats": 1}}}),
        "an entry for `mats`, which is no input; did you mean `maths`",
    ),
    (
        "the same in a stage, further in",
        {
            "merge": {
                "inputs": ["a"],
                "stages": {"weigh": [{"weight": {"weight": {"per": ["block/1", "expert"], "values": [{"b": 1}]}}}]},
            }
        },
        "no entry for the input `a`; it has b",
    ),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_tables_say_what_is_wrong_and_what_to_type(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(data)
