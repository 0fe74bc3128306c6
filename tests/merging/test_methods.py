"""The methods' table: worked examples by hand, and merges that are refused."""

import pytest
import torch
from merging.vectors import each, fix_noise, merged

from evomerge.errors import RecipeError
from evomerge.merging import METHODS, STAGES, check
from evomerge.recipe import Recipe, merge
from evomerge.testing import merge_tensors


def test_every_method_names_known_stages_and_valid_defaults():
    for method in METHODS.values():
        assert method.about
        assert all(stage in STAGES for stage in method.stages)
        for name, spec in method.parameters.items():
            spec.check(name, spec.default)


def test_linear_by_hand():
    """The sum of [1, 2] and 3·[5, -2], divided by 4."""
    assert merged("linear", [[1.0, 2.0], [5.0, -2.0]], {"weight": each(1, 3)}) == [4.0, -1.0]


def test_linear_of_no_weight_is_the_base():
    assert merged("linear", [[1.0, 2.0], [5.0, -2.0]], {"weight": 0.0}) == [0.0, 0.0]


def test_task_arithmetic_by_hand():
    """Half of the sum of [1, 2] and 3·[5, -2]."""
    rows = [[1.0, 2.0], [5.0, -2.0]]
    assert merged("task_arithmetic", rows, {"weight": each(1, 3), "lambda": 0.5}) == [8.0, -2.0]


def test_task_arithmetic_can_forget():
    """A negative weight subtracts a task (negation, arXiv 2212.04089, section 3)."""
    assert merged("task_arithmetic", [[1.0, 2.0]], {"weight": -1.0, "lambda": 1.0}) == [-1.0, -2.0]


# Three task vectors of five numbers, of which density 0.6 keeps three; trimmed by hand, their sums are 0, -3, 0, -2 and 4.
TAUS = [[2.0, -1.0, 0.5, 0.1, 3.0], [-3.0, 2.0, 0.2, 0.4, 1.0], [1.0, -4.0, 0.3, -2.0, 0.6]]


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0, -2.5, 0, -2, 2]),  # the mean of those that agree; a vote of zero contributes nothing
        ({"reduce": "sum"}, [0, -5, 0, -2, 4]),
        ({"undecided": "positive"}, [1.5, -2.5, 0, -2, 2]),  # (2 + 1) / 2 wins where the vote is zero
        ({"undecided": "majority"}, [-3, -2.5, 0, -2, 2]),  # of -, - and +, - wins where the vote is zero
        ({"reduce": "max"}, [0, -4, 0, -2, 3]),
        ({"lambda": 2.0}, [0, -5, 0, -4, 4]),
        # votes 2 - 1.5 + 0.5, -1 + 1 - 2, 0, -1, 3 + 0.5; then (2 + 0.5) / 1.5, (-1 - 2) / 1.5, 0, -1 / 0.5, 3.5 / 1.5
        ({"weight": each(1, 0.5, 0.5)}, [1.666667, -2, 0, -2, 2.333333]),
        ({"weight": each(1, 0.5, 0.5), "reduce": "sum"}, [2.5, -3, 0, -1, 3.5]),
        # by the count of signs + wins 2 to 1 in the first place, and all else is as before
        ({"elect": "count"}, [1.5, -2.5, 0, -2, 2]),
    ],
)
def test_ties_by_hand(scope, parameters, expected):
    found = merged("ties", TAUS, {"density": 0.6, "scope": scope, **parameters})
    assert found == pytest.approx(expected, abs=5e-7)


def test_dare_by_hand(monkeypatch):
    """Noise [0.1, 0.9, 0.2, 0.6] at p = 1/2 keeps the first and third; 1/(1-p) = 2."""
    fix_noise(monkeypatch, [0.1, 0.9, 0.2, 0.6])
    rows = [[1.0, 2.0, 3.0, 4.0], [-3.0, 2.0, 5.0, 1.0]]
    assert merged("dare_linear", rows[:1], {"drop": 0.5}) == [2, 0, 6, 0]
    assert merged("dare_linear", rows[:1], {"drop": 0.5, "rescale": "l1"}) == [2.5, 0, 7.5, 0]
    assert merged("dare_linear", rows, {"drop": 0.5}) == [-4, 0, 16, 0]
    assert merged("dare_ties", rows, {"drop": 0.5}) == [-6, 0, 8, 0]


def test_della_by_hand(monkeypatch):
    """Of [.1, -3, 2, .5] the middle is kept, by 1/.7 and 1/.566667; then the default λ of 1.1."""
    fix_noise(monkeypatch, [0.5] * 4)
    parameters = {"density": 0.5, "epsilon": 0.2}
    dropped = [0, -4.285714, 3.529411, 0]
    rows = [[0.1, -3.0, 2.0, 0.5]]
    assert merged("della_linear", rows, parameters) == pytest.approx(dropped, abs=5e-6)
    assert merged("della", rows, parameters) == pytest.approx([1.1 * v for v in dropped], abs=5e-6)


def test_breadcrumbs_by_hand():
    row = [0.1, -3.0, 2.0, 0.5, -1.0, 0.7, 0.05, 4.0, -0.3, 1.5]
    found = merged("breadcrumbs", [row], {"density": 0.6, "gamma": 0.1, "lambda": 1})
    assert found == pytest.approx([0, -3, 2, 0.5, -1, 0.7, 0, 0, 0, 1.5])


def test_sce_by_hand():
    """Weights .277778 and .722222; in the second place the signs cancel, and + wins."""
    rows = [[1.0, -2.0, 0.5, 0.0], [3.0, 2.0, -0.5, 0.4]]
    assert merged("sce", rows, {"select": 0.5}) == pytest.approx([2.444444, 2, 0, 0], abs=5e-7)


def test_nearswap_by_hand():
    """w = clip(t / |τ|, 0, 1): .25 and 1."""
    assert merged("nearswap", [[4.0, -0.5]], {"t": 1}) == [1, -0.5]


SWAPS = [
    # (parameters, the second's share of the embedding, of eight blocks, and of the head)
    ({"bottom": 2, "top": 1, "transition": 1}, [1, 1, 1, 0.5, 0, 0, 0, 0.5, 1, 1]),
    ({"bottom": 0, "top": 0}, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ({"bottom": 0, "top": 0, "outside": "first"}, [0] * 10),
    ({"bottom": 3, "top": 0, "transition": 2, "outside": "first"}, [0, 1, 1, 1, 0.5, 0.5, 0, 0, 0, 0]),
    ({"bottom": 8, "top": 0}, [1] * 10),
]


@pytest.mark.parametrize(("parameters", "expected"), SWAPS)
def test_layer_swap_by_hand(parameters, expected):
    names = ["embed.weight", *(f"layers.{i}.mlp.weight" for i in range(8)), "head.weight"]
    models = [{name: torch.full((2,), value) for name in names} for value in (5.0, 0.0, 1.0)]
    found = merge_tensors(merge("layer_swap", ["task", "language"], parameters), models[0], models[1:])
    assert [float(tensor[0]) for tensor in found.values()] == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "tises", "inputs": ["a"]}, "unknown method `tises`; did you mean `ties`"),
        ({"method": "ties", "inputs": ["a"], "parameters": {"densty": 0.2}}, "did you mean `density`"),
        (
            {"method": "ties", "inputs": ["a"], "parameters": {"density": 1.2}},
            r"`density` is 1.2; expected a number in \[0, 1\]",
        ),
        (
            {"method": "dare_ties", "inputs": ["a"], "parameters": {"drop": 1}},
            r"`drop` is 1; expected a number in \[0, 0.9999\]",
        ),
        (
            {"method": "lines", "inputs": ["a"], "parameters": {"alpha": "automatic"}},
            r"`alpha` is 'automatic'; expected a number in \[-10, 10\], or one of auto",
        ),
        (
            {"method": "layer_swap", "inputs": ["a", "b"], "parameters": {"top": 1.5}},
            r"`top` is 1.5; expected an integer in \[0, 10000\]",
        ),
        ({"method": "slerp", "inputs": ["a", "b", "c"]}, "`slerp` takes exactly 2 inputs, got 3: a, b, c"),
        ({"inputs": ["a"], "stages": {"weigh": ["slerp"]}}, "`slerp` takes exactly 2 inputs, got 1: a"),
        ({"inputs": ["a"], "stages": {"edit": ["trin"]}}, "unknown edit stage `trin`; did you mean `trim`"),
        ({"inputs": ["a"], "stages": {"post": ["trim"]}}, "unknown post stage `trim`"),
        ({"method": "ties", "inputs": ["a"], "parameters": {"scope": "row"}}, "expected one of model, tensor"),
    ],
)
def test_merges_that_mean_nothing_are_refused(data, message):
    with pytest.raises(RecipeError, match=message):
        check(Recipe.parse({"merge": data}))


def test_nested_merges_are_checked_too():
    inner = {"merge": {"method": "tises", "inputs": ["a"]}}
    with pytest.raises(RecipeError, match="tises"):
        check(Recipe.parse({"merge": {"method": "linear", "inputs": [inner, "b"]}}))
