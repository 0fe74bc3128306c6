"""TSV-Compress: truncated singular factors."""

import pytest
import torch

from evomerge import codecs
from evomerge.codecs.singular import factors
from evomerge.errors import RecipeError


def matrices(count, rows, columns, seed=0):
    return torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))


def test_each_expert_keeps_its_best_approximation_of_rank_1_over_k():
    vectors = matrices(4, 12, 8)
    codec = codecs.make("singular")
    coded = codec.encode(vectors[0], vectors, {})
    assert coded.figures == {"kept": 2}
    assert coded.formula == 4 * 2 * (12 + 8) * 4
    for k, vector in enumerate(vectors.double()):
        lost = (codec.decode(coded.parts.__getitem__, k, {}) - vector).square().sum()
        torch.testing.assert_close(lost, torch.linalg.svdvals(vector)[2:].square().sum())  # Eckart and Young


def test_factors_are_gauge_fixed():
    matrix = matrices(1, 6, 4)[0].double()
    left, right, sigma = factors(matrix)
    torch.testing.assert_close(left @ right.mT, matrix)
    torch.testing.assert_close(left.mT @ left, sigma.diag())
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()


def test_matrices_that_would_not_shrink_are_declined():
    codec = codecs.make("singular")
    for vectors in (matrices(1, 6, 6), matrices(2, 6, 6), matrices(4, 6, 6)[:, 0]):
        assert codec.encode(vectors[0], vectors, {}) is None


def test_a_share_out_of_range_is_refused():
    with pytest.raises(RecipeError, match=r"`share`: input should be less than or equal to 1, got 1\.5"):
        codecs.make("singular", {"share": 1.5})
