"""What every evaluator promises."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from evomerge.errors import EvaluatorError
from evomerge.evaluate import Evaluator, Setup, Worker
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.trial import Evaluation, Proposal, Split


class EvaluatorSuite:
    """What every evaluator must keep, as pytest tests. Subclass it with the fixtures `setup` and `evaluator`.

    `evaluator` evaluates what `setup` describes, and may be the same for all tests of the class. The pool must have at
    least two experts.
    """

    def recipes(self, setup: Setup) -> list[Recipe]:
        """Return different recipes to evaluate."""
        names = list(setup.experts)
        merges = [merge("task_arithmetic", names, {"lambda": scale}) for scale in (0.1, 0.2, 0.4)]
        return [base(), *map(expert, names), *merges]

    def evaluate(self, evaluator: Evaluator, proposals: Sequence[Proposal]) -> dict[int, Evaluation]:
        """Return the evaluations of all `proposals` by number, each of which must come back once."""
        for proposal in proposals:
            evaluator.submit(proposal)
        found = [evaluator.wait() for _ in proposals]
        assert sorted(number for number, _ in found) == sorted(proposal.number for proposal in proposals)
        return dict(found)

    def test_scores_are_those_of_a_worker(self, evaluator: Evaluator, setup: Setup) -> None:
        """Byte for byte, on both splits, and with the time that the evaluation took."""
        worker = Worker(setup)
        cases = [(recipe, split) for recipe in self.recipes(setup)[:4] for split in get_args(Split)]
        proposals = [Proposal(i, recipe, split=split) for i, (recipe, split) in enumerate(cases)]
        found = self.evaluate(evaluator, proposals)
        for i, (recipe, split) in enumerate(cases):
            expected = worker.evaluate(recipe, split)
            assert expected.error is None
            assert found[i].to_json() == expected.to_json()
            assert sorted(found[i].seconds) == ["decode", "merge", "score"]

    def test_part_is_scored_and_nothing_else(self, evaluator: Evaluator, setup: Setup) -> None:
        """The examples asked for, in that order, as a worker scores them byte for byte; as in the whole, up to rounding."""
        worker = Worker(setup)
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.7})
        whole = worker.evaluate(recipe)
        chosen = {next(iter(setup.tasks)): (2, 0)}
        found = self.evaluate(evaluator, [Proposal(0, recipe, examples=chosen)])[0]
        assert found.error is None
        assert found.to_json() == worker.evaluate(recipe, examples=chosen).to_json()
        assert {name.partition("/")[0] for name in found.scores} == set(chosen)
        for name, vector in found.scores.items():
            np.testing.assert_allclose(vector, whole.scores[name][[2, 0]], rtol=1e-4, atol=1e-5)

    def test_examples_that_do_not_exist_are_the_candidates_error(self, evaluator: Evaluator, setup: Setup) -> None:
        """Of a task that there is, or of one that there is not."""
        task = next(iter(setup.tasks))
        wrong: list[Mapping[str, tuple[int, ...]]] = [{task: (0, -1)}, {task: (10**6,)}, {f"no {task}": (0,)}]
        found = self.evaluate(evaluator, [Proposal(i, base(), examples=examples) for i, examples in enumerate(wrong)])
        assert all("example" in (found[i].error or "") for i in range(len(wrong)))

    def test_order_of_submission_does_not_matter(self, evaluator: Evaluator, setup: Setup) -> None:
        """Nor what was evaluated before, nor how many are in flight."""
        recipes = self.recipes(setup)
        proposals = [Proposal(10 + i, recipe) for i, recipe in enumerate(recipes)]
        at_once = self.evaluate(evaluator, proposals)
        for proposal in reversed(proposals):
            alone = self.evaluate(evaluator, [proposal])
            assert alone[proposal.number].to_json() == at_once[proposal.number].to_json()

    def test_equal_recipes_each_come_back(self, evaluator: Evaluator, setup: Setup) -> None:
        """With the same scores, under their own numbers."""
        recipe = merge("task_arithmetic", list(setup.experts), {"lambda": 0.3})
        found = self.evaluate(evaluator, [Proposal(number, recipe) for number in (7, 3, 5)])
        assert found[3].to_json() == found[5].to_json() == found[7].to_json()

    def test_failed_candidate_is_an_evaluation(self, evaluator: Evaluator, setup: Setup) -> None:
        """Its error is text; the others are not touched."""
        proposals = [Proposal(0, base()), Proposal(1, expert("nobody of that name")), Proposal(2, base())]
        found = self.evaluate(evaluator, proposals)
        assert "nobody of that name" in (found[1].error or "")
        assert found[0].error is None
        assert found[0].to_json() == found[2].to_json() == Worker(setup).evaluate(base()).to_json()

    def test_waiting_for_nothing_is_an_error(self, evaluator: Evaluator) -> None:
        """It would never end."""
        try:
            evaluator.wait()
        except EvaluatorError as error:
            assert "submit" in str(error)  # noqa: PT017  # this module does not need pytest
        else:
            msg = "`wait` returned although no proposal was in flight"
            raise AssertionError(msg)
        assert evaluator.slots >= 1
