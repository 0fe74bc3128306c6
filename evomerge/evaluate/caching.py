"""CachingEvaluator: an evaluator that scores no example of a recipe twice."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace

from evomerge.errors import EvaluatorError
from evomerge.evaluate.evaluator import Evaluator
from evomerge.trial import Evaluation, Examples, Proposal, ScoreTable, Split

Key = tuple[str, Split]


class CachingEvaluator(Evaluator):
    """Answers from a cache of scores, by recipe and split, and has another evaluator score the rest.

    The cache holds the scores that came back and those that the study adds by `seed`, of all examples or of a part. Only
    the examples of a proposal that are not cached are scored, and the answer is assembled from both. A recipe is pending
    at most once per split: an equal proposal waits for it and is answered from its result. A failure is shared with the
    waiting proposals but not cached, so a later proposal of that recipe is evaluated again. Slopes are not cached: a
    proposal that wants them is scored in full.
    """

    def __init__(self, evaluator: Evaluator, sizes: Mapping[Split, Mapping[str, int]] | None = None) -> None:
        """Cache the scores of `evaluator`, which is closed with this one.

        `sizes` are the numbers of examples of each task, by split; needed only where proposals name examples.
        """
        self._evaluator = evaluator
        self.slots = evaluator.slots
        self.lineage = evaluator.lineage
        self._sizes = sizes
        self._complete: dict[Key, Evaluation] = {}
        self._parts: dict[Key, ScoreTable] = {}  # of recipes that are not in `_complete`
        self._answers: deque[tuple[int, Evaluation]] = deque()
        self._pending: dict[int, tuple[Proposal, Examples | None]] = {}  # by number, with the examples being scored
        self._waiting: dict[Key, list[Proposal]] = {}  # for each pending recipe, the proposals that wait for it

    def seed(self, recipe_id: str, split: Split, evaluation: Evaluation, examples: Examples | None = None) -> None:
        """Add an earlier evaluation of these `examples` (None: of all) to the cache; failures are ignored."""
        key = recipe_id, split
        if evaluation.error is not None or key in self._complete:
            return
        if examples is not None:
            table = self._parts.setdefault(key, self._table(key))
            table.add(examples, evaluation)
            if not table.complete:
                return
            evaluation = table.take()
        self._complete[key] = replace(evaluation, slopes={}, seconds={})  # a cached answer takes no time
        self._parts.pop(key, None)

    def lookup(self, recipe_id: str, split: Split) -> Evaluation | None:
        """Return the full evaluation of a recipe if it is cached."""
        return self._complete.get((recipe_id, split))

    def submit(self, proposal: Proposal) -> None:
        """Answer a proposal from the cache, submit its missing examples, or let it wait for its recipe."""
        key = proposal.recipe.id, proposal.split
        if key in self._waiting:
            self._waiting[key].append(proposal)
            return
        missing = proposal.examples
        if proposal.slopes is None and missing is None and key in self._complete:
            self._answers.append((proposal.number, self._complete[key]))
            return
        if proposal.slopes is None and (missing is not None or key in self._parts):
            table = self._table(key)
            missing = table.missing(proposal.examples)
            if not missing:
                self._answers.append((proposal.number, table.take(proposal.examples)))
                return
        self._evaluator.submit(replace(proposal, examples=missing))
        self._pending[proposal.number] = proposal, missing
        self._waiting[key] = []

    def wait(self) -> tuple[int, Evaluation]:
        """Return a cached answer if there is one, else the next of the other evaluator."""
        if self._answers:
            return self._answers.popleft()
        number, evaluation = self._evaluator.wait()
        self.slots = self._evaluator.slots
        proposal, examples = self._pending.pop(number)
        key = proposal.recipe.id, proposal.split
        self.seed(*key, evaluation, examples)
        for other in self._waiting.pop(key):
            if evaluation.error is None:
                self.submit(other)
            else:
                self._answers.append((other.number, replace(evaluation, seconds={})))
        if evaluation.error is None and examples is not None and examples != proposal.examples:
            evaluation = replace(self._table(key).take(proposal.examples), seconds=evaluation.seconds)
        return number, evaluation

    def retain(self, members: Collection[str]) -> None:
        """Call `retain` of the other evaluator."""
        self._evaluator.retain(members)

    def close(self) -> None:
        """Close the other evaluator. The cache stays."""
        self._evaluator.close()

    def __exit__(self, *error: object) -> None:
        """Leave the other evaluator, which may tell its workers that the search is over."""
        self._evaluator.__exit__(*error)

    def _table(self, key: Key) -> ScoreTable:
        """Return the cached scores of a recipe on a split, example by example."""
        if key in self._parts:
            return self._parts[key]
        if self._sizes is None:
            raise EvaluatorError("a proposal names examples; expected `sizes`: type CachingEvaluator(evaluator, sizes)")
        table = ScoreTable(self._sizes[key[1]])
        if key in self._complete:
            table.add(None, self._complete[key])
        return table
