"""What goes wrong around a search: candidates fail, a second shell looks at it, its code changes."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from commands import evomerge

from evomerge.cli.searches import _standing
from evomerge.study import Study

CODE = """
from pathlib import Path

def score(model, split, examples):
    size = sum(p.double().square().sum().item() for p in model.module.parameters())
    if Path("broken").exists() and split == "search" and int(size * 1e3) % 2:
        raise ValueError(f"an odd model at 0x{id(model):012x}")
    return [size / 1e3 + i / 100 for i in examples]
"""


@pytest.fixture(scope="session")
def failing(small_digits, tmp_path_factory):
    """A folder with a study of which some candidates failed."""
    folder = tmp_path_factory.mktemp("failing")
    name = f"code_{folder.name}"
    (folder / f"{name}.py").write_text(CODE)
    turned = next(iter(small_digits.tasks.items()))
    data = {
        "name": "failing",
        "pool": small_digits.pool,
        "tasks": dict([turned]) | {"size": {"kind": "callable", "function": f"{name}:score", "search": 5, "report": 7}},
        "space": "task_arithmetic",
        "driver": {"kind": "nsga2"},
        "evaluations": 12,
        "report": {"scales": [0.2], "mixtures": 0, "front": 4, "resamples": 100},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    (folder / "broken").touch()
    said = evomerge("run", "study.yaml", "-o", "run", cwd=folder).stdout
    return folder, said


@pytest.fixture
def folder(failing, tmp_path):
    """A copy of the failing study's run, in the folder of its code."""
    shutil.copytree(failing[0] / "run", tmp_path / "run")
    for name in ("broken", "study.yaml"):
        shutil.copy(failing[0] / name, tmp_path)
    return tmp_path


def test_many_failures_are_a_warning_with_the_most_frequent_reason_in_run_show_and_report(failing):
    folder, said = failing
    warning = re.search(
        r"Warning: (\d+) of 12 candidates failed \(\d\d%\), (\d+) of them by this: ValueError: an odd", said
    )
    assert warning is not None
    assert warning[1] == warning[2]
    assert warning[0] in evomerge("show", "run", cwd=folder).stdout
    assert warning[0] in (folder / "run" / "report.html").read_text()
    found = json.loads(evomerge("show", "run", "--json", cwd=folder).stdout)
    assert found["failed"] == int(warning[1])
    assert found["common_failure"] == ["ValueError: an odd model at 0x…", int(warning[1])]


def test_failed_candidates_are_retried_for_the_report_alone(folder):
    run = folder / "run"
    before = {name: (run / name).read_bytes() for name in ("journal.jl", "study.json")}
    failed = Study.open(run).trials()["error"].notna().sum()
    assert failed
    assert (
        f"{failed} failed candidates were evaluated again; {failed} still fail"
        in evomerge("resume", "run", "--retry-failed", cwd=folder).stdout
    )
    (folder / "broken").unlink()
    said = evomerge("resume", "run", "--retry-failed", cwd=folder).stdout
    assert f"{failed} failed candidates were evaluated again; 0 still fail" in said
    assert "12 candidates were evaluated. Search" in said
    assert "Warning" not in said
    assert before == {name: (run / name).read_bytes() for name in before}
    trials = Study.open(run).trials()
    assert trials["error"].isna().all()
    assert f"digest {Study.open(run).digest()}" in said  # of the search, as it was
    assert "0 failed candidates" in evomerge("resume", "run", "--retry-failed", cwd=folder).stdout


def test_a_look_at_a_running_search_scores_nothing_and_is_not_in_its_way(folder):
    study = Study.open(folder / "run")
    files = {path: path.read_bytes() for path in (folder / "run").iterdir() if path.name != "lock"}
    with study.lock():
        said = evomerge("show", "run", cwd=folder).stdout
        found = json.loads(evomerge("show", "run", "--json", cwd=folder).stdout)
    assert re.search(r"in use by process \d+ on .*; 12 of 12 evaluations, \d+ failed. On the search examples", said)
    assert "Nothing was scored" in said
    assert "show run --report" in said
    numbers = study.front()["number"].tolist()
    assert re.findall(r"^ *#(\d+) ", said, re.MULTILINE) == list(map(str, numbers))
    assert [point["number"] for point in found["front"]] == numbers
    assert found["evaluations"] == 12
    assert files == {path: path.read_bytes() for path in files}
    with study.lock():
        assert "On unseen examples" in evomerge("show", "run", "--report", cwd=folder).stdout


def test_a_run_whose_report_another_process_makes_ends_well_and_says_what_to_type(folder):
    run = folder / "run"
    (run / "report.jl").unlink()
    with Study.open(run).lock("report.lock"):
        said = evomerge("resume", "run", cwd=folder).stdout
        assert "in use by process" in evomerge("show", "run", cwd=folder).stdout
        assert "in use by process" in evomerge("show", "run", "--report", cwd=folder, code=2).stderr
    assert "search done; " in said
    assert "then type `evomerge show run`" in said
    assert "picked" in evomerge("resume", "run", cwd=folder).stdout.lower()


def test_changed_code_is_refused_with_the_difference(failing):
    folder, _ = failing
    [code] = folder.glob("code_*.py")
    text = code.read_text()
    code.write_text(text + "# changed\n")
    unknown = evomerge("resume", "run", cwd=folder, code=2).stderr
    assert f"or that has changed since: {code}; read it" in unknown
    evomerge("trust", "run", cwd=folder)
    refused = evomerge("resume", "run", cwd=folder, code=2).stderr
    assert f'code_digests.{code.stem}:score: was "' in refused
    assert "`evomerge resume run --fork DIR`" in " ".join(refused.split())
    before = (folder / "run" / "journal.jl").read_bytes()
    said = evomerge("resume", "run", "--fork", "anew", "--evaluations", 4, cwd=folder).stdout
    assert "anew: a new study with the settings of run" in " ".join(said.split())
    forked = Study.open(folder / "anew")
    assert (len(forked.population()), forked.settings.name) == (4, "failing")
    assert (folder / "run" / "journal.jl").read_bytes() == before
    header = folder / "run" / "study.json"
    saved = header.read_text()
    older = json.loads(saved)
    del older["identity"]["code_digests"]  # as an earlier version wrote it
    header.write_text(json.dumps(older))
    Study.open(folder / "run")
    header.write_text(saved)
    code.write_text(text)
    Study.open(folder / "run")


def test_show_writes_all_candidates_as_csv(folder):
    said = evomerge("show", "run", "--csv", "all.csv", cwd=folder).stdout
    assert "all.csv" in said
    from pandas import read_csv

    trials = Study.open(folder / "run").trials()
    found = read_csv(folder / "all.csv")
    assert found.columns.tolist() == trials.columns.tolist()
    assert len(found) == 12
    assert found["number"].tolist() == list(range(12))
    assert {"recipe_id", "error", "size/score", "weight[turned]"} <= set(found.columns)


def test_progress_counts_what_was_replayed_and_averages_no_different_metrics(folder):
    said = evomerge("resume", "run", "--evaluations", 14, cwd=folder).stdout
    assert "replaying 12 evaluations" in said
    [last] = re.findall(r"^search: 14/14.*$", said, re.MULTILINE)
    different = Study.open(folder / "run").front()["recipe_id"].nunique()
    assert last.endswith(f"{different} on the front")
    assert "best mean" not in said
    assert _standing(["a/accuracy", "b/accuracy"], [np.array([0.25, 0.5]), np.array([1, 0])]) == "best mean 0.5"


def test_a_received_study_runs_no_code_before_it_is_trusted(folder, failing, tmp_path_factory, monkeypatch):
    run, marker = folder / "run", folder / "marker"
    header = json.loads((run / "study.json").read_text())
    (folder / "evil_scores.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ndef score(model, split, examples):\n    return [1]"
    )
    for settings in (header["settings"], header["identity"]):
        settings["tasks"]["size"]["function"] = "evil_scores:score"
    header["settings"]["folder"] = str(folder)
    (run / "study.json").write_text(json.dumps(header))
    for command in ("show", "pick", "resume"):
        refused = evomerge(command, "run", cwd=folder, code=2).stderr
        assert "evil_scores.py; read it, then type `evomerge trust run`" in refused
    assert "type `evomerge trust run`" in evomerge("resume", "run", "--fork", "anew", cwd=folder, code=2).stderr
    assert not marker.exists()
    assert f"trusted: {folder}/evil_scores.py" in evomerge("trust", "run", cwd=folder).stdout
    assert not marker.exists()
    assert "not the study that was started here" in evomerge("show", "run", cwd=folder, code=2).stderr
    assert marker.exists()


def test_a_damaged_journal_is_refused_with_its_line_and_repaired_by_the_command_that_the_error_names(folder):
    run = folder / "run"
    journal = run / "journal.jl"
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:9], lines[9].replace(b"a", b"b"), *lines[10:]]))
    assert (
        "line 10 is damaged; restore the file from a copy, or type `evomerge repair DIR`"
        in evomerge("resume", "run", cwd=folder, code=2).stderr
    )
    assert "9 lines kept, 15 cut; the whole file is journal.jl.damaged" in evomerge("repair", "run", cwd=folder).stdout
    evomerge("resume", "run", cwd=folder)
    assert journal.read_bytes() == content
    assert "no journal is damaged" in evomerge("repair", "run", cwd=folder).stdout


def test_a_disk_or_a_path_that_refuses_is_one_line_and_no_traceback(folder):
    (folder / "file").touch()
    (folder / "link").symlink_to("nowhere")
    for out in ("file", "file/x", "link"):
        said = evomerge("run", "study.yaml", "-o", out, cwd=folder, code=2).stderr
        assert re.fullmatch(rf"evomerge: .*{out.partition('/')[0]}.*\n", said)


def test_limits_hold_for_options_as_for_study_files(folder):
    assert (
        "`workers`: input should be less than or equal to 1024"
        in evomerge("resume", "run", "--workers", 10**6, cwd=folder, code=2).stderr
    )


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('boom')", "def score(:", "raise SystemExit(0)", "import nothing_here"]
)
def test_a_module_that_cannot_be_imported_is_one_error(code, folder, tmp_path):
    name = f"spoilt_{abs(hash(code))}"
    (folder / f"{name}.py").write_text(code)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["tasks"]["size"]["function"] = f"{name}:score"
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert f"cannot import `{name}`" in evomerge("run", "study.yaml", "-o", "new", cwd=folder, code=2).stderr
    assert not (folder / "new").exists()


def test_a_base_that_needs_its_own_code_is_refused_by_run_before_anything_is_written_and_noted_by_merge(
    folder, small_digits
):
    shutil.copytree(small_digits.pool["base"], folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "modeling_evil.Model"}})
    )
    (folder / "base" / "modeling_evil.py").write_text("from pathlib import Path\nPath('marker').touch()")
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["pool"] = {"base": "base", "experts": dict(small_digits.pool["experts"])}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    for option in ((), ("--dry-run",)):
        refused = evomerge("run", "study.yaml", "-o", "new", *option, cwd=folder, code=2).stderr
        assert "needs the folder's code (`auto_map`)" in refused
    assert not (folder / "new").exists()
    (folder / "recipe.yaml").write_text("merge: {method: linear, inputs: [turned]}\n")
    expert = f"turned={small_digits.pool['experts']['turned']}"
    said = evomerge("merge", "recipe.yaml", "--base", "base", "--expert", expert, "-o", "merged", cwd=folder).stdout
    assert "names code of its own (`auto_map`), which is copied and was not run" in said
    assert not (folder / "marker").exists()
