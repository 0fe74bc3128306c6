"""Populations in the report: curves and cells are drawn unchanged, and only for a population."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from evomerge.report import population, tables
from evomerge.report.drawn import draw, write
from evomerge.report.results import Cells, Diagnostics, Elite
from evomerge.report.section import section

DIAGNOSTICS = Diagnostics(evaluations=(1, 10, 20), coverage=(0.5, 0.75, 0.9375), entropy=(0.0, 0.5, 0.408), members=12)
NEWS, REUTERS, TWEETS = (f"{name}/log_likelihood" for name in ("news", "reuters", "tweets"))


def grid(axes, bins, elites, quality=NEWS):
    edges = tuple(np.linspace(-2, 0, bins + 1).tolist())
    return Cells(
        quality=quality,
        axes=tuple(axes),
        edges=(edges,) * len(axes),
        elites=tuple(Elite(cell=cell, recipe_id="0" * 64, quality=value) for cell, value in sorted(elites.items())),
    )


CELLS = {
    0: grid([], 1, {(): -0.5}),
    1: grid([REUTERS], 15, {(0,): -1.0, (7,): -0.25, (14,): -0.75}),
    2: grid([REUTERS, TWEETS], 10, {(0, 9): -1.0, (3, 1): -0.25, (9, 9): -0.75}),
    3: grid([REUTERS, TWEETS, NEWS], 15, {(0, 9, 2): -1.0, (3, 1, 0): -1.25, (3, 1, 14): -0.25}, "the mean of $all"),
}


@pytest.fixture(scope="module")
def plain(build):
    return build(2, merges=8)


@pytest.fixture(scope="module")
def populated(plain):
    def make(*cells, diagnostics=DIAGNOSTICS):
        return plain.model_copy(update={"diagnostics": diagnostics, "cells": cells})

    return make


def shown(axes):
    """Return what a panel's cells show, `(rows, columns)`, NaN for blank."""
    [mesh] = axes.collections
    return np.ma.filled(np.ma.masked_invalid(mesh.get_array()).astype(float), np.nan)


def test_curves_are_the_series_and_state_their_last_value(populated):
    coverage, entropy = population.curves(populated()).axes
    assert coverage.get_ylabel() == "coverage of 800 search examples"
    assert "entropy" in entropy.get_ylabel()
    for axes, series, end in ((coverage, DIAGNOSTICS.coverage, "0.94"), (entropy, DIAGNOSTICS.entropy, "0.41")):
        assert axes.lines[0].get_xdata().tolist() == [1, 10, 20]
        assert axes.lines[0].get_ydata().tolist() == list(series)
        assert [text.get_text() for text in axes.texts] == [end]


def test_missing_entropy_is_not_drawn(populated):
    diagnostics = Diagnostics(evaluations=(1,), coverage=(-1.5,), entropy=None, members=1)
    [axes] = population.curves(populated(diagnostics=diagnostics)).axes
    assert "coverage" in axes.get_ylabel()
    assert populated(diagnostics=diagnostics).public()["population"]["entropy"] is None


def test_cells_are_drawn_in_place_and_a_star_marks_the_best(populated):
    axes, bar = population.maps(populated(CELLS[2])).axes
    drawn = shown(axes)
    assert drawn.shape == (10, 10)
    assert np.argwhere(~np.isnan(drawn)).tolist() == [[1, 3], [9, 0], [9, 9]]  # rows are the second axis, upwards
    assert (drawn[1, 3], drawn[9, 0], drawn[9, 9]) == (-0.25, -1.0, -0.75)
    [star] = axes.lines
    assert (star.get_xdata().tolist(), star.get_ydata().tolist()) == ([3.5], [1.5])
    assert axes.get_title(loc="left") == "news: log likelihood, filled 3 of 100 cells"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("reuters: log likelihood", "tweets: log likelihood")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["-2", "-1.6", "-1.2", "-0.8", "-0.4", "0"]
    assert axes.get_xticks().tolist() == [0, 2, 4, 6, 8, 10]
    assert bar.get_ylabel() == "news: log likelihood"


def test_one_axis_is_a_strip(populated):
    axes, *_ = population.maps(populated(CELLS[1])).axes
    assert shown(axes).shape == (1, 15)
    assert axes.lines[0].get_xdata().tolist() == [7.5]
    assert len(axes.get_yticks()) == 0


def test_cells_of_more_than_two_axes_show_the_best_over_the_others_as_the_title_states(populated):
    axes, *_ = population.maps(populated(CELLS[3])).axes
    drawn = shown(axes)
    assert drawn[1, 3] == -0.25
    assert np.isnan(drawn).sum() == 15 * 15 - 2
    assert axes.get_title(loc="left").splitlines() == [
        r"the mean of \$all, filled 3 of 3375 cells",
        "each the best over news: log likelihood",
    ]


def test_shares_of_examples_are_in_percent(populated):
    results = populated(grid(["reuters/accuracy"], 5, {(2,): 0.25}, "mean of all objectives"))
    objectives = tuple(one.model_copy(update={"search": "accuracy"}) for one in results.objectives)
    axes, bar = population.maps(results.model_copy(update={"objectives": objectives})).axes
    assert shown(axes)[0, 2] == 25
    assert axes.get_xlabel() == "reuters: accuracy (%)"
    assert bar.get_ylabel() == "mean of all objectives (%)"


@given(axes=st.integers(0, 4), bins=st.integers(1, 4), count=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
def test_projection_is_the_maximum_over_the_other_axes(axes, bins, count, seed):
    rng = np.random.default_rng(seed)
    dense = np.full((bins,) * axes, -np.inf)
    for _ in range(count):
        dense[tuple(rng.integers(bins, size=axes))] = rng.standard_normal()
    elites = {tuple(map(int, cell)): float(dense[tuple(cell)]) for cell in np.argwhere(np.isfinite(dense))}
    projected = population._projected(grid([NEWS] * axes, bins, elites))
    expected = dense.max(axis=tuple(range(2, axes)))
    assert np.array_equal(np.where(np.isnan(projected), -np.inf, projected), expected)


@pytest.mark.parametrize("maps", [[0], [1, 1], [2], [2, 2, 2], [3, 3], [1, 2]], ids=str)
def test_no_label_overlaps_another_or_leaves_the_picture(maps, populated):
    figure = population.maps(populated(*(CELLS[axes] for axes in maps)))
    figure.draw_without_rendering()
    page = figure.get_window_extent()
    boxes = []
    for axes in figure.axes:
        if not axes.axison:
            continue
        texts = [axes.xaxis.label, axes.yaxis.label, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        boxes += [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
        assert page.y0 <= box.y0 <= box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_same_results_give_the_same_bytes(populated, tmp_path):
    for folder in ("one", "two"):
        write(draw(populated(*CELLS.values())), tmp_path / folder)
    for name in ("population.svg", "cells.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for name in ("population.png", "cells.png"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert imread(io.BytesIO(content), format="png")[..., :3].std() > 0.05


def test_empty_map_is_drawn_empty(populated):
    axes, *_ = population.maps(populated(grid([REUTERS, TWEETS], 4, {}))).axes
    assert np.isnan(shown(axes)).all()
    assert not axes.lines


def test_nothing_is_written_without_a_population_and_no_cells_without_cells(plain, populated, tmp_path):
    names = {"population.png", "cells.png"}
    write(draw(plain), tmp_path)
    assert not names & {file.name for file in tmp_path.iterdir()}
    write(draw(populated()), tmp_path)
    assert names & {file.name for file in tmp_path.iterdir()} == {"population.png"}


def test_page_has_the_section_only_for_populations(plain, populated, tmp_path):
    assert "<h2>The population</h2>" not in section(plain, tmp_path, draw(plain))
    assert "population" not in plain.public()
    curves = section(populated(), tmp_path, draw(populated()))
    assert "<h2>The population</h2>" in curves
    assert curves.count("<img") == 3
    both = section(populated(CELLS[2]), tmp_path, draw(populated(CELLS[2])))
    assert both.count("<img") == 4
    assert "The population has 12 members: coverage 0.94, entropy 0.41; 3 of 100 cells filled (best news: log" in both


def test_json_has_the_end_of_the_series_and_the_number_of_filled_cells(populated):
    assert populated(CELLS[2], CELLS[3]).public()["population"] == {
        "coverage": 0.9375,
        "entropy": 0.408,
        "members": 12,
        "cells": [
            {"quality": NEWS, "axes": [REUTERS, TWEETS], "filled": 3, "of": 100},
            {"quality": "the mean of $all", "axes": [REUTERS, TWEETS, NEWS], "filled": 3, "of": 3375},
        ],
    }


def test_population_that_could_not_be_replayed_is_stated_and_not_drawn(plain, tmp_path):
    failed = plain.model_copy(update={"not_replayed": "journal.jl: <other> recipe"})
    page = section(failed, tmp_path, draw(failed))
    assert "The population is not shown: journal.jl: &lt;other&gt; recipe." in page
    assert page.count("<img") == 2
    assert "The population is not shown: journal.jl: <other> recipe." in tables.sentences(failed)
    assert "population" not in failed.public()
