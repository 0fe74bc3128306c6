"""Repairs: the outputs of a merge's layers have the moments of its models' outputs, folded into weights and biases."""

import json

import pytest
import torch
from commands import evomerge
from safetensors.torch import load_file, save_file
from subjects import image_task, subject_of, text_task
from tiny_models import tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import EvomergeError, PoolError, RecipeError, SpaceError
from evomerge.evidence import Evidence, repairs
from evomerge.merging import unwatched
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.report.export import export
from evomerge.settings import StudySettings
from evomerge.statistics.outputs import bias_of, moments

MEAN = {"merge": {"method": "linear", "inputs": ["one", "two"]}}
ALIGNED = {"align": {"source": "two", "to": "one"}}


class Recorded:
    """The statistics of models, and the corrections of repairs, kept in memory; as evidence of a pool."""

    def __init__(self, pool, live, tasks):
        self.pool, self.live, self.tasks, self.found = pool, live, tasks, {}
        pool.evidence = self
        for label, model in {"base": pool.base, **pool.experts}.items():
            live.refit(model)
            for task in tasks:
                self.found[f"outputs@{task}", label] = moments(self.subject(task), unwatched)

    def subject(self, task):
        return subject_of(self.pool.base.path, self.tasks[task], live=self.live)

    def digest(self, kind, label):
        return f"{kind} of {label}"

    def tables(self, kind, label, name):
        return self.found[kind, label].get(name, {})

    def repair(self, data, folder):
        """Collect a repair, and return its checkpoint and the layers that it corrects."""
        recipe = Recipe.parse(data)
        repairs.collect(recipe, self.pool, self.live, self.subject, folder, {}, unwatched)
        stored = repairs.store.Stored(folder)
        names = [name for name in self.pool.merged if stored.tables(name)]
        self.found["repair", recipe.id] = {name: stored.tables(name) for name in names}
        return Builder(self.pool).build(recipe), names


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Two experts, and a third that is one of them again, with two tasks."""
    folder = tmp_path_factory.mktemp("bert")
    models = {name: tiny_model(folder / name, "bert", seed) for name, seed in (("base", 0), ("one", 1), ("two", 2))}
    pool = Pool(
        models["base"], {"one": models["one"], "two": models["two"], "again": tiny_model(folder / "x", "bert", 1)}
    )
    tasks = {name: text_task(tmp_path_factory.mktemp(name), "classification") for name in ("maths", "code")}
    return Recorded(pool, LiveModel(models["base"]), tasks)


def outputs(recorded, model, tasks):
    recorded.live.refit(model)
    return [moments(recorded.subject(task), unwatched) for task in tasks]


def test_correction_by_hand():
    z = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)  # the specification's example
    own = {"mean": z.mean()[None], "variance": z.var(correction=0)[None], "axis": torch.tensor(1)}
    found = repairs.correction(own, torch.tensor([10.0]).double(), torch.tensor([4.0]).double())
    expected = torch.tensor([5.72382, 7.86191, 10.0, 16.414268], dtype=torch.float64)
    torch.testing.assert_close(z * found["scale"] + found["shift"], expected, rtol=1e-6, atol=1e-6)
    constant = {**own, "variance": torch.zeros(1, dtype=torch.float64)}
    found = repairs.correction(constant, torch.tensor([10.0]).double(), torch.tensor([4.0]).double())
    assert (float(found["scale"]), float(found["shift"])) == (1, 7)


def test_moments_are_pooled_over_tokens():
    one, two = torch.tensor([1.0, 3.0]).double(), torch.tensor([2.0, 2.0, 8.0]).double()
    parts = [
        {
            "mean": part.mean()[None],
            "variance": part.var(correction=0)[None],
            "tokens": torch.tensor(len(part)),
            "axis": 1,
        }
        for part in (one, two)
    ]
    found, both = repairs.pooled(parts), torch.cat([one, two])
    torch.testing.assert_close(found["mean"], both.mean()[None])
    torch.testing.assert_close(found["variance"], both.var(correction=0)[None])


def test_layers_have_the_means_of_the_moments_of_both_models(bert, tmp_path):
    repaired, names = bert.repair({"repair": {"source": MEAN, "tasks": ["maths"], "weights": [3, 1]}}, tmp_path / "r")
    assert "classifier.weight" not in names
    assert len(names) == 13  # six in each of two blocks, and the pooler
    one, two = (bert.found["outputs@maths", label] for label in ("one", "two"))
    found = outputs(bert, repaired, ["maths"])[0]
    before = outputs(bert, Builder(bert.pool).build(Recipe.parse(MEAN)), ["maths"])[0]
    for name in names:
        mean = 0.75 * one[name]["mean"] + 0.25 * two[name]["mean"]
        deviation = 0.75 * one[name]["variance"].sqrt() + 0.25 * two[name]["variance"].sqrt()
        torch.testing.assert_close(found[name]["mean"], mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[name]["variance"].sqrt(), deviation, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(before[name]["variance"].sqrt(), deviation, rtol=0.05)
    kept = [name for name in bert.pool.merged if name not in (*names, *map(bias_of, names))]
    plain = Builder(bert.pool).build(Recipe.parse(MEAN))
    assert all(torch.equal(repaired.tensor(name), plain.tensor(name)) for name in kept)


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ({"merge": {"method": "linear", "inputs": ["one", "again"]}}, {"tasks": ["maths", "code"]}),
        ({"merge": {"method": "linear", "inputs": ["one"]}}, {"to": ["one"], "tasks": ["maths"]}),
        ("two", {"to": ["two"], "tasks": ["code"]}),
    ],
)
def test_merge_of_a_model_with_itself_stays_as_it_is(bert, tmp_path, source, more):
    """Bit for bit, where the merge is; `linear` rounds the sum of the base and a task vector."""
    repaired, names = bert.repair({"repair": {"source": source, **more}}, tmp_path / "r")
    plain = Builder(bert.pool).build(Recipe.parse(source))
    assert names
    exact = isinstance(source, str)
    for name in bert.pool.merged:
        torch.testing.assert_close(
            repaired.tensor(name), plain.tensor(name), rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5
        )


def test_aligned_models_are_aimed_at_in_their_new_order(bert, tmp_path):
    """A merge that is the aligned model alone has its moments already."""
    source = {"merge": {"method": "linear", "inputs": [ALIGNED]}}
    repaired, _ = bert.repair({"repair": {"source": source, "tasks": ["maths"]}}, tmp_path / "r")
    plain = Builder(bert.pool).build(Recipe.parse(source))
    for name in bert.pool.merged:
        torch.testing.assert_close(repaired.tensor(name), plain.tensor(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "vit"])
def test_other_layouts_of_weights(tmp_path, architecture):
    models = {
        name: tiny_model(tmp_path / name, architecture, seed) for name, seed in (("base", 0), ("one", 1), ("two", 2))
    }
    pool = Pool(models.pop("base"), models)
    task = image_task(tmp_path) if architecture == "vit" else text_task(tmp_path, "language_modelling")
    recorded = Recorded(pool, LiveModel(pool.base.path), {"maths": task})
    repaired, names = recorded.repair({"repair": {"source": MEAN, "tasks": ["maths"]}}, tmp_path / "r")
    one, two = (recorded.found["outputs@maths", label] for label in ("one", "two"))
    found = outputs(recorded, repaired, ["maths"])[0]
    for name in names:
        goal = (one[name]["variance"].sqrt() + two[name]["variance"].sqrt()) / 2
        torch.testing.assert_close(found[name]["variance"].sqrt(), goal, rtol=1e-3, atol=1e-5)


def test_batch_norms_take_the_correction_of_what_they_normalise(resnet, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    drawn = torch.Generator().manual_seed(3)
    noisy = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=drawn) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(resnet / "model.safetensors").items()
    }
    save_file(noisy, other / "model.safetensors", {"format": "pt"})
    (other / "config.json").write_bytes((resnet / "config.json").read_bytes())
    recorded = Recorded(Pool(resnet, {"one": resnet, "two": other}), LiveModel(resnet), {"maths": image_task(tmp_path)})
    repaired, names = recorded.repair({"repair": {"source": MEAN, "tasks": ["maths"]}}, tmp_path / "r")
    assert names
    assert all("normalization" in name for name in names)
    one, two = (recorded.found["outputs@maths", label] for label in ("one", "two"))
    found = outputs(recorded, repaired, ["maths"])[0]
    for name in names:
        torch.testing.assert_close(
            found[name]["mean"], (one[name]["mean"] + two[name]["mean"]) / 2, rtol=1e-3, atol=1e-4
        )


def test_layers_without_biases_are_refused_by_name(tmp_path):
    folder = tiny_model(tmp_path / "base", "llama")
    pool = Pool(folder, {"one": tiny_model(tmp_path / "one", "llama", 1)})
    with pytest.raises(
        PoolError, match=r"repair: `model.layers.0.mlp.down_proj.weight` and 13 more have no bias.*ViT, BERT or GPT-2"
    ):
        repairs.check(pool)


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        ({"source": "one", "tasks": ["maths"]}, "`source` is no merge; name the models .*`to: "),
        ({"source": MEAN, "tasks": []}, "tasks"),
        ({"source": MEAN, "tasks": ["maths"], "weights": [1]}, r"`weights` are \[1.0\]; expected 2 shares"),
        ({"source": MEAN, "tasks": ["maths"], "weights": [0, 0]}, "expected 2 shares"),
        (
            {"source": MEAN, "to": [MEAN], "tasks": ["maths"]},
            "outputs are collected of experts, the base and alignments",
        ),
        (
            {"source": {"stack": {"slots": [{"source": "one", "layer": 0}], "rest": "one"}}, "tasks": ["maths"]},
            "is a stack",
        ),
        (
            {"source": {"merge": {"method": "linear", "inputs": [{"member": "0" * 64}]}}, "tasks": ["maths"]},
            "earlier candidates",
        ),
    ],
)
def test_wrong_nodes_are_refused(repair, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse({"repair": repair})


def test_recipe_reads_back_and_lists_its_repairs():
    inner = {"repair": {"source": MEAN, "tasks": ["maths"]}}
    recipe = Recipe.parse(
        {
            "repair": {
                "source": {"merge": {"method": "linear", "inputs": [inner, "one"]}},
                "to": ["one"],
                "tasks": ["code"],
            }
        }
    )
    assert Recipe.parse(json.loads(recipe.json)) == recipe
    assert recipe.repairs == (Recipe.parse(inner), recipe)
    assert recipe.experts == ("one", "two")


@pytest.fixture
def study(small_digits, tmp_path):
    """Return a function that reads a study of two experts of the small zoo."""

    def read(recipe):
        experts = {name: small_digits.pool["experts"][name] for name in ("turned", "shifted")}
        evidence = {name: {"task": name, "examples": 6} for name in experts}
        data = {
            "pool": {"base": small_digits.pool["base"], "experts": experts, "evidence": evidence},
            "space": {"recipe": recipe},
            "tasks": {name: dict(entry) for name, entry in small_digits.tasks.items() if name in experts},
        }
        return StudySettings.parse(data, "study", tmp_path)

    return read


REPAIR = {
    "repair": {
        "source": {"merge": {"method": "linear", "inputs": ["turned", "shifted"]}},
        "tasks": ["turned", "shifted"],
    }
}
SPACE = {"merge": {"method": "linear", "inputs": [REPAIR, "shifted"], "parameters": {"weight": {"float": [0, 1]}}}}


def test_study_collects_repairs_before_its_search(study, tmp_path):
    parts = open_parts(study(SPACE))
    evidence = parts.evidence
    assert [entry.kind for entry in evidence.left] == ["outputs@shifted"] * 2 + ["outputs@turned"] * 2 + ["repair"]
    assert set(evidence.price()) == {"outputs@shifted", "outputs@turned", "repair"}
    recipe = Recipe.parse(REPAIR)
    with pytest.raises(RecipeError, match="is not in the cache of this machine"):
        export(recipe, parts.pool, tmp_path / "early")
    parts.collect()
    assert not evidence.left
    for name in ("one", "two"):
        export(recipe, parts.pool, tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert evidence.digests["repair"][recipe.id] in (tmp_path / "one" / "recipe.yaml").read_text(encoding="utf-8")
    evomerge("merge", tmp_path / "one" / "recipe.yaml", "-o", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == one
    other = Evidence(parts.pool, parts.setup, parts.tasks, {}, parts.space.needs, parts.space.examples)
    assert other.digests["repair"] != evidence.digests["repair"]  # of other examples


def test_holes_and_missing_evidence_are_refused(study):
    data = json.loads(json.dumps(SPACE))
    data["merge"]["inputs"][0]["repair"]["source"]["merge"]["parameters"] = {"weight": {"float": [0, 1]}}
    with pytest.raises(SpaceError, match=r"is inside of a `repair`.*repair what you pick"):
        open_parts(study(data))
    with pytest.raises(EvomergeError, match="names the task `turnd`, which there is not; did you mean `turned`"):
        open_parts(
            study(json.loads(json.dumps(SPACE).replace('["turned", "shifted"]}}, "shifted"', '["turnd"]}}, "shifted"')))
        )
    pool = open_parts(study({**SPACE, "merge": {**SPACE["merge"], "inputs": ["turned", "shifted"]}})).pool
    with pytest.raises(RecipeError, match=r"corrections of the repair .*--evidence STUDY.yaml"):
        Builder(pool).build(Recipe.parse(REPAIR))
