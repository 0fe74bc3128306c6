"""Each method: the suite that all must keep, worked examples by hand, and an oracle in float64."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.merging import METHODS, STAGES, check
from evomerge.recipe import Recipe, merge
from evomerge.testing import MethodSuite, merge_tensors, tiny_tensors


class TestLinear(MethodSuite):
    name = "linear"
    normalises = True


class TestTaskArithmetic(MethodSuite):
    name = "task_arithmetic"


class TestSlerp(MethodSuite):
    name = "slerp"
    normalises = True
    symmetric = False


class TestTies(MethodSuite):
    name = "ties"


class TestDareLinear(MethodSuite):
    name = "dare_linear"


class TestDareTies(MethodSuite):
    name = "dare_ties"


def test_every_method_is_held_to_the_suite():
    assert {suite.name for suite in MethodSuite.__subclasses__()} == set(METHODS)


def test_every_method_names_known_stages_and_valid_defaults():
    for method in METHODS.values():
        assert method.about
        assert all(stage in STAGES for stage in method.stages)
        for name, spec in method.parameters.items():
            spec.check(name, spec.default)


# -- worked examples: vectors over a base of zeros --


def merged(method, rows, parameters=None):
    inputs = [{"t": torch.tensor(row)} for row in rows]
    recipe = merge(method, [f"e{i}" for i in range(len(rows))], parameters)
    return merge_tensors(recipe, {"t": torch.zeros_like(inputs[0]["t"])}, inputs)["t"].tolist()


def weights(*values):
    return {"per": ["expert"], "values": {f"e{i}": value for i, value in enumerate(values)}}


def test_linear_by_hand():
    """The sum of [1, 2] and 3·[5, -2], divided by 4."""
    assert merged("linear", [[1.0, 2.0], [5.0, -2.0]], {"weight": weights(1, 3)}) == [4.0, -1.0]


def test_linear_of_no_weight_is_the_base():
    assert merged("linear", [[1.0, 2.0], [5.0, -2.0]], {"weight": 0.0}) == [0.0, 0.0]


def test_task_arithmetic_by_hand():
    """Half of the sum of [1, 2] and 3·[5, -2]."""
    rows = [[1.0, 2.0], [5.0, -2.0]]
    assert merged("task_arithmetic", rows, {"weight": weights(1, 3), "lambda": 0.5}) == [8.0, -2.0]


def test_task_arithmetic_can_forget():
    """A negative weight subtracts a task (negation, arXiv 2212.04089, section 3)."""
    assert merged("task_arithmetic", [[1.0, 2.0]], {"weight": -1.0, "lambda": 1.0}) == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (0.5, [0.707107, 1.414214]),  # sin 45° / sin 90° = 0.707107 of both ends
        (0.25, [0.923880, 0.765367]),  # sin 67.5° = 0.923880; 2 · sin 22.5° = 0.765367
        (0.0, [1.0, 0.0]),
        (1.0, [0.0, 2.0]),
    ],
)
def test_slerp_by_hand(t, expected):
    """From [1, 0] to [0, 2]: a right angle, and lengths that differ."""
    assert merged("slerp", [[1.0, 0.0], [0.0, 2.0]], {"t": t}) == pytest.approx(expected, abs=5e-7)


def test_slerp_of_one_direction_is_linear():
    assert merged("slerp", [[1.0, 2.0], [2.0, 4.0]], {"t": 0.25}) == pytest.approx([1.25, 2.5])
    assert merged("slerp", [[0.0, 0.0], [2.0, 4.0]], {"t": 0.25}) == [0.5, 1.0]
    assert merged("slerp", [[1.0], [-3.0]], {"t": 0.25}) == [0.0]


# Three task vectors of five numbers, of which density 0.6 keeps three; trimmed by hand, their sums are 0, -3, 0, -2 and 4.
TAUS = [[2.0, -1.0, 0.5, 0.1, 3.0], [-3.0, 2.0, 0.2, 0.4, 1.0], [1.0, -4.0, 0.3, -2.0, 0.6]]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0, -2.5, 0, -2, 2]),  # the mean of those that agree; a vote of zero contributes nothing
        ({"reduce": "sum"}, [0, -5, 0, -2, 4]),
        ({"undecided": "positive"}, [1.5, -2.5, 0, -2, 2]),  # (2 + 1) / 2 wins where the vote is zero
        ({"reduce": "max"}, [0, -4, 0, -2, 3]),
        ({"lambda": 2.0}, [0, -5, 0, -4, 4]),
        # votes 2 - 1.5 + 0.5, -1 + 1 - 2, 0, -1, 3 + 0.5; then (2 + 0.5) / 1.5, (-1 - 2) / 1.5, 0, -1 / 0.5, 3.5 / 1.5
        ({"weight": weights(1, 0.5, 0.5)}, [1.666667, -2, 0, -2, 2.333333]),
        ({"weight": weights(1, 0.5, 0.5), "reduce": "sum"}, [2.5, -3, 0, -1, 3.5]),
        # by the count of signs + wins 2 to 1 in the first place, and all else is as before
        ({"elect": "count"}, [1.5, -2.5, 0, -2, 2]),
    ],
)
def test_ties_by_hand(parameters, expected):
    assert merged("ties", TAUS, {"density": 0.6, **parameters}) == pytest.approx(expected, abs=5e-7)


def test_dare_by_hand(monkeypatch):
    """Noise [0.1, 0.9, 0.2, 0.5] at p = 1/2 keeps the first and third; 1/(1-p) = 2."""
    monkeypatch.setattr("evomerge.merging.stages.uniform", lambda *key: torch.tensor([0.1, 0.9, 0.2, 0.5]))
    rows = [[1.0, 2.0, 3.0, 4.0], [-3.0, 2.0, 5.0, 1.0]]
    assert merged("dare_linear", rows[:1], {"drop": 0.5}) == [2, 0, 6, 0]
    assert merged("dare_linear", rows, {"drop": 0.5}) == [-4, 0, 16, 0]
    assert merged("dare_ties", rows, {"drop": 0.5}) == [-6, 0, 8, 0]


# -- reductions to each other --


MODELS = (tiny_tensors(0), [tiny_tensors(1 + i, tiny_tensors(0)) for i in range(3)])
LABELS = ["a", "b", "c"]


def run(method, parameters=None, inputs=MODELS[1], seed=0, base=MODELS[0]):
    return merge_tensors(merge(method, LABELS[: len(inputs)], parameters, seed=seed), base, inputs)


def assert_same(found, expected, tolerance=1e-6):
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=tolerance, atol=tolerance), name


def test_task_arithmetic_at_one_over_k_is_the_mean():
    assert_same(run("task_arithmetic", {"lambda": 1 / 3}), run("linear"))


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_alone_and_untouched_an_input_is_itself(method):
    parameters = {"linear": {}, "ties": {"density": 1}, "dare_ties": {"drop": 0}}[method]
    assert_same(run(method, parameters, MODELS[1][:1]), MODELS[1][0])


def test_ties_of_agreeing_signs_untrimmed_is_the_mean():
    base = MODELS[0]
    inputs = [{name: t + (0.1 + 0.2 * i) * (t != 0) for name, t in base.items()} for i in range(3)]
    assert_same(run("ties", {"density": 1}, inputs), run("linear", inputs=inputs))


def test_ties_alone_is_the_trimmed_task_vector():
    base, expert = MODELS[0], MODELS[1][0]
    delta = oracle.trim({name: (expert[name] - base[name]).numpy() for name in base}, 0.2, "model")
    found = run("ties", {"density": 0.2}, [expert])
    assert_same(found, {name: base[name] + torch.from_numpy(np.asarray(delta[name])) for name in base})


def test_dare_without_drops_is_what_it_wraps():
    assert_same(run("dare_linear", {"drop": 0, "lambda": 0.3}), run("task_arithmetic"))
    assert_same(run("dare_ties", {"drop": 0, "density": 0.5}), run("ties", {"density": 0.5}))


def test_ties_scales_and_flips_with_its_task_vectors():
    zeros = {name: torch.zeros_like(t) for name, t in MODELS[0].items()}
    parameters = {"density": 0.3}
    expected = run("ties", parameters, base=zeros)
    for factor in (2.0, -1.0, 0.25):
        scaled = [{name: factor * t for name, t in model.items()} for model in MODELS[1]]
        found = run("ties", parameters, scaled, base=zeros)
        for name, tensor in found.items():
            assert torch.equal(tensor, factor * expected[name])


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_task_arithmetic_is_linear_in_lambda(one, other):
    base, inputs = {"t": torch.zeros(7)}, [{"t": torch.arange(7.0)}, {"t": torch.ones(7)}]
    at = [
        merge_tensors(merge("task_arithmetic", LABELS[:2], {"lambda": v}), base, inputs)["t"]
        for v in (one, other, (one + other) / 2)
    ]
    assert torch.allclose(at[2], (at[0] + at[1]) / 2, atol=1e-5)


def test_slerp_keeps_the_length_between_equal_lengths():
    generator = torch.Generator().manual_seed(0)
    ends = torch.nn.functional.normalize(torch.randn(2, 500, generator=generator), dim=1)
    for t in (0.1, 0.5, 0.8):
        assert np.linalg.norm(merged("slerp", ends.tolist(), {"t": t})) == pytest.approx(1, abs=1e-6)


# -- the oracle --

CASES = {
    "linear": oracle.linear,
    "task_arithmetic": lambda b, e, w: oracle.task_arithmetic(b, e, w, 0.7),
    "ties": lambda b, e, w: oracle.ties(b, e, w, 0.25, 0.7),
    "ties per tensor": lambda b, e, w: oracle.ties(b, e, w, 0.25, 0.7, scope="tensor"),
    "ties by sum": lambda b, e, w: oracle.ties(b, e, w, 0.25, 0.7, reduce="sum"),
    "dare_linear": lambda b, e, w: oracle.dare_linear(b, e, LABELS, w, 0.75, 0.7, 5),
    "dare_ties": lambda b, e, w: oracle.dare_ties(b, e, LABELS, w, 0.75, 0.7, 5),
}
PARAMETERS = {
    "linear": {},
    "task_arithmetic": {"lambda": 0.7},
    "ties": {"density": 0.25, "lambda": 0.7},
    "ties per tensor": {"density": 0.25, "lambda": 0.7, "scope": "tensor"},
    "ties by sum": {"density": 0.25, "lambda": 0.7, "reduce": "sum"},
    "dare_linear": {"drop": 0.75, "lambda": 0.7},
    "dare_ties": {"drop": 0.75, "lambda": 0.7},
}


def ulps(found, expected):
    """Return how many representable numbers lie between two tensors of one 16 or 32 bit dtype, at most."""
    kind = torch.int16 if found.element_size() == 2 else torch.int32

    def order(tensor):
        bits = tensor.contiguous().view(kind).long()
        return torch.where(bits < 0, -(bits & torch.iinfo(kind).max), bits)

    return int((order(found) - order(expected)).abs().max()) if found.numel() else 0


def models_in(dtype):
    return [{name: t.to(dtype) for name, t in model.items()} for model in (MODELS[0], *MODELS[1])]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_within_one_ulp_of_the_oracle(case, dtype):
    base, *inputs = models_in(dtype)
    mix = [0.5, 0.25, 0.75]
    parameters = {"weight": {"per": ["expert"], "values": dict(zip(LABELS, mix, strict=True))}, **PARAMETERS[case]}
    found = run(case.split(" ")[0], parameters, inputs, seed=5, base=base)
    expected = CASES[case](oracle.as_float64(base), [oracle.as_float64(e) for e in inputs], mix)
    for name, tensor in found.items():
        assert ulps(tensor, torch.from_numpy(np.asarray(expected[name])).to(dtype)) <= 1, name


@pytest.mark.parametrize("case", CASES)
def test_single_precision_is_near_the_oracle(case):
    base, *inputs = models_in(torch.float32)
    mix = [0.5, 0.25, 0.75]
    parameters = {"weight": {"per": ["expert"], "values": dict(zip(LABELS, mix, strict=True))}, **PARAMETERS[case]}
    found = run(case.split(" ")[0], parameters, inputs, seed=5)
    expected = CASES[case](oracle.as_float64(base), [oracle.as_float64(e) for e in inputs], mix)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_within_one_ulp_of_the_oracle(t):
    _, one, other, _ = models_in(torch.bfloat16)
    found = run("slerp", {"t": t}, [one, other], base=models_in(torch.bfloat16)[0])
    expected = oracle.slerp(oracle.as_float64(one), oracle.as_float64(other), t)
    for name, tensor in found.items():
        assert ulps(tensor, torch.from_numpy(np.asarray(expected[name])).bfloat16()) <= 1, name


# -- what is refused --


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
