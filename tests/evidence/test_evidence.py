"""Evidence: which examples, what is refused, and a study and a merge that read it."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from evomerge import cache
from evomerge.cli.merges import PoolOptions
from evomerge.cli.scores import score
from evomerge.cli.statistics import statistics
from evomerge.errors import EvomergeError, RecipeError, StudyError
from evomerge.evidence.models import Models
from evomerge.parts import open_parts
from evomerge.recipe import merge
from evomerge.report.export import export
from evomerge.settings import StudySettings

SPACE = {
    "recipe": {
        "merge": {"method": "regmean", "inputs": ["turned", "shifted"], "parameters": {"alpha": {"float": [0, 1]}}}
    }
}
SMALL = {name: {"task": name, "examples": 4} for name in ("turned", "inverted", "shifted", "mirrored")}


@pytest.fixture
def study(small_digits, tmp_path):
    """Return a function that reads a study of two experts of the small zoo."""

    def read(evidence=None, space=SPACE, **more):
        pool = {"base": small_digits.pool["base"], "experts": dict(small_digits.pool["experts"])}
        tasks = {name: dict(entry) for name, entry in small_digits.tasks.items()}
        data = {"pool": pool | {"evidence": SMALL if evidence is None else evidence}, "space": space, "tasks": tasks}
        return StudySettings.parse(data | more, "study", tmp_path)

    return read


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"turned": {"task": "turned", "split": "report"}}, "evidence is of the search split, got 'report'"),
        ({"turnd": {"task": "turned"}}, "names `turnd`, which is no expert of the pool; did you mean `turned`"),
        ({"turned": {"task": "turnd"}}, "`evidence` of `turned`: no task `turnd`; did you mean `turned`"),
        (
            {"turned": {"task": "turned", "examples": 9999}},
            "9999 examples of the task `turned`, which has 200 to search; type `examples: 200`",
        ),
    ],
)
def test_wrong_evidence_is_refused_before_any_work(study, evidence, message):
    with pytest.raises(EvomergeError, match=message):
        open_parts(study(evidence))


def test_a_method_without_evidence_says_what_to_type(study, tmp_path):
    parts = open_parts(study({}, space="task_arithmetic"))
    assert parts.evidence is None
    with pytest.raises(RecipeError, match=r"type `evomerge merge RECIPE --evidence STUDY.yaml`"):
        export(merge("regmean", ["turned", "shifted"], {}), parts.pool, tmp_path / "merged")


def test_settings_without_evidence_are_what_they_were(study):
    settings = study({}, space="task_arithmetic")
    assert "evidence" not in json.loads(settings.model_dump_json())["pool"]


def test_a_study_collects_and_an_export_is_the_same_merge(study, tmp_path):
    parts = open_parts(study())
    assert [entry.kind for entry in parts.evidence.left] == ["gram"] * 4
    price = parts.evidence.price()["gram"]
    assert price.seconds > 0
    parts.collect()
    assert not parts.evidence.left
    written = sum(entry.folder.joinpath("00000.safetensors").stat().st_size for entry in parts.evidence.entries)
    assert price.nbytes == pytest.approx(written, rel=0.5)
    recipe = merge("regmean", ["turned", "shifted"], {"alpha": 0.7})
    for name in ("one", "two"):
        export(recipe, parts.pool, tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all((one[name] == two[name]).all() for name in one)
    record = (tmp_path / "one" / "recipe.yaml").read_text(encoding="utf-8")
    assert parts.evidence.digests["gram"]["turned"] in record


def test_other_examples_are_another_statistic(study):
    keys = [
        open_parts(study(evidence)).evidence.digests["gram"]["turned"]
        for evidence in (SMALL, {**SMALL, "turned": {"task": "turned", "examples": 5}}, SMALL)
    ]
    assert keys[0] == keys[2] != keys[1]


def test_statistics_of_the_base_are_of_its_weights_on_the_examples_of_experts(study):
    recipe = {"method": "aim", "inputs": ["turned", "shifted"], "parameters": {"omega": {"float": [0, 1]}}}
    parts = open_parts(study(space={"recipe": {"merge": recipe}}))
    assert {entry.about["model"] for entry in parts.evidence.entries} == {parts.pool.digests["base"]}
    assert len(set(parts.evidence.digests["base_activation"].values())) == 4  # of other examples
    live = parts.evidence._models.load()
    base = [parameter.clone() for parameter in live.module.parameters()]
    live.refit(parts.pool.experts["turned"])
    assert not all(map(torch.equal, base, live.module.parameters()))
    entry = parts.evidence.entries[0]
    subject = parts.evidence._models.subject(live, entry, entry.examples)
    assert all(map(torch.equal, base, subject.live.module.parameters()))
    parts.collect()
    assert not parts.evidence.left


def test_a_recipe_that_reads_data_is_scored_with_the_tasks_as_evidence(small_digits, tmp_path, capsys):
    pool = small_digits.pool
    recipe, tasks = tmp_path / "recipe.yaml", tmp_path / "tasks.yaml"
    recipe.write_text(json.dumps({"merge": {"method": "aim", "inputs": ["turned", "shifted"]}}))
    entries = {name: dict(entry) for name, entry in small_digits.tasks.items() if name in SMALL}
    tasks.write_text(json.dumps({"tasks": entries, "evidence": SMALL}))
    experts = [f"{name}={folder}" for name, folder in pool["experts"].items()]
    score(recipe, tasks, PoolOptions(None, Path(pool["base"]), experts), front=False, as_json=True)
    assert "recipe.yaml" in capsys.readouterr().out


def test_the_cache_lists_and_removes_statistics(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = open_parts(study())
    parts.collect()
    assert {entry.what for entry in cache.entries()} == {"statistics"}
    assert cache.prune(0) == []  # used within the hour
    keep = parts.evidence.entries[0].folder
    assert len(cache.prune(0, keep=[keep], fresh=0.0)) == 3
    assert [entry.path for entry in cache.entries()] == [keep]
    assert len(parts.evidence.left) == 3


def test_no_statistics_are_collected_where_all_are_there(study, monkeypatch):
    parts = open_parts(study())
    parts.collect()
    monkeypatch.setattr(Models, "load", lambda self: pytest.fail("a model was loaded"))
    parts.evidence.collect(Console(quiet=True))


def test_kind_with_a_task_is_refused_with_what_to_type(tmp_path):
    with pytest.raises(StudyError, match=r"leave out `--kind`, or type `--kind inputs`"):
        statistics(tmp_path, ["inputs@turned"], dry_run=True)
