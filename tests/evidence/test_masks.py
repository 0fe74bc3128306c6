"""Masks learnt of all experts, against torch's own gradients and Adam, and what a merge does with them."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from subjects import jsonl
from tiny_models import tiny_model

from evomerge.build import Builder
from evomerge.errors import RecipeError
from evomerge.evidence import Evidence, masks
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.recipe import merge
from evomerge.settings import StudySettings

TEXTS = {"maths": ["2 + 40 = 42", "x = y - 3", "one and one"], "code": ["def f(x): return x", "pass", "import a"]}
STEPS = 5


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A study of two experts of a tiny Llama, with masks of five steps collected, and what the collecting printed."""
    folder = tmp_path_factory.mktemp("masks")
    base = tiny_model(folder / "base", "llama")
    stored = load_file(base / "model.safetensors")
    tasks = {}
    for seed, (name, texts) in enumerate(TEXTS.items()):
        generator = torch.Generator().manual_seed(seed)
        noise = {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in stored.items()}
        tiny_model(folder / name, "llama")
        expert = {key: tensor + noise[key] for key, tensor in stored.items()}
        save_file(expert, folder / name / "model.safetensors", {"format": "pt"})
        files = {
            "search": jsonl(folder / f"{name}.search.jsonl", [{"text": text} for text in texts]),
            "report": jsonl(folder / f"{name}.report.jsonl", [{"text": f"unseen {name}"}]),
        }
        tasks[name] = {"kind": "language_modelling", "text": "text", **files}
    settings = {
        "pool": {"base": str(base), "experts": {name: str(folder / name) for name in TEXTS}},
        "tasks": tasks,
        "space": {"recipe": {"merge": {"method": "concrete", "inputs": "experts", "parameters": {"weight": {"float": [0, 1]}}}}},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "STEPS", STEPS)
        patch.setattr(masks, "BATCH", 2)
        opened = open_parts(StudySettings.parse(settings, "study", Path()))
        assert opened.space.needs == ("mask",)
        assert opened.evidence.price()["mask"].seconds > 0
        opened.evidence.collect(Console(quiet=True))
        assert not opened.evidence.left
        yield opened


def learnt(parts):
    """Return the logits that torch's autograd and Adam find with the same draws, of λ Στ masked over its mean."""
    live = LiveModel(parts.pool.base.path)
    base = dict(live.module.named_parameters())
    deltas = {
        name: 0.3 * sum(model.tensor(name) - base[name] for model in parts.pool.experts.values()) for name in base
    }
    logits = {name: torch.zeros_like(tensor, requires_grad=True) for name, tensor in base.items()}
    adam = torch.optim.Adam(logits.values(), lr=1e-3)
    seed = next(entry for entry in parts.evidence.entries if entry.expert == "maths").folder.name
    for step in range(1, STEPS + 1):
        changed = {}
        for name, x in logits.items():
            mask = torch.sigmoid((x + masks.draw(seed, step, name, x.shape)) / 0.5)
            changed[name] = base[name] + deltas[name] * mask / mask.mean()
        loss = torch.zeros(())
        for number, task in enumerate(parts.tasks.values()):
            sequences = task._sequences(live, "search")[0]
            chosen = masks.batch(step, number, 3)
            for i in chosen:
                ids = torch.tensor([sequences[i].tokens])
                found = torch.func.functional_call(live.module, changed, (), {"input_ids": ids}).logits[0, :-1]
                loss = loss + torch.distributions.Categorical(logits=found).entropy().mean() / len(chosen)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return logits


def test_logits_are_those_of_autograd_and_adam(parts):
    for name, logits in learnt(parts).items():
        found = parts.pool.evidence.tables("mask", "maths", name)
        assert int(found["experts"]) == 2
        assert torch.equal(found["logits"], parts.pool.evidence.tables("mask", "code", name)["logits"])
        wanted = logits.detach()
        near = (found["logits"] - wanted).abs() < 2e-5
        assert near.float().mean() > 0.99, name  # of elements with hardly any gradient, Adam follows the rounding
        if name != "model.embed_tokens.weight":  # of which few rows are read
            assert float(wanted.abs().mean()) > 1e-3


def test_merge_multiplies_task_vectors_by_the_expected_mask(parts):
    pool = parts.pool
    built = Builder(pool).build(merge("concrete", list(TEXTS)))
    name = "model.layers.1.mlp.up_proj.weight"
    base = pool.base.tensor(name).double()
    mask = pool.evidence.tables("mask", "maths", name)["logits"].double().sigmoid()
    change = 0.3 * sum(model.tensor(name).double() - base for model in pool.experts.values())
    torch.testing.assert_close(built.tensor(name).double(), base + change * mask / mask.mean(), rtol=1e-5, atol=1e-6)


def test_merge_of_other_experts_is_refused(parts):
    built = Builder(parts.pool).build(merge("concrete", ["maths"]))
    with pytest.raises(RecipeError, match="is learnt of 2 experts, and this merge is of 1: maths; give a pool"):
        built.tensor("model.norm.weight")


def test_collected_again_it_is_in_the_cache(parts, monkeypatch):
    monkeypatch.setattr(masks, "draw", None)
    again = Evidence(parts.pool, parts.setup, parts.tasks, {}, ["mask"])
    assert not again.left
    again.collect(Console(quiet=True))
