"""Metrics of the harness as scores per document: higher is better, and the mean over documents is the harness's number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.errors import nearest
from evomerge.tasks.data import task_error
from evomerge.tasks.task import LOG_LIKELIHOOD
from evomerge.trial import Metric

MARGINS = "margins"

_LENGTHS: Mapping[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
"""By metric, the length by which a choice's log-likelihood is divided; others divide by 1."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A document's choices: the `merits` that decide between them, float64 `(choices,)`, and which are right."""

    merits: np.ndarray[Any, np.dtype[np.float64]]
    right: list[int]

    @property
    def log_likelihood(self) -> float:
        """Log-softmax of the right choice's merit over all merits, in nats; of the sum of several right ones."""
        return float(np.logaddexp.reduce(self.merits[self.right]) - np.logaddexp.reduce(self.merits))

    @property
    def margins(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The best right choice's merit minus that of each wrong one."""
        return np.asarray(self.merits[self.right].max() - np.delete(self.merits, self.right), dtype=np.float64)


def declare(
    task: str, leaves: Sequence[Any], metric: str | None, asked: Sequence[str | None], keep_margins: bool
) -> list[Metric]:
    """Return the metrics that all of the harness's tasks have, `metric` (else their first) before the others.

    `log_likelihood` is added for multiple choice and for log-likelihoods of targets. Raises `TaskError` for a metric among
    `metric` and those `asked` for that is no mean over documents, or unknown.
    """
    from lm_eval.api.metrics import mean

    first = leaves[0]
    aggregations = [leaf.aggregation() for leaf in leaves]
    pairs = ("likelihood", "bypass")  # one document has no number
    means = [
        name
        for name, function in aggregations[0].items()
        if name not in pairs and all(other.get(name) is mean for other in aggregations)
    ]
    smooth = has_log_likelihood(leaves)
    known = [*means, *["log_likelihood"] * smooth]
    for name in filter(None, (metric, *asked)):
        if name in known:
            continue
        if "," in name:
            bare, _, ensemble = name.partition(",")
            raise task_error(task, f"unknown metric `{name}`; write `metric: {bare}` and `filter: {ensemble}`")
        if name in aggregations[0]:
            instead = f"; expected one of {', '.join(known)}" if known else ""
            msg = f"`{name}` is computed from all documents together, and is no mean of scores of each{instead}"
            raise task_error(task, msg)
        raise task_error(task, f"unknown metric `{name}`; {nearest(name, known)}")
    if not known:
        names = ", ".join(aggregations[0])
        raise task_error(
            task, f"none of its metrics is a mean of scores of each document: {names}; expected another task"
        )
    chosen = metric or known[0]
    declared = []
    for name in dict.fromkeys([chosen, *means]):
        if name == "log_likelihood":
            continue
        share = name.startswith(("acc", "exact_match")) and is_better_higher(first, name)
        margins = MARGINS if keep_margins and name == decided(chosen, means) else None
        declared.append(Metric(name, 0.0, 1.0, margins=margins) if share else Metric(name))
    if smooth:
        declared.append(Metric("log_likelihood", LOG_LIKELIHOOD.low, LOG_LIKELIHOOD.high, smooth=True))
    return declared


def decided(metric: str, means: Sequence[str]) -> str:
    """Return the accuracy that merits decide: `metric` if it is one, else `acc`."""
    return metric if metric in _LENGTHS and metric in means else "acc"


def has_log_likelihood(leaves: Sequence[Any]) -> bool:
    """Return whether each document has a log-likelihood: of its target, or of the right one among its choices."""
    return all(
        leaf.OUTPUT_TYPE in {"loglikelihood", "multiple_choice"}
        and hasattr(leaf, "multiple_input")
        and not callable(leaf.config.process_results)
        for leaf in leaves
    )


def is_better_higher(leaf: Any, metric: str) -> bool:
    """Return whether a larger value of the harness's `metric` is better."""
    return bool(leaf.higher_is_better().get(metric, True))


def right_choices(task: str, leaf: Any, document: Any) -> tuple[list[str], list[int]]:
    """Return a document's choices, and the positions of the right ones. Raises `TaskError` where none is right, or all are."""
    texts = list(leaf.doc_to_choice(document))
    gold = leaf.doc_to_text(document) if leaf.multiple_input else leaf.doc_to_target(document)
    listed = gold if isinstance(gold, list) else [gold]
    right = [texts.index(one) if isinstance(one, str) and one in texts else one for one in listed]
    right = sorted({one for one in right if isinstance(one, int) and 0 <= one < len(texts)})
    if not right or len(right) == len(texts):
        msg = f"a document of `{leaf.task_name}` has the target {gold!r}; expected a right one, and a wrong one, among {texts}"
        raise task_error(task, msg)
    return texts, right


def choices(task: str, leaf: Any, document: Any, responses: Sequence[Any], metric: str) -> Choices:
    """Return the choices of a document from the harness's filtered responses, (log-likelihood, is greedy) of each choice."""
    texts, right = right_choices(task, leaf, document)
    sums = np.array([response[0] for response in responses[: len(texts)]], dtype=np.float64)
    length = _LENGTHS.get(metric)
    return Choices(sums if length is None else sums / [length(text) for text in texts], right)


def numbers(task: str, leaf: Any, results: Any, metrics: Sequence[str]) -> dict[str, float]:
    """Return a document's scores from the harness's results, those negated of which less is better.

    Raises `TaskError` for a metric without one number.
    """
    found = {}
    for metric in metrics:
        value = results.get(metric)
        if not isinstance(value, bool | int | float | np.number | np.bool_):
            msg = (
                f"`{leaf.task_name}` gives a document no number for `{metric}`, but {value!r}; set `metric` to another"
            )
            raise task_error(task, msg)
        found[metric] = float(value) if is_better_higher(leaf, metric) else -float(value)
    return found
