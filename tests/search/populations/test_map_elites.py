"""MAP-Elites: cells, elites and parents."""

import numpy as np
import pytest

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.populations.map_elites import MapElites, MapElitesSettings
from evomerge.testing import drive, family


def insert(archive, name, *means):
    archive.insert(name, [np.array([mean]) for mean in means])


@pytest.fixture
def archive():
    return MapElites(["a/x", "b/x"], MapElitesSettings())


def test_mean_of_1_is_in_the_last_cell(archive):
    insert(archive, "good", 0.95, 1)
    insert(archive, "perfect", 1, 1)
    assert archive.members == ("perfect",)


def test_elite_is_replaced_only_by_a_strictly_better_one_of_its_cell(archive):
    insert(archive, "first", 0.3125, 0.5625)
    insert(archive, "equal", 0.375, 0.5)
    insert(archive, "elsewhere", 0.41, 0.58)
    assert archive.members == ("first", "elsewhere")
    insert(archive, "better", 0.39, 0.52)
    assert archive.members == ("better", "elsewhere")


def test_axes_are_the_first_two_objectives_and_quality_the_mean_of_all():
    archive = MapElites(["a/x", "b/x", "c/x"], MapElitesSettings(bins=4))
    archive.insert("one", [np.array([1, 0, 0, 0.0]), np.array([1, 1.0]), np.array([0.0])])
    archive.insert("other", [np.array([0, 0, 0, 1.0]), np.array([1, 1.0]), np.array([1.0])])
    assert archive.members == ("other",)
    np.testing.assert_array_equal(archive.scores, [[0, 0, 0, 1, 1, 1, 1]])


def test_archive_equals_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    archive, cells = MapElites(["a/x", "b/x"], MapElitesSettings(bins=5)), {}
    for number in range(500):
        one, other = np.sqrt(rng.random(2))
        insert(archive, str(number), one, other)
        cell = next((i, j) for i in range(5) for j in range(5) if one < (i + 1) / 5 and other < (j + 1) / 5)
        if cell not in cells or one + other > cells[cell][1]:
            cells[cell] = str(number), one + other
        assert set(archive.members) == {name for name, _ in cells.values()}


def test_parents_are_different_elites_drawn_by_quality(archive):
    for name, mean in (("a", 0.1), ("b", 0.3), ("c", 0.6)):
        insert(archive, name, mean, mean)
    rng = np.random.default_rng(0)
    pairs = [archive.choose(rng, 0) for _ in range(4000)]
    assert all(mother != father for mother, father in pairs)
    assert np.mean([mother == "c" for mother, _ in pairs]) == pytest.approx(0.6, abs=0.03)
    assert np.mean([father == "b" for mother, father in pairs if mother == "c"]) == pytest.approx(0.75, abs=0.03)


def test_only_elite_is_both_parents(archive):
    insert(archive, "a", 0, 0)
    assert archive.choose(np.random.default_rng(0), 0) == ("a", "a")


def test_one_objective_is_refused():
    with pytest.raises(DriverError, match="lays its grid over two objectives, got one; type `kind: niches`"):
        search.make({"kind": "map_elites"}, family().space, ["only"], 0)


def test_scores_outside_of_0_to_1_are_refused(archive):
    with pytest.raises(DriverError, match=r"scores of `b/x` are in \[-2, -2\]"):
        insert(archive, "a", 0.5, -2)


def test_search_continues_with_two_seeds_in_one_cell():
    problem = family()
    driver = search.make({"kind": "map_elites", "bins": 1}, problem.space, problem.objectives, 0)
    assert len(drive(driver, problem.evaluate, 40)) == 40
    assert len(driver.members()) == 1
