"""Towers: a vision-language model's language model, vision tower and projector are merged, kept or taken each by itself."""

import pytest
import torch
from architectures import build

from evomerge.build import Builder
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.pool import Pool
from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.space import SearchSpace

PARTS = {
    "llava": {"vision_tower": "vision", "multi_modal_projector": "projector", "language_model": "language"},
    "qwen2_vl": {"visual.merger": "projector", "visual": "vision", "model": "language", "lm_head": "language"},
    "paligemma": {"vision_tower": "vision", "multi_modal_projector": "projector", "language_model": "language"},
    "idefics3": {
        "model.vision_model": "vision",
        "model.connector": "projector",
        "model.text_model": "language",
        "lm_head": "language",
    },
    "clip": {
        "vision_model": "vision",
        "visual_projection": "projector",
        "text_projection": "projector",
        "text_model": "language",
        "logit_scale": "language",
    },
    "llama": {"model": "language", "lm_head": "language"},
}
"""By architecture, the tower of each part of the names, the more special ones first."""


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    for name in PARTS:
        for seed, who in enumerate(("base", "a", "b")):
            build(name, seed).save_pretrained(folder / name / who)
    return {name: Pool(folder / name / "base", {who: folder / name / who for who in ("a", "b")}) for name in PARTS}


def recipe(method="task_arithmetic", **parameters):
    return Recipe.parse(
        {"merge": {"method": method, "inputs": [{"expert": "a"}, {"expert": "b"}], "parameters": parameters}}
    )


def per_tower(**values):
    return {"per": ["tower"], "values": values}


def tensors(pool, tower):
    return [name for name in pool.merged if pool.layout.place(name).tower == tower]


@pytest.mark.parametrize("name", PARTS)
def test_each_tensor_is_in_the_tower_that_its_name_says(name, pools):
    pool = pools[name]
    for tensor in pool.merged:
        part = next(part for part in PARTS[name] if tensor.startswith(f"{part}.") or tensor == part)
        assert pool.layout.place(tensor).tower == PARTS[name][part], tensor
    assert set(pool.layout.towers) == set(PARTS[name].values())


def test_only_what_stands_before_the_number_of_a_block_tells_the_tower(pools):
    info = {
        f"model.layers.{i}.{part}.weight": pools["llama"].base.info["lm_head.weight"]
        for i in range(2)
        for part in ("self_attn.vision_expert", "mlp.gate_proj")
    }
    assert Layout(info).towers == ("language",)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "paligemma"])
def test_language_model_is_merged_and_vision_and_projector_stay_the_bases(name, pools, tmp_path):
    pool = pools[name]
    merged = recipe(**{"lambda": per_tower(language=1.0, vision=0.0, projector=0.0), "weight": 0.5})
    export(merged, pool, tmp_path / "out")
    out = Pool(pool.base.path, {"out": tmp_path / "out"}).experts["out"]
    for tower in ("vision", "projector"):
        assert tensors(pool, tower)
        for tensor in tensors(pool, tower):
            assert torch.equal(out.tensor(tensor), pool.base.tensor(tensor)), tensor
    for tensor in tensors(pool, "language"):
        mean = (pool.experts["a"].tensor(tensor) + pool.experts["b"].tensor(tensor)) / 2
        torch.testing.assert_close(out.tensor(tensor), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_vision_is_merged_and_the_language_model_and_projector_are_an_experts(name, pools):
    pool = pools[name]
    shares = {
        "vision": {"a": 0.5, "b": 0.5},
        "projector": {"a": 1.0, "b": 0.0},
        "language": {"a": 1.0, "b": 0.0},
    }
    built = Builder(pool).build(recipe("linear", weight={"per": ["tower", "expert"], "values": shares}))
    for tower in ("projector", "language"):
        for tensor in tensors(pool, tower):
            torch.testing.assert_close(built.tensor(tensor), pool.experts["a"].tensor(tensor), rtol=1e-6, atol=1e-7)
    for tensor in tensors(pool, "vision"):
        mean = (pool.experts["a"].tensor(tensor) + pool.experts["b"].tensor(tensor)) / 2
        torch.testing.assert_close(built.tensor(tensor), mean, rtol=1e-5, atol=1e-6)


def test_blocks_of_a_tower_have_values_of_their_own(pools):
    pool = pools["llava"]
    halves = {
        "per": ["tower", "block/2"],
        "values": {"language": [0.0, 1.0], "vision": [1.0, 0.0], "projector": [0.0, 0.0]},
    }
    built = Builder(pool).build(
        Recipe.parse(
            {
                "merge": {
                    "method": "task_arithmetic",
                    "inputs": [{"expert": "a"}],
                    "parameters": {"lambda": halves, "weight": 1.0},
                }
            }
        )
    )
    moved = {tensor for tensor in pool.merged if not torch.equal(built.tensor(tensor), pool.base.tensor(tensor))}
    assert {tensor for tensor in moved if ".layers." in tensor} == {
        tensor
        for tensor in pool.merged
        if ("language_model" in tensor and ".layers.1." in tensor) or ("vision" in tensor and ".layers.0." in tensor)
    }


def test_space_has_a_gene_for_each_tower_of_the_model(pools):
    data = {
        "recipe": {
            "merge": {
                "method": "task_arithmetic",
                "inputs": "experts",
                "parameters": {"weight": {"float": [0, 1], "per": ["tower", "expert"]}},
            }
        }
    }
    layout = pools["llava"].layout
    space = SearchSpace.parse(data, experts=["a", "b"], kinds=layout.kinds, towers=layout.towers, blocks=layout.blocks)
    assert [gene.name for gene in space.genes] == [
        f"weight[{tower},{expert}]" for tower in ("language", "vision", "projector") for expert in "ab"
    ]
    assert Builder(pools["llava"]).build(space.decode(space.initial)).info == pools["llava"].base.info


@pytest.mark.parametrize(
    ("values", "message"),
    [({"vison": 1.0}, "unknown tower 'vison'; did you mean `vision`"), ({"vision": 1.0}, "no entry for `language`")],
)
def test_table_without_a_tower_of_the_model_is_refused(values, message, pools):
    with pytest.raises(RecipeError, match=message):
        Builder(pools["llava"]).build(recipe(weight=per_tower(**values)))
