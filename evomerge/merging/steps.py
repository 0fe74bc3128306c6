"""Steps: the stages of a merge, in order, each with its parameters for one tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at, resolve
from evomerge.merging.stages import STAGES
from evomerge.recipe import MergeNode, Place, Recipe


def values_at(spelled: Mapping[str, Any], place: Place, labels: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return each step's parameters for a tensor at `place`. Raises `RecipeError` where a table has no such entry."""
    return [
        (name, {key: resolve(STAGES[name].parameters[key], value, place, labels) for key, value in parameters.items()})
        for name, parameters in spelled["steps"]
    ]


def words_of(name: str, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return those of a step's parameters that are words, which choose the code that runs."""
    return tuple((key, values[key]) for key, parameter in STAGES[name].parameters.items() if parameter.is_word)


def check(recipe: Recipe, places: Sequence[Place] = ()) -> None:
    """Raise `RecipeError` unless every merge in `recipe` names known stages and valid parameters.

    With `places`, those of a model's tensors, the recipe's tables must have an entry for each of them.
    """
    if isinstance(recipe.root, MergeNode):
        merge = recipe.root.merge
        spelled = spell_out(merge)
        if places:
            merge.by_tensor(dict.fromkeys(place.tensor for place in places))
        for place in places:
            values_at(spelled, place, merge.labels)
            at(spelled["reduce"], place)
    for child in dict.fromkeys(recipe.children):
        check(child, places)
