"""Stitched stacks: the fit, the model in memory and on disk, searches over them, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
import yaml
from commands import evomerge
from rich.console import Console
from safetensors.torch import load_file, save_file
from subjects import jsonl
from tiny_models import permuted_copy, tiny_model

from evomerge import tasks
from evomerge.alignment.stitches import fit
from evomerge.build import Builder
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.pool import Pool
from evomerge.errors import EvomergeError, ModelError, PoolError, RecipeError
from evomerge.evaluate import Setup
from evomerge.evaluate.loaded import check_depth
from evomerge.evaluate.worker import Worker
from evomerge.evidence import Evidence
from evomerge.exchange.writing import Outline, write
from evomerge.merging import needs
from evomerge.models import LiveModel, load_stack
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.settings import StudySettings

TEXTS = [
    "the cat sat on the mat",
    "a dog went by it",
    "to be, or not to be",
    "x = 2 + 40; y = x",
    "Who has seen 7 of 9?",
]
IDS = torch.arange(3, 35).view(2, 16)


def stack(*slots, rest="base", **stitch):
    layers = [{"source": source, "layer": layer} for source, layer in slots]
    return Recipe.parse({"stack": {"slots": layers, "rest": rest, "stitch": {"task": "texts", **stitch}}})


HALVES = stack(("base", 0), ("other", 1))


def collect(pool, settings, *recipes, folder):
    """Give a pool the hidden states that recipes need."""
    experts = {name: str(model.path) for name, model in pool.experts.items()}
    setup = Setup(str(pool.base.path), experts, settings)
    made = {name: tasks.make(name, entry, folder) for name, entry in settings.items()}
    kinds = sorted({kind for recipe in recipes for kind in needs(recipe)})
    evidence = Evidence(pool, setup, made, {}, kinds, recipes)
    evidence.collect(Console(quiet=True))
    return evidence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, one of another initialisation, a copy of the first with its units in another order, and an equal one; and tasks."""
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("pool")
    base = tiny_model(folder / "base", "llama", 0)
    tiny_model(folder / "other", "llama", 1)
    permuted_copy(base, folder / "copy")
    shutil.copytree(base, folder / "twin")
    jsonl(folder / "search.jsonl", [{"text": text} for text in TEXTS])
    jsonl(folder / "report.jsonl", [{"text": "unseen"}])
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    both = {"search": str(folder / "search.jsonl"), "report": str(folder / "report.jsonl")}
    return {"texts": {"kind": "language_modelling", "text": "text", **both}}


@pytest.fixture(scope="module")
def pool(folder, settings):
    """The pool, with the hidden states of its models."""
    pool = Pool(folder / "base", {name: folder / name for name in ("other", "copy", "twin")})
    collect(pool, settings, stack(("other", 0), ("copy", 0), ("twin", 0)), folder=folder)
    return pool


@pytest.fixture(scope="module")
def live(pool):
    return LiveModel(pool.base.path)


@torch.no_grad()
def logits(live, pool, recipe):
    live.refit(Builder(pool).build_model(recipe))
    return live.module(IDS).logits


def plain(recipe):
    """Return the stack without its stitches."""
    return Recipe.parse({"stack": {key: part for key, part in recipe.data["stack"].items() if key != "stitch"}})


def test_fit_is_the_one_computed_by_hand():
    # H is (±1, 0), (0, ±2), so HᵀH = diag(2, 8); G = H [[2, 1], [0, 3]], so HᵀG = [[4, 2], [0, 24]].
    before = torch.tensor([[6.0, 7], [4, 7], [5, 9], [5, 5]])
    after = torch.tensor([[2.0, 1], [-2, -1], [0, 6], [0, -6]]) + torch.tensor([10.0, 20])
    found = fit(before, after, 2.0)  # A = diag(1/4, 1/10) HᵀG = [[1, 1/2], [0, 12/5]]
    torch.testing.assert_close(found["weight"], torch.tensor([[1, 0], [0.5, 2.4]]))
    torch.testing.assert_close(found["bias"], torch.tensor([10 - 5.0, 20 - 2.5 - 16.8]))
    exact = fit(before, after, 1e-12)
    torch.testing.assert_close(before @ exact["weight"].mT + exact["bias"], after)


def test_hidden_states_that_are_constant_are_mapped_to_the_mean():
    after = torch.randn(5, 3)
    found = fit(torch.ones(5, 2), after, 1e-3)
    assert not found["weight"].any()
    torch.testing.assert_close(found["bias"], after.mean(0))


@pytest.mark.parametrize("slots", [(("base", 0), ("copy", 1)), (("copy", 0), ("base", 1))])
def test_layers_of_a_permuted_copy_are_stitched_to_the_model_itself(pool, live, slots):
    whole = Recipe.parse("base")
    recipe = stack(*slots, ridge=1e-9)
    torch.testing.assert_close(logits(live, pool, recipe), logits(live, pool, whole), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(live, pool, plain(recipe)), logits(live, pool, whole), atol=0.1)


@pytest.mark.parametrize(
    ("slots", "rest", "expected"),
    [
        ((("base", 0), ("base", 1)), "base", []),
        ((("base", 0), ("twin", 1)), "base", []),  # the same weights
        ((("base", 0), ("other", 1)), "base", [1, 2]),
        ((("other", 0), ("other", 1)), "other", []),
        ((("other", 0), ("other", 1)), "base", [0, 2]),
        ((("base", 1), ("base", 1)), "base", [0, 1]),  # a layer left out, and one repeated
        ((("base", 0),), "base", [1]),
    ],
)
def test_stitches_are_where_layers_do_not_follow_one_another(pool, slots, rest, expected):
    assert list(Builder(pool).build_model(stack(*slots, rest=rest)).stitches) == expected


def test_layer_left_out_is_replaced_by_the_nearest_affine_map(pool, live):
    found = logits(live, pool, stack(("base", 1), ridge=1e-9))
    assert not torch.allclose(found, logits(live, pool, plain(stack(("base", 1)))), atol=0.1)
    stitch = Builder(pool).build_model(stack(("base", 1))).stitches[0]()
    embeddings, states = (pool.evidence.tables("hidden@texts", "base", name) for name in _first_names(pool))
    assert torch.equal(embeddings["after"], states["before"])
    expected = fit(embeddings["before"], states["before"], 1e-3)
    assert all(torch.equal(stitch[name], expected[name]) for name in expected)


def _first_names(pool):
    blocks = [f"model.layers.{block}." for block in range(2)]
    return [min(name for name in pool.merged if name.startswith(block)) for block in blocks]


def test_stack_with_nothing_to_stitch_is_the_plain_one_byte_for_byte(pool, tmp_path):
    recipe = stack(("base", 0), ("twin", 1))
    for name, one in (("stitched", recipe), ("plain", plain(recipe))):
        export(one, pool, tmp_path / name)
    names = {file.name for file in (tmp_path / "plain").iterdir()}
    assert names == {file.name for file in (tmp_path / "stitched").iterdir()}
    for name in names - {"recipe.yaml", "README.md"}:
        assert (tmp_path / "stitched" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_stack_with_nothing_to_stitch_needs_no_hidden_states(folder):
    pool = Pool(folder / "base", {"other": folder / "other"})
    assert not Builder(pool).build_model(stack(("base", 0), ("base", 1))).stitches


def test_recipes_without_stitches_are_what_they_were():
    recipe = plain(HALVES)
    assert "stitch" not in json.dumps(recipe.explicit)
    assert recipe.prefix_digests != HALVES.prefix_digests
    assert needs(recipe) == ()
    assert Recipe.parse(json.loads(HALVES.json)) == HALVES


def test_prefixes_are_told_apart_by_their_stitches():
    three, other = (stack(("base", 0), ("other", 1), ("base", layer)) for layer in (0, 1))
    assert three.prefix_digests[:2] == other.prefix_digests[:2]
    assert three.prefix_digests[2] != other.prefix_digests[2]
    assert stack(("base", 0), ("other", 1), ridge=1).prefix_digests[1] != HALVES.prefix_digests[1]


def test_scale_comes_after_the_map(pool, live):
    data = HALVES.data
    data["stack"]["slots"][1]["scale"] = 0.5
    built = Builder(pool).build_model(Recipe.parse(data))
    found = logits(live, pool, Recipe.parse(data))
    halved = {name: table / 2 for name, table in built.stitches[1]().items()}
    built = Builder(pool).build_model(HALVES)
    object.__setattr__(built.layers[1], "stitch", lambda: halved)
    live.refit(built)
    with torch.no_grad():
        torch.testing.assert_close(found, live.module(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_exported_stack_is_the_one_in_memory(pool, live, tmp_path, scale):
    data = HALVES.data
    data["stack"]["slots"][1]["scale"] = scale
    recipe = Recipe.parse(data)
    export(recipe, pool, tmp_path / "out")
    loaded = load_stack(tmp_path / "out", "AutoModelForCausalLM")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, logits(live, pool, recipe))
    assert set(load_file(tmp_path / "out" / "stitches.safetensors")) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert type(loaded.model.layers[1].stitch) is torch.nn.Linear
    with pytest.raises(ValueError, match="evomerge_stitched"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    with pytest.raises(PoolError, match=r"a stack with (scales|stitches) that are not in its weights"):
        Pool(pool.base.path, {"stacked": tmp_path / "out"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Plain transformers refuses this folder" in card
    assert "mapped before layer 1, after the last layer" in card


@pytest.mark.parametrize(
    "tables", [None, {"1.weight": torch.eye(16)}, {"7.weight": torch.eye(16), "7.bias": torch.zeros(16)}]
)
def test_folder_with_other_maps_is_refused(pool, tmp_path, tables):
    export(HALVES, pool, tmp_path / "out")
    file = tmp_path / "out" / "stitches.safetensors"
    file.unlink()
    if tables is not None:
        save_file(tables, file)
    with pytest.raises(ModelError, match=r"expected `N.weight` .* from 0 to 2, the number of layers"):
        load_stack(tmp_path / "out")


def test_command_writes_it_and_says_how_it_loads(folder, settings, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(HALVES.data))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"tasks": {"texts": settings["texts"]}}))
    models = [f"--base={folder / 'base'}", f"--expert=other={folder / 'other'}"]
    command = ["merge", tmp_path / "recipe.yaml", *models, "-o", tmp_path / "out"]
    assert "the statistic `hidden` of `base` on the task `texts`" in evomerge(*command, code=2).stderr
    said = evomerge(*command, "--evidence", tmp_path / "study.yaml").stdout
    assert "load it with `evomerge.models.load_stack`" in " ".join(said.split())
    again = ["merge", tmp_path / "out" / "recipe.yaml", "-o", tmp_path / "again"]
    evomerge(*again)  # the recipe records which statistics it was made of
    for file in ("model.safetensors", "stitches.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.fixture(scope="module")
def study(folder, settings):
    """A space of stitched stacks, opened."""
    path = {
        "sources": ["base", "other", "copy"],
        "include": {"bit": "first", "per": ["slot"]},
        "shortest": 1,
        "longest": 2,
    }
    data = {
        "pool": {"base": str(folder / "base"), "experts": {name: str(folder / name) for name in ("other", "copy")}},
        "space": {"recipe": {"stack": {"path": path, "stitch": {"task": "texts", "ridge": {"float": [1e-3, 1]}}}}},
        "driver": {"kind": "random"},
        "tasks": {"texts": settings["texts"]},
    }
    parts = open_parts(StudySettings.parse(data, "study", folder))
    parts.collect()
    return parts


def test_search_reads_the_hidden_states_of_all_models_of_its_paths(study):
    assert {entry.expert for entry in study.evidence.entries} == {"base", "other", "copy"}


def test_search_chooses_stitches_and_workers_agree(study):
    """Candidates that share prefixes, in one worker and in turn in two, have the scores that they have alone."""
    genomes = study.space.from_unit(np.random.default_rng(0).random((5, len(study.space.genes))))
    genomes[:, -1] = genomes[0, -1]  # one ridge
    recipes = [*map(study.space.decode, genomes), study.space.decode(study.space.initial)]
    one, *two = (Worker(study.setup) for _ in range(3))
    for number, recipe in enumerate((*recipes, *recipes[::-1])):
        scores = [worker.evaluate(recipe) for worker in (one, two[number % 2], Worker(study.setup))[: 2 + (number < 2)]]
        assert not any(found.error for found in scores)
        assert len({tuple(vector.tobytes() for vector in found.scores.values()) for found in scores}) == 1
    assert one.prepare().model.prefixes.nbytes


def test_search_begins_with_all_layers_of_one_model(study):
    assert "layers of base" in study.space.landmarks()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"slots": [{"source": {"align": {"source": "copy", "to": "base"}}, "layer": 0}]},
            "takes layers of the base and of",
        ),
        ({"stitch": {}}, r"stitch.task` is missing"),
        ({"stitch": {"task": "texts", "ridge": 0}}, "ridge"),
        ({"stitch": {"task": "texts", "rigde": 1}}, "unknown key `stack.stitch.rigde`; did you mean `ridge`"),
    ],
)
def test_wrong_stitches_are_refused(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"stack": {**HALVES.data["stack"], **data}})


@pytest.mark.parametrize(
    "data",
    [
        {"merge": {"method": "linear", "inputs": ["base", HALVES.data]}},
        {"stack": {"slots": [{"source": HALVES.data, "layer": 0}], "rest": "base"}},
    ],
)
def test_nothing_is_made_of_a_stitched_stack(data):
    with pytest.raises(RecipeError, match=r"`stack` makes a model with maps between its layers.*the outermost node"):
        Recipe.parse(data)


def test_stitched_stack_is_no_parent(pool):
    members = Members()
    members.lineage[HALVES.id] = HALVES
    with pytest.raises(RecipeError, match="is a stack with maps between its layers"):
        Builder(pool, members=members).build(Recipe.parse({"member": HALVES.id}))


def test_stitch_without_evidence_is_refused(folder):
    pool = Pool(folder / "base", {"other": folder / "other"})
    with pytest.raises(
        RecipeError, match=r"the statistic `hidden` of `base` on the task `texts`.*--evidence STUDY.yaml"
    ):
        Builder(pool).build_model(HALVES)


def test_unknown_task_is_refused(folder, settings):
    pool = Pool(folder / "base", {"other": folder / "other"})
    with pytest.raises(EvomergeError, match="names the task `text`, which there is not; did you mean `texts`"):
        collect(pool, settings, stack(("base", 0), ("other", 1), task="text"), folder=folder)


def test_task_on_which_models_read_what_they_wrote_is_refused(pool, monkeypatch):
    tables = pool.evidence.tables

    def other(kind, label, name):
        found = tables(kind, label, name)
        return {**found, "read": found["read"] + (label == "other")} if found else found

    monkeypatch.setattr(pool.evidence, "tables", other)
    with pytest.raises(RecipeError, match="read other tokens than one another on the task `texts`"):
        Builder(pool).build_model(HALVES).stitches[1]()


def test_mergekit_and_engines_have_no_stitches(pool):
    with pytest.raises(RecipeError, match="affine maps between layers"):
        write(HALVES, {"base": "base", "other": "other"}, Outline.of(pool.base))
    builder = Builder(pool)
    with pytest.raises(ModelError, match="has affine maps between its layers"):
        check_depth(builder.build_model(HALVES), builder)
