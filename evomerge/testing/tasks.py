"""The conformance suite of tasks."""

from pathlib import Path
from unittest import TestCase

import numpy as np

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.trial import Split


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
