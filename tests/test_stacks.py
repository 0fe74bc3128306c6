"""Stacks of many architectures: what is scored is what its export computes; what cannot be exported is never scored."""

import pytest
import torch
import transformers
from architectures import CONFIGS, build, outputs
from pools import Models, write_pool

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import ModelError
from evomerge.evaluate import Setup
from evomerge.evaluate.worker import Worker
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.settings import StudySettings

REFUSED = {
    *(
        "modernbert",
        "rwkv",
        "swin",
        "convnext",
    ),  # layers that differ by their number, and no list in config.json says how
    *("jamba", "t5", "bart", "whisper"),
    *("clip", "siglip", "llava", "qwen2_vl", "paligemma", "idefics3"),  # two stacks
}
"""Architectures of which the layers 0, 0, 1 make no stack that could be saved."""
SKIPPED = {"bamba"}
"""Architectures whose cache in transformers needs the first layers to be of certain kinds."""


def stack(*layers, source="a"):
    source = {"expert": source} if isinstance(source, str) else source
    return Recipe.parse({"stack": {"slots": [{"source": source, "layer": i} for i in layers], "rest": source}})


def pool(folder, name):
    for seed, who in enumerate(("base", "a")):
        build(name, seed).save_pretrained(folder / who)
    return Pool(folder / "base", {"a": folder / "a"})


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - SKIPPED))
def test_scored_stack_is_the_exported_one_or_both_are_refused(name, tmp_path):
    models = pool(tmp_path, name)
    recipe = stack(0, 0, 1)
    if name in REFUSED:
        for refused in (Builder(models).build_model, lambda one: export(one, models, tmp_path / "out")):
            with pytest.raises(ModelError, match="its stacks"):
                refused(recipe)
        assert not (tmp_path / "out").exists()
        return
    live = LiveModel(tmp_path / "base")
    live.refit(Builder(models).build_model(recipe))
    export(recipe, models, tmp_path / "out")
    named = getattr(transformers, models.base.config["architectures"][0])
    loaded, info = named.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(outputs(name, loaded.eval()), outputs(name, live.module), rtol=1e-4, atol=1e-5)


def test_worker_fails_a_stack_that_could_not_be_saved_before_it_is_scored(tmp_path):
    pool(tmp_path, "modernbert")
    task = {"kind": "callable", "function": "operator:length_hint", "search": 1, "report": 1}
    worker = Worker(Setup(str(tmp_path / "base"), {"a": str(tmp_path / "a")}, {"t": task}))
    evaluation = worker.evaluate(stack(1, 0))
    assert evaluation.error is not None
    assert "cannot be saved, so they are not scored" in evaluation.error
    assert "score" not in evaluation.seconds


def test_layers_of_a_stack_of_layers_are_those_of_the_inner_stack(tmp_path):
    folder = write_pool(tmp_path, Models.random(2))
    builder = Builder(Pool(folder / "base", {name: folder / name for name in ("maths", "code")}))
    inner = {
        "stack": {
            "slots": [{"source": "code", "layer": 3, "scale": 0.5}, {"source": "maths", "layer": 1}],
            "rest": "code",
        }
    }
    outer = {
        "stack": {"slots": [{"source": inner, "layer": 1}, {"source": inner, "layer": 0, "scale": 3}], "rest": inner}
    }
    built = builder.build(Recipe.parse(outer))
    assert [(layer.index, layer.scale) for layer in built.layers] == [(1, 1.0), (3, 1.5)]
    assert built.rest is builder.pool.experts["code"]
    name = next(name for name in built.info if name.startswith("layers.1."))
    theirs = builder.pool.experts["code"].tensor(name.replace("layers.1.", "layers.3."))
    assert torch.equal(built.tensor(name), theirs)


@pytest.mark.parametrize("name", ["rwkv", "llama"])
def test_study_says_before_the_search_which_candidates_cannot_be_saved(name, tmp_path):
    pool(tmp_path, name)
    path = {"sources": "experts", "repeat": 2, "include": {"bit": "first", "per": ["slot"]}, "longest": 2}
    data = {
        "pool": {"base": str(tmp_path / "base"), "experts": {"a": str(tmp_path / "a")}},
        "space": {"recipe": {"stack": {"path": path}}},
        "driver": {"kind": "random"},
        "tasks": {"t": {"kind": "callable", "function": "operator:length_hint", "search": 1, "report": 1}},
    }
    notes = open_parts(StudySettings.parse(data, "study", tmp_path)).pool.notes
    assert any("could not be saved, and fail before" in note for note in notes) == (name == "rwkv")
