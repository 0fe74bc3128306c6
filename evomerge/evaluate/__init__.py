"""Evaluation of proposals, in this process or in worker processes. Every evaluator gives the same scores.

`make` chooses an evaluator, `QueueEvaluator` shares a folder with workers on any machine; `CachingEvaluator` wraps one so that no example of a recipe is scored twice; `drive` is the
loop over an evaluator and a journal.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from evomerge.evaluate.caching import CachingEvaluator
from evomerge.evaluate.evaluator import Evaluator, drive
from evomerge.evaluate.fleet import Fleet
from evomerge.evaluate.folder_queue import QueueEvaluator
from evomerge.evaluate.serial import Serial
from evomerge.evaluate.setup import Setup
from evomerge.evaluate.worker import Worker

__all__ = ["CachingEvaluator", "Evaluator", "Fleet", "QueueEvaluator", "Serial", "Setup", "Worker", "drive", "make"]


def make(
    setup: Setup,
    workers: int | Fleet = 1,
    deadline: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    digests: Mapping[str, str] = MappingProxyType({}),
) -> Evaluator:
    """Return an evaluator: in this process for one worker, Ray actors for more, and for a `Fleet`.

    `deadline` is the maximum number of seconds per candidate, None for no limit. Enforcing it needs a second process, so
    with a deadline one worker is a Ray actor too. `say` is called with a line while workers have no room. `digests` are those
    that the pool's models must have wherever a worker runs. Raises `EvaluatorError`.
    """
    if workers == 1 and deadline is None:
        return Serial(setup)
    from evomerge.evaluate.ray import RayEvaluator  # importing ray takes a second

    return RayEvaluator(setup, workers, deadline, say, digests)
