from importlib.metadata import version

import pytest

from evomerge import strict_yaml
from evomerge.models.folding import Folding
from evomerge.recipe import Recipe, base, merge
from evomerge.report.card import model_card


def front_matter(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return strict_yaml.parse(head, "card")


def test_front_matter_has_the_keys_of_the_hub():
    assert front_matter(model_card(base(), "owner/model-1.5", ["a"])) == {
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "base_model": ["owner/model-1.5"],
    }


@pytest.mark.parametrize("name", ["two words", "a/b/c", "-x", "x\n---\nlicense: mit", "", "base", "a/"])
def test_base_whose_name_is_none_of_the_hub_is_not_in_the_front_matter(name):
    assert "base_model" not in front_matter(model_card(base(), name, ["a"]))


def test_recipe_can_be_read_back_from_the_card():
    recipe = merge("task_arithmetic", ["a", "b"], {"lambda": 0.4}, seed=3)
    card = model_card(recipe, "base", ["a", "b"])
    text = card.partition("```yaml\n")[2].partition("```")[0]
    assert Recipe.parse(strict_yaml.parse(text, "card")) == recipe
    assert recipe.id in card
    assert f"evomerge {version('evomerge')}" in card


def test_experts_used_and_unused_are_told_apart():
    card = model_card(merge("linear", ["a", "b"]), "base", ["a", "b", "c"])
    assert "from the base, the expert a and the expert b. The pool also held c" in card
    assert "The pool also held" not in model_card(merge("linear", ["a", "b"]), "base", ["a", "b"])


MERGE = {"merge": {"method": "linear", "inputs": ["a", "b"]}}


def stack(*slots):
    keys = ("source", "layer", "scale")
    slots = [dict(zip(keys, slot, strict=False)) for slot in slots]
    return Recipe.parse({"stack": {"slots": slots, "rest": "b"}})


@pytest.mark.parametrize(
    ("slots", "line"),
    [
        (
            [("a", 0), ("a", 1), ("b", 2), ("b", 3), ("a", 4)],
            "5 layers, numbered as in their sources: a 0-1, b 2-3, a 4.",
        ),
        ([("base", 1), ("base", 1), ("base", 0)], "3 layers, numbered as in their sources: model 1, model 1, model 0."),
        ([("a", 3)], "1 layer, numbered as in their sources: a 3."),
        ([(MERGE, 0), (MERGE, 1)], f"merge `{Recipe.parse(MERGE).id[:8]}` 0-1."),
    ],
)
def test_layers_of_a_stack_are_listed_in_one_line(slots, line):
    card = model_card(stack(*slots), "model", ["a", "b"])
    assert line in card
    assert "Embeddings, final norm and head are those of b." in card
    assert "unscaled" in card


def test_folded_scales_are_stated_with_their_rounding():
    recipe = stack(("a", 0), ("a", 1, -0.7))
    card = model_card(recipe, "model", ["a", "b"], folding=Folding(object(), "", 2.5e-7, 1e-3))
    assert "multiplied by -0.7 before layer 1 (counted from 0). These scales are folded into the weights" in card
    assert "2.5e-07" in card
    assert "1.0e-03" in card
    assert "AutoModel.from_pretrained" in card
    assert "load_stack" not in card


def test_card_warns_that_plain_transformers_ignores_scales_that_are_not_folded():
    recipe = stack(("a", 0), ("a", 1, 0.7))
    card = model_card(recipe, "model", ["a", "b"], folding=Folding(None, "the moon is full"))
    assert "Plain transformers loads this folder, but what it then computes is another model" in card
    assert "not in the weights, because the moon is full." in card
    assert 'load_stack("path/to/this/folder", "AutoModel")' in card
    assert "AutoModel.from_pretrained" not in card


def test_scores_are_shown_beside_the_references_only_if_measured(results):
    point = results.front[0]
    recipe = Recipe.parse(point.recipe)
    names = [objective.name for objective in results.objectives]
    card = model_card(recipe, "base", names, results, point)
    [row] = [line for line in card.splitlines() if line.startswith("| **this merge** |")]
    value, low, high = point.mean
    assert f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in row
    for name in results.references:
        assert f"| {name} |" in card
    assert "accuracy" not in model_card(recipe, "base", names)


def test_names_cannot_break_out_of_the_card(build):
    evil = "a|b```<img src=x>\n# title"
    results = build(2, merges=5, rename=lambda name: f"{evil}{name}")
    point = results.front[0]
    card = model_card(Recipe.parse(point.recipe), evil, [evil], results, point)
    prose, _, recipe = card.partition("## Recipe")
    assert "<img" not in prose
    assert "\n# title" not in prose
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}
    assert "\n````yaml\n" in recipe, "the fence is longer than any inside"
