"""Runs proposals somewhere: in this process, or in worker processes. Every evaluator gives the same scores.

`make` chooses an evaluator, `CachingEvaluator` wraps one so that no recipe is evaluated twice.
"""

from evomerge.errors import EvaluatorError
from evomerge.evaluate.caching import CachingEvaluator
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.serial import Serial
from evomerge.evaluate.worker import Setup, Worker

__all__ = ["CachingEvaluator", "Evaluator", "Serial", "Setup", "Worker", "make"]


def make(setup: Setup, workers: int = 1, deadline: float | None = None) -> Evaluator:
    """Return an evaluator: in this process for one worker, Ray actors for more.

    `deadline` is the most seconds that a candidate may take, None for no limit. It needs a second process to
    be held, so it also makes one worker a Ray actor. Raises `EvaluatorError`.
    """
    if workers < 1:
        msg = f"`workers` must be at least 1, got {workers}; type --workers 1"
        raise EvaluatorError(msg)
    if workers == 1 and deadline is None:
        return Serial(setup)
    from evomerge.evaluate.ray import RayEvaluator  # takes a second

    return RayEvaluator(setup, workers, deadline)
