"""measure(study) -> Results: score a study's front, and the references to compare it with, on unseen examples.

The search split chooses (the front's models, the references to show, the picked model); the report split only judges.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from evomerge import costs, files, pareto, search
from evomerge.errors import DriverError, StudyError, SurrogateError
from evomerge.evaluate import Evaluator
from evomerge.history import common_failure, digest
from evomerge.recipe import Recipe
from evomerge.report import advice, bootstrap, comparisons, controls, gains, replay, surface, wording
from evomerge.report.data import Gains
from evomerge.report.estimates import NEEDED, Estimates
from evomerge.report.fitted import fitted
from evomerge.report.results import Candidate, Choice, Hypervolume, Objective, Results, Surface, Verified
from evomerge.report.scorer import Scorer, Watch, singles
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal, Split

_ESTIMATED = 2000
"""Candidates that are estimated, beside those of the front: 100,000 would take gigabytes and minutes."""

Population = Sequence[tuple[Proposal, Evaluation]]


def measure(
    study: Study,
    evaluator: Evaluator | None = None,
    watch: Watch = lambda done, total: None,
    also: Collection[int] = (),
    split: Literal["report", "final"] = "report",
) -> Results:
    """Return the results of `study` so far. `watch` gets the evaluations of the report that are completed, and all.

    The candidates whose numbers are in `also` are shown with the front, whether they are on it or not. With `final`, models are
    judged on the final examples instead of the report's: where this says report split, read final split.
    Uses `evaluator`, or makes one if anything has to be scored. References and models of the front that cannot be scored are
    left out, and named. Raises `StudyError` if nothing was evaluated, or if no reference or no model can be scored.
    """
    parts, settings = study.parts, study.settings
    history = study.history()
    population = history.population
    good = [(proposal, evaluation) for proposal, evaluation in population if evaluation.error is None]
    if not good:
        why = f"; the last failure: {population[-1][1].error}" if population else ""
        raise StudyError(f"{study.folder}: no candidate has been evaluated yet, so there is no front{why}")
    if split == "final" and parts.without_final:
        missing = ", ".join(parts.without_final)
        raise StudyError(
            f"{study.folder}: no final examples of {missing}; a study has them by `final: FILE` in each task"
        )
    scorer = Scorer(study, good, evaluator, watch, split)
    tried = scorer.score(comparisons.references(parts, settings.report), "search")
    search_point = scorer.means(scorer.require(tried, "reference", "search").values(), "search").min(axis=0)
    numbers = {proposal.number: proposal.recipe for proposal, _ in good}
    for number in also:
        if number not in numbers:
            msg = f"{study.folder}: no candidate {number} was evaluated on all search examples without a failure; there are {len(good)}"
            raise StudyError(msg)
    searched = np.array([e.means(parts.searched) for _, e in good])
    ids = [good[i][0].recipe.id for i in contenders(searched)]
    estimates = scorer.estimates([*ids, *(numbers[number].id for number in also)], tried)
    shown = comparisons.show(tried, estimates)
    limit = settings.report.front
    chosen = _front(good, searched, search_point, limit, estimates.best(ids), estimates)
    extra = {f"#{number}": numbers[number] for number in also}
    references = {name: tried[name] for name in (*shown, *_best(tried, scorer.means(tried.values(), "search"), limit))}
    scored = scorer.score({**references, **chosen, **extra}, split)
    references, chosen, extra = (
        {name: scored[name] for name in models if name in scored} for models in (references, chosen, extra)
    )
    scorer.require({name: recipe for name, recipe in references.items() if name in shown}, "reference", split)
    scorer.require(chosen, "model of the front", split)
    scorer.scale(references)

    on_front = dict(zip(ids, estimates.on_front(ids).tolist(), strict=True))
    front = [
        scorer.candidate(name, recipe, estimates, on_front.get(recipe.id), scorer.equal(recipe, tried))
        for name, recipe in {**chosen, **extra}.items()
    ]
    candidates = {
        label: scorer.candidate(label, references[name], estimates)
        for name, label in shown.items()
        if name in references
    }
    choice = _choice(estimates, [recipe.id for recipe in chosen.values()], candidates)
    picked = (
        next(one for one in front if one.recipe_id == choice.candidate)
        if choice.is_candidate
        else candidates[choice.reference]
    )
    counted = _gains(scorer, settings, tried, estimates)
    models = list(chosen.values()), list(references.values())
    report_point = scorer.means(models[1], split).min(axis=0)
    seconds, damaged = costs.totals(study.folder)
    return Results(
        name=settings.name,
        split=split,
        digest=digest(history.completed),
        evaluations=len(population),
        stopped=len(history.partial),
        spent=history.spent,
        failed=len(population) - len(good),
        common_failure=common_failure(population),
        objectives=tuple(
            Objective(
                name=name,
                search=task.search_metric,
                report=task.report_metric,
                examples=(task.size("search"), task.size(split)),
            )
            for name, task in parts.tasks.items()
        ),
        genes=len(parts.space.genes),
        hypervolume=_hypervolume(scorer, population, *models, {"search": search_point, split: report_point}),
        front=tuple(front),
        picked=picked.recipe_id,
        choice=choice,
        references=candidates,
        unscored=scorer.failures,
        comparisons=comparisons.compare(
            scorer, picked, _rivals(picked, candidates, singles(references), estimates), *models, report_point
        ),
        **replay.population(study, len(population)),
        surface=_surface(study, population),
        fitted=fitted(parts, good, picked.recipe_id, scorer.scores(picked.recipe_id, split)),
        gains=counted,
        advice=advice.advise(
            scorer,
            picked,
            choice,
            candidates,
            settings.space,
            counted,
            climbed=search.climbs(parts.new_driver(settings.seed)),
        ),
        control=controls.read(study, history.spent, scorer, picked, candidates.get("base")),
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
        raise StudyError(f"cannot score {recipe.json} on the {split} split: {error}")
    scores = scorer.scores(recipe.id)
    searched = {name: key for name, key in zip(parts.tasks, parts.searched, strict=True) if key in scores}
    intervals = bootstrap.intervals(scores, scorer.draws(list(searched.values()))) if searched else {}
    return Verified(
        candidate=scorer.candidate("predicted", recipe),
        unseen={name: intervals[key] for name, key in searched.items()},
    )


def contenders(searched: pareto.Points) -> list[int]:
    """Return the rows of candidates that can be picked: the front, and the best by the mean of their ranks, up to a number."""
    ranks = searched.argsort(axis=0).argsort(axis=0).mean(axis=1)
    rows = {
        *np.argsort(-ranks, kind="stable")[:_ESTIMATED].tolist(),
        *np.flatnonzero(pareto.nondominated(searched)).tolist(),
    }
    return sorted(rows)


def _choice(estimates: Estimates, front: Sequence[str], references: Mapping[str, Candidate]) -> Choice:
    """Return the choice between the best of the search's candidates, which the `front` of ids holds, and the best reference."""
    names = {reference.recipe_id: name for name, reference in references.items()}
    ours, theirs = estimates.best(front), estimates.best(list(names))
    gain, probability = estimates.gain(ours, theirs)
    return Choice(
        candidate=ours,
        reference=names[theirs],
        gain=gain,
        probability=probability,
        needed=NEEDED,
        metrics=estimates.metrics,
        noise=estimates.noise,
    )


def _front(
    good: Population,
    searched: pareto.Points,
    point: pareto.Points,
    limit: int,
    best: str,
    estimates: Estimates,
) -> dict[str, Recipe]:
    """Return at most `limit` recipes by `#` and number: that with the id `best`, and those of the front that add most hypervolume.

    Where hypervolumes would take too long, those with the best estimated means.
    """
    first: dict[str, int] = {}
    for i, (proposal, _) in enumerate(good):
        first.setdefault(proposal.recipe.id, i)
    on_front = {first[good[i][0].recipe.id] for i in np.flatnonzero(pareto.nondominated(searched)).tolist()}
    rows = sorted(on_front - {first[best]})
    if pareto.affordable(min(limit, len(rows)), len(point), repeats=limit * len(rows)):
        chosen = [rows[j] for j in pareto.subset(searched[rows], point, limit)] if rows else []
    else:
        chosen = sorted(rows, key=lambda i: -estimates.mean(good[i][0].recipe.id))
    return {f"#{good[i][0].number}": good[i][0].recipe for i in sorted([first[best], *chosen[: limit - 1]])}


def _best(references: Mapping[str, Recipe], searched: pareto.Points, limit: int) -> list[str]:
    """Return the names of at most `limit` references of their front on the search split."""
    names, rows = list(references), np.flatnonzero(pareto.nondominated(searched))
    if len(rows) > limit and pareto.affordable(limit, searched.shape[1], repeats=limit * len(rows)):
        rows = rows[pareto.subset(searched[rows], searched.min(axis=0), limit)]
    return [names[i] for i in rows[:limit].tolist()]


def _rivals(
    picked: Candidate, shown: Mapping[str, Candidate], alone: Collection[str], estimates: Estimates
) -> dict[str, Candidate]:
    """Return the references to compare the pick with: the best single model, the best reference, and the average.

    The single model is the best on the unseen examples, which is hard on the pick; the reference is the best by the estimates.
    """
    found = {}
    if alone:
        found["best single model"] = max((shown[name] for name in alone), key=lambda one: one.mean[0])
    names = {one.recipe_id: name for name, one in shown.items()}
    found["best reference"] = shown[names[estimates.best(list(names))]]
    if "average" in shown:
        found["plain average"] = shown["average"]
    rivals: dict[str, Candidate] = {}
    for what, rival in found.items():
        if rival not in (picked, *rivals.values()):
            rivals[what if rival.name == "average" else f"{what} ({rival.name})"] = rival
    return rivals


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
        report=volume(front, scorer.split),
        references=volume(references, scorer.split),
        search_references=volume(references, "search"),
        search_point=dict(zip(scorer.parts.tasks, points["search"].tolist(), strict=True)),
        report_point=dict(zip(scorer.parts.tasks, points[scorer.split].tolist(), strict=True)),
        history=tuple(history.tolist()),
    )


def _gains(
    scorer: Scorer, settings: StudySettings, references: Mapping[str, Recipe], estimates: Estimates
) -> Gains | None:
    """Return what one expert more would add, None where the study does not ask for it."""
    if not settings.report.subsets:
        return None
    names = list(scorer.parts.pool.experts)
    averages = scorer.score(gains.recipes(names, settings.report.subsets, settings.seed), "search")
    keys = [f"{task}/{metric}" for task, metric in estimates.metrics.items()]

    def scores(recipe: Recipe) -> bootstrap.Scores:
        found = scorer.scores(recipe.id, "search")
        return {key: found[key] for key in keys}

    groups: dict[int, list[bootstrap.Scores]] = {}
    for recipe in [
        *(recipe for name, recipe in references.items() if name.startswith("expert ") or name == "average"),
        *averages.values(),
    ]:
        groups.setdefault(len(recipe.experts), []).append(scores(recipe))
    metric = wording.common_metric(estimates.metrics.values())
    origin = scores(references["base"]) if metric is None and "base" in references else None
    return gains.measure(
        groups, len(names), scorer.draws(keys, "search"), estimates.utility, metric or wording.SCALED, origin
    )


def _surface(study: Study, population: Population) -> Surface | None:
    """Return the surface of a study whose driver has one."""
    if not surface.has_surface(study):
        return None
    try:
        return surface.data(study, population, surface.read(study, population))
    except (DriverError, SurrogateError) as error:  # the rest of the report does not depend on it
        return Surface(refused=str(error))
