"""Evaluator: the protocol by which proposals are evaluated; and `drive`, the loop over it of searches and reports."""

from collections.abc import Callable, Collection, Iterator
from typing import Protocol, Self

from evomerge import interrupts
from evomerge.journal import Journal
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Proposal


class Evaluator(Protocol):
    """Takes proposals and returns evaluations, in the order in which they finish. Not to be confused with a driver, which proposes.

    The rules, which `evomerge.testing.EvaluatorSuite` checks:

    - Every submitted proposal comes back from `wait` exactly once, under its number, even if its process dies. A failing
      candidate gets an `Evaluation.error`, never an exception.
    - An evaluation depends on the recipe, the split and the examples alone: not on earlier evaluations, the number of
      slots or the order of submission. Two evaluators with the same setup give the same bytes.
    - For a proposal with `examples`, exactly these are scored: the vectors are in their order, and tasks that are not
      named have none. (`CachingEvaluator` may have scored some of them earlier in other batches: equal up to rounding.)
    - Any number of proposals may be submitted; up to `slots` of them run at a time, the others are queued.
    - An exception from `submit` or `wait` means that no candidate can be evaluated: `EvaluatorError`, or any exception of
      the setup's models and tasks.
    """

    slots: int
    """How many proposals run at a time. `wait` may change it, as workers come and go."""

    lineage: dict[str, Recipe]
    """Recipes of earlier candidates by id. Before a proposal that names members is submitted, they and their ancestors must be here."""

    def submit(self, proposal: Proposal) -> None:
        """Queue a proposal. No other pending proposal may have its number."""

    def wait(self) -> tuple[int, Evaluation]:
        """Wait for one evaluation and return it with its number. Raises `EvaluatorError` if no proposal is pending."""

    def retain(self, members: Collection[str]) -> None:
        """Delete the weights of all earlier candidates except these ids. Their lineage is enough to build them again."""

    def close(self) -> None:
        """Release everything and drop pending proposals. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def drive(
    evaluator: Evaluator,
    journal: Journal,
    ask: Callable[[], Proposal | None],
    pending: dict[int, Proposal] | None = None,
) -> Iterator[tuple[Proposal, Evaluation]]:
    """Evaluate the proposals of `ask`, and yield each with its evaluation, until `ask` returns None and none is pending.

    A proposal is in the journal before it is submitted, an evaluation before it is yielded. `ask` is called while the
    evaluator has free slots, and again after the caller has dealt with an evaluation. `pending` has the submitted
    proposals by number, and is kept up to date for the caller; those in it at the start are in the journal already and
    are submitted first.
    """
    pending = {} if pending is None else pending
    for proposal in pending.values():
        evaluator.submit(proposal)
    while True:
        interrupts.check()
        while len(pending) < evaluator.slots and (asked := ask()) is not None:
            journal.ask(asked)
            evaluator.lineage[asked.recipe.id] = asked.recipe
            evaluator.submit(asked)
            pending[asked.number] = asked
        if not pending:
            return
        number, evaluation = evaluator.wait()
        journal.tell(number, evaluation)
        yield pending.pop(number), evaluation
