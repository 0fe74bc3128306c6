"""Directions of published methods, by hand."""

import numpy as np
import pytest
from shared import directions


def test_mgda_is_the_shortest_vector_of_the_hull():
    # The segment from (1, 0) to (0, 2): its nearest point to 0 is (4, 2) / 5, orthogonal to it.
    np.testing.assert_allclose(directions.mgda(np.array([[1.0, 0.0], [0.0, 2.0]])), [0.8, 0.4])
    # One slope is shorter than any mixture with a third that points the same way.
    np.testing.assert_allclose(directions.mgda(np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0]])), [1.0, 0.0])
    np.testing.assert_allclose(directions.mgda(np.array([[1.0, 1.0], [-2.0, -2.0]])), [0.0, 0.0], atol=1e-12)


def test_epo_balances_the_losses_and_lowers_all_of_them_where_they_are_balanced():
    slopes, even = np.eye(2), np.ones(2)
    # The larger loss alone, while they differ; both, once they are equal.
    np.testing.assert_allclose(directions.epo(slopes, np.array([3.0, 1.0]), even), [1.0, 0.0])
    direction = directions.epo(slopes, np.array([2.0, 2.0]), even)
    assert (slopes @ direction >= 0).all()
    # A ray that counts the first loss a third as much: 3 and 1 are balanced, and 1 and 1 are not.
    np.testing.assert_allclose(directions.epo(slopes, np.array([1.0, 1.0]), np.array([1.0, 3.0])), [0.0, 1.0])


def test_slopes_of_the_hypervolume_are_the_lengths_that_a_point_alone_dominates():
    points = np.array([[3.0, 1.0], [1.0, 2.0], [0.5, 0.5]])
    # Above (0, 0): the first moves along x on a length of 1, and along y on 3 - 1; the third is in a layer of its own.
    found = directions.hypervolume_slopes(points, np.zeros(2))
    np.testing.assert_allclose(found, [[1.0, 2.0], [1.0, 1.0], [0.5, 0.5]], atol=1e-5)


def test_an_undamped_gauss_newton_step_solves_a_linear_least_squares_problem():
    # Losses r² / 2 with r = x - (1, 2), at x = 0, weights 1/2 each: one step reaches the minimum.
    residuals = -np.array([1.0, 2.0])
    jacobian, losses, shares = -residuals[:, None] * np.eye(2), residuals**2 / 2, np.full(2, 0.5)
    free = np.array([True, True])
    step = directions.levenberg_marquardt(jacobian, losses, shares, 0.0, free)
    np.testing.assert_allclose(step, [1.0, 2.0])
    assert directions.levenberg_marquardt(jacobian, losses, shares, 1.0, free) == pytest.approx([0.5, 1.0])
    held = directions.levenberg_marquardt(jacobian, losses, shares, 0.0, np.array([False, True]))
    np.testing.assert_allclose(held, [0.0, 2.0])
