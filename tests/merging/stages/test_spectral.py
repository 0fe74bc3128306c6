"""Edits of matrices by their singular vectors: the suite that all must keep, and the papers' numbers."""

import numpy as np
import pytest
import torch
from merging.vectors import each, merged

from evomerge.errors import RecipeError
from evomerge.merging import check
from evomerge.merging.stages.spectral import SPECTRAL
from evomerge.recipe import Recipe
from evomerge.testing import StageSuite


class TestDecorrelate(StageSuite):
    name = "decorrelate"


class TestIsotropise(StageSuite):
    name = "isotropise"


class TestProject(StageSuite):
    name = "project"
    symmetric = False


def test_every_spectral_edit_is_held_to_the_suite():
    assert {suite.name for suite in StageSuite.__subclasses__() if suite.__module__ == __name__} == set(SPECTRAL)


def close(expected, to=5e-7):
    return pytest.approx(np.array(expected), abs=to)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).tolist()


# -- TSV-Merge --

TSV = [[[2.0, 0.0], [0.0, 0.1]], [[0.3, 0.4], [0.3, 0.4]]]


def test_tsv_by_hand():
    """One direction each, of the singular values 2 and 0.707107, made orthogonal to each other."""
    assert np.array(merged("tsv", TSV)) == close([[1.838509, -0.327601], [-0.519505, 0.861787]])


def test_tsv_lambda_and_weights_scale():
    whole = np.array(merged("tsv", TSV))
    one, other = (np.array(merged("tsv", TSV, {"weight": each(*w)})) for w in ((1, 0), (0, 1)))
    assert one + other == close(whole)
    assert np.linalg.matrix_rank(one, tol=1e-5) == 1
    assert np.array(merged("tsv", TSV, {"lambda": -2})) == close(-2 * whole, 1e-6)


def test_tsv_of_one_input_is_that_input():
    matrix = random(5, 3)
    assert np.array(merged("tsv", [matrix])) == close(matrix, 1e-6)


def test_tsv_is_the_mean_of_what_is_no_matrix():
    assert merged("tsv", [[1.0, 2.0], [3.0, -2.0]]) == [2, 0]


def test_tsv_of_two_equal_directions_is_finite():
    """The polar factor of a singular matrix is arbitrary where it is null: that part is left out."""
    matrix = [[1.0, 1.0], [1.0, 1.0]]
    assert np.isfinite(merged("tsv", [matrix, matrix])).all()


# -- ISO-C, ISO-CTS --


def test_iso_c_by_hand():
    """The sum [[3, 0], [4, 5]] has the singular values 6.7082 and 2.2361: both become 4.4721."""
    rows = [[[1.0, 0.0], [4.0, 2.0]], [[2.0, 0.0], [0.0, 3.0]]]
    assert np.array(merged("iso_c", rows)) == close([[4, -2], [2, 4]], 1e-6)
    assert np.array(merged("iso_c", rows, {"lambda": 1.5})) == close([[6, -3], [3, 6]], 1e-6)


def test_all_singular_values_are_equal_after_it():
    rows = [random(6, 4, seed=i) for i in range(2)]
    for method in ("iso_c", "iso_cts"):
        sigma = np.linalg.svd(np.array(merged(method, rows)), compute_uv=False)
        assert sigma == pytest.approx(np.full(4, sigma[0]), rel=1e-5)
    mean = np.linalg.svd(np.array(rows).sum(axis=0), compute_uv=False).mean()
    assert np.linalg.svd(np.array(merged("iso_c", rows)), compute_uv=False)[0] == pytest.approx(mean, rel=1e-6)


def test_null_directions_stay_null():
    """A matrix of rank one has one singular value to be equal with."""
    rank_one = [[[2.0, 0.0], [0.0, 0.0]]]
    assert np.array(merged("iso_c", rank_one)) == close(rank_one[0])
    assert merged("iso_c", [[[0.0, 0.0], [0.0, 0.0]]]) == [[0, 0], [0, 0]]


def test_iso_cts_without_own_directions_is_iso_c():
    rows = [random(6, 4, seed=i) for i in range(2)]
    assert merged("iso_cts", rows, {"common": 1}) == merged("iso_c", rows)
    assert merged("iso_cts", rows, {"common": 0.5}) != merged("iso_c", rows)


def test_iso_is_the_mean_of_what_is_no_matrix():
    assert merged("iso_c", [[1.0, 2.0], [3.0, -2.0]]) == [2, 0]


def test_stages_after_the_inputs_are_joined_are_refused():
    recipe = Recipe.parse({"merge": {"inputs": ["a"], "stages": {"edit": ["isotropise"], "weigh": ["weight"]}}})
    with pytest.raises(RecipeError, match="`weight` comes after `isotropise`, which joins the inputs into one"):
        check(recipe)


# -- OPCM --

OPCM = [[[3.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [4.0, 5.0]]]


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_opcm_by_hand(alpha):
    """diag(3, 1), whose diagonal is taken from the second; the mean length of 3.162278 and 6.782330 is 4.972304."""
    found = np.array(merged("opcm", OPCM, {"alpha": alpha}))
    assert found == close([[2.723443, 1.815629], [3.631257, 0.907814]])
    assert np.linalg.norm(found) == pytest.approx(4.972304, abs=5e-7)


def test_at_alpha_1_nothing_is_left_in_the_whole_span():
    """Not only the diagonal, which an index that is not found would mean."""
    assert np.array(merged("opcm", OPCM, {"alpha": 1})) / 4.972304 == close(np.diag([3, 1]) / 10**0.5)


@pytest.mark.parametrize("seed", range(8))
def test_at_alpha_1_rounding_keeps_no_direction(seed):
    """Shares of singular values sum to 1 up to rounding, above it as well as below."""
    first, second = random(5, 9, seed=seed), random(5, 9, seed=seed + 100)
    found = np.array(merged("opcm", [first, second], {"alpha": 1}))
    u, _, vh = np.linalg.svd(np.array(first), full_matrices=False)
    along = u.T @ found @ vh.T
    assert along - np.diag(np.diag(along)) == close(np.zeros((5, 5)), 1e-5)


def test_opcm_takes_away_the_diagonal():
    """⟨τ̃, u_i v_iᵀ⟩ = 0 for every singular pair of the merge so far."""
    first, second = (np.array(random(4, 6, seed=i)) for i in range(2))
    found = np.array(merged("opcm", [first.tolist(), second.tolist()], {"alpha": 0}))
    u, sigma, vh = np.linalg.svd(first, full_matrices=False)
    diagonal = (u.T @ found @ vh.T).diagonal()
    assert diagonal / sigma == pytest.approx(np.full(4, diagonal[0] / sigma[0]), rel=1e-5)


def test_opcm_depends_on_the_order():
    assert merged("opcm", OPCM) != merged("opcm", OPCM[::-1])
    assert np.array(merged("opcm", OPCM[:1])) == close(OPCM[0])


def test_opcm_sums_what_is_no_matrix_at_the_mean_length():
    """[3, 0] and [0, 4]: a sum of length 5, brought to 3.5."""
    assert merged("opcm", [[3.0, 0.0], [0.0, 4.0]]) == pytest.approx([2.1, 2.8])
