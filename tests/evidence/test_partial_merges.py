"""Gram matrices after merged blocks, against plain torch, and where RegMean++ is something simpler."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from subjects import jsonl
from tiny_models import tiny_model
from torch import nn

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import PoolError, RecipeError
from evomerge.evidence import Evidence, partial_merges
from evomerge.models import LiveModel
from evomerge.parts import open_parts
from evomerge.recipe import merge
from evomerge.settings import StudySettings

TEXTS = {
    "maths": ["2 + 40 = 42", "x = y - 3 so y is x + 3", "one and one are two", "7 * 6", "sums of odd numbers"],
    "code": ["def f(x): return x", "while True: pass", "import a as b", "for i in range(9): print(i)", "x[0] = {}"],
}


def write(folder, changed=lambda name: True, **config):
    """Write a base and two experts of tiny Llamas, and return the settings of a study of them and their texts."""
    base = tiny_model(folder / "base", "llama", **config)
    stored = load_file(base / "model.safetensors")
    for seed, name in enumerate(TEXTS):
        generator = torch.Generator().manual_seed(seed)
        expert = {
            key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) if changed(key) else tensor
            for key, tensor in stored.items()
        }
        tiny_model(folder / name, "llama", **config)
        save_file(expert, folder / name / "model.safetensors", {"format": "pt"})
    tasks = {
        name: {
            "kind": "language_modelling",
            "text": "text",
            "search": jsonl(folder / f"{name}.search.jsonl", [{"text": text} for text in texts]),
            "report": jsonl(folder / f"{name}.report.jsonl", [{"text": f"unseen {name}"}]),
        }
        for name, texts in TEXTS.items()
    }
    return {
        "pool": {"base": str(base), "experts": {name: str(folder / name) for name in TEXTS}},
        "tasks": tasks,
        "space": {
            "recipe": {"merge": {"method": "linear", "inputs": "experts", "parameters": {"weight": {"float": [0, 1]}}}}
        },
    }


def collected(settings, kinds=("gram", "gram_merged")):
    """Return a study's parts with its statistics collected."""
    parts = open_parts(StudySettings.parse(settings, "study", Path()))
    evidence = Evidence(parts.pool, parts.setup, parts.tasks, {}, kinds)
    evidence.collect(Console(quiet=True))
    assert not evidence.left
    return parts.pool


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return write(tmp_path_factory.mktemp("two"))


def inputs_of(live, task, state, layer):
    """Return the inputs of each linear module of a layer, float64, example by example, with the weights in `state`."""
    live.module.load_state_dict(state)
    seen, hooks = {}, []
    for name, module in live.module.model.layers[layer].named_modules():
        if isinstance(module, nn.Linear):

            def keep(_, args, name=name):
                seen.setdefault(f"model.layers.{layer}.{name}.weight", []).append(args[0].flatten(0, -2).double())

            hooks.append(module.register_forward_pre_hook(keep))
    for example in range(task.size("search")):
        task.score(live, "search", [example])
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


def solved(matrices, grams, alpha=0.95):
    scaled = [alpha * gram + (1 - alpha) * torch.diag(gram.diagonal()) for gram in grams]
    right = sum(gram @ matrix.double().T for gram, matrix in zip(scaled, matrices, strict=True))
    return torch.linalg.lstsq(sum(scaled), right).solution.T.float()


def test_blocks_are_merged_one_after_the_other_as_by_hooks_on_modules(settings):
    found = collected(settings, ["gram_merged"]).evidence
    parts = open_parts(StudySettings.parse(settings, "study", Path()))
    live = LiveModel(settings["pool"]["base"])
    own = {name: load_file(Path(path) / "model.safetensors") for name, path in settings["pool"]["experts"].items()}
    states = {name: dict(state) for name, state in own.items()}

    def merge_into_all(name, tensor):
        for state in states.values():
            state[name] = tensor

    merge_into_all("model.embed_tokens.weight", sum(state["model.embed_tokens.weight"] for state in own.values()) / 2)
    for layer in range(2):
        seen = {name: inputs_of(live, parts.tasks[name], states[name], layer) for name in TEXTS}
        for key in [key for key in own["maths"] if f"layers.{layer}." in key]:
            matrices = [state[key] for state in own.values()]
            if key not in seen["maths"]:
                merge_into_all(key, sum(matrices) / 2)
                continue
            grams = [rows[key].T @ rows[key] / len(rows[key]) for rows in seen.values()]
            for name, gram in zip(TEXTS, grams, strict=True):
                tables = found.tables("gram_merged", name, key)
                assert int(tables["experts"]) == 2
                np.testing.assert_allclose(tables["gram"], gram, rtol=1e-4, atol=1e-4 * float(gram.abs().max()))
            merge_into_all(key, solved(matrices, grams))


def test_of_one_block_it_is_regmean(tmp_path):
    """The block alone differs, so that nothing before it is merged."""
    pool = collected(write(tmp_path, lambda name: "layers" in name, num_hidden_layers=1))
    one, other = (
        Builder(pool).build(merge("regmean", list(TEXTS), {"alpha": 0.95, "grams": grams}))
        for grams in ("experts", "merged")
    )
    names = [name for name in pool.merged if "layers" in name]
    assert len(names) == 9
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in names)


def test_of_two_blocks_it_is_not(settings):
    pool = collected(settings)
    one, other = (
        Builder(pool).build(merge("regmean", list(TEXTS), {"alpha": 0.95, "grams": grams}))
        for grams in ("experts", "merged")
    )
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.allclose(one.tensor(name), other.tensor(name), atol=1e-4)


def test_of_one_expert_many_times_it_is_that_expert(settings):
    same = dict.fromkeys(TEXTS, settings["pool"]["experts"]["maths"])
    pool = collected({**settings, "pool": {**settings["pool"], "experts": same}}, ["gram_merged"])
    found = Builder(pool).build(merge("regmean_plus", list(TEXTS)))
    for name in pool.merged:
        torch.testing.assert_close(found.tensor(name), pool.experts["maths"].tensor(name), rtol=1e-4, atol=1e-5)


def test_partial_merges_of_other_experts_are_refused(settings):
    pool = collected(settings, ["gram_merged"])
    with pytest.raises(
        RecipeError, match="is of merges of 2 experts, and this one is of 1: maths; give a pool of these"
    ):
        Builder(pool).build(merge("regmean_plus", ["maths"])).tensor("model.layers.0.mlp.up_proj.weight")


def test_what_one_expert_shows_is_part_of_the_others_key(settings):
    parts = open_parts(StudySettings.parse(settings, "study", Path()))
    tasks = {**parts.tasks, "code": parts.tasks["maths"]}
    setup = copy.deepcopy(parts.setup)
    setup.tasks["code"] = setup.tasks["maths"]
    keys = [
        Evidence(parts.pool, *given, {}, ["gram", "gram_merged"]).digests
        for given in ((parts.setup, parts.tasks), (setup, tasks))
    ]
    assert keys[0]["gram"]["maths"] == keys[1]["gram"]["maths"]
    assert keys[0]["gram_merged"]["maths"] != keys[1]["gram_merged"]["maths"]


def test_it_costs_a_pass_for_each_block_and_two(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = open_parts(StudySettings.parse(settings, "study", Path()))
    assert sorted(set(partial_merges.turns(parts.pool).values())) == [0, 1, 2, 3]
    evidence = Evidence(parts.pool, parts.setup, parts.tasks, {}, ["gram_merged"])
    assert evidence.price()["gram_merged"].nbytes > 0
    runs = []
    score = type(parts.tasks["maths"]).score
    monkeypatch.setattr(type(parts.tasks["maths"]), "score", lambda *given: runs.append(1) or score(*given))
    Evidence(parts.pool, parts.setup, parts.tasks, {}, ["gram"]).collect(Console(quiet=True))
    once = len(runs)
    evidence.collect(Console(quiet=True))
    assert len(runs) == (1 + 4) * once > 0


def test_a_collection_that_was_stopped_begins_again(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    parts = open_parts(StudySettings.parse(settings, "study", Path()))
    evidence = Evidence(parts.pool, parts.setup, parts.tasks, {}, ["gram_merged"])
    with monkeypatch.context() as patch:
        patch.setattr(partial_merges.store, "finish", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evidence.collect(Console(quiet=True))
    assert len(evidence.left) == 2
    evidence.collect(Console(quiet=True))
    assert not evidence.left


def test_several_stacks_are_refused(tmp_path):
    config = {"num_hidden_layers": 2}
    base = tiny_model(tmp_path / "base", "llama", **config)
    stored = load_file(base / "model.safetensors")
    tower = {f"vision.{name}": tensor.clone() for name, tensor in stored.items() if "layers" in name}
    save_file({**stored, **tower}, base / "model.safetensors", {"format": "pt"})
    pool = Pool(base, {"maths": base})
    with pytest.raises(PoolError, match="models with one stack of blocks, got 2"):
        partial_merges.turns(pool)
