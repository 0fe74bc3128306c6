"""Whole fronts from few evaluations: a design, surrogates of each objective, and what they expect to add most hypervolume.

The design is the known recipes (base, experts, mean) and scrambled Sobol points, checked before anything is spent. After
each generation every objective has the surrogate that predicts its candidates best from each other (`evomerge.surrogate`);
the next are chosen together by expected hypervolume improvement, where the surrogates are trusted; the search is over
when what can be expected is within the examples' noise, and the surrogates predict well enough. What is left is a
surface: a front of predictions that costs no more evaluations, and the figures that say whether it may be relied on.

It ends at 40 genes, where the design alone is 205 candidates and a surface of accuracies no longer holds without margins. Of a
tiny network's accuracy, over the whole box, a design of 5 (d + 1) predicted R² 0.97 at 12 genes, 0.95 at 24 and 0.96 at 36
where margins were known, but 0.79, 0.70 and 0.77 without; three times as many candidates at 36 genes, 0.97 and 0.81. So ask
for margins: `keep_margins: true` in the task.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge import pareto, surrogate
from evomerge.errors import DriverError, SurrogateError
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics, round_integers
from evomerge.search.fronts import infill
from evomerge.search.fronts.surface import Surface, doubts, flat, nothing, published
from evomerge.space import SearchSpace
from evomerge.surrogate import Surrogate
from evomerge.trial import Evaluation, Metric

MOST_GENES = 40
_PER_GENE = 5
"""Candidates of the design for each gene and one more, where that is less than 1.2 p."""
_LEAST_GAIN = 0.001
_PATIENCE = 3
"""Designs' worth of candidates after which a search that nothing is expected of ends, though its surface must be refused."""


class FrontSettings(BaseModel):
    """`driver:` of a study that searches by surrogates for a whole front, or for the best of one objective."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["front"] = "front"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, as part of the design."""
    points: int | None = Field(default=None, ge=4)
    """Candidates of the design. Default: 1.2 p, with p = (d + 1)(d + 2) / 2 the unknowns of a quadratic in d genes, or
    5 (d + 1) if that is less, as it is from 7 genes on; and two more than the known recipes at least."""
    batch: int = Field(default=4, ge=1)
    """Candidates chosen together after it; fixed, so that the search does not depend on the number of workers."""
    bounds: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    """Objective → [lowest, highest] mean score, null where there is none. Default: [0, 1] for `accuracy`, `exact_match`
    and `rouge…`, [null, 0] for `log_likelihood`, and no bounds for others."""
    tolerance: float = Field(default=1.0, ge=0)
    """The search is over when two batches in a row are expected to add less hypervolume than so many times the noise of the
    examples, or a thousandth of it if that is more. Where the surface could not be published then, Sobol points are added until
    it can, or there are three times as many candidates as the design has. 0 searches until the budget is spent."""


class Front:
    """A `Breeder`: a design, then batches by expected improvement, and the end when that is within the noise.

    Candidates that fail are left out of the fits, and nothing nearer to one of them than to a success is proposed. Where
    less than half of the design succeeds, as many others take the places of the rest. An objective that does not vary
    over what was evaluated is left out; if none varies, the search is over.
    """

    def __init__(self, space: SearchSpace, objectives: Objectives, seed: int, settings: FrontSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for choices and bits, and for too many genes."""
        other = "nsga2" if len(objectives) > 1 else "cma"
        for gene in space.genes:
            if gene.kind not in ("float", "int"):
                msg = f"driver `front` predicts scores from numbers, and gene `{gene.name}` is a {gene.kind}; fix it in the recipe, or type `kind: {other}`"
                raise DriverError(msg)
        self._genes = len(space.genes)
        if self._genes > MOST_GENES:
            msg = f"driver `front` reaches up to {MOST_GENES} genes, and the space has {self._genes}; tile its holes more coarsely, or type `kind: {other}`"
            raise DriverError(msg)
        self._space = space
        self._objectives = tuple(objectives)
        self._metrics = read_metrics(objectives, settings.bounds)
        self._seed = seed
        self._settings = settings
        self._known = known_recipes(space) if settings.seed_known else np.empty((0, self._genes))
        usual = min(math.ceil(1.2 * surrogate.unknowns(self._genes)), _PER_GENE * (self._genes + 1))
        self._size = settings.points or max(usual, len(self._known) + 2)
        if self._size < len(self._known):
            msg = (
                f"driver `front`: `points` is {self._size}; expected {len(self._known)} or more, for the known recipes"
            )
            raise DriverError(msg)
        self._needed = max(4, self._size // 2)  # successes to go on with; a surrogate takes 4
        self._generation = 0
        self._drawn: Genomes = np.empty((0, self._genes))  # all, unit coordinates
        self._first = self._design(self._known, self._size)
        self._succeeded: list[Evaluation] = []
        self._points: Genomes = np.empty((0, self._genes))  # of `_succeeded`
        self._failed: Genomes = np.empty((0, self._genes))
        self._fits: dict[str, Surrogate] = {}
        self._quiet = 0  # batches in a row that were not expected to matter
        self._over = False

    def __str__(self) -> str:
        return (
            f"front by surrogates: {len(self._known)} known recipes and {len(self._first) - len(self._known)} Sobol points,"
            f" then {self._settings.batch} candidates at a time by expected hypervolume improvement, until that is noise"
        )

    @property
    def least(self) -> int:
        """Evaluations without which there is no surface."""
        return max(self._needed, min(surrogate.unknowns(self._genes), _PER_GENE * (self._genes + 1)) // 2)

    def draw(self) -> Genomes:
        """Return the design, then what replaces its failures if need be, then batches, then no rows."""
        if self._over:
            return np.empty((0, self._genes))
        if self._generation == 0:
            unit = self._first
        elif len(self._points) < self._needed:
            unit = self._design(self._known[:0], self._size - len(self._points))
        else:
            unit = self._batch()
        self._generation += 1
        self._over = len(unit) == 0
        self._drawn = np.concatenate([self._drawn, unit])
        genomes = round_integers(self._space, self._space.from_unit(unit))
        if self._generation == 1:
            genomes[: len(self._known)] = self._known  # to the last bit
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Fit the surrogates anew. Raises `DriverError` for a score that is out of bounds."""
        self._points, self._failed, self._succeeded = self._with(genomes, evaluations)
        if len(self._points) >= self._needed:
            self._fits = self._fit(self._points, self._succeeded)

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front that the surrogates predict, with what speaks against it.

        `genomes` and `evaluations` are those that have not been learnt: `Generational.unfinished`.
        """
        points, failed, succeeded = self._points, self._failed, self._succeeded
        fits = self._fits
        if genomes is not None and len(genomes):
            points, failed, succeeded = self._with(genomes, evaluations)
            fits = self._fit(points, succeeded) if len(points) >= self._needed else {}
        if len(points) < self._needed:
            few = f"{len(points)} candidates could be evaluated; expected {self._needed} or more"
            return nothing(self._space, self._objectives, few)
        if not fits:
            same = f"none of the objectives varies over {len(points)} candidates; search a larger space"
            return nothing(self._space, self._objectives, same)
        found = self._candidates(fits, points, 0)
        found = np.concatenate([points, found[~infill.nearer_to_failures(found, failed, points)]])
        means = np.tile(succeeded[0].means(self._objectives), (len(found), 1))  # of what does not vary
        deviations = np.zeros_like(means)
        varying = [self._objectives.index(name) for name in fits]
        means[:, varying], deviations[:, varying] = _predict(fits, found)
        kept = self._beyond(fits, deviations[:, varying]) <= 0
        kept[: len(points)] = True
        found, means, deviations = found[kept], means[kept], deviations[kept]
        shared = surrogate.best_for_all(list(fits.values()), self._seed) if len(fits) > 1 else None
        return published(
            self._space,
            self._objectives,
            round_integers(self._space, self._space.from_unit(found)),
            (means, deviations),
            fits,
            flat(self._objectives, fits, len(points)) + self._doubts(fits),
            None if shared is None else round_integers(self._space, self._space.from_unit(shared)),
        )

    # -- the design --

    def _design(self, known: Genomes, count: int) -> Genomes:
        """Return the `known` genomes and Sobol points, at most `count` that are all different and new: unit coordinates.

        Where there are enough to identify a quadratic, they do. Raises `DriverError`.
        """
        first = self._space.to_unit(known)
        why = ""
        for attempt in range(10):
            seed = int(np.random.SeedSequence([self._seed, self._generation, attempt]).generate_state(1)[0])
            points = self._snapped(surrogate.design(self._genes, first, len(first) + 4 * count, seed))
            points = points[np.sort(np.unique(points.round(9), axis=0, return_index=True)[1])]
            if self._generation > 0:  # in place of what failed
                return points[infill.is_new(points, self._drawn)][:count]
            points = points[:count]
            levels = min(len(np.unique(column.round(9))) for column in points.T)
            if len(points) < surrogate.unknowns(self._genes) or levels < 3:
                return points  # a process needs no rank
            try:
                surrogate.check_rank(points)
            except SurrogateError as error:
                why = str(error)
                continue
            return points
        msg = f"driver `front`: the design does not identify a quadratic: {why}; raise `points`"
        raise DriverError(msg)

    def _snapped(self, unit: Genomes) -> Genomes:
        """Return points with int genes at the whole numbers that they decode to."""
        if not self._space.integer.any():
            return unit
        return self._space.to_unit(round_integers(self._space, self._space.from_unit(unit)))

    # -- the surrogates --

    def _with(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> tuple[Genomes, Genomes, list[Evaluation]]:
        """Return what succeeded, what failed, and the evaluations of the former, with one more generation."""
        unit = self._space.to_unit(genomes)
        good = np.array([evaluation.error is None for evaluation in evaluations])
        return (
            np.concatenate([self._points, unit[good]]),
            np.concatenate([self._failed, unit[~good]]),
            [*self._succeeded, *(found for found in evaluations if found.error is None)],
        )

    def _fit(self, points: Genomes, succeeded: Sequence[Evaluation]) -> dict[str, Surrogate]:
        """Return the surrogate of each objective that varies. Raises `DriverError` for a score that is out of bounds."""
        scores = [np.array([done.scores[name] for done in succeeded], np.float64) for name in self._objectives]
        check_bounds("front", self._objectives, [metric.bounds for metric in self._metrics.values()], scores)
        return fit_surrogates(self._metrics, points, succeeded)

    def _beyond(self, fits: Mapping[str, Surrogate], deviations: Means) -> NDArray[np.float64]:
        """Return by what share deviations exceed what is trusted, in the worst objective: `(points,)`, above 0 where they do.

        Trusted is what is predicted as surely as nine of ten candidates of the design were from all the others: of such
        predictions the errors are known, and the intervals calibrated.
        """
        limits = [np.quantile(fit.factor * fit.rung.left_out[1][: self._size], 0.9) for fit in fits.values()]
        return np.asarray((deviations / np.maximum(limits, 1e-12)).max(axis=1) - 1)

    def _doubts(self, fits: Mapping[str, Surrogate]) -> list[str]:
        """Return what speaks against the fits, and may not after more candidates."""
        count = min(len(fit.values) for fit in fits.values())
        few = f"{count} candidates could be evaluated; expected {self.least} or more for {self._genes} genes"
        return [few] * (count < self.least) + doubts(fits)

    # -- infill --

    def _candidates(self, fits: Mapping[str, Surrogate], points: Genomes, generation: int) -> Genomes:
        """Return different points that may be worth evaluating."""

        def predict(unit: Genomes) -> tuple[Means, NDArray[np.float64]]:
            means, deviations = _predict(fits, self._snapped(unit))
            return means, self._beyond(fits, deviations)

        values = _predict(fits, points)[0]
        best = np.flatnonzero(pareto.nondominated(values))
        best = best[infill.spread(values[best], 50)]
        seed = int(np.random.SeedSequence([self._seed, generation, 99]).generate_state(1)[0])
        found = infill.candidates(predict, points[best], (self._genes, len(fits)), seed)
        return np.unique(self._snapped(found), axis=0)

    def _batch(self) -> Genomes:
        """Return the next candidates, unit coordinates; no rows when none is worth it, and the fits are no reason for more."""
        if not self._fits:
            return self._points[:0]
        found, count = self._improving(self._fits), len(self._points)
        if not len(found) and count < _PATIENCE * self._size and self._doubts(self._fits):
            return self._design(self._known[:0], self._settings.batch)
        return found

    def _improving(self, fits: Mapping[str, Surrogate]) -> Genomes:
        """Return what is expected to add most hypervolume together, unit coordinates; no rows when that is not worth it.

        What was evaluated enters with its predictions, not its scores: so one that was lucky with the examples hides none
        of its neighbours.
        """
        found = self._candidates(fits, self._points, self._generation)
        means, deviations = _predict(fits, found)
        trusted = self._beyond(fits, deviations) <= 0
        values = _predict(fits, self._points)[0]
        reference = infill.reference_point(values, means[trusted])
        kept = trusted & infill.is_new(found, self._drawn)
        kept &= ~infill.nearer_to_failures(found, self._failed, self._points)
        found, means, deviations = found[kept], means[kept], deviations[kept]
        if not len(found):
            return found
        seed = int(np.random.SeedSequence([self._seed, self._generation, 100]).generate_state(1)[0])
        volume = infill.Volume(values, reference, seed)
        rows, gain = infill.choose(found, means, deviations, values, volume, self._settings.batch, seed)
        tables = [np.array([done.scores[name] for done in self._succeeded], dtype=np.float64) for name in fits]
        errors = np.stack([infill.paired_errors(self._points, table) for table in tables], axis=1)
        floor = infill.noise_floor(values, errors, volume, self._settings.batch)
        least = max(floor, _LEAST_GAIN * volume.of(values))
        self._quiet = self._quiet + 1 if gain < self._settings.tolerance * least else 0
        return found[rows] if self._quiet < 2 else found[:0]


def suits(space: SearchSpace) -> bool:
    """Tell whether surrogates can be of a space's genes: they are numbers, and not too many."""
    return all(gene.kind in ("float", "int") for gene in space.genes) and len(space.genes) <= MOST_GENES


def fit_surrogates(
    metrics: Mapping[str, Metric], points: Genomes, evaluations: Sequence[Evaluation]
) -> dict[str, Surrogate]:
    """Return the surrogate of each objective of `metrics` that varies, of its margins too where they were kept.

    `points`, `(evaluations, genes)`, are unit coordinates; the evaluations have succeeded. Raises `SurrogateError`.
    """
    fits = {}
    for name, metric in metrics.items():
        scores = np.array([evaluation.scores[name] for evaluation in evaluations], dtype=np.float64)
        table = f"{name.rpartition('/')[0]}/{metric.margins}"
        known = metric.margins is not None and all(table in evaluation.outputs for evaluation in evaluations)
        margins = np.array([done.outputs[table] for done in evaluations], np.float64) if known else None
        if surrogate.varies(scores):
            fits[name] = surrogate.fit(points, scores, bounds=metric.bounds, margins=margins)
    return fits


def _predict(fits: Mapping[str, Surrogate], points: Genomes) -> tuple[Means, Means]:
    """Return means and standard deviations, both `(points, objectives)`."""
    if not len(points):
        return np.empty((0, len(fits))), np.empty((0, len(fits)))
    found = [fit.predict(points) for fit in fits.values()]
    return np.stack([mean for mean, _ in found], axis=1), np.stack([deviation for _, deviation in found], axis=1)
