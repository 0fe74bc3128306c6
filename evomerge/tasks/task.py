"""Task: a model and indices of examples in, score vectors out; never a bare number."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from evomerge.errors import nearest
from evomerge.models import LiveModel
from evomerge.recipe.validation import FrozenModel
from evomerge.tasks.data import digests, task_error
from evomerge.trial import Metric, Split

Vector = NDArray[np.float32]

ACCURACY = Metric("accuracy", 0.0, 1.0)
"""Share of the examples that are right."""

LOG_LIKELIHOOD = Metric("log_likelihood", high=0.0, smooth=True)
"""Log-likelihood of the right tokens or label, in nats, at most 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of one model: for each metric a float32 vector `(examples,)`, higher is better.

    `outputs` holds optional tables, float32 `(examples, columns)`, such as the `margins` that a metric declares.
    """

    scores: Mapping[str, Vector]
    outputs: Mapping[str, Vector] = field(default_factory=dict)


class TaskSettings(FrozenModel):
    """The settings that every kind of task has."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: str
    """The kind of task."""
    search_metric: str | None = None
    """The metric to search; None takes the kind's default."""
    report_metric: str | None = None
    """The metric to report; None takes the kind's default."""
    group: str | None = None
    """Tasks of one group have the same examples, row for row, each with changed inputs; intervals then draw them together."""


class FileSettings(TaskSettings):
    """The settings that every kind of task with examples in files has."""

    search: Path
    """The examples to search on: JSONL, Parquet, or a folder saved by Hugging Face `datasets`."""
    report: Path
    """The examples to report on, none of them in `search`."""
    final: Path | None = None
    """Examples for one last measurement, `evomerge show --final`: none of them in `search` or `report`."""
    batch: int = Field(default=8, ge=1)
    """Number of examples that run together; another number changes the last bits of scores."""

    @property
    def paths(self) -> dict[Split, Path]:
        """The file of each split."""
        paths: dict[Split, Path] = {"search": self.search, "report": self.report}
        return paths if self.final is None else {**paths, "final": self.final}


class Task(ABC):
    """Scores models example by example. Abstract: a subclass writes `score`.

    A search maximises `search_metric` (preferably smooth), a report states `report_metric` (readable); `score` always
    returns the one on the search split, the other on the report split. An objective is `task/metric`.
    """

    def __init__(
        self,
        name: str,
        settings: TaskSettings,
        metrics: Sequence[Metric],
        sizes: Mapping[Split, int] | None = None,
        inputs: Mapping[Split, Sequence[Any]] | None = None,
    ) -> None:
        """Declare the `metrics`, the number of examples in each split, or the examples' inputs, where they are known.

        By default the first smooth metric is searched and the first other one reported. Raises `TaskError` if the
        settings name another metric than these.
        """
        self.name = name
        self.metrics = {metric.name: metric for metric in metrics}
        smooth = next((metric for metric in metrics if metric.smooth), metrics[0])
        other = next((metric for metric in metrics if not metric.smooth), metrics[0])
        self.search_metric = self._checked_name("search_metric", settings.search_metric or smooth.name)
        self.report_metric = self._checked_name("report_metric", settings.report_metric or other.name)
        self._sizes = sizes or {split: len(values) for split, values in (inputs or {}).items()}
        self._group = settings.group
        self._digests = {split: digests(values) for split, values in (inputs or {}).items()}

    def size(self, split: Split) -> int:
        """Return the number of examples in `split`, 0 in one that the task does not have."""
        return self._sizes.get(split, 0)

    def example_keys(self, split: Split) -> list[str]:
        """Return a key for each example of `split`; examples of any tasks that have the same key are the same example.

        It is the example's place in the `group`, or its input, or else its place here.
        """
        if self._group is None and self._digests:
            return self._digests[split]
        return [f"{self._group or self.name}\n{i}" for i in range(self.size(split))]

    @abstractmethod
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the scores of `model` on the examples of `split` with these indices, in that order; None means all.

        The same weights and examples give the same bytes. Scores of a subset equal those of a full evaluation up to
        rounding, since the batches differ. Non-finite scores are returned unchanged. Raises `TaskError` if the model
        cannot do the task.
        """

    def indices(self, split: Split, examples: Sequence[int] | None) -> list[int]:
        """Return the indices of the examples to score. Raises `TaskError` for one that is not in the split."""
        size = self.size(split)
        chosen = [int(index) for index in (range(size) if examples is None else examples)]
        for index in chosen:
            if not 0 <= index < size:
                raise task_error(self.name, f"example {index} of the {split} split; it has examples 0 to {size - 1}")
        return chosen

    def _checked_name(self, key: str, metric: str) -> str:
        if metric not in self.metrics:
            raise task_error(self.name, f"unknown `{key}` `{metric}`; {nearest(metric, self.metrics)}")
        return metric


def choose_metrics(names: Sequence[str], keep_margins: bool) -> list[Metric]:
    """Return accuracy and log-likelihood, those in `names`, accuracy with its table of `margins` if that is kept."""
    accuracy = replace(ACCURACY, margins="margins" if keep_margins else None)
    return [accuracy if name == "accuracy" else LOG_LIKELIHOOD for name in names]


def vector(values: Any) -> Vector:
    """Return `values` as a float32 array."""
    return np.asarray(values, dtype=np.float32)
