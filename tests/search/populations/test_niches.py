"""M2N2: the equations by hand, and the archive against loops written from the paper."""

import numpy as np
import pytest

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.populations.niches import Niches, NichesSettings, attraction, fitness
from evomerge.testing import drive, family


def archive_of(rows, **settings):
    archive = Niches(["t/m"], NichesSettings(**{"population": max(len(rows), 2), **settings}))
    for i, row in enumerate(rows):
        archive.insert(str(i), [np.array(row, dtype=float)])
    return archive


def test_reward_of_an_example_is_shared_among_the_members_that_solve_it():
    scores = np.array([[1, 1, 0, 0], [0, 1, 1, 0.0]])  # z = 1, 2, 1, 0
    np.testing.assert_allclose(fitness(scores, 1), [1 + 1 / 2, 1 / 2 + 1])
    np.testing.assert_allclose(fitness(scores, 2), [1 + 1 / 4, 1 / 4 + 1])


def test_without_competition_fitness_is_the_number_solved():
    scores = np.array([[1, 1, 0, 0], [1, 1, 1, 0.0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(fitness(scores, 0), [2, 3, 0])


def test_capacity_of_an_example_is_the_best_continuous_score():
    scores = np.array([[0.5, 0.2], [0.25, 0.2]])  # z = 0.75, 0.4 and c = 0.5, 0.2
    expected = [0.5 * 0.5 / 0.75 + 0.2 * 0.2 / 0.4, 0.5 * 0.25 / 0.75 + 0.2 * 0.2 / 0.4]
    np.testing.assert_allclose(fitness(scores, 1), expected)


def test_attraction_is_to_examples_that_the_first_fails_and_most_to_rare_ones():
    scores = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0.0]])  # z = 2, 2, 1
    np.testing.assert_allclose(attraction(scores, 0), [0, 1 / 2 + 1, 1 / 2, 0])
    np.testing.assert_allclose(attraction(scores, 1), [1 / 2, 0, 0, 1 / 2])


def test_attraction_of_continuous_scores_is_proportional_to_the_difference():
    scores = np.array([[0.5, 0.2], [0.25, 0.6]])  # z = 0.75, 0.8 and c = 0.5, 0.6
    np.testing.assert_allclose(attraction(scores, 0), [0, 0.6 / 0.8 * 0.4])


def test_archive_fills_up_with_any_candidates():
    assert archive_of([[1, 1], [0, 0], [0, 0]]).members == ("0", "1", "2")


def test_candidate_counts_in_the_competition_before_the_removal():
    # Alone, 0 and 1 share the first two examples: f = 1, 1. With 2, z = 3, 2, 1 and f = 5/6, 5/6, 4/3.
    archive = archive_of([[1, 1, 0], [1, 1, 0]])
    archive.insert("2", [np.array([1, 0, 1.0])])
    assert archive.members == ("2", "1")
    np.testing.assert_array_equal(archive.scores, [[1, 0, 1], [1, 1, 0]])


def test_candidate_of_the_lowest_fitness_is_rejected():
    archive = archive_of([[1, 1, 0], [0, 1, 1]])
    archive.insert("2", [np.array([0, 1, 0.0])])
    assert archive.members == ("0", "1")


def test_first_of_equals_is_removed_and_the_candidate_stays():
    archive = archive_of([[1, 0, 1]] * 3)
    for name in ("3", "4", "5", "6"):
        archive.insert(name, [np.array([1, 0, 1.0])])
    assert archive.members == ("6", "1", "2")


def test_equal_rows_have_equal_fitness_at_any_position():
    row = np.random.default_rng(0).random(1437)
    for count in range(2, 24):
        assert len(set(fitness(np.tile(row, (count, 1)), 1))) == 1


def slow_fitness(rows, alpha, relative):
    """Eqs. 1-3, as loops over members and examples."""
    members, examples = range(len(rows)), range(len(rows[0]))
    if relative:
        worst = [min(rows[i][j] for i in members) for j in examples]
        rows = [[rows[i][j] - worst[j] for j in examples] for i in members]
    fit = []
    for i in members:
        total = 0.0
        for j in examples:
            crowd = sum(rows[k][j] for k in members)
            if crowd > 0:
                total += max(rows[k][j] for k in members) * rows[i][j] / crowd**alpha
        fit.append(total)
    return fit


@pytest.mark.parametrize(
    ("settings", "sample"),
    [
        ({}, lambda rng, skill: rng.random(11) * skill),
        ({"alpha": 0}, lambda rng, skill: rng.random(11) * skill),
        ({"alpha": 1.7}, lambda rng, skill: rng.random(11) * skill),
        ({"relative": True}, lambda rng, skill: np.log(rng.random(11)) - skill),
        ({"relative": True, "alpha": 2}, lambda rng, skill: np.log(rng.random(11)) - skill),
    ],
)
def test_archive_equals_that_of_plain_loops_over_400_candidates(settings, sample):
    rng = np.random.default_rng(0)
    skill = rng.random(11)
    archive = archive_of([], population=5, **settings)
    ids, rows = [], []
    for number in range(400):
        row = sample(rng, skill).tolist()
        archive.insert(str(number), [np.array(row)])
        if len(ids) < 5:
            ids.append(str(number))
            rows.append(row)
        else:
            fit = slow_fitness([*rows, row], archive._settings.alpha, archive._settings.relative)
            worst = fit.index(min(fit))
            if worst < 5:
                ids[worst], rows[worst] = str(number), row
        assert archive.members == tuple(ids)
        np.testing.assert_array_equal(archive.scores, rows)


@pytest.mark.parametrize("alpha", [0, 1, 2])
def test_first_of_the_least_fit_is_removed_with_binary_scores(alpha):
    rng = np.random.default_rng(1)
    archive = archive_of([], population=5, alpha=alpha)
    for number in range(400):
        row = (rng.random(13) < 0.5).astype(float)
        rows, ids = [*archive.scores.tolist(), row.tolist()], [*archive.members, str(number)]
        archive.insert(str(number), [row])
        if len(ids) > 5:
            fit = np.array(slow_fitness(rows, alpha, relative=False))
            least = [i for i in range(6) if fit[i] < fit.min() + 1e-9]  # rounding decides among sums of other terms
            removed = next(i for i in range(6) if ids[i] not in archive.members)
            assert removed in least
            assert removed == next(i for i in range(6) if rows[i] == rows[removed])


def shares(archive, draws=4000):
    rng = np.random.default_rng(0)
    """Return the shares of the ordered pairs of parents among `draws`, `(members, members)`."""
    frequencies = np.zeros((len(archive.members),) * 2)
    for _ in range(draws):
        mother, father = archive.choose(rng, 0)
        frequencies[int(mother), int(father)] += 1 / draws
    return frequencies


def test_parents_are_drawn_by_fitness_and_by_attraction():
    rows = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0.0]])
    first = fitness(rows, 1) / fitness(rows, 1).sum()
    second = np.array([attraction(rows, i) / attraction(rows, i).sum() for i in range(4)])
    np.testing.assert_allclose(shares(archive_of(rows)), first[:, None] * second, atol=0.03)


def test_without_a_matchmaker_both_parents_are_drawn_by_fitness_with_replacement():
    rows = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0.0]])
    first = fitness(rows, 1) / fitness(rows, 1).sum()
    np.testing.assert_allclose(shares(archive_of(rows, matchmaker=False)), np.outer(first, first), atol=0.03)


def test_without_any_attraction_the_second_parent_is_drawn_by_fitness():
    # Member 0 solves all examples and is attracted to none: the others have f = 1/3 + 1/2 and 1/3, a share of 5/7 and 2/7.
    frequencies = shares(archive_of([[1, 1, 1], [1, 1, 0], [1, 0, 0.0]]))
    assert np.diag(frequencies).tolist() == [0, 0, 0]
    assert frequencies[0, 1] / frequencies[0].sum() == pytest.approx(5 / 7, abs=0.03)


def test_all_pairs_are_equally_likely_if_all_scores_are_0():
    np.testing.assert_allclose(shares(archive_of([[0, 0]] * 3)), (1 - np.eye(3)) / 6, atol=0.03)


def test_scores_outside_of_0_to_1_are_refused_with_what_to_type():
    archive = Niches(["a/hits", "b/logp"], NichesSettings())
    with pytest.raises(DriverError) as caught:
        archive.insert("x", [np.array([1.0]), np.array([-5.5, -0.25])])
    assert "scores of `b/logp` are in [-5.5, -0.25]" in str(caught.value)
    assert "set the `search_metric` of the task `b`" in str(caught.value)
    assert "`relative: true`" in str(caught.value)
    assert archive.members == ()


def test_scores_may_exceed_0_to_1_by_rounding():
    archive_of([[1 + 1e-7, -1e-7], [0.5, 0.5], [0.5, 0.5]], population=2)


def test_relative_scores_are_invariant_to_an_offset_per_example():
    rng = np.random.default_rng(0)
    rows = np.round(rng.random((60, 7)) * 64) / 64  # sums of these and of the offsets are exact
    offsets = rng.integers(-50, 50, 7)
    near, far = (archive_of(r, relative=True, population=5) for r in (rows, rows + offsets))
    assert near.members == far.members
    near._ids = far._ids = list("01234")  # `shares` needs ids that are row numbers
    np.testing.assert_array_equal(shares(near, 50), shares(far, 50))


def test_competition_keeps_more_examples_covered_than_a_plain_genetic_algorithm():
    """The paper's claim, on skills of which no member can have all."""
    for seed in range(3):
        covered = {}
        for alpha, matchmaker in ((1, True), (0, False)):
            problem = family()
            settings = {"kind": "niches", "alpha": alpha, "matchmaker": matchmaker, "population": 10}
            driver = search.make(settings, problem.space, problem.objectives, seed)
            drive(driver, problem.evaluate, 500)
            covered[alpha] = driver.diagnostics()
        assert covered[1]["coverage"] > covered[0]["coverage"] + 0.1
        assert covered[1]["entropy"] > covered[0]["entropy"] + 0.2
