"""RemoteWorker: a `Worker` in a process that only it uses. `evaluate.ray` makes it an actor; this module does not import ray."""

import json
import os
import signal
from collections.abc import Mapping

from evomerge.evaluate.worker import Setup, Worker, describe
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Examples, Split


class RemoteWorker:
    """A worker whose arguments and results can be sent between processes: recipe JSON in, score vectors out."""

    def __init__(self, setup: Setup) -> None:
        """Let SIGTERM end the process, so this must run in its main thread."""
        # Python's own way, SystemExit, would look like an error of the candidate.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
        self._worker = Worker(setup, alone=False)

    def prepare(self) -> str | None:
        """Load models and tasks. Return None, or the error as text (exceptions may not be picklable)."""
        try:
            self._worker.prepare()
        except Exception as error:  # noqa: BLE001  # models and tasks may raise anything
            return describe(error)
        return None

    def evaluate(self, recipe: str, split: Split, examples: Examples | None, lineage: Mapping[str, str]) -> Evaluation:
        """Return the evaluation of a recipe in JSON. `lineage` has the recipes of its ancestors, in JSON, by id."""
        for identity, ancestor in lineage.items():
            if identity not in self._worker.members.lineage:
                self._worker.members.lineage[identity] = Recipe.parse(json.loads(ancestor))
        return self._worker.evaluate(Recipe.parse(json.loads(recipe)), split, examples)
