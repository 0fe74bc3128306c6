"""Heads that stay outside of a merge: the backbone of experts with different heads is merged, each keeps its own."""

import json

import pytest
import torch
from commands import evomerge
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import CheckpointError, PoolError, RecipeError
from evomerge.evaluate import Setup, Worker
from evomerge.models import LiveModel
from evomerge.models.pretrained import load_model
from evomerge.recipe import Recipe, expert, merge
from evomerge.report.export import export

CLASSES = {"two": 2, "four": 4, "many": 20}
CLASSIFIER = "AutoModelForSequenceClassification"
IDS = torch.arange(3, 19)[None]  # one text: classifiers on decoders need a padding token for more
MEAN = merge("linear", list(CLASSES))


def experts(folder, architecture="bert", **changes):
    for seed, (name, classes) in enumerate(CLASSES.items(), 1):
        tiny_model(folder / name, architecture, seed, CLASSIFIER, num_labels=classes, **changes)
    return {name: folder / name for name in CLASSES}


def in_memory(base, paths, name):
    """The classifier `name` of transformers, its backbone the mean of all, computed by parameter names of the modules."""
    models = {key: load_model(path, CLASSIFIER) for key, path in paths.items()}
    states = [model.base_model.state_dict() for model in models.values()]
    model = models[name]
    stored = load_file(base / "model.safetensors")
    common = [key for key in states[0] if any(f".{name}".endswith(f".{key}") for name in stored)]
    mean = {key: sum(state[key] for state in states) / len(states) for key in common}
    model.base_model.load_state_dict({**model.base_model.state_dict(), **mean})
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("architecture", "base_class"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForMaskedLM"),
        ("gpt2", "AutoModel"),
        ("llama_tied", "AutoModelForCausalLM"),
    ],
)
def test_scored_and_exported_classifiers_are_the_mean_backbone_with_each_head(architecture, base_class, tmp_path):
    base = tiny_model(tmp_path / "base", architecture, auto=base_class)
    paths = experts(tmp_path, architecture)
    pool = Pool(base, paths)
    live = LiveModel(base, heads=pool.heads)
    live.refit(Builder(pool).build(MEAN))
    export(MEAN, pool, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(CLASSES)
    for name, classes in CLASSES.items():
        expected = in_memory(base, paths, name)
        live.use_head(name)
        exported = load_model(tmp_path / "out" / name, CLASSIFIER)
        assert logits(expected).shape == (1, classes)
        torch.testing.assert_close(logits(live.module), logits(expected), rtol=1e-5, atol=1e-5)
        held = live.module.state_dict()
        assert all(torch.equal(tensor, held[key]) for key, tensor in exported.state_dict().items())


def test_names_and_heads_of_the_pool_are_said(tmp_path):
    pool = Pool(tiny_model(tmp_path / "base", "bert", auto="AutoModel"), experts(tmp_path))
    assert {name: sorted(head.own) for name, head in pool.heads.items()} == {
        "base": [],
        **{name: ["classifier.bias", "classifier.weight"] for name in CLASSES},
    }
    assert "encoder.layer.0.attention.self.query.weight" in pool.merged
    assert any("two (2 tensors, such as `classifier.bias`)" in note for note in pool.notes)


def test_equal_heads_are_merged_unless_they_are_said_to_stay(tmp_path):
    paths = {name: tiny_model(tmp_path / name, "bert", seed) for seed, name in enumerate(("base", "mood", "spam"))}
    base = paths.pop("base")
    assert not Pool(base, paths).heads
    assert "classifier.weight" in Pool(base, paths).merged
    pool = Pool(base, paths, heads="own")
    assert "classifier.weight" not in pool.merged
    export(merge("linear", ["mood", "spam"]), pool, tmp_path / "out", head="spam")
    written, own = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", paths["spam"]))
    assert torch.equal(written["classifier.weight"], own["classifier.weight"])
    assert not torch.equal(written["bert.pooler.dense.weight"], own["bert.pooler.dense.weight"])


def test_labels_of_heads_that_are_not_merged_may_differ(tmp_path):
    paths = {name: tiny_model(tmp_path / name, "bert", seed) for seed, name in enumerate(("base", "mood"))}
    for name, labels in (("base", "abc"), ("mood", "cba")):
        config = json.loads((paths[name] / "config.json").read_text())
        config["id2label"] = dict(enumerate(labels))
        (paths[name] / "config.json").write_text(json.dumps(config))
    with pytest.raises(PoolError, match="id2label"):
        Pool(paths["base"], {"mood": paths["mood"]})
    Pool(paths["base"], {"mood": paths["mood"]}, heads="own")


def test_export_of_one_head_has_its_configuration_and_is_made_again_from_its_recipe(tmp_path):
    base, paths = tiny_model(tmp_path / "base", "bert", auto="AutoModel"), experts(tmp_path)
    (tmp_path / "recipe.yaml").write_text("merge: {method: linear, inputs: experts}")
    named = [word for name, path in paths.items() for word in ("--expert", f"{name}={path}")]
    evomerge("merge", tmp_path / "recipe.yaml", "--base", base, *named, "-o", tmp_path / "one", "--head", "four")
    assert json.loads((tmp_path / "one/config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    evomerge("merge", tmp_path / "one/recipe.yaml", "-o", tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()
    }
    evomerge("merge", tmp_path / "recipe.yaml", "--base", base, *named, "-o", tmp_path / "body", "--head", "base")
    assert load_model(tmp_path / "body").config.architectures == ["BertModel"]


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_what_differs_beside_heads_is_refused_and_so_is_a_head_that_is_not_finite(tmp_path):
    base, paths = tiny_model(tmp_path / "base", "bert", auto="AutoModel"), experts(tmp_path)
    rewrite(paths["two"], lambda tensors: tensors["classifier.bias"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=r"two: tensor `classifier\.bias` of its head holds NaN"):
        Pool(base, paths)
    name = "bert.encoder.layer.1.output.dense.weight"
    rewrite(paths["two"], lambda tensors: tensors["classifier.bias"].zero_())
    rewrite(paths["two"], lambda tensors: tensors.pop(name))
    for heads in (None, "own"):
        with pytest.raises(PoolError, match=r"expert `two` .* differs from the base"):
            Pool(base, paths, heads=heads)


def test_heads_that_do_not_exist_are_refused(tmp_path):
    base, paths = tiny_model(tmp_path / "base", "bert", auto="AutoModel"), experts(tmp_path)
    pool = Pool(base, paths)
    with pytest.raises(RecipeError, match=r"`head` is `fuor`.*`four`"):
        export(MEAN, pool, tmp_path / "out", head="fuor")
    two = {"expert": "two"}
    stack = Recipe.parse({"stack": {"slots": [{"source": two, "layer": 0}], "rest": two}})
    with pytest.raises(RecipeError, match="a stack needs models without heads of their own"):
        Builder(pool).build(stack)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    base, paths = tiny_model(folder / "base", "bert", auto="AutoModel"), experts(folder)
    tasks = {}
    for name, classes in CLASSES.items():
        for split in ("search", "report"):
            rows = [{"text": f"{split} text {i}", "label": i % classes} for i in range(20)]
            (folder / f"{name}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {split: f"{name}.{split}.jsonl" for split in ("search", "report")}
        tasks[name] = {"kind": "classification", **files, "input": "text", "label": "label"}
    experts_by_name = {name: str(path) for name, path in paths.items()}
    return Setup(str(base), experts_by_name, tasks, folder=str(folder))


def test_each_task_is_scored_with_the_head_of_its_expert(setup):
    worker = Worker(setup)
    evaluation = worker.evaluate(expert("four"))
    assert evaluation.error is None
    alone = Worker(
        Setup(setup.experts["four"], {"x": setup.experts["four"]}, {"four": setup.tasks["four"]}, folder=setup.folder)
    )
    expected = alone.evaluate(expert("x")).scores["four/log_likelihood"]
    assert evaluation.scores["four/log_likelihood"] == pytest.approx(expected, rel=1e-5)
    again = worker.evaluate(expert("four"))
    assert all((again.scores[key] == evaluation.scores[key]).all() for key in evaluation.scores)


def test_task_names_another_expert_whose_head_it_takes(setup):
    tasks = {"mood": {**setup.tasks["two"], "head_of": "two"}, "two": setup.tasks["two"]}
    scores = Worker(Setup(setup.base, setup.experts, tasks, folder=setup.folder)).evaluate(MEAN).scores
    assert (scores["mood/log_likelihood"] == scores["two/log_likelihood"]).all()


def test_slopes_pass_through_every_head(setup):
    indices = {name: list(range(20)) for name in CLASSES}
    worker = Worker(setup)

    def scaled(by):
        inputs = [{"expert": name} for name in CLASSES]
        return Recipe.parse({"merge": {"method": "task_arithmetic", "inputs": inputs, "parameters": {"lambda": by}}})

    evaluation = worker.evaluate(scaled(0.5), slopes=indices)
    ends = [worker.evaluate(scaled(by)).scores for by in (0.499, 0.501)]
    where = list(scaled(0.5).numbers).index(("merge", "parameters", "lambda"))
    for key in (f"{name}/log_likelihood" for name in CLASSES):
        low, high = (float(scores[key].mean(dtype=float)) for scores in ends)
        assert evaluation.slopes[key][where] == pytest.approx((high - low) / 0.002, rel=0.01, abs=2e-3)


def test_study_is_searched_over_one_backbone_and_its_pick_is_written_with_each_head(setup, tmp_path):
    settings = {
        "pool": {"base": setup.base, "experts": dict(setup.experts)},
        "space": "task_arithmetic",
        "tasks": {name: {**task, "batch": 20} for name, task in setup.tasks.items()},
        "driver": {"kind": "random"},
        "evaluations": 2,
        "folder": setup.folder,
    }
    (tmp_path / "study.yaml").write_text(json.dumps(settings))
    evomerge("run", tmp_path / "study.yaml", "-o", tmp_path / "run")
    assert json.loads((tmp_path / "run/study.json").read_text())
    evomerge("pick", tmp_path / "run", "--candidate", 1, "-o", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(CLASSES)
    evomerge("pick", tmp_path / "run", "--candidate", 1, "-o", tmp_path / "four", "--head", "four")
    for file in ("model.safetensors", "config.json", "recipe.yaml"):
        assert (tmp_path / "four" / file).read_bytes() == (tmp_path / "all/four" / file).read_bytes()
