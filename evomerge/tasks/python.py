"""A Python function and its examples as a task, in a study that is created from Python."""

import hashlib
import inspect
import json
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

        Raises `TaskError` for a split without examples.
        """
        self.function = function
        self.examples: Mapping[Split, Sequence[Any]] = {"search": list(search), "report": list(report)}
        for split, examples in self.examples.items():
            if not examples:
                msg = f"`{split}` has no examples; expected at least one, such as `{split}=questions[:200]`"
                raise TaskError(msg)
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt, or built in
            code = getattr(function, "__code__", None)
            source = "" if code is None else code.co_code.hex()
        digest = hashlib.sha256(f"{source}\n{json.dumps(self.examples, default=repr)}".encode()).hexdigest()
        where = f"{function.__module__}:{getattr(function, '__qualname__', 'function')}"
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
