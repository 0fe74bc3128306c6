"""Scoring models outside of a search: `evomerge score`."""

import json

import pytest
import yaml
from commands import evomerge

from evomerge.study import Study


@pytest.fixture(scope="session")
def picked(finished, tmp_path_factory):
    """The checkpoint of the pick of `finished`, with its recipe."""
    folder = tmp_path_factory.mktemp("picked") / "model"
    evomerge("pick", finished[0], "-o", folder)
    return folder


def scored(*arguments, **options):
    return json.loads(evomerge("score", *arguments, "--json", **options).stdout)["models"]


def content(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_study_its_recipe_and_its_checkpoint_have_the_scores_of_the_report(finished, study_file, picked):
    out = finished[0]
    shown = json.loads(evomerge("show", out, "--json").stdout)["picked"]
    before = content(out)
    [own] = scored(out)
    [again] = scored(out, "--tasks", study_file)
    [recipe] = scored(picked / "recipe.yaml", "--tasks", study_file)
    [checkpoint] = scored(picked, "--tasks", study_file)
    assert own == {key: shown[key] for key in ("name", "recipe_id", "report", "mean")}
    assert recipe["recipe_id"] == own["recipe_id"]
    assert checkpoint["path"] == str(picked)
    for one in (again, recipe, checkpoint):
        assert {name: values[0] for name, values in one["report"].items()} == {
            name: values[0] for name, values in own["report"].items()
        }
    assert again == own, "the resamples are the study's"
    assert content(out) == before, "scoring writes nothing"


def test_the_front_and_the_references_are_one_row_each(finished):
    said = evomerge("score", finished[0], "--front").stdout
    results = json.loads((finished[0] / "report.json").read_text())
    names = [one["name"] for one in (*results["references"].values(), *results["front"])]
    assert [one["name"] for one in scored(finished[0], "--front")] == names
    assert len([line for line in said.splitlines() if "[" in line]) == len(names)


def test_a_file_of_tasks_is_scored_without_a_mean_where_metrics_differ(finished, study_file, picked, tmp_path):
    one, two = yaml.safe_load(study_file.read_text())["tasks"].values()
    file = tmp_path / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": {"b": one, "a": {**two, "report_metric": "log_likelihood"}}}))
    [model] = scored(picked, "--tasks", file)
    assert model["mean"] is None
    assert set(model["report"]) == {"a", "b"}
    assert model["report"]["a"][0] < 0 < model["report"]["b"][0]
    said = evomerge("score", picked, "--tasks", file).stdout
    assert "log likelihood" in said
    assert "mean" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{study}", "--tasks", "gone.yaml"), "gone.yaml: no such file; expected YAML with `tasks:`"),
        (("gone", "--tasks", "{file}"), "gone: no such recipe file"),
        (("{file}", "--tasks", "{file}"), "this is a study, not a recipe"),
        (("{picked}",), "which tasks? give `--tasks FILE`"),
        (("{picked}", "--front", "--tasks", "{file}"), "`--front` goes with a study's directory"),
        (("{picked}", "--tasks", "empty.yaml"), "empty.yaml: no `tasks`"),
        (("{picked}", "--tasks", "typo.yaml"), "typo.yaml: unknown key `task`; did you mean `tasks`?"),
        (("{picked}", "--tasks", "kind.yaml"), "task `maths`: expected a `kind`, got `choice`"),
        (("{picked}", "--tasks", "data.yaml"), "no such file or folder: "),
        (("recipe.yaml", "--tasks", "{file}"), "recipe.yaml: no pool"),
    ],
)
def test_bad_input_is_one_error(arguments, message, finished, study_file, picked, tmp_path):
    (tmp_path / "empty.yaml").write_text("tasks: {}")
    (tmp_path / "typo.yaml").write_text("task: {}")
    (tmp_path / "kind.yaml").write_text("tasks: {maths: {kind: choice}}")
    (tmp_path / "data.yaml").write_text("tasks: {x: {kind: language_modelling, search: a.jsonl, report: b.jsonl}}")
    (tmp_path / "recipe.yaml").write_text("merge: {method: linear, inputs: experts}")
    words = {"study": finished[0], "file": study_file, "picked": picked}
    done = evomerge("score", *(word.format(**words) for word in arguments), cwd=tmp_path, code=2)
    assert message in done.stderr
    assert done.stdout == ""


def test_a_study_without_a_report_is_refused_and_one_that_went_on_is_noted(finished, study_file, tmp_path):
    out = tmp_path / "run"
    evomerge("run", study_file, "-o", out, "--evaluations", 4)
    Study.open(out, Study.open(out).settings.model_copy(update={"evaluations": 6})).run(progress=False)
    done = evomerge("score", out, "--json")
    assert "note: the report is of 4 evaluations, and there are more" in done.stderr
    (out / "report.json").unlink()
    assert f"type: evomerge show {out}" in evomerge("score", out, code=2).stderr
