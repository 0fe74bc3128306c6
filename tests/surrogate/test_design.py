"""Designs: their points, and whether these identify a quadratic."""

import numpy as np
import pytest

from evomerge import surrogate
from evomerge.errors import SurrogateError


def test_unknowns_of_a_quadratic():
    assert [surrogate.unknowns(genes) for genes in range(1, 9)] == [3, 6, 10, 15, 21, 28, 36, 45]


def test_quadratic_terms_by_hand():
    # Genes 0.75 and 0 are 0.5 and -1 when centred: 1, both, and 0.25, -0.5, 1.
    np.testing.assert_allclose(surrogate.quadratic_terms([[0.75, 0.0]]), [[1, 0.5, -1, 0.25, -0.5, 1]])


def test_design_begins_with_what_is_known_and_fills_the_box():
    known = np.vstack([np.zeros(3), np.eye(3)])
    points = surrogate.design(3, known, 20, 7)
    np.testing.assert_array_equal(points[:4], known)
    assert points.shape == (20, 3)
    for column in points[4:].T:  # of the 16, one in each sixteenth
        assert sorted(np.floor(column * 16)) == list(range(16))
    np.testing.assert_array_equal(points, surrogate.design(3, known, 20, 7))
    assert (points[4:] != surrogate.design(3, known, 20, 8)[4:]).any()
    assert surrogate.identifies(points)


def test_two_levels_do_not_identify_a_quadratic():
    # The published design in eight dimensions: rank 37 of 45.
    points = np.array(np.unravel_index(np.arange(256), [2] * 8)).T.astype(float)
    with pytest.raises(SurrogateError, match=r"256 points identify 37 of the 45 unknowns.*gene 0 takes fewer than 3"):
        surrogate.check_rank(points)


def test_genes_that_change_together_do_not_identify_a_quadratic():
    line = np.linspace(0, 1, 9)
    with pytest.raises(SurrogateError, match="only change together"):
        surrogate.check_rank(np.stack([line, line], axis=1))


def test_fewer_points_than_unknowns_do_not_identify_a_quadratic():
    for count in (0, 5):
        with pytest.raises(SurrogateError, match="evaluate 6 or more"):
            surrogate.check_rank(surrogate.design(2, [], 8, 0)[:count])
