"""Search spaces: every point of the box is a valid recipe, and every such recipe is a point of the box."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import genomes, stack_templates, templates

from evomerge import merging
from evomerge.errors import EvomergeError, RecipeError, SpaceError
from evomerge.recipe import Recipe, expert
from evomerge.space import SearchSpace
from evomerge.trial import Proposal

EXPERTS = ("maths", "code")


def of(parameters, method="ties", **more):
    template = {"merge": {"method": method, "inputs": "experts", "parameters": parameters}}
    return SearchSpace(template, experts=EXPERTS, **more)


@settings(max_examples=40)
@given(templates(EXPERTS), st.data())
def test_decode_is_total_and_encode_inverts_it(template, data):
    searched = SearchSpace(template, experts=EXPERTS, kinds=("attention", "mlp"), blocks=4)
    count = len(searched.genes)
    for genome in (data.draw(genomes(count)), data.draw(genomes(count, -1, 3)), searched.initial):
        recipe = searched.decode(genome)
        merging.check(recipe)
        again = searched.encode(recipe)
        assert searched.decode(again) == recipe
        inside = np.clip(genome, searched.lower, searched.upper)
        whole = [gene.kind != "float" for gene in searched.genes]
        assert np.allclose(again[~np.array(whole)], inside[~np.array(whole)], rtol=0, atol=0)
        assert (again[whole] == np.floor(inside[whole] + 0.5)).all()


TENSORS = ("embed.weight", "layers.0.mlp.weight", "layers.1.mlp.weight")


def test_a_table_over_tensors_has_a_gene_for_each():
    parameters = {"weight": {"float": [0, 1], "per": ["expert", "tensor"]}, "lambda": 1}
    searched = of(parameters, "task_arithmetic", blocks=4, tensors=TENSORS)
    assert [gene.name for gene in searched.genes] == [f"weight[{e},{t}]" for e in EXPERTS for t in TENSORS]
    genome = np.linspace(0.1, 0.9, len(searched.genes))
    recipe = searched.decode(genome)
    table = recipe.data["merge"]["parameters"]["weight"]["values"]
    assert [table[e][t] for e in EXPERTS for t in TENSORS] == genome.tolist()
    assert (searched.encode(recipe) == genome).all()
    assert list(searched.landmarks()) == ["init", "base", "expert maths", "expert code", "mean"]


@pytest.mark.parametrize("value", [{"float": [0, 1], "per": ["tensor"]}, {"per": ["tensor"], "values": {"a": 1}}])
def test_a_table_over_tensors_needs_their_names(value):
    with pytest.raises(SpaceError, match="depends on the model; expected the names of its merged `tensors`"):
        of({"weight": value}, blocks=4)


def test_a_table_in_a_space_over_a_tensor_that_the_model_lacks_is_refused():
    parameters = {"weight": {"float": [0, 1]}, "density": {"per": ["tensor"], "values": dict.fromkeys(TENSORS, 0.5)}}
    of(parameters, blocks=4, tensors=TENSORS)
    parameters["density"]["values"]["layers.2.mlp.weight"] = 0.5
    with pytest.raises(SpaceError, match=r"an entry for `layers.2.mlp.weight`, which is no merged tensor"):
        of(parameters, blocks=4, tensors=TENSORS)


@settings(max_examples=30)
@given(templates(EXPERTS), st.data())
def test_unit_cube_is_the_box(template, data):
    searched = SearchSpace(template, experts=EXPERTS, kinds=("attention", "mlp"))
    unit = data.draw(genomes(len(searched.genes), 0, 1))
    genome = searched.from_unit(unit)
    assert (searched.lower <= genome).all()
    assert (genome <= searched.upper).all()
    assert np.allclose(searched.to_unit(genome), unit, atol=1e-9)
    assert np.allclose(searched.from_unit(np.zeros(len(unit))), searched.lower, rtol=1e-12)
    assert np.allclose(searched.from_unit(np.ones(len(unit))), searched.upper, rtol=1e-12)
    assert searched.from_unit(np.stack([unit, unit])).shape == (2, len(unit))


def test_log_genes_are_uniform_in_their_logarithm():
    searched = of({"density": {"float": [0.01, 1], "log": True}})
    assert searched.from_unit(np.array([0.5])) == pytest.approx(0.1)
    assert searched.initial == pytest.approx(0.1)


def test_genes_are_named_by_their_cells():
    searched = of({"weight": {"float": [0, 1], "per": ["expert", "block/2"]}, "density": {"float": [0.1, 1]}}, blocks=4)
    assert [gene.name for gene in searched.genes] == [
        "weight[maths,block 0]",
        "weight[maths,block 1]",
        "weight[code,block 0]",
        "weight[code,block 1]",
        "density",
    ]
    found = searched.decode(np.array([0.1, 0.2, 0.3, 0.4, 0.5])).data["merge"]["parameters"]
    assert found == {
        "weight": {"per": ["expert", "block/2"], "values": {"maths": [0.1, 0.2], "code": [0.3, 0.4]}},
        "density": 0.5,
    }


def test_holes_of_one_name_have_different_gene_names():
    inner = {"merge": {"method": "linear", "inputs": "experts", "parameters": {"weight": {"float": [0, 1]}}}}
    template = {"merge": {"method": "ties", "inputs": [inner, "maths"], "parameters": {"weight": {"float": [0, 1]}}}}
    names = [gene.name for gene in SearchSpace(template, experts=EXPERTS).genes]
    assert len(set(names)) == 2


def test_choices_and_integers_decode_to_their_values():
    template = {
        "merge": {
            "method": {"choice": ["ties", "dare_ties", "linear"]},
            "inputs": "experts",
            "seed": {"int": [-3, 3], "init": 1},
        }
    }
    searched = SearchSpace(template, experts=EXPERTS)
    names = [gene.name for gene in searched.genes]
    assert names == ["method", "seed"]
    assert searched.initial.tolist() == [0, 1]
    found = searched.decode(np.array([1.4, -2.5])).root.merge
    assert (found.method, found.seed) == ("dare_ties", -2)
    assert searched.decode(np.array([99.0, 99.0])).root.merge.method == "linear"
    for seed in range(-3, 4):  # also 0, the default, which canonical JSON leaves out
        assert searched.encode(searched.decode(np.array([2, seed]))).tolist() == [2, seed]


def test_a_recipe_can_be_an_option():
    mean = {"merge": {"method": "linear", "inputs": list(EXPERTS)}}
    template = {
        "merge": {"method": "linear", "inputs": ["maths", {"choice": ["code", "base", mean]}], "seed": {"int": [0, 1]}}
    }
    searched = SearchSpace(template, experts=EXPERTS)
    for option in range(3):
        genome = np.array([option, 0.0])
        assert searched.encode(searched.decode(genome)).tolist() == genome.tolist()


def test_similar_options_are_distinguished():
    template = {"merge": {"inputs": ["maths"], "stages": {"post": [{"scale": {"lambda": {"choice": [0, 1, 0.5]}}}]}}}
    searched = SearchSpace(template, experts=EXPERTS)
    assert [searched.encode(searched.decode(np.array([float(i)]))).item() for i in range(3)] == [0, 1, 2]


def test_a_plain_number_is_spread_over_a_table():
    searched = of({"weight": {"float": [0, 1], "per": ["expert"]}})
    plain = Recipe.parse({"merge": {"method": "ties", "inputs": list(EXPERTS), "parameters": {"weight": 0.25}}})
    assert searched.encode(plain).tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"method": "ties", "inputs": ["maths", "code"], "parameters": {"weight": 2}},
            r"gene `weight`: expected a number in \[0, 1\], got 2",
        ),
        ({"method": "ties", "inputs": ["maths", "code"], "parameters": {"weight": "x"}}, "got 'x'"),
        ({"method": "ties", "inputs": ["maths", "code"]}, "gene `weight`: expected a number in .*, got nothing"),
        (
            {"method": "linear", "inputs": ["maths", "code"], "parameters": {"weight": 1}},
            "differs from the space outside its holes",
        ),
        (
            {"method": "ties", "inputs": ["code", "maths"], "parameters": {"weight": 1}},
            "differs from the space outside its holes",
        ),
        ({"method": "ties", "inputs": ["maths", "code"], "parameters": {"weight": 1}, "seed": 3}, "outside its holes"),
        (
            {
                "method": "ties",
                "inputs": ["maths", "code"],
                "parameters": {"weight": {"per": ["block/2"], "values": [0, 1]}},
            },
            r"the recipe tiles a parameter over \['block/2'\], the space over \[\]",
        ),
    ],
)
def test_recipes_outside_of_the_space_are_refused(data, message):
    with pytest.raises(SpaceError, match=message):
        of({"weight": {"float": [0, 1]}}).encode(Recipe.parse({"merge": data}))
    with pytest.raises(SpaceError):
        of({"weight": {"float": [0, 1]}}).encode(expert("maths"))


@pytest.mark.parametrize("genome", [np.array([np.nan]), np.array([np.inf]), np.zeros(2), np.zeros((1, 1)), np.zeros(0)])
def test_invalid_genomes_are_refused(genome):
    with pytest.raises(SpaceError, match=r"`weight` is not finite|shape \(1,\)"):
        of({"weight": {"float": [0, 1]}}).decode(genome)


WRONG = [
    ("no hole", {"density": 0.2}, "has no holes; expected at least one"),
    (
        "bounds the wrong way",
        {"density": {"float": [1, 0]}},
        r"hole `density`: `float` is \[1, 0\]; expected two finite numbers \[low, high\] with low < high",
    ),
    ("equal bounds", {"density": {"float": [1, 1]}}, "low < high"),
    ("one bound", {"density": {"float": [1]}}, "low < high"),
    ("no bounds", {"density": {"float": None}}, "low < high"),
    ("bounds in words", {"density": {"float": ["a", "b"]}}, "low < high"),
    ("infinite bounds", {"density": {"float": [0, math.inf]}}, "finite"),
    ("NaN as a bound", {"density": {"float": [math.nan, 1]}}, "finite"),
    ("huge bounds", {"density": {"float": [0, 10**400]}}, "finite"),
    ("halves of integers", {"density": {"int": [0, 1.5]}}, "`int` is"),
    ("two kinds", {"density": {"int": [0, 1], "float": [0, 1]}}, "has float and int; expected one of them"),
    ("one option", {"density": {"choice": [1]}}, "two or more options"),
    (
        "a hole in an option of a tiled choice",
        {"density": {"choice": [0.1, {"float": [0, 1]}], "per": ["expert"]}},
        "an option holds another hole, which a choice with `per` cannot have",
    ),
    (
        "a misspelt key",
        {"density": {"float": [0, 1], "int_": 1}},
        "hole `density`: unknown key `int_`; did you mean `int`",
    ),
    (
        "init outside",
        {"density": {"float": [0, 0.5], "init": 0.7}},
        r"gene `density`: expected a number in \[0, 0.5\], got 0.7",
    ),
    ("half an init", {"density": {"int": [0, 1], "init": 0.5}}, "expected an integer"),
    (
        "an unknown option as init",
        {"scope": {"choice": ["model", "tensor"], "init": "row"}},
        r"expected one of \['model', 'tensor'\], got 'row'",
    ),
    ("log from zero", {"density": {"float": [0, 1], "log": True}}, "a positive range"),
    ("log of a choice", {"scope": {"choice": ["model", "tensor"], "log": True}}, "`log` is True"),
    ("sd of zero", {"density": {"float": [0, 1], "sd": 0}}, "`sd` is 0; expected a number above 0"),
    ("sd in words", {"density": {"float": [0, 1], "sd": "wide"}}, "`sd` is 'wide'; expected a number above 0"),
    ("sd of a choice", {"scope": {"choice": ["model", "tensor"], "sd": 1}}, "of a `float` without `log`"),
    ("log in words", {"density": {"float": [0.1, 1], "log": "yes"}}, "expected true or false"),
    ("per in one word", {"weight": {"float": [0, 1], "per": "expert"}}, r"`per` is 'expert'; expected a list of axes"),
    ("per a number", {"weight": {"float": [0, 1], "per": 3}}, "expected a list of axes"),
    ("an unknown axis", {"weight": {"float": [0, 1], "per": ["blocks/3"]}}, "unknown axis 'blocks/3'"),
    (
        "more groups than blocks",
        {"weight": {"float": [0, 1], "per": ["block/5"]}},
        "the model has 4 blocks; type `block/4` or less",
    ),
    (
        "a fixed table of more groups than blocks",
        {"weight": {"float": [0, 1]}, "density": {"per": ["block/5"], "values": [1] * 5}},
        "the model has 4 blocks",
    ),
    (
        "a parameter that is not there",
        {"densty": {"float": [0, 1]}},
        "no valid recipe: method `ties`: unknown parameter `densty`; did you mean `density`",
    ),
    (
        "a range beyond the parameter's",
        {"density": {"float": [0, 2]}},
        r"no valid recipe: .*`density` is 2.0; expected a number in \[0, 1\]",
    ),
    (
        "a tile that the parameter does not take",
        {"scope": {"choice": ["model", "tensor"], "per": ["expert"]}},
        "remove `expert` from its `per`",
    ),
    ("words along the depth", {"scope": {"choice": ["model", "tensor"], "per": ["depth/2"]}}, "cannot interpolate"),
    (
        "a table over other experts",
        {"weight": {"float": [0, 1]}, "density": {"per": ["expert"], "values": {"law": 1}}},
        "no entry for the input `maths`",
    ),
]


@pytest.mark.parametrize(("parameters", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_spaces_are_refused_before_any_search(parameters, message):
    with pytest.raises(EvomergeError, match=message):
        of(parameters, blocks=4)


def test_a_choice_of_methods_must_suit_its_parameters():
    with pytest.raises(SpaceError, match="method `linear`: unknown parameter `density`"):
        of({"density": {"float": [0, 1]}}, method={"choice": ["ties", "linear"]})


def test_tiles_over_experts_outside_of_a_merge_are_refused():
    with pytest.raises(SpaceError, match=r"`per: \[expert\]` stands outside any merge"):
        SearchSpace({"expert": {"choice": ["maths", "code"], "per": ["expert"]}}, experts=EXPERTS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"recip": 1, "recipe": {}}, "search space: unknown key `recip`; did you mean `recipe`"),
        ({"About": "x", "recipe": {}}, "unknown key `About`; did you mean `about`"),
        ({}, "search space: `recipe` is missing"),
        ("x", "search space"),
        ({"recipe": {}, "driver": "nsga2"}, "`driver`: expected a mapping, got 'nsga2'"),
    ],
)
def test_wrong_space_files_say_what_is_wrong(data, message):
    with pytest.raises(SpaceError, match=message):
        SearchSpace.parse(data, experts=EXPERTS)


def test_landmarks_are_the_models_of_their_names():
    searched = of(
        {"weight": {"float": [0, 1], "per": ["expert", "kind"]}, "lambda": {"float": [0.5, 2]}}, "task_arithmetic"
    )
    marks = searched.landmarks()
    assert list(marks) == ["init", "base", "expert maths", "expert code", "mean"]
    values = searched.decode(marks["expert code"]).data["merge"]["parameters"]
    assert set(values["weight"]["values"]["maths"].values()) == {0}
    assert set(values["weight"]["values"]["code"].values()) == {1}
    assert values["lambda"] == 1


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("linear", {"weight": {"float": [0, 1], "per": ["expert"]}}, {"init", "expert maths", "expert code", "mean"}),
        ("linear", {"weight": {"float": [0, 1]}}, {"init", "mean"}),
        ("task_arithmetic", {"lambda": {"float": [0, 1]}}, {"init"}),
        ("task_arithmetic", {"weight": {"float": [0, 1]}, "lambda": 1.0}, {"init", "base", "mean"}),
        ("task_arithmetic", {"weight": {"float": [0, 0.7], "per": ["expert"]}, "lambda": 1}, {"init", "base", "mean"}),
        ("task_arithmetic", {"weight": {"float": [0, 1], "per": ["expert"]}, "lambda": 1, "reduce": "max"}, {"init"}),
        (
            "task_arithmetic",
            {"weight": {"float": [0, 1], "per": ["expert"]}, "lambda": 1, "reduce": {"choice": ["max", "sum"]}},
            {"init", "base", "expert maths", "expert code", "mean"},
        ),
        (
            "ties",
            {"weight": {"float": [0, 1], "per": ["expert"]}, "density": {"float": [0.1, 1]}},
            {"init", "base", "expert maths", "expert code"},
        ),
        ("ties", {"weight": {"float": [0, 1], "per": ["expert"]}}, {"init"}),  # the default density trims
        ("dare_ties", {"weight": {"float": [0, 1], "per": ["expert"]}, "drop": {"float": [0.1, 0.9]}}, {"init"}),
        (
            "dare_ties",
            {"weight": {"float": [0, 1], "per": ["expert"]}, "drop": {"float": [0, 0.9]}},
            {"init", "base", "expert maths", "expert code"},
        ),
        ("slerp", {"t": {"float": [0, 1], "per": ["block/2"]}}, {"init", "expert maths", "expert code"}),
    ],
)
def test_landmarks_are_those_that_the_space_can_express(method, parameters, expected):
    assert set(of(parameters, method, blocks=4).landmarks()) == expected


def test_large_spaces_decode_fast_enough():
    """A thousand genes, in well under the two milliseconds that a driver may take (generous here: other work shares the machine)."""
    searched = of({"weight": {"float": [0, 1], "per": ["expert", "block/500"]}}, "task_arithmetic", blocks=500)
    assert len(searched.genes) == 1000
    genome = searched.initial
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        _ = searched.decode(genome).id
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02


def staged(edit):
    weigh = [{"weight": {"weight": {"float": [0, 1], "per": ["expert"]}}}]
    template = {"merge": {"inputs": "experts", "stages": {"edit": edit, "weigh": weigh, "post": ["scale"]}}}
    return SearchSpace(template, experts=EXPERTS)


def test_the_stage_itself_can_be_a_gene():
    searched = staged({"choice": ["none", "trim", "dare", "della"]})
    for i, name in enumerate(("none", "trim", "dare", "della")):
        genome = searched.initial.copy()
        genome[0] = i
        recipe = searched.decode(genome)
        assert recipe.root.merge.stages.edit == (name,)
        assert (searched.encode(recipe) == genome).all()


def test_an_option_brings_its_own_genes():
    searched = staged(
        {
            "choice": [
                "none",
                {"trim": {"density": {"float": [0.05, 1]}, "scope": {"choice": ["model", "tensor"]}}},
                {"dare": {"drop": {"float": [0, 0.9], "per": ["expert"]}}},
            ]
        }
    )
    names = [gene.name for gene in searched.genes]
    assert names[:4] == ["edit", "density", "scope", f"drop[{EXPERTS[0]}]"]
    generator = np.random.default_rng(0)
    for _ in range(50):
        recipe = searched.decode(generator.uniform(searched.lower, searched.upper))
        merging.check(recipe)
        assert searched.decode(searched.encode(recipe)) == recipe
    genome = searched.initial.copy()
    genome[:3] = 1, 0.25, 1
    (stage,) = searched.decode(genome).root.merge.stages.edit
    assert stage == {"trim": {"density": 0.25, "scope": "tensor"}}


def test_genes_of_options_not_chosen_do_nothing():
    searched = staged({"choice": ["none", {"trim": {"density": {"float": [0.05, 1]}}}]})
    one, other = searched.initial.copy(), searched.initial.copy()
    one[:2], other[:2] = (0, 0.1), (0, 0.9)
    assert searched.decode(one) == searched.decode(other)


def test_invalid_ranges_inside_an_option_are_refused_before_any_search():
    with pytest.raises(SpaceError, match=r"`density`.*expected a number in \[0, 1\]"):
        staged({"choice": ["none", {"trim": {"density": {"float": [0.5, 2]}}}]})


def stacked(blocks=4, experts=EXPERTS, rest="base", **stack):
    return SearchSpace({"stack": {"rest": rest, **stack}}, experts=experts, blocks=blocks)


BITS = {"bit": "first", "per": ["slot"]}


@settings(max_examples=60, deadline=None)
@given(stack_templates(EXPERTS), st.data())
def test_any_genome_is_a_stack(template, data):
    searched = SearchSpace(template, experts=EXPERTS, blocks=3)
    count = len(searched.genes)
    some = st.sets(st.integers(0, count - 1), max_size=4)
    few = searched.initial.copy()
    flipped = sorted(data.draw(some))
    few[flipped] = (searched.lower + searched.upper - few)[flipped]
    for genome in (data.draw(genomes(count, -0.5, 2)), few, searched.lower, searched.upper, searched.initial):
        merging.check(searched.decode(genome))


def test_path_has_a_bit_for_each_slot_and_starts_as_the_first_source():
    searched = stacked(2, path={"sources": "experts", "repeat": 2, "include": BITS})
    assert [gene.name for gene in searched.genes] == [
        "include[maths 0 #1]",
        "include[maths 1 #1]",
        "include[code 0 #1]",
        "include[code 1 #1]",
        "include[maths 0 #2]",
        "include[maths 1 #2]",
        "include[code 0 #2]",
        "include[code 1 #2]",
    ]
    assert searched.initial.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert {(gene.kind, gene.low, gene.high) for gene in searched.genes} == {("bit", 0, 1)}
    assert all(stacked(2, path={"sources": "experts", "include": {**BITS, "bit": True}}).initial)


def test_genes_of_stacks_are_named_by_layers():
    pairs = {"float": [0, 2], "init": 1, "per": ["from", "to"]}
    searched = stacked(
        2, path={"sources": ["base", {"merge": {"method": "linear", "inputs": "experts"}}], "scale": pairs}
    )
    assert searched.genes[2].name == "scale[base 0,merge 0]"
    assert len(searched.genes) == 16
    swapped = stacked(4, swap={"source": {"choice": ["base", "experts"], "per": ["block/2"]}})
    assert [gene.name for gene in swapped.genes] == ["source[block 0]", "source[block 1]"]
    assert swapped.genes[0].choices == ("base", {"expert": "maths"}, {"expert": "code"})


def test_genomes_of_one_path_are_one_recipe():
    scale = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    searched = stacked(path={"sources": "experts", "repeat": 2, "include": BITS, "scale": scale})
    dead = searched.initial.copy()
    dead[len(dead) // 2 + 4 :] = 0.7  # scales of slots that are not included
    assert searched.decode(dead).id == searched.decode(searched.initial).id
    again = searched.initial.copy()
    again[[0, 8]] = 0, 1  # maths 0 of the second copy follows maths 3: another path
    assert searched.decode(again).id != searched.decode(searched.initial).id
    first = searched.initial.copy()
    first[0] = 0  # the first layer is put there
    assert searched.decode(first).id == searched.decode(searched.initial).id


def test_landmarks_of_stacks_are_all_layers_of_one_model():
    swapped = stacked(swap={"source": {"choice": ["base", "code"], "per": ["layer"]}})
    assert list(swapped.landmarks()) == ["init", "layers of base", "layers of code"]
    path = {"sources": "experts", "include": BITS, "scale": {"float": [0.5, 1.5], "init": 0.8, "per": ["slot"]}}
    marks = stacked(path=path).landmarks()
    assert list(marks) == ["init", "layers of maths"]  # a path of code's layers ends with one of maths
    free = stacked(path={**path, "ends": False})
    slots = free.decode(free.landmarks()["layers of code"]).root.stack.slots
    assert [(slot.source, slot.layer, slot.scale) for slot in slots] == [(expert("code"), i, 1) for i in range(4)]


SWAP = {"stack": {"rest": "base", "swap": {"source": {"choice": "experts", "per": ["layer"]}}}}
NESTED = {
    "a stack in a merge": {
        "merge": {"method": "linear", "inputs": [SWAP, "maths"], "parameters": {"weight": {"float": [0, 1], "per": ["expert"]}}}
    },
    "a stack in a path": {"stack": {"rest": SWAP, "path": {"sources": [SWAP, "code"], "include": BITS}}},
    "a choice in a path": {
        "stack": {"rest": "base", "path": {"sources": [{"choice": ["base", "maths"]}, "code"], "include": BITS}}
    },
    "slots": {"stack": {"rest": "base", "slots": [{"source": {"choice": "experts"}, "layer": {"int": [0, 3]}}] * 3}},
}  # fmt: skip


@pytest.mark.parametrize("template", NESTED.values(), ids=NESTED)
def test_stacks_nest(template):
    searched = SearchSpace(template, experts=EXPERTS, blocks=4)
    assert "init" in searched.landmarks()
    assert len({gene.name for gene in searched.genes}) == len(searched.genes)
    generator = np.random.default_rng(0)
    for _ in range(20):
        recipe = searched.decode(generator.uniform(searched.lower, searched.upper))
        merging.check(recipe)
        if list(template) == ["stack"] and "slots" in template["stack"]:
            assert searched.decode(searched.encode(recipe)) == recipe


def test_stacks_of_short_forms_have_no_genome_but_the_recorded_one():
    searched = stacked(path={"sources": "experts", "include": BITS})
    genome = searched.initial
    recipe = searched.decode(genome)
    assert searched.genome_of(Proposal(0, recipe, genome)) is genome
    with pytest.raises(SpaceError, match="only in a journal of format 2; start the study anew"):
        searched.genome_of(Proposal(0, recipe))


WRONG_STACKS = [
    ("a bit elsewhere", {"swap": {"source": "maths", "scale": {"bit": True, "per": ["layer"]}}}, "a bit stands at the `include`"),
    ("a bit for all", {"path": {"sources": "experts", "include": {"bit": True}}}, "a bit stands at the `include`"),
    ("a bit in halves", {"path": {"sources": "experts", "include": {"bit": 0.5, "per": ["slot"]}}}, "expected how it starts: true, false, or"),
    ("init of a bit", {"path": {"sources": "experts", "include": {**BITS, "init": True}}}, "and no `init`"),
    ("another axis", {"path": {"sources": "experts", "include": {"bit": True, "per": ["expert"]}}}, r"`include.per` is \['expert'\]; expected \[slot\]"),
    ("slots outside of a path", {"slots": [{"source": "maths", "layer": 0, "scale": {"float": [0, 1], "per": ["slot"]}}]}, "unknown axis 'slot'"),
    ("a layer that is not there", {"slots": [{"source": "maths", "layer": {"int": [0, 4]}}]}, "no valid recipe: stack: .* no layer 4"),
    ("an unknown expert", {"path": {"sources": ["maths", "law"], "include": BITS}}, "the pool has no expert `law`"),
    ("no room", {"path": {"sources": "experts", "include": BITS, "longest": 0.25}}, "type 0.5 or more"),
    ("a hole for the sources", {"path": {"sources": {"choice": [["maths"], ["code"]]}, "include": BITS}}, "`sources`"),
    ("a short form as an option", {"path": {"sources": [{"choice": ["base", {"stack": {"rest": "base", "swap": {"source": "maths"}}}]}], "include": BITS}}, "an option is a stack with a `path` or `swap`"),
    ("a source of another depth", {"path": {"sources": [{"stack": {"rest": "base", "path": {"sources": ["maths"], "include": BITS}}}, "code"]}}, "is a stack of 2 layers; expected 4"),
]  # fmt: skip


@pytest.mark.parametrize(("stack", "message"), [case[1:] for case in WRONG_STACKS], ids=[c[0] for c in WRONG_STACKS])
def test_wrong_stacks_are_refused_before_any_search(stack, message):
    with pytest.raises(EvomergeError, match=message):
        stacked(**stack)


HOSTILE = {
    "a list as a member": ({"merge": {"method": "linear", "inputs": [{"member": ["a"]}, {"member": "b"}], "parameters": {"weight": {"float": [0, 1]}}}}, "member"),
    "half a character": ({"merge": {"method": "linear", "inputs": [{"member": "\ud800"}], "parameters": {"weight": {"float": [0, 1]}}}}, "printable characters"),
    "a huge bound": ({"stack": {"path": {"sources": "experts", "include": BITS, "shortest": 1e308}}}, "less than or equal to"),
    "a huge axis": ({"merge": {"method": "linear", "inputs": "experts", "parameters": {"weight": {"float": [0, 1], "per": ["depth/100000000"]}}}}, "N up to 9999"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "message"), HOSTILE.values(), ids=HOSTILE)
def test_values_out_of_all_bounds_are_one_clear_error(template, message):
    with pytest.raises((SpaceError, RecipeError), match=message):
        SearchSpace(template, experts=EXPERTS, blocks=4)


def test_short_forms_need_the_number_of_blocks():
    with pytest.raises(SpaceError, match="expected its number of `blocks`"):
        stacked(None, path={"sources": "experts", "include": BITS})


def test_the_papers_own_space_is_affordable():
    """192 bits and a 64 x 64 matrix of scales (arXiv 2403.13187), in well under a second: other work shares the machine."""
    start = time.perf_counter()
    searched = stacked(
        32,
        path={
            "sources": "experts",
            "repeat": 3,
            "include": BITS,
            "scale": {"float": [0.5, 1.5], "init": 1, "per": ["from", "to"]},
            "longest": 1.25,
        },
    )
    assert time.perf_counter() - start < 1
    assert len(searched.genes) == 192 + 64 * 64
    assert set(searched.landmarks()) == {"init", "layers of maths"}


def test_names_of_earlier_candidates_are_filled_with_their_ids():
    template = {
        "merge": {
            "method": "slerp",
            "inputs": [{"member": "mother"}, {"member": "father"}],
            "parameters": {"t": {"float": [0, 1]}},
            "seed": {"int": [0, 2147483647]},
        }
    }
    space = SearchSpace(template, experts=["maths"], blocks=4)
    assert space.parents == ("mother", "father")
    one, two = "1" * 64, "2" * 64
    child = space.decode(np.array([0.25, 77.0]), [one, two])
    assert child.members == (one, two)
    assert child.root.merge.seed == 77
    with pytest.raises(SpaceError, match="the space crosses 2 earlier candidates, got 1"):
        space.decode(space.initial, [one])
