"""Settings and data of tasks are checked before any work."""

import sys

import numpy as np
import pytest
import torch
from rows import write_jsonl

from evomerge.errors import TaskError
from evomerge.tasks import PythonTask, make

LM = {"kind": "language_modelling", "search": "search.jsonl", "report": "report.jsonl"}


@pytest.fixture
def folder(tmp_path):
    write_jsonl(tmp_path / "search.jsonl", [{"text": "one", "more": 1}, {"text": "two"}])
    write_jsonl(tmp_path / "report.jsonl", [{"text": "three"}])
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "langauge_modelling"}, "task `some`: .*did you mean `language_modelling`"),
        ({}, "expected a `kind`"),
        ({**LM, "max_lenght": 3}, "task `some`: unknown key `max_lenght`; did you mean `max_length`"),
        ({"kind": "language_modelling", "search": "x"}, "task `some`: `report` is missing"),
        ({**LM, "batch": 0}, "task `some` `batch`: input should be greater than or equal to 1, got 0"),
        ({**LM, "search_metric": "likelyhood"}, "unknown `search_metric` `likelyhood`; did you mean `log_likelihood`"),
    ],
)
def test_settings_are_checked(settings, says, folder):
    with pytest.raises(TaskError, match=says):
        make("some", settings, folder)


def test_sizes_are_those_of_the_files(folder):
    task = make("some", LM, folder)
    assert (task.name, task.size("search"), task.size("report")) == ("some", 2, 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"a task without examples: expected at least one for `search` in .*search\.jsonl"),
        ("\n\n", "a task without examples"),
        ('{"text": "x"}\n{"text"', r"search\.jsonl, line 2: expected one JSON object on each line"),
        ("[1]\n", "line 1: expected a JSON object"),
        ('{"txet": "x"}\n', r"line 1: no column `text`; did you mean `txet`"),
    ],
)
def test_files_are_checked(content, says, folder):
    (folder / "search.jsonl").write_text(content)
    with pytest.raises(TaskError, match=says):
        make("some", LM, folder)


def test_missing_file_is_an_error(folder):
    with pytest.raises(TaskError, match=r"no such file or folder: .*gone\.jsonl"):
        make("some", {**LM, "report": "gone.jsonl"}, folder)


def test_unknown_kind_of_file_is_an_error(folder):
    (folder / "search.xml").write_text("text\nx\n")
    with pytest.raises(TaskError, match=r"expected examples as \.jsonl, \.parquet, \.csv, \.tsv, \.npz, or a folder"):
        make("some", {**LM, "search": "search.xml"}, folder)


def test_examples_in_both_splits_are_an_error(folder):
    write_jsonl(folder / "report.jsonl", [{"text": "three"}, {"text": "two"}, {"text": "one"}])
    with pytest.raises(TaskError, match=r"must be disjoint, but 2 examples are in both \(the first is example 1 of"):
        make("some", LM, folder)


def test_final_examples_are_in_no_other_split(folder):
    write_jsonl(folder / "final.jsonl", [{"text": "four"}, {"text": "five"}])
    settings = {**LM, "final": "final.jsonl"}
    assert make("some", settings, folder).size("final") == 2
    assert make("some", LM, folder).size("final") == 0
    for split, text in (("search", "two"), ("report", "three")):
        write_jsonl(folder / "final.jsonl", [{"text": "four"}, {"text": text}])
        with pytest.raises(
            TaskError, match=rf"`{split}` and `final` must be disjoint, but 1 .*is example 1 of .*final"
        ):
            make("some", settings, folder)
    write_jsonl(folder / "final.jsonl", [])
    with pytest.raises(TaskError, match="expected at least one for `final`"):
        make("some", settings, folder)


@pytest.mark.parametrize("kind", ["language_modelling", "multiple_choice", "generation", "classification", "callable"])
def test_every_kind_that_reads_files_takes_final_examples(kind):
    from evomerge.tasks import KINDS

    assert ("final" in KINDS[kind][0].model_fields) == (kind != "callable")


def test_parquet_holds_the_same_examples(folder, live):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"text": ["one", "two"]}), folder / "search.parquet")
    other = make("some", {**LM, "search": "search.parquet"}, folder)
    expected = make("some", LM, folder).score(live("llama"), "search").scores["log_likelihood"]
    assert other.score(live("llama"), "search").scores["log_likelihood"].tolist() == expected.tolist()
    with pytest.raises(TaskError, match=r"search\.parquet: no column `txt`; did you mean `text`"):
        make("some", {**LM, "search": "search.parquet", "text": "txt"}, folder)
    (folder / "search.parquet").write_text("PAR1 but not really")
    with pytest.raises(TaskError, match="not a Parquet file"):
        make("some", {**LM, "search": "search.parquet"}, folder)


def test_datasets_folder_holds_the_same_examples(folder, live):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "other": [1, 2]})
    rows.save_to_disk(folder / "saved")
    expected = make("some", LM, folder).score(live("llama"), "search").scores["log_likelihood"]
    other = make("some", {**LM, "search": "saved"}, folder)
    assert other.score(live("llama"), "search").scores["log_likelihood"].tolist() == expected.tolist()
    datasets.DatasetDict({"train": rows}).save_to_disk(folder / "both")
    with pytest.raises(TaskError, match="one for each split; give one of both/train"):
        make("some", {**LM, "search": "both"}, folder)
    assert make("some", {**LM, "search": "both/train"}, folder).size("search") == 2
    (folder / "empty").mkdir()
    with pytest.raises(TaskError, match="not a folder saved by `datasets`"):
        make("some", {**LM, "search": "empty"}, folder)


@pytest.mark.parametrize(("package", "file"), [("pyarrow", "x.parquet"), ("datasets", ".")])
def test_missing_package_is_an_error_with_what_to_type(package, file, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (folder / "x.parquet").touch()
    with pytest.raises(TaskError, match=rf"needs the package {package}; type: pip install 'evomerge\[data\]'"):
        make("some", {**LM, "search": file}, folder)


FUNCTION = {"kind": "callable", "search": 3, "report": 2}


def function(folder, name, body):
    (folder / f"{name}.py").write_text(f"def score(model, split, examples):\n    return {body}\n")
    return {**FUNCTION, "function": f"{name}:score"}


def test_function_beside_the_study_is_found(folder):
    task = make("some", function(folder, "evomerge_beside", "[-float(i) for i in examples]"), folder)
    assert tuple(task.metrics) == ("score",)
    assert task.score(None, "search").scores["score"].tolist() == [0, -1, -2]
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("evomerge_short", "[1.0]", r"returned shape \[1\] for `score`; expected one score for each of 3 examples"),
        ("evomerge_number", "1.0", r"returned shape \[\]"),
        ("evomerge_words", "'good'", "returned no vector of numbers for `score`, but 'good'"),
        ("evomerge_metric", "{'other': [0, 0, 0]}", r"returned the metrics \['other'\]; expected \['score'\]"),
    ],
)
def test_return_values_of_functions_are_checked(name, body, says, folder):
    task = make("some", function(folder, name, body), folder)
    with pytest.raises(TaskError, match=says):
        task.score(None, "search")


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("evomerge_nowhere:score", "cannot import `evomerge_nowhere`"),
        ("json:scores", "module `json` has no function `scores`"),
        ("json", "`function`: string should match pattern"),
    ],
)
def test_missing_function_is_an_error(where, says, folder):
    with pytest.raises(TaskError, match=says):
        make("some", {**FUNCTION, "function": where}, folder)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[1.0, 2.0, 3.0]", r"as a torch tensor of shape \[3\] with a graph, got \[1.0, 2.0, 3.0\]"),
        ("(3 * model).detach()", r"got one of shape \[3\] without a graph; compute it .* without `\.item\(\)`"),
        ("model.sum()", r"got one of shape \[\] with a graph"),
        ("{'other': model}", "must return `score` as a torch tensor .* got None"),
    ],
)
def test_gradients_of_functions_are_checked(body, says, folder):
    name = "evomerge_gradient"
    sys.modules.pop(name, None)
    settings = function(folder, name, body)
    task = make("some", {**FUNCTION, "function": "math:fsum", "gradient": settings["function"]}, folder)
    with pytest.raises(TaskError, match=says):
        list(task.graph(torch.ones(3, requires_grad=True), "search", [0, 1, 2]))


def test_metrics_that_a_gradient_does_not_return_are_scored_by_the_function(folder):
    settings = function(folder, "evomerge_both", "{'loss': [7] * len(examples), 'other': examples}")
    slopes = function(folder, "evomerge_slopes", "2 * model[examples]")["function"]
    metrics = {"metrics": ["other", "loss"], "search_metric": "loss"}
    task = make("some", {**settings, **metrics, "gradient": slopes, "batch": 2}, folder)
    assert {name: metric.slopes for name, metric in task.metrics.items()} == {"other": False, "loss": True}
    weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    parts = list(task.graph(weights, "search", [2, 0, 1]))
    assert [part.positions for part in parts] == [[0, 1], [2]]
    assert [part.scores.scores["loss"].tolist() for part in parts] == [[6, 2], [4]]
    assert [part.scores.scores["other"].tolist() for part in parts] == [[2, 0], [1]]


def test_a_function_without_a_gradient_says_what_to_add(folder):
    task = make("some", function(folder, "evomerge_beside", "[0.0] * len(examples)"), folder)
    with pytest.raises(
        TaskError, match=r"the metric `score` cannot be differentiated; .* give a function a `gradient`"
    ):
        task.graph(None, "search", [0])
    with pytest.raises(TaskError, match="cannot import `evomerge_nowhere` of `gradient: evomerge_nowhere:slopes`"):
        make("some", {**FUNCTION, "function": "math:fsum", "gradient": "evomerge_nowhere:slopes"}, folder)


MARGINS = "{'accuracy': [1.0, 0.0, 0.0], 'margins': [[2, 1], [2, -1], [0, 3]]}"
ACCURATE = {"metrics": ["accuracy"], "keep_margins": True}


def test_a_function_returns_the_margins_of_its_accuracy(folder):
    settings = {**function(folder, "evomerge_margins", MARGINS), **ACCURATE}
    task = make("some", settings, folder)
    assert task.metrics["accuracy"].margins == "margins"
    scored = task.score(None, "search")
    assert scored.scores["accuracy"].tolist() == [1, 0, 0]
    assert scored.outputs["margins"].tolist() == [[2, 1], [2, -1], [0, 3]]
    assert scored.outputs["margins"].dtype == np.float32
    assert make("some", {**settings, "keep_margins": False}, folder).metrics["accuracy"].margins is None
    slopes = function(folder, "evomerge_loss", "{'loss': 2 * model[examples]}")["function"]
    function(folder, "evomerge_scored", "{**" + MARGINS + ", 'loss': [0.0] * 3}")
    more = {"function": "evomerge_scored:score", "metrics": ["loss", "accuracy"], "gradient": slopes}
    [part] = make("some", {**settings, **more}, folder).graph(torch.ones(3, requires_grad=True), "search", [0, 1, 2])
    assert part.scores.outputs["margins"].tolist() == scored.outputs["margins"].tolist()
    assert part.scores.scores["loss"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        (MARGINS, {}, r"the metrics \['accuracy', 'margins'\]; expected \['accuracy'\].*; type `keep_margins: true`"),
        ("[1.0, 0.0, 0.0]", ACCURATE, r"\['accuracy'\]; expected \['accuracy', 'margins'\]"),
        (
            "{'accuracy': [1, 0, 0], 'margins': [1, 0, 0]}",
            ACCURATE,
            r"of shape \[3\]; expected one row of numbers for each of 3",
        ),
        (
            "{'accuracy': [1, 0, 0], 'margins': [['a']] * 3}",
            ACCURATE,
            r"shape \[\['a'\], .*; expected one row of numbers",
        ),
        (
            "{'accuracy': [0, 0, 0], 'margins': [[1, 2]] * 3}",
            ACCURATE,
            "accuracy 0 and margins .* expected accuracy 1 where all",
        ),
    ],
)
def test_margins_of_functions_are_checked(body, more, says, folder):
    sys.modules.pop("evomerge_wrong_margins", None)
    settings = {**function(folder, "evomerge_wrong_margins", body), "metrics": ["accuracy"], **more}
    with pytest.raises(TaskError, match=says):
        make("some", settings, folder).score(None, "search")


def test_margins_are_those_of_accuracy(folder):
    with pytest.raises(
        TaskError, match=r"`keep_margins` is about the metric `accuracy`.*; type: metrics: \[accuracy\]"
    ):
        make("some", {**FUNCTION, "function": "math:fsum", "keep_margins": True}, folder)
    with pytest.raises(TaskError, match="`keep_margins` is about the metric `accuracy`"):
        PythonTask(lambda model, examples: examples, [1.0], [2.0], keep_margins=True)


def test_a_python_function_returns_margins(folder):
    def score(weights, examples):
        return {"accuracy": [float(value > 1) for value in examples], "margins": [[value - 1] for value in examples]}

    kept = PythonTask(score, [1.0, 2.0], [4.0], metrics=["accuracy"], keep_margins=True)
    assert kept["keep_margins"]
    assert "keep_margins" not in PythonTask(score, [1.0], [4.0], metrics=["accuracy"])
    assert make("some", kept, folder).score(None, "search").outputs["margins"].tolist() == [[0], [1]]


def test_a_python_function_takes_a_gradient(folder):
    def score(weights, examples):
        return [float(value) for value in differentiable(weights, examples)]

    def differentiable(weights, examples):
        return weights.sum() * torch.tensor(examples)

    plain = PythonTask(score, [1.0, 2.0, 3.0], [4.0])
    sloped = PythonTask(score, [1.0, 2.0, 3.0], [4.0], gradient=differentiable, batch=2)
    assert (sloped["gradient"], sloped["batch"]) == (f"{__name__}:{differentiable.__qualname__}", 2)
    assert {"gradient", "batch"}.isdisjoint(plain)
    assert sloped["digest"] != plain["digest"]
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    parts = list(make("some", sloped, folder).graph(weights, "search", [2, 0, 1]))
    assert [part.value.tolist() for part in parts] == [[9, 3], [6]]
    torch.cat([part.value for part in parts]).mean().backward()
    assert weights.grad.tolist() == [2, 2]
    with pytest.raises(TaskError, match="expected a function of"):
        PythonTask(score, [1.0], [2.0], gradient="module:function")
    with pytest.raises(TaskError, match="`batch` is 0; expected 1 or more"):
        PythonTask(score, [1.0], [2.0], gradient=differentiable, batch=0)


def test_metrics_of_functions_have_the_range_of_their_name_or_a_declared_one(folder):
    settings = function(folder, "evomerge_declared", "{'accuracy': [1.0] * 3, 'gain': [0.5] * 3}")
    named = make("some", {**settings, "metrics": ["accuracy", "gain"]}, folder)
    assert [metric.bounds for metric in named.metrics.values()] == [(0, 1), (-np.inf, np.inf)]
    declared = make("some", {**settings, "metrics": {"gain": {"low": -1}, "accuracy": {"low": 0, "high": 2}}}, folder)
    assert [metric.bounds for metric in declared.metrics.values()] == [(-1, np.inf), (0, 2)]
    assert (declared.search_metric, declared.report_metric) == ("gain", "gain")
    assert declared.score(None, "search").scores["gain"].tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(TaskError, match=r"unknown key `metrics\.gain\.highest`; did you mean `high`"):
        make("some", {**settings, "metrics": {"gain": {"highest": 1}}}, folder)


def test_equal_inputs_and_rows_of_a_group_have_equal_keys(folder):
    one, two, grouped, other = (
        make(name, LM | extra, folder)
        for name, extra in (("one", {}), ("two", {}), ("a", {"group": "digits"}), ("b", {"group": "digits"}))
    )
    assert one.example_keys("search") == two.example_keys("search")
    assert not set(one.example_keys("search")) & set(one.example_keys("report"))
    assert grouped.example_keys("report") == other.example_keys("report") == ["digits\n0"]
    counted = {"kind": "callable", "function": "math:fsum", "search": 2, "report": 3}
    assert make("c", counted, folder).example_keys("report") == ["c\n0", "c\n1", "c\n2"]
