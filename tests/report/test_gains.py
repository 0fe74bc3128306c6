"""What one expert more would add: averages of subsets, and the line floor + c / k."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pools import Models, write_pool

from evomerge.evaluate import CachingEvaluator, Evaluator
from evomerge.report import advice, bootstrap, gains, tables
from evomerge.report.drawn import draw
from evomerge.report.measure import measure
from evomerge.report.section import section
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation

NAMES = ["a", "b", "c", "d", "e"]


def counted(values, experts=None, spread=0.0):
    """Gains of models whose accuracy is values[k], over 100 examples of one task; models of one k differ by `spread`."""
    draws = bootstrap.resamples({"t/accuracy": 100}, 200, 0)
    common = np.linspace(-0.1, 0.1, 100, dtype=np.float32)
    groups = {
        k: [{"t/accuracy": common + np.float32(value + step)} for step in (-spread, spread)]
        for k, value in values.items()
    }
    return gains.measure(groups, experts or max(values), draws, np.ones(1), "accuracy")


def test_all_subsets_are_taken_where_there_are_no_more():
    assert gains.subsets(NAMES[:4], 10, 0) == [*combinations("abcd", 2), *combinations("abcd", 3)]
    assert gains.subsets(NAMES[:4], 99, 0) == gains.subsets(NAMES[:4], 10, 0)
    assert gains.subsets(NAMES[:3], 9, 0) == [*combinations("abc", 2)]


@pytest.mark.parametrize("experts", [0, 1, 2])
def test_fewer_than_three_experts_have_no_subsets(experts):
    assert gains.subsets(NAMES[:experts], 9, 0) == []


def test_a_sample_has_as_many_of_each_size_and_is_that_of_its_seed():
    some = gains.subsets(NAMES, 9, 7)
    assert [len(one) for one in some] == [2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert len({*some}) == 9
    assert all(list(one) == sorted(one) for one in some)
    assert some == gains.subsets(NAMES, 9, 7) != gains.subsets(NAMES, 9, 8)
    assert [len(one) for one in gains.subsets(NAMES, 20, 7)] == [2] * 8 + [3] * 7 + [4] * 5  # 5 are all of size 4


def test_a_recipe_is_the_average_of_its_experts():
    found = gains.recipes(["a", "b", "c"], 3, 0)
    assert list(found) == ["average of a + b", "average of a + c", "average of b + c"]
    assert list(found["average of a + c"].experts) == ["a", "c"]
    assert found["average of a + c"].data["merge"]["method"] == "linear"


def test_the_line_is_the_one_that_the_means_lie_on():
    found = counted({1: 0.3, 2: 0.45, 3: 0.5, 4: 0.525})  # 0.6 - 0.3 / k
    assert (found.floor, found.slope, found.residual) == pytest.approx((0.6, -0.3, 0), abs=1e-6)
    assert found.more == pytest.approx((0.3 / 20,) * 3, abs=1e-6)  # paired: what all models share is not in it
    assert found.predicted[0] == pytest.approx(0.54)
    assert found.predicted[1] < 0.54 < found.predicted[2]


def test_the_line_is_that_of_least_squares_and_the_residual_is_what_it_misses():
    found = counted({1: 0.2, 2: 0.5, 4: 0.4})
    slope, floor = np.polyfit([1, 1 / 2, 1 / 4], [0.2, 0.5, 0.4], 1)
    assert (found.floor, found.slope) == pytest.approx((floor, slope), abs=1e-6)
    misses = [0.2 - floor - slope, 0.5 - floor - slope / 2, 0.4 - floor - slope / 4]
    assert found.residual == pytest.approx(np.sqrt(np.mean(np.square(misses))), abs=1e-6)


def test_sizes_count_alike_however_many_averages_they_have():
    found = counted({1: 0.3, 2: 0.45, 3: 0.5}, spread=0.05)
    assert found.values[0] == pytest.approx((0.25, 0.35))
    assert found.means[0][0] == pytest.approx(0.3)
    assert found.slope == pytest.approx(-0.3, abs=1e-6)


def test_the_interval_is_that_of_lines_through_resamples():
    rng = np.random.default_rng(0)
    draws = bootstrap.resamples({"t/accuracy": 60}, 300, 0)
    groups = {k: [{"t/accuracy": rng.random(60, dtype=np.float32)}] for k in (1, 2, 3)}
    found = gains.measure(groups, 3, draws, np.ones(1), "accuracy")
    counts = draws.counts["t/accuracy"].astype(float)
    means = [counts @ group[0]["t/accuracy"] / 60 for group in groups.values()]
    steps = [np.polyfit([1, 1 / 2, 1 / 3], row, 1)[0] * (1 / 4 - 1 / 3) for row in np.transpose(means)]
    assert found.more[1:] == pytest.approx(np.quantile(steps, (0.025, 0.975)), abs=1e-5)


def test_means_of_different_metrics_are_weighted_and_above_the_base():
    draws = bootstrap.resamples({"t/accuracy": 4, "u/log_likelihood": 4}, 100, 0)
    scores = [
        {"t/accuracy": np.full(4, k, np.float32), "u/log_likelihood": np.full(4, -1.0, np.float32)} for k in range(4)
    ]
    found = gains.measure(
        {k: [scores[k]] for k in (1, 2, 3)}, 3, draws, np.array([0.5, 2.0]), "scaled score", scores[0]
    )
    assert sum(found.values, ()) == pytest.approx((0.5, 1.0, 1.5))


@pytest.mark.parametrize(
    ("values", "experts", "words"),
    [({1: 0.3, 2: 0.4}, 2, "got 2 experts"), ({1: 0.3, 4: 0.4}, 4, "got averages of 1, 4 experts alone")],
)
def test_too_few_points_have_no_line_and_the_report_says_so(values, experts, words, build):
    found = counted(values, experts)
    results = build(2).model_copy(update={"gains": found})
    said = tables.gains(results)
    assert said.startswith("What an expert more would add is not estimated: expected averages of 3 different numbers")
    assert words in said
    assert "gains" not in draw(results)
    assert not advice._on_another(found)
    assert not advice._on_another(None)


def test_the_report_says_it_with_its_interval_and_draws_it(build, tmp_path):
    results = build(2).model_copy(update={"gains": counted({1: 0.3, 2: 0.45, 3: 0.5, 4: 0.525})})
    said = tables.gains(results)
    assert "predicted to add 1.5 points (95% interval 1.5 to 1.5) to an average's mean accuracy" in said
    assert (
        "averages of 1, 2, 3, 4 experts reach 30.0, 45.0, 50.0, 52.5, and the line 60.0 -30.0 / k misses these by 0.0"
        in said
    )
    drawn = draw(results)
    assert drawn["gains"].png.startswith(b"\x89PNG")
    page = section(results, tmp_path, drawn)
    assert "1 expert: 2 of 4, 2 experts: 2 of 6, 3 experts: 2 of 4, 4 experts: 2 of 1" in page
    assert "predicted to add 1.5 points" in page
    assert results.public()["gains"]["more"] == pytest.approx([0.015] * 3, abs=1e-6)
    assert tables.gains(build(2)) is None


@pytest.mark.parametrize(
    ("values", "words", "sure"),
    [
        ({1: 0.3, 2: 0.45, 3: 0.5, 4: 0.525}, "add another expert", "likely"),
        ({1: 0.6, 2: 0.45, 3: 0.4, 4: 0.375}, "add no other expert", "likely"),
        ({1: 0.3, 2: 0.6, 3: 0.2, 4: 0.5}, "add another expert", "a guess"),
        ({1: 0.3, 2: 0.3, 3: 0.3, 4: 0.3}, "not shown to be worth it", "a guess"),
    ],
)
def test_advice_follows_the_interval_and_is_likely_only_where_the_line_fits(values, words, sure):
    (one,) = advice._on_another(counted(values))
    assert words in one.text
    assert one.sure == sure
    assert "an average of 5 experts minus that of all 4" in one.evidence


class Counting(Evaluator):
    """Scores by the number of a model's experts, 0.6 - 0.3 / k, 0.1 without one; examples differ alike for all models."""

    slots = 1

    def __init__(self):
        self.lineage, self.queue, self.scored = {}, [], []

    def submit(self, proposal):
        self.queue.append(proposal)

    def wait(self):
        proposal = self.queue.pop(0)
        k = len(proposal.recipe.experts)
        self.scored.append((proposal.split, tuple(proposal.recipe.experts)))
        score = 0.6 - 0.3 / k if k else 0.1
        return proposal.number, Evaluation({"t/score": np.linspace(-0.1, 0.1, 5, dtype=np.float32) + np.float32(score)})

    def close(self):
        pass


def test_a_study_that_asks_for_subsets_gets_the_line_and_its_averages_are_scored_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "counting.py").write_text("def score(model, split, examples):\n    return [0.0] * len(examples)\n")
    write_pool(tmp_path, Models.random(4))
    data = {
        "name": "counting",
        "pool": {"base": str(tmp_path / "base"), "experts": {n: str(tmp_path / n) for n in Models.random(4).experts}},
        "tasks": {"t": {"kind": "callable", "function": "counting:score", "search": 5, "report": 5}},
        "space": "task_arithmetic",
        "driver": {"kind": "random"},
        "evaluations": 4,
        "report": {"scales": [0.4], "mixtures": 0, "front": 3, "resamples": 100, "subsets": 10},
    }
    study = Study.create(tmp_path / "study", StudySettings.parse(data, "test", Path(tmp_path)))
    scores = Counting()
    study.run(CachingEvaluator(scores))
    found = measure(study, scores).gains
    assert [len(values) for values in found.values] == [4, 6, 4, 1]
    assert (found.floor, found.slope) == pytest.approx((0.6, -0.3), abs=1e-5)
    averages = [some for split, some in scores.scored if split == "search" and len(some) in (2, 3)]
    assert len(averages) == len({*averages}) == 10
    assert not [some for split, some in scores.scored if split == "report" and len(some) in (2, 3)]
    before = len(scores.scored)
    assert measure(study, scores).gains == found
    assert len(scores.scored) == before


def test_by_default_no_subset_is_scored_and_settings_are_written_as_before():
    data = {"name": "x", "pool": {"zoo": "digits"}, "space": "task_arithmetic"}
    settings = StudySettings.parse(data, "test", Path())
    assert settings.report.subsets == 0
    assert "subsets" not in settings.model_dump(mode="json")["report"]
    assert StudySettings.parse({**data, "report": {"subsets": 3}}, "test", Path()).report.subsets == 3
