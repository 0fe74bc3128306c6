"""What is done to the merged task vector: the papers' numbers."""

import numpy as np
import pytest
import torch
from merging.vectors import each, merged, staged

from evomerge.merging.randomness import bits, normal, own_key
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors

TALL = [[1.0, 0.2, 0.0, -0.5], [0.1, 0.3, 1.0, 0.5], [0.9, 0.1, -0.1, 0.05]]


@pytest.mark.parametrize(
    ("threshold", "agree", "expected"),
    [
        # |τ| / |Σ - τ| = [[1, .5, 0, .909], [.0526, 1, 10, 1.111], [.818, .2, .1, ∞]]: above .4 are 2, 2, 1 and 3
        (0.4, 0, [2, 0.6, 0.9, 0.05]),
        (0.4, 1, [2, 0.6, 0.9, 0.05]),
        (0.4, 2, [2, 0.6, 0, 0.05]),
        (0.4, 3, [0, 0, 0, 0.05]),
        (0.4, 4, [0, 0, 0, 0]),
        (1, 2, [0, 0, 0, 0.05]),  # counts 0, 0, 1, 2: a ratio of 1 is not above 1
        (1, 1, [0, 0, 0.9, 0.05]),
        (0, 3, [2, 0.6, 0, 0.05]),  # a mask at 0 is where a task vector is not 0
        (1e6, 1, [0, 0, 0, 0.05]),  # and far above, where the others sum to 0
    ],
)
def test_consensus_by_hand(threshold, agree, expected):
    found = merged("consensus", TALL, {"threshold": threshold, "agree": agree, "lambda": 1})
    assert found == pytest.approx(expected, abs=5e-7)


def test_each_task_has_its_own_threshold():
    """With the others' masks empty, one input's alone decides: its own mask at .4."""
    found = merged("consensus", TALL, {"threshold": each(0.4, 1e6, 1e5), "agree": 1, "lambda": 1})
    assert found == pytest.approx([2, 0.6, 0, 0.05], abs=5e-7)


def test_frozen_elements_are_never_counted():
    assert merged("consensus", [[0.0, 1.0], [0.0, 1.0]], {"threshold": 0, "agree": 1, "lambda": 1}) == [0, 2]


BLOCKS = {f"layers.{i}.mlp.weight": torch.zeros(3) for i in range(4)}
OUTSIDE = {"embed.weight": torch.zeros(3), "final_norm.weight": torch.zeros(3)}


def lines(parameters):
    ones = {name: torch.ones(3) for name in BLOCKS | OUTSIDE}
    found = merge_tensors(merge("lines", ["a"], parameters), BLOCKS | OUTSIDE, [ones])
    return [float(tensor[0]) for tensor in found.values()]


def test_lines_by_hand():
    """From .25 by .5 over four blocks; what is outside of them, even at the end, has the first's."""
    expected = [0.25, 0.416667, 0.583333, 0.75, 0.25, 0.25]
    assert lines({"alpha": 0.25, "beta": 0.5}) == pytest.approx(expected, abs=5e-7)
    assert lines({"alpha": 0.25, "beta": 0}) == [0.25] * 6
    assert lines({"alpha": 0, "beta": 0}) == [0] * 6


def test_lines_of_one_block():
    found = merge_tensors(
        merge("lines", ["a"], {"alpha": 0.25}),
        {"layers.0.mlp.weight": torch.zeros(1)},
        [{"layers.0.mlp.weight": torch.ones(1)}],
    )
    assert found["layers.0.mlp.weight"].tolist() == [0.25]


def test_lines_alpha_is_found_by_the_l1_norms():
    """TIES' example: ‖Σ τ‖₁ = 10.1, ‖τ_TIES‖₁ = 6.5, three inputs: .517949."""
    taus = [[2.0, -1.0, 0.5, 0.1, 3.0], [-3.0, 2.0, 0.2, 0.4, 1.0], [1.0, -4.0, 0.3, -2.0, 0.6]]
    stages = {"edit": [{"trim": {"density": 0.6}}], "weigh": ["elect"], "reduce": "solve"}
    found = staged(taus, **stages, post=[{"lines": {"alpha": "auto", "beta": 0}}])
    assert found == pytest.approx([0.517949 * v for v in (0, -2.5, 0, -2, 2)], abs=2e-6)


def test_alpha_of_a_merge_that_vanishes_is_zero():
    assert merged("lines", [[1.0, 2.0], [-1.0, -2.0]]) == [0, 0]


def test_restored_length_is_the_mean_of_the_task_vectors():
    """[6, 0] and [0, 8], mean length 7, merged to [3, 4]."""
    found = staged([[6.0, 0.0], [0.0, 8.0]], weigh=[{"weight": {"weight": 0.5}}], post=["restore_norm"])
    assert found == pytest.approx([4.2, 5.6])
    assert staged([[1.0, 0.0], [-1.0, 0.0]], post=["restore_norm"]) == [0, 0]


def noisy(models, sigma=0.01, seed=0, origin="zero", base=None):
    """Return the noise that is added to one model, by tensor."""
    stages = {"origin": origin, "post": [{"noise": {"sigma": sigma}}]}
    recipe = Recipe.parse({"merge": {"inputs": ["a"], "stages": stages, "seed": seed}})
    found = merge_tensors(recipe, base or models, [models])
    return {name: (tensor - models[name]).double().numpy() for name, tensor in found.items()}


ZEROS = {"layers.0.mlp.weight": torch.zeros(1000, 70), "layers.0.norm.weight": torch.zeros(1000)}


def test_noise_is_sigma_times_the_keyed_normal_numbers():
    found = noisy(ZEROS, 0.5, seed=7)
    for name, tensor in ZEROS.items():
        index = torch.arange(tensor.numel()).sub(2**31).to(torch.int32)
        expected = 0.5 * normal(bits(index, own_key(7, "noise", name)))
        assert (found[name].ravel() == expected.double().numpy()).all()


def test_noise_depends_on_seed_tensor_and_element_alone():
    """Not on the numbers it is added to, on the origin, on the inputs' names, nor on a longer tensor's end."""
    expected = noisy(ZEROS)
    near = {name: torch.full_like(tensor, 2.0**-20) for name, tensor in ZEROS.items()}
    for found in (noisy(near), noisy(ZEROS, origin="base")):  # of frozen tensors too, whose task vectors are zero
        assert all(np.allclose(found[name], expected[name], rtol=0, atol=1e-8) for name in ZEROS)
    longer = noisy({name: torch.zeros(2000, *tensor.shape[1:]) for name, tensor in ZEROS.items()})
    assert all((longer[name][:1000] == expected[name]).all() for name in ZEROS)
    one, other = expected.values()
    assert abs(np.corrcoef(one.ravel()[:1000], other)[0, 1]) < 4 / 1000**0.5
    again = noisy(ZEROS, seed=1)["layers.0.mlp.weight"]
    assert abs(np.corrcoef(one.ravel(), again.ravel())[0, 1]) < 4 / 70_000**0.5


def test_noise_of_no_size_is_none_bit_for_bit():
    """Of all, or of some tensors: then the others alone are mutated."""
    model = {name: torch.tensor([-0.0, 0.0, 1e-30, 3.0]) for name in ("layers.0.mlp.weight", "layers.1.norm.weight")}
    stages = {"origin": "zero", "post": [{"noise": {"sigma": 0}}]}
    found = merge_tensors(Recipe.parse({"merge": {"inputs": ["a"], "stages": stages}}), model, [model])
    assert all(found[name].numpy().tobytes() == model[name].numpy().tobytes() for name in model)
    kinds = dict.fromkeys(("attention", "norm", "embedding", "head", "other"), 0)
    some = noisy(model, {"per": ["kind"], "values": {**kinds, "mlp": 0.5}})
    assert some["layers.0.mlp.weight"].all()
    assert not some["layers.1.norm.weight"].any()


def test_scales_multiply():
    assert staged([[1.0, 2.0]], post=[{"scale": {"lambda": 0.5}}, {"scale": {"lambda": -3}}]) == [-1.5, -3]
