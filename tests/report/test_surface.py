"""The surface of a study, of the driver `front` first of all: asked, verified, told and drawn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge import pareto
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.history import History
from evomerge.report import measure, surface, surface_figures, tables
from evomerge.report.choose import Preference
from evomerge.report.drawn import draw, write
from evomerge.report.results import ObjectiveFit, Surface
from evomerge.report.section import section
from evomerge.settings import StudySettings
from evomerge.study import Study

NAMES = ["turned", "inverted"]


def settings(small_digits, **more):
    chosen = {name: small_digits.tasks[name] for name in NAMES}
    metrics = {"keep_margins": True, "search_metric": "accuracy"}
    data = {
        "name": "front",
        "pool": {**small_digits.pool, "experts": {name: small_digits.pool["experts"][name] for name in NAMES}},
        "tasks": {name: {**task, **metrics} for name, task in chosen.items()},
        "space": "task_arithmetic",
        "driver": {"kind": "front"},
        "evaluations": 18,
        "report": {"scales": [0.4], "front": 3, "resamples": 100},
        **more,
    }
    return StudySettings.parse(data, "test", Path.cwd())


@pytest.fixture(scope="module")
def study(small_digits, tmp_path_factory):
    study = Study.create(tmp_path_factory.mktemp("front") / "run", settings(small_digits))
    with study.evaluator() as evaluator:
        study.run(evaluator)
    return study


@pytest.fixture(scope="module")
def population(study):
    return study.population()


@pytest.fixture(scope="module")
def predicted(study, population):
    return surface.read(study, population)


@pytest.fixture(scope="module")
def results(study):
    return measure.measure(study)


def test_surface_is_what_a_replay_leaves(study, predicted):
    driver = study.parts.new_driver(study.settings.seed)
    assert len(list(study.replay(driver))) == 2 * 18
    replayed = driver.breeder.surface(*driver.unfinished())
    assert predicted.refused is None is replayed.refused
    for name in ("genomes", "means", "deviations"):
        np.testing.assert_array_equal(getattr(predicted, name), getattr(replayed, name))
    assert predicted.recipes == replayed.recipes


@pytest.mark.parametrize(
    "wanted",
    [
        {"weights": {"turned": 2, "inverted": 1}},
        {"floors": {"turned": 0.5}},
        {"wish": {"turned": 0.5, "inverted": 0.5}},
    ],
)
def test_predictions_are_chosen_by_the_rules_for_what_was_measured(wanted, study, population, predicted):
    row = pareto.pick(predicted.means, NAMES, **wanted)
    answer = surface.ask(study, population, predicted, Preference(**wanted))
    assert answer.recipe == predicted.recipes[row]
    for column, name in enumerate(NAMES):
        mean, width = answer.scores[name]
        assert mean == predicted.means[row, column]
        assert width == pytest.approx(1.644853627 * predicted.deviations[row, column])
        assert answer.fits[name] is predicted.fits[f"{name}/accuracy"]


def test_floor_that_no_prediction_reaches_names_the_nearest(study, population, predicted):
    with pytest.raises(StudyError, match=r"no point of the front has turned ≥ 1.5; the nearest has turned 0"):
        surface.ask(study, population, predicted, Preference(floors={"turned": 1.5}))


def test_where_one_merge_is_best_for_all_it_is_the_answer_unless_something_else_is_wanted(study, population, predicted):
    genome = np.array([0.31, 0.47])
    agreed = replace(predicted, best_for_all=genome)
    answer = surface.ask(study, population, agreed, Preference())
    assert answer.best_for_all
    assert answer.recipe == study.parts.space.decode(genome)
    mean, deviation = predicted.fits["inverted/accuracy"].predict(study.parts.space.to_unit(genome[None]))
    assert answer.scores["inverted"] == (mean[0], pytest.approx(1.644853627 * deviation[0]))
    knee = surface.ask(study, population, agreed, Preference(knee=True))
    assert knee.recipe == predicted.recipes[pareto.knee(predicted.means)]
    assert knee.best_for_all


def test_refused_surface_is_not_asked_and_the_reason_and_what_to_type_are_said(study, population, predicted):
    few = surface.read(study, population[:3])
    assert few.refused == "3 candidates could be evaluated; expected 4 or more"
    with pytest.raises(
        StudyError, match=r"3 candidates could be evaluated; .* without `--surface` .* `evomerge resume"
    ):
        surface.ask(study, population, few, Preference(weights={"turned": 1}))
    told = surface.data(study, population[:3], few)
    assert told.refused == few.refused
    assert told.fits == {}
    assert len(told.evaluated) == 3


def test_study_of_another_driver_has_no_surface(small_digits, tmp_path):
    other = Study.create(tmp_path / "other", settings(small_digits, driver={"kind": "random"}))
    assert not surface.has_surface(other)
    with pytest.raises(StudyError, match=r"this study's is `random`; type `evomerge pick` without `--surface`"):
        surface.read(other, [])


@pytest.mark.parametrize("kind", ["map", "bayesian_map"])
def test_quadratics_leave_a_surface_that_is_asked_in_the_same_way(kind, small_digits, tmp_path, population):
    other = Study.create(tmp_path / kind, settings(small_digits, driver={"kind": kind}))
    assert surface.has_surface(other)
    left = surface.read(other, population)
    told = surface.data(other, population, left)
    assert set(told.fits) == set(NAMES)
    assert {fit.rung for fit in told.fits.values()} == {"MAP's quadratic"}
    answer = surface.ask(other, population, replace(left, refused=None), Preference(weights={"turned": 1}))
    assert answer.recipe.id in {recipe.id for recipe in left.recipes}


def test_tree_of_pairs_has_a_surface_when_it_is_complete(small_digits, tmp_path, population):
    other = Study.create(tmp_path / "nested", settings(small_digits, driver={"kind": "nested_map", "points": 7}))
    assert surface.has_surface(other)
    left = surface.read(other, population)
    assert left.refused == "the tree is not complete: 0 of 1 pairs are known"
    assert surface.data(other, population, left).refused == left.refused


def test_merge_that_was_evaluated_is_known_again_up_to_rounding(study, population, predicted):
    proposal, _ = population[5]
    genome = study.parts.space.encode(proposal.recipe)
    near = np.clip(genome + 1e-12, study.parts.space.lower, study.parts.space.upper)
    alone = replace(predicted, genomes=near[None], means=predicted.means[:1], deviations=predicted.deviations[:1])
    answer = surface.ask(study, population, alone, Preference(knee=True))
    assert answer.evaluated
    assert answer.recipe == proposal.recipe
    far = replace(alone, genomes=(genome * 0.999 + 1e-4)[None])
    assert not surface.ask(study, population, far, Preference(knee=True)).evaluated


def test_verified_numbers_are_those_of_a_worker_and_nothing_is_paid_for_twice(study, population, predicted):
    answer = surface.ask(study, population, predicted, Preference(weights={"turned": 1, "inverted": 1}))
    counted = []
    verified = measure.verify(study, answer.recipe, watch=lambda done, total: counted.append((done, total)))
    worker = Worker(study.parts.setup)
    search, report = (worker.evaluate(answer.recipe, split) for split in ("search", "report"))
    for name in NAMES:
        key = f"{name}/accuracy"
        assert verified.candidate.search[name] == pytest.approx(search.scores[key].mean(dtype=np.float64), abs=0)
        value, low, high = verified.unseen[name]
        assert value == report.scores[key].mean(dtype=np.float64) == verified.candidate.report[name][0]
        assert low < value < high
    assert counted[-1] == ((1, 1) if answer.evaluated else (2, 2))
    journal = (study.folder / "report.jl").read_bytes()
    again = measure.verify(study, answer.recipe, watch=lambda done, total: pytest.fail("scored again"))
    assert again == verified
    assert (study.folder / "report.jl").read_bytes() == journal
    worst, _ = min(population[5:], key=lambda pair: pair[1].means(study.parts.searched).sum())  # on no front
    measure.verify(study, worst.recipe)
    asked = History.read(study.folder / "report.jl").population
    assert [proposal.split for proposal, _ in asked if proposal.recipe == worst.recipe] == ["report"]


def test_no_prediction_is_shown_beyond_the_bounds_of_its_metric(study, predicted, population):
    beyond = replace(predicted, means=predicted.means + np.array([[1, -1]]), best_for_all=None)
    told = np.array(surface.data(study, population, beyond).means)
    assert (told[:, 0] == 1).any()
    assert (told[:, 1] == 0).any()
    assert ((told >= 0) & (told <= 1)).all()
    scores = surface.ask(study, population, beyond, Preference(weights={NAMES[0]: 1})).scores
    assert next(iter(scores.values()))[0] == 1


def test_results_tell_the_surface_in_plain_data(results, predicted, population):
    told = results.surface
    assert told.refused is None
    np.testing.assert_array_equal(np.array(told.means), predicted.means)
    np.testing.assert_allclose(np.array(told.widths), 1.6448536269514722 * predicted.deviations)
    for column, (name, fit) in enumerate(told.fits.items()):
        key = f"{name}/accuracy"
        measured = np.array([evaluation.scores[key].mean(dtype=np.float64) for _, evaluation in population])
        np.testing.assert_allclose(fit.measured, measured)
        np.testing.assert_allclose(np.array(told.evaluated)[:, column], measured)
        errors = measured - np.array(fit.predicted)
        assert fit.r2 == pytest.approx(1 - (errors**2).sum() / ((measured - measured.mean()) ** 2).sum())
    public = json.loads(json.dumps(results.public(), allow_nan=False))["surface"]
    assert set(public) == {"refused", "best_for_all", "points", "fits"}
    assert (public["refused"], public["points"]) == (None, len(predicted.recipes))
    assert list(public["fits"]) == NAMES
    for name, fit in public["fits"].items():
        assert set(fit) == {"rung", "r2", "coverage", "standard_error"}
        surrogate = predicted.fits[f"{name}/accuracy"]
        assert (fit["rung"], fit["r2"]) == (surrogate.name, surrogate.r2)
        assert (fit["coverage"], fit["standard_error"]) == (surrogate.coverage, surrogate.standard_error)
    assert type(results).model_validate_json(results.model_dump_json()) == results


def test_page_and_sentences_say_whether_the_surface_may_be_asked(results, study):
    page = section(results, study.folder, draw(results))
    assert page.count("<img") == 4
    assert "--surface --tchebycheff turned=2,inverted=1 --verify" in page
    assert any(said.startswith("The surface predicts merges") for said in tables.sentences(results))
    refused = results.model_copy(update={"surface": Surface(refused="`a/b` is <noise>")})
    page = section(refused, study.folder, draw(refused))
    assert "The surface is unreliable: `a/b` is &lt;noise&gt;." in page
    assert page.count("<img") == 2
    assert "--surface" not in page


@pytest.fixture(scope="module")
def drawn(build):
    def make(objectives, *, refused=None):
        plain = build(objectives, merges=8)
        generator = np.random.default_rng(objectives)
        means, widths = generator.random((6, objectives)), 0.01 + 0.1 * generator.random((6, objectives))
        evaluated = generator.random((5, objectives))
        fit = ObjectiveFit(
            rung="margins", r2=0.93, coverage=0.8, standard_error=None,
            measured=(0.1, 0.2, 0.6, 0.8), predicted=(0.12, 0.35, 0.5, 0.8), widths=(0.05, 0.1, 0.2, 0.05),
        )  # fmt: skip
        shown = Surface(
            refused=refused,
            means=tuple(map(tuple, means.tolist())),
            widths=tuple(map(tuple, widths.tolist())),
            evaluated=tuple(map(tuple, evaluated.tolist())),
            fits={objective.name: fit for objective in plain.objectives},
        )
        accuracies = tuple(o.model_copy(update={"search": "accuracy"}) for o in plain.objectives)
        return plain.model_copy(update={"surface": shown, "objectives": accuracies})

    return make


def test_front_is_drawn_with_its_intervals_and_what_was_evaluated_in_percent(drawn):
    results = drawn(2)
    [axes] = surface_figures.front(results).axes
    means, widths = 100 * np.array(results.surface.means), 100 * np.array(results.surface.widths)
    [band] = axes.collections
    for path, mean, width in zip(band.get_paths(), means, widths, strict=True):
        np.testing.assert_allclose(path.vertices.min(axis=0), mean - width)
        np.testing.assert_allclose(path.vertices.max(axis=0), mean + width)
    front, evaluated = axes.lines
    np.testing.assert_allclose(front.get_xydata(), means[np.argsort(means[:, 0])])
    np.testing.assert_allclose(evaluated.get_xydata(), 100 * np.array(results.surface.evaluated))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("news: accuracy (%)", "reuters: accuracy (%)")


def test_three_objectives_are_three_panels_coloured_by_the_third(drawn):
    results = drawn(3)
    panels = [axes for axes in surface_figures.front(results).axes if axes.get_ylabel()]
    assert len(panels) == 3
    means = 100 * np.array(results.surface.means)
    for axes, third in zip(panels, (2, 1, 0), strict=True):
        _, dots = axes.collections
        np.testing.assert_allclose(dots.get_array(), means[:, third])


@pytest.mark.parametrize(("objectives", "panels"), [(1, 0), (4, 6), (5, 0)])
def test_front_of_one_or_of_many_objectives_is_not_drawn(objectives, panels, drawn):
    figure = surface_figures.front(drawn(objectives))
    assert (0 if figure is None else len(figure.axes)) == panels
    assert len([axes for axes in surface_figures.predicted(drawn(objectives)).axes if axes.get_visible()]) == objectives


def test_predictions_stand_against_what_was_measured_and_misses_are_marked(drawn):
    axes = surface_figures.predicted(drawn(2)).axes[0]
    line, inside, outside = axes.lines
    assert line.get_xdata().tolist() == line.get_ydata().tolist() == [10, 80]
    np.testing.assert_allclose(inside.get_xydata(), [[10, 12], [60, 50], [80, 80]])
    np.testing.assert_allclose(outside.get_xydata(), [[20, 35]])
    [_, bars] = axes.collections
    np.testing.assert_allclose(bars.get_segments()[0], [[20, 25], [20, 45]])
    assert axes.get_title(loc="left").startswith("news: R² 0.93, coverage 80%")


def test_same_surface_gives_the_same_bytes_and_a_refused_one_no_front(drawn, tmp_path):
    for count in (2, 3):
        written = []
        for turn in "ab":
            write(draw(drawn(count)), tmp_path / turn)
            written.append(
                [
                    (tmp_path / turn / name).read_bytes()
                    for name in ("surface.png", "surface.svg", "predicted.png", "predicted.svg")
                ]
            )
        assert written[0] == written[1]
    names = {"surface.png", "predicted.png"}
    write(draw(drawn(2, refused="noise")), tmp_path / "a")
    assert names & {file.name for file in (tmp_path / "a").iterdir()} == {"predicted.png"}
    write(draw(drawn(2).model_copy(update={"surface": None})), tmp_path / "a")
    assert not names & {file.name for file in (tmp_path / "a").iterdir()}
