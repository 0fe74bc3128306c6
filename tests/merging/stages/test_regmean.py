"""RegMean by hand, against its normal equations, and where it is something simpler."""

import numpy as np
import pytest
import torch
from merging.vectors import NAME, each

from evomerge.errors import RecipeError
from evomerge.merging import Statistics, Store
from evomerge.recipe import merge
from evomerge.testing import merge_tensors

HAND = ([[[1.0, 2.0]], [[3.0, 0.0]]], [[[2.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]]])


def statistics(grams, axis=1):
    tables = [
        {} if gram is None else {"gram": torch.tensor(gram, dtype=torch.float32), "axis": torch.tensor(axis)}
        for gram in grams
    ]
    return Statistics(lambda kind: [str(gram) for gram in grams], lambda kind, name: tables)


def regmean(matrices, grams, parameters=None, axis=1, base=None, store=None):
    inputs = [{NAME: torch.tensor(matrix, dtype=torch.float32)} for matrix in matrices]
    start = {NAME: torch.zeros_like(inputs[0][NAME]) if base is None else torch.tensor(base, dtype=torch.float32)}
    recipe = merge("regmean", [f"e{i}" for i in range(len(matrices))], {"ridge": 0.0, **(parameters or {})})
    return merge_tensors(recipe, start, inputs, statistics=statistics(grams, axis), store=store)[NAME]


def oracle(matrices, grams, weights, alpha):
    left, right = 0.0, 0.0
    for matrix, gram, weight in zip(matrices, grams, weights, strict=True):
        scaled = np.where(np.eye(len(gram), dtype=bool), gram, alpha * np.asarray(gram))
        left, right = left + weight * scaled, right + weight * scaled @ np.asarray(matrix).T
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def problem(inputs, seed=0, width=5, outputs=4):
    rng = np.random.default_rng(seed)
    examples = [
        rng.normal(size=(3 * width, width)) @ (np.eye(width) + 0.2 * rng.normal(size=(width, width)))
        for _ in range(inputs)
    ]
    matrices = [rng.normal(size=(outputs, width)).astype(np.float32) for _ in range(inputs)]
    grams = [(rows.T @ rows / len(rows)).astype(np.float32) for rows in examples]
    return matrices, grams


@pytest.mark.parametrize("solver", ["cholesky", "eigen"])
@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, [2.272727, 0.181818]), (0.9, [2.197498, 0.230563]), (0.0, [1.666667, 0.5])],
)
def test_by_hand(alpha, expected, solver):
    """Of the specification, solved by hand as 2x2 systems."""
    found = regmean(*HAND, {"alpha": alpha, "solver": solver})
    assert found[0].tolist() == pytest.approx(expected, abs=5e-7)


def test_objective_is_lower_than_that_of_the_mean():
    """Of the specification: 2.545455, and 5 for the mean."""

    def objective(matrix):
        gaps = [np.asarray(matrix) - np.asarray(one) for one in HAND[0]]
        return sum((gap @ np.asarray(gram) @ gap.T).item() for gap, gram in zip(gaps, HAND[1], strict=True))

    assert objective(regmean(*HAND, {"alpha": 1.0})) == pytest.approx(2.545455, abs=1e-6)
    assert objective([[2.0, 1.0]]) == pytest.approx(5.0)


@pytest.mark.parametrize("inputs", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_normal_equations_in_float64(inputs, alpha):
    matrices, grams = problem(inputs)
    weights = [0.3 + 0.4 * i for i in range(inputs)]
    base = np.ones_like(matrices[0])
    found = regmean(matrices, grams, {"alpha": alpha, "weight": each(*weights)}, base=base)
    assert found.numpy() == pytest.approx(oracle(matrices, grams, weights, alpha), rel=1e-5, abs=1e-6)


def test_a_matrix_stored_the_other_way_round_is_the_transpose():
    matrices, grams = problem(3)
    found = regmean([matrix.T.copy() for matrix in matrices], grams, axis=0)
    assert torch.equal(found.T, regmean(matrices, grams))


def test_a_convolution_is_the_matrix_of_its_unfolded_inputs():
    matrices, grams = problem(2, width=12)
    found = regmean([matrix.reshape(4, 3, 2, 2) for matrix in matrices], grams)
    assert torch.equal(found.reshape(4, 12), regmean(matrices, grams))


def test_of_one_input_it_is_that_input():
    matrices, grams = problem(1)
    assert regmean(matrices, grams).numpy() == pytest.approx(matrices[0], rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_equal_grams_give_the_weighted_mean(alpha):
    matrices, grams = problem(3)
    found = regmean(matrices, [grams[0]] * 3, {"alpha": alpha, "weight": each(1.0, 2.0, 5.0)})
    expected = (matrices[0] + 2 * matrices[1] + 5 * matrices[2]) / 8
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_inputs_that_were_never_seen_have_the_mean():
    """Column 1 is zero in every example: any value fits, and the mean is taken, also where an expert has no examples."""
    matrices = [[[1.0, 2.0]], [[3.0, 6.0]], [[5.0, 1.0]]]
    found = regmean(matrices, [[[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], None], {"ridge": 1e-6})
    assert found[0].tolist() == pytest.approx([5 / 3, 3.0], rel=1e-5)


def test_without_any_gram_it_is_the_weighted_mean():
    found = regmean([[[1.0, 2.0]], [[3.0, 6.0]]], [None, None], {"weight": each(1.0, 3.0)})
    assert found[0].tolist() == [2.5, 5.0]


def test_weights_of_zero_give_the_base():
    matrices, grams = problem(2)
    found = regmean(matrices, grams, {"weight": 0.0}, base=np.full((4, 5), 7.0))
    assert found.tolist() == [[7.0] * 5] * 4


def test_grams_without_an_inverse_name_the_ridge():
    singular = [[[1.0, 1.0], [1.0, 1.0]]] * 2
    for solver in ("cholesky", "eigen"):
        with pytest.raises(
            RecipeError, match=r"no inverse at `alpha` 1; expected a smaller `alpha`, or a `ridge` larger than 0"
        ):
            regmean(HAND[0], singular, {"alpha": 1.0, "solver": solver, "weight": each(1.0, 2.0)})
    assert regmean(HAND[0], singular, {"alpha": 1.0, "ridge": 1e-3}).isfinite().all()


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.2, 0.7]])
def test_one_factorisation_serves_a_search(weights, monkeypatch):
    """That of every `alpha` of equal weights, or of all weights of two inputs at one `alpha`."""
    matrices, grams = problem(2)
    store, calls = Store(), []
    plain = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or plain(matrix))
    equal = weights[0] == weights[1]
    for step in (0.0, 0.3, 0.9):
        alpha = step if equal else 0.8
        mix = weights if equal else [weights[0] + step, weights[1]]
        parameters = {"alpha": alpha, "weight": each(*mix), "ridge": 1e-6}
        found = regmean(matrices, grams, {**parameters, "solver": "eigen"}, store=store)
        assert torch.allclose(found, regmean(matrices, grams, parameters), rtol=1e-6, atol=1e-6)
    assert len(calls) == 1


def test_three_inputs_of_different_weights_have_no_common_factorisation():
    matrices, grams = problem(3)
    with pytest.raises(
        RecipeError,
        match="`solver: eigen` takes equal weights, or two inputs, got weights 1, 2, 3; type `solver: cholesky`",
    ):
        regmean(matrices, grams, {"weight": each(1.0, 2.0, 3.0), "solver": "eigen"})


def test_other_statistics_are_other_tables():
    """What is prepared is stored by the digests of the statistics."""
    matrices, grams = problem(2)
    store = Store()
    first = regmean(matrices, grams, {"solver": "eigen"}, store=store)
    second = regmean(matrices, grams[::-1], {"solver": "eigen"}, store=store)
    assert not torch.equal(first, second)
    assert torch.equal(second, regmean(matrices, grams[::-1], {"solver": "eigen"}))
