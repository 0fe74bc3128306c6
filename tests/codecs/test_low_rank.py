"""RMM: the worked example, losslessness, the count of what is stored."""

import pytest
import torch

from evomerge import codecs
from evomerge.codecs.low_rank import fit, fraction


def test_worked_example():
    """The numbers are the specification's; the error is the second singular value squared."""
    stack = torch.tensor([[[1, 2, 3], [2, 4, 6.5]]], dtype=torch.float64)
    mean, basis, codes = fit(stack, 1)
    torch.testing.assert_close(mean, torch.tensor([[2, 4.166667]]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis[0, :, 0], torch.tensor([0.404975, 0.914328]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(codes[0, 0], torch.tensor([-2.386019, -0.152388, 2.538407]).double(), atol=1e-6, rtol=0)
    lost = float((mean[..., None] + basis @ codes - stack).square().sum())
    assert lost == pytest.approx(0.006853, abs=1e-6)


@pytest.mark.parametrize(("experts", "r"), [(1, 3), (2, 3), (4, 2), (3, 5)])
def test_from_k_minus_1_directions_on_nothing_is_lost(experts, r):
    stack = torch.randn(7, r, experts, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for p in (experts, experts + 3):
        mean, basis, codes = fit(stack, p)
        assert basis.shape[-1] <= max(experts - 1, 0)
        torch.testing.assert_close(mean[..., None] + basis @ codes, stack)


def low(rank, count=4, rows=24, columns=18):
    random = torch.Generator().manual_seed(2)
    base = torch.randn(rows, columns, generator=random)
    left, right = torch.randn(count, rows, rank, generator=random), torch.randn(count, rank, columns, generator=random)
    return base, (base + 0.1 * left @ right) - base


@pytest.mark.parametrize("basis", ["position", "matrix"])
def test_rank_is_detected_and_the_stored_fraction_is_the_papers(basis):
    base, vectors = low(3)
    coded = codecs.make("low_rank", {"p": 2, "basis": basis}).encode(base, vectors, {})
    elements = sum(part.numel() for part in coded.parts.values())
    sides = {"position": [(24, 3), (18, 3)], "matrix": [(1, 24 * 3), (1, 18 * 3)]}[basis]
    assert elements == pytest.approx(sum(fraction(2, r, 4) * n * r * 4 for n, r in sides))
    assert coded.formula == pytest.approx(4 * elements)
    assert coded.figures == {"rank": 3, "fraction": pytest.approx(elements / (4 * 3 * (24 + 18)))}
    assert fraction(2, 3, 4) == (2 * (3 + 4) + 3) / 12


@pytest.mark.parametrize("basis", ["position", "matrix"])
def test_experts_of_low_rank_come_back_to_rounding(basis):
    base, vectors = low(3)
    codec = codecs.make("low_rank", {"p": 3, "basis": basis})
    coded = codec.encode(base, vectors, {})
    for k in range(4):
        decoded = codec.decode(coded.parts.__getitem__, k, {}).float()
        torch.testing.assert_close(decoded, vectors[k], atol=1e-6, rtol=0)


def test_rounding_to_16_bits_does_not_hide_the_rank():
    base, vectors = low(3)
    base = base.bfloat16()
    rounded = (base + vectors).bfloat16().float() - base.float()
    assert torch.linalg.matrix_rank(rounded[0]) == 18
    assert codecs.make("low_rank").encode(base, rounded, {}).figures["rank"] == 3


def test_rank_can_be_limited_and_matrices_of_full_rank_are_declined():
    base, vectors = low(18)
    assert codecs.make("low_rank").encode(base, vectors, {}) is None
    assert codecs.make("low_rank", {"rank": 4}).encode(base, vectors, {}).figures["rank"] == 4
    assert codecs.make("low_rank").encode(base[0], vectors[:, 0], {}) is None
