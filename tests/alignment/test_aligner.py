"""The node `align` in recipes: built, merged, cached, and refused where it cannot be."""

import json

import pytest
import torch
import transformers
from commands import evomerge
from pools import Models, write_pool
from safetensors.torch import load_file
from tiny_models import permuted_copy, tiny_model

from evomerge.alignment import Permuted, aligner
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.models.live import LiveModel
from evomerge.recipe import Recipe

ALIGNED = {"align": {"source": "copy", "to": "base"}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("pool")
    base = tiny_model(folder / "base", "llama", 0)
    other = tiny_model(folder / "other", "llama", 1)
    copy = permuted_copy(base, folder / "copy")
    return Pool(base, {"copy": copy, "other": other})


def build(pool, data, **options):
    return Builder(pool, **options).build(Recipe.parse(data))


def test_aligned_copy_is_the_model_that_it_was_made_of(pool):
    built = build(pool, ALIGNED)
    for name in pool.base.info:
        assert torch.equal(built.tensor(name), pool.base.tensor(name))


@pytest.mark.parametrize("search", [False, True])
def test_input_of_a_merge_is_aligned(pool, search):
    mean = {"merge": {"method": "linear", "inputs": ["base", ALIGNED]}}
    built = build(pool, mean, search=search)
    for name in pool.base.info:
        torch.testing.assert_close(built.tensor(name), pool.base.tensor(name), rtol=1e-6, atol=1e-7)
    unaligned = build(pool, {"merge": {"method": "linear", "inputs": ["base", "copy"]}})
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(unaligned.tensor(name), pool.base.tensor(name), atol=1e-2)


def test_aligned_model_computes_the_same(pool):
    live = LiveModel(pool.base.path)
    ids = torch.arange(8)[None]
    logits = []
    for data in ("other", {"align": {"source": "other", "to": "base"}}):
        live.refit(build(pool, data))
        with torch.no_grad():
            logits.append(live.module(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(*logits)


def test_merge_is_aligned_before_its_cast(pool):
    inner = {"merge": {"method": "linear", "inputs": ["copy", "other"]}}
    builder = Builder(pool)
    aligned, plain = (builder.build(Recipe.parse(data)) for data in ({"align": {"source": inner, "to": "base"}}, inner))
    name = "model.layers.0.mlp.up_proj.weight"
    assert builder.load(aligned, name).dtype == torch.float32
    assert torch.equal(aligned.tensor(name).flatten().sort().values, plain.tensor(name).flatten().sort().values)


def test_order_is_searched_for_once(pool, monkeypatch):
    calls = []
    found = aligner.match
    monkeypatch.setattr(aligner, "match", lambda *args: calls.append(1) or found(*args))
    builder = Builder(pool)
    for _ in range(2):
        built = builder.build(Recipe.parse(ALIGNED))
        for name in built.info:
            built.tensor(name)
    assert calls == [1]


@pytest.fixture(scope="module")
def copies(tmp_path_factory, pool):
    """A pool of three models, each the base with its units in another order, and one that is another model."""
    folder = tmp_path_factory.mktemp("copies")
    experts = {f"copy{seed}": permuted_copy(pool.base.path, folder / str(seed), seed) for seed in range(3)}
    return Pool(pool.base.path, {**experts, "other": pool.experts["other"].path})


def many(source, *to):
    return {"align": {"source": source, "to": list(to)}}


def test_copies_are_aligned_to_their_mean(copies, monkeypatch):
    calls = []
    found = aligner.match_many
    monkeypatch.setattr(aligner, "match_many", lambda *args: calls.append(1) or found(*args))
    names = ("copy0", "copy1", "copy2")
    builder = Builder(copies)
    models = [builder.build(Recipe.parse(many(name, *names))) for name in names]
    for name in copies.base.info:
        first, *others = (model.tensor(name) for model in models)
        assert all(torch.equal(first, other) for other in others)
    assert calls == [1]  # one search for all
    mean = builder.build(
        Recipe.parse({"merge": {"method": "linear", "inputs": [many(name, *names) for name in names]}})
    )
    live, ids, logits = LiveModel(copies.base.path), torch.arange(8)[None], []
    for model in (copies.base, mean):
        live.refit(model)
        with torch.no_grad():
            logits.append(live.module(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_search_permutes_a_tensor_of_an_expert_once(pool, monkeypatch):
    reads = []
    read = Permuted.read
    monkeypatch.setattr(Permuted, "read", lambda self, name, *rest: reads.append(name) or read(self, name, *rest))
    builder = Builder(pool, search=True)
    for weight in (0.25, 0.5):
        merge = {"method": "linear", "inputs": ["base", ALIGNED], "parameters": {"weight": weight}}
        built = builder.build(Recipe.parse({"merge": merge}))
        built.tensor("model.layers.0.mlp.up_proj.weight")
    assert reads == ["model.layers.0.mlp.up_proj.weight"]


def test_alignment_to_itself_is_refused():
    with pytest.raises(RecipeError, match="`source` and `to` are the same recipe"):
        Recipe.parse({"align": {"source": "copy", "to": "copy"}})


@pytest.mark.parametrize(
    ("align", "message"),
    [
        (many("copy", "base", "other"), "`source` is not among them; add it"),
        (many("copy", "copy"), "a list of one model"),
        (many("copy", "copy", "base", "copy"), "`to` names one model twice"),
        ({"align": {"source": "copy", "to": ["copy", "base"], "by": "activations", "task": "t"}}, "aligned by weights"),
        ({"align": {"source": "copy", "to": 3}}, r"a recipe is .*got 3"),
    ],
)
def test_wrong_lists_are_refused(align, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(align)


def test_another_way_to_match_is_refused():
    with pytest.raises(RecipeError, match=r"by"):
        Recipe.parse({"align": {"source": "copy", "to": "base", "by": "colours"}})


def test_recipe_reads_back_from_its_json():
    recipe = Recipe.parse(many("copy", "base", "copy"))
    assert Recipe.parse(json.loads(recipe.json)) == recipe
    assert recipe.data == {"align": {"source": {"expert": "copy"}, "to": ["base", {"expert": "copy"}]}}
    recipe = Recipe.parse(ALIGNED)
    assert Recipe.parse(json.loads(recipe.json)) == recipe
    assert recipe.experts == ("copy",)
    assert recipe.data == {"align": {"source": {"expert": "copy"}, "to": "base"}}


def test_stack_cannot_be_aligned(pool):
    stack = {"stack": {"slots": [{"source": "copy", "layer": 0}], "rest": "copy"}}
    with pytest.raises(RecipeError, match="`source` is a stack of layers"):
        build(pool, {"align": {"source": stack, "to": "base"}})


def test_model_that_cannot_be_run_on_random_inputs_is_refused_before_any_work(tmp_path):
    models = Models.random(2)
    folder = write_pool(tmp_path, models)
    first, second = models.experts
    pool = Pool(folder / "base", {name: folder / name for name in models.experts})
    with pytest.raises(RecipeError, match=r"align: .*not the configuration of an architecture"):
        build(pool, {"align": {"source": first, "to": second}})


def test_command_writes_the_merge(pool, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "merge: {method: linear, inputs: [base, {align: {source: copy, to: base}}]}\n", encoding="utf-8"
    )
    models = [f"--base={pool.base.path}", *(f"--expert={name}={model.path}" for name, model in pool.experts.items())]
    evomerge("merge", tmp_path / "recipe.yaml", *models, "-o", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in pool.base.info:
        torch.testing.assert_close(written[name], pool.base.tensor(name), rtol=1e-6, atol=1e-7)
