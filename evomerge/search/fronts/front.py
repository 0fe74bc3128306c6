"""Fronts from few evaluations: a design, a surrogate of each objective, and batches by expected hypervolume improvement.

The design is the known recipes (base, experts, mean) and scrambled Sobol points. After each generation every objective
gets the surrogate that predicts its candidates best from each other (`evomerge.surrogate`), and the next batch is the one
with the largest expected hypervolume improvement where the surrogates are trusted. The search ends when that improvement
is within the examples' noise and the surrogates predict well enough. It leaves a surface.

The limit is 40 genes, where the design alone is 205 candidates and surrogates need margins (`keep_margins: true` in the
task). For a tiny network's accuracy over the whole box, a design of 5 (d + 1) predicted R² 0.97 at 12 genes, 0.95 at 24 and
0.96 at 36 with margins, but 0.79, 0.70 and 0.77 without; three times as many candidates at 36 genes, 0.97 and 0.81.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge import pareto, surrogate
from evomerge.errors import DriverError, SurrogateError
from evomerge.search.driver import Genomes, Means, Objectives, check_bounds, known_recipes, read_metrics, round_integers
from evomerge.search.fronts import infill, mixtures
from evomerge.search.fronts.fits import fit_surrogates
from evomerge.search.fronts.predictions import Predictions
from evomerge.search.fronts.settings import FrontSettings
from evomerge.search.fronts.surface import Surface, empty_surface, make_surface, reasons_to_refuse
from evomerge.space import SearchSpace
from evomerge.surrogate import Slopes, Surrogate
from evomerge.trial import Evaluation

MOST_GENES = 40
_BATCH = 4
_PER_GENE = 5
"""Candidates of the design per unknown of a linear model, d + 1, where that is less than 1.2 p."""
_EXACT = 0.05
"""Share of the scores' standard deviation that a predicted deviation may have at least, where there are slopes."""
_SMALLEST_GAIN = 0.001
"""Expected gain, as a share of the hypervolume, below which a batch is never worth its cost."""
_ROUNDS, _ROUNDS_OF_SURFACE = 6, 30
"""Rounds in which candidates are sought on the predicted front, for a batch and for a surface. For batches more found no larger
hypervolume over 2 to 12 genes, and most of a proposal's time is theirs."""
_LARGE, _LARGE_IN_FLIGHT, _IN_FLIGHT = 300, 100, 64
"""Evaluated candidates from which on the driver saves its own time, where `most` is set, and with so many in flight. The design is half of them at most."""
_GROWTH = 1.125
"""Surrogates of many candidates are fitted again when there are so many times as many."""
_CHOSEN = 100
"""Most candidates that hyperparameters of the surrogates of many candidates are chosen from, at most half of all that are fitted."""
_BATCHES, _BATCHES_IN_FLIGHT = 32, 8
"""A batch grows to that share of many evaluated candidates, and to that of those in flight if this is less."""
_PATIENCE = 3
"""A search without expected gain ends after that many times the design's size, even if its surface is refused."""

ReadSlopes = Callable[[Genomes, Sequence[Evaluation]], Mapping[str, Slopes]]
"""`(points, evaluations) -> slopes by objective`: those of succeeded evaluations, at points in unit coordinates."""


class Front:
    """A `Surfaced` breeder: a design, then batches by expected improvement until that is within the noise.

    Failed candidates are left out of the fits, and nothing nearer to a failure than to a success is proposed. Where less
    than half of the design succeeds, Sobol points replace the failures. An objective that does not vary over the evaluated
    candidates is left out; if none varies, the search ends.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Objectives,
        seed: int,
        settings: FrontSettings,
        slopes: ReadSlopes | None = None,
    ) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for choices and bits, and for too many genes.

        With `slopes`, surrogates are fitted to them too, and the design is as much smaller.
        """
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
        self._batch_size = settings.batch or _BATCH
        self.in_flight = settings.in_flight or 1
        self._known = known_recipes(space, settings.seed_known)
        self._slopes = slopes
        self._size = settings.points or max(self._usual(), len(self._known) + 2)
        if self._size < len(self._known):
            raise DriverError(
                f"driver `front`: `points` is {self._size}; expected {len(self._known)} or more, for the known recipes"
            )
        mixes = settings.mixtures and space.weights is not None
        self._most = math.inf if settings.most is None else max(settings.most, 2 * self._size)
        large = max(_LARGE if self.in_flight < _IN_FLIGHT else _LARGE_IN_FLIGHT, 2 * self._size)
        self._large = math.inf if settings.most is None else min(large, self._most)
        self._mixtures = (self._size - len(self._known)) // 2 if mixes else 0
        self._needed = max(4, self._size // 2)  # successes before the first batch; a surrogate takes 4
        self._generation = 0
        self._drawn: Genomes = np.empty((0, self._genes))  # all candidates so far, unit coordinates
        self._first = self._design(self._known, self._size)
        # Slopes of the known recipes, most of them corners of the space, are not worth their cost.
        cuts = [] if slopes is None else [len(self._known)]
        if settings.in_flight is not None:
            cuts = [*range(max(len(self._known), 1), self._size, self._batch_size)]
        parts = np.split(self._first, cuts)
        self._parts = [part for part in parts if len(part)]  # of the design, each a generation
        self._succeeded: list[Evaluation] = []
        self._points: Genomes = np.empty((0, self._genes))  # of `_succeeded`
        self._failed: Genomes = np.empty((0, self._genes))
        self._fits: dict[str, Surrogate] = {}
        self._predictions = Predictions(())  # of `_fits`
        self._fitted: NDArray[np.intp] = np.empty(0, np.intp)  # the rows of `_points` that `_fits` are of
        self._seen = self._learnt = 0  # candidates that had succeeded then, and those with failures
        self._quiet = 0  # consecutive batches without an expected gain above the noise
        self._over = False
        self.designing = True
        """Whether the last generation was drawn all over the space, for the surrogates; not the known recipes, and not batches."""

    def __str__(self) -> str:
        mixed = f", {self._mixtures} mixtures" if self._mixtures else ""
        return (
            f"front by surrogates: {len(self._known)} known recipes{mixed} and {len(self._first) - len(self._known) - self._mixtures} Sobol points,"
            f" then {self._batch_size} candidates at a time by expected hypervolume improvement, until that is noise"
            + (f"; {self.in_flight} in flight" if self.in_flight > 1 else "")
        )

    @property
    def min_evaluations(self) -> int:
        """Fewest evaluations from which there may be a surface."""
        if self._slopes is not None:
            return max(self._needed, sloped_points(self._genes) + 1)
        return max(self._needed, min(surrogate.unknowns(self._genes), _PER_GENE * (self._genes + 1)) // 2)

    def draw(self, pending: Genomes | None = None) -> Genomes:
        """Return the design, then replacements of its failures if needed, then batches, then no rows."""
        if self._over:
            return np.empty((0, self._genes))
        self.designing = self._generation > 0 or not len(self._known)
        if self._parts:
            unit = self._parts.pop(0)
        elif len(self._points) < self._needed:
            if pending is not None:
                return pending[:0]
            unit = self._design(self._known[:0], self._size - len(self._points))
        else:
            self.designing = False
            unit = self._batch(pending)
        self._generation += 1
        self._over = len(unit) == 0 and pending is None
        self._drawn = np.concatenate([self._drawn, unit])
        genomes = self._genomes(unit)
        if self._generation == 1:
            genomes[: len(self._known)] = self._known  # bit for bit
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Fit the surrogates again, if it is time. Raises `DriverError` for a score out of bounds."""
        self._points, self._failed, self._succeeded = self._with(genomes, evaluations)
        count = len(self._points)
        if count >= self._needed and not self._parts and (count <= self._large or count >= _GROWTH * self._seen):
            self._fitted, self._seen, self._learnt = self._kept(self._succeeded), count, count + len(self._failed)
            self._fits = self._fit(self._points, self._succeeded, self._fitted)
            self._predictions = Predictions(self._fits.values())

    def surface(self, genomes: Genomes | None = None, evaluations: Sequence[Evaluation] = ()) -> Surface:
        """Return the front that the surrogates predict, as `Surfaced.surface` does."""
        points, failed, succeeded = self._points, self._failed, self._succeeded
        fits = self._fits
        if genomes is not None and len(genomes):
            points, failed, succeeded = self._with(genomes, evaluations)
            fits = self._fit(points, succeeded, self._kept(succeeded)) if len(points) >= self._needed else {}
        if len(points) < self._needed:
            few = f"{len(points)} candidates could be evaluated; expected {self._needed} or more"
            return empty_surface(self._space, self._objectives, few)
        if not fits:
            same = f"none of the objectives varies over {len(points)} candidates; search a larger space"
            return empty_surface(self._space, self._objectives, same)
        values = surrogate.predict_all(fits.values(), points)[0]
        candidates = self._candidates(fits, points, values, 0, _ROUNDS_OF_SURFACE)[0]
        candidates = np.concatenate([points, candidates[~infill.nearer_to_failures(candidates, failed, points)]])
        means = np.tile(succeeded[0].means(self._objectives), (len(candidates), 1))  # those of constant objectives
        deviations = np.zeros_like(means)
        varying = [self._objectives.index(name) for name in fits]
        means[:, varying], deviations[:, varying] = surrogate.predict_all(fits.values(), candidates)
        trusted = self._excess(fits, deviations[:, varying]) <= 0
        trusted[: len(points)] = True
        deviations[:, varying] *= [fit.widening for fit in fits.values()]
        shared = surrogate.best_for_all(list(fits.values()), self._seed) if len(fits) > 1 else None
        return make_surface(
            self._space,
            self._genomes(candidates[trusted]),
            (means[trusted], deviations[trusted]),
            fits,
            self._objectives,
            len(points),
            self._reasons_to_refuse(fits),
            None if shared is None else self._genomes(shared),
        )

    def _usual(self) -> int:
        """Return the usual number of candidates of the design."""
        if self._slopes is not None:
            return len(self._known) + sloped_points(self._genes)
        return min(math.ceil(1.2 * surrogate.unknowns(self._genes)), _PER_GENE * (self._genes + 1))

    def _genomes(self, unit: Genomes) -> Genomes:
        """Return the genomes of points in unit coordinates, int genes rounded."""
        return round_integers(self._space, self._space.from_unit(unit))

    def _design(self, known: Genomes, count: int) -> Genomes:
        """Return the `known` genomes and Sobol points, at most `count`, all different and new: unit coordinates.

        Where there are enough to identify a quadratic, they do. Raises `DriverError`.
        """
        first = self._space.to_unit(known)
        for attempt in range(10):
            seed = int(np.random.SeedSequence([self._seed, self._generation, attempt]).generate_state(1)[0])
            points = surrogate.design(self._genes, first, len(first) + 4 * count, seed)
            if self._generation == 0 and attempt < 5:
                mixed = slice(len(first), len(first) + self._mixtures)
                points[mixed] = mixtures.of(self._space, points[mixed])
            points = self._snapped(points)
            points = points[np.sort(np.unique(points.round(9), axis=0, return_index=True)[1])]
            if self._generation > 0:  # replaces failures
                return points[infill.is_new(points, self._drawn)][:count]
            points = points[:count]
            levels = min(len(np.unique(column.round(9))) for column in self._space.coordinates(points).T)
            if len(points) < surrogate.unknowns(self._genes) or levels < 3:
                return points  # a Gaussian process needs no rank
            try:
                surrogate.check_rank(self._space.coordinates(points))
            except SurrogateError as error:
                why = str(error)
            else:
                return points
        raise DriverError(f"driver `front`: the design does not identify a quadratic: {why}; raise `points`")

    def _snapped(self, unit: Genomes) -> Genomes:
        """Return points with int genes at the integers that they decode to."""
        return self._space.to_unit(self._genomes(unit)) if self._space.integer.any() else unit

    def _with(self, genomes: Genomes, evaluations: Sequence[Evaluation]) -> tuple[Genomes, Genomes, list[Evaluation]]:
        """Return the points that succeeded, those that failed, and the evaluations of the former, with one more generation.

        Raises `DriverError` for a score out of bounds.
        """
        unit = self._space.to_unit(genomes)
        good = np.array([evaluation.error is None for evaluation in evaluations], bool)
        added = [done for done in evaluations if done.error is None]
        scores = [np.array([done.scores[name] for done in added], np.float64) for name in self._objectives]
        check_bounds("front", self._objectives, [metric.bounds for metric in self._metrics.values()], scores)
        return (
            np.concatenate([self._points, unit[good]]),
            np.concatenate([self._failed, unit[~good]]),
            [*self._succeeded, *added],
        )

    def _kept(self, succeeded: Sequence[Evaluation]) -> NDArray[np.intp]:
        """Return the rows of at most `most` candidates: the design, and those nearest to the front, spread over it."""
        if len(succeeded) <= self._most:
            return np.arange(len(succeeded))
        means = np.array([done.means(self._objectives) for done in succeeded])
        return infill.nearest_to_front(means, self._size, int(self._most))

    def _fit(self, points: Genomes, succeeded: Sequence[Evaluation], rows: NDArray[np.intp]) -> dict[str, Surrogate]:
        """Return the surrogate of each objective that varies, of some rows."""
        part = [succeeded[row] for row in rows]
        few = min(len(rows) // 2, _CHOSEN) if len(succeeded) > self._large else None
        slopes = None if self._slopes is None else self._slopes(points[rows], part)
        return fit_surrogates(self._metrics, points[rows], part, self._space.coordinates, slopes, few)

    def _excess(self, fits: Mapping[str, Surrogate], deviations: Means) -> NDArray[np.float64]:
        """Return the share by which deviations exceed those that are trusted, in the worst objective: `(points,)`, 0 or less for trusted points.

        The limit is the deviation within which nine of ten candidates of the design were predicted from all the others: up to
        there errors were measured and intervals calibrated. With slopes, which can predict the design almost exactly, it is a
        twentieth of the scores' standard deviation at least.
        """
        limits = [np.quantile(fit.factor * fit.rung.left_out[1][: self._size], 0.9) for fit in fits.values()]
        if self._slopes is not None:
            limits = [max(limit, _EXACT * fit.values.std()) for limit, fit in zip(limits, fits.values(), strict=True)]
        return np.asarray((deviations / np.maximum(limits, 1e-12)).max(axis=1) - 1)

    def _reasons_to_refuse(self, fits: Mapping[str, Surrogate]) -> list[str]:
        """Return the reasons to refuse the surface that more candidates may remove."""
        count = min(len(fit.values) for fit in fits.values())
        few = f"{count} candidates could be evaluated; expected {self.min_evaluations} or more for {self._genes} genes"
        return [few] * (count < self.min_evaluations) + reasons_to_refuse(fits)

    def _candidates(
        self, fits: Mapping[str, Surrogate], points: Genomes, values: Means, generation: int, rounds: int
    ) -> tuple[Genomes, Means, Means]:
        """Return different points that may be worth evaluating, and their predicted means and deviations; `values` are the means at `points`."""
        tried: list[tuple[Genomes, Means, Means]] = []

        def predict(unit: Genomes) -> tuple[Means, NDArray[np.float64]]:
            snapped = self._snapped(unit)
            means, deviations = surrogate.predict_all(fits.values(), snapped)
            tried.append((snapped, means, deviations))
            return means, self._excess(fits, deviations)

        best = np.flatnonzero(pareto.nondominated(values))
        best = best[infill.spread(values[best], 50)]
        seed = int(np.random.SeedSequence([self._seed, generation, 99]).generate_state(1)[0])
        infill.candidates(predict, points[best], (self._genes, len(fits)), rounds, seed)
        candidates, means, deviations = (np.concatenate(parts) for parts in zip(*tried, strict=True))
        rows = np.unique(candidates, axis=0, return_index=True)[1]
        return candidates[rows], means[rows], deviations[rows]

    def _batch(self, pending: Genomes | None) -> Genomes:
        """Return the next candidates, unit coordinates; no rows when none has an expected gain and the fits need no more."""
        if not self._fits:
            return self._points[:0]
        size, count = self._batch_size, len(self._points)
        if count > self._large:
            most = (
                count // _BATCHES
                if self.in_flight == 1
                else min(count // _BATCHES, self.in_flight // _BATCHES_IN_FLIGHT)
            )
            size = max(size, most)
        share = size // 2 if self._mixtures else 0
        batch = self._improving(self._fits, size - share, pending)
        if len(batch) and share:
            batch = np.concatenate([batch, self._between(share, np.concatenate([self._drawn, batch]))])
        if pending is not None:
            return batch
        if not len(batch) and count < _PATIENCE * self._size and self._reasons_to_refuse(self._fits):
            self.designing = True
            return self._design(self._known[:0], self._batch_size)
        return batch

    def _predicted(self, points: Genomes) -> tuple[Means, Means]:
        """Return the predicted means and deviations of evaluated candidates and those in flight."""
        if len(self._points) > self._large:
            return self._predictions.at(points)
        return surrogate.predict_all(self._fits.values(), points)

    def _between(self, size: int, drawn: Genomes) -> Genomes:
        """Return new mixtures that fill gaps between those `drawn` before, unit coordinates."""
        seed = int(np.random.SeedSequence([self._seed, self._generation, 101]).generate_state(1)[0])
        candidates = self._snapped(mixtures.candidates(self._space, seed))
        allowed = infill.is_new(candidates, drawn)
        allowed &= ~infill.nearer_to_failures(candidates, self._failed, self._points)
        if len(self._fitted) < self._seen:  # the others are far from the front, or have neighbours there
            drawn = np.concatenate([self._points[self._fitted], drawn[self._learnt :]])
        before = drawn[mixtures.are_mixtures(self._space, drawn)]
        means = surrogate.predict_all(self._fits.values(), candidates[allowed])[0]
        return candidates[allowed][mixtures.filling(means, self._predicted(before)[0], size)]

    def _improving(self, fits: Mapping[str, Surrogate], size: int, pending: Genomes | None) -> Genomes:
        """Return the `size` with the largest expected hypervolume improvement, unit coordinates; no rows when that is noise.

        The candidates that are `pending` count with their predictions.
        Evaluated candidates enter with their predictions instead of their scores, so that a candidate with lucky scores does not
        hide its neighbours.
        """
        rows = np.append(self._fitted, np.arange(self._seen, len(self._points)))
        points = self._points[rows]
        values = self._predicted(points)[0]
        candidates, means, deviations = self._candidates(fits, points, values, self._generation, _ROUNDS)
        trusted = self._excess(fits, deviations) <= 0
        reference = infill.reference_point(values, means[trusted])
        allowed = trusted & infill.is_new(candidates, self._drawn)
        allowed &= ~infill.nearer_to_failures(candidates, self._failed, self._points)
        candidates, means, deviations = candidates[allowed], means[allowed], deviations[allowed]
        if not len(candidates):
            return candidates
        seed = int(np.random.SeedSequence([self._seed, self._generation, 100]).generate_state(1)[0])
        volume = infill.Volume(values, reference, seed)
        waiting = None if pending is None else self._predicted(self._space.to_unit(pending))
        chosen, gain = infill.choose(candidates, means, deviations, values, volume, size, seed, waiting)
        if self._settings.tolerance > 0:
            tables = [np.array([self._succeeded[row].scores[name] for row in rows]) for name in fits]
            floor = infill.noise_floor(values, lambda front: infill.paired_errors(points, front, tables), volume, size)
            smallest = max(floor, _SMALLEST_GAIN * volume.of(values))
            self._quiet = self._quiet + 1 if gain < self._settings.tolerance * smallest else 0
        return candidates[chosen] if self._quiet < 2 else candidates[:0]


def sloped_points(genes: int) -> int:
    """Return the number of candidates with slopes that have as many equations as a quadratic in d `genes` has unknowns: (d + 2) / 2.

    Some of the equations repeat others: only d + 1 candidates identify a quadratic. Half as many, the prior, and batches
    where the front is expected reach more hypervolume at equal cost.
    """
    return math.ceil((genes + 2) / 2)


def suits(space: SearchSpace) -> bool:
    """Return whether surrogates can be fitted over a space: its genes are numbers, at most 40."""
    return all(gene.kind in ("float", "int") for gene in space.genes) and len(space.genes) <= MOST_GENES
