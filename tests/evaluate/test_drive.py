"""`drive` records before it acts, fills all slots, and ends when there is nothing left to evaluate."""

import signal
from contextlib import suppress

import pytest

from evomerge import interrupts, journal
from evomerge.evaluate import Evaluator, drive
from evomerge.journal import Journal
from evomerge.recipe import base
from evomerge.trial import Evaluation, Proposal


class LastFirst(Evaluator):
    """Returns the last submitted proposal first, and checks that it was recorded before it was submitted."""

    def __init__(self, path, slots):
        self.path, self.slots = path, slots
        self.lineage = {}
        self.queue = []
        self.longest = 0

    def submit(self, proposal):
        assert proposal.number in [event.number for event in journal.read(self.path) if isinstance(event, Proposal)]
        assert self.lineage[proposal.recipe.id] == proposal.recipe
        self.queue.append(proposal.number)
        self.longest = max(self.longest, len(self.queue))

    def wait(self):
        return self.queue.pop(), Evaluation(error=f"error {len(self.queue)}")


def test_every_proposal_is_recorded_evaluated_and_yielded_once(tmp_path):
    path = tmp_path / "journal.jl"
    evaluator = LastFirst(path, slots=3)
    evaluator.lineage[base().id] = base()
    with Journal(path) as record:
        first = Proposal(0, base())
        record.ask(first)
        pending = {0: first}
        proposals = (Proposal(number, base()) for number in range(1, 8))
        completed = []
        for proposal, evaluation in drive(evaluator, record, lambda: next(proposals, None), pending):
            event = journal.read(path)[-1]
            assert (event.number, event.evaluation.error) == (proposal.number, evaluation.error)
            completed.append(proposal.number)
            assert set(pending) == set(evaluator.queue)
    assert sorted(completed) == list(range(8))
    assert completed[:2] == [2, 3]
    assert completed[-1] == 0
    assert evaluator.longest == 3


def test_asks_again_after_each_evaluation_until_nothing_is_pending(tmp_path):
    """None means "nothing until something is told", not the end, while proposals are pending."""
    evaluator = LastFirst(tmp_path / "journal.jl", slots=2)
    answers = [Proposal(0, base()), None, Proposal(1, base()), None, None]
    with Journal(tmp_path / "journal.jl") as record:
        completed = [p.number for p, _ in drive(evaluator, record, lambda: answers.pop(0))]
    assert completed == [0, 1]
    assert answers == []


def test_an_interrupt_that_was_swallowed_stops_the_loop_and_keeps_what_is_finished(tmp_path):
    class Swallowing(LastFirst):
        def wait(self):
            if len(asked) == 3:
                with suppress(KeyboardInterrupt):  # as in a callback of an extension module
                    signal.raise_signal(signal.SIGTERM)
            return super().wait()

    path, asked = tmp_path / "journal.jl", []

    def ask():
        asked.append(Proposal(len(asked), base()))
        return asked[-1]

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    evaluator = Swallowing(path, slots=1)
    evaluator.lineage[base().id] = base()
    try:
        interrupts.install()
        with Journal(path) as record, pytest.raises(KeyboardInterrupt):
            for _ in drive(evaluator, record, ask):
                pass
    finally:
        interrupts.install()  # forgets the interrupt
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(asked) == 3
    assert sum(evaluation is not None for _, evaluation in journal.events(path)) == 3
