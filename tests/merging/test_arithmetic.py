"""Elementary functions: against float64, and the same to the bit for ever."""

import operator

import numpy as np
import pytest
import torch

from evomerge.merging.arithmetic import compared, exp, keep, log, tanh


def relative(found, expected):
    return float(((found.double() - expected).abs() / expected.abs()).max())


def test_exp_is_accurate():
    x = torch.linspace(0, 88, 1_000_001)
    assert relative(exp(x), x.double().exp()) < 2e-7
    assert exp(torch.tensor([0.0, 1e9])).tolist() == [1.0, float(exp(torch.tensor(88.0)))]


def test_tanh_is_accurate_near_zero_too():
    x = torch.cat([torch.logspace(-37, 2, 500_001), torch.linspace(1e-3, 20, 500_001)])
    assert relative(tanh(x), x.double().tanh()) < 3e-7
    assert torch.equal(tanh(-x), -tanh(x))
    assert tanh(torch.tensor([0.0, -0.0, 1e30, -torch.inf])).numpy().tobytes() == np.float32([0, -0.0, 1, -1]).tobytes()


def test_log_is_accurate_and_the_same_in_numpy():
    x = torch.logspace(-37, 38, 500_001)
    assert np.array_equal(log(x).numpy(), log(x.numpy()))
    np.testing.assert_allclose(log(x).double(), x.double().log(), rtol=3e-7, atol=6e-8)


@pytest.mark.parametrize(
    ("function", "expected"), [(exp, "3e768d3f4c09d33f54f82d402eafa041"), (tanh, "bd1ecc3d9e9aec3ed6f7423fe9bb7e3f")]
)
def test_bits_never_change(function, expected):
    """They are part of the bytes of a recipe that merges by PCB; each is within an ulp of the exact number."""
    found = function(torch.tensor([0.1, 0.5, 1.0, 3.0]))
    assert found.numpy().tobytes().hex() == expected


def test_keep_is_where_to_the_bit_with_zeros_elsewhere():
    row = torch.tensor([1.0, -2.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3.0])
    mask = torch.tensor([True, True, True, True, False, True, True, False])
    for number in (row, row[::2].repeat_interleave(2), torch.tensor(-0.3), torch.tensor(2.0, requires_grad=True)):
        expected = torch.where(mask, number, 0.0).detach().numpy().tobytes()
        assert keep(mask, number).detach().numpy().tobytes() == expected
    assert keep(mask[:0], row[:0]).shape == (0,)


def test_compared_is_torchs_comparison_also_of_numbers_with_slopes():
    numbers = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, torch.inf, torch.nan])
    for bound in (torch.tensor(0.0), torch.tensor(1.0), numbers.flip(0)):
        for how in (operator.lt, operator.le, operator.ge):
            assert torch.equal(compared(how, numbers, bound), how(numbers, bound))
            assert torch.equal(compared(how, numbers.clone().requires_grad_(), bound), how(numbers, bound))
