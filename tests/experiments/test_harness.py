import json
import sys

import pytest
from matplotlib.figure import Figure
from shared import harness
from shared.harness import Findings, Switches

from evomerge.errors import ZooError


def run(arguments, capsys, *, figures=None, noise="", seeds=3):
    """Run an experiment that finds `figures`; return its switches, standard output and standard error."""
    seen: list[Switches] = []

    def measure(switches):
        seen.append(switches)
        sys.stdout.write(noise)
        harness.say("half way")
        return Findings(figures or {"seconds": 1.5}, "| a table |", Figure(), {"picked": "ab" * 32}, ["pytest"])

    harness.main("speed", "How fast it is.\n\nMore words.", measure, seeds=seeds, arguments=arguments)
    out, err = capsys.readouterr()
    return seen[0], out, err


def test_json_is_all_that_standard_output_holds_whatever_libraries_print(capsys, tmp_path):
    _, out, err = run(["--json", "--out", str(tmp_path)], capsys, noise="a library says hello\n")
    assert json.loads(out) == {"seconds": 1.5}
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["figures"] == {"seconds": 1.5}
    assert record["seeds"] == [0, 1, 2]
    assert record["recipes"] == {"picked": "ab" * 32}
    assert {"evomerge", "torch", "pytest"} <= set(record["versions"])
    assert record["command"].endswith(f"--json --out {tmp_path}")
    assert "a library says hello" in err
    assert "half way" in err


def test_without_json_standard_output_holds_the_table(capsys, tmp_path):
    _, out, _ = run(["--out", str(tmp_path)], capsys)
    assert out == "| a table |\n"


def test_a_full_run_writes_figures_table_and_picture(capsys, tmp_path):
    run(["--out", str(tmp_path / "new")], capsys)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["speed.json", "speed.md", "speed.png"]
    assert json.loads((tmp_path / "new" / "speed.json").read_text())["machine"]["cores"] >= 1
    assert "| a table |" in (tmp_path / "new" / "speed.md").read_text()
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_run_writes_to_experiments_results_by_default(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run([], capsys)
    assert (tmp_path / "experiments" / "results" / "speed.json").is_file()


def test_a_smoke_run_takes_one_seed_and_leaves_no_files(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    switches, _, _ = run(["--smoke"], capsys)
    assert switches == Switches(smoke=True, seeds=(0,), json=False, evaluations=0, parts=(), out=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "expected"), [([], 100), (["--smoke"], 5), (["--smoke", "--evaluations", "7"], 7)])
def test_evaluations_are_a_switch_of_experiments_that_search(given, expected, capsys, tmp_path):
    seen = []

    def measure(switches):
        seen.append(switches.evaluations)
        return Findings({}, "", Figure())

    harness.main("s", "S.", measure, evaluations=(100, 5), arguments=[*given, "--out", str(tmp_path)])
    assert seen == [expected]


@pytest.mark.parametrize(("given", "expected"), [([], 60), (["--minutes", "3"], 3)])
def test_minutes_are_a_switch_of_experiments_that_go_on(given, expected, tmp_path):
    seen = []

    def measure(switches):
        seen.append(switches.minutes)
        return Findings({}, "", Figure())

    harness.main("s", "S.", measure, minutes=60, arguments=[*given, "--out", str(tmp_path)])
    assert seen == [expected]
    with pytest.raises(SystemExit):
        harness.main("s", "S.", measure, arguments=["--minutes", "3"])


@pytest.mark.parametrize(("given", "expected"), [([], ("a", "b", "c")), (["--only", "c", "a"], ("a", "c"))])
def test_parts_are_run_in_their_own_order_all_unless_some_are_named(given, expected, capsys, tmp_path):
    seen = []

    def measure(switches):
        seen.append(switches.parts)
        return Findings({}, "", Figure())

    harness.main("s", "S.", measure, parts=("a", "b", "c"), arguments=[*given, "--out", str(tmp_path)])
    assert seen == [expected]
    with pytest.raises(SystemExit):
        harness.main("s", "S.", measure, parts=("a", "b", "c"), arguments=["--only", "d"])
    assert "invalid choice: 'd'" in capsys.readouterr().err


def test_seeds_asked_for_are_given_to_smoke_runs_too(capsys, tmp_path):
    switches, _, _ = run(["--smoke", "--seeds", "2", "--out", str(tmp_path)], capsys)
    assert switches.seeds == (0, 1)
    assert (tmp_path / "speed.json").is_file()


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seeds", "many"], ["--sneeds", "1"], ["--out", __file__]])
def test_bad_switches_end_with_code_2_before_any_work(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run(arguments, capsys)
    assert stop.value.code == 2
    assert "half way" not in capsys.readouterr().err


def test_what_the_user_can_mend_is_one_line_and_code_2(capsys):
    def measure(switches):
        raise ZooError("no such zoo; type: evomerge zoo build text")

    with pytest.raises(SystemExit) as stop:
        harness.main("speed", "How fast it is.", measure, arguments=["--smoke"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err == "speed: no such zoo; type: evomerge zoo build text\n"


def test_figures_that_are_no_numbers_are_refused_and_nothing_is_written(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(["--out", str(tmp_path / "new")], capsys, figures={"seconds": float("nan")})
    assert stop.value.code == 2
    assert not (tmp_path / "new").exists()


def test_table_sets_numbers_flush_right():
    assert harness.table(["what", "ms"], [["ask", "1"]]) == "| what | ms |\n| --- | ---: |\n| ask | 1 |"
