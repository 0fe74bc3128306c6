"""Shuffled experts: the values of each task vector in another order, the same in every process."""

import pytest
import torch
from pools import Models, write_pool

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.recipe import expert, merge


def opened(folder, models, seed=0):
    return Pool(folder / "base", {name: folder / name for name in models.experts}, shuffled=seed)


def change(pool, models, label, name):
    return pool.experts[label].tensor(name).double() - models.base[name].double()


def test_a_task_vector_keeps_its_values_tensor_by_tensor_and_loses_its_order(pool_folder, models):
    pool = opened(pool_folder, models)
    for label, tensors in models.experts.items():
        for name in pool.merged:
            real = tensors[name].double() - models.base[name].double()
            sham = change(pool, models, label, name)
            assert sham.shape == real.shape
            torch.testing.assert_close(sham.flatten().sort().values, real.flatten().sort().values, rtol=0, atol=1e-6)
            assert float(sham.norm()) == pytest.approx(float(real.norm()), rel=1e-5)
            assert real.numel() < 10 or not torch.allclose(sham, real, atol=1e-4)


def test_what_is_not_merged_is_the_experts_own(pool_folder, models):
    pool = opened(pool_folder, models)
    others = [name for name in pool.base.info if name not in pool.merged]
    assert others
    for name in others:
        assert torch.equal(pool.experts["maths"].tensor(name), models.experts["maths"][name])


def test_the_order_depends_on_seed_expert_and_tensor_alone(pool_folder, models, tmp_path):
    pool, again, other = (opened(pool_folder, models, seed) for seed in (3, 3, 4))
    name = max(pool.merged, key=lambda name: pool.merged[name].numel)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(pool.experts["maths"].tensor(name), again.experts["maths"].tensor(name))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(pool.experts["maths"].tensor(name), other.experts["maths"].tensor(name))
    twins = Models(models.base, dict.fromkeys(("maths", "code"), models.experts["maths"]))
    same = opened(write_pool(tmp_path, twins), twins, 3)
    assert torch.equal(same.experts["maths"].tensor(name), pool.experts["maths"].tensor(name))
    assert not torch.equal(same.experts["maths"].tensor(name), same.experts["code"].tensor(name))


def test_a_merge_of_16_bit_models_is_rounded_once(tmp_path):
    models = Models.random(experts=1, dtype=torch.bfloat16)
    pool = opened(write_pool(tmp_path, models), models)
    recipe = merge("task_arithmetic", ["maths"], {"lambda": 0.5})
    merged = Builder(pool).build(recipe)
    for name in pool.merged:
        sham = pool.experts["maths"].tensor(name)
        assert (sham.dtype, merged.tensor(name).dtype) == (torch.float32, torch.bfloat16)
        base = models.base[name].float()
        torch.testing.assert_close(
            merged.tensor(name), (base + 0.5 * (sham - base)).to(torch.bfloat16), rtol=0.01, atol=0
        )


def test_a_search_merges_the_same_bytes_as_one_merge(pool_folder, models):
    recipe = merge("ties", list(models.experts), {"density": 0.4})
    first, second = (Builder(opened(pool_folder, models), search=search).build(recipe) for search in (False, True))
    for name in first.info:
        assert torch.equal(first.tensor(name), second.tensor(name))


def test_tied_tensors_are_shuffled_alike(tmp_path):
    torch.manual_seed(0)

    def tied():
        rows = torch.randn(11, 7)
        return {"model.embed_tokens.weight": rows, "lm_head.weight": rows.clone(), "model.norm.weight": torch.randn(7)}

    models = Models(tied(), {"maths": tied(), "code": tied()})
    pool = opened(write_pool(tmp_path, models), models)
    assert pool.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    for label in models.experts:
        ends = [pool.experts[label].tensor(name) for name in ("lm_head.weight", "model.embed_tokens.weight")]
        assert torch.equal(*ends)
        assert not torch.allclose(ends[0], models.experts[label]["lm_head.weight"])


def test_digests_tell_shuffled_experts_from_real_ones_and_by_seed(pool, pool_folder, models):
    one, other = (opened(pool_folder, models, seed).digests for seed in (0, 1))
    assert one["base"] == other["base"] == pool.digests["base"]
    assert len({digests["maths"] for digests in (pool.digests, one, other)}) == 3
    assert len({*one.values()}) == 1 + len(models.experts)


def test_an_expert_by_itself_is_the_shuffled_one(pool_folder, models):
    pool = opened(pool_folder, models)
    assert Builder(pool).build(expert("maths")) is pool.experts["maths"]
