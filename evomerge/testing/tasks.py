"""The conformance suite of tasks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import TestCase

import numpy as np
import torch

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.trial import Split

_STEP = 0.01  # of a weight: in float32, rounding and curvature then change a difference by less than 1%


class TaskSuite:
    """Tests of every `Task` for pytest. Subclass it and write `make`."""

    def make(self, folder: Path) -> tuple[Task, LiveModel]:
        """Return a task with three or more examples in each split, and a suitable model.

        `folder` is for its files. The same folder gives an equal task.
        """
        raise NotImplementedError

    def test_names_and_sizes(self, tmp_path: Path) -> None:
        """The metrics to search and report are declared under their names, and no split is empty."""
        task, _ = self.make(tmp_path)
        assert {task.search_metric, task.report_metric} <= set(task.metrics)
        for name, metric in task.metrics.items():
            assert metric.name == name
            assert metric.low < metric.high
        assert min(task.size("search"), task.size("report")) > 2  # the suite scores subsets

    def test_one_key_for_each_example(self, tmp_path: Path) -> None:
        """The same task made again has the same keys."""
        (task, _), (again, _) = self.make(tmp_path), self.make(tmp_path)
        splits: tuple[Split, ...] = ("search", "report")
        for split in splits:
            assert len(task.example_keys(split)) == task.size(split)
            assert task.example_keys(split) == again.example_keys(split)

    def test_one_score_for_each_example(self, tmp_path: Path) -> None:
        """Vectors are float32, one entry per example, and in the declared range; tables have one row per example."""
        task, model = self.make(tmp_path)
        splits: dict[Split, str] = {"search": task.search_metric, "report": task.report_metric}
        for split, metric in splits.items():
            scored = task.score(model, split)
            assert metric in scored.scores
            assert set(scored.scores) <= set(task.metrics)
            for name, scores in scored.scores.items():
                assert scores.dtype == np.float32
                assert scores.shape == (task.size(split),)
                assert np.isfinite(scores).all()
                declared = task.metrics[name]
                assert declared.low <= scores.mean() <= declared.high
                if declared.margins is not None:
                    right = (scored.outputs[declared.margins] > 0).all(axis=1)
                    np.testing.assert_array_equal(scores, right.astype(np.float32))
            for output in scored.outputs.values():
                assert output.dtype == np.float32
                assert len(output) == task.size(split)

    def test_scores_repeat_bit_for_bit(self, tmp_path: Path) -> None:
        """Scoring again after other examples, or with an equal task, gives the same bytes."""
        task, model = self.make(tmp_path)
        first = task.score(model, "search")
        task.score(model, "report", [0])
        equal, _ = self.make(tmp_path)
        for again in (task.score(model, "search"), equal.score(model, "search")):
            for metric, scores in first.scores.items():
                assert scores.tobytes() == again.scores[metric].tobytes()

    def test_subset_scores_as_in_a_full_evaluation(self, tmp_path: Path) -> None:
        """Chosen examples are scored in the order of their indices, as in a full evaluation up to rounding."""
        task, model = self.make(tmp_path)
        chosen = [task.size("search") - 1, 0]
        full, subset = task.score(model, "search"), task.score(model, "search", chosen)
        assert set(subset.scores) == set(full.scores)
        whole = {**full.scores, **full.outputs}
        for name, part in {**subset.scores, **subset.outputs}.items():
            np.testing.assert_allclose(part, whole[name][chosen], rtol=1e-4, atol=1e-5)

    def test_unknown_examples_are_refused(self, tmp_path: Path) -> None:
        """An index outside of the split is an error."""
        task, model = self.make(tmp_path)
        for index in (-1, task.size("search")):
            with TestCase().assertRaises(TaskError):  # noqa: PT027  # this module does not need pytest
                task.score(model, "search", [index])

    def test_graph_has_the_scores_of_each_example_once(self, tmp_path: Path) -> None:
        """The parts of all examples, or of some, cover them, and agree with `score`; without slopes there is no graph."""
        task, model = self.make(tmp_path)
        for chosen in (range(task.size("search")), [task.size("search") - 1, 0]):
            if not task.metrics[task.search_metric].slopes:
                with TestCase().assertRaisesRegex(TaskError, "cannot be differentiated"):  # noqa: PT027  # as above
                    task.graph(model, "search", chosen)
                continue
            expected = task.score(model, "search", chosen)
            whole = {**expected.scores, **expected.outputs}
            positions = []
            with _differentiable(model):
                for part in task.graph(model, "search", chosen):
                    positions += part.positions
                    assert part.value.requires_grad
                    assert part.value.shape == (len(part.positions),)
                    found = {**part.scores.scores, **part.scores.outputs}
                    assert set(found) == set(whole)
                    for name, scores in found.items():
                        assert scores.dtype == np.float32
                        np.testing.assert_allclose(scores, whole[name][part.positions], rtol=1e-4, atol=1e-5)
                    value = part.value.detach().float().cpu().numpy()
                    np.testing.assert_array_equal(value, found[task.search_metric])
            assert sorted(positions) == [*range(len(chosen))]

    def test_slopes_are_those_of_finite_differences(self, tmp_path: Path) -> None:
        """The mean search metric changes with the weights that matter most as the gradient says."""
        task, model = self.make(tmp_path)
        if not task.metrics[task.search_metric].slopes:
            return
        examples = range(task.size("search"))
        with _differentiable(model) as parameters:
            for part in task.graph(model, "search", examples):
                (part.value.sum() / len(examples)).backward()  # type: ignore[no-untyped-call]  # torch has no type here
            slopes = [torch.zeros_like(weights) if weights.grad is None else weights.grad for weights in parameters]
        steepest = sorted(range(len(slopes)), key=lambda i: -float(slopes[i].abs().max()))[:4]
        for weights, slope in ((parameters[i].data.view(-1), slopes[i].view(-1)) for i in steepest):
            place = int(slope.abs().argmax())
            before = float(weights[place])
            means = []
            for step in (_STEP, -_STEP):
                weights[place] = before + step
                means.append(task.score(model, "search").scores[task.search_metric].mean(dtype=np.float64))
            weights[place] = before
            np.testing.assert_allclose(float(slope[place]), (means[0] - means[1]) / (2 * _STEP), rtol=0.01, atol=1e-4)


@contextmanager
def _differentiable(model: LiveModel) -> Iterator[Sequence[torch.Tensor]]:
    """Let the model's parameters require gradients in the block, and yield them."""
    parameters = list(model.module.parameters())
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_()
            yield parameters
    finally:
        for parameter in parameters:
            parameter.requires_grad, parameter.grad = False, None
