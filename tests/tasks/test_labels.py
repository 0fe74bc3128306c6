"""Labels that are words become class numbers."""

import numpy as np
import pytest
import torch
from rows import write_jsonl
from tiny_models import tiny_model

from evomerge import recipe
from evomerge.errors import TaskError
from evomerge.evaluate import Setup, Worker
from evomerge.tasks import make

NAMED = {"id2label": {0: "owl", 1: "cat", 2: "dog"}, "label2id": {"owl": 0, "cat": 1, "dog": 2}}


@pytest.fixture
def settings(tmp_path):
    write(tmp_path, ["owl", "dog", "cat"])
    files = {split: f"{split}.jsonl" for split in ("search", "report")}
    return {"kind": "classification", "input": "text", "label": "label", **files}


def write(folder, labels, report=("cat",)):
    for split, words in (("search", labels), ("report", report)):
        write_jsonl(
            folder / f"{split}.jsonl", [{"text": f"{split} {i}", "label": word} for i, word in enumerate(words)]
        )


@torch.inference_mode()
def likelihoods(model, numbers):
    """Return the log-likelihoods of the search texts, one after another, under these class numbers."""
    found = [model.module(**model.tokenizer(f"search {i}", return_tensors="pt")) for i in range(len(numbers))]
    return [float(output.logits[0].log_softmax(0)[number]) for output, number in zip(found, numbers, strict=True)]


@pytest.mark.parametrize(
    ("named", "more", "numbers"),
    [
        (False, {}, [2, 1, 0]),  # sorted
        (True, {}, [0, 2, 1]),  # the model's own names
        (False, {"labels": ["dog", "owl", "cat"]}, [1, 0, 2]),
        (True, {"labels": {"cat": 0, "owl": 1, "dog": 2}}, [1, 2, 0]),
    ],
)
def test_words_are_numbered_by_the_task_or_the_model_or_their_order(named, more, numbers, settings, live, tmp_path):
    model = live("bert", **(NAMED if named else {}))
    task = make("pets", {**settings, **more}, tmp_path)
    task.check(model)
    scores = task.score(model, "search").scores["log_likelihood"]
    np.testing.assert_allclose(scores, likelihoods(model, numbers), rtol=1e-4, atol=1e-5)


def test_digits_are_class_numbers(settings, live, tmp_path):
    write(tmp_path, ["2", "0", "1"], report=["1"])
    scores = make("pets", settings, tmp_path).score(live("bert", **NAMED), "search").scores["log_likelihood"]
    np.testing.assert_allclose(scores, likelihoods(live("bert", **NAMED), [2, 0, 1]), rtol=1e-4, atol=1e-5)


def test_a_label_that_the_model_does_not_have_is_refused_with_its_row_before_any_candidate(settings, live, tmp_path):
    write(tmp_path, ["owl", "dgo"])
    with pytest.raises(
        TaskError, match=r"search example 1: expected a label of the model's .*did you mean `dog`\?\), got 'dgo'"
    ):
        make("pets", settings, tmp_path).check(live("bert", **NAMED))


def test_a_label_that_is_missing_is_refused_with_its_row(settings, tmp_path):
    write(tmp_path, ["owl", ""])
    with pytest.raises(TaskError, match="search example 1: expected a word, as `owl` elsewhere, got ''"):
        make("pets", settings, tmp_path)
    write(tmp_path, [""], report=[""])
    with pytest.raises(TaskError, match="example 0: expected an integer from 0 up, got ''"):
        make("pets", settings, tmp_path)


def test_fewer_words_than_classes_need_an_order(settings, live, tmp_path):
    write(tmp_path, ["owl", "cat"])
    task = make("pets", settings, tmp_path)
    with pytest.raises(
        TaskError, match=r"has 2 different words, and BertFor.* has 3 classes without names; write `labels: "
    ):
        task.check(live("bert"))
    make("pets", {**settings, "labels": ["cat", "dog", "owl"]}, tmp_path).check(live("bert"))


@pytest.mark.parametrize(
    ("labels", "given", "says"),
    [
        (
            ["owl", "emu"],
            ["owl", "cat"],
            r"search example 1: expected a label of `labels` \(known: cat, owl\), got 'emu'",
        ),
        (["owl"], ["owl", "owl"], "`labels`: expected different words, each with a number of its own from 0 up, got"),
        (["owl"], {"owl": 0, "cat": 0}, "expected different words"),
        (["owl"], {"owl": -1, "cat": 0}, "expected different words"),
        (
            ["owl"],
            [],
            r"`labels`: expected words in the order of the classes, `\[cat, dog\]`, or the number of each, .* got \[\]",
        ),
        (["owl"], "owl", "got 'owl'"),
        (["owl"], ["owl", True], r"got \['owl', True\]"),
        (["owl"], {"owl": "0"}, "got {'owl': '0'}"),
        ([0, 1], ["owl"], "column `label` has numbers, and `labels` maps words"),
    ],
)
def test_labels_of_a_task_are_checked_before_any_work(labels, given, says, settings, tmp_path):
    write(tmp_path, labels, report=labels[:1])
    with pytest.raises(TaskError, match=says):
        make("pets", {**settings, "labels": given}, tmp_path)


def test_words_are_numbered_by_the_head_that_the_task_is_scored_with(settings, tmp_path):
    """Two experts have other numbers for the same words; each of their tasks has a copy with the numbers themselves."""
    numbers = {"first": {"owl": 0, "cat": 1, "dog": 2}, "second": {"dog": 0, "owl": 1, "cat": 2}}
    experts, tasks = {}, {}
    for name, known in numbers.items():
        named = {number: word for word, number in known.items()}
        experts[name] = str(tiny_model(tmp_path / name, "bert", seed=len(experts) + 1, id2label=named, label2id=known))
        tasks[name] = {**settings, "head_of": name}
        tasks[f"{name}_numbers"] = {**tasks[name], "labels": known}
    base = str(tiny_model(tmp_path / "base", "bert", auto="AutoModel"))
    evaluation = Worker(Setup(base, experts, tasks, heads="own", folder=str(tmp_path))).evaluate(recipe.base())
    assert evaluation.error is None
    scores = {name: evaluation.scores[f"{name}/log_likelihood"].tolist() for name in tasks}
    assert scores["first"] == scores["first_numbers"]
    assert scores["second"] == scores["second_numbers"]
    assert scores["first"] != scores["second"]
