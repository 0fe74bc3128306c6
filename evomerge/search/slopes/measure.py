"""Measure: what a driver needs slopes of, and how it reads them from an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import DriverError
from evomerge.search.driver import Means
from evomerge.search.slopes.ascent import movable, to_unit_slope
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Examples, Metric


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """An evaluation with slopes. Mean scores by part of the search examples, and slopes of the training part's."""

    training: NDArray[np.float64]
    """`(objectives,)`."""
    validation: NDArray[np.float64]
    """`(objectives,)`; of a task without a validation part, the training part's."""
    slopes: NDArray[np.float64]
    """With respect to unit coordinates, `(objectives, genes)`; 0 for genes that are not moved."""


class Measure:
    """Splits the search examples of each task into a training part, which gives slopes, and a validation part.

    Both parts are scored in every evaluation. A permutation keyed by the seed and the task's name draws them.
    """

    def __init__(
        self,
        kind: str,
        space: SearchSpace,
        metrics: Mapping[str, Metric],
        sizes: Mapping[str, int],
        share: float,
        seed: int,
        instead: str = "type another driver, such as `kind: cma` or `nsga2`",
    ) -> None:
        """Split the examples of the tasks of `metrics`, which have `sizes`; `share` of them validate.

        Raises `DriverError`, in the name of the driver `kind`, for metrics and spaces without slopes, and unknown sizes; `instead`
        says what to type there.
        """
        tasks = {name: name.rpartition("/")[0] for name in metrics}
        for name, metric in metrics.items():
            if not metric.slopes:
                raise DriverError(
                    f"driver `{kind}` needs slopes, and `{name}` has none; give the task "
                    f"`{tasks[name]}` the key `search_metric: log_likelihood`, or {instead}"
                )
            if tasks[name] not in sizes:
                msg = f"driver `{kind}`: objective `{name}` is of the task `{tasks[name]}`; expected `sizes`, its number of search examples"
                raise DriverError(msg)
        if not movable(space).any():
            names = ", ".join(f"`{gene.name}`" for gene in space.genes[:3]) + (", …" if len(space.genes) > 3 else "")
            msg = f"driver `{kind}` needs genes with slopes, such as weights, and the space has only {names}; {instead}"
            raise DriverError(msg)
        self._space = space
        self._instead = instead
        self._objectives = tuple(metrics)
        self._tasks = tasks
        self.training: Examples = {}
        self.validation: Examples = {}
        for task in dict.fromkeys(tasks.values()):
            order = np.random.default_rng([seed, *task.encode()]).permutation(sizes[task])
            count = round(share * sizes[task])
            self.validation = {**self.validation, task: tuple(sorted(order[:count].tolist()))}
            self.training = {**self.training, task: tuple(sorted(order[count:].tolist()))}

    def read(self, genome: Genome, evaluation: Evaluation) -> Measured | None:
        """Return what an evaluation of `genome` says, None if it failed: slopes and scores that are not finite count.

        Raises `DriverError` for a success without slopes.
        """
        if evaluation.error is not None:
            return None
        self.check(evaluation)
        moves = movable(self._space)
        slopes = np.array([self._space.slopes(genome, evaluation.slopes[name]) for name in self._objectives])
        training, validation = self._means(evaluation, self.training), self._means(evaluation, self.validation)
        validation = np.where([bool(self.validation[task]) for task in self._tasks.values()], validation, training)
        if not (np.isfinite(slopes[:, moves]).all() and np.isfinite(training).all() and np.isfinite(validation).all()):
            return None
        slopes = np.where(moves, slopes, 0.0)
        return Measured(training, validation, np.array([to_unit_slope(self._space, genome, slope) for slope in slopes]))

    def check(self, evaluation: Evaluation) -> None:
        """Raise `DriverError` for a success without slopes."""
        missing = [name for name in self._objectives if name not in evaluation.slopes]
        if missing and evaluation.error is None:
            raise DriverError(
                f"an evaluation has scores and no slopes of {', '.join(missing)}; expected slopes of every objective over the "
                f"proposal's `slopes` examples; {self._instead}, if the evaluator has none"
            )

    def _means(self, evaluation: Evaluation, examples: Examples) -> NDArray[np.float64]:
        parts = [evaluation.scores[name][list(examples[task])] for name, task in self._tasks.items()]
        return np.array([part.mean(dtype=np.float64) if len(part) else 0.0 for part in parts])


def units(
    means: Means, evaluations: list[Evaluation], objectives: tuple[str, ...], base: int | None
) -> NDArray[np.float64]:
    """Return what counts as one in each objective, `(objectives,)`: the gain of the best known recipe over the base.

    `means` are those of the known recipes, `(recipes, objectives)`, and `base` is the base's row; without one, the gain is that
    over the worst. A gain counts as its standard error at least, so that a task without anything to gain does not dominate.
    """
    result = np.ones(len(objectives))
    for i, name in enumerate(objectives):
        best = int(means[:, i].argmax())
        worse = base if base is not None and means[base, i] < means[best, i] else int(means[:, i].argmin())
        if evaluations[best].error is None and evaluations[worse].error is None:
            gains = evaluations[best].scores[name].astype(np.float64) - evaluations[worse].scores[name]
            result[i] = max(gains.mean(), gains.std() / np.sqrt(len(gains))) or 1.0
    return result
