"""Regressions and warps: left-out predictions, closed forms, hyperparameters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import surrogate
from evomerge.surrogate.regression import LeastSquares, Process
from evomerge.surrogate.warps import IDENTITY, log, logit, unwarp_normal


def with_kernel(kernel):
    """Return the class of processes with these hyperparameters."""
    return type("Fixed", (Process,), {"_choose": lambda self, outputs: kernel})


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_least_squares_leaves_out_as_refitting_without_the_point_does(seed, genes, ridge):
    rng = np.random.default_rng(seed)
    points = rng.random((surrogate.unknowns(genes) + 4, genes))
    target, weights = rng.standard_normal(len(points)), rng.uniform(0.2, 2, len(points))
    mean, _ = LeastSquares(points, target, weights, ridge).left_out
    for i in range(len(points)):
        rest = np.arange(len(points)) != i
        fitted = LeastSquares(points[rest], target[rest], weights[rest], ridge)
        np.testing.assert_allclose(fitted.predict(points[i : i + 1], np.ones_like)[0], mean[i], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_process_leaves_out_as_conditioning_without_the_point_does(seed, genes, outputs):
    rng = np.random.default_rng(seed)
    points = rng.random((9, genes))
    targets, noise = rng.standard_normal((9, outputs)), rng.uniform(0.5, 2, 9)
    kernel = np.log([0.7, 0.4, 0.5, 0.8, 0.05, *rng.uniform(0.5, 2, genes)])
    process = with_kernel(kernel)(points, targets, noise)
    mean, variance = process.left_out(targets)
    scaled = (targets - targets.mean(axis=0)) / targets.std(axis=0)  # the normalisation is held, as is the kernel
    for i in range(9):
        rest = np.arange(9) != i
        covariance = process._kernel(2 * points, 2 * points)
        inverse = np.linalg.inv(covariance[np.ix_(rest, rest)] + np.diag(0.05 * noise[rest]))
        cross = covariance[i, rest]
        expected = targets.mean(axis=0) + targets.std(axis=0) * (cross @ inverse @ scaled[rest])
        np.testing.assert_allclose(mean[i], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance[i], covariance[i, i] + 0.05 * noise[i] - cross @ inverse @ cross, rtol=1e-5)


def test_hyperparameters_may_be_chosen_from_few_of_the_points_and_all_are_fitted():
    rng = np.random.default_rng(0)
    points = rng.random((31, 2))
    targets = np.sin(3 * points.sum(axis=1))[:, None]
    process = Process(points, targets, np.ones(31), few=11)
    # Every third point, scaled as all are.
    mean, spread = targets.mean(axis=0), targets.std(axis=0)
    part = Process(points[::3], targets[::3], np.ones(11))
    part._use(points[::3], np.ones(11))
    np.testing.assert_array_equal(process.kernel, part._choose(((targets - mean) / spread)[::3]))
    fitted = with_kernel(process.kernel)(points, targets, np.ones(31))
    for found, expected in zip(process.predict(points), fitted.predict(points), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_process_is_a_conditional_normal_distribution():
    # The same numbers from numpy's dense formulas.
    rng = np.random.default_rng(0)
    points, new = rng.random((7, 2)), rng.random((3, 2))
    targets = rng.standard_normal((7, 1))
    process = with_kernel(np.log([1.0, 0.5, 0.3, 0.6, 0.01, 1.5, 0.5]))(points, targets, np.ones(7))

    def kernel(one, other):
        z, w = 2 * one * [1.5, 0.5], 2 * other * [1.5, 0.5]
        inner = z @ w.T / 2
        a = np.sqrt(5) * np.linalg.norm(z[:, None] - w[None], axis=2) / (0.6 * np.sqrt(2))
        return 100 + inner + 0.5 * inner**2 + 0.3 * (1 + a + a**2 / 3) * np.exp(-a)

    inverse = np.linalg.inv(kernel(points, points) + 0.01 * np.eye(7))
    cross = kernel(new, points)
    scaled = (targets - targets.mean()) / targets.std()
    mean, variance = process.predict(new)
    np.testing.assert_allclose(mean, targets.mean() + targets.std() * cross @ inverse @ scaled, rtol=1e-8)
    expected = np.diag(kernel(new, new)) - np.einsum("ij,jk,ik->i", cross, inverse, cross) + 0.01
    np.testing.assert_allclose(variance, expected, rtol=1e-6)


def test_least_squares_is_numpys():
    rng = np.random.default_rng(0)
    points, target, weights = rng.random((15, 3)), rng.standard_normal(15), rng.uniform(0.2, 2, 15)
    root = np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(root * surrogate.quadratic_terms(points), root[:, 0] * target)[0]
    found = LeastSquares(points, target, weights).predict(points, np.ones_like)[0]
    np.testing.assert_allclose(found, surrogate.quadratic_terms(points) @ expected, rtol=1e-8)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_hyperparameters_are_at_least_as_likely_as_where_their_search_starts(seed):
    rng = np.random.default_rng(seed)
    points = rng.random((12, 2))
    targets = np.sin(4 * points @ rng.standard_normal((2, 3))) + 0.05 * rng.standard_normal((12, 3))
    process = Process(points, targets, np.ones(12))
    outputs = (targets - targets.mean(axis=0)) / targets.std(axis=0)

    def posterior(kernel):
        covariance = process._covariance(kernel)[0] + np.exp(kernel[4]) * np.eye(12)
        likely = -0.5 * np.mean([y @ np.linalg.solve(covariance, y) for y in outputs.T])
        prior = -0.5 * np.sum(((kernel[:5] - Process._CENTRE) / Process._SPREAD) ** 2) - 0.5 * kernel[5:] @ kernel[5:]
        return likely - 0.5 * np.linalg.slogdet(covariance)[1] + prior

    best = posterior(process.kernel)
    assert all(best >= posterior(np.append(start, [0, 0])) for start in Process._STARTS)
    bounds = [*Process._BOUNDS, Process._RELEVANCE, Process._RELEVANCE]
    for i in range(7):  # and nowhere better close by, but for bounds
        for step in (-0.3, 0.3):
            moved = process.kernel.copy()
            moved[i] = np.clip(moved[i] + step, *bounds[i])
            assert posterior(moved) <= best + 1e-4


def test_gene_that_does_not_matter_is_found_out_from_many_outputs_and_one_output_takes_all_alike():
    rng = np.random.default_rng(0)
    points = rng.random((20, 2))
    targets = np.sin(5 * points[:, :1] + rng.uniform(0, 6, 8))  # of the first gene alone
    many, one = (Process(points, found, np.ones(20)).kernel[5:] for found in (targets, targets[:, :1]))
    assert many[0] > many[1] + np.log(4)
    np.testing.assert_array_equal(one, 0)


@pytest.mark.parametrize(
    ("warp", "values"),
    [
        (IDENTITY, [-3.0, 0.0, 7.0]),
        (logit(0, 1, 40), [0.0, 0.3, 0.975, 1.0]),
        (logit(-1, 3, 10), [-1.0, 0.2, 3.0]),
        (log(0, -1), [-5.0, -0.1]),
        (log(2, 1), [2.5, 90.0]),
    ],
)
def test_warps_have_an_inverse_and_certain_scores_come_back_certain(warp, values):
    given = np.array(values)
    np.testing.assert_allclose(warp.unwarp(warp.warp(given)), given, atol=1e-9)
    mean, deviation = unwarp_normal(warp, warp.warp(given), np.zeros(len(given)))
    np.testing.assert_allclose(mean, given, atol=1e-9)
    np.testing.assert_allclose(deviation, 0, atol=1e-7)


def test_mean_and_deviation_come_back_through_a_warp():
    # A log-normal's: exp(μ + s²/2) and mean · √(exp(s²) - 1); here μ = 0.2, s² = 0.25.
    mean, deviation = unwarp_normal(log(0, -1), np.array([0.2]), np.array([0.25]))
    np.testing.assert_allclose(mean, [-1.384031], rtol=1e-5)
    np.testing.assert_allclose(deviation, [1.384031 * 0.532940], rtol=1e-4)
