"""ServedTask: a task that an inference engine can score, as well as a module of transformers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from evomerge.models import EngineModel, TextModel
from evomerge.tasks.data import task_error
from evomerge.tasks.task import Scores, Task
from evomerge.trial import Split


class ServedTask(Task):
    """A task whose scores follow from generated tokens and log-likelihoods of given ones. Abstract: a subclass writes `serve`."""

    unserved: ClassVar[tuple[str, ...]] = ()
    """The metrics that need more than that."""

    @abstractmethod
    def check(self, model: TextModel) -> None:
        """Raise `TaskError` where no candidate on the base of `model` could be scored, before the first one is."""

    @abstractmethod
    def serve(self, engine: EngineModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return what `score` does, up to rounding, of the model in an engine."""


def check_served(tasks: Sequence[Task]) -> None:
    """Raise `TaskError` for the first of `tasks` that an engine cannot score."""
    kinds = "generation, multiple_choice, language_modelling and lm_eval"
    for task in tasks:
        if not isinstance(task, ServedTask):
            msg = f"kind `{task.kind}` reads a module of transformers; an engine scores tasks of kind {kinds}; leave out `engine`"
            raise task_error(task.name, msg)
        for key, metric in (("search_metric", task.search_metric), ("report_metric", task.report_metric)):
            if metric in task.unserved:
                others = " or ".join(f"`{name}`" for name in task.metrics if name not in task.unserved)
                msg = f"`{key}: {metric}` needs the whole distribution of each token, which an engine does not give; expected {others}; or leave out `engine`"
                raise task_error(task.name, msg)
