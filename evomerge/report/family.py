"""family: the ancestors of a candidate, as data and as a picture."""

from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from evomerge.checkpoints.members import ancestors
from evomerge.recipe import Json, Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 150  # ancestors that are drawn


def tree(recipe: Recipe, lineage: Mapping[str, Recipe]) -> dict[str, Json]:
    """Return the recipe of each ancestor of `recipe` by its id, parents before grandparents. Raises `RecipeError`."""
    return {identity: ancestor.data for identity, ancestor in ancestors(recipe, lineage)}


def used_experts(recipe: Recipe, lineage: Mapping[str, Recipe]) -> list[str]:
    """Return the names of the pool's experts that `recipe` or an ancestor of it uses."""
    recipes = [recipe, *(ancestor for _, ancestor in ancestors(recipe, lineage))]
    return list(dict.fromkeys(name for each in recipes for name in each.experts))


def draw(recipe: Recipe, lineage: Mapping[str, Recipe]) -> "Figure":
    """Draw a candidate at the right, with its parents to the left, and so on to the pool's models; at most the nearest 150 ancestors."""
    from matplotlib.figure import Figure

    recipes = {recipe.id: recipe}
    for identity, ancestor in ancestors(recipe, lineage):
        if len(recipes) == _MOST:
            break
        recipes[identity] = ancestor
    generation = _generations(recipes)
    columns: dict[int, list[str]] = {}
    for identity in recipes:  # the nearest first
        columns.setdefault(generation[identity], []).append(identity)
    places = {
        identity: (number, row - (len(column) - 1) / 2)
        for number, column in columns.items()
        for row, identity in enumerate(column)
    }
    height = 1.2 + 0.16 * max(map(len, columns.values()))
    figure = Figure(figsize=(min(2 + 0.5 * len(columns), 14), min(max(height, 2.4), 9)), layout="constrained")
    axes = figure.subplots()
    for identity, ancestor in recipes.items():
        x, y = places[identity]
        for parent in ancestor.members:
            if parent in places:
                axes.plot(*zip((x, y), places[parent], strict=True), color="#b9c4cc", linewidth=0.7, zorder=1)
        root = not ancestor.members
        axes.plot(x, y, "^" if root else "o", color="#009E73" if root else "#0072B2", markersize=5, zorder=2)
        if root:
            name = ", ".join(ancestor.experts) or "base"
            axes.annotate(name, (x, y), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=7)
    axes.plot(*places[recipe.id], "*", color="#D55E00", markersize=13, zorder=3)
    axes.margins(x=0.15)
    axes.set_axis_off()
    more = "" if len(recipes) < _MOST else f", the nearest {_MOST}"
    axes.set_title(f"{recipe.id[:8]} and its ancestors{more}: {len(recipes) - 1}", fontsize=9)
    return figure


def _generations(recipes: Mapping[str, Recipe]) -> dict[str, int]:
    """Return the length of the longest path from each recipe to one without parents among them."""
    parents = {identity: [p for p in recipe.members if p in recipes] for identity, recipe in recipes.items()}
    depths: dict[str, int] = {}
    for identity in TopologicalSorter(parents).static_order():
        depths[identity] = 1 + max((depths[parent] for parent in parents[identity]), default=-1)
    return depths
