"""The node `narrow`: units merged as by hand, nothing lost where units are equal, and loaded by transformers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny_model

from evomerge.alignment import symmetry
from evomerge.alignment.mlps import find_mlps
from evomerge.alignment.narrowed import merged
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.models import LiveModel
from evomerge.recipe import Recipe
from evomerge.report.export import export


def narrow(hidden, source="model"):
    return Recipe.parse({"narrow": {"source": source, "hidden": hidden}})


def pool_of(folder):
    return Pool(folder, {"model": folder})


def logits(folder, name):
    model = getattr(transformers, TINY[name][1]).from_pretrained(folder).eval()
    given = (
        {"pixel_values": torch.linspace(-1, 1, 16).view(1, 1, 4, 4)}
        if name == "vit"
        else {"input_ids": torch.arange(3, 19)[None]}
    )
    with torch.no_grad():
        return model(**given).logits.double()


def mlps_of(folder):
    live, pool = LiveModel(folder), pool_of(folder)
    return find_mlps(live, pool.base, symmetry(live), pool.layout)


def widened(folder, out):
    """Write the same function with every hidden unit twice: the weights out are shared, 0.3 and 0.7 of them."""
    tensors = load_file(folder / "model.safetensors")
    for mlp in mlps_of(folder):
        for place in (*mlp.into, *mlp.out):
            shares = (1.0, 1.0) if place in mlp.into else (0.3, 0.7)
            tensors[place.tensor] = torch.cat(
                [share * tensors[place.tensor] for share in shares], place.dim
            ).contiguous()
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    key = "n_inner" if config["model_type"] == "gpt2" else "intermediate_size"
    (out / "config.json").write_text(json.dumps({**config, key: 2 * mlps_of(folder)[0].size}))
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_equal_units_are_merged_without_loss(tmp_path, name):
    folder = tiny_model(tmp_path / "model", name)
    wide = widened(folder, tmp_path / "wide")
    size = mlps_of(folder)[0].size
    export(narrow(size), pool_of(wide), tmp_path / "out")
    wanted, before, after = (logits(one, name) for one in (folder, wide, tmp_path / "out"))
    torch.testing.assert_close(before, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, wanted, rtol=1e-4, atol=1e-5)
    one, two = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {key: tensor.shape for key, tensor in one.items()} == {key: tensor.shape for key, tensor in two.items()}


def test_units_are_merged_as_by_hand(tmp_path):
    """Means in and sums out, of the groups that `merged` finds."""
    folder = tiny_model(tmp_path / "model", "bert")
    built = Builder(pool_of(folder)).build(narrow(20))
    tensors = load_file(folder / "model.safetensors")
    mlp = mlps_of(folder)[1]
    bias, into, out = (
        next(place.tensor for place in mlp.into + mlp.out if word in place.tensor)
        for word in ("intermediate.dense.bias", "intermediate.dense.weight", "output.dense.weight")
    )
    groups = merged(torch.cat([tensors[into], tensors[bias][:, None], tensors[out].T], 1), 20)
    assert sorted(unit for group in groups for unit in group) == list(range(24))
    means = {name: torch.stack([tensors[name].double()[group].mean(0) for group in groups]) for name in (bias, into)}
    for name, wanted in means.items():
        torch.testing.assert_close(built.tensor(name).double(), wanted, rtol=1e-6, atol=1e-7)
    sums = torch.stack([tensors[out].double()[:, group].sum(1) for group in groups], 1)
    torch.testing.assert_close(built.tensor(out).double(), sums, rtol=1e-6, atol=1e-7)


def greedy(features, count):
    """Merge the nearest two, found among all pairs each time."""
    groups = [[unit] for unit in range(len(features))]
    while len(groups) > count:
        means = [features[group].mean(0) for group in groups]
        pairs = [(float((means[i] - means[j]).square().sum()), i, j) for j in range(len(groups)) for i in range(j)]
        _, i, j = min(pairs)
        groups[i] = sorted(groups[i] + groups.pop(j))
    return groups


@pytest.mark.parametrize("count", [1, 5, 12, 19, 20])
def test_nearest_groups_are_merged_first(count):
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert merged(features, count) == greedy(features, count)
    assert merged(torch.tensor([[0.0], [10.0], [1.0], [10.5]]), 2) == [[0, 2], [1, 3]]


def test_all_units_give_the_model_bit_for_bit(tmp_path):
    folder = tiny_model(tmp_path / "model", "gpt2")
    pool = pool_of(folder)
    built = Builder(pool).build(narrow(64))
    assert all(torch.equal(built.tensor(name), pool.base.tensor(name)) for name in pool.base.info)


def test_same_bytes_again_and_smaller_files(tmp_path):
    folder = tiny_model(tmp_path / "model", "llama")
    mean = {"merge": {"method": "linear", "inputs": ["model", "base"]}}
    for name in ("one", "two"):
        export(narrow(9, mean), pool_of(folder), tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert json.loads((tmp_path / "one" / "config.json").read_text())["intermediate_size"] == 9
    assert Folder(tmp_path / "one").info["model.layers.0.mlp.down_proj.weight"].shape == (16, 9)
    assert logits(tmp_path / "one", "llama").isfinite().all()


@pytest.mark.parametrize(
    ("name", "hidden", "message"),
    [
        ("llama", 25, "`hidden` is 25; each MLP has 24 hidden units: type 1 to 24"),
        ("mixtral", 4, "of the model's 2 blocks, 0 have an MLP whose hidden units are known to be free"),
    ],
)
def test_models_that_cannot_be_narrowed_are_refused(tmp_path, name, hidden, message):
    with pytest.raises(RecipeError, match=message):
        Builder(pool_of(tiny_model(tmp_path / "model", name))).build(narrow(hidden))


def test_node_is_outermost_and_in_no_search(tmp_path):
    with pytest.raises(RecipeError, match=r"`narrow` makes a model of other shapes.*as the outermost node"):
        Recipe.parse({"merge": {"method": "linear", "inputs": [narrow(4), "model"]}})
    with pytest.raises(RecipeError, match=r"narrow: no model in memory has its shapes.*evomerge score FOLDER"):
        Builder(pool_of(tiny_model(tmp_path / "model", "llama")), search=True).build(narrow(4))
    recipe = narrow(4)
    assert Recipe.parse(json.loads(recipe.json)) == recipe
