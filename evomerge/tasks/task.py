"""Task: a model and example numbers in, score vectors out; never a bare number."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from evomerge.errors import TaskError, nearest
from evomerge.models import LiveModel
from evomerge.trial import Split

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
    def metrics(self) -> tuple[str, ...]:
        """The metrics that `score` can return."""

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
        metrics: tuple[str, ...],
        sizes: Mapping[Split, int],
        search: str,
        report: str,
    ) -> None:
        """Take the kind's `metrics`, and its default ones to `search` and to `report`, which the settings may change."""
        self.name = name
        self.metrics = metrics
        self.search_metric = self._known("search_metric", settings.search_metric or search)
        self.report_metric = self._known("report_metric", settings.report_metric or report)
        self._sizes = dict(sizes)

    def size(self, split: Split) -> int:
        """Return the number of examples in `split`."""
        return self._sizes[split]

    @abstractmethod
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the scores of `model`, as `Task` says."""

    def numbers(self, split: Split, examples: Sequence[int] | None) -> list[int]:
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

    def _known(self, key: str, metric: str) -> str:
        if metric not in self.metrics:
            msg = f"unknown `{key}` `{metric}`; {nearest(metric, self.metrics)}"
            raise self.error(msg)
        return metric


def vector(values: Any) -> Vector:
    """Return `values` as a score vector."""
    return np.asarray(values, dtype=np.float32)
