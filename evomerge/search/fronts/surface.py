"""Surface: the front that a search's surrogates predict, without evaluating anything, and whether it may be relied on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from evomerge import pareto
from evomerge.recipe import Recipe
from evomerge.search.driver import Breeder, Genomes, Means
from evomerge.search.fronts.infill import spread
from evomerge.space import Genome, SearchSpace
from evomerge.surrogate import Surrogate
from evomerge.trial import Evaluation

_MIN_R2 = 0.9
"""Lowest left-out R² of a surrogate whose front is published."""
_MOST_ROWS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The front as the surrogates predict it: a recipe for any trade-off, without another evaluation.

    Not to be confused with the front of the evaluated candidates. Rows are at most 400 candidates, from end to end.
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
    """The surrogate of each objective that varies."""
    refused: str | None
    """Why the rows must not be published; None where they may be."""
    best_for_all: Genome | None
    """The genome, `(genes,)`, that is best for all objectives, where they do not conflict and no front is needed."""


@runtime_checkable
class Surfaced(Breeder, Protocol):
    """A `Breeder` that leaves a surface. `evomerge.testing.SurfaceSuite` checks implementations."""

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface."""
        ...

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the surface, with the reasons not to rely on it. The breeder does not change.

        `genomes`, `(candidates, genes)`, and their `evaluations` are added to those that were learnt: `Generational.unfinished`, or
        for a fresh breeder all that a study evaluated, in order.
        """
        ...


def smallest_coverage(count: int) -> float:
    """Return the smallest share of `count` scores expected in their 90% intervals: two standard errors below 0.9."""
    return 0.9 - 2 * math.sqrt(0.09 / count)


def reasons_to_refuse(fits: Mapping[str, Surrogate]) -> list[str]:
    """Return a line for each figure of `fits` that speaks against publishing their predictions."""
    reasons = []
    for name, fit in fits.items():
        expected = smallest_coverage(len(fit.values))
        if fit.r2 < _MIN_R2:
            reasons.append(
                f"`{name}`: the surrogate ({fit.name}) explains R² {fit.r2:.2f} of candidates that it has not seen; expected {_MIN_R2}"
            )
        if fit.coverage < expected:
            reasons.append(
                f"`{name}`: {fit.coverage:.0%} of scores lie in their 90% intervals; expected {expected:.0%} or more of {len(fit.values)}"
            )
    return reasons


def make_surface(
    space: SearchSpace,
    genomes: Genomes,
    predicted: tuple[Means, Means],
    fits: Mapping[str, Surrogate],
    objectives: tuple[str, ...],
    count: int,
    reasons: Sequence[str],
    best_for_all: Genome | None = None,
) -> Surface:
    """Return the surface of the nondominated `genomes`; `predicted` are means and deviations.

    `reasons` are those to refuse it. An objective without a fit, which did not vary over `count` candidates, is one more.
    """
    constant = [
        f"`{name}` does not vary over {count} candidates; drop it, or search a larger space"
        for name in objectives
        if name not in fits
    ]
    means, deviations = predicted
    best = np.flatnonzero(pareto.nondominated(means))
    best = best[spread(means[best], _MOST_ROWS)]
    return Surface(
        objectives=objectives,
        genomes=genomes[best],
        recipes=tuple(space.decode(genome) for genome in genomes[best]),
        means=means[best],
        deviations=deviations[best],
        fits=fits,
        refused="; ".join([*constant, *reasons]) or None,
        best_for_all=best_for_all,
    )


def empty_surface(space: SearchSpace, objectives: tuple[str, ...], reason: str) -> Surface:
    """Return a surface without rows, refused for a `reason`."""
    empty = np.empty((0, len(objectives)))
    return Surface(objectives, np.empty((0, len(space.genes))), (), empty, empty, {}, reason, None)
