"""Task: a model and example numbers in, score vectors out; never a bare number."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evomerge.errors import TaskError, nearest
from evomerge.models import LiveModel
from evomerge.trial import Metric, Split

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a task found: for each metric a score per example, float32 `(examples,)`, higher is better.

    `outputs` holds tables that were asked for: `margins`, float32 `(examples, columns)`.
    """

    scores: Mapping[str, Vector]
    outputs: Mapping[str, Vector] = field(default_factory=dict)


class Task(Protocol):
    """Something that a model does well or badly, example by example.

    `metrics` are all the metrics that it knows; `search_metric` is what a search should look at (smooth),
    `report_metric` what a report should state (readable). An objective is `task/metric`.
    """

    @property
    def name(self) -> str:
        """The name in the study."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that `score` can return, by name."""

    @property
    def search_metric(self) -> str:
        """The metric that is always among the scores on the search split."""

    @property
    def report_metric(self) -> str:
        """The metric that is always among the scores on the report split."""

    def size(self, split: Split) -> int:
        """Return the number of examples in `split`, at least 1."""

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the scores of `model` on the `examples` of `split` with these numbers, in that order; None means all.

        The same weights and the same examples give the same scores bit for bit; a part of the examples gives
        what all of them give up to rounding, since batches differ. Scores that are not finite are returned as
        they are. Raises
        `TaskError` where the model cannot do the task at all.
        """


class TaskSettings(BaseModel):
    """The settings that every kind of task has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    search_metric: str | None = None
    """What is searched; None takes the kind's default."""
    report_metric: str | None = None
    """What is reported; None takes the kind's default."""


class SplitTask(ABC):
    """What the tasks that score examples share: two splits of known size, and a metric for each. Abstract."""

    def __init__(
        self,
        name: str,
        settings: TaskSettings,
        *,
        metrics: Sequence[Metric],
        sizes: Mapping[Split, int],
    ) -> None:
        """Take the task's `metrics` and the number of examples in each split.

        The first smooth metric is searched and the first other one reported, unless the settings name them. Raises
        `TaskError` for the name of no metric.
        """
        self.name = name
        self.metrics = {metric.name: metric for metric in metrics}
        smooth = next((metric for metric in metrics if metric.smooth), metrics[0])
        other = next((metric for metric in metrics if not metric.smooth), metrics[0])
        self.search_metric = self._checked_name("search_metric", settings.search_metric or smooth.name)
        self.report_metric = self._checked_name("report_metric", settings.report_metric or other.name)
        self._sizes = dict(sizes)

    def size(self, split: Split) -> int:
        """Return the number of examples in `split`."""
        return self._sizes[split]

    @abstractmethod
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the scores of `model`, as `Task` says."""

    def indices(self, split: Split, examples: Sequence[int] | None) -> list[int]:
        """Return the numbers of the examples to score. Raises `TaskError` for one that the split does not have."""
        size = self.size(split)
        chosen = list(range(size)) if examples is None else [int(number) for number in examples]
        for number in chosen:
            if not 0 <= number < size:
                msg = f"example {number} of the {split} split; it has examples 0 to {size - 1}"
                raise self.error(msg)
        return chosen

    def error(self, what: str) -> TaskError:
        """Return the error that says `what` of this task."""
        return TaskError(f"task `{self.name}`: {what}")

    def _checked_name(self, key: str, metric: str) -> str:
        if metric not in self.metrics:
            msg = f"unknown `{key}` `{metric}`; {nearest(metric, self.metrics)}"
            raise self.error(msg)
        return metric


ACCURACY = Metric("accuracy", 0.0, 1.0)
"""Share of the examples that are right."""

LOG_LIKELIHOOD = Metric("log_likelihood", high=0.0, smooth=True)
"""Log-likelihood of the right tokens or label, in nats, at most 0."""


def choose_metrics(names: Sequence[str], keep_margins: bool) -> list[Metric]:
    """Return the metrics of these names, accuracy with a table of `margins` where they are kept."""
    accuracy = replace(ACCURACY, margins="margins" if keep_margins else None)
    return [accuracy if name == "accuracy" else LOG_LIKELIHOOD for name in names]


def vector(values: Any) -> Vector:
    """Return `values` as a score vector."""
    return np.asarray(values, dtype=np.float32)
