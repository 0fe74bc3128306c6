"""Surrogates of values and slopes: derivatives of the kernel, left-out predictions, exactness, noise."""

import numpy as np
import pytest

from evomerge import surrogate
from evomerge.surrogate import slopes as module
from evomerge.surrogate.slopes import SlopedProcess, SlopedTrend, Slopes
from evomerge.surrogate.warps import IDENTITY, log, logit

KERNEL = np.log([0.7, 0.4, 0.9, 0.6, 0.02, 0.05])


def along_genes(slopes, rows=None):
    """Return slopes `(points, genes)` along each gene."""
    count, genes = slopes.shape
    rows = np.arange(count) if rows is None else rows
    return Slopes(np.repeat(rows, genes), np.tile(np.eye(genes), (count, 1)), slopes.ravel())


class Quadratic:
    """A random quadratic."""

    def __init__(self, genes, seed=0):
        rng = np.random.default_rng(seed)
        half = rng.standard_normal((genes, genes)) / genes
        self.hessian, self.slope = half @ half.T, rng.standard_normal(genes)

    def __call__(self, points):
        return 0.5 * ((points @ self.hessian) * points).sum(axis=1) + points @ self.slope

    def slopes(self, points):
        return points @ self.hessian + self.slope


def r2(predicted, values):
    return 1 - ((predicted - values) ** 2).sum() / ((values - values.mean()) ** 2).sum()


def dense(points, rows, directions):
    """Return the covariance of values and slopes from central differences of the kernel with `KERNEL`, points times 2."""
    v1, v2, v3, length = np.exp(KERNEL[:4])
    genes, step = points.shape[1], 1e-4

    def kernel(x, y):
        inner, far = x @ y / genes, np.sqrt(5 * ((x - y) ** 2).sum() / genes) / length
        return 100.0 + v1 * inner + v2 * inner**2 + v3 * (1 + far + far**2 / 3) * np.exp(-far)

    zeros = np.zeros((len(points), genes))
    observed = [*zip(points, zeros, strict=True), *zip(points[rows], directions, strict=True)]

    def covariance(one, other):
        (x, v), (y, w) = one, other
        ends = [(1.0, x)] if not v.any() else [(s / (2 * step), x + s * step * v) for s in (1, -1)]
        others = [(1.0, y)] if not w.any() else [(s / (2 * step), y + s * step * w) for s in (1, -1)]
        return sum(a * b * kernel(p, q) for a, p in ends for b, q in others)

    return np.array([[covariance(one, other) for other in observed] for one in observed])


def test_process_is_a_conditional_normal_distribution_of_values_and_slopes(monkeypatch):
    rng = np.random.default_rng(0)
    points, new, rows = rng.random((5, 3)), rng.random((2, 3)), np.array([0, 1, 1, 3])
    directions, target = rng.standard_normal((4, 3)), rng.standard_normal(5)
    slopes = Slopes(rows, directions, rng.standard_normal(4))
    monkeypatch.setattr(module, "_choose", lambda *_: KERNEL)
    process = SlopedProcess(points, target, np.ones(5), slopes)
    everything = np.concatenate([points, new])
    covariance = dense(2 * everything, rows, 2 * directions)
    fitted, unknown = np.r_[0:5, 7:11], np.r_[5:7]
    steep = slopes.values / target.std()
    noise = np.r_[np.full(5, 0.02), np.full(4, 0.05 * np.mean(steep**2))]
    inverse = np.linalg.inv(covariance[np.ix_(fitted, fitted)] + np.diag(noise))
    cross = covariance[np.ix_(unknown, fitted)]
    mean, variance = process.predict(new)
    outputs = np.r_[(target - target.mean()) / target.std(), steep]
    np.testing.assert_allclose(mean, target.mean() + target.std() * cross @ inverse @ outputs, rtol=1e-4, atol=1e-4)
    expected = np.diag(covariance[np.ix_(unknown, unknown)] - cross @ inverse @ cross.T)
    np.testing.assert_allclose(variance, expected, rtol=1e-3, atol=1e-4)


def test_a_candidate_is_left_out_with_its_slopes(monkeypatch):
    rng = np.random.default_rng(1)
    points, target = rng.random((5, 2)), rng.standard_normal(5)
    slopes = along_genes(rng.standard_normal((4, 2)), np.array([0, 1, 2, 4]))
    monkeypatch.setattr(module, "_choose", lambda *_: KERNEL)
    mean, variance = SlopedProcess(points, target, np.ones(5), slopes).left_out()
    covariance = dense(2 * points, slopes.rows, 2 * slopes.directions)
    steep = slopes.values / target.std()
    noisy = covariance + np.diag(np.r_[np.full(5, 0.02), np.full(8, 0.05 * np.mean(steep**2))])
    outputs = np.r_[(target - target.mean()) / target.std(), steep]
    for i in range(5):
        rest = np.flatnonzero(np.r_[np.arange(5) != i, slopes.rows != i])
        weights = np.linalg.solve(noisy[np.ix_(rest, rest)], noisy[rest, i])
        assert mean[i] == pytest.approx(target.mean() + target.std() * weights @ outputs[rest], abs=1e-3)
        assert variance[i] == pytest.approx(noisy[i, i] - weights @ noisy[rest, i], rel=1e-2)


def test_hyperparameters_are_at_a_maximum_of_the_posterior():
    rng = np.random.default_rng(2)
    points = 2 * rng.random((6, 2))
    pairs = module._Pairs(points, np.repeat(np.arange(6), 2), np.tile(np.eye(2), (6, 1)))
    step = np.zeros(6)
    step[3] = 1e-5
    parts, by_length = module._parts(pairs, KERNEL)
    above, below = (module._parts(pairs, KERNEL + sign * step)[0][2] for sign in (1, -1))
    np.testing.assert_allclose(by_length, (above - below) / 2e-5, atol=1e-7)
    np.testing.assert_allclose(
        sum(parts),
        dense(points, np.repeat(np.arange(6), 2), np.tile(np.eye(2), (6, 1))) - np.pad(np.full((6, 6), 100.0), (0, 12)),
        atol=1e-5,
    )


@pytest.mark.parametrize("genes", [3, 8])
def test_quadratic_is_exact_from_one_point_more_than_genes(genes):
    truth, points = Quadratic(genes), surrogate.design(genes, (), genes + 1, 0)
    new = np.random.default_rng(9).random((50, genes))
    fit = SlopedTrend(points, truth(points), [IDENTITY], along_genes(truth.slopes(points)))
    assert r2(fit.predict(new)[0], truth(new)) > 0.999
    without = surrogate.fit(points, truth(points)[:, None])
    assert r2(without.predict(new)[0], truth(new)) < 0.99


@pytest.mark.parametrize(
    ("bounds", "warp"), [((-np.inf, 0.0), log(0.0, -1)), ((0.0, 1.0), logit(0.0, 1.0, 1000))], ids=["log", "logit"]
)
def test_slopes_are_warped_as_their_scores_are(bounds, warp):
    truth, points = Quadratic(4), surrogate.design(4, (), 7, 0)
    value = lambda x: warp.unwarp(truth(x))  # noqa: E731  # one line of mathematics
    step = 1e-5 * np.eye(4)
    slopes = np.stack([(value(points + move) - value(points - move)) / 2e-5 for move in step], axis=1)
    fit = surrogate.fit(points, np.tile(value(points)[:, None], 1000), bounds=bounds, slopes=along_genes(slopes))
    new = np.random.default_rng(9).random((50, 4))
    assert fit.name == "quadratic + Matérn with slopes"
    assert r2(fit.predict(new)[0], value(new)) > 0.999


def test_noise_of_slopes_is_learnt_and_weighs_them():
    truth, points = Quadratic(3), surrogate.design(3, (), 24, 0)
    rng = np.random.default_rng(0)
    new, exact = rng.random((50, 3)), truth.slopes(points)
    kernels, scores = [], []
    for noise in (0.0, 0.3, 10.0):
        slopes = along_genes(exact + noise * exact.std() * rng.standard_normal(exact.shape))
        process = SlopedProcess(points, truth(points), np.ones(24), slopes)
        kernels.append(process.kernel[5])
        scores.append(r2(process.predict(new)[0], truth(new)))
    assert kernels[0] < kernels[1] < kernels[2]
    assert min(scores) > 0.99  # also with slopes that are only noise


def test_candidates_without_slopes_count_by_their_scores():
    truth, points = Quadratic(3), surrogate.design(3, (), 12, 0)
    none = Slopes(np.empty(0, dtype=np.intp), np.empty((0, 3)), np.empty(0))
    new = np.random.default_rng(9).random((50, 3))
    bare = surrogate.fit(points, truth(points)[:, None], slopes=none)
    some = surrogate.fit(points, truth(points)[:, None], slopes=along_genes(truth.slopes(points[:3]), np.arange(3)))
    assert bare.r2 > 0.9
    assert r2(some.predict(new)[0], truth(new)) > r2(bare.predict(new)[0], truth(new))


def test_hyperparameters_of_many_genes_are_chosen_from_part_of_the_slopes(monkeypatch):
    truth, points = Quadratic(12), surrogate.design(12, (), 13, 0)
    monkeypatch.setattr(module, "_MOST", 60)
    process = SlopedProcess(points, truth(points), np.ones(13), along_genes(truth.slopes(points)))
    new = np.random.default_rng(9).random((50, 12))
    assert r2(process.predict(new)[0], truth(new)) > 0.999
