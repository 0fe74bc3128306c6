"""Reports of whole studies: many objectives, and tasks with the same examples."""

import io
from pathlib import Path

import numpy as np
import pytest
from pools import Models, write_pool
from rich.console import Console

from evomerge.evaluate import CachingEvaluator, Evaluator
from evomerge.report import html, measure, tables
from evomerge.report.scorer import Scorer
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation

FUNCTION = "def score(model, split, examples):\n    return [0.0] * len(examples)\n"


class Random(Evaluator):
    """Scores drawn by the recipe's id."""

    slots = 1

    def __init__(self, study):
        self.lineage, self.queue, self.names = {}, [], study.parts.searched

    def submit(self, proposal):
        self.queue.append(proposal)

    def wait(self):
        proposal = self.queue.pop(0)
        rng = np.random.default_rng(int(proposal.recipe.id[:8], 16))
        return proposal.number, Evaluation(scores={name: rng.random(5, dtype=np.float32) for name in self.names})

    def close(self):
        pass


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Return a function that searches with so many objectives, and returns the study and its evaluator."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "many_objectives.py").write_text(FUNCTION)
    write_pool(tmp_path, Models.random(2))

    def search(objectives):
        task = {"kind": "callable", "function": "many_objectives:score", "search": 5, "report": 5}
        data = {
            "name": "many",
            "pool": {
                "base": str(tmp_path / "base"),
                "experts": {name: str(tmp_path / name) for name in ("maths", "code")},
            },
            "tasks": {f"t{i}": task for i in range(objectives)},
            "space": "task_arithmetic",
            "driver": {"kind": "random"},
            "evaluations": 12,
            "report": {"scales": [0.4], "front": 3, "resamples": 100},
        }
        study = Study.create(tmp_path / "study", StudySettings.parse(data, "test", Path(tmp_path)))
        evaluator = CachingEvaluator(Random(study))
        study.run(evaluator)
        return study, evaluator

    return search


@pytest.mark.parametrize("objectives", [16, 20, 33])
def test_study_of_many_objectives_is_reported_without_hypervolumes_that_take_too_long(objectives, searched, tmp_path):
    study, evaluator = searched(objectives)
    results = measure.measure(study, evaluator)
    assert 1 <= len(results.front) <= 3
    assert results.public()["hypervolume"] == (
        {"search": None, "report": None}
        if objectives > 16
        else {"search": results.hypervolume.search, "report": results.hypervolume.report}
    )
    assert [one.what for one in results.comparisons] == ["mean", "mean"] + ["hypervolume"] * (objectives == 16)
    assert {one.level for one in results.comparisons} == {1 - 0.05 / (3 if objectives == 16 else 2)}
    best = max(results.front, key=lambda point: sum(point.search.values()))
    assert results.picked == best.recipe_id
    html.write(results, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    console = Console(file=io.StringIO(), width=110)
    console.print(*tables.summary(results))
    assert (tmp_path / "hypervolume.png").exists() == (objectives == 16)
    stated = f"Hypervolumes are not compared: {objectives} objectives would take too long."
    assert (stated in tables.sentences(results)) == (stated in page) == (objectives > 16)


def test_intervals_draw_the_examples_that_digits_share_together(small_digits, tmp_path):
    data = {
        "name": "digits",
        "pool": small_digits.pool,
        "tasks": dict(small_digits.tasks),
        "space": "task_arithmetic",
        "driver": {"kind": "random"},
        "evaluations": 12,
        "report": {"resamples": 100},
    }
    study = Study.create(tmp_path / "study", StudySettings.parse(data, "test", Path.cwd()))
    first, *others = Scorer(study, []).reported.counts.values()
    assert len(others) == 3
    for counts in others:
        np.testing.assert_array_equal(counts, first)
