"""Gradient: one objective, or a weighted mean of several, by steps along slopes; for hundreds of genes.

An evaluation with slopes costs about three without, and gives the slope of every gene at once. It is the mean score of the
*training* part of the search examples that has slopes; the *validation* part says when to stop, before genes fit the examples.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, known_recipes, latin_hypercube, read_weights
from evomerge.search.slopes.ascent import BETAS, Adam, Ascent, Slope, deviations, movable, shared_levels
from evomerge.search.slopes.frank_wolfe import FrankWolfe
from evomerge.search.slopes.measure import Measure, units
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Examples, Metric

RIDGE = 120.0
"""`ridge` of the default driver."""
_FAILURES = 8
"""The search ends after so many failed steps in a row."""
_CLOSED = 1e-3
"""Frank-Wolfe gap at which it ends, in units of the gain from the base to the best known recipe."""

_RATES, _RIDGES = (1.0, 2.0, 0.5, 4.0, 0.25), (1.0, 1 / 3, 3.0)
"""Of climbs side by side, as factors of those of the first."""

Rule = Literal["adam", "adamerging", "frank_wolfe"]


class GradientSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by steps along slopes."""

    kind: Literal["gradient"] = "gradient"
    rule: Rule = "adam"
    """How a slope becomes a step.

    `adam`: Adam over levels and deviations, from the best known recipe; where the validation score stops rising, once more from
    the best point with steps half as long.
    `adamerging`: as in AdaMerging (arXiv 2310.02575), for tasks that search `entropy`: plain Adam from 0.3 everywhere. Task-wise,
    tensor-wise and ++ are spaces: weights per expert, per expert and tensor, and of `ties`.
    `frank_wolfe`: as in FW-Merging (arXiv 2503.12649): from the experts' mean towards one expert at a time, in each tile.
    """
    top: int | None = Field(default=None, ge=1)
    """Of `frank_wolfe`: the number of experts that a step goes towards. Default: 1, the hard variant; more is a soft one."""
    inner: int | None = Field(default=None, ge=1)
    """Of `frank_wolfe` with a `top` above 1: further evaluations of each step, which learn the shares of its experts. Default: none, and the
    shares are in proportion to the slopes. The paper's soft variant has 500."""
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, without slopes."""
    weights: dict[str, float] | None = None
    """Objective → weight in the maximised mean, 0 for those left out. Default: equal weights.

    An objective counts in units of its gain from the base to the best known recipe.
    """
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Length of a step: for `adam` 0.05 of each gene's range, for `adamerging` 0.001, for `frank_wolfe` 0.1 of its 2 / (t + 2)."""
    validation: float | None = Field(default=None, ge=0, le=0.5)
    """Share of each task's search examples that have no part in the slopes. Default: 0.2; 0 in both papers' rules."""
    ridge: float = Field(default=0.0, ge=0)
    """Of `adam`: strength of a ridge on the genes' deviations from the mean of their level; new studies by default have 120.

    The slope of a gene is reduced by its deviation, in unit ranges, times `ridge` over the number of training examples. After
    the restart it is a third of that: the validation score chooses among the points of both. Default: 0.
    """
    patience: int = Field(default=6, ge=1)
    """`adam` halves its steps, and at last ends, after so many evaluations without a better validation score."""
    in_flight: int | None = Field(default=None, ge=1)
    """Of `adam`: climbs side by side, so that as many workers are busy; two to four times the number of workers. They differ in the length of
    their steps, the ridge and the start. One whose validation score stops rising starts again from the best point of all. The
    search depends on it, and not on the number of workers. Default: one climb.
    """
    steps: int | None = Field(default=None, ge=1)
    """Largest number of evaluations with slopes. Default: 500 for `adamerging`, 10 steps of `frank_wolfe`, no limit for `adam`."""


@dataclass(frozen=True, slots=True)
class _Defaults:
    rate: float
    validation: float
    steps: int | None


_DEFAULTS: Mapping[Rule, _Defaults] = {
    "adam": _Defaults(0.05, 0.2, None),
    "adamerging": _Defaults(1e-3, 0.0, 500),
    "frank_wolfe": _Defaults(0.1, 0.0, 10),
}


@dataclass(slots=True, eq=False)
class _Climb:
    """An ascent, and how it fares."""

    starts: list[Genome]
    """The first is where it starts, the others where it starts instead of one that fails."""
    rate: float
    ridge: float
    """Over the number of training examples."""
    ascent: Ascent
    steps: int = 0
    failures: int = 0
    """In a row."""
    best: float = -np.inf
    """Validation score."""
    stale: int = 0
    """Evaluations since the best."""
    halved: bool = False
    over: bool = False
    flying: bool = False
    """Whether its step was drawn and not learnt from."""


class Gradient:
    """A `Climber` that improves one point, or several side by side (`in_flight`).

    **Levels.** Each gene is a level, which all tiles of the same parameter and expert share, plus a deviation of its own. Adam
    steps in both. Slopes of a level are sums over many tiles and hardly noisy, so that most of a step is shared. A `ridge` also
    draws genes towards the mean of their level, by less the more examples there are. The validation part chooses the length of
    the search and between the ridge and a third of it.

    **Failures.** A failed step is repeated at half its length; a start that fails gives way to the next best known recipe.

    Genes without slopes, and ints, keep the numbers of the start.
    """

    def __init__(
        self,
        space: SearchSpace,
        metrics: Mapping[str, Metric],
        seed: int,
        settings: GradientSettings,
        sizes: Mapping[str, int],
    ) -> None:
        """Search `space` for the best weighted mean of `metrics`; `sizes` are the search examples by task.

        Raises `DriverError` for bad weights, and for spaces, metrics and tasks that the rule does not suit.
        """
        defaults = _DEFAULTS[settings.rule]
        self._space = space
        self._settings = settings
        self._objectives = tuple(metrics)
        self._weights = read_weights(metrics, settings.weights)
        self._rate = settings.learning_rate or defaults.rate
        self._limit = settings.steps or (defaults.steps and defaults.steps * (1 + (settings.inner or 0)))
        share = defaults.validation if settings.validation is None else settings.validation
        self._measure = Measure("gradient", space, metrics, sizes, share, seed)
        for key, rule in (("top", "frank_wolfe"), ("inner", "frank_wolfe"), ("ridge", "adam"), ("in_flight", "adam")):
            if getattr(settings, key) and settings.rule != rule:
                msg = f"driver `gradient`: `{key}` is of `rule: {rule}`, got `rule: {settings.rule}`; leave it out"
                raise DriverError(msg)
        if settings.inner and (settings.top or 1) == 1:
            raise DriverError(
                "driver `gradient`: `inner` learns the shares of several experts; type `top: 2` or more, or leave it out"
            )
        if settings.rule == "adamerging":
            _check_entropy(metrics)
        count = sum(len(examples) for examples in self._measure.training.values())
        self._levels = shared_levels(space)
        self._ridge = settings.ridge / max(count, 1)
        self._known = known_recipes(space, settings.seed_known)
        self._queue = self._known
        self._seed = seed
        self.in_flight = settings.in_flight or 1
        self._climbs = self._begin_all([space.initial, *self._known])
        self._flying: deque[_Climb] = deque()  # those whose step was drawn and not learnt from, oldest first
        self._wanted: Examples | None = None
        self._steps = 0
        self._best: tuple[float, Genome, Slope] | None = None  # validation score, position and slope

    def __str__(self) -> str:
        sloped = int(movable(self._space).sum())
        training, validation = (
            sum(map(len, part.values())) for part in (self._measure.training, self._measure.validation)
        )
        until = "until the validation score stops rising" if self._settings.rule == "adam" else ""
        climbs = f", {self.in_flight} climbs side by side" if self.in_flight > 1 else ""
        ends = ", ".join([*[until] * bool(until), *([f"at most {self._limit} steps"] * bool(self._limit))])
        return (
            f"steps along slopes ({self._settings.rule}) in {sloped} of {len(self._space.genes)} genes{climbs}, after {len(self._known)} "
            f"known recipes; {training} examples give slopes, {validation} validate; {ends}"
        )

    @property
    def slopes(self) -> Examples | None:
        """The training part of the search examples; None for the known recipes."""
        return self._wanted

    @property
    def gap(self) -> float:
        """Frank-Wolfe gap at the last evaluated point, in units of the weighted mean; infinite for other rules."""
        ascent = self._climbs[0].ascent
        return ascent.gap if isinstance(ascent, FrankWolfe) else np.inf

    def draw(self, pending: Genomes | None = None) -> Genomes:
        """Return the known recipes first, then one step at a time, of each climb in turn."""
        known, self._queue = self._queue, self._queue[:0]
        if len(known):
            return known
        nothing = self._known[:0]
        if pending is not None and self._wanted is None:
            return nothing
        while len(self._flying) > (
            0 if pending is None else len(pending)
        ):  # no candidate of the study has succeeded yet
            self._fail(self._landed())
        if self._steps == self._limit:
            return nothing
        climb = next((climb for climb in self._climbs if not (climb.over or climb.flying)), None)
        if climb is None:
            return nothing
        climb.flying = True
        self._climbs.remove(climb)
        self._climbs.append(climb)
        self._wanted = self._measure.training
        self._flying.append(climb)
        return self._space.from_unit(climb.ascent.position)[None]

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Start from the best known recipe, or take the next step."""
        if self._wanted is None:
            base = self._space.landmarks().get("base")
            row = next(
                (i for i, genome in enumerate(genomes) if base is not None and np.array_equal(genome, base)), None
            )
            self._weights = self._weights / units(means, list(evaluations), self._objectives, row)
            order = np.argsort(-(means @ self._weights), kind="stable")
            self._climbs = self._begin_all([genomes[i] for i in order])
            return
        climb = self._landed()
        measured = self._measure.read(genomes[0], evaluations[0])
        if measured is None:
            self._fail(climb)
            return
        climb.failures = 0
        climb.steps += 1
        self._steps += 1
        slope = self._weights @ measured.slopes
        value = float(self._weights @ measured.validation)
        position = climb.ascent.position
        climb.stale += 1
        if value > climb.best:
            climb.best, climb.stale = value, 0
        if self._best is None or value > self._best[0]:
            self._best = value, position, slope
        if self._settings.rule == "adam" and climb.stale >= self._settings.patience:
            climb.over = climb.halved
            climb.halved, climb.stale, slope = True, 0, self._best[2]
            climb.ascent = Adam(self._best[1], climb.rate / 2, BETAS, self._levels)
            climb.ridge /= 3
        if climb.ridge:
            slope = slope - climb.ridge * deviations(climb.ascent.position, self._levels)
        before = climb.ascent.position
        moved = not np.array_equal(climb.ascent.step(slope), before)
        climb.over |= not moved or self.gap <= _CLOSED

    def _landed(self) -> _Climb:
        """Return the climb whose step was drawn first, which can take the next one."""
        climb = self._flying.popleft()
        climb.flying = False
        return climb

    def _begin_all(self, starts: list[Genome]) -> list[_Climb]:
        """Return the climbs: the first from the first of the `starts`, the others by `_RATES`, then also by `_RIDGES`, then from elsewhere."""
        ridges = _RIDGES if self._ridge else _RIDGES[:1]
        climbs = []
        for number in range(self.in_flight):
            turn, place = divmod(number, len(_RATES))
            rate = min(self._rate * _RATES[place], 1.0)
            turn, place = divmod(turn, len(ridges))
            begun = starts
            if turn:
                rng = np.random.default_rng([self._seed, number])
                begun = [(starts[0] + latin_hypercube(self._space, 1, rng)[0]) / 2, *starts]
                begun[0] = np.where(movable(self._space), begun[0], starts[0])
            climbs.append(_Climb(begun, rate, ridges[place] * self._ridge, self._begin(begun[0], rate)))
        return climbs

    def _begin(self, start: Genome, rate: float) -> Ascent:
        space = self._space
        match self._settings.rule:
            case "frank_wolfe":
                return FrankWolfe(space, rate, self._settings.top or 1, self._settings.inner or 0)
            case "adamerging":
                genome = np.where(movable(space), np.clip(0.3, space.lower, space.upper), start)
                spans = np.where(space.upper > space.lower, space.upper - space.lower, 1.0)
                return Adam(space.to_unit(genome), rate / spans, (0.9, 0.999))
        return Adam(space.to_unit(start), rate, BETAS, self._levels)

    def _fail(self, climb: _Climb) -> None:
        """Repeat the last step at half its length, or start elsewhere if the start has failed."""
        climb.failures += 1
        climb.over |= climb.failures >= _FAILURES
        if climb.steps:
            climb.ascent.back()
        else:
            climb.ascent = self._begin(climb.starts[climb.failures % len(climb.starts)], climb.rate)


def _check_entropy(metrics: Mapping[str, Metric]) -> None:
    for name, metric in metrics.items():
        if metric.name != "entropy":
            msg = f"driver `gradient`: `rule: adamerging` maximises minus the entropy, got `{name}`; type `search_metric: entropy`, or `rule: adam`"
            raise DriverError(msg)
