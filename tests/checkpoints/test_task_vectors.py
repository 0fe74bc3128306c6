"""Norms of task vectors and angles between them, against torch on whole vectors."""

import numpy as np
import pytest
import torch
from pools import Models, write_checkpoint, write_pool

from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.task_vectors import measure


def flat(models, pool, wanted=lambda name: True):
    """The task vectors `(experts, elements)` in fp64, and the base's vector."""
    names = [name for name in pool.merged if wanted(name)]
    base = torch.cat([models.base[name].double().flatten() for name in names])
    experts = [torch.cat([tensors[name].double().flatten() for name in names]) for tensors in models.experts.values()]
    return torch.stack(experts) - base, base


@pytest.fixture(scope="module")
def vectors(pool):
    return measure(pool)


def test_norms_and_cosines_are_those_of_the_whole_vectors(vectors, pool, models):
    rows, base = flat(models, pool)
    np.testing.assert_allclose(vectors.norms(), (rows.norm(dim=1) / base.norm()).numpy(), rtol=1e-5)
    unit = torch.nn.functional.normalize(rows, dim=1)
    np.testing.assert_allclose(vectors.cosines(), (unit @ unit.T).numpy(), atol=1e-5)


def test_a_group_is_the_tensors_of_a_block_and_a_kind(vectors, pool, models):
    def inside(name):
        place = pool.layout.place(name)
        return place.inside and place.block == 1 and place.kind == "mlp"

    rows, base = flat(models, pool, inside)
    np.testing.assert_allclose(vectors.norms((1, "mlp")), (rows.norm(dim=1) / base.norm()).numpy(), rtol=1e-5)
    assert vectors.blocks == [*range(pool.layout.blocks), None]
    assert set(vectors.kinds) == set(pool.layout.kinds)


def test_cosines_of_a_block_are_of_all_its_kinds(vectors, pool, models):
    rows, _ = flat(models, pool, lambda name: pool.layout.place(name).inside and pool.layout.place(name).block == 0)
    unit = torch.nn.functional.normalize(rows, dim=1)
    np.testing.assert_allclose(vectors.cosines(0, everywhere=False), (unit @ unit.T).numpy(), atol=1e-5)


def test_what_equals_the_base_or_another_expert_is_named(tmp_path):
    models = Models.random(experts=2)
    write_pool(tmp_path, models)
    near = {n: t + 1e-5 * t.abs().mean() if t.is_floating_point() else t for n, t in models.experts["maths"].items()}
    for name, tensors in {"copy": models.base, "twin": models.experts["maths"], "near": near}.items():
        write_checkpoint(tmp_path / name, tensors, shards=2)
    names = ("maths", "code", "copy", "twin", "near")
    vectors = measure(Pool(tmp_path / "base", {name: tmp_path / name for name in names}))
    assert vectors.duplicates() == [
        "`copy` has the weights of the base: it adds nothing to the pool",
        "`twin` has the weights of `maths`: they count twice in a merge",
        "`near` nearly has the weights of `maths`: they count twice in a merge",
        "`near` nearly has the weights of `twin`: they count twice in a merge",
    ]
    assert np.isnan(vectors.cosines()[2, 0])


def test_experts_of_their_own_are_no_duplicates(vectors):
    assert vectors.duplicates() == []
