"""Each method: the suite that all must keep, worked examples by hand, an oracle in float64, and what never changes."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from merging.vectors import each, fix_noise, merged
from strategies import parameters_of, tiny_models

from evomerge.errors import RecipeError
from evomerge.merging import METHODS, STAGES, check
from evomerge.recipe import Recipe, merge
from evomerge.testing import MethodSuite, inputs_of, merge_tensors, tiny_tensors


class TestLinear(MethodSuite):
    name = "linear"
    normalises = True


class TestMwa(MethodSuite):
    name = "mwa"
    normalises = True


class TestTaskArithmetic(MethodSuite):
    name = "task_arithmetic"


class TestLines(MethodSuite):
    name = "lines"


class TestSlerp(MethodSuite):
    name = "slerp"
    normalises = True
    symmetric = False


class TestSplitSlerp(MethodSuite):
    name = "split_slerp"
    normalises = True
    symmetric = False


class TestNuslerp(MethodSuite):
    name = "nuslerp"
    normalises = True


class TestMultislerp(MethodSuite):
    name = "multislerp"
    normalises = True


class TestKarcher(MethodSuite):
    name = "karcher"
    normalises = True


class TestModelStock(MethodSuite):
    name = "model_stock"


class TestTies(MethodSuite):
    name = "ties"


class TestDareLinear(MethodSuite):
    name = "dare_linear"


class TestDareTies(MethodSuite):
    name = "dare_ties"


class TestDella(MethodSuite):
    name = "della"


class TestDellaLinear(MethodSuite):
    name = "della_linear"


class TestBreadcrumbs(MethodSuite):
    name = "breadcrumbs"


class TestBreadcrumbsTies(MethodSuite):
    name = "breadcrumbs_ties"


class TestSce(MethodSuite):
    name = "sce"
    normalises = True


class TestPcb(MethodSuite):
    name = "pcb"


class TestConsensus(MethodSuite):
    name = "consensus"


class TestConsensusTies(MethodSuite):
    name = "consensus_ties"


class TestTsv(MethodSuite):
    name = "tsv"


class TestIsoC(MethodSuite):
    name = "iso_c"


class TestIsoCts(MethodSuite):
    name = "iso_cts"


class TestOpcm(MethodSuite):
    name = "opcm"
    symmetric = False


class TestSvdMutate(MethodSuite):
    name = "svd_mutate"
    symmetric = False


class TestLayerSwap(MethodSuite):
    name = "layer_swap"
    normalises = True
    symmetric = False


class TestNearswap(MethodSuite):
    name = "nearswap"


def test_every_method_is_held_to_the_suite():
    assert {suite.name for suite in MethodSuite.__subclasses__()} == set(METHODS)


def test_every_method_names_known_stages_and_valid_defaults():
    for method in METHODS.values():
        assert method.about
        assert all(stage in STAGES for stage in method.stages)
        for name, spec in method.parameters.items():
            spec.check(name, spec.default)


# -- worked examples: vectors over a base of zeros --


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


# -- reductions to each other --


MODELS = (tiny_tensors(0), [tiny_tensors(1 + i, tiny_tensors(0)) for i in range(3)])
LABELS = ["a", "b", "c"]


def run(method, parameters=None, inputs=MODELS[1], seed=0, base=MODELS[0]):
    return merge_tensors(merge(method, LABELS[: len(inputs)], parameters, seed=seed), base, inputs)


def assert_same(found, expected, tolerance=1e-6):
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=tolerance, atol=tolerance), name


def content(tensors):
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_task_arithmetic_at_one_over_k_is_the_mean():
    assert_same(run("task_arithmetic", {"lambda": 1 / 3}), run("linear"))


WHOLE = {
    "linear": {},
    "mwa": {},
    "task_arithmetic": {"lambda": 1},
    "lines": {"alpha": 1, "beta": 0},
    "multislerp": {},
    "karcher": {},
    "ties": {"density": 1},
    "dare_linear": {"drop": 0},
    "dare_ties": {"drop": 0},
    "della": {"density": 1, "lambda": 1},
    "della_linear": {"density": 1},
    "breadcrumbs": {"density": 1, "lambda": 1},
    "breadcrumbs_ties": {"density": 1},
    "sce": {},
    "consensus": {"agree": 1, "lambda": 1},
    "consensus_ties": {"density": 1, "agree": 1, "lambda": 1},
    "tsv": {},
    "opcm": {},
    "nearswap": {"t": 1e6},
}
"""Parameters at which a merge of one input is that input. Others take two, or change what is alone: pcb, iso."""


@pytest.mark.parametrize("method", WHOLE)
def test_alone_and_untouched_an_input_is_itself(method):
    assert_same(run(method, WHOLE[method], MODELS[1][:1]), MODELS[1][0], 2e-6)


def test_ties_of_agreeing_signs_untrimmed_is_the_mean():
    base = MODELS[0]
    inputs = [{name: t + (0.1 + 0.2 * i) * (t != 0) for name, t in base.items()} for i in range(3)]
    assert_same(run("ties", {"density": 1}, inputs), run("linear", inputs=inputs))


@pytest.mark.parametrize("undecided", ["none", "positive", "majority"])
def test_elected_methods_at_full_density_are_ties(undecided):
    parameters = {"undecided": undecided, "lambda": 0.7}
    expected = run("ties", {"density": 1, **parameters})
    assert content(run("dare_ties", {"drop": 0, **parameters})) == content(expected)
    assert content(run("della", {"density": 1, **parameters})) == content(expected)
    assert content(run("breadcrumbs_ties", {"density": 1, "gamma": 0, **parameters})) == content(expected)


def test_dare_without_drops_is_what_it_wraps():
    assert_same(run("dare_linear", {"drop": 0, "lambda": 0.3}), run("task_arithmetic"))
    assert_same(run("dare_ties", {"drop": 0, "density": 0.5}), run("ties", {"density": 0.5}))


def test_consensus_of_no_agreement_is_what_it_gates():
    assert content(run("consensus", {"agree": 0})) == content(run("task_arithmetic"))
    assert content(run("consensus", {"agree": 4})) == content(MODELS[0])
    trimmed = {"reduce": "sum", "lambda": 0.3}
    assert content(run("consensus_ties", {"agree": 0})) == content(run("ties", trimmed))


def test_lines_without_growth_is_task_arithmetic():
    assert_same(run("lines", {"alpha": 0.3, "beta": 0}), run("task_arithmetic", {"lambda": 0.3}))


def test_breadcrumbs_that_drop_no_large_ones_trim():
    parameters = {"density": 0.3, "scope": "model"}
    assert content(run("breadcrumbs_ties", {**parameters, "gamma": 0})) == content(run("ties", parameters))


def test_two_equal_task_vectors_leave_model_stock_nothing_to_doubt():
    equal = [MODELS[1][0]] * 3
    large = [name for name, tensor in MODELS[0].items() if tensor.numel() > 1]
    found = run("model_stock", inputs=equal)
    assert_same({name: found[name] for name in large}, MODELS[1][0])


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_task_arithmetic_is_linear_in_lambda(one, other):
    base, inputs = {"t": torch.zeros(7)}, [{"t": torch.arange(7.0)}, {"t": torch.ones(7)}]
    at = [
        merge_tensors(merge("task_arithmetic", LABELS[:2], {"lambda": v}), base, inputs)["t"]
        for v in (one, other, (one + other) / 2)
    ]
    assert torch.allclose(at[2], (at[0] + at[1]) / 2, atol=1e-5)


# -- the oracle --

MIX = [0.5, 0.25, 0.75]
TRIM = {"density": 0.25, "lambda": 0.7}
CASES = {
    "linear": {"weight": MIX},
    "mwa": {"metric": [2.0, 0.5, 1.25], "power": 1.5, "better": "lower"},
    "mwa of scores": {"metric": [2.0, 0.5, 1.25], "power": 1.5, "better": "higher"},
    "task_arithmetic": {"weight": MIX, "lambda": 0.7},
    "lines": {"weight": MIX, "alpha": "auto", "beta": 0.4},
    "lines from a number": {"weight": MIX, "alpha": 0.2, "beta": 0.4},
    "slerp": {"t": 0.3},
    "split_slerp": {"split": 0.4, "t": 0.3},
    "split_slerp of kinds": {"split": 0.4, "t": 0.3, "over": "kind"},
    "split_slerp of tensors": {"split": 0.4, "t": 0.3, "over": "tensor"},
    "split_slerp, an angle for each part": {"split": 0.4, "t": 0.3, "angle": "part"},
    "split_slerp of kinds, an angle for each part": {"split": 0.7, "t": 0.2, "angle": "part", "over": "kind"},
    "split_slerp of tensors, an angle for each part": {"split": 0.7, "t": 0.2, "angle": "part", "over": "tensor"},
    "nuslerp": {"weight": MIX[:2]},
    "multislerp": {"weight": MIX},
    "karcher": {"weight": MIX},
    "model_stock": {},
    "ties": {"weight": MIX, **TRIM},
    "ties per tensor": {"weight": MIX, **TRIM, "scope": "tensor"},
    "ties by sum": {"weight": MIX, **TRIM, "reduce": "sum"},
    "ties by max": {"weight": MIX, **TRIM, "reduce": "max"},
    "ties by count": {"weight": MIX, **TRIM, "elect": "count"},
    "ties by count, ties positive": {"weight": MIX, **TRIM, "elect": "count", "undecided": "positive"},
    "ties by count, ties as the majority": {"weight": MIX, **TRIM, "elect": "count", "undecided": "majority"},
    "dare_linear": {"weight": MIX, "drop": 0.75, "lambda": 0.7},
    "dare_linear to the L1 norm": {"weight": MIX, "drop": 0.75, "lambda": 0.7, "rescale": "l1"},
    "dare_ties": {"weight": MIX, "drop": 0.75, "density": 1.0, "lambda": 0.7},
    "dare_ties, trimmed": {"weight": MIX, "drop": 0.5, "density": 0.25, "lambda": 0.7},
    "della": {"weight": MIX, "density": 0.41, "epsilon": 0.15, "lambda": 0.7},
    "della_linear": {"weight": MIX, "density": 0.41, "epsilon": 0.15, "lambda": 0.7},
    "della_linear to the L1 norm": {"weight": MIX, "density": 0.41, "epsilon": 0.15, "lambda": 0.7, "rescale": "l1"},
    "breadcrumbs": {"weight": MIX, "density": 0.3, "gamma": 0.02, "lambda": 0.7},
    "breadcrumbs_ties": {"weight": MIX, "density": 0.3, "gamma": 0.02, "lambda": 0.7},
    "sce": {"select": 1.0},
    "sce of some": {"select": 0.3},
    "pcb": {"variant": "es", "ratio": 0.2, "clip": 0.01, "lambda": 0.7},
    "pcb of pcb.py": {"variant": "pcb", "ratio": 0.2, "clip": 0.01, "lambda": 0.7},
    "pcb of pcb-merging.py": {"variant": "merging", "ratio": 0.2, "clip": 1e-4, "lambda": 0.7},
    "pcb of the paper": {"variant": "paper", "ratio": 0.25, "clip": 0.0, "lambda": 0.7, "factor": [0.8, 1.2, 1.0]},
    "consensus": {"weight": MIX, "threshold": 0.4, "agree": 2, "lambda": 0.7},
    "consensus_ties": {"weight": MIX, "density": 0.25, "threshold": 0.4, "agree": 2, "lambda": 0.7},
    "tsv": {"weight": MIX, "lambda": 0.7},
    "iso_c": {"lambda": 0.7},
    "iso_cts": {"common": 0.5, "lambda": 0.7},
    "opcm": {"alpha": 0.5},
    "opcm of little": {"alpha": 0.9},
    "svd_mutate": {"rate": 0.5},
    "layer_swap": {"bottom": 1, "top": 1, "transition": 1, "outside": "second"},
    "nearswap": {"t": 0.05},
}


def test_every_method_has_an_oracle():
    assert {case.split(" ")[0].strip(",") for case in CASES} == set(METHODS)


def compute(case, dtype):
    """Return the merge of the models in a dtype, and the oracle's in float64."""
    method = case.split(" ")[0].strip(",")
    inputs = inputs_of(method)
    base, *experts = ({name: t.to(dtype) for name, t in model.items()} for model in (MODELS[0], *MODELS[1][:inputs]))
    labels = LABELS[:inputs]
    tables = {
        name: {"per": ["expert"], "values": dict(zip(labels, value, strict=True))} if isinstance(value, list) else value
        for name, value in CASES[case].items()
    }
    found = run(method, tables, experts, seed=5, base=base)
    return found, oracle.merge(
        method, oracle.as_float64(base), [oracle.as_float64(e) for e in experts], labels, CASES[case], seed=5
    )


def assert_within_one_ulp(found, expected, name):
    """Of a 16 bit dtype; where base and task vectors cancel to almost nothing, within fp32's rounding of them instead."""
    rounded = torch.from_numpy(np.asarray(expected)).to(found.dtype)

    def order(tensor):
        bits = tensor.contiguous().view(torch.int16).long()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    apart = ((order(found) - order(rounded)).abs() > 1) & ((found - rounded).abs().double() > 1e-6)
    assert not apart.any(), f"{name}: {found[apart]} instead of {rounded[apart]}"


@pytest.mark.parametrize("case", CASES)
def test_half_precision_is_within_one_ulp_of_the_oracle(case):
    if case == "sce of some":
        pytest.skip("so few values have many equal variances, which fp32's rounding tells apart at the threshold")
    found, expected = compute(case, torch.bfloat16)
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert_within_one_ulp(tensor, expected[name], name)


@pytest.mark.parametrize("case", CASES)
def test_single_precision_is_near_the_oracle(case):
    found, expected = compute(case, torch.float32)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=4e-6, atol=4e-6, err_msg=name)


# -- what never changes --


def or_refused(method, models, parameters=None, seed=0):
    """Merge, or give up the example where its numbers have no such merge: opposite directions, say."""
    base, inputs = models
    try:
        return run(method, parameters, inputs, seed, base)
    except RecipeError:
        reject()


every_method = pytest.mark.parametrize("method", METHODS)
few = settings(max_examples=10)


@every_method
@few
@given(st.data())
def test_any_parameters_of_any_models_give_finite_numbers(method, data):
    models = data.draw(tiny_models(inputs_of(method)))
    parameters = data.draw(parameters_of(method, LABELS[: inputs_of(method)]))
    found = or_refused(method, models, parameters)
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    assert [tensor.shape for tensor in found.values()] == [tensor.shape for tensor in models[0].values()]


@every_method
@few
@given(st.data())
def test_models_that_are_the_base_give_the_base_bit_for_bit(method, data):
    base, _ = data.draw(tiny_models())
    found = or_refused(method, (base, [base] * inputs_of(method)))
    if METHODS[method].origin == "base":
        assert content(found) == content(base)
    else:
        assert_same(found, base)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if "lambda" in method.parameters])
@few
@given(st.data())
def test_a_scale_of_zero_gives_the_base_bit_for_bit(method, data):
    models = data.draw(tiny_models())
    found = or_refused(method, models, {"lambda": 0})
    assert content(found) == content(models[0])


ORDERED = {"slerp", "split_slerp", "layer_swap", "svd_mutate", "opcm"}
FLAT = {"della": {"rescale": "none"}, "della_linear": {"rescale": "none"}}
"""Sums of numbers that were divided have other last bits in another order, and then signs that cancel another winner."""


@pytest.mark.parametrize("method", sorted(set(METHODS) - ORDERED - {"pcb"}))
@few
@given(st.data())
def test_inputs_may_be_named_in_any_order(method, data):
    base, inputs = data.draw(tiny_models(inputs_of(method)))
    order = data.draw(st.permutations(range(len(inputs))))
    expected = or_refused(method, (base, inputs), FLAT.get(method))
    turned = merge(method, [LABELS[i] for i in order], FLAT.get(method))
    assert_same(merge_tensors(turned, base, [inputs[i] for i in order]), expected, 2e-5)


UNSCALED = {"nearswap"}
"""Its t is in the weights' own units."""
SIGNED = {"sce"}
"""Where votes cancel, + wins."""


@pytest.mark.parametrize("method", sorted(set(METHODS) - UNSCALED))
@few
@given(st.data())
def test_task_vectors_times_a_number_give_that_number_times_the_merge(method, data):
    base, inputs = data.draw(tiny_models(inputs_of(method)))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    factor = data.draw(st.sampled_from([2.0, 0.25] if method in SIGNED else [2.0, 0.25, -1.0, -4.0]))
    expected = or_refused(method, (zeros, inputs))
    scaled = [{name: factor * tensor for name, tensor in model.items()} for model in inputs]
    found = or_refused(method, (zeros, scaled))
    assert_same(found, {name: factor * tensor for name, tensor in expected.items()})


PLACED = {"dare_linear", "dare_ties", "della", "della_linear"}
"""Their noise belongs to an element's place."""


@pytest.mark.parametrize("method", sorted(set(METHODS) - PLACED))
@settings(max_examples=4)
@given(st.data())
def test_rows_that_change_places_in_all_models_change_places_in_the_merge(method, data):
    models = [{name: t for name, t in model.items() if t.dim() == 2} for model in (MODELS[0], *MODELS[1])]
    models = [{name: t[:9] for name, t in model.items()} for model in models][: 1 + inputs_of(method)]
    orders = {name: data.draw(st.permutations(range(len(t)))) for name, t in models[0].items()}
    turned = [{name: t[orders[name]] for name, t in model.items()} for model in models]
    expected = run(method, None, models[1:], base=models[0])
    found = run(method, None, turned[1:], base=turned[0])
    assert_same(found, {name: t[orders[name]] for name, t in expected.items()}, 1e-5)


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
        (
            {"method": "lines", "inputs": ["a"], "parameters": {"alpha": "automatic"}},
            r"`alpha` is 'automatic'; expected a number in \[-10, 10\], or one of auto",
        ),
        (
            {"method": "layer_swap", "inputs": ["a", "b"], "parameters": {"top": 1.5}},
            r"`top` is 1.5; expected a whole number in \[0, 10000\]",
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
