"""Scales of objectives in means over different metrics."""

import numpy as np

from evomerge.report.estimates import scale


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
