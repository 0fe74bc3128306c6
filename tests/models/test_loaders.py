"""Modules of the user: any network whose state has the checkpoint's names is searched like one of transformers."""

import json
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import ModelError
from evomerge.evaluate import Setup, Worker
from evomerge.models import LiveModel
from evomerge.recipe import expert, merge

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.last = nn.Linear(width, 3)
        self.register_buffer("seen", torch.tensor(7))

    def forward(self, pixel_values):
        return self.last(torch.relu(self.first(pixel_values.flatten(1))))

def make(folder):
    return Net(5)

def wide(folder):
    return Net(6)

def words(folder):
    return "a network"
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(CODE))
    generator = torch.Generator().manual_seed(0)
    shapes = {"first.weight": (5, 4), "first.bias": (5,), "last.weight": (3, 5), "last.bias": (3,)}
    for name in ("base", "one", "two"):
        (tmp_path / name).mkdir()
        tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        save_file({**tensors, "seen": torch.tensor(7)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    for split in ("search", "report"):
        rows = [{"x": torch.randn(1, 2, 2, generator=generator).tolist(), "y": i % 3} for i in range(12)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def logits(tensors, images):
    hidden = torch.relu(images.flatten(1) @ tensors["first.weight"].T + tensors["first.bias"])
    return hidden @ tensors["last.weight"].T + tensors["last.bias"]


def test_candidate_of_a_user_module_scores_as_its_weights_do(net):
    pool = Pool(net / "base", {name: net / name for name in ("one", "two")})
    task = {"kind": "classification", "search": "search.jsonl", "report": "report.jsonl", "input": "x", "label": "y"}
    setup = Setup(
        str(net / "base"),
        {name: str(net / name) for name in ("one", "two")},
        {"t": {**task, "keep_margins": True}},
        folder=str(net),
        module=f"{net / 'net.py'}:make",
    )
    images = torch.tensor([json.loads(line)["x"] for line in (net / "search.jsonl").read_text().splitlines()])
    labels = torch.arange(12) % 3
    worker = Worker(setup)
    for recipe in (expert("one"), merge("linear", ["one", "two"]), expert("two")):
        built = Builder(pool).build(recipe)
        expected = logits({name: built.tensor(name) for name in built.info}, images)
        evaluation = worker.evaluate(recipe)
        assert evaluation.error is None
        assert np.allclose(evaluation.scores["t/log_likelihood"], expected.log_softmax(1)[range(12), labels], atol=1e-5)
        others = torch.stack([expected[i, [c for c in range(3) if c != label]] for i, label in enumerate(labels)])
        margins = evaluation.outputs["t/margins"]
        assert np.allclose(margins, expected[range(12), labels, None] - others, atol=1e-5)
        assert ((margins > 0).all(axis=1) == (evaluation.scores["t/accuracy"] == 1)).all()


def test_bfloat16_and_integer_buffers_are_kept(net):
    live = LiveModel(net / "base", precision="bfloat16", module=f"{net / 'net.py'}:make")
    assert live.module.first.weight.dtype == torch.bfloat16
    assert int(live.module.seen) == 7
    assert not live.module.training


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("net.py:mak", "has no function `mak`; did you mean `make`?"),
        ("none.py:make", "`module` must be FILE.py:FUNCTION with an existing file"),
        ("net.py", "`module` must be FILE.py:FUNCTION with an existing file"),
        ("net.py:words", "returned str; expected a torch.nn.Module"),
        ("net.py:wide", r"tensor `first.bias`: shape [5]; expected shape [6], as in the module of"),
    ],
)
def test_module_that_cannot_be_created_is_refused_with_the_reason(net, where, message):
    with pytest.raises(ModelError) as caught:
        LiveModel(net / "base", module=f"{net}/{where}")
    assert message in str(caught.value)


def test_broken_module_file_is_refused_with_its_error(net):
    (net / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(
        ModelError, match=r"broken.py cannot be imported: ModuleNotFoundError: No module named 'nothing_of"
    ):
        LiveModel(net / "base", module=f"{net}/broken.py:make")
