"""Candidate: one point of the page: its recipe, its scores, its examples against another point, its lineage, its export."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import strict_yaml
from evomerge.errors import RecipeError, SpaceError, StudyError
from evomerge.recipe import Recipe
from evomerge.report import family
from evomerge.trial import Evaluation
from evomerge.view.recipes import panels
from evomerge.view.source import Source

_LARGEST = 50
"""Examples that are listed in each direction."""
_ANCESTORS = 150


def describe(source: Source, name: str, against: str = "") -> dict[str, Any]:
    """Return what the page shows of the model `name`: `#12`, or a reference. Examples are compared with the model `against`.

    Raises `StudyError` for a name of no model.
    """
    recipe, evaluation = find(source, name)
    parts = source.study.parts
    unseen = source.scored(recipe.id, "report")
    data: dict[str, Any] = {
        "name": name,
        "recipe_id": recipe.id,
        "error": None if evaluation is None else evaluation.error,
        "yaml": strict_yaml.text(recipe.data),
        "panels": panels(recipe, parts.pool),
        "scores": [
            {"task": task, "search": mine, "unseen": theirs}
            for task, mine, theirs in zip(
                parts.tasks,
                *(_intervals(source, one, split) for one, split in ((evaluation, "search"), (unseen, "report"))),
                strict=True,
            )
        ],
        "genes": _genes(source, name),
        "family": _family(source, recipe),
        "command": command(source.folder, name),
    }
    if against and against != name:
        _, other = find(source, against)
        data["against"] = {"name": against, "tasks": _examples(source, evaluation, other)}
    return data


def find(source: Source, name: str) -> tuple[Recipe, Evaluation | None]:
    """Return the recipe of the model `name`, and its scores on the search examples, None where no report has them. Raises `StudyError`."""
    if name.startswith("#") and name[1:].isdecimal():
        proposal, evaluation = source.population[source.candidate(int(name[1:]))]
        return proposal.recipe, evaluation
    results = source.results()
    if results is None or name not in results.references:
        raise StudyError(
            f"{source.folder}: no candidate or reference `{name}`; expected `#12`, or a reference of the report"
        )
    recipe = Recipe.parse(results.references[name].recipe)
    return recipe, source.scored(recipe.id, "search")


def command(folder: Path, name: str) -> str | None:
    """Return the command that exports a candidate, None for a reference."""
    if not name.startswith("#"):
        return None
    return f"evomerge pick {shlex.quote(str(folder))} --candidate {name[1:]} -o {shlex.quote(str(export_folder(folder, int(name[1:]))))}"


def export_folder(folder: Path, number: int) -> Path:
    """Return the folder that the page exports a candidate to."""
    return folder / "exports" / f"candidate-{number}"


def _intervals(source: Source, evaluation: Evaluation | None, split: Any) -> list[Any]:
    missing = [None] * len(source.study.parts.tasks)
    return (
        missing
        if evaluation is None or evaluation.error is not None
        else source.intervals(evaluation, split) or missing
    )


def _genes(source: Source, name: str) -> list[dict[str, Any]]:
    """Return the values of the genes; none for a reference."""
    if not name.startswith("#"):
        return []
    space = source.study.parts.space
    proposal, _ = source.population[source.candidate(int(name[1:]))]
    try:
        genome = space.genome_of(proposal)
    except SpaceError:
        return []
    return [
        {"name": gene.name, "value": gene.value(number), "low": gene.low, "high": gene.high, "kind": gene.kind}
        for gene, number in zip(space.genes, genome.tolist(), strict=True)
    ]


def _family(source: Source, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the candidate and its ancestors, the nearest first, each with its parents' ids; none without parents."""
    if not recipe.members:
        return []
    lineage = source.once("lineage", lambda: {p.recipe.id: p.recipe for p, _ in source.population})
    numbers = source.once("numbers", lambda: {p.recipe.id: p.number for p, _ in reversed(source.population)})
    try:
        tree = family.tree(recipe, lineage)
    except RecipeError:  # a parent that was evaluated in parts, and is in no row
        return []
    recipes = {recipe.id: recipe, **{identity: lineage[identity] for identity in tree}}
    return [
        {
            "id": identity,
            "number": numbers.get(identity),
            "parents": list(one.members),
            "experts": list(one.experts) if not one.members else [],
        }
        for identity, one in list(recipes.items())[: _ANCESTORS + 1]
    ]


def _examples(source: Source, mine: Evaluation | None, theirs: Evaluation | None) -> list[dict[str, Any]]:
    """Return by task the search examples on which a model scores higher, and lower, than another: those that differ most first."""
    parts = source.study.parts
    found = []
    for task, key in zip(parts.tasks, parts.searched, strict=True):
        if mine is None or theirs is None or key not in mine.scores or key not in theirs.scores:
            continue
        gaps = mine.scores[key].astype(np.float64) - theirs.scores[key]
        order = np.argsort(-np.abs(gaps), kind="stable")
        up, down = ([int(i) for i in order if sign * gaps[i] > 0] for sign in (1, -1))
        found.append(
            {
                "task": task,
                "examples": len(gaps),
                "gained": len(up),
                "lost": len(down),
                "most_gained": [[i, float(gaps[i])] for i in up[:_LARGEST]],
                "most_lost": [[i, float(gaps[i])] for i in down[:_LARGEST]],
            }
        )
    return found
