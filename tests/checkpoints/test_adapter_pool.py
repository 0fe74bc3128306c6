"""Adapters as experts of a pool: checked, fingerprinted, merged, saved and run as complete models."""

import hashlib

import numpy as np
import pytest
import torch
import transformers
from adapters import UP, Q, base_tensors, draw, exact, factors, same_bytes, write_adapter
from pools import write_checkpoint
from safetensors.torch import load_file
from tiny_models import tiny_model

from evomerge import strict_yaml
from evomerge.build import Builder
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.errors import CheckpointError
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, expert, merge
from evomerge.report.export import export
from evomerge.testing import merge_tensors

A, B = (f"base_model.model.{Q}.lora_{x}.weight" for x in "AB")


def adapter_pool(folder, tensors, base=None, **config):
    """A pool with the expert `maths`, a complete model, and `code`, an adapter."""
    base = base_tensors() if base is None else base
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "maths", {k: v + 0.5 if v.is_floating_point() else v for k, v in base.items()})
    write_adapter(folder / "code", tensors, **config)
    return Pool(folder / "base", {"maths": folder / "maths", "code": folder / "code"})


def test_adapter_is_no_base(tmp_path):
    write_adapter(tmp_path / "lora", factors(Q))
    with pytest.raises(
        CheckpointError, match=r"a LoRA adapter, not a whole model; .* give it as an expert of that base"
    ):
        Pool(tmp_path / "lora", {"maths": tmp_path / "lora"})


@pytest.mark.parametrize("key", [A, B])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(tmp_path, key, value):
    tensors = factors(Q)
    tensors[key][1, 1] = value
    with pytest.raises(
        CheckpointError, match=rf"code: tensor `{Q}.weight` holds \d+ elements that are NaN or infinite"
    ):
        adapter_pool(tmp_path, tensors)


def test_digest_is_of_the_factors_the_scale_and_the_base(tmp_path):
    first = adapter_pool(tmp_path / "1", factors(Q)).digests
    assert adapter_pool(tmp_path / "2", factors(Q)).digests == first
    assert adapter_pool(tmp_path / "3", factors(Q, seed=7)).digests["code"] != first["code"]
    assert adapter_pool(tmp_path / "4", factors(Q), lora_alpha=4).digests["code"] != first["code"]
    other = adapter_pool(tmp_path / "5", factors(Q), base_tensors(torch.bfloat16)).digests
    assert other["code"] not in (first["code"], other["base"])


def test_weights_are_hashed_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests = adapter_pool(tmp_path, factors(Q)).digests
    monkeypatch.setattr(hashlib, "file_digest", None)  # integers, which are few, are compared at each opening
    assert Pool(tmp_path / "base", {"maths": tmp_path / "maths", "code": tmp_path / "code"}).digests == digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear"])
def test_merge_equals_that_of_complete_models_in_memory_and_on_disk(tmp_path, method, dtype):
    base = base_tensors(dtype)
    tensors = factors(Q) | factors(UP, seed=60) | {"head.weight": draw(3, 6, seed=9, dtype=dtype)}
    pool = adapter_pool(tmp_path, tensors, base)
    recipe = merge(method, ["maths", "code"], {"weight": 0.3})
    floats = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    code = floats | {
        f"{module}.weight": torch.from_numpy(exact(base[f"{module}.weight"], tensors, module, 1.5)).float()
        for module in (Q, UP)
    }
    code["head.weight"] = tensors["head.weight"]
    expected = merge_tensors(recipe, floats, [{name: tensor + 0.5 for name, tensor in floats.items()}, code])
    merged = Builder(pool).build(recipe)
    save(merged, tmp_path / "merged", like=tmp_path / "base")
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in expected.items():
        assert same_bytes(saved[name], merged.tensor(name))
        assert saved[name].dtype == dtype
        assert torch.allclose(saved[name], tensor, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=2e-6), name
    assert torch.equal(saved["steps"], base["steps"])


def test_export_can_be_rebuilt_from_its_recipe(tmp_path):
    pool = adapter_pool(tmp_path, factors(Q))
    export(merge("task_arithmetic", ["maths", "code"]), pool, tmp_path / "out")
    file = strict_yaml.read(tmp_path / "out" / "recipe.yaml")
    again = Pool(file["pool"]["base"], file["pool"]["experts"])
    assert again.digests == pool.digests
    rebuilt = Builder(again).build(Recipe.parse(file["recipe"], experts=list(again.experts)))
    exported = Folder(tmp_path / "out")
    assert all(same_bytes(rebuilt.tensor(name), exported.tensor(name)) for name in exported.info)


def test_adapter_of_another_model_of_the_hub_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base = tmp_path / "models--author--other" / "snapshots" / ("1a" * 20)
    write_checkpoint(base, base_tensors())
    code = write_adapter(tmp_path / "code", factors(Q))
    same = write_adapter(tmp_path / "same", factors(Q, seed=3), base_model_name_or_path="author/other")
    local = write_adapter(tmp_path / "local", factors(Q, seed=5), base_model_name_or_path="/home/me/other")
    notes = Pool(base, {"code": code, "same": same, "local": local}).notes
    assert notes == ["the adapter `code` says that it was trained on author/model, and the base is author/other"]


def test_adapter_of_another_model_that_is_here_is_noted(tmp_path):
    base = write_checkpoint(tmp_path / "base", base_tensors())
    other = write_checkpoint(tmp_path / "other", {k: v + 1 for k, v in base_tensors().items()})
    copied = write_checkpoint(tmp_path / "copied", base_tensors())
    adapters = {
        path.name: write_adapter(tmp_path / f"of {path.name}", factors(Q, seed=i), base_model_name_or_path=str(path))
        for i, path in enumerate((base, other, copied, tmp_path / "gone"))
    }
    (note,) = Pool(base, adapters | {"base_": adapters.pop("base")}).notes
    assert note.startswith(
        f"the adapter `other` says that it was trained on {other}, whose weights are not those of the base"
    )


def test_factors_merged_separately_are_another_model(tmp_path):
    """Halves of two adapters: ½(B₁A₁ + B₂A₂), not ½(B₁ + B₂)·½(A₁ + A₂), which has cross terms."""
    base = {"q.weight": draw(8, 6)}
    write_checkpoint(tmp_path / "base", base)
    one, two = (factors("q", shape=(8, 6), seed=seed) for seed in (10, 20))
    experts = {name: write_adapter(tmp_path / name, t, lora_alpha=2) for name, t in (("one", one), ("two", two))}
    recipe = merge("task_arithmetic", ["one", "two"], {"lambda": 0.5})
    merged = Builder(Pool(tmp_path / "base", experts)).build(recipe).tensor("q.weight")
    (a1, b1), (a2, b2) = one.values(), two.values()
    assert torch.allclose(merged, base["q.weight"] + 0.5 * (b1 @ a1 + b2 @ a2), atol=2e-6)
    assert not torch.allclose(merged, base["q.weight"] + 0.25 * (b1 + b2) @ (a1 + a2), atol=0.1)


def test_adapter_runs_as_a_model_and_is_saved_as_one(tmp_path):
    tiny_model(tmp_path / "base", "llama")
    shapes = Folder(tmp_path / "base").info
    modules = [name.removesuffix(".weight") for name in shapes if name.endswith(("q_proj.weight", "down_proj.weight"))]
    tensors = {}
    for i, module in enumerate(modules):
        tensors |= factors(module, shape=shapes[f"{module}.weight"].shape, seed=2 * i)
    pool = Pool(tmp_path / "base", {"maths": write_adapter(tmp_path / "maths", tensors)})
    recipe = expert("maths")
    live = LiveModel(tmp_path / "base")
    live.refit(Builder(pool).build(recipe))
    save(Builder(pool).build(recipe), tmp_path / "saved", like=tmp_path / "base")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    for name, tensor in live.module.state_dict().items():
        assert torch.equal(tensor, loaded[name])
    for module in modules:
        expected = exact(pool.base.tensor(f"{module}.weight"), tensors, module, 1.5)
        np.testing.assert_allclose(loaded[f"{module}.weight"], expected, rtol=0, atol=5e-6)


def test_a_search_computes_each_product_once(tmp_path, monkeypatch):
    """Later candidates read the products of the first; a single merge keeps nothing."""
    pool = adapter_pool(tmp_path, factors("q", shape=(8, 6)), {"q.weight": draw(8, 6)})
    computed = []
    tensor = Adapter.tensor
    monkeypatch.setattr(Adapter, "tensor", lambda self, name: computed.append(name) or tensor(self, name))
    tensors = {}
    for search in (True, False):
        builder = Builder(pool, search=search)
        tensors[search] = [
            builder.build(merge("task_arithmetic", list(pool.experts), {"lambda": scale})).tensor("q.weight")
            for scale in (0.5, 0.7, 0.9)
        ]
        assert computed == ["q.weight"] * (1 if search else 3)
        computed.clear()
    assert all(same_bytes(*pair) for pair in zip(*tensors.values(), strict=True))
