"""Gradient: convergence, bounds, validation, failures, AdaMerging's and Frank-Wolfe's steps by hand, errors."""

import dataclasses

import numpy as np
import pytest

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.slopes.ascent import Adam, deviations, shared_levels
from evomerge.search.slopes.frank_wolfe import FrankWolfe
from evomerge.space import Box, SearchSpace
from evomerge.testing import drive, scattered_spheres, toy_space
from evomerge.trial import Evaluation, Metric

FAILED = Evaluation(error="out of memory")
DISTANCE = {"x/distance": Metric("distance", slopes=True)}


def make(problem, seed=0, **settings):
    return search.make({"kind": "gradient", **settings}, problem.space, problem.metrics, seed, problem.sizes)


def steps(proposals):
    return [proposal for proposal in proposals if proposal.slopes is not None]


def best(problem, proposals):
    return max(problem.evaluate(proposal).means(problem.objectives).sum() for proposal in proposals)


def ranked(problem, known):
    """Return known proposals, best first, by scores in units of the best one's gain over the base."""
    means = {p.recipe.id: problem.evaluate(p).means(problem.objectives) for p in known}
    base = means[problem.space.decode(problem.space.landmarks()["base"]).id]
    gains = np.max([*means.values()], axis=0) - base
    return sorted(known, key=lambda p: -(means[p.recipe.id] / gains).sum())


def test_it_reaches_the_best_of_a_hundred_genes_in_thirty_steps():
    problem = scattered_spheres(100, spread=0.01)
    proposals = drive(make(problem), problem.evaluate, 34)
    optimum = np.mean([centres.mean(axis=0) for centres in problem.centres.values()], axis=0)
    best_score = problem.score(optimum).sum()
    assert best(problem, proposals) > best_score - 0.001
    assert best(problem, proposals[:4]) < best_score - 0.03


def test_known_recipes_come_first_without_slopes_and_then_one_step_at_a_time():
    problem = scattered_spheres()
    driver = make(problem)
    first = list(iter(driver.ask, None))
    assert [proposal.slopes for proposal in first] == [None] * len(problem.space.landmarks().keys() - {"mean"})
    for proposal in first:
        driver.tell(proposal, problem.evaluate(proposal))
    start = driver.ask()
    assert driver.ask() is None
    assert start.recipe.id == ranked(problem, first)[0].recipe.id
    assert start.examples is None


def test_slopes_are_wanted_of_four_fifths_of_each_tasks_examples_drawn_by_the_seed():
    parts = []
    for seed in (0, 0, 1):
        problem = scattered_spheres()
        [wanted, *_] = [p.slopes for p in steps(drive(make(problem, seed), problem.evaluate, 6))]
        assert {task: len(set(indices)) for task, indices in wanted.items()} == {"near": 16, "far": 16}
        parts.append(wanted)
    assert parts[0] == parts[1] != parts[2]


def test_it_ends_where_the_validation_score_stops_rising():
    """A hundred genes fit six examples long before they fit others."""
    problem = scattered_spheres(100, examples=6, spread=0.6)
    driver = make(problem, validation=0.5)
    proposals = steps(drive(driver, problem.evaluate, 200))
    wanted = proposals[0].slopes
    scores = [
        np.mean([s[[i for i in range(6) if i not in wanted[n.partition("/")[0]]]].mean() for n, s in e.scores.items()])
        for e in map(problem.evaluate, proposals)
    ]
    assert len(proposals) < 60
    assert len(proposals) - 1 - int(np.argmax(scores)) <= 12  # at most twice the patience
    training = [
        np.mean([s[list(wanted[n.partition("/")[0]])].mean() for n, s in e.scores.items()])
        for e in map(problem.evaluate, proposals)
    ]
    assert int(np.argmax(training)) > int(np.argmax(scores))


def test_levels_are_shared_by_the_tiles_of_an_expert():
    assert shared_levels(toy_space(6)).tolist() == [0, 0, 0, 1, 1, 1]
    assert shared_levels(toy_space(2)).tolist() == [-1, -1]
    assert shared_levels(Box({"x": (0, 1), "y": (0, 1)})).tolist() == [-1, -1]


def test_step_of_a_level_follows_the_sum_of_its_slopes():
    ascent = Adam(np.full(4, 0.5), 0.1, levels=np.array([0, 0, 0, -1]))
    np.testing.assert_allclose(ascent.step(np.array([3.0, -1.0, -1.0, 1.0])), [0.7, 0.5, 0.5, 0.6])


def test_deviations_are_from_the_mean_of_a_level():
    np.testing.assert_allclose(deviations(np.array([0.2, 0.6, 0.4, 0.9]), np.array([0, 0, -1, -1])), [-0.2, 0.2, 0, 0])
    assert deviations(np.array([0.2, 0.6]), np.array([-1, -1])).tolist() == [0, 0]


def test_ridge_reduces_slopes_by_the_deviation_over_the_number_of_training_examples():
    """From genes 0.5 and 0.7 with slopes 1 and 1, and a ridge of 320 over 32 examples: the slopes are 1 + 1 and 1 - 1."""
    problem = dataclasses.replace(scattered_spheres(2), space=toy_space(4))
    start = np.array([0.5, 0.7, 0.4, 0.4])
    driver = make(problem, seed_known=False, ridge=320)
    driver.breeder._climbs[0].ascent = Adam(start, 0.05, (0.5, 0.9), shared_levels(problem.space))
    wanted = []
    step = driver.breeder._climbs[0].ascent.step
    driver.breeder._climbs[0].ascent.step = lambda slope: wanted.append(slope) or step(slope)
    flat = {name: np.array([0.0, 1, 1, 1, 1]) for name in problem.objectives}
    scores = {name: np.zeros(20, np.float32) for name in problem.objectives}
    drive(driver, lambda p: Evaluation(scores, slopes=flat), 1)
    np.testing.assert_allclose(wanted, [[2, 0, 1, 1]], atol=1e-12)


def test_ridge_keeps_genes_near_their_level_where_there_are_few_examples():
    problem = scattered_spheres(100, examples=6, spread=0.6)
    spreads = []
    for ridge in (0, 120):
        last = steps(drive(make(problem, ridge=ridge), problem.evaluate, 30))[-1]
        spreads.append(np.abs(deviations(last.genome, shared_levels(problem.space))).mean())
    assert spreads[1] < 0.5 * spreads[0]


def test_first_steps_of_adamerging_are_those_of_the_paper():
    """Adam with 0.001 in the weights' own units, from 0.3: the first step is 0.001 along each slope's sign."""
    problem = scattered_spheres(4)
    metrics = {name: Metric("entropy", slopes=True) for name in problem.objectives}
    settings = {"kind": "gradient", "rule": "adamerging", "seed_known": False}
    driver = search.make(settings, problem.space, metrics, 0, problem.sizes)
    first, second = drive(driver, problem.evaluate, 2)
    assert first.genome.tolist() == [0.3] * 4
    assert {len(indices) for indices in first.slopes.values()} == {20}
    np.testing.assert_allclose(second.genome, [0.301, 0.301, 0.299, 0.299], rtol=0, atol=1e-9)
    assert len(drive(search.make(settings, problem.space, metrics, 0, problem.sizes), problem.evaluate, 600)) == 500


def test_first_steps_of_frank_wolfe_by_hand():
    """From the mean (1/2, 1/2) by 2/2 and then 2/3 of the rate 1/4: (5/8, 3/8), (5/8 + 1/6 · 3/8, …)."""
    problem = scattered_spheres(4, spread=0.0)
    driver = make(problem, rule="frank_wolfe", learning_rate=0.25, seed_known=False)
    proposals = drive(driver, problem.evaluate, 3)
    expected = [[1 / 2] * 4, [5 / 8, 5 / 8, 3 / 8, 3 / 8], [11 / 16, 11 / 16, 5 / 16, 5 / 16]]
    np.testing.assert_allclose([p.genome for p in proposals], expected)
    # At the last point the mean score's slope is 2 (0.7 - 11/16, 0.2 - 5/16) / 4 in each tile, and the gap their difference · 5/16.
    assert driver.breeder.gap == pytest.approx(2 * (2 * 0.0125 + 2 * 0.1125) / 4 * 5 / 16, rel=1e-5)


def three_experts():
    """Return the space of three experts' weights."""
    weight = {"float": [0, 1], "per": ["expert"]}
    merge = {"method": "linear", "inputs": "experts", "parameters": {"weight": weight}}
    return SearchSpace({"merge": merge}, experts=("a", "b", "c"))


def test_soft_frank_wolfe_by_hand():
    """Slopes 4, 3, -1 are 2 at the mean, and so 2, 1, -3 over it: towards (2/3, 1/3, 0), hard towards (1, 0, 0)."""
    slope = np.array([4.0, 3.0, -1.0])
    for top, towards in ((1, [1, 0, 0]), (2, [2 / 3, 1 / 3, 0]), (3, [2 / 3, 1 / 3, 0])):
        ascent = FrankWolfe(three_experts(), 0.3, top)
        np.testing.assert_allclose(ascent.step(slope), [1 / 3 + 0.3 * (end - 1 / 3) for end in towards])
        assert ascent.gap == pytest.approx(2)
    # At (13/30, 1/3, 7/30) the slope (0, 1, 2) is 4/5: over it 1/5 and 6/5, and 2/3 of the rate towards (0, 1/7, 6/7).
    end = ascent.position + 0.2 * (np.array([0, 1 / 7, 6 / 7]) - ascent.position)
    np.testing.assert_allclose(ascent.position, [13 / 30, 1 / 3, 7 / 30])
    np.testing.assert_allclose(ascent.step(np.array([0.0, 1.0, 2.0])), end)


def test_inner_steps_learn_the_shares_by_hand():
    """Shares (2/3, 1/3) and slopes 0 and 1, of which the mean is 1/3, over the first step's largest slope, 3."""
    ascent = FrankWolfe(three_experts(), 0.3, top=2, inner=1)
    ascent.step(np.array([4.0, 3.0, -1.0]))
    parts = np.array([2 / 3 * np.exp(-1 / 9), 1 / 3 * np.exp(2 / 9), 0])
    start = np.full(3, 1 / 3)
    learnt = start + 0.3 * (parts / parts.sum() - start)
    np.testing.assert_allclose(ascent.step(np.array([0.0, 1.0, 2.0])), learnt)
    # The next is a step again, from there, with 2/3 of the rate, towards the first expert alone.
    np.testing.assert_allclose(ascent.step(np.array([1.0, 0.0, 0.0])), learnt + 0.2 * (np.array([1, 0, 0]) - learnt))


def test_inner_steps_find_the_best_shares_of_the_experts_of_a_step():
    """For minus the squared distance to c: shares (w, 1 - w, 0) of the half step from the mean are best at w = 0.55."""
    target = np.array([1 / 6 + 0.55 / 2, 1 / 6 + 0.45 / 2, 0.0])
    ascent = FrankWolfe(three_experts(), 0.5, top=2, inner=200)
    for _ in range(200):
        position = ascent.step(2 * (target - ascent.position))
        assert position.sum() == pytest.approx(1)
    np.testing.assert_allclose(position, [1 / 6 + 0.55 / 2, 1 / 6 + 0.45 / 2, 1 / 6], atol=1e-3)


def test_tile_whose_slopes_are_equal_does_not_move():
    ascent = FrankWolfe(three_experts(), 0.3, top=2)
    np.testing.assert_allclose(ascent.step(np.zeros(3)), [1 / 3] * 3)


def test_soft_frank_wolfe_keeps_to_the_hull():
    problem = scattered_spheres(4)
    for proposal in drive(make(problem, rule="frank_wolfe", top=2, learning_rate=1.0, steps=30), problem.evaluate, 60):
        if proposal.slopes is not None:
            np.testing.assert_allclose(proposal.genome.reshape(2, 2).sum(axis=0), 1)


def test_frank_wolfe_ends_when_the_gap_closes():
    problem = scattered_spheres(4, spread=0.0)
    driver = make(problem, rule="frank_wolfe", learning_rate=1.0, steps=400)
    proposals = drive(driver, problem.evaluate, 500)
    assert len(steps(proposals)) < 400
    assert driver.breeder.gap < 1e-3


def test_failed_steps_are_repeated_at_half_their_length_and_eight_in_a_row_end_the_search():
    problem = scattered_spheres()
    driver = make(problem, seed_known=False)
    proposals = drive(driver, lambda p: problem.evaluate(p) if p.number == 0 else FAILED, 50)
    assert len(proposals) == 1 + 8
    moves = np.array([p.genome - proposals[0].genome for p in proposals[1:]])
    np.testing.assert_allclose(moves, moves[0] * 0.5 ** np.arange(8)[:, None], atol=1e-12)


def test_start_whose_slopes_fail_gives_way_to_the_next_best_known_recipe():
    problem = scattered_spheres()
    proposals = drive(make(problem), lambda p: FAILED if p.number == 4 else problem.evaluate(p), 6)
    assert [p.recipe.id for p in proposals[4:]] == [p.recipe.id for p in ranked(problem, proposals[:4])[:2]]


def test_slopes_that_are_not_finite_are_failures():
    problem = scattered_spheres()

    def broken(proposal):
        done = problem.evaluate(proposal)
        return dataclasses.replace(
            done, slopes={name: np.full_like(slope, np.nan) for name, slope in done.slopes.items()}
        )

    assert len(drive(make(problem, seed_known=False), broken, 50)) == 8


def test_tasks_count_in_units_of_what_there_is_to_gain():
    """One objective's scores are a hundred times the other's; the search is the same."""
    problem = scattered_spheres()

    def louder(proposal):
        done = problem.evaluate(proposal)
        name = problem.objectives[0]
        scores = {**done.scores, name: 128 * done.scores[name]}
        slopes = {**done.slopes, name: 128 * done.slopes[name]} if done.slopes else {}
        return Evaluation(scores, slopes=slopes)

    quiet, loud = (drive(make(problem), evaluate, 15) for evaluate in (problem.evaluate, louder))
    np.testing.assert_allclose([p.genome for p in loud[4:]], [p.genome for p in quiet[4:]], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "gradient"}, ", or try `ridge: 120` under `driver`"),
        ({"kind": "gradient", "validation": 0}, ", or try `ridge: 120`"),
        ({"kind": "front", "slopes": True}, "give the tasks more search examples, or tile"),
        ({"kind": "nsga2", "polish": {"steps": 1}}, "give the tasks more search examples, or tile"),
    ],
)
def test_more_genes_along_slopes_than_examples_are_warned_of_with_both_numbers(settings, words):
    def warned(genes, **more):
        problem, given = scattered_spheres(genes), settings | more
        driver = search.make(given, problem.space, problem.metrics, 0, problem.sizes)
        return search.unshrunk(given, driver, problem.space, sum(problem.sizes.values()))

    said = f"driver `{settings['kind']}`: 100 genes follow slopes of 40 search examples, without shrinkage"
    assert warned(100).startswith(said)
    assert words in warned(100)
    assert warned(40) == ""


def test_a_ridge_and_drivers_without_slopes_are_not_warned_of():
    problem = scattered_spheres(100)
    for settings in ({"kind": "gradient", "ridge": 120.0}, {"kind": "nsga2"}):
        driver = search.make(settings, problem.space, problem.metrics, 0, problem.sizes)
        assert search.unshrunk(settings, driver, problem.space, 40) == ""


@pytest.mark.parametrize(
    ("space", "metrics", "sizes", "settings", "message"),
    [
        (toy_space(), {"a/accuracy": Metric("accuracy")}, {"a": 9}, {}, "needs slopes, and `a/accuracy` has none"),
        (toy_space(), DISTANCE, {}, {}, "objective `x/distance` is of the task `x`; expected `sizes`"),
        (Box({"n": {"int": [0, 3]}, "m": ["p", "q"]}), DISTANCE, {"x": 9}, {}, "genes with slopes, such as weights, and .* only `n`, `m`;"),
        (Box({"x": (0, 1)}), DISTANCE, {"x": 9}, {"rule": "frank_wolfe"}, "expected a space of `linear` or `task_arithmetic`"),
        (toy_space(), DISTANCE, {"x": 9}, {"rule": "frank_wolfe", "top": 3}, "`top` is 3; expected at most 2, the number of experts"),
        (toy_space(), DISTANCE, {"x": 9}, {"rule": "frank_wolfe", "inner": 3}, "type `top: 2` or more"),
        (toy_space(), DISTANCE, {"x": 9}, {"top": 2}, "`top` is of `rule: frank_wolfe`, got `rule: adam`; leave it out"),
        (toy_space(), DISTANCE, {"x": 9}, {"rule": "frank_wolfe", "in_flight": 2}, "`in_flight` is of `rule: adam`, got `rule: frank_wolfe`"),
        (toy_space(), DISTANCE, {"x": 9}, {"rule": "adamerging", "ridge": 9}, "`ridge` is of `rule: adam`, got `rule: adamerging`"),
        (toy_space(), DISTANCE, {"x": 9}, {"rule": "adamerging"}, "got `x/distance`; type `search_metric: entropy`"),
        (toy_space(), DISTANCE, {"x": 9}, {"weights": {"x": 1}}, "unknown objective `x`"),
        (toy_space(), DISTANCE, {"x": 9}, {"validation": 0.7}, "`validation`: input should be less than or equal to 0.5"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_refused(space, metrics, sizes, settings, message):
    with pytest.raises(DriverError, match=message):
        search.make({"kind": "gradient", **settings}, space, metrics, 0, sizes)


def test_success_without_slopes_is_an_error_that_says_what_to_type():
    problem = scattered_spheres()
    with pytest.raises(DriverError, match=r"no slopes of near/distance, far/distance; .* type another driver"):
        drive(make(problem), lambda p: Evaluation(problem.evaluate(p).scores), 10)


def test_dry_run_line_names_genes_known_recipes_and_examples():
    line = str(make(scattered_spheres()))
    assert "in 8 of 8 genes, after 4 known recipes; 32 examples give slopes, 8 validate" in line
