"""ONE IDEA: ask / tell.

`make` builds a driver from the `driver:` settings of a study file. Drivers depend on numpy and their optimisers, not on torch
or ray.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from evomerge.errors import DriverError, nearest
from evomerge.plugins import Table, is_settings_and_factory
from evomerge.recipe import describe as describe_error
from evomerge.search.budget import budget
from evomerge.search.cma import Cma, CmaSettings
from evomerge.search.driver import Breeder, Climber, Driver, Generational, Objectives, asks, read_metrics, read_weights
from evomerge.search.fronts.bayesian import BayesianMap, BayesianMapSettings
from evomerge.search.fronts.continuation import Continuation, has_slopes
from evomerge.search.fronts.front import MOST_GENES, Front, suits
from evomerge.search.fronts.map import Map, MapSettings
from evomerge.search.fronts.nested import NestedMap, NestedMapSettings
from evomerge.search.fronts.settings import MANY_IN_FLIGHT, MOST_FITTED, MOST_FITTED_OF_MANY, FrontSettings
from evomerge.search.fronts.sloped import SlopedFront
from evomerge.search.fronts.surface import Surfaced
from evomerge.search.nsga import Nsga, NsgaSettings
from evomerge.search.optuna_sampler import Optuna, OptunaSettings
from evomerge.search.populations.cycle import Cycle, CycleSettings
from evomerge.search.populations.map_elites import MapElites, MapElitesSettings
from evomerge.search.populations.niches import Niches, NichesSettings
from evomerge.search.populations.population import Archive, CellMap, Population, read_seeds
from evomerge.search.racing import Racing, RacingSettings
from evomerge.search.random import Random, RandomSettings
from evomerge.search.slopes.ascent import movable
from evomerge.search.slopes.gradient import RIDGE, Gradient, GradientSettings
from evomerge.search.slopes.polish import Polish
from evomerge.search.swarm import Swarm, SwarmSettings
from evomerge.space import SearchSpace
from evomerge.trial import Metric

__all__ = [
    "KINDS",
    "Archive",
    "Breeder",
    "CellMap",
    "Driver",
    "Generational",
    "Population",
    "Surfaced",
    "asks",
    "budget",
    "climbs",
    "completed",
    "default",
    "make",
    "surfaced",
    "unshrunk",
]

Metrics = Mapping[str, Metric]
Make = Callable[[SearchSpace, Metrics, int, Any, Mapping[str, int]], Driver]
"""`(space, metrics by objective, seed, checked settings, search examples by task) -> driver`."""


def _generational(breeder: Callable[[SearchSpace, Metrics, int, Any], Breeder]) -> Make:
    return lambda space, metrics, seed, settings, sizes: Generational(
        space, metrics, breeder(space, metrics, seed, settings)
    )


def _polished(breeder: Callable[[SearchSpace, Metrics, int, Any], Breeder]) -> Make:
    """Return `_generational`, for settings that may have `polish`."""

    def polished(space: SearchSpace, metrics: Metrics, seed: int, settings: Any, sizes: Mapping[str, int]) -> Driver:
        made = breeder(space, metrics, seed, settings)
        if settings.polish is not None:
            weights = read_weights(metrics, settings.weights) if isinstance(settings, CmaSettings) else None
            made = Polish(made, settings.kind, space, metrics, settings.polish, sizes, weights)
        return Generational(space, metrics, made)

    return polished


def _population(archive: Callable[[Sequence[str], Any], Archive]) -> Make:
    return lambda space, metrics, seed, settings, sizes: Population(
        space, tuple(metrics), seed, settings, archive(tuple(metrics), settings)
    )


def _steady(driver: Callable[[SearchSpace, Sequence[str], int, Any], Driver]) -> Make:
    return lambda space, metrics, seed, settings, sizes: driver(space, tuple(metrics), seed, settings)


def _racing(
    space: SearchSpace, metrics: Metrics, seed: int, settings: RacingSettings, sizes: Mapping[str, int]
) -> Driver:
    return Racing(make(settings.driver, space, metrics, seed), space, metrics, seed, settings, sizes)


def _gradient(
    space: SearchSpace, metrics: Metrics, seed: int, settings: GradientSettings, sizes: Mapping[str, int]
) -> Driver:
    return Generational(space, metrics, Gradient(space, metrics, seed, settings, sizes))


def _front(
    space: SearchSpace, metrics: Metrics, seed: int, settings: FrontSettings, sizes: Mapping[str, int]
) -> Driver:
    slopes = settings.slopes
    if slopes is None:
        slopes = len(space.genes) > MOST_GENES and has_slopes(space, metrics)
    breeder: Breeder
    if slopes == "surrogates":
        breeder = SlopedFront(space, metrics, seed, settings, sizes)
    elif slopes:
        breeder = Continuation(space, metrics, seed, settings, sizes)
    else:
        breeder = Front(space, metrics, seed, settings)
    return Generational(space, metrics, breeder)


def _cycle(
    space: SearchSpace, metrics: Metrics, seed: int, settings: CycleSettings, sizes: Mapping[str, int]
) -> Driver:
    seeds = [recipe.id for recipe in read_seeds(settings, space)]
    return Population(space, tuple(metrics), seed, settings, Cycle(tuple(metrics), settings, seeds))


KINDS: Mapping[str, tuple[type[BaseModel], Make]] = Table(
    "evomerge.drivers",
    {
        "cma": (CmaSettings, _polished(Cma)),
        "nsga2": (NsgaSettings, _polished(Nsga)),
        "nsga3": (NsgaSettings, _polished(Nsga)),
        "tpe": (OptunaSettings, _polished(Optuna)),
        "gp": (OptunaSettings, _polished(Optuna)),
        "qmc": (OptunaSettings, _polished(Optuna)),
        "map": (MapSettings, _generational(Map)),
        "front": (FrontSettings, _front),
        "random": (RandomSettings, _steady(Random)),
        "niches": (NichesSettings, _population(Niches)),
        "map_elites": (MapElitesSettings, _population(MapElites)),
        "cycle": (CycleSettings, _cycle),
        "swarm": (SwarmSettings, _steady(Swarm)),
        "nested_map": (NestedMapSettings, _generational(NestedMap)),
        "bayesian_map": (BayesianMapSettings, _generational(BayesianMap)),
        "gradient": (GradientSettings, _gradient),
        "racing": (RacingSettings, _racing),
    },
    "(settings model, function of space, metrics, seed, settings and sizes)",
    is_settings_and_factory,
)
"""The drivers by `kind:`: their settings, and the function that makes one."""

POPULATIONS: Mapping[str, tuple[int, int]] = {"niches": (1, 2), "map_elites": (1, 2), "cycle": (2, 3)}
"""Drivers that cross earlier candidates: the least and the largest number of parents that their space may have."""


def make(
    settings: Mapping[str, Any],
    space: SearchSpace,
    objectives: Objectives,
    seed: int,
    sizes: Mapping[str, int] | None = None,
) -> Driver:
    """Return the driver of `settings` (`kind:` and its other keys), which searches `space` for the best `objectives`.

    `objectives` name entries of `Evaluation.scores`, or map these names to their `Metric`; higher is better. All randomness
    comes from `seed` (0 or more). `sizes`, the number of search examples of each task, is only needed by `racing`, and where
    slopes are followed. Raises `DriverError`.
    """
    kind = str(settings.get("kind") or "")
    if kind not in KINDS:
        expected = f"expected `kind:`, one of {', '.join(KINDS)}"
        raise DriverError(f"driver: {f'unknown kind `{kind}`; {nearest(kind, KINDS)}' if kind else expected}")
    if not objectives or isinstance(objectives, str) or len(set(objectives)) != len(objectives):
        raise DriverError(f"driver: expected a list of one or more different objectives, got {objectives!r}")
    least, most = POPULATIONS.get(kind, (0, 0))
    if not least <= len(space.parents) <= most:
        suited = [name for name, (low, high) in POPULATIONS.items() if low <= len(space.parents) <= high]
        raise DriverError(
            f"driver `{kind}` crosses {least} or {most} earlier candidates, and the space has {len(space.parents)}; give it "
            "two, such as `inputs: [{member: mother}, {member: father}]`, or choose another `kind`"
            if kind in POPULATIONS
            else f"driver `{kind}` uses no earlier candidates, and the space crosses {', '.join(space.parents)}; "
            f"type `kind: {(*suited, 'niches')[0]}`"
        )
    model, build = KINDS[kind]
    try:
        parsed = model.model_validate(settings)
    except ValidationError as error:
        raise DriverError(describe_error(error, "driver", {"": tuple(model.model_fields)})) from None
    return build(space, read_metrics(objectives), seed, parsed, sizes or {})


def default(space: SearchSpace, objectives: Objectives) -> dict[str, Any]:
    """Return the settings of the default driver.

    `niches` if the space crosses earlier candidates. For one objective `cma`, or `gradient` with a ridge and more than 40 genes where
    there are slopes. For several, `front` with up to 40 float or int genes, with mixtures where the space has weights of experts, or with
    more genes where there are slopes, else `nsga2`.
    """
    if space.parents:
        return {"kind": "niches"}
    if len(objectives) == 1:
        [metric] = read_metrics(objectives).values()
        many = metric.slopes and movable(space).sum() > MOST_GENES
        return {"kind": "gradient", "ridge": RIDGE} if many else {"kind": "cma"}
    if not suits(space):
        many = len(space.genes) > MOST_GENES and has_slopes(space, read_metrics(objectives))
        return {"kind": "front", "slopes": True} if many else {"kind": "nsga2"}
    return {"kind": "front"} if space.weights is None else {"kind": "front", "mixtures": True}


def completed(settings: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """Return driver settings with what new studies add to them, and record.

    `random`, and `front` without slopes, draw mixtures too, where the space has weights of experts. The surrogates of
    `front` are fitted to a part of many candidates, and with hundreds in flight, for which its time is short, to fewer, and it
    chooses more at once.
    """
    front = settings.get("kind") == "front" and suits(space)
    mixes = settings.get("kind") == "random" or (front and not settings.get("slopes"))
    added: dict[str, Any] = {"mixtures": True} if mixes and space.weights is not None else {}
    given = settings.get("in_flight")
    in_flight = given if settings.get("kind") == "front" and isinstance(given, int) else 1
    if front and settings.get("slopes") is not True:
        added["most"] = MOST_FITTED if in_flight < MANY_IN_FLIGHT else MOST_FITTED_OF_MANY
    if in_flight >= MANY_IN_FLIGHT:
        added["batch"] = in_flight // 32
    return {**added, **settings}


def climbs(driver: Driver) -> bool:
    """Return whether the driver follows slopes."""
    return isinstance(driver, Generational) and isinstance(driver.breeder, Climber)


def unshrunk(settings: Mapping[str, Any], driver: Driver, space: SearchSpace, examples: int) -> str:
    """Return a warning if more genes of `space` follow slopes than there are search `examples`, without shrinkage; else nothing.

    `settings` are the driver's. The ridge of `gradient` shrinks genes towards the mean of their level; nothing else does. A validation
    part chooses where a search ends, and so only limits how far genes go.
    """
    genes = int(movable(space).sum())
    if not climbs(driver) or genes <= examples or settings.get("ridge"):
        return ""
    kind, adam = settings["kind"], settings["kind"] == "gradient" and settings.get("rule", "adam") == "adam"
    ways = ["give the tasks more search examples", "tile the holes more coarsely, such as `per: [expert]`"]
    ways += [f"try `ridge: {RIDGE:g}` under `driver`"] * adam
    return (
        f"driver `{kind}`: {genes} genes follow slopes of {examples} search examples, without shrinkage: much of what the search finds may "
        f"not hold on unseen ones; {', '.join(ways[:-1])}, or {ways[-1]}"
    )


def surfaced(driver: Driver) -> Surfaced | None:
    """Return the driver's breeder if it has a surface, else None."""
    breeder = driver.breeder if isinstance(driver, Generational) else None
    return breeder if isinstance(breeder, Surfaced) else None
