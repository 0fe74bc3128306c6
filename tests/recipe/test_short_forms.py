"""Short forms of stacks: what they spell out to, that any path can be made to keep its bounds, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe, short_forms

BLOCKS = 4


def path(**form):
    return {"stack": {"rest": "base", "path": {"sources": ["maths", "code"], **form}}}


def swap(**form):
    return {"stack": {"rest": "base", "swap": form}}


def on(*slots, count=8):
    return {"per": ["slot"], "values": [t in slots for t in range(count)]}


def layers(data, blocks=BLOCKS):
    """The layers as words, `maths0` for layer 0 of maths, and their scales."""
    stack = Recipe.parse(short_forms.spell_out(data, blocks)).root.stack
    return [f"{next(iter(slot.source.experts), 'base')}{slot.layer}" for slot in stack.slots]


def scales(data, blocks=BLOCKS):
    return [slot["scale"] for slot in short_forms.spell_out(data, blocks)["stack"]["slots"]]


MATHS = ["maths0", "maths1", "maths2", "maths3"]
CODE = ["code0", "code1", "code2", "code3"]


def test_path_is_the_included_slots_in_order():
    assert layers(path(include=on(0, 2, 5, 6), ends=False)) == ["maths0", "maths2", "code1", "code2"]
    assert layers(path(ends=False)) == MATHS + CODE
    assert layers(path(ends=False, repeat=2)) == 2 * (MATHS + CODE)
    assert layers(path(include=on(2, 10, count=16), repeat=2, ends=False)) == ["maths2", "maths2"]


def test_ends_are_added_where_they_are_missing():
    assert layers(path(include=on(5))) == ["maths0", "code1", "maths3"]
    assert layers(path(include=on(0, 5))) == ["maths0", "code1", "maths3"]
    assert layers(path(include=on(0, 1, 2, 3))) == MATHS
    assert layers(path(include=on())) == ["maths0", "maths3"]
    assert layers(path(include=on(0, 1, 2, 3, 4))) == [*MATHS, "code0", "maths3"]
    assert layers(path(include=on(8, 11, count=16), repeat=2)) == ["maths0", "maths3"]
    assert layers(path(include=on(count=2)), blocks=1) == ["maths0"]


def test_equal_paths_have_equal_ids():
    same = (on(5), on(0, 5), {**on(5)})
    assert len({Recipe.parse(short_forms.spell_out(path(include=include), BLOCKS)).id for include in same}) == 1


def test_scales_are_one_number_or_by_slot():
    assert scales(path(include=on(0, 5), scale=0.5)) == [0.5, 0.5, 0.5]
    by_slot = {"per": ["slot"], "values": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
    assert scales(path(include=on(0, 5), scale=by_slot)) == [0.1, 0.6, 1]  # the last is put there
    assert scales(path(include=on(5), scale=by_slot)) == [1, 0.6, 1]
    assert scales(path(include=on(1, 3, 4), scale=by_slot, ends=False)) == [0.2, 0.4, 0.5]


def test_scales_over_pairs_of_layers_belong_to_consecutive_layers():
    matrix = {"per": ["from", "to"], "values": [[10 * a + b for b in range(8)] for a in range(8)]}
    assert scales(path(include=on(0, 5), scale=matrix)) == [1, 5, 53]  # maths 0 → code 1 → maths 3
    assert scales(path(include=on(8, 9, count=16), repeat=2, scale=matrix, ends=False)) == [1, 1]


def test_swap_is_every_layer_once():
    assert layers(swap(source="code")) == CODE
    by_layer = {"per": ["layer"], "values": ["maths", "base", "code", {"expert": "code"}]}
    assert layers(swap(source=by_layer)) == ["maths0", "base1", "code2", "code3"]
    groups = {"per": ["block/2"], "values": ["maths", "code"]}
    assert layers(swap(source=groups)) == ["maths0", "maths1", "code2", "code3"]
    assert scales(swap(source=groups, scale={"per": ["block/2"], "values": [1, 2]})) == [1, 1, 2, 2]


def test_stacks_nest_in_sources_and_inputs():
    whole = swap(source={"per": ["block/2"], "values": ["maths", "code"]})
    outer = {"stack": {"rest": whole, "path": {"sources": [whole, "code"], "include": on(0, 1, 2, 3)}}}
    spelled = short_forms.spell_out(outer, BLOCKS)
    assert spelled["stack"]["slots"][2]["source"] == spelled["stack"]["rest"] == short_forms.spell_out(whole, BLOCKS)
    merge = {"merge": {"method": "linear", "inputs": [whole, "code"]}}
    assert short_forms.spell_out(merge, BLOCKS)["merge"]["inputs"][0] == short_forms.spell_out(whole, BLOCKS)


def test_data_without_short_forms_is_unchanged():
    slots = {"stack": {"rest": "base", "slots": [{"source": "maths", "layer": 3}, {"source": "base", "layer": 0}]}}
    merge = {"merge": {"method": "ties", "inputs": ["maths", slots], "parameters": {"weight": 0.3}}}
    for data in ("base", {"expert": "maths"}, slots, merge):
        assert short_forms.spell_out(data, BLOCKS) == short_forms.fit(data, BLOCKS) == data


@st.composite
def forms(draw):
    """A path over a model of some blocks with any include, and bounds that some path keeps."""
    blocks = draw(st.integers(1, 5))
    sources = draw(st.lists(st.sampled_from(["maths", "code", "base"]), min_size=1, max_size=3, unique=True))
    repeat, ends = draw(st.integers(1, 3)), draw(st.booleans())
    slots = len(sources) * blocks * repeat
    values = draw(st.lists(st.booleans(), min_size=slots, max_size=slots))
    form = {"sources": sources, "repeat": repeat, "ends": ends, "include": {"per": ["slot"], "values": values}}
    fewest = draw(st.integers(1, slots))
    most = draw(st.integers(max(fewest, min(2, blocks) if ends else 1), slots + 2))
    if ends and blocks == 1 and 1 < fewest == most:
        most += 1
    if draw(st.booleans()):
        form["shortest"] = fewest / blocks
    if draw(st.booleans()):
        form["longest"] = most / blocks
    return {"stack": {"rest": "base", "path": form}}, blocks, (fewest, most)


@given(forms())
def test_any_path_can_be_made_to_keep_its_bounds(drawn):
    data, blocks, (fewest, most) = drawn
    fitted = short_forms.fit(data, blocks)
    found = layers(fitted, blocks)
    form = data["stack"]["path"]
    assert len(found) >= (fewest if "shortest" in form else 1)
    assert len(found) <= (most if "longest" in form else len(form["include"]["values"]) + 1)
    if form["ends"]:
        assert (found[0], found[-1]) == (f"{form['sources'][0]}0", f"{form['sources'][0]}{blocks - 1}")
    assert short_forms.fit(fitted, blocks) == fitted
    try:
        expected = short_forms.spell_out(data, blocks)
    except RecipeError:
        return
    assert short_forms.spell_out(fitted, blocks) == expected  # what is within its bounds is left alone


def test_too_long_a_path_keeps_its_first_layers_and_its_last():
    assert (
        layers(short_forms.fit(path(longest=1.25), BLOCKS)) == MATHS
    )  # with code 0 it would be six, for maths 3 at the end
    long = path(include=on(1, 2, 4, 5, 6, 7), longest=1.25)
    assert layers(short_forms.fit(long, BLOCKS)) == ["maths0", "maths1", "maths2", "code0", "maths3"]


def test_too_short_a_path_gets_the_first_sources_first_layers():
    short = path(include=on(7), shortest=1.25)
    assert layers(short_forms.fit(short, BLOCKS)) == ["maths0", "maths1", "maths2", "code3", "maths3"]


def test_depth_that_is_fixed_moves_the_last_layer_to_the_end():
    fixed = path(include=on(0, 1, 2, 3), shortest=1.25, longest=1.25)
    assert layers(short_forms.fit(fixed, BLOCKS)) == ["maths0", "maths1", "maths2", "code0", "maths3"]


WRONG = [
    ("too long", path(longest=1.25), "path has 9 layers; expected 2 to 5 over a model of 4 layers: include fewer slots"),
    ("too short", path(include=on(), shortest=0.75), "path has 2 layers; expected 3 to 9 .* include more slots, or change"),
    ("nothing at all", path(include=on(), ends=False), "the path has 0 layers; expected 1 to 9"),
    ("no room for the ends", path(longest=0.25), "`longest` is 0.25, which is 1 of 4 layers; type 0.5 or more"),
    ("bounds that cross", path(shortest=1, longest=0.5), "`shortest` is 1.0, which is 4 .* at most 2; type 0.5 or less"),
    ("more than there is", path(shortest=3), "a path has at most 8; type 2 or less"),
    ("a short table", path(include=on(count=7)), "`include.values` has 7 entries; expected a list of 8, from maths 0 to code 3"),
    ("no table", path(include={"per": ["slot"]}), "`include.values` is None; expected a list of 8"),
    ("a number for a bit", path(include={"per": ["slot"], "values": [1] * 8}), r"`include.values\[0\]` is 1; expected true or false"),
    ("a word for all", path(include="first"), "`include` is 'first'; expected true or false, or a table"),
    ("a hole", path(include={"bit": "first", "per": ["slot"]}), "unknown key `include.bit`"),
    ("another axis", path(include={"per": ["layer"], "values": []}), r"`include.per` is \['layer'\]; expected \[slot\]"),
    ("axes the wrong way", path(scale={"per": ["to", "from"], "values": []}), r"expected \[slot\] or \[from, to\]"),
    ("a narrow matrix", path(scale={"per": ["from", "to"], "values": [[1.0] * 7] * 8}), r"`scale.values\[0\]` has 7 entries"),
    ("an infinite scale", path(scale=float("inf")), "`scale` is inf; expected a finite number"),
    ("a misspelt value", path(include={"per": ["slot"], "value": []}), "`include.value`; did you mean `values`"),
    ("a misspelt key", path(includes=True), "stack path: unknown key `includes`; did you mean `include`"),
    ("no sources", {"stack": {"rest": "base", "path": {}}}, "stack path: `sources` is missing"),
    ("empty sources", path(sources=[]), "`sources`: expected at least one entry"),
    ("sources in one word", path(sources="maths"), "`sources`"),
    ("a source twice", path(sources=["maths", "maths"]), "`sources`: has 'maths' twice; .* type `repeat: 2`"),
    ("no repeat", path(repeat=0), "`repeat`"),
    ("half a repeat", path(repeat=1.5), "`repeat`: expected an integer"),
    ("a word for yes", path(ends="yes"), "`ends`"),
    ("a misspelt form", {"stack": {"rest": "base", "pth": {}}}, "stack: unknown key `pth`; did you mean `path`"),
    ("two forms", {"stack": {"rest": "base", "path": {}, "slots": []}}, "has path and slots; expected one of"),
    ("a swap by slot", swap(source={"per": ["slot"], "values": []}), r"expected \[layer\], or \[block/N\] with N up to 4"),
    ("too many groups", swap(source={"per": ["block/5"], "values": ["maths"] * 5}), "with N up to 4"),
    ("a number as a source", swap(source={"per": ["layer"], "values": [1, 2, 3, 4]}), "is 1; expected a recipe"),
    ("no source", swap(), "stack swap: `source` is missing"),
    (
        "a layer that is not there",
        {"stack": {"rest": "base", "slots": [{"source": "maths", "layer": 0}, {"source": "maths", "layer": 4}]}},
        r"`slots\[1\]` has no layer 4: its source has 4 layers; type 0 to 3",
    ),
    (
        "a layer beyond a stack's",
        {"stack": {"rest": "base", "slots": [{"source": path(include=on()), "layer": 2}]}},
        "has no layer 2: its source has 2 layers; type 0 to 1",
    ),
    ("a shallower source", path(sources=[path(include=on()), "maths"]), r"`path.sources\[0\]` is a stack of 2 layers; expected 4"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_short_forms_say_what_is_wrong_and_what_to_type(data, message):
    with pytest.raises(RecipeError, match=message):
        short_forms.spell_out(data, BLOCKS)


def test_only_models_with_blocks_have_stacks():
    with pytest.raises(RecipeError, match="the model has no stack of blocks"):
        short_forms.spell_out(path(), 0)


def test_one_layer_cannot_be_a_path_of_a_fixed_number_of_layers():
    with pytest.raises(RecipeError, match="type `ends: false`"):
        short_forms.fit(path(include=on(count=2), shortest=2, longest=2), 1)


def test_rest_of_a_path_is_by_default_its_first_source():
    path = {"sources": ["maths", "code"], "include": True}
    assert short_forms.spell_out({"stack": {"path": path}}, 3)["stack"]["rest"] == "maths"
    assert short_forms.spell_out({"stack": {"path": path, "rest": "code"}}, 3)["stack"]["rest"] == "code"
