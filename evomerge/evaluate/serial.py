"""Serial: evaluates in this process, one proposal after the other, while `wait` is called."""

from collections import deque
from collections.abc import Collection

from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.evaluate.worker import Setup, Worker
from evomerge.trial import Evaluation, Proposal


class Serial(Evaluator):
    """The evaluator without a second process: no start-up, but a candidate that kills it kills the study."""

    slots = 1

    def __init__(self, setup: Setup) -> None:
        """Evaluate what `setup` describes. Nothing is loaded before the first evaluation."""
        self._worker = Worker(setup)
        self.lineage = self._worker.members.lineage
        self._line: deque[Proposal] = deque()

    def submit(self, proposal: Proposal) -> None:
        """Put the proposal in line."""
        self._line.append(proposal)

    def wait(self) -> tuple[int, Evaluation]:
        """Evaluate the proposal that was submitted first."""
        if not self._line:
            msg = "no proposal is in flight; submit one before waiting"
            raise EvaluatorError(msg)
        proposal = self._line.popleft()
        return proposal.number, self._worker.evaluate(proposal.recipe, proposal.split, proposal.examples)

    def retain(self, members: Collection[str]) -> None:
        """Let go of the weights of all earlier candidates but these."""
        self._worker.members.retain(members)

    def close(self) -> None:
        """Forget what is in line."""
        self._line.clear()
