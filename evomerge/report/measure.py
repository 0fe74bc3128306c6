"""measure(study) -> Results: score a study's front, and the references to compare it with, on unseen examples.

The search split chooses (the front's models, the scale, the picked merge); the report split only judges.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge import costs, files, pareto
from evomerge.errors import DriverError, StudyError, SurrogateError
from evomerge.evaluate import Evaluator
from evomerge.history import digest
from evomerge.recipe import Recipe
from evomerge.report import bootstrap, comparisons, replay, surface
from evomerge.report.results import Hypervolume, Objective, Results, Surface, Verified
from evomerge.report.scorer import Scorer, Watch
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal, Split

Population = Sequence[tuple[Proposal, Evaluation]]


def measure(study: Study, evaluator: Evaluator | None = None, watch: Watch = lambda done, total: None) -> Results:
    """Return the results of `study` so far. `watch` gets the evaluations of the report that are completed, and all.

    Uses `evaluator`, or makes one if anything has to be scored. References and models of the front that cannot be scored are
    left out, and named. Raises `StudyError` if nothing was evaluated, or if no reference or no model can be scored.
    """
    parts, settings = study.parts, study.settings
    history = study.history()
    population = history.population
    good = [(proposal, evaluation) for proposal, evaluation in population if evaluation.error is None]
    if not good:
        why = f"; the last failure: {population[-1][1].error}" if population else ""
        msg = f"{study.folder}: no candidate has been evaluated yet, so there is no front{why}"
        raise StudyError(msg)
    scorer = Scorer(study, good, evaluator, watch)
    references = scorer.score(comparisons.references(parts, settings.report.scales), "search")
    search_point = scorer.means(scorer.require(references, "reference", "search").values(), "search").min(axis=0)
    chosen = _front(good, np.array([e.means(parts.searched) for _, e in good]), search_point, settings.report.front)
    scored = scorer.score({**references, **chosen}, "report")
    references, chosen = ({name: scored[name] for name in models if name in scored} for models in (references, chosen))
    scorer.require(references, "reference", "report")
    scorer.require(chosen, "model of the front", "report")

    front = [scorer.candidate(name, recipe) for name, recipe in chosen.items()]
    picked = max(front, key=lambda point: (sum(point.search.values()), point.recipe_id))
    shown, rivals = comparisons.show(references, scorer)
    candidates = {name: scorer.candidate(name, recipe) for name, recipe in shown.items()}
    models = list(chosen.values()), list(references.values())
    report_point = scorer.means(models[1], "report").min(axis=0)
    seconds, damaged = costs.totals(study.folder)
    return Results(
        name=settings.name,
        digest=digest(history.completed),
        evaluations=len(population),
        stopped=len(history.partial),
        spent=history.spent,
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
        hypervolume=_hypervolume(scorer, population, *models, {"search": search_point, "report": report_point}),
        front=tuple(front),
        picked=picked.recipe_id,
        references=candidates,
        unscored=scorer.failures,
        comparisons=comparisons.compare(
            scorer, picked, {what: candidates[name] for what, name in rivals.items()}, *models, report_point
        ),
        **replay.population(study, len(population)),
        surface=_surface(study, population),
        costs=seconds,
        damaged_costs=damaged,
        study=settings.model_dump(mode="json"),
    )


def write(results: Results, folder: Path) -> None:
    """Write the results as `report.json` into the study's `folder`."""
    files.write(folder / "report.json", results.model_dump_json(indent=1) + "\n")


def verify(
    study: Study, recipe: Recipe, evaluator: Evaluator | None = None, watch: Watch = lambda done, total: None
) -> Verified:
    """Return the scores of `recipe` on both splits, which it is evaluated for where they are missing.

    Uses `evaluator`, or makes one if anything has to be scored. Raises `StudyError` if the recipe cannot be scored.
    """
    scorer, parts = Scorer(study, study.population(), evaluator, watch), study.parts
    for (_, split), error in scorer.attempt([(recipe, "search"), (recipe, "report")]).items():
        msg = f"cannot score {recipe.json} on the {split} split: {error}"
        raise StudyError(msg)
    scores = scorer.scores(recipe.id)
    searched = {name: key for name, key in zip(parts.tasks, parts.searched, strict=True) if key in scores}
    intervals = bootstrap.intervals(scores, scorer.draws(list(searched.values()))) if searched else {}
    return Verified(
        candidate=scorer.candidate("predicted", recipe),
        unseen={name: intervals[key] for name, key in searched.items()},
    )


def _front(good: Population, searched: pareto.Points, point: pareto.Points, limit: int) -> dict[str, Recipe]:
    """Return at most `limit` recipes of the front by `#` and number: the best mean, and those that add most hypervolume.

    Where hypervolumes would take too long, those with the best means.
    """
    first: dict[str, int] = {}
    for i in np.flatnonzero(pareto.nondominated(searched)).tolist():
        first.setdefault(good[i][0].recipe.id, i)
    rows = sorted(first.values(), key=lambda i: -float(searched[i].mean()))
    chosen = rows
    if pareto.affordable(min(limit, len(rows)), len(point), repeats=limit * len(rows)):
        indices = sorted(rows)
        chosen = [
            rows[0],
            *(indices[j] for j in pareto.subset(searched[indices], point, limit) if indices[j] != rows[0]),
        ]
    return {f"#{good[i][0].number}": good[i][0].recipe for i in sorted(chosen[:limit])}


def _hypervolume(
    scorer: Scorer,
    population: Population,
    front: Sequence[Recipe],
    references: Sequence[Recipe],
    points: Mapping[Split, pareto.Points],
) -> Hypervolume | None:
    """Return the hypervolumes above `points`; None where they would take too long."""
    candidates = np.array([evaluation.means(scorer.parts.searched) for _, evaluation in population])
    sizes = int(pareto.nondominated(candidates).sum()), len(front), len(references)
    if not pareto.affordable(max(sizes), len(scorer.parts.tasks)):
        return None

    def volume(recipes: Iterable[Recipe], split: Split) -> float:
        return pareto.hypervolume(scorer.means(recipes, split), points[split])

    history = pareto.hypervolume_history(candidates, points["search"])
    return Hypervolume(
        search=pareto.hypervolume(candidates, points["search"]),
        report=volume(front, "report"),
        references=volume(references, "report"),
        search_references=volume(references, "search"),
        search_point=dict(zip(scorer.parts.tasks, points["search"].tolist(), strict=True)),
        report_point=dict(zip(scorer.parts.tasks, points["report"].tolist(), strict=True)),
        history=tuple(history.tolist()),
    )


def _surface(study: Study, population: Population) -> Surface | None:
    """Return the surface of a study whose driver has one."""
    if not surface.has_surface(study):
        return None
    try:
        return surface.data(study, population, surface.read(study, population))
    except (DriverError, SurrogateError) as error:  # the rest of the report does not depend on it
        return Surface(refused=str(error))
