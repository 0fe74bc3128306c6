"""Storing a checkpoint in another dtype: one rounding, and integers as they are."""

import json

import pytest
import torch
from pools import Models, write_pool
from safetensors.torch import load_file

from evomerge.api import export
from evomerge.build import Builder
from evomerge.checkpoints.cast import cast, with_dtype
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import parse_size
from evomerge.errors import CheckpointError
from evomerge.recipe import Recipe

RECIPE = Recipe.parse({"merge": {"method": "linear", "inputs": [{"expert": "maths"}, {"expert": "code"}]}})
STACK = {"slots": [{"source": RECIPE.data, "layer": layer} for layer in range(2)], "rest": RECIPE.data}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A pool that is stored in bfloat16."""
    folder = write_pool(tmp_path_factory.mktemp("halves"), Models.random(experts=2, dtype=torch.bfloat16))
    return Pool(folder / "base", {name: folder / name for name in ("maths", "code")})


def mean(pool, name):
    base, *experts = [model.tensor(name).double() for model in pool.models]
    return base + sum(expert - base for expert in experts) / len(experts)


@pytest.mark.parametrize("recipe", [RECIPE, Recipe.parse({"stack": STACK})], ids=["merge", "stack of merges"])
def test_a_merge_of_halves_in_float32_was_not_rounded_to_halves_first(halves, recipe):
    builder = Builder(halves)
    made = cast(builder.build(recipe), "float32", builder.load)
    name = next(name for name in made.info if name in halves.merged)
    assert made.tensor(name).dtype == made.info[name].dtype == torch.float32
    torch.testing.assert_close(made.tensor(name).double(), mean(halves, name), rtol=1e-6, atol=1e-7)
    assert not torch.equal(made.tensor(name), made.tensor(name).bfloat16().float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_export_has_the_dtype_in_weights_configuration_and_recipe(halves, dtype, tmp_path):
    out = export(halves, RECIPE, tmp_path / "out", dtype=dtype, shard_size="1KB")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    info = Folder(out).info
    floats = {entry.dtype for entry in info.values() if entry.dtype.is_floating_point}
    assert floats == {getattr(torch, dtype)}
    assert {name for name, entry in info.items() if not entry.dtype.is_floating_point} == set(info) - set(halves.merged)
    assert json.loads((out / "config.json").read_text()).get("dtype", "bfloat16") == dtype
    assert f"dtype: {dtype}" in (out / "recipe.yaml").read_text()


def test_the_dtype_of_the_base_changes_no_bit(halves, tmp_path):
    plain, named = export(halves, RECIPE, tmp_path / "plain"), export(halves, RECIPE, tmp_path / "b", dtype="bfloat16")
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, named))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "dtype" not in (plain / "recipe.yaml").read_text()


def test_numbers_too_large_for_float16_are_refused_with_what_to_type(tmp_path):
    models = Models.random(experts=1)
    models.base[next(name for name in models.base if name.endswith("weight"))].flatten()[0] = 1e5
    folder = write_pool(tmp_path, models)
    pool = Pool(folder / "base", {"maths": folder / "maths"})
    with pytest.raises(CheckpointError, match=r"largest number of float16.* is 6.55e\+04; type `--dtype bfloat16`"):
        export(pool, Recipe.parse("base"), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_the_configuration_keeps_its_name_of_the_dtype(halves):
    made = cast(halves.base, "float32")
    assert with_dtype({"torch_dtype": "bfloat16"}, made, halves.base) == {"torch_dtype": "float32"}
    assert with_dtype({"a": 1}, made, halves.base) == {"a": 1, "dtype": "float32"}


def test_an_unknown_dtype_is_refused(halves):
    with pytest.raises(CheckpointError, match="dtype 'fp16': expected one of float32, bfloat16, float16"):
        cast(halves.base, "fp16")


@pytest.mark.parametrize(
    ("text", "count"), [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2GiB", 2 << 30), ("1.5kb", 1500), ("7", 7)]
)
def test_a_size_has_decimal_or_binary_units(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "5 cats", "-1GB", "0", "1e3"])
def test_any_other_size_is_refused(text):
    with pytest.raises(CheckpointError, match="expected a number and a unit, such as `5GB`"):
        parse_size(text)
