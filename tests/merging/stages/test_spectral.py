"""Edits of matrices by their singular vectors: the papers' numbers."""

import numpy as np
import pytest
import torch
from merging.vectors import each, merged

from evomerge.errors import RecipeError
from evomerge.merging import check
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors


def close(expected, to=5e-7):
    return pytest.approx(np.array(expected), abs=to)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).tolist()


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


def test_iso_cts_splits_ranks_as_the_authors_code_does():
    """Rank 20, 5 inputs, common 0.8: int(16) common directions leave 4, rounded to 1 for each input: 15 common and 5·1.

    Each input has 2 in the first 15 places of its diagonal, which sum to 10, 3 in a place of its own and -2 in the next
    input's: there the sum is 1. The mean of 15 values 10 and 5 values 3 is 8.25; of the sum's alone it would be 7.75.
    """
    diagonals = [[2.0] * 15 + [0.0] * 5 for _ in range(5)]
    for i, diagonal in enumerate(diagonals):
        diagonal[15 + i], diagonal[15 + (i + 1) % 5] = 3.0, -2.0
    rows = [np.diag(diagonal).tolist() for diagonal in diagonals]
    assert np.array(merged("iso_cts", rows)) == close(8.25 * np.eye(20), 1e-5)
    assert np.array(merged("iso_c", rows)) == close(7.75 * np.eye(20), 1e-5)


def test_iso_is_the_mean_of_what_is_no_matrix():
    assert merged("iso_c", [[1.0, 2.0], [3.0, -2.0]]) == [2, 0]


def test_stages_after_the_inputs_are_joined_are_refused():
    recipe = Recipe.parse({"merge": {"inputs": ["a"], "stages": {"edit": ["isotropise"], "weigh": ["weight"]}}})
    with pytest.raises(RecipeError, match="`weight` comes after `isotropise`, which joins the inputs into one"):
        check(recipe)


DIAGONAL = [[3.0, 0.0], [0.0, -2.0]]


def test_svd_mutation_by_hand(monkeypatch):
    """Σ is 3 and 2; with u = 0.1·(0.25, 0.75) they are 0.075 and 0.15, the second of them negative as the matrix has it."""
    drawn = torch.tensor([0.25 * 2**32 - 2**31, 0.75 * 2**32 - 2**31]).to(torch.int32)
    monkeypatch.setattr("evomerge.merging.stages.spectral.bits", lambda index, key: drawn[index.long() + 2**31])
    child = [[1.0, 2.0], [3.0, 4.0]]
    assert np.array(merged("svd_mutate", [child, DIAGONAL])) == close([[1.075, 2], [3, 3.85]])


def mutated(rate=0.1, seed=0, name="layers.0.mlp.weight", base=None, child=None):
    """Return the mutation of a child of zeros along a random expert's singular directions, `(4, 6)`."""
    expert = {name: torch.tensor(random(4, 6))}
    base = {name: torch.zeros(4, 6) if base is None else base}
    child = {name: torch.zeros(4, 6) if child is None else child}
    expert = {name: expert[name] + base[name]}
    found = merge_tensors(merge("svd_mutate", ["child", "expert"], {"rate": rate}, seed=seed), base, [child, expert])
    return found[name].double().numpy()


def test_a_mutation_lies_along_the_expert_s_directions_within_the_rate():
    u, sigma, vh = np.linalg.svd(np.array(random(4, 6)), full_matrices=False)
    along = u.T @ mutated(0.3) @ vh.T
    assert along - np.diag(along.diagonal()) == close(np.zeros((4, 4)))
    shares = along.diagonal() / sigma
    assert ((shares > 0) & (shares < 0.3)).all()
    assert len(np.unique(shares.round(4))) == 4
    assert mutated(0.15) == close(mutated(0.3) / 2)  # the same numbers at every rate


def test_each_seed_and_matrix_has_its_own_mutation():
    assert not np.allclose(mutated(seed=1), mutated(), atol=1e-3)
    assert not np.allclose(mutated(name="layers.1.mlp.weight"), mutated(), atol=1e-3)


def test_the_task_vector_is_the_expert_s_and_the_child_is_only_added_to():
    base, child = torch.tensor(random(4, 6, seed=3)), torch.tensor(random(4, 6, seed=4))
    assert mutated(base=base, child=child) - child.double().numpy() == close(mutated(), 1e-6)


def test_shares_are_uniform():
    """Of the identity's singular directions, which all have the value 1: 512 shares, in mean and spread."""
    base = {"layers.0.mlp.weight": torch.zeros(512, 512)}
    expert = {"layers.0.mlp.weight": torch.diag(torch.linspace(2, 1, 512))}
    found = merge_tensors(merge("svd_mutate", ["c", "e"], {"rate": 1}), base, [base, expert])["layers.0.mlp.weight"]
    shares = (found.diagonal() / expert["layers.0.mlp.weight"].diagonal()).double()
    assert abs(float(shares.mean()) - 0.5) < 4 * (1 / 12 / 512) ** 0.5
    assert abs(float(shares.var()) - 1 / 12) < 4 * (1 / 180 / 512) ** 0.5


NONE = {
    "layers.0.mlp.weight": {"rate": 0},
    "layers.0.norm.weight": {"rate": 0.5},
    "layers.0.mlp.cube": {"rate": 0.5},
    "layers.0.mlp.bias": {"rate": 0.5},
}


@pytest.mark.parametrize("name", NONE)
def test_at_rate_0_and_where_there_is_no_matrix_it_is_the_child_bit_for_bit(name):
    """Norms are left alone whatever their shape."""
    shape = {"cube": (2, 2, 2), "bias": (8,)}.get(name.rsplit(".", maxsplit=1)[1], (2, 4))
    numbers = torch.tensor([-0.0, 0.0, 1e-30, 3.0, -1e30, 1 / 3, 0.1, -0.0]).view(shape)
    others = {"layers.1.mlp.weight": torch.ones(1)}
    models = [{name: tensor, **others} for tensor in (torch.ones(shape), numbers, torch.rand(shape) + 1)]
    found = merge_tensors(merge("svd_mutate", ["child", "expert"], NONE[name]), models[0], models[1:])
    assert found[name].numpy().tobytes() == numbers.numpy().tobytes()


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


@pytest.mark.parametrize(("strength", "expected"), [(1.0, [4.0, 1.0]), (-2.0, [-3.5, -0.5]), (0.0, [1.5, 0.5])])
def test_cart_by_hand(strength, expected):
    """The mean is diag(1.5, 0.5); the first singular directions away from it are diag(2.5, 0), diag(0, 3) and diag(0, -2.5)."""
    rows = [[[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 3.5]], [[0.5, 0.0], [0.0, -2.0]]]
    found = merged("cart", rows, {"rank": 0.5, "strength": strength})
    assert found[0] == pytest.approx([expected[0], 0.0], abs=1e-6)
    assert found[1] == pytest.approx([0.0, expected[1]], abs=1e-6)


def test_cart_of_full_rank_is_the_mean():
    """What inputs are away from their mean sums to zero."""
    rows = [[[4.0, 1.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 5.0]]]
    found = merged("cart", rows, {"rank": 1.0, "strength": 3.0})
    assert [number for row in found for number in row] == pytest.approx([2.0, 2.0, 1.5, 2.5], abs=1e-6)
