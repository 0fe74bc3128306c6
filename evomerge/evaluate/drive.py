"""drive: the loop of searches and reports. Ask, submit, wait, with a journal of every step."""

from collections.abc import Callable, Iterator

from evomerge.evaluate.evaluator import Evaluator
from evomerge.journal import Journal
from evomerge.trial import Evaluation, Proposal


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
