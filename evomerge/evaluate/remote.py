"""RemoteWorker: a worker with a process of its own, which it may take down. `evaluate.ray` houses it."""

import json
import os
import signal
from collections.abc import Mapping

from evomerge.evaluate.worker import Setup, Worker, describe
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Examples, Split


class RemoteWorker:
    """A worker whose arguments and results can cross processes: only recipe JSON in, only vectors out."""

    def __init__(self, setup: Setup) -> None:
        """Take over the process's main thread."""
        # Python's own way, SystemExit, would look like a candidate that wanted to exit.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        self._worker = Worker(setup, alone=False)

    def prepare(self) -> str | None:
        """Return when candidates can be evaluated: None, or what is wrong (exceptions may not cross)."""
        try:
            self._worker.prepare()
        except Exception as error:  # noqa: BLE001  # models and tasks may raise anything
            return describe(error)
        return None

    def evaluate(self, recipe: str, split: Split, examples: Examples | None, lineage: Mapping[str, str]) -> Evaluation:
        """Return the evaluation of a recipe, given as JSON, as are those of the earlier candidates that it is made of."""
        for identity, known in lineage.items():
            if identity not in self._worker.members.lineage:
                self._worker.members.lineage[identity] = Recipe.parse(json.loads(known))
        return self._worker.evaluate(Recipe.parse(json.loads(recipe)), split, examples)
