"""Resident: a worker with a process of its own, which it may take down. `evaluate.ray` houses it."""

import json
import os
import signal

from evomerge.evaluate.worker import Setup, Worker, describe
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Split


class Resident:
    """A worker whose arguments and results can cross processes: only recipe JSON in, only vectors out."""

    def __init__(self, setup: Setup) -> None:
        """Take over the process's main thread."""
        # Python's own way, SystemExit, would look like a candidate that wanted to exit.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        self._worker = Worker(setup)

    def prepare(self) -> str | None:
        """Return when candidates can be evaluated: None, or what is wrong (exceptions may not cross)."""
        try:
            self._worker.prepare()
        except Exception as error:  # noqa: BLE001  # models and tasks may raise anything
            return describe(error)
        return None

    def evaluate(self, recipe: str, split: Split) -> Evaluation:
        """Return the evaluation of a recipe, given as JSON."""
        return self._worker.evaluate(Recipe.parse(json.loads(recipe)), split)
