"""Slopes of genes: by the chain rule from those of the recipe's numbers, compared with finite differences of `decode`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import genomes, stack_templates, templates

from evomerge import space as spaces
from evomerge.errors import SpaceError
from evomerge.space import Box, SearchSpace

EXPERTS = ("maths", "code", "prose")


def of(parameters, method="task_arithmetic", **more):
    template = {"merge": {"method": method, "inputs": "experts", "parameters": parameters}}
    return SearchSpace(template, experts=EXPERTS, blocks=4, **more)


def numbers_of(recipe):
    """Return the values of a recipe's numbers, `(numbers,)`."""
    values = []
    for path in recipe.numbers:
        value = recipe.explicit
        for key in path:
            value = value[key]
        values.append(value)
    return np.array(values, float)


def differences(space, genome, coefficients, genes):
    """Return the central differences of a linear function of the recipe's numbers, `(genes,)`, NaN for other genes."""
    found = np.full(len(genome), np.nan)
    for gene in genes:
        step = np.zeros(len(genome))
        step[gene] = 1e-4 * (space.upper[gene] - space.lower[gene])
        ends = [coefficients @ numbers_of(space.decode(genome + sign * step)) for sign in (1, -1)]
        found[gene] = (ends[0] - ends[1]) / (2 * step[gene])
    return found


@settings(max_examples=25)
@given(templates(EXPERTS[:2]), st.data())
def test_slopes_are_the_differences_of_a_linear_function_of_the_numbers(template, data):
    """Of any tiling, of log genes, of nested merges."""
    space = SearchSpace(template, experts=EXPERTS[:2], kinds=("attention", "mlp"), blocks=4)
    genome = space.from_unit(data.draw(genomes(len(space.genes), 0.1, 0.9)))
    floats = [i for i, gene in enumerate(space.genes) if gene.kind == "float"]
    coefficients = np.linspace(-1, 2, len(space.decode(genome).numbers))
    found = space.slopes(genome, coefficients)
    assert found == pytest.approx(differences(space, genome, coefficients, floats), abs=1e-7, nan_ok=True)


@pytest.mark.parametrize("per", [["depth/3", "expert"], ["expert", "block/2"], ["tensor", "expert"]])
def test_slopes_of_a_table_are_those_of_its_entries(per):
    space = of({"weight": {"float": [0, 1], "per": per}, "lambda": 1}, tensors=("b", "a"))
    genome = np.linspace(0.2, 0.8, len(space.genes))
    coefficients = np.arange(1.0, 2 + len(genome))  # lambda is a number too
    found = space.slopes(genome, coefficients)
    assert found == pytest.approx(differences(space, genome, coefficients, range(len(genome))), abs=1e-9)
    assert sorted(found) == [float(i) for i in range(2, 2 + len(genome))]


@pytest.mark.parametrize("total", [[0, 2], 1.5])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_slopes_of_a_mixture_pass_through_its_weights(total, count):
    experts = [f"e{i}" for i in range(count)]
    merge = {"method": "task_arithmetic", "inputs": "experts"}
    merge["parameters"] = {"lambda": {"float": [0, 1]}, "weight": {"mixture": total, "per": ["expert"]}}
    space = SearchSpace({"merge": merge}, experts=experts)
    genome = space.from_unit(np.random.default_rng(count).uniform(0.1, 0.9, len(space.genes)))
    coefficients = np.random.default_rng(0).standard_normal(count + 1)
    found = space.slopes(genome, coefficients)
    assert found == pytest.approx(differences(space, genome, coefficients, range(len(genome))), rel=1e-5, abs=1e-6)
    assert space.sloped.all()


def test_slopes_of_a_mixture_are_finite_at_its_corners():
    space = of({"weight": {"mixture": [0, 2], "per": ["expert"]}})
    for corner in (space.lower, space.upper, np.array([1.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])):
        assert np.isfinite(space.slopes(corner, np.array([1.0, -2.0, 3.0]))).all()


def test_a_number_without_slope_gives_its_genes_none():
    space = of({"weight": {"float": [0, 1], "per": ["expert"]}, "density": {"float": [0.1, 1]}}, "ties")
    assert space.sloped.tolist() == [True, True, True, False]
    found = space.slopes(space.initial, np.array([np.nan, 1.0, 2.0, 3.0]))  # density, then code, maths, prose
    assert found == pytest.approx([2, 1, 3, np.nan], nan_ok=True)
    mixed = of({"weight": {"mixture": 1, "per": ["expert"]}}, "linear")
    assert np.isnan(mixed.slopes(mixed.initial, np.array([1.0, np.nan, 1.0]))).all()


def test_genes_that_are_no_smooth_parameters_have_no_slopes():
    scale = {"float": [0, 1]}
    stages = {
        "edit": {"choice": ["none", {"trim": {"density": scale}}]},
        "weigh": {"elect": {"weight": {"float": [0, 1], "per": ["expert"]}}},
        "post": [{"scale": {"lambda": {"choice": [0.5, 1]}}}],
    }
    space = SearchSpace({"merge": {"inputs": "experts", "stages": stages, "seed": {"int": [0, 9]}}}, experts=EXPERTS)
    names = [gene.name for gene in space.genes]
    have = dict(zip(names, space.sloped.tolist(), strict=True))
    assert have == {name: name.startswith("weight") for name in names}
    for option in (0, 1):
        genome = space.initial.copy()
        genome[names.index("edit")] = option
        numbers = space.decode(genome).numbers
        paths = [path[-1] for path in numbers]
        coefficients = np.arange(1.0, 1 + len(numbers))
        expected = [coefficients[paths.index(n[7:-1])] if n.startswith("weight") else np.nan for n in names]
        assert space.slopes(genome, coefficients) == pytest.approx(expected, nan_ok=True)


def test_an_int_gene_has_a_slope_as_a_float_would():
    space = of({"lambda": {"int": [0, 2]}})
    assert space.sloped.tolist() == [True]
    assert space.slopes(np.array([1.0]), np.array([-4.0])) == pytest.approx([-4])


def test_weights_of_any_method_that_may_be_chosen_have_slopes_only_if_all_have():
    weight = {"weight": {"float": [0, 1]}}
    assert of(weight, {"choice": ["task_arithmetic", "ties"]}).sloped.tolist() == [False, True]
    scope = {"choice": ["model", "tensor"]}
    assert of({"scope": scope, **weight}, "ties").sloped.tolist() == [False, True]


@settings(max_examples=10)
@given(stack_templates(EXPERTS[:2]))
def test_spaces_of_stacks_have_no_slopes(template):
    space = SearchSpace(template, experts=EXPERTS[:2], blocks=3)
    assert not space.sloped.any()
    count = len(space.decode(space.initial).numbers)
    assert np.isnan(space.slopes(space.initial, np.ones(count))).all()


@pytest.mark.parametrize("name", ["task_arithmetic", "ties_per_block", "lines", "slerp_per_block", "linear_mixture"])
def test_shipped_spaces_have_slopes_where_a_merge_is_smooth(name):
    experts = EXPERTS[:2] if name == "slerp_per_block" else EXPERTS
    space = SearchSpace.parse(spaces.read(name), experts=experts, blocks=6)
    without = {gene.name for gene, has in zip(space.genes, space.sloped, strict=True) if not has}
    assert without == ({"density"} if name == "ties_per_block" else set())


def test_merges_of_earlier_candidates_have_slopes():
    merge = {"method": "linear", "inputs": [{"member": "a"}, {"member": "b"}]}
    merge["parameters"] = {"weight": {"float": [0.1, 1], "per": ["expert"]}}
    space = SearchSpace({"merge": merge}, experts=EXPERTS)
    assert space.sloped.all()
    assert space.slopes(space.initial, np.array([1.0, 2.0])).tolist() == [1, 2]


def test_a_wrong_number_of_slopes_is_refused():
    space = of({"lambda": {"float": [0, 2]}})
    with pytest.raises(SpaceError, match=r"expected a slope for each number of the recipe, \(1,\); got \(2,\)"):
        space.slopes(space.initial, np.ones(2))
    with pytest.raises(SpaceError, match=r"expected a slope for each gene, \(1,\); got \(3,\)"):
        Box({"x": (0, 1)}).slopes(np.zeros(1), np.ones(3))


def test_slopes_of_a_box_are_those_of_its_values():
    box = Box({"x": (-5, 5), "layers": {"int": [1, 8]}, "rate": {"float": [0.1, 1], "log": True}, "norm": ["a", "b"]})
    assert box.sloped.tolist() == [True, False, True, False]
    assert box.slopes(box.initial, np.array([1.0, 2, 3, 4])) == pytest.approx([1, np.nan, 3, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("method", "parameter", "passes"), [("task_arithmetic", "lambda", True), ("slerp", "t", False)]
)
def test_slopes_pass_to_nested_merges_unless_what_they_give_is_measured(method, parameter, passes):
    weight = {"weight": {"float": [0, 1]}}
    inner = {"merge": {"method": "linear", "inputs": ["maths", "code"], "parameters": weight}}
    merge = {"method": method, "inputs": [inner, "prose"], "parameters": {parameter: {"float": [0, 1]}}}
    space = SearchSpace({"merge": merge}, experts=EXPERTS)
    assert [gene.name for gene in space.genes] == ["weight", parameter]
    assert space.sloped.tolist() == [passes, True]
