"""CachingEvaluator: an evaluator that scores no example of a recipe twice."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace

from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.trial import Evaluation, Examples, Proposal, ScoreTable, Split

Key = tuple[str, Split]


class CachingEvaluator(Evaluator):
    """Answers from what is known of a recipe on a split, and asks another evaluator for the rest.

    What is known is what came back, and what the study puts in by `know`: whole evaluations, and parts of them. Of a
    proposal of which some examples are known, only the others are scored, and the answer is put together. A recipe is in
    flight once at a time on a split: whoever proposes it meanwhile waits, and is looked at again when it is back, so
    equal proposals are evaluated once, and all get that answer. Failures are shared like that, but not remembered:
    proposed again, the recipe is tried again.
    """

    def __init__(self, evaluator: Evaluator, sizes: Mapping[Split, Mapping[str, int]] | None = None) -> None:
        """Remember what `evaluator` finds. It is closed with this one.

        `sizes` says how many examples each task has in a split. None is enough where nobody proposes parts.
        """
        self._evaluator = evaluator
        self.slots = evaluator.slots
        self.lineage = evaluator.lineage
        self._sizes = sizes
        self._whole: dict[Key, Evaluation] = {}
        self._parts: dict[Key, ScoreTable] = {}  # of recipes that are not known whole
        self._answered: deque[tuple[int, Evaluation]] = deque()
        self._flying: dict[int, tuple[Proposal, Examples | None]] = {}  # by number, and what of it is being scored
        self._waiting: dict[Key, list[Proposal]] = {}  # has every recipe that is in flight, and who waits for it

    def seed(self, recipe_id: str, split: Split, evaluation: Evaluation, examples: Examples | None = None) -> None:
        """Remember an evaluation that was made before, of all examples or of these; a failed one is let pass."""
        key = recipe_id, split
        if evaluation.error is not None or key in self._whole:
            return
        if examples is not None:
            known = self._parts.setdefault(key, self._scored(key))
            known.add(examples, evaluation)
            if not known.complete:
                return
            evaluation = known.take()
        self._whole[key] = replace(evaluation, seconds={})  # the next answer takes none
        self._parts.pop(key, None)

    def lookup(self, recipe_id: str, split: Split) -> Evaluation | None:
        """Return the whole evaluation of a recipe, if it is known."""
        return self._whole.get((recipe_id, split))

    def submit(self, proposal: Proposal) -> None:
        """Take a proposal, and have scored what is not known of it, unless its recipe is in flight."""
        key = proposal.recipe.id, proposal.split
        if key in self._waiting:
            self._waiting[key].append(proposal)
            return
        missing = proposal.examples
        if proposal.examples is None and key in self._whole:
            self._answered.append((proposal.number, self._whole[key]))
            return
        if proposal.examples is not None or key in self._parts:
            known = self._scored(key)
            missing = known.missing(proposal.examples)
            if not missing:
                self._answered.append((proposal.number, known.take(proposal.examples)))
                return
        self._evaluator.submit(replace(proposal, examples=missing))
        self._flying[proposal.number] = proposal, missing
        self._waiting[key] = []

    def wait(self) -> tuple[int, Evaluation]:
        """Return what is known at once, else what the other evaluator finds."""
        if self._answered:
            return self._answered.popleft()
        number, evaluation = self._evaluator.wait()
        proposal, scored = self._flying.pop(number)
        key = proposal.recipe.id, proposal.split
        self.seed(*key, evaluation, scored)
        for other in self._waiting.pop(key):
            if evaluation.error is None:
                self.submit(other)
            else:
                self._answered.append((other.number, replace(evaluation, seconds={})))
        if evaluation.error is None and scored is not None and scored != proposal.examples:
            together = self._scored(key).take(proposal.examples)
            evaluation = replace(together, seconds=evaluation.seconds)
        return number, evaluation

    def retain(self, members: Collection[str]) -> None:
        """Pass it on."""
        self._evaluator.retain(members)

    def close(self) -> None:
        """Close the other evaluator. What is known stays known."""
        self._evaluator.close()

    def _scored(self, key: Key) -> ScoreTable:
        """Return what is known of a recipe on a split, example by example."""
        if key in self._parts:
            return self._parts[key]
        if self._sizes is None:
            msg = "a part of a recipe's examples was proposed; expected `sizes` to say what the whole is: type CachingEvaluator(evaluator, sizes)"
            raise EvaluatorError(msg)
        known = ScoreTable(self._sizes[key[1]])
        if key in self._whole:
            known.add(None, self._whole[key])
        return known
