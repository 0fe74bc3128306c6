"""measure(study) -> Results: re-score a study's front, and the references that it must beat, on unseen examples.

The search split chooses (which points, which scale, which pick); the report split only judges. What is measured is kept
in the study's `report.jl`, a journal like the search's own, so nothing is scored twice.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import costs, files, pareto
from evomerge.errors import DriverError, StudyError, SurrogateError
from evomerge.evaluate import Evaluator, drive
from evomerge.history import History, digest
from evomerge.journal import Journal
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.report import bootstrap, surface
from evomerge.report.results import (
    Candidate,
    Cells,
    Comparison,
    Diagnostics,
    Elite,
    Hypervolume,
    Objective,
    Results,
    Surface,
    Verified,
)
from evomerge.search import CellMap, Population
from evomerge.settings import Parts
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal, Split

Known = dict[tuple[str, Split], Evaluation]

_POINTS = 200
"""At so many numbers of evaluations, at most, a population is looked at."""


def measure(
    study: Study, evaluator: Evaluator | None = None, watch: Callable[[int, int], None] = lambda done, total: None
) -> Results:
    """Return what `study` has found so far. `watch` gets evaluations done and in all.

    Uses `evaluator`, or makes one if anything is left to score. References and models of the front that cannot be scored
    are left out, and named. Raises `StudyError` if nothing was evaluated, or if none of either can be scored.
    """
    parts, settings = study.parts, study.settings
    record = study.history()
    population = record.population
    good = [(proposal, evaluation) for proposal, evaluation in population if evaluation.error is None]
    if not good:
        why = f"; the last failure: {population[-1][1].error}" if population else ""
        msg = f"{study.folder}: no candidate has been evaluated yet, so there is no front{why}"
        raise StudyError(msg)
    searched = np.array([evaluation.means(parts.searched) for _, evaluation in good])
    known: Known = {(proposal.recipe.id, "search"): evaluation for proposal, evaluation in good}
    unscored: dict[str, str] = {}

    def scored(models: Mapping[str, Recipe], split: Split) -> dict[str, Recipe]:
        """Return those of the models that have scores on `split` now; why the others have none is in `unscored`."""
        failures = _score(study, evaluator, known, [(recipe, split) for recipe in models.values()], watch)
        why = {name: failures.get((recipe.id, split)) for name, recipe in models.items()}
        unscored.update({name: error for name, error in why.items() if error is not None})
        return {name: recipe for name, recipe in models.items() if why[name] is None}

    references = _some(scored(_references(parts, settings.report.scales), "search"), "reference", "search", unscored)
    search_point = _lowest(references.values(), known, "search", parts.searched)
    chosen = _front(good, searched, search_point, settings.report.front)
    found = scored({**references, **chosen}, "report")
    references = {name: recipe for name, recipe in found.items() if name in references}
    references = _some(references, "reference", "report", unscored)
    chosen = _some({name: found[name] for name in chosen if name in found}, "model of the front", "report", unscored)

    report_point = _lowest(references.values(), known, "report", parts.reported)
    draws = _draws(study, parts.reported)
    front = [_candidate(name, recipe, known, parts, draws) for name, recipe in chosen.items()]
    picked = max(front, key=lambda point: (sum(point.search.values()), point.recipe_id))
    shown = {name: recipe for name, recipe in references.items() if not name.startswith("scale ")}
    rivals = {"plain average": "average"}
    if (scale := _best_scale(references, known, parts)) is not None:
        shown[f"best {scale}"] = references[scale]
        rivals[f"best single scale ({scale.removeprefix('scale ')})"] = f"best {scale}"

    rivals = {what: name for what, name in rivals.items() if name in shown}
    level = 1 - (1 - bootstrap.LEVEL) / (len(rivals) + 1)

    def compare(name: str, theirs: Candidate) -> Comparison:
        pair = known[picked.recipe_id, "report"].scores, known[theirs.recipe_id, "report"].scores
        return Comparison(
            better="picked merge",
            worse=name,
            values=(picked.mean[0], theirs.mean[0]),
            what="mean",
            difference=bootstrap.difference(*pair, draws, level),
            level=level,
        )

    def volume(recipes: Sequence[Recipe]) -> float:
        points = np.array([known[recipe.id, "report"].means(parts.reported) for recipe in recipes])
        return pareto.hypervolume(points, report_point)

    references_shown = {name: _candidate(name, recipe, known, parts, draws) for name, recipe in shown.items()}
    volumes = {"front": volume(list(chosen.values())), "references": volume(list(references.values()))}
    corner = dict(zip(parts.reported, report_point.tolist(), strict=True))
    against = bootstrap.hypervolume_difference(
        [known[recipe.id, "report"].scores for recipe in chosen.values()],
        [known[recipe.id, "report"].scores for recipe in references.values()],
        corner,
        draws,
        level=level,
    )
    seconds, damaged = costs.totals(study.folder)
    return Results(
        name=settings.name,
        digest=digest(record.completed),
        evaluations=len(population),
        stopped=len(record.partial),
        spent=record.spent,
        failed=len(population) - len(good),
        objectives=tuple(
            Objective(
                name=name,
                search=task.search_metric,
                report=task.report_metric,
                examples=(task.size("search"), task.size("report")),
            )
            for name, task in parts.tasks.items()
        ),
        hypervolume=Hypervolume(
            search=pareto.hypervolume(searched, search_point),
            report=volumes["front"],
            references=volumes["references"],
            search_references=pareto.hypervolume(
                [known[recipe.id, "search"].means(parts.searched) for recipe in references.values()], search_point
            ),
            search_point=dict(zip(parts.tasks, search_point.tolist(), strict=True)),
            report_point=dict(zip(parts.tasks, report_point.tolist(), strict=True)),
            history=tuple(_history(population, parts, search_point)),
        ),
        front=tuple(front),
        picked=picked.recipe_id,
        references=references_shown,
        unscored=unscored,
        comparisons=(
            *(compare(what, references_shown[name]) for what, name in rivals.items()),
            Comparison(
                better="searched front",
                worse="base, experts, average and scale sweep together",
                values=(volumes["front"], volumes["references"]),
                what="hypervolume",
                difference=against,
                level=level,
            ),
        ),
        **_population(study, len(population)),
        surface=_surface(study, population),
        costs=seconds,
        damaged_costs=damaged,
        study=settings.model_dump(mode="json"),
    )


def write(results: Results, folder: Path) -> None:
    """Write the results as `report.json` into the study's `folder`."""
    files.write(folder / "report.json", results.model_dump_json(indent=1) + "\n")


def verify(
    study: Study,
    recipe: Recipe,
    evaluator: Evaluator | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Return what `recipe` scores on both splits, evaluated unless that is known; kept in `report.jl`.

    Uses `evaluator`, or makes one if there is anything to score. Raises `StudyError` if it cannot be scored.
    """
    parts = study.parts
    known: Known = {(p.recipe.id, p.split): e for p, e in study.population() if e.error is None}
    failures = _score(study, evaluator, known, [(recipe, "search"), (recipe, "report")], watch)
    for (_, split), error in failures.items():
        msg = f"cannot score {recipe.json} on the {split} split: {error}"
        raise StudyError(msg)
    scores = known[recipe.id, "report"].scores
    both = {name: key for name, key in zip(parts.tasks, parts.searched, strict=True) if key in scores}
    spread = bootstrap.intervals(scores, _draws(study, list(both.values()))) if both else {}
    return Verified(
        candidate=_candidate("predicted", recipe, known, parts, _draws(study, parts.reported)),
        unseen={name: spread[key] for name, key in both.items()},
    )


def _draws(study: Study, objectives: Sequence[str]) -> bootstrap.Resamples:
    """Return the resamples of the report split's examples for these of the study's objectives, `task/metric`."""
    tasks, settings = study.parts.tasks, study.settings
    keys = {name: tasks[name.rpartition("/")[0]].example_keys("report") for name in objectives}
    return bootstrap.resamples(keys, settings.report.resamples, settings.seed)


def _candidate(name: str, recipe: Recipe, known: Known, parts: Parts, draws: bootstrap.Resamples) -> Candidate:
    """Return what is known of a recipe on both splits. `draws` are of the reported objectives."""
    found, unseen = known[recipe.id, "search"], known[recipe.id, "report"]
    spread = bootstrap.intervals(unseen.scores, draws)
    return Candidate(
        name=name,
        recipe_id=recipe.id,
        recipe=recipe.data,
        search=dict(zip(parts.tasks, found.means(parts.searched).tolist(), strict=True)),
        report={task: spread[key] for task, key in zip(parts.tasks, parts.reported, strict=True)},
        mean=bootstrap.mean_interval(unseen.scores, draws),
    )


def _references(parts: Parts, scales: Sequence[float]) -> dict[str, Recipe]:
    """Return what everybody has without a search: the base, each expert, the plain average, a sweep of one scale."""
    names = list(parts.pool.experts)
    found = {"base": base(), **{f"expert {name}": expert(name) for name in names}, "average": merge("linear", names)}
    for scale in scales:
        found[f"scale {scale:g}"] = merge("task_arithmetic", names, {"lambda": scale})
    return found


def _some(models: dict[str, Recipe], what: str, split: Split, unscored: Mapping[str, str]) -> dict[str, Recipe]:
    """Return `models`. Raises `StudyError` if there are none."""
    if not models:
        msg = f"no {what} can be scored on the {split} split; the last failure: {list(unscored.values())[-1]}"
        raise StudyError(msg)
    return models


def _best_scale(references: Mapping[str, Recipe], known: Known, parts: Parts) -> str | None:
    """Return the scale with the best mean of searched objectives on the search split: the sweep gets the same data.

    None if no scale is among the references.
    """
    names = [name for name in references if name.startswith("scale ")]
    return max(
        names, default=None, key=lambda name: float(known[references[name].id, "search"].means(parts.searched).mean())
    )


def _lowest(recipes: Iterable[Recipe], known: Known, split: Split, objectives: Sequence[str]) -> pareto.Points:
    """Return the reference point of a hypervolume: in each objective, the lowest score of any reference."""
    points: pareto.Points = np.array([known[recipe.id, split].means(objectives) for recipe in recipes])
    lowest: pareto.Points = points.min(axis=0)
    return lowest


def _front(
    good: Sequence[tuple[Proposal, Evaluation]], searched: pareto.Points, point: pareto.Points, limit: int
) -> dict[str, Recipe]:
    """Return the front's recipes by name, `#` and the number: the best mean, then those that add most hypervolume, at most `limit`."""
    mask = pareto.nondominated(searched)
    first: dict[str, int] = {}
    for i in np.flatnonzero(mask).tolist():
        first.setdefault(good[i][0].recipe.id, i)
    rows = list(first.values())
    best = max(rows, key=lambda i: float(searched[i].mean()))
    chosen = [rows[j] for j in pareto.subset(searched[rows], point, limit)]
    chosen = [best, *(i for i in chosen if i != best)][:limit]
    return {f"#{good[i][0].number}": good[i][0].recipe for i in sorted(chosen)}


def _score(
    study: Study,
    evaluator: Evaluator | None,
    known: Known,
    wanted: Sequence[tuple[Recipe, Split]],
    watch: Callable[[int, int], None],
) -> dict[tuple[str, Split], str]:
    """Score the `wanted` recipes that are not known yet, each result written to `report.jl` before it is used.

    Returns the errors of those that failed; they are tried again the next time.
    """
    path = study.folder / "report.jl"
    recorded = History.read(path, retried=True).population
    known.update({(p.recipe.id, p.split): e for p, e in recorded if e.error is None})
    todo = [(recipe, split) for recipe, split in dict.fromkeys(wanted) if (recipe.id, split) not in known]
    if not todo:
        return {}
    if evaluator is None:
        with study.evaluator() as own:
            return _score(study, own, known, wanted, watch)
    failures: dict[tuple[str, Split], str] = {}
    with study.lock("report.lock"), Journal(path) as journal:
        start = max((p.number for p, _ in recorded), default=-1) + 1
        proposals = (Proposal(start + i, recipe, split=split) for i, (recipe, split) in enumerate(todo))
        completed = drive(evaluator, journal, lambda: next(proposals, None))
        for done, (proposal, evaluation) in enumerate(completed, start=1):
            costs.append(study.folder, proposal, evaluation)
            if evaluation.error is None:
                known[proposal.recipe.id, proposal.split] = evaluation
            else:
                failures[proposal.recipe.id, proposal.split] = evaluation.error
            watch(done, len(todo))
    return failures


def _history(population: Sequence[tuple[Proposal, Evaluation]], parts: Parts, point: pareto.Points) -> list[float]:
    points = np.array([evaluation.means(parts.searched) for _, evaluation in population])
    return [float(volume) for volume in pareto.hypervolume_history(points, point)]


def _population(study: Study, evaluations: int) -> dict[str, Any]:
    """Return those of the results that only a population of models has, from a replay of its first `evaluations`."""
    driver = study.parts.new_driver(study.settings.seed)
    if not isinstance(driver, Population):
        return {}
    points = set(np.linspace(1, evaluations, min(evaluations, _POINTS)).round().astype(int).tolist())
    told = (evaluation for _, evaluation in study.replay(driver) if evaluation is not None)
    found = {}
    try:
        for count, _ in enumerate(itertools.islice(told, evaluations), start=1):
            if count in points and (now := driver.diagnostics()):
                found[count] = now
    except (StudyError, DriverError) as error:  # no reason to withhold the front
        return {"not_replayed": str(error)}
    if not found:
        return {}
    entropy = [now["entropy"] for now in found.values() if "entropy" in now]
    diagnostics = Diagnostics(
        evaluations=tuple(found),
        coverage=tuple(now["coverage"] for now in found.values()),
        entropy=tuple(entropy) if len(entropy) == len(found) else None,
        members=len(driver.members()),
    )
    return {"diagnostics": diagnostics, "cells": tuple(_cells(cells) for cells in driver.maps())}


def _surface(study: Study, population: surface.Population) -> Surface | None:
    """Return the surface of a study whose driver leaves one."""
    if not surface.has_surface(study):
        return None
    try:
        return surface.data(study, population, surface.read(study, population))
    except (DriverError, SurrogateError) as error:  # no reason to withhold the front
        return Surface(refused=str(error))


def _cells(found: CellMap) -> Cells:
    return Cells(
        quality=found.quality,
        axes=found.axes,
        edges=tuple(tuple(edges.tolist()) for edges in found.edges),
        elites=tuple(
            Elite(cell=cell, recipe_id=identity, quality=quality)
            for cell, (identity, quality) in sorted(found.elites.items())
        ),
    )
