"""Infill: expected improvements against closed forms and plain Monte Carlo, the noise floor by hand, candidates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.algorithms.moo.nsga2 import NSGA2
from scipy.stats import norm

from evomerge import pareto
from evomerge.search.fronts import infill


def choose(points, means, deviations, scores, reference, size):
    volume = infill.Volume(scores, np.asarray(reference, dtype=float), 0)
    return infill.choose(points, means, deviations, scores, volume, size, 0)


def far_apart(count):
    return np.linspace(0, 1, count)[:, None]


def shell(count, objectives, seed=0):
    """Return points on the positive part of the unit sphere."""
    points = np.abs(np.random.default_rng(seed).standard_normal((count, objectives)))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_candidates_in_flight_count_as_if_they_were_chosen_before():
    scores, means = 0.9 * shell(10, 2), shell(60, 2, 1)
    deviations = np.full_like(means, 0.02)
    points, volume = far_apart(60), infill.Volume(scores, np.zeros(2), 0)
    both, gain = infill.choose(points, means, deviations, scores, volume, 2, 0)
    first, alone = infill.choose(points, means, deviations, scores, volume, 1, 0)
    waiting = means[first], deviations[first]
    rest = np.delete(np.arange(60), first)
    second, added = infill.choose(points[rest], means[rest], deviations[rest], scores, volume, 1, 0, waiting)
    assert [first[0], rest[second][0]] == both.tolist()
    assert alone + added == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("waiting", [0, 30])
def test_choices_are_those_of_computing_every_gain_in_every_round(objectives, waiting):
    scores, means = 0.9 * shell(30, objectives), shell(120, objectives, 1)
    points, deviations = np.random.default_rng(2).random((120, 3)), np.full_like(means, 0.05)
    volume = infill.Volume(scores, np.full(objectives, -0.1), 0)
    in_flight = (shell(waiting, objectives, 3), np.full((waiting, objectives), 0.03)) if waiting else None
    draws = infill._normal(objectives, 5, np.random.default_rng(np.random.SeedSequence([0, 3])))
    pending = np.tile(volume.along(scores).max(axis=0), (32, 1))
    for mean, deviation in zip(*in_flight, strict=True) if in_flight else ():
        pending = np.maximum(pending, volume.along(mean + draws * deviation))
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    before, expected, free = pending.mean(), [], np.ones(120, bool)
    for _ in range(12):
        rough = sum(
            weight
            / weights.sum()
            * np.maximum(volume.along(means + node * deviations) - pending.mean(axis=0), 0).mean(axis=1)
            for node, weight in zip(nodes, weights, strict=True)
        )
        listed = np.argsort(np.where(free, -rough, 1.0), kind="stable")[:64]
        gains = [np.maximum(volume.along(means[i] + draws * deviations[i]) - pending, 0).mean() for i in listed]
        expected.append(int(listed[np.argmax(gains)]))
        pending = np.maximum(pending, volume.along(means[expected[-1]] + draws * deviations[expected[-1]]))
        free &= np.abs(points - points[expected[-1]]).max(axis=1) > infill.APART
    rows, gain = infill.choose(points, means, deviations, scores, volume, 12, 0, in_flight)
    assert rows.tolist() == expected
    assert gain == pytest.approx(volume.scale * (pending.mean() - before), rel=1e-12)


def test_rows_nearest_to_the_front_are_the_first_and_then_front_after_front_from_end_to_end():
    scores = np.array([[0, 0], [9, 9], [1, 0], [0, 1], [0.9, 0.9], [0.5, 0.5], [0.1, 0.6], [0.2, 0.1]])
    assert infill.nearest_to_front(scores, 2, 5).tolist() == [0, 1, 2, 3, 4], "a front of three"
    assert infill.nearest_to_front(scores, 2, 4).tolist() == [0, 1, 2, 3], "its ends"
    assert infill.nearest_to_front(scores, 2, 7).tolist() == [0, 1, 2, 3, 4, 5, 6], "then the next"
    assert sorted(infill.nearest_to_front(scores, 2, 20)) == [*range(8)]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 6])
def test_certain_candidates_add_their_hypervolume_and_are_near_the_best_greedy_choice(objectives):
    scores, means = 0.95 * shell(20, objectives), shell(200, objectives, 1)
    reference = np.full(objectives, -0.1)
    rows, gain = choose(far_apart(200), means, np.zeros_like(means), scores, reference, 4)
    before = pareto.hypervolume(scores, reference)
    added = pareto.hypervolume([*scores, *means[rows]], reference) - before
    assert gain == pytest.approx(added, rel=0.15, abs=1e-12)
    best = list(scores)
    for _ in range(4):
        best.append(max(means, key=lambda mean: pareto.hypervolume([*best, mean], reference)))
    assert added > 0.85 * (pareto.hypervolume(best, reference) - before)


def test_one_objective_is_expected_improvement():
    # Closed form (Jones et al. 1998): (m - b) Φ(z) + s φ(z), z = (m - b) / s; here of the one candidate.
    for mean, deviation in ((0.9, 0.3), (1.2, 0.1), (0.7, 0.4)):
        _, gain = choose(
            far_apart(1), np.array([[mean]]), np.array([[deviation]]), np.array([[0.0], [1.0]]), np.zeros(1), 1
        )
        z = (mean - 1) / deviation
        assert gain == pytest.approx((mean - 1) * norm.cdf(z) + deviation * norm.pdf(z), rel=0.1)


def test_two_objectives_are_as_monte_carlo_with_exact_volumes_has_them():
    scores, reference = np.array([[0.2, 0.9], [0.6, 0.6], [0.9, 0.1]]), np.zeros(2)
    mean, deviation = np.array([[0.75, 0.45]]), np.array([[0.1, 0.2]])
    _, gain = choose(far_apart(1), mean, deviation, scores, reference, 1)
    drawn = mean + deviation * np.random.default_rng(1).standard_normal((4000, 2))
    before = pareto.hypervolume(scores, reference)
    expected = np.mean([pareto.hypervolume([*scores, draw], reference) - before for draw in drawn])
    assert gain == pytest.approx(expected, rel=0.1)


def test_candidates_in_flight_hide_their_neighbours():
    # Two gaps in the front, each with two candidates that are as good as the same.
    scores, reference = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([-0.1, -0.1])
    means = np.array([[0.5, 0.7], [0.5001, 0.7], [0.7, 0.5], [0.7, 0.5001]])
    rows, _ = choose(far_apart(4), means, np.full((4, 2), 0.02), scores, reference, 2)
    assert sorted(row // 2 for row in rows) == [0, 1]


def test_same_point_is_not_chosen_twice():
    points = np.array([[0.5], [0.5 + infill.APART / 2], [0.9]])
    means = np.array([[2.0], [2.0], [0.1]])
    rows, _ = choose(points, means, np.full((3, 1), 0.1), np.array([[1.0]]), np.zeros(1), 3)
    assert len(rows) == 2
    assert rows[1] == 2


def test_more_spread_promises_more_beyond_the_front():
    scores = np.array([[0.0], [1.0]])
    rows, _ = choose(far_apart(2), np.array([[0.9], [0.9]]), np.array([[0.01], [0.3]]), scores, np.zeros(1), 1)
    assert rows.tolist() == [1]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_volume_is_the_hypervolume(objectives):
    scores = np.array([1.0, 10, 0.1, 3, 7])[:objectives] * shell(15, objectives)
    reference = scores.min(axis=0) - 0.1 * np.ptp(scores, axis=0)
    volume = infill.Volume(scores, reference, 0).of(scores)
    assert volume == pytest.approx(pareto.hypervolume(scores, reference), rel=0.05)


def test_scores_that_are_all_equal_have_no_volume_and_anything_above_them_gains():
    for objectives in (1, 2):
        scores = np.full((3, objectives), 0.5)
        _, gain = choose(far_apart(1), scores[:1], np.full((1, objectives), 0.1), scores, scores[0], 1)
        assert infill.Volume(scores, scores[0], 0).of(scores) == 0
        assert gain > 0


def test_noise_floor_by_hand():
    # Above (0, 0): (1, 2) and (2, 1) dominate 3. One of 0.1 more in its higher coordinate: a slab of 0.1 x 1; in its lower
    # one 0.1 x (2 - 1). So each point moves √(0.1² + 0.1²), and two of them √2 times that; the third is dominated.
    scores, errors = np.array([[1.0, 2], [2, 1], [0.5, 0.5]]), np.full((3, 2), 0.1)
    volume = infill.Volume(scores, np.zeros(2), 0)
    assert infill.noise_floor(scores, errors.__getitem__, volume, 1) == pytest.approx(np.sqrt(2) * 0.1, rel=0.05)
    assert infill.noise_floor(scores, errors.__getitem__, volume, 4) == pytest.approx(0.2, rel=0.05)
    scores, errors = np.array([[1.0], [3.0]]), np.array([[9.0], [0.25]])
    floor = infill.noise_floor(scores, errors.__getitem__, infill.Volume(scores, np.zeros(1), 0), 4)
    assert floor == pytest.approx(0.25)


def test_errors_are_of_the_differences_to_the_nearest_neighbour():
    # Differences of the first two: -1, 0, 0, 0, with variance 0.25 over four examples; the third is nearest to the second,
    # and differs by 0, 1, 0, 1: variance 1/3.
    points = np.array([[0.0], [0.1], [0.5]])
    scores = np.array([[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0.0]])
    expected = np.array([0.25, 0.25, np.sqrt(2 / 3 / 4)])
    errors = infill.paired_errors(points, np.array([2, 0, 1]), [scores, scores[:, :1]])
    np.testing.assert_allclose(errors, np.stack([expected[[2, 0, 1]], np.zeros(3)], axis=1))


@pytest.mark.parametrize("genes", [1, 3])
def test_points_are_new_where_they_differ_by_more_than_a_thousandth_in_some_gene_among_few_and_many(genes):
    rng = np.random.default_rng(0)
    tried = rng.random((2000, genes))
    points = tried[:400] + rng.choice([0.0, 0.0005, 0.0015, 0.5], (400, genes))
    away = np.abs(points[:, None] - tried).max(axis=2).min(axis=1)
    assert infill.is_new(points, tried).tolist() == (away > infill.APART).tolist()
    assert (
        infill.is_new(points, tried[:900]).tolist()
        == (np.abs(points[:, None] - tried[:900]).max(axis=2).min(axis=1) > infill.APART).tolist()
    )


def test_reference_is_a_tenth_of_the_range_below_both_fronts():
    scores = np.array([[1.0, 3], [3, 1], [0, 0]])
    np.testing.assert_allclose(infill.reference_point(scores, scores[:0]), [0.8, 0.8])
    np.testing.assert_allclose(infill.reference_point(scores, np.array([[4.0, 0.5], [0, 0]])), [0.7, 0.25])
    # A front of one point has no range.
    np.testing.assert_allclose(infill.reference_point(np.array([[2.0, 2], [1, 0]]), scores[:0]), [1.9, 1.8])
    np.testing.assert_allclose(infill.reference_point(np.array([[2.0], [1]]), scores[:0, :1]), [1])


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_spread_is_different_rows_with_each_objectives_best(seed, count, objectives):
    scores = np.random.default_rng(seed).integers(0, 4, (9, objectives)).astype(float)
    rows = infill.spread(scores, count)
    assert len(rows) == min(count, len(np.unique(scores, axis=0)))
    assert len({scores[row].tobytes() for row in rows}) == len(rows)
    if count >= objectives:
        np.testing.assert_array_equal(scores[rows].max(axis=0), scores.max(axis=0))


def test_points_nearer_to_a_failure_than_to_any_success():
    points = np.array([[0.1], [0.4], [0.6]])
    failed, succeeded = np.array([[0.0]]), np.array([[1.0], [0.5]])
    assert infill.nearer_to_failures(points, failed, succeeded).tolist() == [True, False, False]
    assert not infill.nearer_to_failures(points, failed[:0], succeeded).any()


def test_candidates_reach_the_predicted_front_where_they_are_allowed():
    middles = np.array([[0.2, 0.2, 0.2], [0.8, 0.8, 0.8]])

    def predict(points):
        scores = -((points[:, None] - middles) ** 2).sum(axis=2)
        return scores, points[:, 0] - 0.6

    tried = infill.candidates(predict, np.full((1, 3), 0.5), (3, 2), 6, 0)
    assert tried.min() >= 0
    assert tried.max() <= 1
    scores, broken = predict(tried)
    allowed = scores[broken <= 0]
    fine = middles[0] + np.linspace(0, 2 / 3, 400)[:, None] * (middles[1] - middles[0])  # as far as allowed
    true = pareto.hypervolume(predict(fine)[0], [-1.2, -1.2])
    assert pareto.hypervolume(allowed, [-1.2, -1.2]) > 0.98 * true
    assert (tried == infill.candidates(predict, np.full((1, 3), 0.5), (3, 2), 6, 0)).all()


def test_points_that_violate_a_constraint_die_out():
    algorithm = NSGA2(pop_size=20, output=None)
    points, _ = infill.evolve(algorithm, lambda x: (x, x.sum(axis=1) - 1), (2, 2), 20, 0)
    assert (points[-20:].sum(axis=1) <= 1).mean() > 0.5 > (points[:20].sum(axis=1) <= 0.5).mean()
    assert len(points) == 400
