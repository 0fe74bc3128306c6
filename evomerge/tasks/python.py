"""A Python function and its examples as a task, in a study that is created from Python."""

import hashlib
import inspect
import json
import marshal
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks.function import Function, FunctionSettings
from evomerge.tasks.task import Task
from evomerge.trial import Split


class PythonTask(UserDict[str, Any]):
    """A function that scores a model, with its examples. Not a `Task` yet: a study gives it its name.

    As a mapping it is the settings that identify it in a study's record: the function's name, and a digest of its source and
    of the examples.
    """

    def __init__(
        self,
        function: Callable[[LiveModel, Sequence[Any]], Any],
        search: Sequence[Any],
        report: Sequence[Any],
        metrics: Sequence[str] = ("score",),
        gradient: Callable[[LiveModel, Sequence[Any]], Any] | None = None,
        batch: int = 8,
        *,
        keep_margins: bool = False,
    ) -> None:
        """Take the function: `function(model, examples)` returns one score per example, or a mapping from metric to scores.

        `gradient(model, examples)` returns the first metric as a torch tensor that autograd can differentiate, for up to
        `batch` examples. With `keep_margins` the function's mapping also has `margins`, see `evomerge tasks callable`.

        Raises `TaskError` for anything but a function, a split without examples, and examples that have no digest.
        """
        functions = [function] if gradient is None else [function, gradient]
        for one in functions:
            if not inspect.isfunction(one):
                raise TaskError(f"expected a function of (model, examples), got {one!r}; wrap it in a `def`")
        if isinstance(metrics, str) or not metrics:
            raise TaskError(f"`metrics` is {metrics!r}; expected a list of names, such as ['score']")
        if keep_margins and "accuracy" not in metrics:
            raise TaskError(f"`keep_margins` is about the metric `accuracy`; expected it in `metrics`, got {metrics!r}")
        if batch < 1:
            raise TaskError(f"`batch` is {batch}; expected 1 or more")
        self.function, self.gradient = function, gradient
        self.examples: Mapping[Split, Sequence[Any]] = {"search": search, "report": report}
        for split, examples in self.examples.items():
            if not isinstance(examples, Sequence | np.ndarray) or not len(examples):
                msg = f"`{split}` has no list of examples; expected at least one, such as `{split}=questions[:200]`"
                raise TaskError(msg)
        try:
            examples_json = json.dumps(
                {split: list(values) for split, values in self.examples.items()}, default=_digest
            )
        except (TypeError, ValueError) as error:
            msg = f"examples have no digest ({error}); expected texts, numbers, arrays, or lists and mappings of them"
            raise TaskError(msg) from None
        sources = [_source(one) for one in functions]
        digest = hashlib.sha256("\n".join([*sources, examples_json]).encode()).hexdigest()
        super().__init__(kind="python", function=_where(function), digest=digest, metrics=list(metrics))
        if gradient is not None:
            self.update(gradient=_where(gradient), batch=batch)
        if keep_margins:
            self.update(keep_margins=True)

    def make(self, name: str) -> Task:
        """Return the task of this `name`."""
        sizes = {split: len(examples) for split, examples in self.examples.items()}
        more = {key: self[key] for key in ("batch", "keep_margins") if key in self}
        if self.gradient:
            more["gradient"] = "python:gradient"
        settings = FunctionSettings.model_validate(
            {"kind": "callable", "function": "python:task", "metrics": self["metrics"], **sizes, **more}
        )
        gradient = None if self.gradient is None else self._on_examples(self.gradient)
        return Function(name, settings, Path(), self._on_examples(self.function), gradient)

    def _on_examples(self, function: Callable[[LiveModel, Sequence[Any]], Any]) -> Callable[..., Any]:
        """Return the function of examples as one of their split and indices."""

        def by_index(model: LiveModel, split: Split, indices: Sequence[int]) -> Any:
            return function(model, [self.examples[split][index] for index in indices])

        return by_index


def _source(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or built in
        return marshal.dumps(function.__code__).hex()


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _digest(value: Any) -> list[str]:
    """Return shape, dtype and content of an array or tensor as JSON data. Raises `TypeError` for other objects."""
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{type(value).__name__} object")
    return [str(array.shape), str(array.dtype), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
