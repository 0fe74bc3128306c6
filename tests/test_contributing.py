"""The examples in CONTRIBUTING run as they stand, and do what the text says."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evomerge import search
from evomerge.merging import METHODS
from evomerge.merging.stages import STAGES
from evomerge.recipe import Recipe, merge
from evomerge.space import Box
from evomerge.trial import Evaluation

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def examples():
    """What the Python blocks define, by section."""
    sections = {}
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE):
        names = {"__name__": "contributing"}
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, names)
        sections[title] = SimpleNamespace(**{name: value for name, value in names.items() if name[0] != "_"})
    return sections


def test_the_stage_merges(examples, builder, models, monkeypatch):
    example = examples["Add a merge stage"]
    monkeypatch.setitem(STAGES._entries, "clip", example.CLIP)
    monkeypatch.setitem(METHODS._entries, "clipped", example.CLIPPED)
    recipe = merge("clipped", ["maths"], {"limit": 0.001, "weight": 1.0})
    checkpoint = builder.build(recipe)
    name = next(iter(checkpoint.info))
    base, expert = (model[name].float() for model in (models.base, models.experts["maths"]))
    expected = base + (expert - base).clamp(-0.001, 0.001)
    assert torch.allclose(checkpoint.tensor(name).float(), expected, atol=1e-2)


def test_the_driver_searches(examples, monkeypatch):
    monkeypatch.setitem(search.KINDS._entries, "local", examples["Add a driver"].LOCAL)
    space = Box({"x": (0, 1), "y": (0, 1)})
    driver = search.make({"kind": "local"}, space, ["score"], seed=0)
    scores = []
    for proposal in search.asks(driver, 200):
        scores.append(-float(((proposal.genome - 0.25) ** 2).sum()))
        driver.tell(proposal, Evaluation.of({"score": scores[-1]}))
    assert len(scores) == 200
    assert max(scores) > -1e-3


def test_the_task_scores(examples):
    example = examples["Add a task"]
    task = example.Norm("small", example.NormSettings(kind="norm", parameters=("weight",)), Path())
    model = SimpleNamespace(module=torch.nn.Linear(3, 2, bias=False))
    (score,) = task.score(model, "search").scores["small"]
    assert score == pytest.approx(-float(model.module.weight.detach().norm()))


def test_the_node_parses_and_knows_its_children(examples):
    node = examples["Add a recipe node"].NegateNode.model_validate({"negate": {"source": {"expert": "maths"}}})
    assert node.children == (Recipe.parse({"expert": "maths"}),)


def test_the_glossary_has_no_word_twice():
    words = re.findall(r"^\| ([a-z][\w, ]*?) \| ", TEXT.partition("## Glossary")[2], re.MULTILINE)
    assert len(words) == len(set(words)) >= 30
