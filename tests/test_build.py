"""Building: a recipe and a pool give one checkpoint, the same bytes in any order, on any number of threads or shards."""

import json

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from pools import Models, write_pool
from strategies import recipes
from tiny_models import TINY, tiny_model

from evomerge import build
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.errors import RecipeError
from evomerge.merging import METHODS
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.testing import inputs_of, merge_tensors

EXPERTS = ["maths", "code", "prose"]


def content(checkpoint):
    return {name: checkpoint.tensor(name).contiguous().view(-1).view(torch.uint8).tolist() for name in checkpoint.info}


def test_leaves_are_the_folders_themselves(builder, pool):
    assert builder.build(base()) is pool.base
    assert builder.build(expert("code")) is pool.experts["code"]


def test_unknown_experts_are_refused_at_once(builder):
    for recipe in (expert("coed"), merge("linear", ["maths", "coed"])):
        with pytest.raises(RecipeError, match="the pool has no expert `coed`; did you mean `code`"):
            builder.build(recipe)


def test_tables_that_do_not_fit_are_refused_at_once(builder):
    recipe = merge("linear", EXPERTS, {"weight": {"per": ["block/5"], "values": [1] * 5}})
    with pytest.raises(RecipeError, match="the model has 4 blocks"):
        builder.build(recipe)


@pytest.mark.parametrize("method", METHODS)
def test_on_disk_is_in_memory(builder, models, method):
    names = EXPERTS[: inputs_of(method)]
    recipe = merge(method, names, seed=2)
    floats = {name for name, tensor in models.base.items() if tensor.is_floating_point()}
    expected = merge_tensors(
        recipe,
        {name: models.base[name] for name in models.base if name in floats},
        [{name: models.experts[e][name] for name in models.base if name in floats} for e in names],
    )
    built = builder.build(recipe)
    assert built.info == builder.pool.base.info
    for name in built.info:
        wanted = expected[name] if name in floats else models.base[name]
        assert torch.equal(built.tensor(name), wanted), name
        assert built.tensor(name).dtype == models.base[name].dtype


def test_integer_buffers_are_the_base_s(builder, models):
    built = builder.build(merge("linear", EXPERTS))
    assert torch.equal(built.tensor("layers.0.attn.position_ids"), models.base["layers.0.attn.position_ids"])
    assert built.tensor("layers.0.attn.mask").dtype == torch.bool


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipes(EXPERTS))
def test_any_recipe_builds_and_shards_threads_and_order_do_not_matter(builder, sharded, data):
    recipe = Recipe.parse(data)
    one, other = builder.build(recipe), sharded.build(recipe)
    before = torch.get_num_threads()
    try:
        for name in reversed(list(one.info)):
            expected = one.tensor(name)
            torch.set_num_threads(3)
            assert torch.equal(other.tensor(name), expected)
            torch.set_num_threads(1)
            assert not expected.is_floating_point() or torch.isfinite(expected).all()
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sharded(models, tmp_path_factory):
    folder = write_pool(tmp_path_factory.mktemp("sharded"), models, shards=4)
    return Builder(Pool(folder / "base", {name: folder / name for name in models.experts}))


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """A pool in bf16."""
    models = Models.random(dtype=torch.bfloat16)
    folder = write_pool(tmp_path_factory.mktemp("low"), models)
    return Builder(Pool(folder / "base", {name: folder / name for name in models.experts}))


def test_base_comes_back_bit_for_bit(builder, low):
    for built in (builder, low):
        assert content(built.build(merge("task_arithmetic", EXPERTS, {"lambda": 0}))) == content(built.pool.base)
        assert content(built.build(merge("ties", ["base"]))) == content(built.pool.base)


def test_nested_merges_are_rounded_once(low):
    """A merge of a merge in bf16 is what fp32 gives, cast at the end; not the merge of what a file would have held."""
    inner = merge("task_arithmetic", ["maths", "code"], {"lambda": 0.37})
    outer = Recipe.parse(
        {"merge": {"method": "linear", "inputs": [inner.data, "prose"], "parameters": {"weight": 0.5}}}
    )
    built = low.build(outer)
    pool = low.pool
    name = "layers.1.mlp.weight"
    origin, *taus = [folder.tensor(name).float() for folder in (pool.base, *pool.experts.values())]
    one = origin + 0.37 * (taus[0] - origin) + 0.37 * (taus[1] - origin)
    expected = (one + taus[2]) / 2
    assert (built.tensor(name).float() - expected).abs().max() <= expected.abs().max() * 2**-8
    close = torch.isclose(built.tensor(name).float(), expected.bfloat16().float(), rtol=0, atol=0)
    assert close.float().mean() > 0.98  # the rest lies on a rounding boundary, one ulp away
    rounded_twice = ((one.bfloat16().float() + taus[2]) / 2).bfloat16().float()
    assert not torch.equal(built.tensor(name).float(), rounded_twice)


def test_nested_stage_labels_tell_inputs_apart(builder):
    inner = {"merge": {"method": "linear", "inputs": ["maths", "code"]}}
    table = {"per": ["expert"], "values": {"#0": 0.0, "prose": 1.0}}
    recipe = Recipe.parse({"merge": {"method": "linear", "inputs": [inner, "prose"], "parameters": {"weight": table}}})
    built, prose = builder.build(recipe), builder.build(expert("prose"))
    for name in builder.pool.merged:
        assert torch.allclose(built.tensor(name), prose.tensor(name), rtol=1e-6, atol=1e-6)


def test_writing_into_a_model_in_place_gives_the_same_numbers(builder, low):
    for built in (builder, low):
        checkpoint = built.build(merge("ties", EXPERTS))
        for name, info in checkpoint.info.items():
            expected = checkpoint.tensor(name)
            same = torch.full(info.shape, 3, dtype=info.dtype)
            checkpoint.write(name, same)
            assert torch.equal(same, expected)
            if info.dtype.is_floating_point and len(info.shape) == 2:
                wide = torch.zeros(info.shape)
                checkpoint.write(name, wide)  # a model that runs in fp32 gets what the file would hold
                assert torch.equal(wide, expected.float())
                turned = torch.zeros(info.shape[::-1], dtype=info.dtype).T
                checkpoint.write(name, turned)
                assert torch.equal(turned, expected)


def test_experts_are_never_written_into(builder, pool_folder):
    files = {path: path.read_bytes() for path in pool_folder.rglob("*.safetensors")}
    for method in METHODS:
        content(builder.build(merge(method, EXPERTS[:2], {})))
    assert all(path.read_bytes() == before for path, before in files.items())


def test_tied_tensors_are_equal_after_the_merge(tmp_path):
    head = {"tie_word_embeddings": True, "model_type": "tiny"}
    models = Models.random()
    tied = Models(
        {**models.base, "lm_head.weight": models.base["embed.weight"].clone()},
        {name: {**e, "lm_head.weight": e["embed.weight"].clone()} for name, e in models.experts.items()},
    )
    write_pool(tmp_path, tied, config=head)
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in tied.experts})
    # A table that would give the head another weight than the embedding does not pull the two apart.
    kinds = ("attention", "mlp", "norm", "embedding", "head", "other")
    table = {"per": ["kind"], "values": {kind: 0.1 * i for i, kind in enumerate(kinds)}}
    built = Builder(pool).build(merge("task_arithmetic", EXPERTS, {"weight": table}))
    assert torch.equal(built.tensor("lm_head.weight"), built.tensor("embed.weight"))
    assert not torch.equal(built.tensor("embed.weight"), models.base["embed.weight"])


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama_tied", "mixtral"])
def test_saved_merges_load_with_transformers(tmp_path, architecture):
    """With its configuration and tokenizer, in shards, and with the numbers that were merged."""
    auto = TINY[architecture][1]
    for seed, name in enumerate(("base", "maths", "code")):
        tiny_model(tmp_path / name, architecture, seed=seed)
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in ("maths", "code")})
    built = Builder(pool).build(merge("ties", ["maths", "code"]))
    save(built, tmp_path / "out", like=pool.base.path, shard_bytes=4000)
    assert len(Folder(tmp_path / "out").files) > 1
    model, found = getattr(transformers, auto).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    transformers.AutoModel.from_pretrained(tmp_path / "out")
    state = model.state_dict()
    assert all(torch.equal(state[name], built.tensor(name)) for name in built.info if name in state)
    assert any(name in state for name in built.info)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == pool.base.config
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer("abc")["input_ids"]
        == transformers.AutoTokenizer.from_pretrained(tmp_path / "base")("abc")["input_ids"]
    )


def test_a_model_built_once_keeps_little_mapped_and_has_the_bytes_of_a_search(monkeypatch, low):
    closed = []

    def forget(pool):
        closed.append(pool)

    monkeypatch.setattr(build, "MAPPED", 1)
    monkeypatch.setattr(Pool, "forget", forget)
    recipe = merge("ties", EXPERTS)
    expected = content(Builder(low.pool, search=True).build(recipe))
    assert closed == []
    assert content(Builder(low.pool).build(recipe)) == expected
    assert len(closed) > len(low.pool.merged)


def test_variances_of_batch_normalisation_stay_at_least_the_smallest_of_the_models(tmp_path):
    """A sum of task vectors of (1, 4) → (0.5, 9) and (0.25, 5) is (-0.25, 10): the first is no variance."""
    rows = {"base": [1.0, 4.0], "maths": [0.5, 9.0], "code": [0.25, 5.0]}
    tensors = {
        name: {"bn.running_var": torch.tensor(row), "bn.running_mean": -torch.tensor(row)} for name, row in rows.items()
    }
    base = tensors.pop("base")
    write_pool(tmp_path, Models(base, tensors))
    pool = Pool(tmp_path / "base", {name: tmp_path / name for name in tensors})
    summed = merge("task_arithmetic", ["maths", "code"], {"lambda": 1.0})
    built = Builder(pool).build(summed)
    assert built.tensor("bn.running_var").tolist() == [0.25, 10.0]
    assert built.tensor("bn.running_mean").tolist() == [0.25, -10.0]
    nested = Builder(pool).build(merge("task_arithmetic", [summed, "maths"], {"lambda": 1.0}))
    assert nested.tensor("bn.running_var").tolist() == [0.25, 15.0]
    mean = Builder(pool).build(merge("linear", ["maths", "code"]))
    assert mean.tensor("bn.running_var").tolist() == [0.375, 7.0]
