"""Edits by size and by disagreement: worked examples."""

import pytest
from merging.vectors import each, fix_noise, staged

from evomerge.merging import STAGES


def test_trim_keeps_the_largest_and_all_equals_of_the_smallest_kept():
    assert staged([[2.0, -1.0, 0.5, 0.1, 3.0]], edit=[{"trim": {"density": 0.6}}]) == [2.0, -1.0, 0.0, 0.0, 3.0]
    assert staged([[1.0, -1.0, 1.0, 0.5]], edit=[{"trim": {"density": 0.25}}]) == [1.0, -1.0, 1.0, 0.0]


def test_trim_of_nothing_and_of_all():
    rows = [[2.0, -1.0, 0.5]]
    assert staged(rows, edit=[{"trim": {"density": 0}}]) == [0.0, 0.0, 0.0]
    assert staged(rows, edit=[{"trim": {"density": 1}}]) == rows[0]
    assert staged([[2.0, 1.0], [1.0, 2.0]], edit=[{"trim": {"density": each(1, 0)}}]) == [2.0, 1.0]


def test_trim_keeps_at_least_one_number():
    """A density that rounds to none of a small tensor would lose it whole."""
    assert staged([[2.0, -1.0, 0.5]], edit=[{"trim": {"density": 0.01, "scope": "tensor"}}]) == [2.0, 0.0, 0.0]


def test_a_density_is_rounded_and_not_cut():
    """100 · 0.29 is 28.999999999999996 in binary."""
    found = staged([[float(i + 1) for i in range(100)]], edit=[{"trim": {"density": 0.29}}])
    assert sum(v != 0 for v in found) == 29


def test_second_trim_measures_what_is_left_for_it(monkeypatch):
    """Its threshold is taken after the second drop, not after the first: of 6, 5 and 3, half of 4 are 6 and 5."""
    fix_noise(monkeypatch, [0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9, 0.9])
    found = staged(
        [[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]],
        edit=[
            {"dare": {"drop": 0.0}},
            {"trim": {"density": 0.75}},
            {"dare": {"drop": 0.5, "rescale": "none"}},
            {"trim": {"density": 0.25}},
        ],
    )
    assert found == [0, 0, 6.0, 5.0, 0, 0, 0, 0]


CRUMBS = [0.1, -3.0, 2.0, 0.5, -1.0, 0.7, 0.05, 4.0, -0.3, 1.5]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # of ten, 4 goes at the top, and 0.05, 0.1 and 0.3 at the bottom
        ({"density": 0.6, "gamma": 0.1}, [0, -3, 2, 0.5, -1, 0.7, 0, 0, 0, 1.5]),
        # gamma never takes from what density keeps: only one is left to be cut at the top
        ({"density": 0.9, "gamma": 0.3}, [0.1, -3, 2, 0.5, -1, 0.7, 0.05, 0, -0.3, 1.5]),
        # gamma of less than one element cuts nothing, and the rest is not lost with it
        ({"density": 0.2, "gamma": 0.05}, [0, -3, 0, 0, 0, 0, 0, 4, 0, 0]),
        ({"density": 0, "gamma": 0.1}, [0] * 10),
        ({"density": 1, "gamma": 0.1}, CRUMBS),
    ],
)
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_breadcrumbs_by_hand(parameters, expected, scope):
    found = staged([CRUMBS], edit=[{"breadcrumbs": {**parameters, "scope": scope}}])
    assert found == pytest.approx(expected, rel=1e-7)


def test_clip_by_hand():
    """A tenth at each end: the smallest is raised to the second smallest, the largest lowered; zeros stay."""
    row = [0.1, -0.2, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -10.0]
    clipped = [0.2, -0.2, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -9.0]
    assert staged([row], edit=[{"clip": {"clip": 0.1}}]) == pytest.approx(clipped, rel=1e-7)
    assert staged([row], edit=[{"clip": {"clip": 0}}]) == pytest.approx(row, rel=1e-7)
    assert staged([[0.0, -0.0, 1.0, 2.0]], edit=[{"clip": {"clip": 0.49}}]) == [0, 0, 1, 1]


def test_near_moves_by_t_at_most():
    """NearSwap's w = clip(t / |τ|, 0, 1) times τ."""
    assert staged([[3.0, -3.0, 0.5, -0.25, 0.0]], edit=[{"near": {"t": 1}}]) == [1, -1, 0.5, -0.25, 0]


def test_select_by_hand():
    """SCE's example: variances 1, 4, 0.25 and 0.04, of which half are kept."""
    rows = [[1.0, -2.0, 0.5, 0.0], [3.0, 2.0, -0.5, 0.4]]
    assert staged(rows, edit=[{"select": {"select": 0.5}}], weigh=[{"weight": {"weight": each(0, 1)}}]) == [3, 2, 0, 0]


def test_select_counts_only_what_varies():
    """Half of the two positions that vary, not of all four: 1 is kept."""
    rows = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 2.0]]
    assert staged(rows, edit=[{"select": {"select": 0.5}}]) == [0, 0, 4, 0]
    assert staged([rows[0], rows[0]], edit=[{"select": {"select": 0.5}}]) == [0, 0, 0, 0]


def test_every_edit_can_stand_alone():
    rows = [[1.0, -2.0, 3.0], [0.5, 2.0, -1.0]]
    assert all(len(staged(rows, edit=[name])) == 3 for name, stage in STAGES.items() if stage.role == "edit")
