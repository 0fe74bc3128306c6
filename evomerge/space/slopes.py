"""Slopes of genes, from those of a recipe's numbers, by the chain rule.

A gene is a number of the recipe, or with others makes up the weights of a mixture; a table's entries are numbers of their own.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge import merging
from evomerge.errors import SpaceError
from evomerge.recipe import Recipe
from evomerge.recipe.form import KeyPath
from evomerge.space.holes import Genome, Hole

if TYPE_CHECKING:
    from evomerge.space.space import SearchSpace


def positions(space: "SearchSpace", recipe: Recipe) -> list[NDArray[np.intp] | None]:
    """Return for each hole where its values are among the numbers of `recipe`, `(values,)`, in the order of the hole's keys.

    None for a hole that is a choice or inside of one, or whose values are no parameters of merges. Of a space with stacks, all
    are None.
    """
    numbers = {path: index for index, path in enumerate(recipe.numbers)}

    def found(hole: Hole) -> NDArray[np.intp] | None:
        start = (*_explicit(hole.path), *(["values"] if hole.per else []))
        paths = [(*start, *key) for key in hole.keys]
        smooth = all(gene.kind in ("float", "int") for gene in space.genes[hole.genes])
        if space.stacked or hole.within or not smooth or any(path not in numbers for path in paths):
            return None
        return np.array([numbers[path] for path in paths], np.intp)

    return [found(hole) for hole in space.holes]


def sloped(space: "SearchSpace", recipe: Recipe) -> NDArray[np.bool_]:
    """Return which genes have slopes at `recipe`, bool `(genes,)`."""
    known = merging.sloped_paths(recipe)
    have = np.zeros(len(space.genes), np.bool_)
    for hole, places in zip(space.holes, positions(space, recipe), strict=True):
        have[hole.genes] = places is not None and _explicit(hole.path) in known
    return have


def slopes(
    space: "SearchSpace", genome: Genome, places: list[NDArray[np.intp] | None], numbers: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the slopes of genes, float64 `(genes,)`, NaN where there are none, from those of the recipe's `numbers`."""
    result = np.full(len(space.genes), np.nan)
    for hole, at in zip(space.holes, places, strict=True):
        if at is None:
            continue
        mixture = hole.mixture
        result[hole.genes] = numbers[at] if mixture is None else numbers[at] @ mixture.jacobian(genome[hole.genes])
    return result


def checked(numbers: NDArray[np.float64], count: int, what: str) -> NDArray[np.float64]:
    """Return `numbers` as float64. Raises `SpaceError` unless they are `(count,)`."""
    numbers = np.asarray(numbers, np.float64)
    if numbers.shape != (count,):
        raise SpaceError(f"expected a slope for each {what}, ({count},); got {numbers.shape}")
    return numbers


def _explicit(path: KeyPath) -> KeyPath:
    """Return the key path in a recipe's explicit data of the value at `path` in a template: one stage stands in a list."""
    parts: list[str | int] = []
    for part in path:
        if parts[-2:-1] == ["stages"] and parts[-1] in ("edit", "weigh", "post") and not isinstance(part, int):
            parts.append(0)
        parts.append(part)
    return tuple(parts)
