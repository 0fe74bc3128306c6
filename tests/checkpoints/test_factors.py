"""Factors: truncated SVDs, exact and randomised, and sums of given products."""

import pytest
import torch
from adapters import draw

from evomerge.checkpoints.factors import Factors, combine, energy, truncate


def decaying(rows, columns, seed=0):
    """A matrix with singular values 1, 1/2, 1/3, ..."""
    shorter = min(rows, columns)
    u, v = (torch.linalg.qr(draw(n, shorter, seed=seed + i).double()).Q for i, n in enumerate((rows, columns)))
    return ((u / torch.arange(1, shorter + 1)) @ v.T).float()


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (600, 700), (700, 600)])
@pytest.mark.parametrize("rank", [1, 5])
def test_loss_is_that_of_the_best_approximation(shape, rank):
    matrix = decaying(*shape)
    factors = truncate(matrix, "q.weight", rank=rank)
    assert factors.left.shape == (shape[0], rank)
    assert factors.right.shape == (rank, shape[1])
    expected = sum(k**-2 for k in range(rank + 1, min(shape) + 1))  # Eckart and Young
    assert energy(matrix - factors.product) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("shape", [(9, 7), (600, 700)])
@pytest.mark.parametrize("share", [0.7, 0.9, 0.99])
def test_share_of_the_energy_is_reached_by_the_least_rank(shape, share):
    matrix = decaying(*shape)
    squares = torch.arange(1, min(shape) + 1).double().pow(-2)
    expected = int((squares.cumsum(0) < share * squares.sum()).sum()) + 1
    factors = truncate(matrix, "q.weight", share=share)
    assert factors.rank == pytest.approx(expected, abs=0 if expected < 50 else 1)
    assert energy(matrix - factors.product) <= (1 - share) * energy(matrix) * 1.001


def test_randomised_factors_are_keyed_by_the_name_alone():
    matrix, state = decaying(600, 700), torch.random.get_rng_state()
    first = truncate(matrix, "q.weight", rank=4)
    torch.rand(3)
    again, other = (truncate(matrix, name, rank=4) for name in ("q.weight", "k.weight"))
    assert torch.equal(first.left, again.left)
    assert not torch.equal(first.left, other.left)
    torch.random.set_rng_state(state)
    drawn = torch.rand(3)
    torch.random.set_rng_state(state)
    truncate(matrix, "q.weight", rank=4)
    assert torch.equal(torch.rand(3), drawn)


def test_rounding_is_no_rank():
    product = Factors(draw(40, 3), draw(3, 30, seed=1)).product
    assert truncate(product, "q.weight", rank=20).rank == 3


def test_sum_of_products_is_found_with_its_weights_and_nothing_else_is():
    parts = [Factors(draw(20, 2, seed=i), draw(2, 10, seed=9 + i)) for i in range(3)]
    matrix = 0.5 * parts[0].product - 2 * parts[2].product
    summed = combine(matrix, parts, 30.0)
    assert summed is not None
    assert summed.rank == 4  # the second has no weight
    torch.testing.assert_close(summed.product, matrix, rtol=0, atol=1e-5)
    torch.testing.assert_close(summed.left[:, :2], 0.5 * parts[0].left, rtol=1e-5, atol=1e-6)
    assert combine(matrix + 0.01 * draw(20, 10, seed=50), parts, 30.0) is None
    assert combine(draw(20, 10, seed=50), parts, 30.0) is None
    assert combine(parts[0].product, [parts[0], parts[0]], 30.0) is not None  # the same twice
