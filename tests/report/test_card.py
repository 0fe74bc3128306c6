from importlib.metadata import version

import pytest

from evomerge import strict_yaml
from evomerge.recipe import Recipe, base, merge
from evomerge.report.card import model_card


def front_matter(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return strict_yaml.parse(head, "card")


def test_front_matter_is_what_the_hub_reads():
    assert front_matter(model_card(base(), "owner/model-1.5", ["a"])) == {
        "library_name": "transformers",
        "tags": ["merge", "evomerge"],
        "base_model": ["owner/model-1.5"],
    }


@pytest.mark.parametrize("name", ["two words", "a/b/c", "-x", "x\n---\nlicense: mit", ""])
def test_base_that_the_hub_cannot_name_is_left_out_of_the_front_matter(name):
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
    assert "from the base base, the expert a and the expert b. The pool also held c" in card
    assert "The pool also held" not in model_card(merge("linear", ["a", "b"]), "base", ["a", "b"])


def test_scores_stand_beside_the_references_only_where_they_were_measured(results):
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
