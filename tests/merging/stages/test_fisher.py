"""Fisher-weighted averaging by hand, and where it is something simpler."""

import numpy as np
import pytest
import torch
from merging.vectors import NAME, each

from evomerge.merging import Statistics, needs
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors


def statistics(squares):
    tables = {
        name: [{} if row is None else {"square": torch.tensor(row, dtype=torch.float32)} for row in rows]
        for name, rows in squares.items()
    }
    return Statistics(lambda kind: [kind] * len(squares[NAME]), lambda kind, name: tables[name])


def fisher(rows, squares, parameters=None, more=None):
    inputs = [{NAME: torch.tensor(row, dtype=torch.float32)} for row in rows]
    for name in more or ():
        inputs = [{**model, name: torch.zeros(2)} for model in inputs]
    base = {name: torch.zeros_like(tensor) for name, tensor in inputs[0].items()}
    recipe = merge("fisher", [f"e{i}" for i in range(len(rows))], parameters or {})
    return merge_tensors(recipe, base, inputs, statistics=statistics({NAME: squares, **(more or {})}))[NAME].tolist()


HAND = ([[1.0, 4.0], [3.0, 2.0]], [[3.0, 0.0], [1.0, 0.5]])


def test_by_hand():
    """Of the specification: with the norms 3 and 1.118034 of the Fisher information, and without."""
    assert fisher(*HAND, {"normalise": "none"}) == pytest.approx([1.5, 2.000004], abs=5e-7)
    assert fisher(*HAND) == pytest.approx([1.944272, 2.000001], abs=6e-7)


def test_norms_are_those_of_the_whole_model():
    """The other tensor makes the norms 5 and 1: weights 3/5 and 1, then 1e-6/5 and 1/2."""
    more = {"final_norm.weight": [[0.0, 4.0], [0.0, 0.0]]}
    squares = [[3.0, 0.0], [0.8, 0.6]]
    found = fisher(HAND[0], squares, more=more)
    assert found == pytest.approx([(0.6 + 3 * 0.8) / 1.4, 2.0], abs=1e-6)


def test_weights_multiply_the_fisher_information():
    found = fisher(*HAND, {"normalise": "none", "weight": each(0.5, 3.0)})
    assert found[0] == pytest.approx((0.5 * 3 * 1 + 3 * 1 * 3) / (0.5 * 3 + 3))


def test_equal_fisher_information_gives_the_mean():
    assert fisher(HAND[0], [[0.3, 2.0]] * 2) == pytest.approx([2.0, 3.0])


def test_power_of_zero_gives_the_mean():
    assert fisher(*HAND, {"power": 0.0}) == pytest.approx([2.0, 3.0])


def test_power_is_that_of_the_normalised_weights():
    share = np.sqrt([3 / 3, 1 / np.hypot(1, 0.5)])
    assert fisher(*HAND, {"power": 0.5})[0] == pytest.approx((share @ [1.0, 3.0]) / share.sum(), rel=1e-6)


def test_fisher_information_in_one_input_alone_picks_that_input():
    found = fisher(HAND[0], [[1.0, 0.0], [0.0, 1.0]], {"floor": 1e-12})
    assert found == pytest.approx([1.0, 2.0])


def test_a_common_scale_changes_nothing():
    scaled = [[1000 * value for value in row] for row in HAND[1]]
    assert fisher(HAND[0], scaled, {"floor": 1e-3}) == pytest.approx(fisher(*HAND), rel=1e-6)


def test_of_one_input_it_is_that_input():
    assert fisher(HAND[0][:1], HAND[1][:1]) == pytest.approx(HAND[0][0])


def test_without_any_information_it_is_the_mean():
    assert fisher(HAND[0], [[0.0, 0.0]] * 2) == pytest.approx([2.0, 3.0])
    assert fisher(HAND[0], [None, None]) == [2.0, 3.0]


def test_other_compositions_use_the_weights_too():
    """TIES with Fisher weights: signs agree in the first place, where 3 and 1 weigh."""
    recipe = Recipe.parse(
        {
            "merge": {
                "inputs": ["e0", "e1"],
                "stages": {"weigh": ["elect", {"fisher": {"normalise": "none"}}], "reduce": "solve"},
            }
        }
    )
    inputs = [{NAME: torch.tensor(row)} for row in ([1.0, 4.0], [3.0, -2.0])]
    found = merge_tensors(recipe, {NAME: torch.zeros(2)}, inputs, statistics=statistics({NAME: HAND[1]}))
    assert found[NAME].tolist() == pytest.approx([1.5, 4.0])


def test_each_estimate_is_a_kind_of_its_own():
    assert needs(merge("fisher", ["a"], {})) == ("fisher_exact",)
    table = {"per": ["kind"], "values": {"attention": "sampled", "mlp": "empirical"}}
    assert needs(merge("fisher", ["a"], {"estimate": table})) == ("fisher_empirical", "fisher_sampled")
    assert needs(merge("linear", ["a", "b"], {})) == ()
