"""Remembering: an evaluator that evaluates no recipe twice."""

from collections import deque
from collections.abc import Collection
from dataclasses import replace

from evomerge.evaluate.evaluator import Evaluator
from evomerge.trial import Evaluation, Proposal, Split

Key = tuple[str, Split]


class Remembering(Evaluator):
    """Answers from what is known of a recipe on a split, and asks another evaluator for the rest.

    What is known is what came back, and what the study puts in by `know`. Equal recipes that are in flight at
    once are evaluated once, and all get that answer. Failures are not remembered: proposed again, the recipe
    is tried again.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        """Remember what `evaluator` finds. It is closed with this one."""
        self._evaluator = evaluator
        self.slots = evaluator.slots
        self.lineage = evaluator.lineage
        self._known: dict[Key, Evaluation] = {}
        self._answered: deque[tuple[int, Evaluation]] = deque()
        self._flying: dict[Key, list[int]] = {}
        self._key: dict[int, Key] = {}

    def know(self, recipe_id: str, split: Split, evaluation: Evaluation) -> None:
        """Remember an evaluation that was made before; a failed one is let pass."""
        if evaluation.error is None:
            self._known[recipe_id, split] = replace(evaluation, seconds={})  # the next answer takes none

    def submit(self, proposal: Proposal) -> None:
        """Take a proposal, and have it evaluated unless its recipe is known or already in flight."""
        key = (proposal.recipe.id, proposal.split)
        if key in self._known:
            self._answered.append((proposal.number, self._known[key]))
        elif key in self._flying:
            self._flying[key].append(proposal.number)
        else:
            self._evaluator.submit(proposal)
            self._flying[key] = [proposal.number]
            self._key[proposal.number] = key

    def wait(self) -> tuple[int, Evaluation]:
        """Return what is known at once, else what the other evaluator finds."""
        if self._answered:
            return self._answered.popleft()
        number, evaluation = self._evaluator.wait()
        key = self._key.pop(number)
        self.know(*key, evaluation)
        same = replace(evaluation, seconds={})
        self._answered.extend((other, same) for other in self._flying.pop(key) if other != number)
        return number, evaluation

    def retain(self, members: Collection[str]) -> None:
        """Pass it on."""
        self._evaluator.retain(members)

    def close(self) -> None:
        """Close the other evaluator. What is known stays known."""
        self._evaluator.close()
