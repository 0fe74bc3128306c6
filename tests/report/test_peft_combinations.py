"""PEFT's ways to combine LoRA adapters (`add_weighted_adapter`), and the recipes that equal them, or differ and how."""

import pytest
import torch
from adapters import draw, factors, write_adapter
from pools import write_checkpoint

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.recipe import Recipe, merge
from evomerge.report.export_adapter import export_adapter

peft = pytest.importorskip("peft")
WEIGHTS = (0.7, 0.4)
WEIGHTED = {"per": ["expert"], "values": dict(zip("ab", WEIGHTS, strict=True))}


def merged_by_peft(folder, kind, weights=WEIGHTS, **options):
    net = torch.nn.ModuleDict({"q": torch.nn.Linear(6, 8, bias=False)})
    net.q.weight.data = draw(8, 6, seed=9)
    model = peft.PeftModel.from_pretrained(net, folder / "a", adapter_name="a")
    model.load_adapter(folder / "b", adapter_name="b")
    model.base_model.add_weighted_adapter(["a", "b"], list(weights), "c", combination_type=kind, **options)
    model.set_adapter("c")
    return model.base_model.merge_and_unload().q.weight.detach()


@pytest.fixture
def pool(tmp_path):
    write_checkpoint(tmp_path / "base", {"q.weight": draw(8, 6, seed=9)})
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path / name, factors("q", shape=(8, 6), seed=10 * seed), lora_alpha=2, target_modules=["q"])
    return Pool(tmp_path / "base", {name: tmp_path / name for name in "ab"})


def merged(pool, recipe):
    return Builder(pool).build(recipe).tensor("q.weight")


SUM = merge("task_arithmetic", ["a", "b"], {"weight": WEIGHTED, "lambda": 1.0})


def test_cat_is_task_arithmetic_and_stays_exact_as_an_adapter(tmp_path, pool):
    expected = merged_by_peft(tmp_path, "cat")
    torch.testing.assert_close(merged(pool, SUM), expected, rtol=0, atol=1e-5)
    assert export_adapter(SUM, pool, tmp_path / "out").total.exact == 1
    again = Pool(tmp_path / "base", {"out": tmp_path / "out"}).experts["out"]
    torch.testing.assert_close(again.tensor("q.weight"), expected, rtol=0, atol=1e-5)


def test_svd_is_task_arithmetic_cut_to_the_rank(tmp_path, pool):
    expected = merged_by_peft(tmp_path, "svd", svd_rank=2)
    export_adapter(SUM, pool, tmp_path / "out", rank=2)
    again = Pool(tmp_path / "base", {"out": tmp_path / "out"}).experts["out"]
    torch.testing.assert_close(again.tensor("q.weight"), expected, rtol=0, atol=1e-5)


def test_linear_merges_the_factors_and_has_cross_terms_that_no_recipe_has(tmp_path, pool):
    came = merged_by_peft(tmp_path, "linear") - pool.base.tensor("q.weight")
    (a, b), roots = [pool.experts[name].factors("q.weight") for name in "ab"], [weight**0.5 for weight in WEIGHTS]
    summed = merged(pool, SUM) - pool.base.tensor("q.weight")
    cross = roots[0] * roots[1] * (a.left @ b.right + b.left @ a.right)
    torch.testing.assert_close(came, summed + cross, rtol=0, atol=1e-5)
    assert cross.norm() > 0.1 * summed.norm()


def test_magnitude_prune_svd_of_full_rank_is_trim_and_sum(tmp_path, pool):
    expected = merged_by_peft(tmp_path, "magnitude_prune_svd", svd_rank=6, density=0.5)
    stages = {"edit": [{"trim": {"density": 0.5}}], "weigh": [{"weight": {"weight": WEIGHTED}}], "reduce": "sum"}
    recipe = Recipe.parse({"merge": {"inputs": ["a", "b"], "stages": stages}})
    torch.testing.assert_close(merged(pool, recipe), expected, rtol=0, atol=1e-5)


def test_ties_svd_divides_by_the_number_that_agree_and_elects_without_weights(tmp_path, pool):
    """With equal weights, of 1, both are TIES as published; others scale PEFT's result, and here the election, too."""
    expected = merged_by_peft(tmp_path, "ties_svd", weights=(1.0, 1.0), svd_rank=6, density=0.5)
    torch.testing.assert_close(merged(pool, merge("ties", ["a", "b"], {"density": 0.5})), expected, rtol=0, atol=1e-5)
    weighted = merged_by_peft(tmp_path, "ties_svd", svd_rank=6, density=0.5)
    recipe = merge("ties", ["a", "b"], {"density": 0.5, "weight": WEIGHTED})
    assert not torch.allclose(merged(pool, recipe), weighted, atol=0.01)
