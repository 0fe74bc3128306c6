"""Parameters: what is valid, and which entry of a table a tensor gets."""

import pytest
import torch

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter, at, column
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
    assert column(table, Place(3, 4, "norm"), ["b", "a"]).tolist() == [[8.0], [6.0]]
    assert column(0.25, Place(0, 4, "mlp"), ["a", "b"]).dtype == torch.float32


def test_missing_kind_and_too_many_groups_say_so():
    with pytest.raises(RecipeError, match="no entry for `norm`; it has mlp"):
        at(Tiled(per=("kind",), values={"mlp": 1}), Place(0, 4, "norm"))
    with pytest.raises(RecipeError, match="the model has 4 blocks; type `block/4` or less"):
        at(Tiled(per=("block/5",), values=[1] * 5), Place(0, 4, "mlp"))
