"""Serial: an evaluator in this process, one proposal at a time."""

from collections import deque
from collections.abc import Collection

from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.setup import Setup
from evomerge.evaluate.worker import Worker
from evomerge.trial import Evaluation, Proposal


class Serial(Evaluator):
    """Evaluates during `wait`, in this process: nothing to start, but a candidate that kills its process ends the study."""

    slots = 1

    def __init__(self, setup: Setup) -> None:
        self._worker = Worker(setup)
        self.lineage = self._worker.members.lineage
        self._queue: deque[Proposal] = deque()

    def submit(self, proposal: Proposal) -> None:
        """Queue the proposal."""
        self._queue.append(proposal)

    def wait(self) -> tuple[int, Evaluation]:
        """Evaluate the proposal that was submitted first."""
        if not self._queue:
            raise EvaluatorError("no proposal is pending; submit one before waiting")
        proposal = self._queue.popleft()
        return proposal.number, self._worker.evaluate(
            proposal.recipe, proposal.split, proposal.examples, proposal.slopes
        )

    def retain(self, members: Collection[str]) -> None:
        """Delete the weights of all earlier candidates except these."""
        self._worker.members.retain(members)

    def close(self) -> None:
        """Drop the queue, and end the engine, if there is one."""
        self._queue.clear()
        self._worker.close()
