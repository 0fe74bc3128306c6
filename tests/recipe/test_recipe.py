"""Recipes: one canonical form and id however they are written, and errors that name what is wrong."""

import contextlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import plain, recipes

from evomerge import recipe, strict_yaml
from evomerge.errors import EvomergeError, RecipeError
from evomerge.recipe import Recipe, canonical_json


def ties(**more):
    return {"merge": {"method": "ties", "inputs": ["maths", "code"], **more}}


@given(recipes())
def test_canonical_json_reads_back_to_the_same_recipe(data):
    one = Recipe.parse(data)
    for form in (one.data, one.explicit, json.loads(one.json), strict_yaml.parse(strict_yaml.text(one.data), "f")):
        other = Recipe.parse(form)
        assert other == one
        assert other.id == one.id
        assert other.json == one.json
        assert hash(other) == hash(one)


@pytest.mark.parametrize(
    "other",
    [
        {"merge": {"inputs": [{"expert": "maths"}, {"expert": "code"}], "method": "ties"}},
        ties(seed=0),
        ties(parameters={}),
        {"merge": {"method": "ties", "inputs": "experts"}},
    ],
)
def test_ways_to_write_one_recipe_have_one_id(other):
    assert Recipe.parse(other, experts=["maths", "code"]).id == Recipe.parse(ties()).id


def test_floats_of_integer_value_are_integers_and_keys_are_sorted():
    one = Recipe.parse(ties(parameters={"density": 1.0, "lambda": -0.0}))
    assert one.id == Recipe.parse(ties(parameters={"lambda": 0, "density": 1})).id
    assert (
        one.json
        == '{"merge":{"inputs":[{"expert":"maths"},{"expert":"code"}],"method":"ties","parameters":{"density":1,"lambda":0}}}'
    )


def test_id_never_changes():
    """Journals hold ids: the form of the canonical JSON is for ever."""
    assert recipe.base().json == '"base"'
    assert recipe.base().id == "751bbc009e4ccaff946a3bc62bf453a7b95af64a0e55530e8f1f4d031fa41822"
    assert Recipe.parse(ties(parameters={"density": 0.2}, seed=7)).id == (
        "547f76dcd50cab94e15c4f28cf7a25229a5187fc6ea779baf27c3cc6d28c5cea"
    )


@pytest.mark.parametrize(
    "other",
    [
        ties(seed=1),
        ties(parameters={"density": 0.2}),
        ties(parameters={"density": 0.30000000000000004}),
        {"merge": {"method": "ties", "inputs": ["code", "maths"]}},
        {"merge": {"method": "linear", "inputs": ["maths", "code"]}},
    ],
)
def test_different_recipes_differ(other):
    assert Recipe.parse(other) != Recipe.parse(ties())
    assert Recipe.parse(ties(parameters={"density": 0.3})).id != Recipe.parse(other).id


def test_floats_keep_every_bit():
    value = 0.1 + 0.2
    assert Recipe.parse(ties(parameters={"density": value})).data["merge"]["parameters"]["density"] == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_have_no_canonical_form(number):
    with pytest.raises(RecipeError, match="expected finite numbers only"):
        canonical_json({"a": [number]})
    with pytest.raises(RecipeError, match="finite"):
        _ = Recipe.parse(ties(parameters={"density": number})).id


def test_experts_are_those_of_all_nested_merges():
    data = {"merge": {"method": "linear", "inputs": ["law", ties(), "base"]}}
    assert Recipe.parse(data).experts == ("law", "maths", "code")
    assert Recipe.parse(data).root.merge.labels == ("law", "#1", "base")


def test_numbers_are_those_of_all_merges_parameters_in_the_order_of_the_json():
    table = {"per": ["expert", "block/2"], "values": {"maths": [1, 2.5], "#1": [0, -1]}}
    inner = ties(parameters={"scope": "tensor", "density": 0.5}, seed=3)
    outer = {"merge": {"method": "linear", "inputs": ["maths", inner], "parameters": {"weight": table, "a": True}}}
    made = Recipe.parse({"stack": {"slots": [{"source": outer, "layer": 1, "scale": 0.5}], "rest": "base"}})
    start = ("stack", "slots", 0, "source", "merge")
    assert made.numbers == (
        (*start, "inputs", 1, "merge", "parameters", "density"),
        *((*start, "parameters", "weight", "values", name, i) for name in ("#1", "maths") for i in (0, 1)),
    )


def test_numbers_are_those_of_stages_too():
    stages = {"weigh": [{"weight": {"weight": {"per": ["kind"], "values": {"norm": 1, "mlp": 2}}}}, "elect"]}
    stages |= {"edit": {"trim": {"density": 0.5, "scope": "tensor"}}, "post": "none"}
    start = ("merge", "stages")
    assert Recipe.parse({"merge": {"inputs": ["a"], "stages": stages, "seed": 7}}).numbers == (
        (*start, "edit", 0, "trim", "density"),
        (*start, "weigh", 0, "weight", "weight", "values", "mlp"),
        (*start, "weigh", 0, "weight", "weight", "values", "norm"),
    )
    assert Recipe.parse("base").numbers == ()


@given(recipes())
def test_numbers_lead_to_numbers_and_their_change_is_all_that_makes_recipes_of_one_form_differ(data):
    one = Recipe.parse(data)
    explicit = one.explicit
    for path in one.numbers:
        *inner, last = path
        value = explicit
        for key in inner:
            value = value[key]
        assert type(value[last]) in (int, float)
        value[last] += 0.5
    other = Recipe.parse(explicit)
    assert other.numbers == one.numbers
    assert (other != one) == bool(one.numbers)


def stack(*slots, rest="base"):
    keys = ("source", "layer", "scale")
    return Recipe.parse({"stack": {"slots": [dict(zip(keys, slot, strict=False)) for slot in slots], "rest": rest}})


def test_stack_keeps_its_slots_in_order_and_leaves_out_scales_of_one():
    made = stack(("maths", 3), ("code", 0, 1.0), ("maths", 3, 0.5))
    slots = '[{"layer":3,"source":{"expert":"maths"}},{"layer":0,"source":{"expert":"code"}},'
    slots += '{"layer":3,"scale":0.5,"source":{"expert":"maths"}}]'
    assert made.json == f'{{"stack":{{"rest":"base","slots":{slots}}}}}'
    assert Recipe.parse(made.data) == Recipe.parse(made.explicit) == made
    assert made.experts == ("maths", "code")


def test_members_are_those_of_all_nested_recipes():
    one, two = "1" * 64, "2" * 64
    data = {"merge": {"method": "linear", "inputs": [{"member": one}, "law", {"member": two}]}}
    made = Recipe.parse({"stack": {"slots": [{"source": data, "layer": 0}], "rest": {"member": two}}})
    assert made.members == (one, two)
    assert made.experts == ("law",)
    assert Recipe.parse(made.data) == made
    assert Recipe.parse(data).root.merge.labels == ("#0", "law", "#2")


def test_prefix_digests_are_equal_as_far_as_stacks_are():
    one = stack(("a", 0), ("a", 1), ("b", 2, 0.5), ("a", 3)).prefix_digests
    assert len(set(one)) == 4
    for other, shared in [
        (stack(("a", 0), ("a", 1), ("b", 2, 0.5)), 3),
        (stack(("a", 0), ("a", 1), ("b", 2), ("a", 3)), 2),
        (stack(("a", 0), ("b", 1), ("b", 2, 0.5), ("a", 3)), 1),
        (stack(("a", 0), ("a", 1), rest="a"), 0),
    ]:
        assert [x == y for x, y in zip(one, other.prefix_digests, strict=False)] == [
            i < shared for i in range(len(other.prefix_digests))
        ]
    assert Recipe.parse("base").prefix_digests == ()


WRONG = [
    (
        "a list",
        [],
        r"a recipe is `base`, `expert: NAME`, `member: ID`, `merge: {...}`, `stack: {...}`, `align: {...}`, `condense: {...}`, `repair: {...}`, `narrow: {...}`, `pleas: {...}` or `zipit: {...}`; got \[\]",
    ),
    ("a number", 3, "got 3"),
    ("nothing", None, "got None"),
    ("two kinds", {"base": True, "expert": "a"}, "got keys base, expert; expected one key, such as `base` alone"),
    ("a key beside a kind", {"tasks": ["a"], "zipit": {}}, "expected one key, such as `zipit` alone: indent"),
    ("a misspelt kind", {"marge": {}}, "did you mean `merge`"),
    (
        "a misspelt key",
        {"merge": {"methode": "ties", "inputs": ["a"]}},
        "unknown key `merge.methode`; did you mean `method`",
    ),
    (
        "a key in capitals",
        {"merge": {"Method": "ties", "inputs": ["a"]}},
        "unknown key `merge.Method`; did you mean `method`",
    ),
    (
        "a nested misspelt key",
        {"merge": {"method": "linear", "inputs": ["b", ties(sed=1)]}},
        r"`merge.inputs.1.merge.sed`; did you mean `seed`",
    ),
    ("no inputs", {"merge": {"method": "ties"}}, "`merge.inputs` is missing"),
    ("a stack of nothing", {"stack": {"slots": [], "rest": "base"}}, "`stack.slots`: expected at least one entry"),
    ("a stack without a rest", {"stack": {"slots": [{"source": "a", "layer": 0}]}}, "`stack.rest` is missing"),
    (
        "a misspelt key of a slot",
        {"stack": {"slots": [{"source": "a", "layer": 0, "scael": 2}], "rest": "base"}},
        "`stack.slots.0.scael`; did you mean `scale`",
    ),
    (
        "a layer before the first",
        {"stack": {"slots": [{"source": "a", "layer": -1}], "rest": "base"}},
        "`stack.slots.0.layer`: input should be greater than or equal to 0, got -1",
    ),
    (
        "a scale that is not finite",
        {"stack": {"slots": [{"source": "a", "layer": 0, "scale": float("inf")}], "rest": "base"}},
        "`stack.slots.0.scale`: expected a finite number, got inf",
    ),
    ("empty inputs", {"merge": {"method": "ties", "inputs": []}}, "`merge.inputs`: expected at least one entry"),
    (
        "inputs in one word",
        {"merge": {"method": "ties", "inputs": "maths"}},
        "`merge.inputs`: expected a list, got 'maths'",
    ),
    ("an input twice", {"merge": {"method": "ties", "inputs": ["a", "b", "a"]}}, "names an input twice: a, b, a"),
    ("the base twice", {"merge": {"method": "ties", "inputs": ["base", {"base": True}]}}, "twice: base, base"),
    ("neither method nor stages", {"merge": {"inputs": ["a"]}}, "exactly one of `method` and `stages`"),
    ("both method and stages", ties(stages={}), "exactly one of `method` and `stages`"),
    (
        "parameters beside stages",
        {"merge": {"inputs": ["a"], "stages": {}, "parameters": {"x": 1}}},
        "write each parameter inside its stage",
    ),
    ("a merge of a number", {"merge": 3}, "`merge`: expected a mapping, got 3"),
    ("a seed in words", ties(seed="x"), "`merge.seed`: expected an integer, got 'x'"),
    ("half a seed", ties(seed=0.5), "`merge.seed`: expected an integer, got 0.5"),
    ("an expert without a name", {"expert": ""}, "`expert`: expected a word"),
    ("no base", {"base": False}, "`base`"),
    ("a member that is no id", {"member": "3"}, "`member`: "),
    ("a misspelt role", {"merge": {"inputs": ["a"], "stages": {"edt": []}}}, "`merge.stages.edt`; did you mean `edit`"),
    (
        "a stage of two",
        {"merge": {"inputs": ["a"], "stages": {"edit": [{"trim": {}, "drop": {}}]}}},
        "a stage is `name` or",
    ),
    ("a stage of none", {"merge": {"inputs": ["a"], "stages": {"edit": [{}]}}}, "a stage is `name` or"),
    (
        "a stage's parameters as a number",
        {"merge": {"inputs": ["a"], "stages": {"edit": [{"trim": 3}]}}},
        "`merge.stages.edit.0.trim`: expected a mapping",
    ),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_recipes_say_what_is_wrong_and_what_to_type(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(data)


def test_unknown_experts_are_named():
    with pytest.raises(RecipeError, match="the pool has no expert `mats`; did you mean `maths`"):
        Recipe.parse({"merge": {"method": "ties", "inputs": ["mats"]}}, experts=["maths", "code"])


@given(
    plain
    | st.fixed_dictionaries(
        {
            "merge": st.fixed_dictionaries(
                {}, optional=dict.fromkeys(("method", "inputs", "parameters", "stages", "seed"), plain)
            )
        }
    )
)
def test_any_data_is_a_recipe_or_a_recipe_error(data):
    with contextlib.suppress(RecipeError):
        _ = Recipe.parse(data).id


def test_errors_are_also_builtin_exceptions():
    assert issubclass(RecipeError, EvomergeError)
    assert issubclass(RecipeError, ValueError)


def test_children_are_the_recipes_directly_inside():
    inner = {"merge": {"method": "linear", "inputs": ["maths", "base"]}}
    slots = [{"source": inner, "layer": 0}, {"source": "code", "layer": 1}]
    nested = Recipe.parse({"stack": {"slots": slots, "rest": "base"}})
    assert nested.children == (Recipe.parse(inner), recipe.expert("code"), recipe.base())
    assert nested.children[0].children == (recipe.expert("maths"), recipe.base())
    assert recipe.base().children == recipe.expert("a").children == Recipe.parse({"member": "0" * 64}).children == ()


def test_recipes_need_no_torch():
    """A driver's process, or a tool that only reads journals, starts without it."""
    code = "import sys, evomerge.recipe, evomerge.trial, evomerge.strict_yaml; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
