"""The bench: every method with its defaults and searched, judged on unseen examples, one file for each row."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import evomerge
from rich.console import Console

from evomerge.bench import Bench, Runner, summarise
from evomerge.bench.rows import coefficients, free, space
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.merging import METHODS
from evomerge.recipe import base as base_recipe
from evomerge.recipe import expert, merge
from evomerge.space import SearchSpace
from evomerge.study import Study

COMPARED = ["task_arithmetic", "slerp", "model_stock", "mwa"]
EXPERTS = ["turned", "shifted", "mirrored"]
MERGED, HELD = EXPERTS[:2], "inverted"


@pytest.fixture(scope="module")
def data(small_digits):
    """Three experts, two tasks, and one that is held out."""
    tasks = small_digits.tasks
    return {
        "name": "tiny",
        "pool": {
            "base": small_digits.pool["base"],
            "experts": {one: small_digits.pool["experts"][one] for one in EXPERTS},
        },
        "tasks": {name: tasks[name] for name in MERGED},
        "held_out": {HELD: tasks[HELD]},
        "methods": COMPARED,
        "budget": 5,
        "report": {"resamples": 200},
    }


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A bench's file, its directory, and what the command printed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bench.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    printed = evomerge("bench", folder / "bench.yaml", "-o", folder / "out", "--json").stdout
    return folder / "bench.yaml", folder / "out", json.loads(printed)


@pytest.fixture(scope="module")
def lines(finished):
    return {line["name"]: line for line in finished[2]["lines"]}


@pytest.fixture(scope="module")
def means(data):
    """Mean unseen accuracies of a recipe by task, by a worker of its own."""
    worker = Worker(Runner(Bench.parse(data, "bench", Path()), Path()).parts.setup)

    def of(recipe):
        scores = worker.evaluate(recipe, "report").scores
        return {name: float(scores[f"{name}/accuracy"].astype(np.float64).mean()) for name in (*MERGED, HELD)}

    return of


@pytest.fixture
def counted(monkeypatch):
    """The splits of all evaluations of workers."""
    splits = []
    evaluate = Worker.evaluate

    def counting(self, recipe, split="search", *more, **named):
        splits.append(split)
        return evaluate(self, recipe, split, *more, **named)

    monkeypatch.setattr(Worker, "evaluate", counting)
    return splits


def test_rows_are_references_then_each_method_with_its_defaults_and_searched(finished, lines):
    pairs = [name for method in COMPARED for name in (method, f"{method}, searched")]
    assert list(lines) == ["base", *(f"expert {name}" for name in EXPERTS), "average", *pairs]
    assert json.loads((finished[1] / "bench.json").read_bytes()) == finished[2]
    assert (finished[1] / "bench.png").read_bytes().startswith(b"\x89PNG")
    page = (finished[1] / "bench.html").read_text()
    assert "task_arithmetic, searched" in page
    assert 'src="http' not in page


def test_what_a_pool_cannot_do_is_a_row_with_its_reason(finished, lines):
    assert "exactly 2 inputs" in lines["slerp"]["reason"]
    assert lines["model_stock"]["reason"] is None
    assert lines["model_stock, searched"]["reason"] == "it has no number to search"
    assert "metric" in lines["mwa"]["reason"]
    assert lines["slerp"]["normalised"] is None
    assert "- slerp: `slerp` takes exactly 2 inputs" in (finished[1] / "bench.md").read_text()


def test_scores_are_shares_of_the_own_experts_and_differences_are_paired(lines, means):
    own = {name: means(expert(name))[name] for name in MERGED}
    base, average, found = map(means, (base_recipe(), merge("linear", EXPERTS), merge("task_arithmetic", EXPERTS)))
    line = lines["task_arithmetic"]
    share, plain = (np.mean([scores[name] / own[name] for name in MERGED]) for scores in (found, average))
    assert line["report"]["turned"][0] == pytest.approx(found["turned"])
    assert line["normalised"][0] == pytest.approx(share)
    assert line["beyond_average"][0] == pytest.approx(share - plain)
    assert line["held_out"][HELD][0] == pytest.approx(found[HELD] - base[HELD], abs=1e-9)
    for value, low, high in (line["normalised"], line["beyond_average"], line["held_out"][HELD]):
        assert low <= value <= high
    assert lines["expert turned"]["report"]["turned"][0] == pytest.approx(own["turned"])
    assert lines["average"]["beyond_average"] == [0, 0, 0]


def test_prices_are_of_what_was_done(finished, lines, data, small_digits):
    searched = lines["task_arithmetic, searched"]
    study = Study.open(finished[1] / "searches" / "task_arithmetic")
    assert searched["evaluations"] == len(study.population()) <= data["budget"]
    assert searched["examples"] == sum(task.size("search") for task in study.parts.tasks.values())
    assert searched["search_s"] > 0 < searched["cpu_s"]
    assert lines["task_arithmetic"]["examples"] == lines["task_arithmetic"]["evaluations"] == 0
    bytes_of = finished[2]["model_bytes"]
    reads = {"base": 1, "expert turned": 1, "average": 4, "task_arithmetic, searched": 4}
    assert {name: lines[name]["read_bytes"] / bytes_of for name in reads} == reads


def test_the_result_of_a_search_is_one_of_its_candidates_and_the_defaults_are_another(finished, lines):
    study = Study.open(finished[1] / "searches" / "task_arithmetic")
    ids = [proposal.recipe.id for proposal, _ in study.population()]
    assert lines["task_arithmetic, searched"]["recipe_id"] in ids
    assert study.population()[0][0].recipe.root.merge.parameters["lambda"] == 0.3


def test_what_is_done_is_not_done_again_and_a_row_that_is_lost_is(finished, counted, tmp_path):
    file, out = finished[0], tmp_path / "out"
    shutil.copytree(finished[1], out)
    again = json.loads(evomerge("bench", file, "-o", out, "--json").stdout)
    assert again == finished[2]
    assert not counted
    (out / "rows" / "average.json").unlink()
    again = json.loads(evomerge("bench", file, "-o", out, "--json").stdout)
    assert counted == ["report", "report"], "one to warm up"
    assert [one["normalised"] for one in again["lines"]] == [one["normalised"] for one in finished[2]["lines"]]


def test_a_larger_budget_goes_on_and_another_bench_is_refused(finished, counted, tmp_path):
    file, out = finished[0], tmp_path / "out"
    shutil.copytree(finished[1], out)
    before = len(Study.open(out / "searches" / "task_arithmetic").population())
    more = json.loads(
        evomerge("bench", file, "-o", out, "--json", "--budget", 7, "--methods", "task_arithmetic").stdout
    )
    assert [line["name"] for line in more["lines"]][-2:] == ["task_arithmetic", "task_arithmetic, searched"]
    assert counted.count("search") == more["lines"][-1]["evaluations"] - before > 0
    (tmp_path / "other.yaml").write_text(file.read_text() + "seed: 1\n")
    refused = evomerge("bench", tmp_path / "other.yaml", "-o", out, code=2).stderr
    assert "other `seed`" in refused
    assert "give another directory" in refused
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert "is no bench" in evomerge("bench", file, "-o", tmp_path / "full", code=2).stderr


def test_a_dry_run_prices_and_writes_nothing(finished, tmp_path):
    printed = evomerge("bench", finished[0], "-o", tmp_path / "out", "--dry-run").stdout
    assert "13 rows, 8 of them possible; left to do: 5 evaluations on the search examples" in printed
    priced = json.loads(evomerge("bench", finished[0], "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert priced["evaluations"] == {"search": 5, "report": 8}
    assert priced["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_of_a_metric_without_a_zero_the_base_is_0_and_the_own_expert_1(data, tmp_path):
    tasks = {name: {**task, "report_metric": "log_likelihood"} for name, task in data["tasks"].items()}
    few = {**data, "tasks": {"turned": tasks["turned"]}, "held_out": {}, "methods": ["model_stock"], "budget": 0}
    runner = Runner(Bench.parse(few, "bench", Path()), tmp_path / "out")
    runner.run(Console(quiet=True))
    summary = summarise(runner)
    assert summary.line("base").normalised[0] == pytest.approx(0, abs=1e-6)
    assert summary.line("expert turned").normalised[0] == pytest.approx(1, abs=1e-6)
    assert summary.line("model_stock").normalised[0] > 0


def test_a_method_that_reads_data_is_a_row_where_it_is_asked_for(data, tmp_path):
    two = {one: data["pool"]["experts"][one] for one in MERGED}
    few = {**data, "pool": {**data["pool"], "experts": two}, "methods": ["regmean"], "budget": 0, "held_out": {}}
    few["pool"]["evidence"] = {name: {"task": name, "examples": 16} for name in two}
    runner = Runner(Bench.parse(few, "bench", Path()), tmp_path / "out")
    runner.run(Console(quiet=True))
    line = summarise(runner).line("regmean")
    assert line.reason is None
    assert line.examples == 32
    assert line.normalised is not None


def test_every_method_without_data_has_its_coefficients_and_begins_at_its_defaults():
    names = [name for name, method in METHODS.items() if free(method)]
    assert {"ties", "tsv", "slerp", "wudi"} <= set(names)
    assert not {"fisher", "regmean", "aim", "mwa", "svd_mutate"} & set(names)
    for name in names:
        method = METHODS[name]
        if not (found := coefficients(method)):
            continue
        opened = SearchSpace.parse(space(method), experts=["a", "b"], blocks=4)
        assert len(opened.genes) <= max(2 if "weight" in found else 0, 3)
        values = opened.decode(opened.initial).root.merge.parameters
        for key, spec in found.items():
            if key != "weight" and isinstance(spec.default, float) and spec.search[0] <= spec.default <= spec.search[1]:
                assert values[key] == pytest.approx(spec.default), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"zoo": "digits"}, "either `zoo` or `pool`"),
        ({"space": "linear"}, "unknown key `space`"),
        ({"methods": ["tie"]}, "did you mean `ties`"),
        ({"budget": -1}, "`budget`"),
        ({"held_out": {"turned": {}}}, "`turned` is under `tasks` and under `held_out`"),
        ({"tasks": {}}, "no tasks are left"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(data, change, told):
    with pytest.raises(StudyError, match=told):
        Bench.parse(data | change, "bench.yaml", Path())


def test_a_zoo_is_a_whole_bench_and_the_expert_of_a_held_out_task_leaves(small_digits, monkeypatch):
    monkeypatch.setattr("evomerge.zoo.load", lambda name, seed: small_digits)
    whole = Bench.parse({"zoo": "digits"}, "bench", Path())
    assert list(whole.study.tasks) == list(whole.study.pool.experts) == list(small_digits.tasks)
    part = Bench.parse({"zoo": "digits", "held_out": {"shifted": {}}}, "bench", Path())
    assert "shifted" not in part.study.pool.experts
    assert "shifted" not in part.study.tasks
    assert part.held_out["shifted"] == small_digits.tasks["shifted"]
    with pytest.raises(StudyError, match="did you mean `shifted`"):
        Bench.parse({"zoo": "digits", "held_out": {"shiftd": {}}}, "bench", Path())
