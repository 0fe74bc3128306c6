"""Adam against torch's, in and at the edge of the box; slopes in unit coordinates against differences."""

import numpy as np
import torch

from evomerge.search.slopes.ascent import Adam, to_unit_slope
from evomerge.space import Box


def test_adam_takes_torchs_steps():
    slopes = np.random.default_rng(0).standard_normal((8, 5))
    ascent = Adam(np.full(5, 0.5), 0.01, (0.9, 0.98))
    reference = torch.full((5,), 0.5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([reference], lr=0.01, betas=(0.9, 0.98), eps=0, maximize=True)
    for slope in slopes:
        reference.grad = torch.tensor(slope)
        optimiser.step()
        np.testing.assert_allclose(ascent.step(slope), reference.detach().numpy(), rtol=0, atol=1e-12)


def test_adam_stays_in_the_cube_and_leaves_its_faces_again():
    ascent = Adam(np.array([0.9, 0.1]), 0.2, (0.0, 0.9))
    assert ascent.step(np.array([1.0, -1.0])).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(ascent.step(np.array([-1.0, 1.0])), [0.8, 0.2])


def test_gene_without_slope_stays():
    ascent = Adam(np.array([0.3, 0.3]), 0.1)
    assert ascent.step(np.array([0.0, 2.0])).tolist() == [0.3, 0.4]


def test_rate_may_differ_by_gene():
    np.testing.assert_allclose(Adam(np.zeros(2), np.array([0.1, 0.2])).step(np.ones(2)), [0.1, 0.2])


def test_failed_step_is_repeated_at_half_its_length_and_later_steps_grow_back():
    slope = np.array([1.0, -1.0])
    ascent = Adam(np.full(2, 0.5), 0.2, (0.0, 0.9))
    assert ascent.back().tolist() == [0.5, 0.5]
    np.testing.assert_allclose(ascent.step(slope), [0.7, 0.3])
    np.testing.assert_allclose(ascent.back(), [0.6, 0.4])
    np.testing.assert_allclose(ascent.back(), [0.55, 0.45])
    np.testing.assert_allclose(ascent.step(slope), [0.65, 0.35])
    np.testing.assert_allclose(ascent.step(slope), [0.85, 0.15])


def test_unit_slopes_are_those_of_linear_and_logarithmic_genes():
    space = Box({"x": (-5, 5), "rate": {"float": [1e-5, 1], "log": True}, "share": (0.2, 0.9)})
    unit = np.array([0.2, 0.7, 0.4])
    genome = space.from_unit(unit)
    slope = np.array([2.0, -3.0, 0.5])
    differences = [
        (space.from_unit(unit + 1e-6 * e) - space.from_unit(unit - 1e-6 * e)) @ slope / 2e-6 for e in np.eye(3)
    ]
    np.testing.assert_allclose(to_unit_slope(space, genome, slope), differences, rtol=1e-6)
