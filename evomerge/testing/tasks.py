"""What every task promises."""

from pathlib import Path

import numpy as np

from evomerge.errors import TaskError
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.trial import Split


class TaskSuite:
    """What every task must keep, as pytest tests. Subclass it and write `make`."""

    def make(self, folder: Path) -> tuple[Task, LiveModel]:
        """Return a task with three examples or more in each split, and a model that can do it.

        `folder` is for its files. Called again with the same folder, it returns the same.
        """
        raise NotImplementedError

    def test_names_and_sizes(self, tmp_path: Path) -> None:
        """The metrics to search and report are known ones, and no split is empty."""
        task, _ = self.make(tmp_path)
        assert task.search_metric in task.metrics
        assert task.report_metric in task.metrics
        assert min(task.size("search"), task.size("report")) > 2  # the suite takes parts of them

    def test_one_score_for_each_example(self, tmp_path: Path) -> None:
        """Every vector is float32 with one entry per example; the split's metric is among them, outputs keep pace."""
        task, model = self.make(tmp_path)
        splits: dict[Split, str] = {"search": task.search_metric, "report": task.report_metric}
        for split, metric in splits.items():
            found = task.score(model, split)
            assert metric in found.scores
            assert set(found.scores) <= set(task.metrics)
            for scores in found.scores.values():
                assert scores.dtype == np.float32
                assert scores.shape == (task.size(split),)
                assert np.isfinite(scores).all()
            for output in found.outputs.values():
                assert output.dtype == np.float32
                assert len(output) == task.size(split)

    def test_scores_repeat_bit_for_bit(self, tmp_path: Path) -> None:
        """Scored again after other examples, and by the same task made anew, the same bytes come back."""
        task, model = self.make(tmp_path)
        first = task.score(model, "search")
        task.score(model, "report", [0])
        anew, _ = self.make(tmp_path)
        for again in (task.score(model, "search"), anew.score(model, "search")):
            for metric, scores in first.scores.items():
                assert scores.tobytes() == again.scores[metric].tobytes()

    def test_a_part_scores_as_it_does_in_the_whole(self, tmp_path: Path) -> None:
        """Chosen examples come back in the order asked for, with the scores that they have among all, up to rounding."""
        task, model = self.make(tmp_path)
        chosen = [task.size("search") - 1, 0]
        whole, part = task.score(model, "search"), task.score(model, "search", chosen)
        assert set(part.scores) == set(whole.scores)
        for metric, scores in part.scores.items():
            np.testing.assert_allclose(scores, whole.scores[metric][chosen], rtol=1e-4, atol=1e-5)
        for name, output in part.outputs.items():
            np.testing.assert_allclose(output, whole.outputs[name][chosen], rtol=1e-4, atol=1e-5)

    def test_unknown_examples_are_refused(self, tmp_path: Path) -> None:
        """A number outside of the split is an error, not another example."""
        task, model = self.make(tmp_path)
        for number in (-1, task.size("search")):
            try:
                task.score(model, "search", [number])
            except TaskError:
                continue
            msg = f"example {number} was scored"
            raise AssertionError(msg)
