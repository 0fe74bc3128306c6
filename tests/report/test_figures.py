import io

import numpy as np
import pytest
from matplotlib.image import imread

from evomerge.errors import StudyError
from evomerge.report import figures
from evomerge.report.drawn import draw, write

EVIL = '<script>alert("1")</script>[red]$x_{|&'


@pytest.fixture(scope="module")
def front(results):
    return figures.front_figure(results)


def pixels(data: bytes) -> np.ndarray:
    return imread(io.BytesIO(data), format="png")


@pytest.mark.parametrize("name", ["front.png", "hypervolume.png"])
def test_figure_is_written_and_not_blank(name, results, tmp_path):
    write(draw(results), tmp_path / "new")
    image = pixels((tmp_path / "new" / name).read_bytes())
    assert image.shape[1] >= 1000, "readable at the width of a page"
    assert image[..., :3].std() > 0.05
    ink = (image[..., :3] < 0.9).any(axis=2)
    assert ink.any(axis=0).mean() > 0.5, "marks lie over most of the width"


@pytest.mark.parametrize("objectives", [1, 5])
def test_front_of_one_and_of_many_objectives_is_drawn(objectives, build):
    image = pixels(figures.png(figures.front_figure(build(objectives, merges=12))))
    assert image[..., :3].std() > 0.05


def test_axes_have_metric_split_and_number_of_examples(results, front):
    labels = {text for axes in front.axes for text in (axes.get_xlabel(), axes.get_ylabel())}
    assert f"{results.objectives[0].name}: accuracy (%) on 500 unseen examples" in labels
    [axes] = figures.hypervolume_figure(results).axes
    assert axes.get_ylabel() == "hypervolume on 400 search examples a task"


def test_every_reference_and_every_point_of_the_front_is_named_in_every_scatter(results, front):
    scatters = [axes for axes in front.axes if axes.get_ylabel()]
    count = len(results.objectives)
    assert len(scatters) == count * (count - 1) // 2
    for axes in scatters:
        assert {text.get_text() for text in axes.texts} == {
            *results.references,
            *(point.name for point in results.front),
        }
        for text in axes.texts:
            far = sum(map(abs, text.xyann)) > figures._NEAR
            assert (text.arrow_patch is not None) == far


def test_the_lines_of_many_objectives_end_in_the_names_of_the_models(build):
    results = build(5, merges=12)
    [axes] = figures.front_figure(results).axes
    names = {*results.references, *(point.name for point in results.front)}
    ends = {text.get_text(): text.xyann[1] for text in axes.texts if text.get_text() in names}
    assert set(ends) == names
    assert np.diff(sorted(ends.values())).min() > 0.02


def test_chosen_pairs_of_many_objectives_have_a_panel_each(build):
    results = build(5, merges=12)
    names = [objective.name for objective in results.objectives]
    pairs = [(names[4], names[0]), (names[1], names[3]), (names[2], names[3]), (names[0], names[1])]
    scatters = [axes for axes in figures.front_figure(results, pairs).axes if axes.get_ylabel()]
    drawn = [(axes.get_xlabel().split(":")[0], axes.get_ylabel().split(":")[0]) for axes in scatters]
    assert drawn == pairs


@pytest.mark.parametrize("pair", [("a",), ("a", "a"), ("a", "c"), ("a", "b", "b")])
def test_a_pair_that_is_not_two_of_the_tasks_is_refused_with_their_names(pair):
    with pytest.raises(StudyError, match=f"pair `{','.join(pair)}`: expected two of the tasks a, b"):
        figures.check_pairs([pair], ["a", "b"])


def test_picked_merge_has_a_separate_style(results):
    looks = {figures._look(results, model) for model in results.front}
    assert looks == {figures._FRONT, figures._PICKED}
    assert not looks & {figures._look(results, model) for model in results.references.values()}


def test_same_results_give_the_same_bytes(build):
    results = build(2, merges=10)
    assert figures.png(figures.front_figure(results)) == figures.png(figures.front_figure(results))


def test_names_that_look_like_mathematics_are_drawn_literally(build):
    results = build(2, merges=8, rename=lambda name: f"{EVIL}{name}")
    assert pixels(figures.png(figures.front_figure(results))).std() > 0.05
