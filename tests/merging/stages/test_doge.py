"""DOGE by hand, and what its projection and its norms promise."""

import pytest
import torch
from merging.vectors import NAME, merged, staged

from evomerge.merging.stages import doge
from evomerge.recipe import merge
from evomerge.testing import merge_tensors

WHOLE = {"density": 1.0, "eta": 0.6}
ORTHOGONAL = [[[2.0, 0.0]], [[0.0, 3.0]]]


def test_without_steps_each_input_has_the_norm_eta():
    assert merged("doge", ORTHOGONAL, {**WHOLE, "steps": 0})[0] == pytest.approx([0.6, 0.6])
    assert merged("doge", [[[3.0, 4.0]]], {**WHOLE, "steps": 0, "lambda": 2.0})[0] == pytest.approx([0.72, 0.96])


def test_a_step_by_hand():
    """λ = (0.3, 0.2), S = (0.6, 0.6): τ₁·(τ₁ - S) = 2.8, τ₂·(τ₂ - S) = 7.2, so that Δ rises by the rate in both columns.

    A matrix of one row has no shared subspace: its rank by 6 is 0. Where τₖ is 0 nothing is added to it.
    """
    found = merged("doge", ORTHOGONAL, {**WHOLE, "steps": 1, "rate": 0.1})
    assert found[0] == pytest.approx([0.3 * 2.1, 0.2 * 3.1])


def test_elements_that_are_trimmed_stay_zero():
    found = merged("doge", [[[2.0, 1.0, 0.5, 0.1]]], {"density": 0.5, "eta": 1.0, "steps": 3, "rate": 0.1})
    assert found[0][0] > 0 < found[0][1]
    assert found[0][2:] == [0.0, 0.0]


def test_an_input_that_is_the_base_says_nothing():
    one, with_base = (merged("doge", rows, WHOLE) for rows in ([[[2.0, 1.0]]], [[[2.0, 1.0]], [[0.0, 0.0]]]))
    assert one[0] == pytest.approx(with_base[0])
    assert merged("doge", [[[0.0, 0.0]]], WHOLE) == [[0.0, 0.0]]


def test_vectors_and_embeddings_stay_the_base():
    assert merged("doge", [[1.0, 4.0], [3.0, 0.0]]) == [0.0, 0.0]
    name, base = "model.embed_tokens.weight", torch.arange(6.0).view(3, 2)
    tensors = {name: base, NAME: base.clone()}
    inputs = [{key: tensor + 1 for key, tensor in tensors.items()}]
    found = merge_tensors(merge("doge", ["a"], {"steps": 2}), tensors, inputs)
    assert torch.equal(found[name], base)
    assert not torch.equal(found[NAME], base)


def loss(vectors, delta, eta):
    scales = [eta / vector.norm() for vector in vectors]
    merged_so_far = sum(scale * (vector + delta) for scale, vector in zip(scales, vectors, strict=True))
    return float(sum((vector * (vector - merged_so_far)).sum(1).square().sum() for vector in vectors))


@pytest.mark.parametrize("project", ["gradient", "update"])
def test_steps_lower_the_loss_and_updates_keep_out_of_the_shared_subspace(project):
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(12, 9, generator=generator, dtype=torch.float64) for _ in range(3)]
    values = {"eta": 0.5, "steps": 400, "rate": 1e-2, "divisor": 3.0, "project": project}
    delta = doge._descended(vectors, values)
    basis = doge._shared(vectors, 3.0)
    assert basis.shape == (12, 3)
    assert loss(vectors, delta, 0.5) < 0.9 * loss(vectors, torch.zeros(12, 9), 0.5)
    inside = float((basis.T @ delta).norm() / delta.norm())
    assert inside < 1e-12 if project == "update" else 1e-3 < inside < 0.5


def test_rounding_noise_is_no_direction_of_an_input():
    vectors = [torch.ones(6, 6, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)]
    assert doge._shared(vectors, 1.0).shape == (6, 1)
    assert doge._shared([torch.zeros(6, 6, dtype=torch.float64)], 1.0).shape == (6, 0)


def test_its_stages_go_into_other_compositions():
    found = staged(ORTHOGONAL, edit=[{"doge": {"steps": 0}}], weigh=["elect", {"unit": {"eta": 0.6}}], reduce="sum")
    assert found[0] == pytest.approx([0.6, 0.6])
