"""The default budget of a new study: a number of evaluations by driver and genes."""

from evomerge.search.driver import Climber, Driver, Generational
from evomerge.search.fronts.surface import Surfaced
from evomerge.search.populations.population import Population
from evomerge.search.slopes.gradient import Gradient
from evomerge.search.slopes.polish import Polish
from evomerge.space import SearchSpace
from evomerge.trial import SLOPES_COST

_CLIMB = 40
"""Evaluations with slopes: the steps that a climb takes hardly depend on the number of genes."""
_DESIGNS, _LARGEST = 6, 600
"""With a surface: multiples of the fewest evaluations that may have one, which are half a design; at most."""
_PER_GENE, _FEWEST, _MOST = 20, 100, 400
"""Any other search: evaluations for each gene and one more, and their bounds."""


def budget(driver: Driver, space: SearchSpace) -> tuple[int, str]:
    """Return the number of evaluations that a new study has by default, and where it comes from, in words.

    - along slopes: 40 evaluations with slopes for each climb, each of which counts as three;
    - with a surface: three designs, at most 600, each counted as three if it has slopes;
    - populations of models: 400;
    - all others: 20 for each gene and one more, from 100 to 400.

    A driver may end before. More examples lower the noise of every score, but need no more candidates.
    """
    breeder = driver.breeder if isinstance(driver, Generational) else None
    climbs = isinstance(breeder, Climber)
    if isinstance(breeder, Surfaced):
        fewest = breeder.min_evaluations
        designs = max(fewest, min(_DESIGNS * fewest, _LARGEST)) * (SLOPES_COST if climbs else 1)
        return designs, f"up to three designs of its surrogates over {len(space.genes)} genes"
    if climbs and not isinstance(breeder, Polish):
        count = breeder.in_flight if isinstance(breeder, Gradient) else 1
        beside = f" of each of {count} climbs" if count > 1 else ""
        return SLOPES_COST * _CLIMB * count, f"{_CLIMB} evaluations with slopes{beside}"
    if isinstance(driver, Population):
        return _MOST, "a population of models"
    return (
        max(_FEWEST, min(_PER_GENE * (len(space.genes) + 1), _MOST)),
        f"{_PER_GENE} for each gene and one more, from {_FEWEST} to {_MOST}",
    )
