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
    ) -> None:
        """Take the function: `function(model, examples)` returns one score per example, or a mapping from metric to scores.

        Raises `TaskError` for anything but a function, a split without examples, and examples that have no digest.
        """
        if not inspect.isfunction(function):
            raise TaskError(f"expected a function of (model, examples), got {function!r}; wrap it in a `def`")
        if isinstance(metrics, str) or not metrics:
            raise TaskError(f"`metrics` is {metrics!r}; expected a list of names, such as ['score']")
        self.function = function
        self.examples: Mapping[Split, Sequence[Any]] = {"search": search, "report": report}
        for split, examples in self.examples.items():
            if not isinstance(examples, Sequence | np.ndarray) or not len(examples):
                msg = f"`{split}` has no list of examples; expected at least one, such as `{split}=questions[:200]`"
                raise TaskError(msg)
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt, or built in
            source = marshal.dumps(function.__code__).hex()
        try:
            examples_json = json.dumps(
                {split: list(values) for split, values in self.examples.items()}, default=_digest
            )
        except (TypeError, ValueError) as error:
            msg = f"examples have no digest ({error}); expected texts, numbers, arrays, or lists and mappings of them"
            raise TaskError(msg) from None
        digest = hashlib.sha256(f"{source}\n{examples_json}".encode()).hexdigest()
        where = f"{function.__module__}:{function.__qualname__}"
        super().__init__(kind="python", function=where, digest=digest, metrics=list(metrics))

    def make(self, name: str) -> Task:
        """Return the task of this `name`."""
        sizes = {split: len(examples) for split, examples in self.examples.items()}
        settings = FunctionSettings.model_validate(
            {"kind": "callable", "function": "python:task", "metrics": self["metrics"], **sizes}
        )
        return Function(name, settings, Path(), self._score)

    def _score(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Any:
        return self.function(model, [self.examples[split][index] for index in indices])


def _digest(value: Any) -> list[str]:
    """Return shape, dtype and content of an array or tensor as JSON data. Raises `TypeError` for other objects."""
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{type(value).__name__} object")
    return [str(array.shape), str(array.dtype), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
