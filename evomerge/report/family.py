"""family: who a candidate is made of, as data and as a picture."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from evomerge.checkpoints.members import ancestors
from evomerge.recipe import Json, Recipe

_MOST = 150  # nearest ancestors that are drawn


def tree(recipe: Recipe, lineage: Mapping[str, Recipe]) -> dict[str, Json]:
    """Return the recipe of each ancestor of `recipe` by its id, parents before grandparents. Raises `RecipeError`."""
    return {identity: own.data for identity, own in ancestors(recipe, lineage)}


def used_experts(recipe: Recipe, lineage: Mapping[str, Recipe]) -> list[str]:
    """Return the names of the pool's experts that `recipe` or an ancestor of it uses."""
    recipes = [recipe, *(own for _, own in ancestors(recipe, lineage))]
    return list(dict.fromkeys(name for own in recipes for name in own.experts))


def draw(recipe: Recipe, lineage: Mapping[str, Recipe]) -> Figure:
    """Draw a candidate at the right, its parents to its left, and so on to the pool's models; the nearest where there are many."""
    people = {recipe.id: recipe}
    for identity, own in ancestors(recipe, lineage):
        if len(people) == _MOST:
            break
        people[identity] = own
    generation = _generations(people)
    columns: dict[int, list[str]] = {}
    for identity in people:  # in the order of how near they are
        columns.setdefault(generation[identity], []).append(identity)
    places = {
        identity: (number, row - (len(column) - 1) / 2)
        for number, column in columns.items()
        for row, identity in enumerate(column)
    }
    height = 1.2 + 0.16 * max(map(len, columns.values()))
    figure = Figure(figsize=(min(2 + 0.5 * len(columns), 14), min(max(height, 2.4), 9)), layout="constrained")
    axes = figure.subplots()
    for identity, own in people.items():
        x, y = places[identity]
        for parent in own.members:
            if parent in places:
                axes.plot(*zip((x, y), places[parent], strict=True), color="#b9c4cc", linewidth=0.7, zorder=1)
        root = not own.members
        axes.plot(x, y, "^" if root else "o", color="#009E73" if root else "#0072B2", markersize=5, zorder=2)
        if root:
            name = ", ".join(own.experts) or "base"
            axes.annotate(name, (x, y), xytext=(-6, 0), textcoords="offset points", ha="right", va="center", fontsize=7)
    axes.plot(*places[recipe.id], "*", color="#D55E00", markersize=13, zorder=3)
    axes.margins(x=0.15)
    axes.set_axis_off()
    more = "" if len(people) < _MOST else f", the nearest {_MOST}"
    axes.set_title(f"{recipe.id[:8]} and its ancestors{more}: {len(people) - 1}", fontsize=9)
    return figure


def _generations(people: Mapping[str, Recipe]) -> dict[str, int]:
    """Return how many crossings each of `people` is away from those without parents among them, along the longest way."""
    found: dict[str, int] = {}
    for identity in reversed(_ordered(people)):
        found[identity] = 1 + max((found[p] for p in people[identity].members if p in people), default=-1)
    return found


def _ordered(people: Mapping[str, Recipe]) -> list[str]:
    """Return `people`, children before their parents."""
    children = dict.fromkeys(people, 0)
    for own in people.values():
        for parent in own.members:
            if parent in children:
                children[parent] += 1
    ordered = [identity for identity, count in children.items() if count == 0]
    for identity in ordered:
        for parent in people[identity].members:
            if parent in children:
                children[parent] -= 1
                if children[parent] == 0:
                    ordered.append(parent)
    return ordered
