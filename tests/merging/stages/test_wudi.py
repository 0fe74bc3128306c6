"""WUDI-Merging by hand, and where it is something simpler."""

import numpy as np
import pytest
import torch
from merging.vectors import merged, staged

ORTHOGONAL = [[[2.0, 0.0]], [[0.0, 3.0]]]
"""Rows in directions that have nothing in common."""


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_vectors_of_different_inputs_are_summed(solver):
    """Each output is right on the other's inputs already: the sum disturbs nothing, and the gradient is 0."""
    assert merged("wudi", ORTHOGONAL, {"solver": solver})[0] == pytest.approx([2.0, 3.0])


def test_vectors_of_the_same_inputs_are_averaged():
    """(Δ - 2)² + (Δ - 1)² is least at 1.5; the other column had no inputs."""
    assert merged("wudi", [[[2.0, 0.0]], [[1.0, 0.0]]], {"solver": "exact"})[0] == pytest.approx([1.5, 0.0])


def test_the_first_step_of_adam_has_the_length_of_its_rate():
    """From 3 towards 1.5 by 0.1; where the gradient is 0 nothing moves."""
    found = merged("wudi", [[[2.0, 0.0]], [[1.0, 0.0]]], {"steps": 1, "rate": 0.1})
    assert found[0] == pytest.approx([2.9, 0.0], abs=1e-7)


def test_no_step_is_the_sum():
    assert merged("wudi", [[[2.0, 0.0]], [[1.0, 5.0]]], {"steps": 0})[0] == [3.0, 5.0]


def interference(delta, vectors):
    return sum(float(((delta - tau) @ tau.T).square().sum() / tau.square().sum()) for tau in vectors)


def test_steps_disturb_less_and_the_minimum_least():
    rng = np.random.default_rng(0)
    vectors = [torch.tensor(rng.normal(size=(5, 4))) for _ in range(3)]
    rows = [vector.tolist() for vector in vectors]
    sums, some, more, least = (
        interference(torch.tensor(merged("wudi", rows, parameters), dtype=torch.float64), vectors)
        for parameters in ({"steps": 0}, {"rate": 0.01}, {"rate": 0.01, "steps": 3000}, {"solver": "exact"})
    )
    assert sums > some > more >= least - 1e-5
    assert more == pytest.approx(least, rel=1e-3)


def test_other_tensors_have_the_mean():
    assert merged("wudi", [[1.0, 4.0], [3.0, 0.0]]) == [2.0, 2.0]


def test_an_input_that_is_the_base_says_nothing():
    for solver in ("adam", "exact"):
        assert merged("wudi", [[[2.0, 1.0]], [[0.0, 0.0]]], {"solver": solver})[0] == pytest.approx([2.0, 1.0])


def test_it_is_an_edit_among_others():
    found = staged(ORTHOGONAL, edit=["wudi"], reduce="sum", post=[{"scale": {"lambda": 0.5}}])
    assert found[0] == pytest.approx([1.0, 1.5])
