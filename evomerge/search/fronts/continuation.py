"""Continuation: fronts over hundreds of genes, from few evaluations with slopes.

One evaluation gives the slope of every objective, so it serves every preference (weights of the objectives): any evaluated
point can step towards any trade-off, and each pair of points shows how every weighted sum curves between them. First the
equal weights are improved; then the steps that are predicted to add the most hypervolume are evaluated, a fixed number at a
time. Not to be confused with a surrogate: nothing is predicted far from the evaluated points.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, Objectives, known_recipes, latin_hypercube, read_metrics
from evomerge.search.fronts import infill
from evomerge.search.fronts.settings import FrontSettings
from evomerge.search.slopes.ascent import Slope, movable
from evomerge.search.slopes.measure import Measure
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Examples, Metric

_ALONE = 6
"""Evaluations with slopes that improve the equal weights one at a time."""
_CENTRED = 10
"""Generations that include a step for the equal weights; a better centre is a better start for all preferences."""
_BATCH = 2
_PREFERENCES = 32
"""Preferences drawn for each generation, beside each objective alone and equal weights."""
_PAIRS = 300
"""Most points whose differences to the start make the direction of a step: the nearest ones."""
_Step = tuple[int, NDArray[np.float64], Genome]
"""Row of the start, -1 for none; the preference; and the point, in unit coordinates."""
_Point = tuple[Genome, NDArray[np.float64], NDArray[np.float64], float]
"""A point in unit coordinates, its means, its slopes `(objectives, genes)`, and the length of the longest step from it."""
_FIRST, _LONGEST = 0.06, 0.15
"""Lengths of a step along a slope alone, and of the longest, as a root mean square over unit coordinates."""


class Continuation:
    """A `Breeder` that continues a front from its points, by quasi-Newton steps of weighted sums of the objectives.

    The known recipes are scored first, without slopes; the best of them is the start. A step for a preference starts at the
    best point for it, in the direction of L-BFGS with the differences to all other points, or the 300 nearest. After a step that does not
    help, or fails, those from the same start are at most half as long. An int gene, or one without slopes, keeps the number
    that it has at the start.
    """

    def __init__(
        self, space: SearchSpace, objectives: Objectives, seed: int, settings: FrontSettings, sizes: Mapping[str, int]
    ) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for a single one, and where there are no slopes.

        `sizes` are the numbers of search examples by task: slopes are over all of them.
        """
        if len(objectives) < 2:
            raise DriverError("driver `front` follows slopes for two or more objectives, got one; type `kind: cma`")
        metrics = read_metrics(objectives)
        self._measure = Measure("front", space, metrics, sizes, 0.0, seed)
        self._space = space
        self._objectives = tuple(objectives)
        self._moving = movable(space)
        self._seed = seed
        self._batch = settings.batch or _BATCH
        self.in_flight = settings.in_flight or 1
        self._known = known_recipes(space, settings.seed_known)
        self._generation = 0 if len(self._known) else 1
        self._sloped = 0  # generations with slopes that were learnt
        # Gains that count alike: a front is judged by the volume above the worst of the known recipes, so their ranges.
        self._units = np.ones(len(objectives))
        self._scored: Means = np.empty((0, len(objectives)))  # of the known recipes
        self._start = space.to_unit(space.initial)
        genes = len(space.genes)
        self._tried: Genomes = np.empty((0, genes))  # all candidates with slopes, unit coordinates
        self._points: Genomes = np.empty((0, genes))  # those that succeeded
        self._means: Means = np.empty((0, len(objectives)))  # of `_points`
        self._slopes = np.empty((0, len(objectives), genes))  # of `_points`, of unit coordinates
        self._reach = np.empty(0)  # length of the longest step from each of `_points`
        self._steps: dict[bytes, _Step] = {}  # by genome, of the candidates with slopes that are not learnt from

    def __str__(self) -> str:
        fixed = int((~self._moving).sum())
        kept = f"; {fixed} of the genes have no slopes, and keep the number of the start" if fixed else ""
        return (
            f"front by slopes: {len(self._known)} known recipes without slopes, the best of them improved for equal weights, then"
            f" {self._batch} candidates at a time where steps along slopes are predicted to add the most hypervolume"
            + (f"; {self.in_flight} in flight" if self.in_flight > 1 else "")
            + kept
        )

    @property
    def slopes(self) -> Examples | None:
        """Examples over whose mean score the last generation needs slopes; None for the known recipes."""
        return None if self._generation == 1 and len(self._known) else self._measure.training

    def draw(self, pending: Genomes | None = None) -> Genomes:
        """Return the known recipes, then the start, then steps."""
        if pending is not None and not len(self._points):
            return pending[:0]
        self._generation += 1
        if self._generation == 1:
            return self._known
        if not len(self._points):
            point = self._start if not len(self._tried) else self._elsewhere(1)[0]
            return self._genomes([(-1, self._equal, point)])
        alone = self._sloped < _ALONE and self.in_flight == 1
        return self._genomes(self._centre() if alone else self._improving())

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Keep the points with their slopes. Raises `DriverError` for an evaluation without them."""
        if not self._steps:  # the known recipes
            self._scored = means[[done.error is None for done in evaluations]]
            spans = np.ptp(self._scored, axis=0) if len(self._scored) else np.zeros(len(self._objectives))
            if (spans > 0).all():
                self._units = spans
            self._start = self._space.to_unit(genomes[int(np.argmax((means / self._units).mean(axis=1)))])
            return
        self._sloped += 1
        added: list[_Point] = []
        for genome, mean, done in zip(genomes, means, evaluations, strict=True):
            row, weights, _ = self._steps.pop(genome.tobytes())
            measured = self._measure.read(genome, done)
            better = row < 0 or bool(weights @ ((mean - self._means[row]) / self._units) > 0)
            if row >= 0 and (measured is None or not better):
                length = _root_mean_square(self._space.to_unit(genome) - self._points[row])
                self._reach[row] = min(self._reach[row], length) / 2
            if measured is not None:
                reach = min(_LONGEST, 1.5 * self._reach[row]) if row >= 0 else _LONGEST
                if not len(self._points) and not added and len(self._scored) < 2:  # no scores to take the units from
                    lengths = np.linalg.norm(measured.slopes, axis=1)
                    self._units = np.where(lengths > 0, lengths, 1.0)
                added.append((self._space.to_unit(genome), mean, measured.slopes, reach))
        if added:
            points, scores, slopes, reaches = (np.array(part) for part in zip(*added, strict=True))
            self._points = np.concatenate([self._points, points])
            self._means = np.concatenate([self._means, scores])
            self._slopes = np.concatenate([self._slopes, slopes])
            self._reach = np.append(self._reach, reaches)

    @property
    def _equal(self) -> NDArray[np.float64]:
        return np.full(len(self._objectives), 1 / len(self._objectives))

    def _genomes(self, steps: list[_Step]) -> Genomes:
        """Return the genomes of a generation of `steps`, and record these."""
        points = np.array([point for _, _, point in steps])
        genomes = self._space.from_unit(points)
        self._steps |= {genome.tobytes(): step for genome, step in zip(genomes, steps, strict=True)}
        self._tried = np.concatenate([self._tried, points])
        return genomes

    def _centre(self) -> list[_Step]:
        """Return a step for equal weights."""
        row, point = self._step(self._equal, self._damping())
        return [(row, self._equal, point if self._is_new(point) else self._elsewhere(1)[0])]

    def _improving(self) -> list[_Step]:
        """Return the steps that are predicted to add the most hypervolume, greedily, one for each place of the batch.

        Steps in flight count with their predictions.
        """
        damping = self._damping()
        steps = [(weights, *self._step(weights, damping)) for weights in self._preferences()]
        scores = np.concatenate([self._scored, self._means]) / self._units
        predicted = np.array([self._predicted(row, weights, point) for weights, row, point in steps])
        volume = infill.Volume(scores, infill.reference_point(scores, predicted), self._seed)
        pending, along = volume.along(scores).max(axis=0), volume.along(predicted)
        waiting = [self._predicted(*step) for step in self._steps.values() if step[0] >= 0]
        if waiting:
            pending = np.maximum(pending, volume.along(np.array(waiting)).max(axis=0))
        points = np.array([point for _, _, point in steps])
        free = infill.is_new(points, self._tried)
        chosen: list[_Step] = []
        for _ in range(self._batch):
            if chosen:
                free &= infill.is_new(points, chosen[-1][2][None])
            if not free.any():
                rest = self._elsewhere(self._batch)[len(chosen) :]
                return [*chosen, *((-1, self._equal, point) for point in rest)]
            gains = np.maximum(along - pending, 0).mean(axis=1)
            first = not chosen and free[0] and self._sloped < _CENTRED
            best = 0 if first else int(np.argmax(np.where(free, gains, -1.0)))
            weights, row, point = steps[best]
            chosen.append((row, weights, point))
            pending = np.maximum(pending, along[best])
        return chosen

    def _preferences(self) -> Means:
        """Return equal weights, each objective alone, and weights drawn evenly from all: `(preferences, objectives)`, sums of 1."""
        rng = np.random.default_rng([self._seed, self._generation])
        drawn = rng.dirichlet(np.ones(len(self._objectives)), _PREFERENCES)
        return np.concatenate([self._equal[None], np.eye(len(self._objectives)), drawn])

    def _damping(self) -> Slope:
        """Return the square root of Adam's scaling, `(genes,)`: genes with larger slopes also curve more."""
        squares = np.mean((self._slopes / self._units[:, None]) ** 2, axis=(0, 1))
        return np.where(squares > 0, np.maximum(squares, 1e-300) ** -0.25, 0.0)

    def _step(self, weights: NDArray[np.float64], damping: Slope) -> tuple[int, Genome]:
        """Return the row of the best point for a preference, and the point that a step from there leads to."""
        shares = weights / self._units
        row = int(np.argmax(self._means @ shares))
        start, uphill = self._points[row], shares @ self._slopes[row]
        free = ~((start <= 0) & (uphill < 0) | (start >= 1) & (uphill > 0))
        nearest = np.argsort(-np.linalg.norm(self._points - start, axis=1), kind="stable")[-_PAIRS:]
        slopes = shares @ self._slopes[nearest]  # (points, genes)
        direction = newton_direction(
            np.where(free, uphill, 0.0),
            np.where(free, start - self._points[nearest], 0.0),
            np.where(free, slopes - uphill, 0.0),
            np.where(free, damping, 0.0),
        )
        if direction is None:
            direction, longest = np.where(free, damping * uphill, 0.0), min(_FIRST, self._reach[row])
            scale = longest / max(_root_mean_square(direction), 1e-300)
        else:
            scale = min(1.0, self._reach[row] / max(_root_mean_square(direction), 1e-300))
        return row, np.clip(start + scale * direction, 0.0, 1.0)

    def _predicted(self, row: int, weights: NDArray[np.float64], point: Genome) -> NDArray[np.float64]:
        """Return the scores predicted after a step, `(objectives,)`, in units.

        Linear, minus the linear gain of the weighted sum in every objective: only movement along the front counts, so that
        gaps are closed before points are refined.
        """
        linear = (self._slopes[row] @ (point - self._points[row])) / self._units
        return np.asarray(self._means[row] / self._units + linear - abs(weights @ linear))

    def _is_new(self, point: Genome) -> bool:
        """Return whether a point differs from all candidates so far."""
        return bool(infill.is_new(point[None], self._tried)[0])

    def _elsewhere(self, count: int) -> Genomes:
        """Return random points, halfway between the best point for equal weights, or the start, and anywhere."""
        rng = np.random.default_rng([self._seed, self._generation, 1])
        best = self._points[np.argmax((self._means / self._units).mean(axis=1))] if len(self._points) else self._start
        anywhere = self._space.to_unit(latin_hypercube(self._space, count, rng))
        return np.where(self._moving, (best + anywhere) / 2, best)


def has_slopes(space: SearchSpace, metrics: Mapping[str, Metric]) -> bool:
    """Return whether slopes can be followed: two or more objectives, all of them with slopes, and some float gene."""
    return len(metrics) > 1 and all(metric.slopes for metric in metrics.values()) and bool(movable(space).any())


def newton_direction(slope: Slope, moves: Genomes, bends: Genomes, damping: Slope) -> Slope | None:
    """Return an estimate of the inverse of minus the Hessian, times `slope`, `(genes,)`, or None where no pair shows negative curvature.

    The two-loop recursion of L-BFGS (Nocedal 1980; Nocedal & Wright 2006, algorithm 7.4) with pairs of `moves`, start minus
    another point, and `bends`, the other point's slope minus the start's, `(pairs, genes)`: the last pairs count most. `damping`, (genes,), is
    the inverse of the Hessian's assumed diagonal, up to a factor.
    """
    curvatures = np.einsum("ij,ij->i", moves, bends)
    lengths = np.linalg.norm(moves, axis=1) * np.linalg.norm(bends, axis=1)
    good = (curvatures > 1e-3 * lengths) & (lengths > 0)
    if not good.any():
        return None
    moves, bends, curvatures = moves[good], bends[good], curvatures[good]
    direction = slope.copy()
    factors = np.empty(len(moves))
    for i in reversed(range(len(moves))):
        factors[i] = moves[i] @ direction / curvatures[i]
        direction -= factors[i] * bends[i]
    direction *= damping * curvatures[-1] / max(bends[-1] @ (damping * bends[-1]), 1e-300)
    for move, bend, curvature, factor in zip(moves, bends, curvatures, factors, strict=True):
        direction += (factor - bend @ direction / curvature) * move
    return direction


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))
