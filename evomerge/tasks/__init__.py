"""ONE IDEA: a model and indices of examples give score vectors, one entry per example, higher is better.

`make` builds a task from its settings in a study's YAML. An objective is named `task/metric`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.errors import TaskError, nearest
from evomerge.plugins import Table, is_settings_and_factory
from evomerge.recipe import describe
from evomerge.tasks.classification import Classification, ClassificationSettings
from evomerge.tasks.data import task_error
from evomerge.tasks.defaults import complete
from evomerge.tasks.function import Function, FunctionSettings, Range
from evomerge.tasks.generation import Generation, GenerationSettings
from evomerge.tasks.harness import LmEval, LmEvalSettings
from evomerge.tasks.language_modelling import LanguageModelling, LanguageModellingSettings
from evomerge.tasks.multiple_choice import MultipleChoice, MultipleChoiceSettings
from evomerge.tasks.python import PythonTask
from evomerge.tasks.task import Scores, Task, TaskSettings

__all__ = ["KINDS", "PythonTask", "Scores", "Task", "TaskSettings", "complete", "make"]

KINDS: Mapping[str, tuple[type[TaskSettings], Callable[..., Task]]] = Table(
    "evomerge.tasks",
    {
        "classification": (ClassificationSettings, Classification),
        "language_modelling": (LanguageModellingSettings, LanguageModelling),
        "multiple_choice": (MultipleChoiceSettings, MultipleChoice),
        "generation": (GenerationSettings, Generation),
        "lm_eval": (LmEvalSettings, LmEval),
        "callable": (FunctionSettings, Function),
    },
    "(settings model, function of name, settings and folder)",
    is_settings_and_factory,
)
"""The tasks by `kind:`: their settings, and the function that makes one from a name, checked settings and a folder."""


def make(name: str, settings: Mapping[str, Any], folder: Path) -> Task:
    """Return the task of `settings`, with its examples read and checked; relative paths start at `folder`.

    Raises `TaskError` for an unknown key or kind, and for data that are missing, empty, malformed, or shared by both
    splits.
    """
    if isinstance(settings, PythonTask):
        return settings.make(name)
    kind = str(settings.get("kind"))
    if kind == "python":
        msg = f"is a Python function, `{settings.get('function')}`; open the study from Python, by `evomerge.create_study` with that task"
        raise task_error(name, msg)
    if kind not in KINDS:
        raise task_error(name, f"expected a `kind`, got `{kind}`; {nearest(kind, KINDS)}")
    schema, new = KINDS[kind]
    try:
        checked = schema.model_validate(dict(settings))
    except ValidationError as error:
        keys = {"": tuple(schema.model_fields), "metrics": tuple(Range.model_fields)}
        raise TaskError(describe(error, f"task `{name}`", keys)) from None
    return new(name, checked, Path(folder))
