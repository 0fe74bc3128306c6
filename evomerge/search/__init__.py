"""ONE IDEA: ask / tell.

`make` gives the driver that a study file's `driver:` spells. Drivers know numpy and their optimiser, not
torch, not ray.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from evomerge.errors import DriverError, nearest
from evomerge.recipe import describe as describe_error
from evomerge.search.cma import Cma, CmaSettings
from evomerge.search.cycle import Cycle, CycleSettings
from evomerge.search.driver import Breeder, Driver, Generational
from evomerge.search.front import Front, FrontSettings
from evomerge.search.map_elites import MapElites, MapElitesSettings
from evomerge.search.niches import Niches, NichesSettings
from evomerge.search.nsga import Nsga, NsgaSettings
from evomerge.search.optuna_sampler import Optuna, OptunaSettings
from evomerge.search.population import Archive, CellMap, Population, read_seeds
from evomerge.search.quadratic import Map, MapSettings
from evomerge.search.random import Random, RandomSettings
from evomerge.search.swarm import Swarm, SwarmSettings
from evomerge.space import SearchSpace

__all__ = [
    "KINDS",
    "POPULATIONS",
    "Archive",
    "Breeder",
    "CellMap",
    "Driver",
    "Generational",
    "Population",
    "describe",
    "make",
]

_Make = Callable[[SearchSpace, Sequence[str], int, Any], Driver]


def _generational(breeder: Callable[[SearchSpace, Sequence[str], int, Any], Breeder]) -> _Make:
    return lambda space, objectives, seed, settings: Generational(
        space, objectives, breeder(space, objectives, seed, settings)
    )


def _population(archive: Callable[[Sequence[str], Any], Archive]) -> _Make:
    return lambda space, objectives, seed, settings: Population(
        space, objectives, seed, settings, archive(objectives, settings)
    )


def _cycle(space: SearchSpace, objectives: Sequence[str], seed: int, settings: CycleSettings) -> Driver:
    seeds = [recipe.id for recipe in read_seeds(settings, space)]
    return Population(space, objectives, seed, settings, Cycle(objectives, settings, seeds))


_DRIVERS: dict[str, tuple[type[BaseModel], _Make]] = {
    "cma": (CmaSettings, _generational(Cma)),
    "nsga2": (NsgaSettings, _generational(Nsga)),
    "nsga3": (NsgaSettings, _generational(Nsga)),
    "tpe": (OptunaSettings, _generational(Optuna)),
    "gp": (OptunaSettings, _generational(Optuna)),
    "qmc": (OptunaSettings, _generational(Optuna)),
    "map": (MapSettings, _generational(Map)),
    "front": (FrontSettings, _generational(Front)),
    "random": (RandomSettings, Random),
    "niches": (NichesSettings, _population(Niches)),
    "map_elites": (MapElitesSettings, _population(MapElites)),
    "cycle": (CycleSettings, _cycle),
    "swarm": (SwarmSettings, Swarm),
}

KINDS: tuple[str, ...] = tuple(_DRIVERS)
"""What `kind:` of a driver may be."""

POPULATIONS: Mapping[str, tuple[int, int]] = {"niches": (1, 2), "map_elites": (1, 2), "cycle": (2, 3)}
"""Those of `KINDS` whose candidates are made of earlier candidates, as their space says: of how many at least and at most."""


def make(settings: Mapping[str, Any], space: SearchSpace, objectives: Sequence[str], seed: int) -> Driver:
    """Return the driver that `settings` (`kind:` and its own keys) spell, to search `space` for `objectives`.

    `objectives` name entries of `Evaluation.scores`; higher is better. `seed` (0 or more) decides everything
    random. Raises `DriverError`.
    """
    kind = settings.get("kind")
    if kind not in _DRIVERS:
        msg = (
            f"driver: unknown kind `{kind}`; {nearest(str(kind), KINDS)}"
            if kind
            else f"driver: expected `kind:`, one of {', '.join(KINDS)}"
        )
        raise DriverError(msg)
    if not objectives or len(set(objectives)) != len(objectives):
        msg = f"driver: expected one or more different objectives, got {list(objectives)}"
        raise DriverError(msg)
    least, most = POPULATIONS.get(kind, (0, 0))
    if kind in POPULATIONS and not least <= len(space.parents) <= most:
        msg = (
            f"driver `{kind}` crosses {least} or {most} earlier candidates, and the space has {len(space.parents)}; give it "
            "two, such as `inputs: [{member: mother}, {member: father}]`, or choose another `kind`"
        )
        raise DriverError(msg)
    if kind not in POPULATIONS and space.parents:
        suited = [name for name, (low, high) in POPULATIONS.items() if low <= len(space.parents) <= high]
        msg = (
            f"driver `{kind}` knows no earlier candidates, and the space crosses {', '.join(space.parents)}; "
            f"type `kind: {(*suited, 'niches')[0]}`"
        )
        raise DriverError(msg)
    model, build = _DRIVERS[kind]
    try:
        parsed = model.model_validate(settings)
    except ValidationError as error:
        raise DriverError(describe_error(error, "driver", {"": tuple(model.model_fields)})) from None
    return build(space, objectives, seed, parsed)


def describe(settings: Mapping[str, Any], space: SearchSpace, objectives: Sequence[str]) -> str:
    """Return one line for a dry run: what the driver is and does. Raises `DriverError` as `make` does."""
    return str(make(settings, space, objectives, seed=0))
