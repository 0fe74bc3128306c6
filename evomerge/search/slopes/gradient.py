"""Gradient: one objective, or a weighted mean of several, by steps along slopes; for hundreds of genes.

An evaluation with slopes costs about three without, and gives the slope of every gene at once. It is the mean score of the
*training* part of the search examples that has slopes; the *validation* part says when to stop, before genes fit the examples.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, known_recipes, read_weights
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
    steps: int | None = Field(default=None, ge=1)
    """Largest number of evaluations with slopes. Default: 500 for `adamerging`, 10 for `frank_wolfe`, no limit for `adam`."""


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


class Gradient:
    """A `Climber` that improves one point.

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
        self._limit = settings.steps or defaults.steps
        share = defaults.validation if settings.validation is None else settings.validation
        self._measure = Measure("gradient", space, metrics, sizes, share, seed)
        for key, rule in (("top", "frank_wolfe"), ("ridge", "adam")):
            if getattr(settings, key) and settings.rule != rule:
                msg = f"driver `gradient`: `{key}` is of `rule: {rule}`, got `rule: {settings.rule}`; leave it out"
                raise DriverError(msg)
        if settings.rule == "adamerging":
            _check_entropy(metrics)
        count = sum(len(examples) for examples in self._measure.training.values())
        moving = int(movable(space).sum())
        if share == 0 and moving > count:
            warnings.warn(
                f"driver `gradient`: {moving} genes are fitted to {count} examples without validation; "
                "type `validation: 0.2`",
                stacklevel=2,
            )
        self._levels = shared_levels(space)
        self._ridge = settings.ridge / max(count, 1)
        self._known = known_recipes(space, settings.seed_known)
        self._queue = self._known
        self._starts = [space.initial, *self._known]
        self._ascent: Ascent = self._begin(space.initial)
        self._wanted: Examples | None = None
        self._pending = False  # whether a step was drawn and not learnt from
        self._failures = 0  # in a row
        self._steps = 0
        self._over = False
        self._best: tuple[float, Genome, Slope] | None = None  # validation score, position and slope
        self._stale = 0  # evaluations since the best
        self._halved = False

    def __str__(self) -> str:
        sloped = int(movable(self._space).sum())
        training, validation = (
            sum(map(len, part.values())) for part in (self._measure.training, self._measure.validation)
        )
        until = "until the validation score stops rising" if self._settings.rule == "adam" else ""
        ends = ", ".join([*[until] * bool(until), *([f"at most {self._limit} steps"] * bool(self._limit))])
        return (
            f"steps along slopes ({self._settings.rule}) in {sloped} of {len(self._space.genes)} genes, after {len(self._known)} "
            f"known recipes; {training} examples give slopes, {validation} validate; {ends}"
        )

    @property
    def slopes(self) -> Examples | None:
        """The training part of the search examples; None for the known recipes."""
        return self._wanted

    @property
    def gap(self) -> float:
        """Frank-Wolfe gap at the last evaluated point, in units of the weighted mean; infinite for other rules."""
        return self._ascent.gap if isinstance(self._ascent, FrankWolfe) else np.inf

    def draw(self) -> Genomes:
        """Return the known recipes first, then one step at a time."""
        known, self._queue = self._queue, self._queue[:0]
        if len(known):
            return known
        if self._pending:  # no candidate of the study has succeeded yet
            self._fail()
        if self._over:
            return self._known[:0]
        self._wanted, self._pending = self._measure.training, True
        return self._space.from_unit(self._ascent.position)[None]

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Start from the best known recipe, or take the next step."""
        if self._wanted is None:
            base = self._space.landmarks().get("base")
            row = next(
                (i for i, genome in enumerate(genomes) if base is not None and np.array_equal(genome, base)), None
            )
            self._weights = self._weights / units(means, list(evaluations), self._objectives, row)
            order = np.argsort(-(means @ self._weights), kind="stable")
            self._starts = [genomes[i] for i in order]
            self._ascent = self._begin(self._starts[0])
            return
        self._pending = False
        measured = self._measure.read(genomes[0], evaluations[0])
        if measured is None:
            self._fail()
            return
        self._failures = 0
        self._steps += 1
        slope = self._weights @ measured.slopes
        value = float(self._weights @ measured.validation)
        self._stale += 1
        if self._best is None or value > self._best[0]:
            self._best, self._stale = (value, self._ascent.position, slope), 0
        if self._settings.rule == "adam" and self._stale >= self._settings.patience:
            self._over = self._halved
            self._halved, self._stale, slope = True, 0, self._best[2]
            self._ascent = Adam(self._best[1], self._rate / 2, BETAS, self._levels)
            self._ridge /= 3
        if self._ridge:
            slope = slope - self._ridge * deviations(self._ascent.position, self._levels)
        before = self._ascent.position
        moved = not np.array_equal(self._ascent.step(slope), before)
        self._over |= not moved or self._steps == self._limit or self.gap <= _CLOSED

    def _begin(self, start: Genome) -> Ascent:
        space = self._space
        match self._settings.rule:
            case "frank_wolfe":
                return FrankWolfe(space, self._rate, self._settings.top or 1)
            case "adamerging":
                genome = np.where(movable(space), np.clip(0.3, space.lower, space.upper), start)
                spans = np.where(space.upper > space.lower, space.upper - space.lower, 1.0)
                return Adam(space.to_unit(genome), self._rate / spans, (0.9, 0.999))
        return Adam(space.to_unit(start), self._rate, BETAS, self._levels)

    def _fail(self) -> None:
        """Repeat the last step at half its length, or start elsewhere if the start has failed."""
        self._failures += 1
        self._over = self._failures >= _FAILURES
        if self._steps:
            self._ascent.back()
        else:
            self._ascent = self._begin(self._starts[self._failures % len(self._starts)])


def _check_entropy(metrics: Mapping[str, Metric]) -> None:
    for name, metric in metrics.items():
        if metric.name != "entropy":
            msg = f"driver `gradient`: `rule: adamerging` maximises minus the entropy, got `{name}`; type `search_metric: entropy`, or `rule: adam`"
            raise DriverError(msg)
