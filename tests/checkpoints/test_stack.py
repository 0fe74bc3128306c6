"""A stack's checkpoint has the tensors of its layers, renumbered, and copies none."""

import pytest
import torch
from pools import Models, write_checkpoint, write_pool

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe

LAYERS = 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = write_pool(tmp_path_factory.mktemp("pool"), Models.random(3))
    return Pool(folder / "base", {name: folder / name for name in ("maths", "code", "prose")})


@pytest.fixture(scope="module")
def builder(pool):
    return Builder(pool)


def stack(*slots, rest="base"):
    keys = ("source", "layer", "scale")
    return Recipe.parse({"stack": {"slots": [dict(zip(keys, slot, strict=False)) for slot in slots], "rest": rest}})


def merged(*inputs, **parameters):
    return {"merge": {"method": "task_arithmetic", "inputs": list(inputs), "parameters": parameters}}


def test_all_layers_of_a_model_are_that_model(builder, pool):
    stacked = builder.build(stack(*(("maths", layer) for layer in range(LAYERS)), rest="maths"))
    maths = pool.experts["maths"]
    assert stacked.info == maths.info
    assert list(stacked.info) == list(maths.info)
    for name in maths.info:
        assert torch.equal(stacked.tensor(name), maths.tensor(name))


def test_layers_are_renumbered_and_all_else_is_the_rests(builder, pool):
    stacked = builder.build(stack(("code", 3), ("maths", 0), ("code", 3), ("base", 1), ("code", 2), rest="prose"))
    experts = {**pool.experts, "base": pool.base}
    for number, (name, layer) in enumerate([("code", 3), ("maths", 0), ("code", 3), ("base", 1), ("code", 2)]):
        start = f"layers.{layer}."
        names = [tensor for tensor in experts[name].info if tensor.startswith(start)]
        assert {t for t in stacked.info if t.startswith(f"layers.{number}.")} == {
            t.replace(start, f"layers.{number}.") for t in names
        }
        for tensor in names:
            assert torch.equal(stacked.tensor(tensor.replace(start, f"layers.{number}.")), experts[name].tensor(tensor))
    outside = [name for name in pool.base.info if not name.startswith("layers.")]
    assert outside == [name for name in stacked.info if not name.startswith("layers.")]
    for name in outside:
        assert torch.equal(stacked.tensor(name), pool.experts["prose"].tensor(name))


def test_nothing_is_copied(builder, pool):
    stacked = builder.build(stack(("code", 1), ("code", 1)))
    names = [name for name in stacked.info if name.startswith("layers.1.")]
    for name in names:
        first = stacked.tensor(name.replace("layers.1.", "layers.0."))
        assert stacked.tensor(name).data_ptr() == first.data_ptr() == pool.experts["code"].tensor(name).data_ptr()


def test_layers_of_a_merge_are_those_of_the_merge(builder):
    recipe = merged("maths", "code", weight=0.3)
    nested = builder.build(Recipe.parse(recipe))
    stacked = builder.build(stack((recipe, 2), ("prose", 0), (recipe, 2), rest=recipe))
    for name in stacked.info:
        if not name.startswith("layers.1."):
            assert torch.equal(stacked.tensor(name), nested.tensor(name.replace("layers.0.", "layers.2."))), name


def test_merge_of_stacks_is_the_stack_of_merges(builder):
    one = stack(("maths", 0), ("code", 1), ("maths", 2), ("code", 3), rest="maths").data
    two = stack(("code", 0), ("maths", 1), ("code", 2), ("maths", 3), rest="code").data
    merged_stack = builder.build(Recipe.parse(merged(one, two, weight=0.5)))
    plain = builder.build(Recipe.parse(merged("maths", "code", weight=0.5)))
    for name in plain.info:
        assert torch.equal(merged_stack.tensor(name), plain.tensor(name)), name


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (stack(("maths", 0), ("code", 4)), "slot 1 names layer 4, its source has 4 layers; type 0 to 3"),
        (stack(("coed", 0)), "the pool has no expert `coed`; did you mean `code`"),
        (stack(("maths", 0), rest="coed"), "the pool has no expert `coed`; did you mean `code`"),
        (
            Recipe.parse(merged("code", stack(("maths", 0)).data)),
            "the input #1 is a stack that has 1 layers; only stacks of the base's 4 layers without scales can be merged",
        ),
        (
            Recipe.parse(merged("code", stack(*(("maths", i, 1 + i) for i in range(LAYERS))).data)),
            "the input #1 is a stack that has 4 layers and a scale of 2",
        ),
    ],
)
def test_invalid_stacks_are_refused_before_a_tensor_is_read(recipe, message, builder):
    with pytest.raises(RecipeError, match=message):
        builder.build(recipe)


def test_model_without_a_stack_of_blocks_is_refused_with_its_names(tmp_path):
    for name in ("base", "maths"):
        write_checkpoint(tmp_path / name, {"first.weight": torch.ones(2), "second.weight": torch.ones(2)})
    builder = Builder(Pool(tmp_path / "base", {"maths": tmp_path / "maths"}))
    message = r"a stack needs a model with a stack of blocks.*has `first.weight`, `second.weight`"
    with pytest.raises(RecipeError, match=message):
        builder.build(stack(("maths", 0)))
