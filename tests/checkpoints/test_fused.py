"""Fused experts: a mixture stored as one tensor for all experts is merged as the same numbers stored apart."""

import pytest
import torch
from pools import write_checkpoint

from evomerge import codecs
from evomerge.build import Builder
from evomerge.checkpoints.fused import matrices
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate.slopes import Slopes
from evomerge.recipe import Recipe

EXPERTS, INNER, HIDDEN = 3, 4, 6
NAMES = ("maths", "code")
PARENT = "model.layers.{}.mlp.experts"
FORMS = {
    # model type, whether matrices are stored as (in, out), and how gate and up are arranged
    "qwen3_5_moe": (False, "halves"),
    "llama4": (True, "halves"),
    "gpt_oss": (True, "alternating"),
}


def apart(seed, base=None):
    """Tensors of a tiny mixture with a weight for each projection of each expert, moved from `base`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {}
    for layer in range(2):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        for expert in range(EXPERTS):
            name = f"{PARENT.format(layer)}.{expert}"
            shapes |= {f"{name}.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
            shapes |= {f"{name}.{part}_proj.bias": (INNER,) for part in ("gate", "up")}
            shapes |= {f"{name}.down_proj.weight": (HIDDEN, INNER), f"{name}.down_proj.bias": (HIDDEN,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors if base is None else {name: base[name] + 0.1 * tensors[name] for name in base}


def fused(tensors, form):
    """The same numbers with one tensor for all experts of a layer."""
    turned, arrangement = FORMS[form]
    result = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(2):
        parent = PARENT.format(layer)

        def stacked(part, kind, parent=parent):
            return torch.stack([tensors[f"{parent}.{expert}.{part}_proj.{kind}"] for expert in range(EXPERTS)])

        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (stacked(part, kind) for part in ("gate", "up", "down"))
            both = torch.cat([gate, up], 1) if arrangement == "halves" else torch.stack([gate, up], 2).flatten(1, 2)
            turn = turned and kind == "weight"
            result[f"{parent}.gate_up_proj{suffix}"] = (both.mT if turn else both).contiguous()
            result[f"{parent}.down_proj{suffix}"] = (down.mT if turn else down).contiguous()
    return result


def pool(folder, form, store):
    config = {"model_type": form, "hidden_size": HIDDEN, "num_hidden_layers": 2, "vocab_size": 9}
    base = apart(0)
    write_checkpoint(folder / "base", store(base), config)
    for seed, name in enumerate(NAMES, 1):
        write_checkpoint(folder / name, store(apart(seed, base)), config)
    return Pool(folder / "base", {name: folder / name for name in NAMES})


@pytest.fixture(params=FORMS)
def pools(request, tmp_path):
    """The same models stored apart and fused, and the function that fuses tensors."""

    def fuse(tensors):
        return fused(tensors, request.param)

    return pool(tmp_path / "apart", request.param, dict), pool(tmp_path / "fused", request.param, fuse), fuse


RECIPES = {
    "linear": {"method": "linear"},
    "ties per tensor": {
        "stages": {"edit": [{"trim": {"density": 0.5, "scope": "tensor"}}], "weigh": [{"elect": {}}], "reduce": "solve"}
    },
    "ties over the model": {"method": "ties", "parameters": {"density": 0.3}},
    "random drops": {"method": "dare_ties", "parameters": {"density": 0.5}},
    "tsv": {"method": "tsv"},
    "iso_c": {"method": "iso_c"},
    "opcm": {"method": "opcm"},
    "slerp": {"method": "slerp"},
    "model_stock": {"method": "model_stock"},
    "sce": {"method": "sce", "parameters": {"select": 0.5}},
    "per tensor": {"method": "della"},
    "nested": {
        "method": "linear",
        "inputs": [{"merge": {"method": "tsv", "inputs": [{"expert": name} for name in NAMES]}}, {"expert": "code"}],
    },
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_fused_experts_are_merged_as_the_same_numbers_stored_apart(recipe, pools):
    one, other, fuse = pools
    parsed = Recipe.parse({"merge": {"inputs": [{"expert": name} for name in NAMES], **recipe}})
    built = Builder(one).build(parsed)
    expected = fuse({name: built.tensor(name) for name in built.info})
    merged = Builder(other).build(parsed)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged.tensor(name), tensor, rtol=1e-6, atol=1e-7)
        in_place = torch.empty_like(tensor)
        merged.write(name, in_place)
        assert torch.equal(in_place, merged.tensor(name))


def test_slopes_of_a_fused_mixture_are_those_of_the_same_numbers_stored_apart(pools):
    inputs = [
        {"merge": {"method": "task_arithmetic", "inputs": [{"expert": "maths"}], "parameters": {"lambda": 0.4}}},
        {"expert": "code"},
    ]
    recipe = Recipe.parse(
        {"merge": {"method": "ties", "inputs": inputs, "parameters": {"density": 0.6, "lambda": 0.7}}}
    )
    one, other, fuse = pools
    generator = torch.Generator().manual_seed(7)
    gradients = {name: torch.randn(entry.shape, generator=generator) for name, entry in one.merged.items()}
    collected = []
    for models, given in ((one, gradients), (other, fuse(gradients))):
        slopes = Slopes(recipe, Builder(models).build(recipe))
        for name in slopes.tensors:
            slopes.take(name, given[name])
        collected.append(slopes.collect())
    torch.testing.assert_close(*map(torch.tensor, collected), rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.tensor(collected[0]).isfinite().any()


def test_tables_over_tensors_name_the_tensors_of_the_checkpoint(pools):
    _, other, _ = pools
    values = {name: dict.fromkeys(other.merged, 0.5) for name in NAMES}
    tables = {"weight": {"per": ["expert", "tensor"], "values": values}}
    recipe = Recipe.parse(
        {"merge": {"method": "linear", "inputs": [{"expert": name} for name in NAMES], "parameters": tables}}
    )
    name = f"{PARENT.format(1)}.gate_up_proj"
    mean = (other.experts["maths"].tensor(name) + other.experts["code"].tensor(name)) / 2
    torch.testing.assert_close(Builder(other).build(recipe).tensor(name), mean)


@pytest.mark.parametrize(
    "codec",
    [
        codecs.make("singular", {"share": 0.25}),
        codecs.make("low_rank", {"rank": 1}),
        codecs.make("tall", {"lambda": 0.4}),
    ],
)
def test_codecs_factor_each_matrix_of_a_fused_tensor(codec, pools, tmp_path):
    one, other, fuse = pools
    decoded = []
    for models, name in ((one, "one"), (other, "other")):
        checkpoint = codecs.encode(models, codec, tmp_path / name).decode("code")
        decoded.append({key: checkpoint.tensor(key) for key in checkpoint.info})
    for name, tensor in fuse(decoded[0]).items():
        torch.testing.assert_close(decoded[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "config", "parts"),
    [
        ("layers.0.mlp.experts.gate_up_proj", (2, 8, 6), {"hidden_size": 6}, 4),
        ("layers.0.block_sparse_moe.input_linear.weight", (2, 8, 6), {"hidden_size": 6}, 4),
        ("layers.0.block_sparse_moe.output_linear.weight", (2, 6, 4), {"hidden_size": 6}, 2),
        ("layers.0.mlp.experts.fc1.weight", (2, 6, 8), {"hidden_size": 6}, 2),
        ("layers.0.mlp.experts.1.gate_proj.weight", (4, 6), {"hidden_size": 6}, 1),
        ("layers.0.mixer.conv1d.weight", (6, 1, 4), {"hidden_size": 6}, 1),
        ("layers.0.mlp.gate.weight", (2, 6), {"hidden_size": 6}, 1),
    ],
)
def test_matrices_are_found_by_name_and_shape(name, shape, config, parts):
    found = matrices(name, shape, config)
    assert len(found) == parts
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    assert sorted(value for one in found for value in one.of(tensor).flatten().tolist()) == tensor.flatten().tolist()
    assert len({one.name for one in found}) == parts
