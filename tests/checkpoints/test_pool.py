"""Pools: what cannot be merged is refused at once, naming both sides."""

import pytest
import torch
from pools import CONFIG, Models, write_checkpoint, write_pool

from evomerge import files
from evomerge.checkpoints.pool import Pool
from evomerge.errors import CheckpointError, PoolError

BASE = {
    "embed.weight": torch.arange(6.0).reshape(3, 2),
    "layers.0.attn.weight": torch.ones(2, 2),
    "layers.1.attn.weight": torch.ones(2, 2),
    "lm_head.weight": torch.arange(6.0).reshape(3, 2),
    "steps": torch.tensor(3),
}


def opened(folder, expert, *, base=BASE, base_config=CONFIG, config=CONFIG):
    """Open the pool of `base` and one expert."""
    write_checkpoint(folder / "base", base, base_config)
    write_checkpoint(folder / "maths", expert, config)
    return Pool(folder / "base", {"maths": folder / "maths"})


def changed(name, tensor):
    return {**{k: v + 1 if v.is_floating_point() else v for k, v in BASE.items()}, name: tensor}


def test_merged_tensors_are_the_floating_ones_and_each_tied_pair_once(pool, models):
    assert set(pool.merged) == {name for name, tensor in models.base.items() if tensor.is_floating_point()}
    assert pool.parameters == sum(t.numel() for t in models.base.values() if t.is_floating_point())
    assert pool.nbytes == sum(t.nbytes for t in models.base.values())
    assert pool.layout.blocks == 4
    assert pool.aliases == {}
    assert pool.notes == []
    assert set(pool.digests) == {"base", "maths", "code", "prose"}
    assert len(set(pool.digests.values())) == 4


def test_another_shape_names_the_tensor_and_both_shapes(tmp_path):
    with pytest.raises(
        PoolError,
        match=r"expert `maths` \(.*maths\) differs from the base \(.*base\) in tensor `embed.weight`: shape \[5, 2\] in the expert, shape \[3, 2\] in the base",
    ):
        opened(tmp_path, changed("embed.weight", torch.zeros(5, 2)))


def test_another_vocabulary_is_named_with_the_tensor(tmp_path):
    expert = {**BASE, "embed.weight": torch.zeros(5, 2), "lm_head.weight": torch.zeros(5, 2)}
    with pytest.raises(
        PoolError,
        match=r"`embed.weight`: shape .*; 1 more tensors; vocab_size: 13 in the expert, 11 in the base. Expected fine-tunes of the same base",
    ):
        opened(tmp_path, expert, config={**CONFIG, "vocab_size": 13})


def test_another_architecture_is_refused_even_with_equal_tensors(tmp_path):
    with pytest.raises(PoolError, match="model_type: 'other' in the expert, 'tiny' in the base"):
        opened(tmp_path, BASE, config={**CONFIG, "model_type": "other"})


def test_missing_and_extra_tensors_are_named(tmp_path):
    with pytest.raises(PoolError, match=r"`layers.1.attn.weight`: missing in the expert, shape \[2, 2\] in the base"):
        opened(tmp_path / "one", {k: v for k, v in BASE.items() if k != "layers.1.attn.weight"})
    with pytest.raises(PoolError, match=r"`layers.2.attn.weight`: shape \[2, 2\] in the expert, missing in the base"):
        opened(tmp_path / "two", changed("layers.2.attn.weight", torch.ones(2, 2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value, dtype):
    bad = torch.ones(2, 2, dtype=dtype)
    bad[1] = value
    with pytest.raises(
        CheckpointError, match=r"maths: tensor `layers.0.attn.weight` holds 2 elements that are NaN or infinite, of 4"
    ):
        opened(tmp_path, changed("layers.0.attn.weight", bad))


def test_quantised_weights_are_refused_but_not_masks_and_counters(tmp_path):
    with pytest.raises(PoolError, match=r"tensor `q.weight` is quantised \(torch.uint8\); de-quantise the model"):
        opened(
            tmp_path / "one",
            {**BASE, "q.weight": torch.zeros(2, 2, dtype=torch.uint8)},
            base={**BASE, "q.weight": torch.zeros(2, 2, dtype=torch.uint8)},
        )
    mask = {**BASE, "mask": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "types": torch.zeros(3, dtype=torch.int8)}
    assert "mask" not in opened(tmp_path / "two", mask, base=mask).merged


def test_integers_against_floats_are_refused(tmp_path):
    with pytest.raises(PoolError, match=r"expert `maths`: tensor `steps` is torch.float32, in the base torch.int64"):
        opened(tmp_path, changed("steps", torch.tensor(3.0)))


def test_floating_dtypes_may_differ(tmp_path):
    expert = {k: v.bfloat16() if v.is_floating_point() else v for k, v in BASE.items()}
    assert opened(tmp_path, expert).notes == []


def test_copies_are_noted(tmp_path):
    assert opened(tmp_path, BASE).notes == ["`maths` has exactly the weights of `base`: it adds nothing to the pool"]


def test_pools_need_an_expert_and_reserve_the_name_base(tmp_path):
    write_checkpoint(tmp_path / "base", BASE)
    with pytest.raises(PoolError, match="has no experts; expected at least one"):
        Pool(tmp_path / "base", {})
    with pytest.raises(PoolError, match="an expert named `base`"):
        Pool(tmp_path / "base", {"base": tmp_path / "base"})
    with pytest.raises(CheckpointError, match="no such folder"):
        Pool(tmp_path / "base", {"maths": tmp_path / "none"})


@pytest.mark.parametrize(
    ("config", "tied"),
    [({"tie_word_embeddings": True}, True), ({}, True), ({"tie_word_embeddings": False}, False)],
)
def test_head_that_equals_the_embedding_everywhere_is_merged_once(tmp_path, config, tied):
    expert = {k: v + 1 if v.is_floating_point() else v for k, v in BASE.items()}
    pool = opened(tmp_path, expert, config={**CONFIG, **config}, base_config={**CONFIG, **config})
    assert pool.aliases == ({"lm_head.weight": "embed.weight"} if tied else {})
    assert ("lm_head.weight" in pool.merged) != tied


def test_head_that_one_expert_has_untied_is_merged_for_itself(tmp_path):
    pool = opened(
        tmp_path,
        changed("lm_head.weight", torch.zeros(3, 2)),
        config={**CONFIG, "tie_word_embeddings": True},
        base_config={**CONFIG, "tie_word_embeddings": True},
    )
    assert pool.aliases == {}


def test_sharding_and_order_do_not_change_a_pool(tmp_path, pool, models):
    write_pool(tmp_path, models, shards=3)
    sharded = Pool(tmp_path / "base", {name: tmp_path / name for name in models.experts})
    assert sharded.merged == pool.merged
    assert len(sharded.base.files) == 3


def test_contents_are_read_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests = opened(tmp_path, changed("steps", torch.tensor(3))).digests

    def unread(*arguments):
        raise AssertionError

    monkeypatch.setattr("evomerge.checkpoints.fingerprints.all_finite", unread)
    monkeypatch.setattr("hashlib.file_digest", unread)
    again = Pool(tmp_path / "base", {"maths": tmp_path / "maths"})
    assert again.digests == digests


def test_changed_weights_are_read_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = opened(tmp_path, changed("steps", torch.tensor(3)))
    digests, late = first.digests, Pool(tmp_path / "base", {"maths": tmp_path / "maths"})
    (tmp_path / "maths" / "model.safetensors").unlink()
    again = opened(tmp_path, changed("steps", torch.tensor(4)))
    assert again.digests["base"] == digests["base"]
    assert again.digests["maths"] != digests["maths"]
    with pytest.raises(CheckpointError, match="its files have changed since they were checked; start again"):
        _ = late.digests


def test_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    def fail(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "write", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(opened(tmp_path, changed("steps", torch.tensor(5))).digests["maths"]) == 64


def test_invalid_weights_are_refused_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bad = changed("layers.0.attn.weight", torch.full((2, 2), float("nan")))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="NaN"):
            opened(tmp_path, bad)


def test_models_of_the_tests_are_as_documented():
    """Zeros of both signs, tensors of no dimension, of one element and of none, longer than a block, and buffers."""
    tensors = Models.random().base.values()
    assert {t.dim() for t in tensors} >= {0, 1, 2}
    assert {0, 1} < {t.numel() for t in tensors}
    assert max(t.numel() for t in tensors) > 1 << 16
    assert any((t.view(torch.int32) == -(2**31)).any() for t in tensors if t.dtype == torch.float32 and t.dim() == 2)


def test_stack_whose_scales_are_not_in_its_weights_is_refused(tmp_path):
    write_pool(tmp_path, Models.random(1))
    (tmp_path / "maths" / "evomerge_stack.json").write_text('{"scales": [1, 0.5, 1, 1]}')
    with pytest.raises(PoolError, match="a stack with scales that are not in its weights"):
        Pool(tmp_path / "base", {"maths": tmp_path / "maths"})


def test_heads_can_only_stay_outside_where_transformers_knows_the_backbone(tmp_path):
    for name, classes in (("base", 2), ("maths", 3)):
        write_checkpoint(tmp_path / name, {**BASE, "classifier.weight": torch.zeros(classes, 2)})
    with pytest.raises(PoolError, match=r"tensor `classifier\.weight`: shape \[3, 2\] in the expert"):
        Pool(tmp_path / "base", {"maths": tmp_path / "maths"})
    with pytest.raises(PoolError, match=r"`heads: own` needs an architecture of transformers"):
        Pool(tmp_path / "base", {"maths": tmp_path / "maths"}, heads="own")
