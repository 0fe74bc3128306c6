"""Comparing runs: `evomerge compare`."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import evomerge

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.report import measure, runs
from evomerge.settings import StudySettings
from evomerge.study import Study


@pytest.fixture(scope="session")
def other(study_file):
    """Another search with the tasks of `finished`, which are listed in another order."""
    data = yaml.safe_load(study_file.read_text())
    data["tasks"] = dict(reversed(data["tasks"].items()))
    (study_file.parent / "other.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    out = study_file.parent / "other"
    evomerge("run", study_file.parent / "other.yaml", "-o", out, "--seed", 3, "--evaluations", 7)
    return out


def test_picks_and_fronts_are_compared_on_the_same_examples(finished, other):
    first, second = finished[0], other
    found = json.loads(evomerge("compare", first, second, "--json").stdout)
    shown = [json.loads(evomerge("show", out, "--json").stdout) for out in (first, second)]
    assert [run["run"] for run in found["runs"]] == [str(first), str(second)]
    assert [run["evaluations"] for run in found["runs"]] == [10, 7]
    assert all(run["driver"] == "nsga2" and run["seconds"] > 0 for run in found["runs"])
    for run, one in zip(found["runs"], shown, strict=True):
        assert run["picked"]["recipe_id"] == one["picked"]["recipe_id"]
        assert run["picked"]["report"] == one["picked"]["report"]
        assert run["picked"]["mean"][0] == pytest.approx(one["picked"]["mean"][0])
    mean, volume = found["comparisons"]
    assert (mean["what"], volume["what"]) == ("mean", "hypervolume")
    a, b = (run["picked"]["mean"][0] for run in found["runs"])
    assert mean["values"] == [b, a]
    assert mean["difference"][0] == pytest.approx(b - a)
    assert mean["difference"][1] <= mean["difference"][0] <= mean["difference"][2]
    assert mean["level"] == volume["level"] == 0.975
    # One reference point: the lowest score of any reference of both.
    names = shown[0]["objectives"]
    below = [measure.measure(Study.open(out)).hypervolume.report_point for out in (first, second)]
    corner = np.min([[point[name] for name in names] for point in below], axis=0)
    for run, one in zip(found["runs"], shown, strict=True):
        points = [[point["report"][name][0] for name in names] for point in one["front"]]
        assert run["hypervolume"] == pytest.approx(pareto.hypervolume(points, corner), rel=1e-6)


def test_the_table_has_one_row_for_each_run_and_a_verdict_for_each_comparison(finished, other):
    said = evomerge("compare", other, finished[0]).stdout
    rows = [line for line in said.splitlines() if " nsga2 " in line]
    assert [row.split()[0] for row in rows] == [str(other), str(finished[0])]
    words = said.replace("\n", "")
    for what in ("pick", "front"):
        assert words.replace(" ", "").count(f"the{what}of{other}") == 1
        assert words.replace(" ", "").count(f"The{what}of{finished[0]}".replace(" ", "")) == 1


def test_a_model_is_no_better_than_itself(finished, study_file):
    again = study_file.parent / "again"
    evomerge("run", study_file, "-o", again)
    _, comparisons = runs.compare([Study.open(finished[0]), Study.open(again)])
    assert comparisons[0].difference == (0, 0, 0)
    assert comparisons[1].difference[0] == pytest.approx(0, abs=1e-9)
    assert {one.verdict for one in comparisons} == {"no difference shown"}


def test_what_a_report_lacks_is_scored(finished, other):
    (other / "report.jl").unlink()
    said = evomerge("compare", finished[0], other).stdout
    assert "report: " in said
    assert "report: " not in evomerge("compare", finished[0], other).stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tasks: tasks.popitem(), "expected the same tasks, got turned and turned, inverted"),
        (lambda tasks: tasks["turned"].update(report_metric="log_likelihood"), "`report_metric`: log_likelihood and accuracy"),
        (lambda tasks: tasks["turned"].update(report="fewer.jsonl"), "task `turned` differs in `report`: "),
    ],
)  # fmt: skip
def test_other_tasks_are_refused_naming_the_difference(change, message, finished, study_file, tmp_path):
    data = yaml.safe_load(study_file.read_text())
    lines = Path(data["tasks"]["turned"]["report"]).read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[1:]))
    data["driver"] = {"kind": "random"}  # NSGA-II needs several objectives
    change(data["tasks"])
    changed = Study.create(tmp_path / "run", StudySettings.parse(data, "test", tmp_path))
    with pytest.raises(StudyError) as error:
        runs.compare([Study.open(finished[0]), changed])
    assert message in str(error.value)


def test_what_only_the_search_sees_may_differ(finished, study_file, tmp_path):
    data = yaml.safe_load(study_file.read_text())
    data["tasks"]["turned"] |= {"search_metric": "accuracy", "keep_margins": True, "batch": 7}
    runs.check([Study.open(finished[0]), Study.create(tmp_path / "run", StudySettings.parse(data, "test", tmp_path))])


def test_one_run_or_no_study_is_one_error(finished, tmp_path):
    for arguments in ((finished[0],), (finished[0], finished[0])):
        assert "expected two or more different runs" in evomerge("compare", *arguments, code=2).stderr
    assert "no study here" in evomerge("compare", finished[0], tmp_path, code=2).stderr
