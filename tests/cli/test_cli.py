"""The command line: what a user types, sees, and gets when something is wrong."""

import json
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml
from commands import evomerge
from tiny_models import tiny_model

from evomerge import cli
from evomerge.cli.artefacts import _read_parameters
from evomerge.cli.console import new_console
from evomerge.errors import RecipeError
from evomerge.evaluate import Worker
from evomerge.progress import Throttled
from evomerge.recipe import Recipe
from evomerge.study import Study


def test_run_prints_references_verdicts_and_progress_when_piped(finished):
    out, done = finished
    for words in ("average", "best scale", "search: ", "10/10", "digest ", "unseen"):
        assert words in done.stdout
    assert "\x1b[" not in done.stdout
    for file in ("front.png", "hypervolume.png", "report.html", "report.json", "journal.jl"):
        assert (out / file).stat().st_size > 0
    assert "coverage" not in done.stdout
    assert not (out / "population.png").exists()


def test_show_json_prints_one_object_with_the_documented_keys(finished):
    out, _ = finished
    found = json.loads(evomerge("show", out, "--json").stdout)
    keys = {
        "digest",
        "evaluations",
        "failed",
        "common_failure",
        "objectives",
        "hypervolume",
        "picked",
        "comparisons",
        "front",
        "advice",
    }
    assert set(found) == keys | {"references"}
    assert set(found["hypervolume"]) == {"search", "report"}
    assert found["evaluations"] == 10
    for point in found["front"]:
        assert set(point) == {
            "name",
            "number",
            "recipe_id",
            "recipe",
            "search",
            "estimate",
            "report",
            "mean",
            "on_front",
            "equals",
        }
        assert point["name"].startswith(f"#{point['number']}")
        assert set(point["search"]) == set(found["objectives"]) == set(point["report"])
        assert all(low <= value <= high for value, low, high in point["report"].values())
    assert {"base", "average"} < set(found["references"])


def test_a_population_shows_its_coverage_during_the_search_and_in_the_report(study_file, tmp_path):
    data = yaml.safe_load(study_file.read_text())
    data |= {"space": "natural_niches", "driver": {"kind": "map_elites", "bins": 5}, "evaluations": 16}
    data["tasks"] = {name: {**task, "search_metric": "accuracy"} for name, task in data["tasks"].items()}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    out = tmp_path / "run"
    said = evomerge("run", tmp_path / "study.yaml", "-o", out).stdout
    found = json.loads(evomerge("show", out, "--json").stdout)["population"]
    assert set(found) == {"coverage", "entropy", "members", "cells"}
    shown = f"coverage {found['coverage']:.2f}, entropy {found['entropy']:.2f}"
    [last] = [line for line in said.splitlines() if line.startswith("search: 16/16")]
    assert last.endswith(f", {shown}")
    [cells] = found["cells"]
    assert f"members: {shown}; {cells['filled']} of 25 cells filled" in said.replace("\n", " ")
    assert cells["filled"] == found["members"]
    for file in ("population.png", "cells.png"):
        assert (out / file).read_bytes().startswith(b"\x89PNG")


def test_an_expensive_note_is_computed_at_most_once_a_second(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    texts = iter("abcd")
    text = Throttled(lambda: next(texts))
    said = []
    for moment, now in ((100, False), (100.9, False), (101, False), (101.5, True), (102.4, False), (102.5, False)):
        clock[0] = moment
        said.append(text(now=now))
    assert said == ["a", "a", "b", "c", "c", "d"]


def test_pick_writes_a_checkpoint_that_transformers_loads_and_that_merge_reproduces(finished, tmp_path):
    out, _ = finished
    evomerge("pick", out, "--weights", "turned=1,inverted=2", "-o", tmp_path / "picked")
    evomerge("merge", tmp_path / "picked" / "recipe.yaml", "-o", tmp_path / "again")
    picked = (tmp_path / "picked" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == picked
    from transformers import AutoModelForImageClassification

    assert AutoModelForImageClassification.from_pretrained(tmp_path / "picked").num_labels == 10
    assert "recipe" in (tmp_path / "picked" / "README.md").read_text()


def test_pick_takes_a_candidate_by_number_and_the_best_of_the_search_anyway(finished):
    out, _ = finished
    evomerge("show", out)
    report = (out / "report.json").read_bytes()
    rows = [line.split() for line in evomerge("pick", out, "--candidate", "0").stdout.splitlines()]
    assert ["#0"] in [row[:1] for row in rows]
    assert (out / "report.json").read_bytes() == report
    assert "no candidate 999 was evaluated" in evomerge("pick", out, "--candidate", "999", code=2).stderr
    assert "`--candidate` names one candidate" in evomerge("pick", out, "--candidate", "0", "--knee", code=2).stderr
    assert "estimated at mean accuracy" in " ".join(evomerge("pick", out, "--anyway").stdout.split())


def test_floors_that_no_point_reaches_are_refused_naming_the_nearest(finished):
    out, _ = finished
    assert "the nearest has" in evomerge("pick", out, "--floors", "turned=1.5", code=2).stderr


@pytest.fixture(scope="session")
def surfaced(study_file, small_digits):
    """A study of the driver `front`, its file and what `run` said."""
    data = yaml.safe_load(study_file.read_text())
    names = list(data["tasks"])
    data |= {
        "pool": {**small_digits.pool, "experts": {name: small_digits.pool["experts"][name] for name in names}},
        "tasks": {
            name: {
                **data["tasks"][name],
                "keep_margins": True,
                "search_metric": "accuracy",
            }
            for name in names
        },
        "driver": {"kind": "front"},
        "evaluations": 18,
    }
    file = study_file.parent / "front.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    out = study_file.parent / "front"
    return file, out, evomerge("run", file, "-o", out).stdout


def test_a_front_by_surrogates_reports_whether_its_surface_is_reliable(surfaced):
    _, out, said = surfaced
    assert "The surface predicts merges, `evomerge pick … --surface`: turned R² 0.9" in said.replace("\n", " ")
    found = json.loads(evomerge("show", out, "--json").stdout)["surface"]
    assert set(found) == {"refused", "best_for_all", "points", "fits"}
    assert found["refused"] is None
    assert list(found["fits"]) == ["inverted", "turned"]  # the keys are sorted
    for fit in found["fits"].values():
        assert set(fit) == {"rung", "r2", "coverage", "standard_error"}
        assert fit["r2"] > 0.9
    for file in ("surface.png", "predicted.png"):
        assert (out / file).read_bytes().startswith(b"\x89PNG")


def test_pick_from_the_surface_predicts_without_evaluating_and_writes_the_merge(surfaced, tmp_path):
    _, out, _ = surfaced
    before = (out / "report.jl").read_bytes()
    said = evomerge("pick", out, "--surface", "--tchebycheff", "turned=2,inverted=1", "-o", tmp_path / "picked").stdout
    for name in ("turned", "inverted"):
        assert re.search(rf"^{name}: accuracy +\d+\.\d ± \d+\.\d +0\.9\d +\d+%$", said, re.MULTILINE)
    assert (out / "report.jl").read_bytes() == before
    assert "Scores on unseen examples" not in (tmp_path / "picked" / "README.md").read_text()
    evomerge("merge", tmp_path / "picked" / "recipe.yaml", "-o", tmp_path / "again")
    picked = (tmp_path / "picked" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == picked


def test_verify_evaluates_the_prediction_once_and_shows_the_scores(surfaced, tmp_path):
    _, out, _ = surfaced
    arguments = ("pick", out, "--surface", "--wish", "turned=0.6,inverted=0.3", "--verify")
    said = evomerge(*arguments, "-o", tmp_path / "picked").stdout
    assert "verify: 2/2" in said
    kept = (out / "report.jl").read_bytes()
    again = evomerge(*arguments).stdout
    assert "verify: " not in again
    assert (out / "report.jl").read_bytes() == kept
    study = Study.open(out)
    recipe = Recipe.parse(yaml.safe_load((tmp_path / "picked" / "recipe.yaml").read_text())["recipe"])
    worker = Worker(study.parts.setup)
    search, unseen = (worker.evaluate(recipe, split) for split in ("search", "report"))
    for name in ("turned", "inverted"):
        measured, judged = (100 * each.means([f"{name}/accuracy"])[0] for each in (search, unseen))
        for text in (said, again):
            assert re.search(rf"^{name}: accuracy .* {measured:.1f} +{judged:.1f} \[", text, re.MULTILINE)
        assert f"{judged:.1f} [" in (tmp_path / "picked" / "README.md").read_text().split("**this merge**")[1]
    assert "of 2 scores lie in their 90% intervals" in said


def test_a_refused_or_missing_surface_is_an_error_that_says_what_to_type(surfaced, finished):
    file, out, _ = surfaced
    few = file.parent / "few"
    refused = evomerge("run", file, "-o", few, "--evaluations", 3, code=2).stderr
    assert "`evaluations` is 3; expected 4 or more" in refused
    assert "type `driver: {kind: nsga2}`" in refused
    evomerge("run", file, "-o", few, "--evaluations", 4)
    done = evomerge("pick", few, "--surface", "--weights", "turned=1", code=2)
    for words in ("the surrogate (margins) explains R²", "without `--surface`", f"resume {few} --evaluations"):
        assert words in done.stderr
    assert "explains R²" in json.loads(evomerge("show", few, "--json").stdout)["surface"]["refused"]
    assert "is `nsga2`; type `evomerge pick` without" in evomerge("pick", finished[0], "--surface", code=2).stderr
    assert "goes with `--surface`" in evomerge("pick", out, "--verify", code=2).stderr


def test_resume_with_a_larger_budget_goes_on(finished, study_file):
    out = study_file.parent / "more"
    evomerge("run", study_file, "-o", out, "--evaluations", 4)
    evomerge("resume", out, "--evaluations", 10)
    assert (out / "journal.jl").read_bytes() == (finished[0] / "journal.jl").read_bytes()


def test_dry_run_says_genes_size_and_cost_and_writes_nothing(study_file, tmp_path):
    done = evomerge("run", study_file, "--dry-run", cwd=tmp_path)
    for words in ("4 genes", "weight[turned]", "one evaluation:", "the whole command: about", "nothing was written"):
        assert words in done.stdout
    phases = ["start-up", "driver", "search", "report"]
    assert [phase for phase in phases if re.search(rf"{phase} \d", done.stdout)] == phases
    assert not list(tmp_path.iterdir())


def test_no_color_is_obeyed(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert new_console().is_terminal
    assert not new_console().no_color
    monkeypatch.setenv("NO_COLOR", "1")
    assert new_console().no_color


def test_a_quiet_command_prints_results_and_no_steps(study_file, tmp_path):
    plain = evomerge("run", study_file, "-o", tmp_path / "out", "--dry-run").stdout
    quiet = evomerge("run", study_file, "-o", tmp_path / "out", "--dry-run", "--quiet").stdout
    steps = ("checking ", "reading ")
    assert [line for line in plain.splitlines() if line.startswith(steps)]
    assert not [line for line in quiet.splitlines() if line.startswith(steps)]
    assert "one evaluation: " in quiet


@pytest.mark.filterwarnings("always:few examples")
def test_a_warning_is_printed_without_the_line_of_code_that_it_comes_from(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: warnings.warn("few examples", stacklevel=2))
    assert evomerge("run").stderr == "warning: few examples\n"


def test_more_genes_along_slopes_than_examples_are_warned_of_before_work_starts(study_file, tmp_path):
    data = yaml.safe_load(study_file.read_text())
    tasks = {}
    for name, task in data["tasks"].items():
        lines = Path(task["search"]).read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:16]))
        tasks[name] = task | {"search": str(tmp_path / f"{name}.jsonl")}
    changed = {"space": "task_arithmetic_per_tensor", "driver": {"kind": "front", "slopes": True}, "evaluations": 5}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(data | changed | {"tasks": tasks}, sort_keys=False))
    genes = 4 * 40
    warning = f"warning: driver `front`: {genes} genes follow slopes of 32 search examples, without shrinkage"
    assert warning in " ".join(evomerge("run", "few.yaml", "--dry-run", cwd=tmp_path).stdout.split())
    said = " ".join(evomerge("run", "few.yaml", "-o", "out", cwd=tmp_path).stdout.split())
    assert said.count(warning) == 1
    assert warning not in said[re.search(r"search: \d/5", said).start() :]


def test_the_dry_run_says_where_a_default_budget_comes_from(study_file, tmp_path):
    assert "by default" not in evomerge("run", study_file, "--dry-run", cwd=tmp_path).stdout
    (tmp_path / "short.yaml").write_text(study_file.read_text().replace("evaluations: 10\n", ""))
    said = evomerge("run", tmp_path / "short.yaml", "--dry-run", cwd=tmp_path).stdout
    assert "100 evaluations by default: 20 for each gene and one more, from 100 to 400" in " ".join(said.split())


def test_the_driver_of_the_file_gives_way_to_an_option(study_file, tmp_path):
    out = tmp_path / "run"
    said = evomerge("run", study_file, "-o", out, "--driver", "random", "--evaluations", 2).stdout
    assert "random: " in said
    assert Study.open(out).settings.driver == {"kind": "random"}
    done = evomerge("run", study_file, "-o", tmp_path / "none", "--driver", "nsga", code=2)
    assert "--driver `nsga`: no such kind of driver; expected one of " in done.stderr
    assert "nsga2, nsga3" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="session")
def compressed(study_file):
    out = study_file.parent / "artefact"
    return out, evomerge("compress", study_file, "-o", out).stdout


def test_compress_reports_bytes_ratio_distances_and_retention(compressed):
    out, said = compressed
    for words in ("choose λ: 20/20", "compress: ", "lambda: turned 0.", "ratio 0.", "by the formula 0.5", "retention"):
        assert words in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.rstrip().endswith("%")}
    assert all(0 < float(rows[name][1]) < 1 and 0 < float(rows[name][2]) < 1 for name in ("turned", "inverted"))
    assert rows["turned"][3] == "turned"
    assert sum(file.stat().st_size for file in (out / "codes").iterdir()) > 0


def test_decompress_writes_an_expert_that_transformers_loads(compressed, tmp_path):
    evomerge("decompress", compressed[0], "turned", "-o", tmp_path / "turned")
    from transformers import AutoModelForImageClassification

    assert AutoModelForImageClassification.from_pretrained(tmp_path / "turned").num_labels == 10
    evomerge("decompress", compressed[0], "turned", "-o", tmp_path / "half", "--dtype", "bfloat16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    done = evomerge("decompress", compressed[0], "turnt", "-o", tmp_path / "x", code=2)
    assert "did you mean `turned`?" in done.stderr


def test_compress_takes_folders_a_codec_and_its_read_parameters(pool_folder, tmp_path):
    folders = [f"--expert={name}={pool_folder / name}" for name in ("maths", "code")]
    given = ("-p", "lambda.maths=0.25", "-p", "lambda.code=0.5")
    done = evomerge("compress", "--base", pool_folder / "base", *folders, *given, "-o", tmp_path / "out")
    assert "lambda: maths 0.25, code 0.5" in done.stdout
    assert "retention" not in done.stdout
    recipe = tmp_path / "pool.yaml"
    experts = {name: str(pool_folder / name) for name in ("maths", "code")}
    recipe.write_text(yaml.safe_dump({"pool": {"base": str(pool_folder / "base"), "experts": experts}}))
    done = evomerge("compress", recipe, "--codec", "low_rank", "-p", "rank=1", "-o", tmp_path / "low")
    assert "rank: 1 to 1 over" in done.stdout


def test_codec_parameters_are_given_once_as_name_and_value():
    assert _read_parameters(["p=2", "lambda.a=0.25", "lambda.b=1", "basis=matrix"]) == {
        "p": 2,
        "lambda": {"a": 0.25, "b": 1},
        "basis": "matrix",
    }
    with pytest.raises(RecipeError, match="expected NAME=VALUE"):
        _read_parameters(["lambda"])
    for twice in (["lambda=1", "lambda.a=2"], ["lambda.a=2", "lambda=1"], ["p=1", "p=2"], ["lambda.a=1", "lambda.a=1"]):
        with pytest.raises(RecipeError, match="is given twice"):
            _read_parameters(twice)


def test_spaces_lists_and_prints():
    assert "slerp_per_block" in evomerge("spaces").stdout
    text = evomerge("spaces", "ties_per_block").stdout
    assert yaml.safe_load(text)["recipe"]["merge"]["method"] == "ties"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "no such study file"),
        (("resume", "nowhere"), "no study here"),
        (("show", "nowhere"), "start one with `evomerge run"),
        (("merge", "nowhere.yaml", "-o", "x"), "no such recipe file"),
        (("spaces", "ties"), "did you mean `ties_per_block`?"),
        (("zoo", "build", "digit"), "did you mean `digits`?"),
        (("compress", "-o", "x"), "which experts? give a study"),
        (("compress", "--codec", "tal", "-o", "x"), "did you mean `tall`?"),
        (("decompress", "nowhere", "maths", "-o", "x"), "expected an artefact"),
        (("demo", "--zoo", "txt"), "did you mean `text`?"),
    ],
)
def test_a_wrong_word_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    done = evomerge(*arguments, cwd=tmp_path, code=2)
    assert message in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_changed_study_is_refused_showing_the_difference(finished, study_file):
    done = evomerge("run", study_file, "-o", finished[0], "--seed", 9, code=2)
    assert "seed: was 0, is 9" in done.stderr


def test_merge_refuses_a_folder_that_is_not_empty(finished, tmp_path):
    (tmp_path / "x").write_text("mine")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("merge: {method: linear, inputs: experts}")
    pool = yaml.safe_load((Path(finished[0]) / "study.json").read_text())["settings"]["pool"]
    experts = [f"--expert={name}={path}" for name, path in pool["experts"].items()]
    done = evomerge("merge", recipe, "--base", pool["base"], *experts, "-o", tmp_path, code=2)
    assert "not empty" in done.stderr


def test_merge_takes_the_short_forms_of_a_stack(tmp_path):
    blocks = 2
    base, code = (tiny_model(tmp_path / name, "llama", seed) for seed, name in enumerate(("base", "code")))
    recipe = tmp_path / "r.yaml"
    arguments = [
        "--base",
        base,
        f"--expert=code={code}",
        "-o",
        tmp_path / "x",
        "--dry-run",
    ]
    recipe.write_text("stack: {rest: base, swap: {source: {per: [block/2], values: [code, base]}}}")
    slots = [{"source": "code" if layer < blocks / 2 else "base", "layer": layer} for layer in range(blocks)]
    expected = Recipe.parse({"stack": {"rest": "base", "slots": slots}})
    assert f"recipe {expected.id[:12]}:" in evomerge("merge", recipe, *arguments).stdout
    recipe.write_text("stack: {rest: base, path: {sources: experts, repeat: 2, longest: 1}}")
    done = evomerge("merge", recipe, *arguments, code=2)
    assert f"the path has {2 * blocks} layers; expected 2 to {blocks}" in done.stderr


@pytest.mark.parametrize(
    ("number", "workers", "code", "said"),
    [
        (signal.SIGINT, 1, 130, "interrupted"),
        (signal.SIGTERM, 1, 75, "stopped by SIGTERM"),
        pytest.param(signal.SIGTERM, 2, 75, "stopped by SIGTERM", marks=pytest.mark.ray),
    ],
)
def test_a_run_that_a_signal_stops_says_how_to_resume(number, workers, code, said, study_file, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "evomerge", "run", study_file, "-o", out]
    command += ["--evaluations", "100000", "--workers", str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        journal = out / "journal.jl"
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 4):
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert said in output + errors
    assert "evomerge resume" in output + errors
    assert "Traceback" not in errors


def test_a_budget_of_hours_exits_with_75_after_the_report_and_with_2_once_it_is_used(study_file, tmp_path):
    out = tmp_path / "run"
    done = evomerge("run", study_file, "-o", out, "--evaluations", "100000", "--hours", "1e-5", code=75)
    assert "hours is used at" in done.stdout
    assert (out / "report.html").exists()
    done = evomerge("resume", out, code=2)
    assert f"`evomerge resume {out} --hours MORE`" in done.stderr


def test_help_and_version_import_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['evomerge', 'run', '--help']\n"
        "from evomerge.cli import main\n"
        "try: main()\n"
        "except SystemExit as exit: print(exit.code, sorted({'torch', 'transformers', 'ray', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("0 []\n")
    assert evomerge("--version").stdout.startswith("evomerge ")


def test_a_study_given_to_merge_is_refused_and_names_the_command_to_type(study_file, tmp_path):
    done = evomerge("merge", study_file, "-o", tmp_path / "out", code=2)
    assert "this is a study, not a recipe" in done.stderr
    assert "evomerge run" in done.stderr


def test_a_file_of_another_kind_is_refused_and_names_the_command_to_type(finished, study_file, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge: {method: linear, inputs: experts}")
    assert (
        f"this is a recipe, not a study; type: evomerge merge {recipe} -o OUT" in evomerge("run", recipe, code=2).stderr
    )
    assert (
        f"is a file; expected a study's directory, as `evomerge run {study_file}"
        in evomerge("show", study_file, code=2).stderr
    )
    out, _ = finished
    assert f"type: evomerge pick {out} -o OUT" in evomerge("merge", out, "-o", tmp_path / "out", code=2).stderr


def test_help_of_run_says_where_the_study_is_written():
    assert "by default runs/NAME" in " ".join(evomerge("run", "--help").stdout.replace("│", " ").split())
