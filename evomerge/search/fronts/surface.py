"""Surface: what a search's surrogates say of merges that nobody has evaluated, and whether that may be relied on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge import pareto
from evomerge.recipe import Recipe
from evomerge.search.driver import Genomes, Means
from evomerge.search.fronts.infill import spread
from evomerge.space import Genome, SearchSpace
from evomerge.surrogate import Surrogate

_SURE = 0.9
"""Share of the variance of scores that a surrogate must predict, for its front to be published."""
_SHOWN = 400


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The front as the surrogates see it: where to go for any trade-off without evaluating anything more.

    Not to be confused with the front of what was evaluated. Rows are at most 400 candidates, from end to end.
    """

    objectives: tuple[str, ...]
    genomes: Genomes
    """`(rows, genes)`."""
    recipes: tuple[Recipe, ...]
    means: Means
    """Predicted mean scores, `(rows, objectives)`. Higher is better."""
    deviations: Means
    """Calibrated standard deviations of the scores that would be measured there, `(rows, objectives)`."""
    fits: Mapping[str, Surrogate]
    """Of each objective that varies: the rung that was chosen, its R², its coverage and the noise of the examples."""
    refused: str | None
    """Why the rows must not be published; None where they may be."""
    best_for_all: Genome | None
    """The one genome, `(genes,)`, that is best for all objectives, where they do not conflict: no front is needed."""


def flat(objectives: Sequence[str], fits: Mapping[str, Surrogate], count: int) -> list[str]:
    """Return a line for each objective without a fit: it does not vary over `count` candidates."""
    return [
        f"`{name}` does not vary over {count} candidates; drop it, or search a larger space"
        for name in objectives
        if name not in fits
    ]


def doubts(fits: Mapping[str, Surrogate]) -> list[str]:
    """Return what speaks against publishing what `fits` predict."""
    found = []
    for name, fit in fits.items():
        # Two standard errors of a share of 0.9.
        covered = 0.9 - 2 * math.sqrt(0.09 / len(fit.values))
        if fit.r2 < _SURE:
            found.append(
                f"`{name}`: the surrogate ({fit.name}) explains R² {fit.r2:.2f} of candidates that it has not seen; expected {_SURE}"
            )
        if fit.coverage < covered:
            found.append(
                f"`{name}`: {fit.coverage:.0%} of scores lie in their 90% intervals; expected {covered:.0%} or more of {len(fit.values)}"
            )
    return found


def published(
    space: SearchSpace,
    objectives: tuple[str, ...],
    genomes: Genomes,
    predicted: tuple[Means, Means],
    fits: Mapping[str, Surrogate],
    against: Sequence[str],
    best_for_all: Genome | None = None,
) -> Surface:
    """Return the surface of what is not dominated, as `predicted`, among `genomes`; `against` are reasons not to rely on it."""
    means, deviations = predicted
    best = np.flatnonzero(pareto.nondominated(means))
    best = best[spread(means[best], _SHOWN)]
    return Surface(
        objectives=objectives,
        genomes=genomes[best],
        recipes=tuple(space.decode(genome) for genome in genomes[best]),
        means=means[best],
        deviations=deviations[best],
        fits=fits,
        refused="; ".join(against) or None,
        best_for_all=best_for_all,
    )


def nothing(space: SearchSpace, objectives: tuple[str, ...], why: str) -> Surface:
    """Return the surface without rows that is refused for a reason."""
    empty = np.empty((0, len(objectives)))
    return Surface(objectives, np.empty((0, len(space.genes))), (), empty, empty, {}, why, None)
