"""A Python function as a task."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from evomerge.models import LiveModel
from evomerge.recipe.validation import FrozenModel
from evomerge.tasks.data import task_error
from evomerge.tasks.task import Part, Scores, Task, TaskSettings, Vector, vector
from evomerge.trial import Metric, Split


class Range(FrozenModel):
    """Lowest and highest mean score of a metric, infinite where there is none."""

    low: float = -math.inf
    high: float = math.inf


def _by_name(metrics: Any) -> Any:
    """Return a list of names with the range that each name implies, anything else unchanged."""
    if not isinstance(metrics, list | tuple) or not all(isinstance(name, str) for name in metrics):
        return metrics
    return {name: dict(zip(("low", "high"), Metric.named(name).bounds, strict=True)) for name in metrics}


class FunctionSettings(TaskSettings):
    """`kind: callable`.

    Example: `mine: {kind: callable, function: my_scores:score, search: 200, report: 500}`
    """

    kind: Literal["callable"]
    function: str = Field(pattern=r"^[\w.]+:\w+$")
    """`package.module:function`; the module is installed, or lies in the study's folder."""
    search: int = Field(ge=1)
    """Number of examples of the search split."""
    report: int = Field(ge=1)
    """Number of examples of the report split."""
    metrics: Annotated[dict[str, Range], BeforeValidator(_by_name)] = Field(default={"score": Range()}, min_length=1)
    """The metrics that the function returns: a list of names, or `{name: {low: 0, high: 1}}` with their ranges.

    A name alone has the range of `Metric.named`. The first metric is searched and reported by default.
    """
    gradient: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    """A second function, called as the first: it returns the searched metric as a torch tensor that autograd can differentiate."""
    batch: int = Field(default=8, ge=1)
    """Number of examples in each call of `gradient`."""
    keep_margins: bool = False
    """The function also returns `margins`, a table `(examples, columns)` by which the metric `accuracy` is predicted: an example
    is right where all of its row are positive. Driver `front` predicts accuracy from them with at most half the error."""

    @model_validator(mode="after")
    def _margins_of_accuracy(self) -> Self:
        if self.keep_margins and "accuracy" not in self.metrics:
            msg = f"`keep_margins` is about the metric `accuracy`, and `metrics` has {', '.join(self.metrics)}; type: metrics: [accuracy]"
            raise ValueError(msg)
        return self


class Function(Task):
    """A task scored by a user's function, which also holds the examples.

    `function(model, split, examples)` gets a `LiveModel`, `"search"` or `"report"`, and the indices of the examples. It
    returns one score for each, higher is better: a vector, or a mapping from metric to vector. With `keep_margins` the mapping
    also has the table `margins`: `{"accuracy": right, "margins": table}`.

    `gradient(model, split, examples)`, where given, returns the searched metric as a torch tensor `(examples,)` with a graph
    back to the parameters of `model.module`, or a mapping from metric to values, which has that tensor. Metrics that it does
    not return are those of `function`.
    """

    def __init__(
        self,
        name: str,
        settings: FunctionSettings,
        folder: Path,
        function: Callable[..., Any] | None = None,
        gradient: Callable[..., Any] | None = None,
    ) -> None:
        """Take the `function` and `gradient`, or import those that the settings name. Raises `TaskError`."""
        searched = settings.search_metric or next(iter(settings.metrics))
        metrics = [
            Metric(
                metric,
                bounds.low,
                bounds.high,
                slopes=settings.gradient is not None and metric == searched,
                margins="margins" if settings.keep_margins and metric == "accuracy" else None,
            )
            for metric, bounds in settings.metrics.items()
        ]
        super().__init__(name, settings, metrics, {"search": settings.search, "report": settings.report})
        self._where = settings.function
        self._function = function or _imported(name, "function", settings.function, folder)
        self._gradient = gradient
        if settings.gradient is not None and gradient is None:
            self._gradient = _imported(name, "gradient", settings.gradient, folder)
        self._settings = settings

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the function's scores. Raises `TaskError` unless there is one score for each example."""
        indices = self.indices(split, examples)
        result = self._function(model, split, indices)
        values = result if isinstance(result, Mapping) else {next(iter(self.metrics)): result}
        expected = {*self.metrics, *(["margins"] if self._settings.keep_margins else [])}
        if set(values) != expected:
            more = "" if values.keys() - expected != {"margins"} else "; type `keep_margins: true` to keep the margins"
            msg = f"{self._where} returned the metrics {sorted(values)}; expected {sorted(expected)} (setting `metrics`){more}"
            raise task_error(self.name, msg)
        return self._scores(values, len(indices))

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the scores of one batch after another, by `gradient`. Raises `TaskError` for values without a graph."""
        for start in range(0, len(indices), self._settings.batch):
            batch = indices[start : start + self._settings.batch]
            yield self._part(range(start, start + len(batch)), model, split, batch)

    def _part(self, positions: Sequence[int], model: LiveModel, split: Split, indices: Sequence[int]) -> Part:
        where, gradient = self._settings.gradient, self._gradient
        assert gradient is not None  # `graph` refuses a metric without slopes
        result = gradient(model, split, list(indices))
        values = dict(result) if isinstance(result, Mapping) else {self.search_metric: result}
        value = values.get(self.search_metric)
        if not isinstance(value, Tensor) or value.shape != (len(indices),) or not value.requires_grad:
            came = repr(value)
            if isinstance(value, Tensor):
                came = f"one of shape {list(value.shape)} {'with' if value.requires_grad else 'without'} a graph"
            msg = (
                f"{where} must return `{self.search_metric}` as a torch tensor of shape [{len(indices)}] with a graph, got {came}; "
                "compute it from the model's outputs, without `.item()`, `.detach()`, `numpy` and `torch.no_grad`"
            )
            raise task_error(self.name, msg)
        if not set(values) >= {*self.metrics, *(["margins"] if self._settings.keep_margins else [])}:
            with torch.no_grad():
                scored = self.score(model, split, indices)
            values = {**scored.scores, **scored.outputs, **values}
        return Part(list(positions), value, self._scores(values, len(indices)))

    def _scores(self, values: Mapping[str, Any], count: int) -> Scores:
        scores = {metric: self._checked(metric, values[metric], count) for metric in self.metrics}
        return Scores(
            scores, self._margins(values["margins"], scores["accuracy"]) if self._settings.keep_margins else {}
        )

    def _margins(self, values: Any, accuracy: Vector) -> dict[str, Vector]:
        try:
            table = vector(values)
        except (TypeError, ValueError):
            table = np.empty(0, np.float32)
        if table.ndim != 2 or len(table) != len(accuracy) or not table.shape[1]:  # (examples, columns)
            came = list(table.shape) if table.size else repr(values)
            msg = f"{self._where} returned `margins` of shape {came}; expected one row of numbers for each of {len(accuracy)} examples"
            raise task_error(self.name, msg)
        wrong = np.flatnonzero((table > 0).all(axis=1) != (accuracy == 1))
        if wrong.size and np.isfinite(accuracy[wrong[0]]):
            msg = (
                f"{self._where} returned accuracy {accuracy[wrong[0]]:g} and margins {table[wrong[0]]} for one example; expected "
                "accuracy 1 where all margins are positive, else 0"
            )
            raise task_error(self.name, msg)
        return {"margins": table}

    def _checked(self, metric: str, values: Any, count: int) -> Vector:
        try:
            scores = vector(values)
        except (TypeError, ValueError):
            msg = f"{self._where} returned no vector of numbers for `{metric}`, but {values!r}"
            raise task_error(self.name, msg) from None
        if scores.shape != (count,):
            msg = f"{self._where} returned shape {list(scores.shape)} for `{metric}`; expected one score for each of {count} examples"
            raise task_error(self.name, msg)
        return scores


def _imported(task: str, key: str, where: str, folder: Path) -> Callable[..., Any]:
    module, _, name = where.partition(":")
    sys.path.insert(0, str(folder))
    try:
        function: Callable[..., Any] | None = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        cause = error if isinstance(error, ImportError) else repr(error)
        msg = f"cannot import `{module}` of `{key}: {where}` ({cause}); it must be installed, or lie in {folder}"
        raise task_error(task, msg) from error
    finally:
        sys.path.remove(str(folder))
    if not callable(function):
        raise task_error(task, f"module `{module}` has no function `{name}`")
    return function
