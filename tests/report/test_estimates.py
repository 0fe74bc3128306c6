"""Estimates of models: their scales, noise and chances, where the truth is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from evomerge.report import bootstrap
from evomerge.report.estimates import estimate, scale
from evomerge.trial import Evaluation, Metric


def test_one_metric_is_averaged_as_it_is():
    origins, units = scale(["accuracy", "accuracy"], np.array([[0.5, 0.2], [0.9, 0.1]]))
    np.testing.assert_array_equal(origins, [0, 0])
    np.testing.assert_array_equal(units, [1, 1])


def test_different_metrics_run_from_the_base_to_the_best_expert():
    points = np.array([[0.5, -3.0, 7.0], [0.9, -2.0, 6.0], [0.6, -1.0, 5.0]])  # base, two experts
    origins, units = scale(["accuracy", "log_likelihood", "score"], points)
    np.testing.assert_array_equal(origins, [0.5, -3.0, 7.0])
    np.testing.assert_allclose(units, [0.4, 2.0, 2.0])  # no expert is better in the last: its range


def test_an_objective_that_does_not_vary_counts_as_it_is():
    assert scale(["a", "b"], np.array([[1.0, 0.0], [1.0, 2.0]]))[1].tolist() == [1.0, 2.0]


def drawn(models, examples, spread=0.1):
    """Return estimates of models with known shares of right answers on two tasks."""
    rng = np.random.default_rng(0)
    truth = {f"m{i}": rng.uniform(0.5 - spread, 0.5 + spread, size=2) for i in range(models)}
    metrics = {"accuracy": Metric("accuracy", 0.0, 1.0)}
    task = SimpleNamespace(metrics=metrics, report_metric="accuracy", search_metric="accuracy")
    evaluations = {
        name: Evaluation(
            {f"{t}/accuracy": (rng.random(examples) < p[i]).astype(np.float32) for i, t in enumerate("ab")}
        )
        for name, p in truth.items()
    }
    resamples = bootstrap.resamples(dict.fromkeys("ab", examples), 100)
    return estimate(evaluations, dict.fromkeys("ab", task), resamples, ["m0"]), truth


@pytest.mark.parametrize(("examples", "low", "high"), [(20, 0.5, 1.0), (20000, 0.0, 0.05)])
def test_share_of_noise_falls_with_the_number_of_examples(examples, low, high):
    estimates, _ = drawn(60, examples)
    assert low <= estimates.noise <= high


def test_with_many_examples_estimates_are_the_truth_and_certain():
    estimates, truth = drawn(30, 20000)
    ranked = sorted(truth, key=lambda name: -truth[name].mean())
    best, worst = ranked[0], ranked[-1]
    assert estimates.best(list(truth)) == best
    (value, low, high), probability = estimates.gain(best, worst)
    assert low < truth[best].mean() - truth[worst].mean() < high
    assert value == pytest.approx(truth[best].mean() - truth[worst].mean(), abs=0.02)
    assert probability == 1.0
    assert estimates.gain(best, best) == ((0.0, 0.0, 0.0), 0.5)


def test_chances_to_be_on_the_front_are_near_1_on_it_and_near_0_far_below():
    estimates, truth = drawn(30, 20000)
    names = list(truth)
    dominated = [any((truth[other] > truth[name] + 0.02).all() for other in names) for name in names]
    clear = [all((truth[other] < truth[name] - 0.02).any() for other in names if other != name) for name in names]
    chances = estimates.on_front(names)
    assert chances[dominated].max() < 0.05
    assert chances[clear].min() > 0.95
