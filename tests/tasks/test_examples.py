"""One file is divided into search and report examples; files of splits are in test_make.py."""

import random

import pytest
from rows import write_jsonl

from evomerge.errors import TaskError
from evomerge.tasks import make
from evomerge.tasks.examples import read_splits
from evomerge.tasks.language_modelling import LanguageModellingSettings

TEXTS = [f"text {i}" for i in range(40)]
ONE = {"kind": "language_modelling", "examples": "all.jsonl", "split": 0.25}


def drawn(folder, texts, **more):
    write_jsonl(folder / "all.jsonl", [{"text": text} for text in texts])
    settings = LanguageModellingSettings.model_validate({**ONE, **more})
    [splits] = read_splits("some", settings, ("text",), folder)
    return splits


def test_the_share_of_one_file_is_searched_and_all_others_are_reported(tmp_path):
    splits = drawn(tmp_path, TEXTS)
    assert {split: len(texts) for split, texts in splits.items()} == {"search": 10, "report": 30}
    assert sorted(splits["search"] + splits["report"]) == sorted(TEXTS)
    assert splits["search"] == [text for text in TEXTS if text in splits["search"]]  # in the file's order
    assert splits["search"] != TEXTS[:10]
    assert set(splits["search"]) < set(drawn(tmp_path, TEXTS, split=0.5)["search"])


def test_the_order_of_the_rows_changes_no_side_and_equal_inputs_are_on_one(tmp_path):
    splits = drawn(tmp_path, TEXTS)
    other = drawn(tmp_path, random.Random(1).sample(TEXTS * 2, 2 * len(TEXTS)))
    assert {split: set(texts) for split, texts in other.items()} == {
        split: set(texts) for split, texts in splits.items()
    }


def test_tasks_of_a_group_are_divided_by_row(tmp_path):
    splits = drawn(tmp_path, TEXTS, group="same")
    changed = drawn(tmp_path, [f"{text} in other words" for text in TEXTS], group="same")
    assert [text.removesuffix(" in other words") for text in changed["search"]] == splits["search"]
    with pytest.raises(TaskError, match="`search` and `report` must be disjoint, but 1 examples are in both"):
        drawn(tmp_path, ["twice"] * 9, group="same")


def test_both_sides_have_an_example_and_final_ones_are_in_neither(tmp_path):
    assert [len(texts) for texts in drawn(tmp_path, ["a", "b"], split=0.01).values()] == [1, 1]
    assert [len(texts) for texts in drawn(tmp_path, ["a", "b"], split=0.99).values()] == [1, 1]
    with pytest.raises(TaskError, match=r"all\.jsonl: expected two or more different examples to divide, got 1"):
        drawn(tmp_path, ["a", "a"])
    write_jsonl(tmp_path / "final.jsonl", [{"text": "b"}])
    with pytest.raises(TaskError, match="and `final` must be disjoint"):
        drawn(tmp_path, ["a", "b"], final="final.jsonl")


def test_a_task_of_one_file_is_scored_on_both_sides(tmp_path, live):
    write_jsonl(tmp_path / "all.jsonl", [{"text": text} for text in TEXTS])
    task = make("some", ONE, tmp_path)
    assert [len(task.score(live("llama"), split).scores["log_likelihood"]) for split in ("search", "report")] == [
        10,
        30,
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "`search` is missing; expected `search` and `report`, or `examples` and `split`, as in"),
        ({"search": "a"}, "`report` is missing"),
        ({"examples": "a"}, "expected either .*; got `examples`"),
        ({"split": 0.5}, "got `split`"),
        ({**ONE, "search": "a"}, "got `search`, `examples`, `split`"),
        ({**ONE, "split": 1}, "`split`: input should be less than 1, got 1"),
        ({**ONE, "examples": "gone.jsonl"}, r"no such file or folder: .*gone\.jsonl"),
    ],
)
def test_the_files_of_a_task_are_given_in_one_way(settings, says, tmp_path):
    with pytest.raises(TaskError, match=says):
        make("some", {"kind": "language_modelling", **settings}, tmp_path)
