"""Activation matching: permuted copies are recovered, from what units give on examples of a task."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from subjects import image_task, jsonl, subject_of, text_task
from tiny_models import TINY, tiny_model

from evomerge import tasks
from evomerge.alignment import Permuted, match, symmetry
from evomerge.alignment.activations import observed, standardised
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.errors import EvomergeError, ModelError, RecipeError
from evomerge.merging import needs, unwatched
from evomerge.models.live import LiveModel
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.settings import StudySettings
from evomerge.statistics import STATISTICS

ALIGN = {"align": {"source": "turned", "to": "shifted", "by": "activations", "task": "turned"}}


def activations(live, folder, task, checkpoint):
    """Return what the statistic `inputs` says of a checkpoint."""
    live.refit(checkpoint)
    tables = STATISTICS["inputs"].collect(subject_of(folder, task, live=live), unwatched)
    return lambda name: tables.get(name, {})


def recovered(folder, task):
    """Return whether a permuted copy of the model in a folder is recovered tensor by tensor, and its units without activations."""
    live, model = LiveModel(folder), Folder(folder)
    found = symmetry(live)
    order = found.random(1)
    copy = Permuted(model, found, lambda: order)
    both = activations(live, folder, task, copy), activations(live, folder, task, model)
    seen = {number for box in observed(found, *both) for number in box.piece.flat}
    back = match(copy, model, found, both)
    aligned = Permuted(copy, found, lambda: back)
    unseen = sorted(unit.size for number, unit in enumerate(found.units) if unit.free and number not in seen)
    return all(torch.equal(aligned.tensor(name), model.tensor(name)) for name in model.info), unseen


@pytest.mark.parametrize(
    ("name", "unseen"),
    [
        ("llama", []),
        ("gpt2", [8, 8]),  # the dims of queries and keys
        ("bert", [8, 8]),
        ("mixtral", [3, 3, 24, 24]),  # the experts, which see other tokens in each model
        ("vit", [8, 8]),
    ],
)
def test_permuted_copy_is_recovered(tmp_path, name, unseen):
    classifies = "Classification" in TINY[name][1]
    task = (
        image_task(tmp_path)
        if name == "vit"
        else text_task(tmp_path, "classification" if classifies else "language_modelling")
    )
    assert recovered(tiny_model(tmp_path / "model", name), task) == (True, unseen)


def test_grouped_queries_are_recovered_with_the_dims_of_values(tmp_path):
    widths = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
    assert recovered(tiny_model(tmp_path / "model", "llama", **widths), text_task(tmp_path, "language_modelling")) == (
        True,
        [],
    )


def test_channels_are_recovered(resnet, tmp_path):
    drawn = torch.Generator().manual_seed(0)
    rows = [{"image": torch.rand(1, 16, 16, generator=drawn).tolist(), "label": i % 3} for i in range(24)]
    paths = {
        split: jsonl(tmp_path / f"{split}.jsonl", some) for split, some in (("search", rows[1:]), ("report", rows[:1]))
    }
    task = tasks.make("maths", {"kind": "classification", "input": "image", "label": "label", **paths}, tmp_path)
    assert recovered(resnet, task) == (True, [])


def test_activations_are_standardised_and_constant_units_are_left_out():
    rows = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0], [2.0, 5.0, 0.0]])
    root = 0.5**0.5
    expected = torch.tensor([[-root, 0, 0], [root, 0, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(standardised(rows), expected)


def test_largest_sum_of_correlations_is_found_where_weights_say_otherwise(tmp_path):
    """Two hidden units; weights of `to` are those of the source, activations are exchanged."""
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.last = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)\n"
        "    def forward(self, x):\n"
        "        return self.last(torch.relu(self.first(x)))\n"
        "def make(folder):\n"
        "    return Net()\n"
    )
    (tmp_path / "config.json").write_text("{}")
    first = torch.tensor([[1.0, 0.2], [0.3, 1.0]])
    weights = {"first.weight": first, "first.bias": torch.zeros(2), "last.weight": torch.tensor([[1.0, 2.0]])}
    save_file({**weights, "last.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    live = LiveModel(tmp_path, module=f"{tmp_path / 'net.py'}:make")
    found = symmetry(live, [{"x": torch.linspace(-1, 2, 8).view(4, 2)}])
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
    about = {"counts": torch.tensor([3]), "axis": torch.tensor(1)}
    tables = [{"last.weight": {"rows": one, **about}} for one in (rows, rows.flip(1))]
    model = Folder(tmp_path)
    order = match(model, model, found, tuple(lambda n, t=t: t.get(n, {}) for t in tables))
    assert np.array_equal(order[0], [1, 0])
    assert np.array_equal(match(model, model, found)[0], [0, 1])
    with pytest.raises(ModelError, match=r"say nothing of any unit .*type `by: weights`"):
        match(model, model, found, (lambda name: {}, lambda name: {}))


@pytest.fixture
def study(small_digits, tmp_path):
    """Return a function that reads a study of two experts of the small zoo."""

    def read(recipe):
        tasks = {name: dict(entry) for name, entry in small_digits.tasks.items()}
        pool = {
            "base": small_digits.pool["base"],
            "experts": {n: small_digits.pool["experts"][n] for n in ("turned", "shifted")},
        }
        evidence = {"turned": {"task": "turned", "examples": 12}}
        data = {"pool": pool | {"evidence": evidence}, "space": {"recipe": recipe}, "tasks": tasks}
        return StudySettings.parse(data, "study", tmp_path)

    return read


MEAN = {"merge": {"method": "linear", "inputs": ["shifted", ALIGN], "parameters": {"weight": {"float": [0, 1]}}}}


def test_node_is_built_from_evidence_and_exported_again_with_the_same_bytes(study, tmp_path):
    parts = open_parts(study(MEAN))
    assert [(entry.kind, entry.expert, len(entry.examples)) for entry in parts.evidence.entries] == [
        ("inputs@turned", name, 12) for name in ("shifted", "turned")
    ]
    recipe = Recipe.parse({"merge": {**MEAN["merge"], "parameters": {"weight": 0.5}}})
    with pytest.raises(RecipeError, match=r"is not in the cache of this machine"):
        export(recipe, parts.pool, tmp_path / "early")
    parts.collect()
    assert not parts.evidence.left
    for name in ("one", "two"):
        export(recipe, parts.pool, tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    record = (tmp_path / "one" / "recipe.yaml").read_text(encoding="utf-8")
    assert all(key in record for key in parts.evidence.digests["inputs@turned"].values())
    aligned, turned = Builder(parts.pool).build(Recipe.parse(ALIGN)), parts.pool.experts["turned"]
    moved = [name for name in parts.pool.merged if not torch.equal(aligned.tensor(name), turned.tensor(name))]
    assert moved
    for name in moved:
        assert torch.equal(*(model.tensor(name).flatten().sort().values for model in (aligned, turned)))


def test_recipe_says_what_it_needs():
    recipe = Recipe.parse(ALIGN)
    assert needs(Recipe.parse({"merge": {"method": "linear", "inputs": ["shifted", recipe]}})) == ("inputs@turned",)
    assert needs(Recipe.parse({"align": {"source": "turned", "to": "shifted"}})) == ()
    assert Recipe.parse(json.loads(recipe.json)) == recipe


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"by": "activations"}, "needs a task to run the models on; add `task: NAME`"),
        ({"task": "turned"}, "`task` is read by activations alone; add `by: activations`"),
        (
            {"by": "activations", "task": "turned", "to": {"merge": {"method": "linear", "inputs": ["a", "b"]}}},
            "`to` is a recipe of its own, of which no activations are collected",
        ),
        ({"by": "activations", "task": "turned", "to": "a"}, "`source` and `to` are the same recipe"),
    ],
)
def test_wrong_nodes_are_refused(more, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"align": {"source": "a", "to": "b", **more}})


def test_missing_evidence_says_what_to_type(study):
    pool = open_parts(study({"merge": {**MEAN["merge"], "inputs": ["shifted", "turned"]}})).pool
    with pytest.raises(RecipeError, match=r"`inputs` of `turned` on the task `turned`.*--evidence STUDY.yaml"):
        Builder(pool).build(Recipe.parse(ALIGN))
    with pytest.raises(EvomergeError, match="names the task `turnd`, which there is not; did you mean `turned`"):
        open_parts(study(json.loads(json.dumps(MEAN).replace('"task": "turned"', '"task": "turnd"'))))
