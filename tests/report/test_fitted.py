"""The pick's score on the examples that it was fitted to, beside those that it was not."""

from types import SimpleNamespace

import numpy as np
import pytest

from evomerge.recipe import base, expert
from evomerge.report.fitted import fitted
from evomerge.trial import Evaluation, Proposal


def parts(*metrics):
    tasks = {f"task{i}": SimpleNamespace(search_metric=metric) for i, metric in enumerate(metrics)}
    return SimpleNamespace(tasks=tasks, searched=[f"{name}/{task.search_metric}" for name, task in tasks.items()])


def evaluated(slopes):
    scores = {"task0/ll": np.float32([-1, -2, -6]), "task1/ll": np.float32([-3, -5])}
    return [(Proposal(0, base()), Evaluation(scores)), (Proposal(1, expert("a"), slopes=slopes), Evaluation(scores))]


def test_means_are_over_tasks_of_each_part():
    unseen = {"task0/ll": np.float32([-4, -6]), "task1/ll": np.float32([-7])}
    found = fitted(parts("ll", "ll"), evaluated({"task0": (0, 1), "task1": (1,)}), expert("a").id, unseen)
    assert (found.metric, found.slopes, found.others, found.unseen) == ("ll", -3.25, -4.5, -6)


def test_without_held_out_examples_or_unseen_scores_there_is_none_of_them():
    found = fitted(parts("ll", "ll"), evaluated({"task0": (0, 1, 2), "task1": (0, 1)}), expert("a").id, {})
    assert (found.slopes, found.others, found.unseen) == (-3.5, None, None)


@pytest.mark.parametrize(
    ("metrics", "recipe", "slopes"),
    [(("ll", "score"), "a", {"task0": (0,)}), (("ll", "ll"), "b", {"task0": (0,)}), (("ll", "ll"), "a", None)],
)
def test_other_metrics_models_and_searches_have_no_such_figures(metrics, recipe, slopes):
    assert fitted(parts(*metrics), evaluated(slopes), expert(recipe).id, {}) is None
