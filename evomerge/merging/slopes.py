"""Which of a merge's parameters have slopes: those that its tensors are smooth functions of.

Masks, signs and thresholds are held fixed: they are piecewise constant. Drop rates, densities, ranks and words have no slope.
Not to be confused with `MergeGradient`, which computes slopes.
"""

from collections.abc import Mapping
from typing import Any

from evomerge.merging.methods import spell_out
from evomerge.merging.parameters import entries
from evomerge.merging.stage import Stage
from evomerge.merging.stages import STAGES
from evomerge.recipe import Merge, MergeNode, Recipe, Tiled
from evomerge.recipe.form import KeyPath


def sloped(merge: Merge) -> frozenset[KeyPath]:
    """Return the key paths inside the merge's JSON data of the parameters that have slopes, such as `("parameters", "weight")`.

    A parameter whose results a later stage measures, other than for thresholds, has none: the measurement would have to be
    differentiated too. Raises `RecipeError`.
    """
    spelled = spell_out(merge)
    steps = [(STAGES[name], values) for name, values in spelled["steps"]]
    paths: set[KeyPath] = set()
    without: set[KeyPath] = set()
    for number, ((stage, values), path) in enumerate(zip(steps, spelled["paths"], strict=True)):
        later = [(s, v) for s, v in steps[number + 1 :] if stage.role == "edit" or s.role == "post"]
        measured = any(measures(s, v) for s, v in later)
        for key in values:
            (paths if key in stage.slopes and not measured else without).add((*path, key))
    return frozenset(paths - without)


def inputs_sloped(merge: Merge) -> bool:
    """Return whether slopes pass through a merge to those of its inputs that are merges."""
    return not any(measures(STAGES[name], values) for name, values in spell_out(merge)["steps"])


def sloped_paths(recipe: Recipe, at: KeyPath = ()) -> set[KeyPath]:
    """Return the key paths of the parameters that have slopes, nested merges included, in a recipe whose JSON data is at `at`."""
    if not isinstance(recipe.root, MergeNode):
        return set()
    merge = recipe.root.merge
    paths = {(*at, "merge", *path) for path in sloped(merge)}
    for i, inner in enumerate(merge.inputs if inputs_sloped(merge) else ()):
        paths |= sloped_paths(inner, (*at, "merge", "inputs", i))
    return paths


def measures(stage: Stage, values: Mapping[str, Any]) -> bool:
    """Return whether a stage with these parameters, which may be tables, measures what it reads, other than for thresholds."""
    if stage.measure is None or not stage.measure.smooth:
        return False
    names = [name for name, value in values.items() if isinstance(value, Tiled)]
    if not names:
        return stage.measure.over(_per_input(stage, values)) is not None
    return any(
        measures(stage, {**values, names[0]: entry}) for entry in dict.fromkeys(entries(values[names[0]].values))
    )


def _per_input(stage: Stage, values: Mapping[str, Any]) -> dict[str, Any]:
    parameters = stage.parameters
    return {k: (v,) if parameters[k].per_input and not parameters[k].is_word else v for k, v in values.items()}
