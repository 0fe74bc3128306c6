"""Steps: the stages of a merge, in order, each with its parameters for one tensor."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.errors import RecipeError
from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import at, entries, resolve
from evomerge.merging.stages import STAGES
from evomerge.recipe import Expert, Merge, MergeNode, Place, Recipe, Tiled


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
        _needed(merge, spelled)
        if places:
            merge.by_tensor(dict.fromkeys(place.tensor for place in places))
        for place in places:
            values_at(spelled, place, merge.labels)
            at(spelled["reduce"], place)
    for child in dict.fromkeys(recipe.children):
        check(child, places)


def needs(recipe: Recipe) -> tuple[str, ...]:
    """Return the kinds of statistics that the nodes of `recipe` read, in their order by name.

    A kind is of each expert on its own evidence, and `KIND@TASK` of all models on one task.

    Raises `RecipeError` for a merge that needs statistics of an input that is no expert: candidates have none.
    """
    kinds: set[str] = set()
    if isinstance(recipe.root, MergeNode):
        merge = recipe.root.merge
        kinds |= _needed(merge, spell_out(merge))
    else:
        kinds |= {*recipe.root.needs}
    return tuple(sorted(kinds.union(*(needs(child) for child in dict.fromkeys(recipe.children)))))


def _needed(merge: Merge, spelled: Mapping[str, Any]) -> set[str]:
    """Return the kinds of statistics that a merge reads. Raises `RecipeError` for an input that has none."""
    kinds: set[str] = set()
    for name, parameters in spelled["steps"]:
        needed = {kind for words in _words(name, parameters) for kind in STAGES[name].needs(words)}
        for label, source in zip(merge.labels, merge.inputs, strict=True) if needed else ():
            if not isinstance(source.root, Expert):
                msg = f"stage `{name}` needs statistics of its inputs, which only experts have; the input {label} is none: give experts, or merge the result of `{name}` instead"
                raise RecipeError(msg)
        kinds |= needed
    return kinds


def _words(name: str, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination of a step's words that its tables hold."""
    words = [key for key in parameters if STAGES[name].parameters[key].is_word]
    options = [
        dict.fromkeys(entries(parameters[key].values)) if isinstance(parameters[key], Tiled) else [parameters[key]]
        for key in words
    ]
    for combination in itertools.product(*options):
        yield dict(zip(words, combination, strict=True))
