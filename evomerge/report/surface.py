"""The surface of a study whose driver leaves one: predicted scores of merges that were not evaluated.

Nothing here evaluates a merge; `measure.verify` checks a prediction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.errors import StudyError
from evomerge.recipe import Recipe
from evomerge.report.choose import Preference
from evomerge.report.results import ObjectiveFit
from evomerge.report.results import Surface as Shown
from evomerge.search import surfaced
from evomerge.search.fronts.surface import Surface
from evomerge.study import Study
from evomerge.surrogate import NORMAL_90, Surrogate
from evomerge.tasks import Task
from evomerge.trial import Evaluation, Proposal

_SAME = 1e-9
"""Recipes that differ by less in every gene, as a share of its range, differ only by rounding."""

Population = Sequence[tuple[Proposal, Evaluation]]
"""The evaluated candidates, in order of number: `Study.population`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One merge and its predicted scores. Not to be confused with a `Candidate`, which was measured."""

    recipe: Recipe
    scores: Mapping[str, tuple[float, float]]
    """Objective → predicted mean of the searched metric on the search split, and half its 90% interval."""
    fits: Mapping[str, Surrogate]
    """Objective → its surrogate."""
    best_for_all: bool
    """Whether one merge is best for all objectives, as far as the surrogates can tell."""
    evaluated: bool
    """Whether the search evaluated this merge: its score there is then no test of the prediction."""


def has_surface(study: Study) -> bool:
    """Return whether the study's driver leaves a surface."""
    return surfaced(study.parts.new_driver(study.settings.seed)) is not None


def read(study: Study, population: Population) -> Surface:
    """Return the surface of `study` after this `population`. Raises `StudyError` for a driver that leaves none.

    It equals that of a replayed search, without fitting and choosing each batch again: a surface depends only on the
    evaluations.
    """
    breeder = surfaced(study.parts.new_driver(study.settings.seed))
    if breeder is None:
        kind = str(study.parts.driver["kind"])
        if kind == "front":
            raise StudyError(
                f"{study.folder}: the driver `front` leaves a surface where it fits surrogates, and this study's follows slopes; "
                "type `evomerge pick` without `--surface`, or start a study of up to 40 genes with `driver: {kind: front, slopes: surrogates}`"
            )
        raise StudyError(
            f"{study.folder}: only the drivers `front`, `map`, `bayesian_map` and `nested_map` leave a surface, and this study's is `{kind}`; "
            "type `evomerge pick` without `--surface`, or start a study with `driver: {kind: front}`"
        )
    space = study.parts.space
    genomes = np.array([space.genome_of(proposal) for proposal, _ in population]).reshape(-1, len(space.genes))
    return breeder.surface(genomes, [evaluation for _, evaluation in population])


def ask(study: Study, population: Population, surface: Surface, preference: Preference) -> Prediction:
    """Return the surface's merge for a `preference`, by the rules for a measured front, applied to predicted scores.

    Without a preference: the merge that is best for all objectives, where there is one, else the best mean. Scores are in
    units of the searched metric. Raises `StudyError` where the surface is refused, or no merge satisfies the preference.
    """
    if surface.refused is not None:
        raise StudyError(
            f"{study.folder}: the surface cannot be relied on: {surface.refused}; type `evomerge pick {study.folder}` without "
            f"`--surface` for what was measured, or `evomerge resume {study.folder} --evaluations N` with a larger budget"
        )
    parts = study.parts
    fits = dict(zip(parts.tasks, (surface.fits[name] for name in parts.searched), strict=True))
    if surface.best_for_all is not None and not preference.is_set:
        genome = surface.best_for_all
        unit = parts.space.to_unit(genome[None])
        predicted = [(*fit.predict(unit), fit.widening) for fit in fits.values()]
        pairs = [(float(mean[0]), widening * float(deviation[0])) for mean, deviation, widening in predicted]
    else:
        row = preference.row(surface.means, list(parts.tasks))
        genome = surface.genomes[row]
        pairs = list(zip(surface.means[row].tolist(), surface.deviations[row].tolist(), strict=True))
    scores = {
        name: (float(np.clip(mean, *_bounds(task))), NORMAL_90 * sd)
        for (name, task), (mean, sd) in zip(parts.tasks.items(), pairs, strict=True)
    }
    unit = parts.space.to_unit(genome)
    same = (
        proposal.recipe
        for proposal, evaluation in population
        if evaluation.error is None
        and np.abs(parts.space.to_unit(parts.space.genome_of(proposal)) - unit).max() < _SAME
    )
    evaluated = next(same, None)  # reuse its evaluation, although rounding may have changed a last bit
    return Prediction(
        recipe=parts.space.decode(genome) if evaluated is None else evaluated,
        scores=scores,
        fits=fits,
        best_for_all=surface.best_for_all is not None,
        evaluated=evaluated is not None,
    )


def data(study: Study, population: Population, surface: Surface) -> Shown:
    """Return the surface of a `population` as plain data, intervals as half their width."""
    parts = study.parts
    good = [evaluation for _, evaluation in population if evaluation.error is None]
    best = surface.best_for_all
    return Shown(
        refused=surface.refused,
        best_for_all=None if best is None else parts.space.decode(best).id,
        means=tuple(map(tuple, np.clip(surface.means, *np.transpose([*map(_bounds, parts.tasks.values())])).tolist())),
        widths=tuple(map(tuple, (NORMAL_90 * surface.deviations).tolist())),
        evaluated=tuple(tuple(evaluation.means(parts.searched).tolist()) for evaluation in good),
        fits={
            name: _fit(surface.fits[key])
            for name, key in zip(parts.tasks, parts.searched, strict=True)
            if key in surface.fits
        },
    )


def _bounds(task: Task) -> tuple[float, float]:
    """Return the lowest and the highest score of a task's searched metric: a surrogate may predict beyond them."""
    return task.metrics[task.search_metric].bounds


def _fit(fit: Surrogate) -> ObjectiveFit:
    return ObjectiveFit(
        rung=fit.name,
        r2=fit.r2,
        coverage=fit.coverage,
        standard_error=None if math.isnan(fit.standard_error) else fit.standard_error,
        measured=tuple(fit.values.tolist()),
        predicted=tuple(fit.left_out.tolist()),
        widths=tuple((NORMAL_90 * fit.factor * fit.rung.left_out[1]).tolist()),
    )
