"""Task: a model and indices of examples in, score vectors out; never a bare number. Where asked, with a graph."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor

from evomerge.errors import nearest
from evomerge.models import LiveModel
from evomerge.recipe.validation import FrozenModel
from evomerge.tasks.data import digests, task_error
from evomerge.trial import Metric, Split

Vector = NDArray[np.float32]

ACCURACY = Metric("accuracy", 0.0, 1.0)
"""Share of the examples that are right."""

LOG_LIKELIHOOD = Metric("log_likelihood", high=0.0, smooth=True, slopes=True)
"""Log-likelihood of the right tokens or label, in nats, at most 0."""

ENTROPY = Metric("entropy", high=0.0, smooth=True, slopes=True)
"""Minus the entropy of the predicted distribution, in nats, at most 0: 0 is certain. It does not use labels.

Yang et al., AdaMerging: Adaptive Model Merging for Multi-Task Learning, https://arxiv.org/abs/2310.02575, eq. 2.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of one model: for each metric a float32 vector `(examples,)`, higher is better.

    `outputs` holds optional tables, float32 `(examples, columns)`, such as the `margins` that a metric declares.
    """

    scores: Mapping[str, Vector]
    outputs: Mapping[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the examples that `Task.graph` was asked for: those of one batch, `n` of them.

    `positions` are their places among the indices asked for. `value` is the search metric of each, floating `(n,)`, with a
    graph back to the model's parameters. `scores` are all of their scores, without a graph. All are in the same order.
    """

    positions: list[int]
    value: Tensor
    scores: Scores


class TaskSettings(FrozenModel):
    """The settings that every kind of task has."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: str
    """The kind of task."""
    search_metric: str | None = None
    """The metric to search; None takes the kind's default."""
    report_metric: str | None = None
    """The metric to report; None takes the kind's default."""
    head_of: str | None = None
    """Where heads stay outside of merges: the expert whose head is used. Default: the one of the task's name, else the base's."""
    group: str | None = None
    """Tasks of one group have the same examples, row for row, each with changed inputs; intervals then draw them together."""


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
        self.kind = settings.kind
        self.metrics = {metric.name: metric for metric in metrics}
        smooth = next((metric for metric in metrics if metric.smooth), metrics[0])
        other = next((metric for metric in metrics if not metric.smooth), metrics[0])
        self.search_metric = self._checked_name("search_metric", settings.search_metric or smooth.name)
        self.report_metric = self._checked_name("report_metric", settings.report_metric or other.name)
        self._sizes = sizes or {split: len(values) for split, values in (inputs or {}).items()}
        self._group = settings.group
        self._head_of = settings.head_of
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

    def digest(self) -> str | None:
        """Return a digest of what scores depend on beside the settings and the files that they name; None for nothing more."""
        return None

    def put_head_on(self, model: LiveModel) -> None:
        """Give `model` the head that the task is scored with. Raises `TaskError` where its `head_of` has none."""
        if self._head_of is not None and self._head_of not in model.heads:
            have = nearest(self._head_of, model.heads) if model.heads else "heads are merged here, leave it out"
            raise task_error(self.name, f"`head_of` is `{self._head_of}`, which has no head of its own; {have}")
        model.use_head(self._head_of or (self.name if self.name in model.heads else None))

    def check(self, model: LiveModel) -> None:  # noqa: B027  # a subclass need not write it
        """Raise `TaskError` where no candidate on the base of `model` could be scored, before the first one is.

        It covers all splits: a report comes after the whole search. By default nothing is checked.
        """

    @abstractmethod
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the scores of `model` on the examples of `split` with these indices, in that order; None means all.

        The same weights and examples give the same bytes. Scores of a subset equal those of a full evaluation up to
        rounding, since the batches differ. Non-finite scores are returned unchanged. Raises `TaskError` if the model
        cannot do the task.
        """

    def graph(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Return the parts of the examples of `split` with these indices, each with a graph; every example is in one part.

        A part is computed when it is asked for. Call `part.value.sum().backward()` before asking for the next, and only one
        batch's graph is in memory. Gradients must be enabled, and those parameters of `model.module` that they are wanted for
        must require them. The scores equal those of `score` up to rounding. Raises `TaskError` if the search metric has no
        slopes.
        """
        if not self.metrics[self.search_metric].slopes:
            sloped = [f"`{metric.name}`" for metric in self.metrics.values() if metric.slopes]
            advice = (
                f"set `search_metric` to {' or '.join(sloped)}"
                if sloped
                else "add `log_likelihood` or `entropy` to its `metrics` where the kind has them, give a function a `gradient`, "
                "or take a driver that needs no slopes"
            )
            msg = f"kind `{self.kind}`: the metric `{self.search_metric}` cannot be differentiated; {advice}"
            raise task_error(self.name, msg)
        return self.parts(model, split, self.indices(split, indices))

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the parts for `graph`, with a graph if gradients are enabled. A task with a metric with slopes writes it."""
        msg = f"kind `{self.kind}` declares a metric with slopes, and does not write `parts`; see `evomerge.tasks.Task.parts`"
        raise task_error(self.name, msg)

    def predictions(self, model: LiveModel, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return what `model` predicts of one example, and what is right.

        Log-probabilities `(predictions, outcomes)`, with a graph if gradients are enabled, one row for a class or a choice and one for
        each token of a text; and the right outcomes, int64 `(predictions,)`. Raises `TaskError` where a task has no such predictions.
        """
        msg = (
            f"kind `{self.kind}` has no predicted distribution and no labels, which statistics of gradients need; expected "
            "a task of kind classification, multiple_choice, language_modelling or generation as evidence"
        )
        raise task_error(self.name, msg)

    def unpadded(self, model: LiveModel, split: Split, indices: Sequence[int]) -> list[list[int]]:
        """Return these examples of `split` in groups that `score` runs in one batch without padding; by default each by itself."""
        return [[index] for index in indices]

    def part(
        self, positions: Sequence[int], values: Mapping[str, Tensor], outputs: Mapping[str, Any] | None = None
    ) -> Part:
        """Return the part of the examples at `positions`, from their `values` by metric, `(n,)`, and optional tables."""
        return Part(list(positions), values[self.search_metric], detached(values, outputs))

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


def choose_metrics(settings: TaskSettings, names: Sequence[str], keep_margins: bool = False) -> list[Metric]:
    """Return the metrics with these `names`, and entropy if the settings search or report it.

    Accuracy has its table of `margins` if that is kept.
    """
    known = {
        "accuracy": replace(ACCURACY, margins="margins" if keep_margins else None),
        "log_likelihood": LOG_LIKELIHOOD,
        "entropy": ENTROPY,
    }
    asked = "entropy" in (settings.search_metric, settings.report_metric)
    return [known[name] for name in dict.fromkeys([*names, *["entropy"] * asked])]


def negative_entropy(logits: Tensor) -> Tensor:
    """Return minus the entropy in nats, `(…)`, of the distributions whose logits are `(…, outcomes)`."""
    logs = logits.log_softmax(-1)
    finite = logs.clamp_min(torch.finfo(logs.dtype).min)  # 0 · log 0 is 0
    return (logs.exp() * finite).sum(-1)


def detached(values: Mapping[str, Tensor], outputs: Mapping[str, Any] | None = None) -> Scores:
    """Return scores without a graph from `values` by metric, `(n,)`, and optional tables."""
    return Scores(*({name: vector(value) for name, value in found.items()} for found in (values, outputs or {})))


def joined(batches: Iterable[tuple[Sequence[int], Scores]]) -> Scores:
    """Return the scores of all `batches`, each with its positions, in the order of these."""
    positions, scores = zip(*batches, strict=True)
    order = np.argsort(np.concatenate(positions))

    def join(tables: Sequence[Mapping[str, Vector]]) -> dict[str, Vector]:
        return {name: np.concatenate([table[name] for table in tables])[order] for name in tables[0]}

    return Scores(join([batch.scores for batch in scores]), join([batch.outputs for batch in scores]))


def vector(values: Any) -> Vector:
    """Return `values` as a float32 array, without their graph."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float32)
