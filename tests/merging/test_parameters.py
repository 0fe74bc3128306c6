"""Parameters: what is valid, and which entry of a table a tensor gets."""

import pytest

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter, at, resolve
from evomerge.recipe import Place, Tiled

NUMBER = Parameter("a number", 0.5, 0.0, 1.0)
WORD = Parameter("a word", "sum", choices=("sum", "mean"), per_input=False)


@pytest.mark.parametrize("value", [0, 1, 0.5, True and 1])
def test_numbers_in_range_are_valid(value):
    NUMBER.check("density", value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True, None, [0.5], 10**400])
def test_anything_else_is_refused_with_the_range(value):
    with pytest.raises(RecipeError, match=r"`density` is .*; expected a number in \[0, 1\]"):
        NUMBER.check("density", value)


@pytest.mark.parametrize("value", ["max", "", 1, None, True])
def test_unknown_words_are_refused_with_the_known(value):
    with pytest.raises(RecipeError, match="expected one of sum, mean"):
        WORD.check("reduce", value)


def test_every_entry_of_a_table_is_checked():
    table = Tiled(per=("expert", "block/2"), values={"a": [0.1, 0.2], "b": [0.3, 1.4]})
    with pytest.raises(RecipeError, match=r"1\.4"):
        NUMBER.check("density", table)


def test_a_word_for_all_inputs_cannot_differ_by_expert():
    with pytest.raises(RecipeError, match="remove `expert` from its `per`"):
        WORD.check("reduce", Tiled(per=("expert",), values={"a": "sum"}))


def test_a_word_cannot_be_interpolated():
    with pytest.raises(RecipeError, match="use `block/N`"):
        WORD.check("reduce", Tiled(per=("depth/2",), values=["sum", "mean"]))


def test_block_groups_are_consecutive_and_nearly_equal():
    table = Tiled(per=("block/3",), values=[0, 1, 2])
    assert [at(table, Place(block, 7, "mlp")) for block in range(7)] == [0, 0, 0, 1, 1, 2, 2]


def test_depth_is_linear_from_the_first_block_to_the_last():
    table = Tiled(per=("depth/3",), values=[0.0, 1.0, 0.0])
    assert [at(table, Place(block, 5, "mlp")) for block in range(5)] == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_depth_of_one_point_or_one_block_is_constant():
    assert at(Tiled(per=("depth/1",), values=[0.7]), Place(3, 5, "mlp")) == 0.7
    assert at(Tiled(per=("depth/2",), values=[0.7, 0.1]), Place(0, 1, "mlp")) == 0.7


def test_axes_nest_in_the_order_of_per():
    table = Tiled(
        per=("kind", "expert", "block/2"),
        values={"mlp": {"a": [1, 2], "b": [3, 4]}, "norm": {"a": [5, 6], "b": [7, 8]}},
    )
    assert resolve(NUMBER, table, Place(3, 4, "norm"), ["b", "a"]) == (8, 6)


def test_a_parameter_per_input_is_a_tuple_and_any_other_one_value():
    place = Place(0, 4, "mlp")
    assert resolve(NUMBER, 0.25, place, ["a", "b"]) == (0.25, 0.25)
    assert resolve(WORD, "sum", place, ["a", "b"]) == "sum"
    shared = Parameter("one number for all inputs", 0.5, 0.0, 1.0, per_input=False)
    assert resolve(shared, Tiled(per=("block/2",), values=[0.1, 0.2]), Place(3, 4, "mlp"), ["a", "b"]) == 0.2


def test_a_word_among_numbers():
    """A parameter with bounds and choices is either."""
    mixed = Parameter("a number or a word", "auto", 0.0, 1.0, choices=("auto",), per_input=False)
    assert not mixed.is_word
    assert WORD.is_word
    for value in (0, 0.3, 1, "auto"):
        mixed.check("alpha", value)
    for value in (1.5, "automatic", None):
        with pytest.raises(RecipeError, match=r"expected a number in \[0, 1\], or one of auto"):
            mixed.check("alpha", value)


def test_integers():
    count = Parameter("a count", 1, 0, 9, integer=True)
    for value in (0, 3, 9, 3.0):
        count.check("agree", value)
    for value in (0.5, 10, -1, True):
        with pytest.raises(RecipeError, match=r"expected an integer in \[0, 9\]"):
            count.check("agree", value)


def test_missing_kind_and_too_many_groups_say_so():
    with pytest.raises(RecipeError, match="no entry for `norm`; it has mlp"):
        at(Tiled(per=("kind",), values={"mlp": 1}), Place(0, 4, "norm"))
    with pytest.raises(RecipeError, match="the model has 4 blocks; type `block/4` or less"):
        at(Tiled(per=("block/5",), values=[1] * 5), Place(0, 4, "mlp"))
