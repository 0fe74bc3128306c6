"""The surface of a study whose driver leaves one: what its surrogates say of merges that nobody has evaluated.

Nothing here evaluates anything. Whether what is predicted holds, `measure.verify` finds out.
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
from evomerge.search import Surfaced, surfaced
from evomerge.search.fronts.surface import Surface
from evomerge.study import Study
from evomerge.surrogate import NORMAL_90, Surrogate
from evomerge.trial import Evaluation, Proposal

_SAME = 1e-9
"""Recipes nearer to each other in every gene, as a share of its range, differ by rounding alone."""

Population = Sequence[tuple[Proposal, Evaluation]]
"""What was evaluated, in order of number: `Study.population`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One merge, and what it is expected to score. Not to be confused with a `Candidate`, which was measured."""

    recipe: Recipe
    scores: Mapping[str, tuple[float, float]]
    """Objective → predicted mean of the searched metric on the search split, and half its 90% interval."""
    fits: Mapping[str, Surrogate]
    """Objective → what predicted it."""
    best_for_all: bool
    """Whether there is a merge that is best for all objectives, as far as can be told."""
    evaluated: bool
    """Whether the search evaluated this very merge: then its score there is no test of the prediction."""


def has_surface(study: Study) -> bool:
    """Tell whether the study's driver is one that leaves a surface."""
    return _breeder(study) is not None


def read(study: Study, population: Population) -> Surface:
    """Return the surface that `study` has after this `population`. Raises `StudyError` for a study of another driver.

    It is what a replay of the journal would leave, without fitting and choosing each batch again: a surface depends on what
    was evaluated, and not on how that was found.
    """
    breeder = _breeder(study)
    if breeder is None:
        kind = study.parts.driver["kind"]
        msg = (
            f"{study.folder}: only the drivers `front`, `map`, `bayesian_map` and `nested_map` leave a surface, and this study's is `{kind}`; "
            "type `evomerge pick` without `--surface`, or start a study with `driver: {kind: front}`"
        )
        raise StudyError(msg)
    space = study.parts.space
    genomes = np.array([space.encode(proposal.recipe) for proposal, _ in population]).reshape(-1, len(space.genes))
    return breeder.surface(genomes, [evaluation for _, evaluation in population])


def ask(study: Study, population: Population, surface: Surface, preference: Preference) -> Prediction:
    """Return the merge of the `population`'s surface that is wanted, by the rules for a measured front, applied to predicted scores.

    Without a preference: the merge that is best for all objectives, where there is one, else the best mean. All are in
    units of the searched metric, the one that is predicted. Raises `StudyError` where the surface must not be relied on,
    or where nothing on it satisfies.
    """
    if surface.refused is not None:
        msg = (
            f"{study.folder}: the surface cannot be relied on: {surface.refused}; type `evomerge pick {study.folder}` without "
            f"`--surface` for what was measured, or `evomerge resume {study.folder} --evaluations N` with a larger budget"
        )
        raise StudyError(msg)
    parts = study.parts
    fits = dict(zip(parts.tasks, (surface.fits[name] for name in parts.searched), strict=True))
    if surface.best_for_all is not None and not preference.is_set:
        genome = surface.best_for_all
        found = [fit.predict(parts.space.to_unit(genome[None])) for fit in fits.values()]
        pairs = [(float(mean[0]), float(deviation[0])) for mean, deviation in found]
    else:
        row = preference.row(surface.means, list(parts.tasks))
        genome = surface.genomes[row]
        pairs = list(zip(surface.means[row].tolist(), surface.deviations[row].tolist(), strict=True))
    scores = {name: (mean, NORMAL_90 * sd) for name, (mean, sd) in zip(parts.tasks, pairs, strict=True)}
    unit = parts.space.to_unit(genome)
    same = (
        proposal.recipe
        for proposal, evaluation in population
        if evaluation.error is None
        and np.abs(parts.space.to_unit(parts.space.encode(proposal.recipe)) - unit).max() < _SAME
    )
    evaluated = next(same, None)  # what was paid for is not paid for again, for a last bit that rounding changed
    return Prediction(
        recipe=parts.space.decode(genome) if evaluated is None else evaluated,
        scores=scores,
        fits=fits,
        best_for_all=surface.best_for_all is not None,
        evaluated=evaluated is not None,
    )


def data(study: Study, population: Population, surface: Surface) -> Shown:
    """Return the surface of a `population` as plain data, its intervals as half their width."""
    parts = study.parts
    good = [evaluation for _, evaluation in population if evaluation.error is None]
    best = surface.best_for_all
    return Shown(
        refused=surface.refused,
        best_for_all=None if best is None else parts.space.decode(best).id,
        means=tuple(map(tuple, surface.means.tolist())),
        widths=tuple(map(tuple, (NORMAL_90 * surface.deviations).tolist())),
        evaluated=tuple(tuple(evaluation.means(parts.searched).tolist()) for evaluation in good),
        fits={
            name: _fit(surface.fits[key])
            for name, key in zip(parts.tasks, parts.searched, strict=True)
            if key in surface.fits
        },
    )


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


def _breeder(study: Study) -> Surfaced | None:
    """Return a fresh breeder of the study's space, which has learnt nothing; None for a driver without a surface."""
    return surfaced(study.parts.new_driver(study.settings.seed))
