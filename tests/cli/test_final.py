"""The final split: examples for a last measurement, which neither the search nor its reports use."""

import json
from pathlib import Path

import pytest
import yaml
from commands import evomerge

import evomerge as em
from evomerge.evaluate import Worker
from evomerge.recipe import Recipe
from evomerge.report import measure
from evomerge.study import Study


@pytest.fixture(scope="session")
def kept(study_file, tmp_path_factory):
    """The search of `finished`, with a part of each report split kept as the final split."""
    folder = tmp_path_factory.mktemp("final")
    data = yaml.safe_load(study_file.read_text())
    for name, task in data["tasks"].items():
        lines = Path(task["report"]).read_text().splitlines(keepends=True)
        (folder / f"{name}.report.jsonl").write_text("".join(lines[:100]))
        (folder / f"{name}.final.jsonl").write_text("".join(lines[100:]))
        task |= {"report": f"{name}.report.jsonl", "final": f"{name}.final.jsonl"}
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    evomerge("run", folder / "study.yaml", "-o", folder / "run")
    return folder / "run"


def test_the_final_examples_judge_what_the_search_examples_have_chosen(kept):
    reported = json.loads(evomerge("show", kept, "--json").stdout)
    before = (kept / "report.json").read_bytes()
    final = json.loads(evomerge("show", kept, "--final", "--json").stdout)
    assert (final["split"], "split" in reported) == ("final", False)
    assert final["picked"]["choice"] == reported["picked"]["choice"]
    for one in ("front", "references"):
        ours, theirs = (list(shown[one].values()) if one == "references" else shown[one] for shown in (final, reported))
        for a, b in zip(ours, theirs, strict=True):
            assert (a["recipe_id"], a["search"]) == (b["recipe_id"], b["search"])
    study = Study.open(kept)
    parts = study.parts
    scores = Worker(parts.setup).evaluate(Recipe.parse(final["picked"]["recipe"]), "final")
    means = dict(zip(parts.tasks, scores.means(parts.reported), strict=True))
    assert {name: values[0] for name, values in final["picked"]["report"].items()} == pytest.approx(means)
    assert all(len(scores.scores[key]) == parts.tasks[key.partition("/")[0]].size("final") for key in parts.reported)
    assert (kept / "report.json").read_bytes() == before, "the report stays that of the report split"
    results = em.results(study, final=True, progress=False)
    assert json.loads(json.dumps(results.public())) == final
    assert [one.examples[1] for one in results.objectives] == [task.size("final") for task in parts.tasks.values()]


def test_final_scores_are_kept_and_said_to_be_final(kept):
    evomerge("show", kept, "--final")
    said = evomerge("show", kept, "--final").stdout
    assert "report: " not in said, "nothing is scored twice"
    assert "On final examples, each with its 95% interval" in said
    assert "unseen examples" not in said
    assert "On unseen examples" in evomerge("show", kept).stdout


def test_the_search_is_the_same_with_and_without_final_examples(kept, finished):
    assert (kept / "journal.jl").read_bytes() == (finished[0] / "journal.jl").read_bytes()


def test_final_examples_are_part_of_the_identity_only_where_there_are_some(kept, finished):
    without, given = (json.loads((folder / "study.json").read_text())["identity"] for folder in (finished[0], kept))
    for name in given["tasks"]:
        assert set(without["data_digests"][name]) | {"final"} == set(given["data_digests"][name])
        assert "final" not in without["tasks"][name]
        assert len(given["data_digests"][name]["final"]) == 64


def test_a_study_without_final_examples_says_what_to_type(finished):
    done = evomerge("show", finished[0], "--final", code=2)
    assert "no final examples of turned, inverted; a study has them by `final: FILE` in each task" in done.stderr
    assert set(Study.open(finished[0]).parts.sizes) == {"search", "report"}
    with pytest.raises(em.EvomergeError, match="no final examples"):
        measure.measure(Study.open(finished[0]), split="final")
