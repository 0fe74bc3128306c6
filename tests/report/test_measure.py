"""Reports of whole studies: many objectives, and tasks with the same examples."""

import io
from pathlib import Path

import numpy as np
import pytest
from pools import Models, write_pool
from rich.console import Console

from evomerge.errors import StudyError
from evomerge.evaluate import CachingEvaluator, Evaluator
from evomerge.report import comparisons, measure, tables
from evomerge.report.choose import Preference, choose
from evomerge.report.drawn import draw, write
from evomerge.report.scorer import Scorer
from evomerge.report.section import section
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
            "report": {"scales": [0.4], "mixtures": 0, "front": 3, "resamples": 100},
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
    means = len(results.comparisons) - (objectives == 16)
    assert 1 <= means <= 3  # what is picked, or two things in one, is not compared twice
    assert [one.what for one in results.comparisons] == ["mean"] * means + ["hypervolume"] * (objectives == 16)
    assert {one.level for one in results.comparisons} == {1 - 0.05 / len(results.comparisons)}
    assert results.pick in (*results.front, *results.references.values())
    assert results.choice.is_candidate == (results.pick in results.front)
    write(draw(results), tmp_path)
    page = section(results, tmp_path, draw(results))
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


class Peaked(Random):
    """Scores of a task with a peak: a share of right answers that falls with the distance of the weights from (0.5, 0.3)."""

    def __init__(self, study, worth):
        super().__init__(study)
        self.worth = worth

    def wait(self):
        proposal = self.queue.pop(0)
        right = self.worth(proposal.recipe.data)
        hard = np.random.default_rng(len(proposal.split)).random(200)
        scores = {name: (hard < right).astype(np.float32) for name in self.names}
        return proposal.number, Evaluation(scores=scores)


@pytest.fixture
def study_of(tmp_path, monkeypatch):
    """Return a function that searches for merges of two experts, each worth what a function of its recipe says."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one_objective.py").write_text(FUNCTION)
    write_pool(tmp_path, Models.random(2))

    def search(worth, **report):
        data = {
            "name": "worth",
            "pool": {"base": str(tmp_path / "base"), "experts": {n: str(tmp_path / n) for n in ("maths", "code")}},
            "tasks": {"t": {"kind": "callable", "function": "one_objective:score", "search": 200, "report": 200}},
            "space": "task_arithmetic",
            "driver": {"kind": "random"},
            "evaluations": 12,
            "report": {"resamples": 100, "scales": [0.4], **report},
        }
        study = Study.create(tmp_path / "study", StudySettings.parse(data, "test", Path(tmp_path)))
        evaluator = CachingEvaluator(Peaked(study, worth))
        study.run(evaluator)
        return study, evaluator

    return search


def method_of(data):
    """Return the method of a recipe that is one merge, with whether it has weights."""
    merge = data["merge"] if isinstance(data, dict) and "merge" in data else {}
    return merge.get("method"), "weight" in merge.get("parameters", {})


def test_a_reference_that_no_candidate_beats_is_picked_and_anyway_takes_the_best_candidate(study_of):
    study, evaluator = study_of(lambda data: 0.9 if method_of(data) == ("linear", False) else 0.5)
    results = measure.measure(study, evaluator)
    assert (results.pick.name, results.choice.reference) == ("average", "average")
    assert results.choice.probability < results.choice.needed
    assert results.public()["picked"]["is_candidate"] is False
    chosen = choose(results, Preference(), anyway=True)
    assert chosen in results.front
    assert chosen.recipe_id == results.choice.candidate
    assert choose(results, Preference()) == results.pick


def test_a_candidate_far_above_every_reference_is_picked(study_of):
    study, evaluator = study_of(lambda data: 0.9 if method_of(data) == ("task_arithmetic", True) else 0.5)
    results = measure.measure(study, evaluator)
    assert results.pick in results.front
    assert results.choice.probability > 0.99
    assert [one.verdict for one in results.comparisons if one.what == "mean"] == ["better"] * 2


def test_mixtures_are_references_and_only_the_best_is_shown(study_of):
    study, evaluator = study_of(lambda data: 0.5, mixtures=3)
    tried = comparisons.references(study.parts, study.settings.report)
    assert [name for name in tried if name.startswith("mixture")] == ["mixture 0.75:0.25", "mixture 0.25:0.75"]
    results = measure.measure(study, evaluator)
    assert sum(name.startswith("best mixture") for name in results.references) == 1


def test_a_candidate_of_any_number_can_be_shown_and_changes_nothing_else(study_of):
    study, evaluator = study_of(lambda data: 0.5)
    plain, more = measure.measure(study, evaluator), measure.measure(study, evaluator, also=(7,))
    for field in ("picked", "choice", "hypervolume", "comparisons", "references"):
        assert getattr(more, field) == getattr(plain, field), field
    assert "#7" in {point.name for point in measure.measure(study, evaluator, also=(7,)).front}
    with pytest.raises(StudyError, match="no candidate 99 was evaluated"):
        measure.measure(study, evaluator, also=(99,))


def test_a_large_study_estimates_only_its_best_candidates_and_its_front(study_of, monkeypatch):
    study, evaluator = study_of(lambda data: 0.9 if method_of(data) == ("task_arithmetic", True) else 0.5)
    everything = measure.measure(study, evaluator)
    monkeypatch.setattr(measure, "_ESTIMATED", 2)
    few = measure.measure(study, evaluator, also=(7,))
    assert few.picked in {point.recipe_id for point in everything.front} | {point.recipe_id for point in few.front}
    assert {point.name for point in everything.front} - {point.name for point in few.front} == set()
    assert next(point for point in few.front if point.name == "#7").report
