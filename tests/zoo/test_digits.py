"""The digits zoo, and the contract of every zoo: reproducible bytes, disjoint splits, loadable checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from evomerge import zoo
from evomerge.errors import ZooError
from evomerge.models.pretrained import load_model
from evomerge.zoo import digits
from evomerge.zoo.store import publish


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return publish(digits.plan(small=True), tmp_path_factory.mktemp("zoo"), 0, lambda done, doing: None)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_with_one_seed_write_identical_files_and_restore_the_generator(built, tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)  # the generator's state must have no effect
    again = publish(digits.plan(small=True), tmp_path, 0, lambda done, doing: None)
    assert torch.equal(torch.rand(3), expected)
    assert again.folder.name == built.folder.name
    assert files(again.folder) == files(built.folder)
    assert torch.get_num_threads() == threads


def test_zoo_of_another_seed_is_not_found():
    with pytest.raises(ZooError, match="evomerge zoo build digits --seed 4"):
        zoo.load("digits", seed=4)


def test_checkpoints_load_with_transformers_and_have_equal_shapes(built):
    base = load_model(built.pool["base"], "AutoModelForImageClassification")
    shapes = {name: tensor.shape for name, tensor in base.state_dict().items()}
    assert sum(tensor.numel() for tensor in base.parameters()) < 60_000
    for path in built.pool["experts"].values():
        expert = load_model(path, "AutoModelForImageClassification")
        assert {name: tensor.shape for name, tensor in expert.state_dict().items()} == shapes


def test_splits_are_disjoint_across_all_views(built):
    plain = {"turned": (1, 2), "mirrored": (2,)}
    seen = {"train": set(), "search": set(), "report": set()}
    for name, axes in plain.items():
        paths = {
            "train": built.folder / f"tasks/{name}/train.jsonl",
            **{split: built.tasks[name][split] for split in ("search", "report")},
        }
        for split, path in paths.items():
            pixels = torch.tensor([row["pixels"] for row in rows(path)])
            seen[split] |= {tuple(image.flatten().tolist()) for image in pixels.flip([axis + 1 for axis in axes])}
    assert len(seen["train"]) == 900
    assert len(seen["search"]) == 400
    assert not seen["train"] & seen["search"]
    assert not seen["train"] & seen["report"]
    assert not seen["search"] & seen["report"]


def test_each_expert_beats_the_base_on_its_own_task(built):
    assert set(built.figures["accuracy"]) == set(built.tasks) == set(built.pool["experts"])
    for accuracy in built.figures["accuracy"].values():
        assert accuracy["expert"] > accuracy["base"] + 0.2


def test_an_expert_is_much_worse_than_another_on_its_task(built):
    expert = load_model(built.pool["experts"]["inverted"], "AutoModelForImageClassification")
    examples = rows(built.tasks["turned"]["search"])
    logits = expert(pixel_values=torch.tensor([row["pixels"] for row in examples])).logits
    right = logits.argmax(-1) == torch.tensor([row["label"] for row in examples])
    assert float(right.float().mean()) < built.figures["accuracy"]["turned"]["expert"] - 0.2
