"""Evaluator: what runs proposals, as a study sees it."""

from collections.abc import Collection
from typing import Protocol, Self

from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal


class Evaluator(Protocol):
    """Takes proposals and gives evaluations back, in whatever order they finish. A driver does the reverse.

    The rules, which `evomerge.testing.EvaluatorSuite` checks:

    - Every submitted proposal comes back from `wait` exactly once, under its number, whatever happens to it
      or to the process that evaluates it. What a candidate did wrong is its `Evaluation.error`, never an
      exception.
    - An evaluation depends on the recipe, the split and the examples alone: not on what was evaluated before, on the
      number of slots or on the order of submission. Two evaluators with the same setup give the same bytes.
    - Of a proposal with `examples`, these are scored and no others: the vectors are in their order, and there are none of
      a task that is not named. (`CachingEvaluator` has scored what it knows already, perhaps in other batches: up to rounding
      that is the same.)
    - Any number of proposals may be submitted; up to `slots` of them run at a time, the others wait in line.
    - An exception from `submit` or `wait` means that no candidate can be evaluated: `EvaluatorError`, or what
      the setup's models and tasks raise.
    """

    slots: int

    lineage: dict[str, Recipe]
    """The recipes of earlier candidates by id. Whoever submits a recipe that names some puts theirs here, and their ancestors'."""

    def submit(self, proposal: Proposal) -> None:
        """Take a proposal. Its number must not be that of another one in flight."""

    def wait(self) -> tuple[int, Evaluation]:
        """Wait for one more evaluation; return it with its number. `EvaluatorError` if none is due."""

    def retain(self, members: Collection[str]) -> None:
        """Let go of the weights of all earlier candidates but these, by id; they can be made again from their lineage."""

    def close(self) -> None:
        """Let go of everything, also of what is in flight. Closing twice is closing once."""

    def __enter__(self) -> Self:
        """Return the evaluator itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()
