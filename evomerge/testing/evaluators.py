"""The conformance suite of evaluators."""

from collections.abc import Mapping, Sequence
from unittest import TestCase

import numpy as np

from evomerge.errors import EvaluatorError
from evomerge.evaluate import Evaluator, Setup, Worker
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.trial import Evaluation, Proposal, Split


class EvaluatorSuite:
    """The rules of `evomerge.evaluate.Evaluator` as pytest tests. Subclass it with the fixtures `setup` and `evaluator`.

    `evaluator` uses `setup`, and may be shared by all tests of the class. The pool must have at least two experts.
    """

    def recipes(self, setup: Setup) -> list[Recipe]:
        """Return distinct recipes."""
        names = list(setup.experts)
        merges = [merge("task_arithmetic", names, {"lambda": scale}) for scale in (0.1, 0.2, 0.4)]
        return [base(), *map(expert, names), *merges]

    def evaluate(self, evaluator: Evaluator, proposals: Sequence[Proposal]) -> dict[int, Evaluation]:
        """Return the evaluations of all `proposals` by number, and check that each comes back once."""
        for proposal in proposals:
            evaluator.submit(proposal)
        answers = [evaluator.wait() for _ in proposals]
        assert sorted(number for number, _ in answers) == sorted(proposal.number for proposal in proposals)
        return dict(answers)

    def test_scores_are_those_of_a_worker(self, evaluator: Evaluator, setup: Setup) -> None:
        """Byte for byte, on both splits, with the seconds of each phase."""
        worker = Worker(setup)
        splits: tuple[Split, ...] = ("search", "report")
        cases = [(recipe, split) for recipe in self.recipes(setup)[:4] for split in splits]
        proposals = [Proposal(i, recipe, split=split) for i, (recipe, split) in enumerate(cases)]
        evaluations = self.evaluate(evaluator, proposals)
        for i, (recipe, split) in enumerate(cases):
            expected = worker.evaluate(recipe, split)
            assert expected.error is None
            assert evaluations[i].to_json() == expected.to_json()
            assert sorted(evaluations[i].seconds.keys() - {"compile"}) == ["decode", "merge", "score"]

    def test_only_the_named_examples_are_scored(self, evaluator: Evaluator, setup: Setup) -> None:
        """In their order, with the bytes of a worker, and equal to a full evaluation up to rounding."""
        worker = Worker(setup)
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.7})
        full = worker.evaluate(recipe)
        chosen = {next(iter(setup.tasks)): (2, 0)}
        evaluation = self.evaluate(evaluator, [Proposal(0, recipe, examples=chosen)])[0]
        assert evaluation.error is None
        assert evaluation.to_json() == worker.evaluate(recipe, examples=chosen).to_json()
        assert {name.partition("/")[0] for name in evaluation.scores} == set(chosen)
        for name, vector in evaluation.scores.items():
            np.testing.assert_allclose(vector, full.scores[name][[2, 0]], rtol=1e-4, atol=1e-5)

    def test_slopes_are_those_of_a_worker(self, evaluator: Evaluator, setup: Setup) -> None:
        """Byte for byte, also for a recipe that has been scored without slopes."""
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.6})
        slopes = {next(iter(setup.tasks)): (0, 2, 1)}
        proposals = [Proposal(0, recipe), Proposal(1, recipe, slopes=slopes), Proposal(2, recipe)]
        evaluations = self.evaluate(evaluator, proposals)
        assert evaluations[1].to_json() == Worker(setup).evaluate(recipe, slopes=slopes).to_json()
        assert len(evaluations[1].slopes) == 1
        assert evaluations[0].slopes == evaluations[2].slopes == {}

    def test_unknown_examples_fail_the_candidate(self, evaluator: Evaluator, setup: Setup) -> None:
        """Indices out of range, or of a task that does not exist."""
        task = next(iter(setup.tasks))
        wrong: list[Mapping[str, tuple[int, ...]]] = [{task: (0, -1)}, {task: (10**6,)}, {f"no {task}": (0,)}]
        proposals = [Proposal(i, base(), examples=examples) for i, examples in enumerate(wrong)]
        evaluations = self.evaluate(evaluator, proposals)
        assert all("example" in (evaluations[i].error or "") for i in range(len(wrong)))

    def test_order_of_submission_does_not_matter(self, evaluator: Evaluator, setup: Setup) -> None:
        """Nor do earlier evaluations or the number of pending ones."""
        proposals = [Proposal(10 + i, recipe) for i, recipe in enumerate(self.recipes(setup))]
        at_once = self.evaluate(evaluator, proposals)
        for proposal in reversed(proposals):
            alone = self.evaluate(evaluator, [proposal])
            assert alone[proposal.number].to_json() == at_once[proposal.number].to_json()

    def test_equal_recipes_each_come_back(self, evaluator: Evaluator, setup: Setup) -> None:
        """With the same scores, under their own numbers."""
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.3})
        evaluations = self.evaluate(evaluator, [Proposal(number, recipe) for number in (7, 3, 5)])
        assert evaluations[3].to_json() == evaluations[5].to_json() == evaluations[7].to_json()

    def test_failed_candidate_is_an_evaluation(self, evaluator: Evaluator, setup: Setup) -> None:
        """With an error as text; other candidates are unaffected."""
        proposals = [Proposal(0, base()), Proposal(1, expert("no such expert")), Proposal(2, base())]
        evaluations = self.evaluate(evaluator, proposals)
        assert "no such expert" in (evaluations[1].error or "")
        assert evaluations[0].error is None
        assert evaluations[0].to_json() == evaluations[2].to_json() == Worker(setup).evaluate(base()).to_json()

    def test_waiting_for_nothing_is_an_error(self, evaluator: Evaluator) -> None:
        """It would block forever."""
        with TestCase().assertRaisesRegex(EvaluatorError, "submit"):  # noqa: PT027  # this module does not need pytest
            evaluator.wait()
        assert evaluator.slots >= 1
