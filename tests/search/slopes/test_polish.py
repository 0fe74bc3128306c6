"""Polish: the order of generations, steps by hand, failures, what the breeder learns, and how much sooner it arrives."""

import dataclasses

import numpy as np
import pytest
from problems import choosy

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search import Generational
from evomerge.search.slopes.polish import Polish, PolishSettings
from evomerge.space import Box
from evomerge.testing import drive, scattered_spheres, toy_space
from evomerge.trial import Evaluation, Metric

FAILED = Evaluation(error="out of memory")
DISTANCE = {"x/distance": Metric("distance", slopes=True)}


def make(problem, seed=0, **settings):
    return search.make(settings, problem.space, problem.metrics, seed, problem.sizes)


class Given:
    """A breeder of given generations that records what it learns."""

    def __init__(self, *generations):
        self.generations, self.learnt = [np.array(rows, np.float64) for rows in generations], []

    def draw(self):
        return self.generations.pop(0) if self.generations else np.empty((0, 4))

    def learn(self, genomes, means, evaluations):
        self.learnt.append((genomes, means, evaluations))


def polished(problem, breeder, weights=(0.5, 0.5), **settings):
    weights = None if weights is None else np.array(weights)
    given = PolishSettings(**settings)
    wrapped = Polish(breeder, "cma", problem.space, problem.metrics, given, problem.sizes, weights)
    return Generational(problem.space, problem.objectives, wrapped)


def spent(proposals):
    """Return evaluations by the budget's count: three for one with slopes."""
    return np.cumsum([1 if proposal.slopes is None else 3 for proposal in proposals])


def quality_within(problem, proposals, budget):
    return problem.quality([p for p, total in zip(proposals, spent(proposals), strict=True) if total <= budget])


@pytest.mark.parametrize(("kind", "objectives", "few", "many"), [("cma", 1, 300, 750), ("nsga2", 2, 500, 2000)])
def test_fifty_weights_polished_beat_the_outer_driver_alone_with_more_than_twice_the_evaluations(
    kind, objectives, few, many
):
    """The best method and seed show only at good weights."""
    problem = choosy(objectives, groups=25)
    steps = drive(make(problem, kind=kind, polish={"steps": 3}), problem.evaluate, few)
    alone = drive(make(problem, kind=kind), problem.evaluate, many)
    assert quality_within(problem, steps, few) > problem.quality(alone)


def test_each_generation_is_followed_by_its_steps_and_the_last_step_needs_no_slopes():
    problem = scattered_spheres(4)
    proposals = drive(polished(problem, Given([[0.5] * 4, [0.2] * 4], [[0.4] * 4]), steps=2), problem.evaluate, 99)
    assert [p.slopes is not None for p in proposals] == [True] * 4 + [False] * 2 + [True] * 2 + [False]
    assert proposals[0].slopes == {task: tuple(range(20)) for task in ("near", "far")}
    assert [p.genome.tolist() for p in (proposals[0], proposals[1], proposals[6])] == [[0.5] * 4, [0.2] * 4, [0.4] * 4]


def test_first_step_goes_the_rate_along_each_slope_and_its_level():
    """Towards (0.8, 0.1) and (0.6, 0.3): up in the left expert's genes, down in the right one's, level and deviation alike."""
    problem = scattered_spheres(4, spread=0.0)
    _, step = drive(polished(problem, Given([[0.5] * 4]), steps=1, learning_rate=0.05), problem.evaluate, 99)
    np.testing.assert_allclose(step.genome, [0.6, 0.6, 0.4, 0.4])


def test_only_floats_with_slopes_move():
    problem = choosy()
    proposals = drive(make(problem, kind="cma", polish={"steps": 1}), problem.evaluate, 2)
    moved = proposals[0].genome != proposals[1].genome
    assert moved.any()
    assert not moved[~problem.space.sloped].any()


def test_breeder_learns_the_best_of_each_climb_with_its_scores():
    problem = scattered_spheres(4)
    breeder = Given([[0.5] * 4, [0.2] * 4])
    proposals = drive(polished(problem, breeder, steps=3), problem.evaluate, 99)
    [(genomes, means, evaluations)] = breeder.learnt
    for row in (0, 1):
        climb = proposals[row::2]
        best = max(climb, key=lambda p: problem.evaluate(p).means(problem.objectives).sum())
        assert best is not climb[0]
        np.testing.assert_array_equal(genomes[row], best.genome)
        np.testing.assert_array_equal(means[row], problem.evaluate(best).means(problem.objectives))
        np.testing.assert_array_equal(evaluations[row].means(problem.objectives), means[row])


def test_candidate_for_a_front_climbs_the_objectives_it_is_good_at():
    """The last scores between: with ranges 1 and 2, at 1/2 and 1/4 of them, it weighs the objectives 2 to 1/2, or 4 to 1."""
    problem = dataclasses.replace(scattered_spheres(2), space=Box({"x": (0, 1), "y": (0, 1)}))
    table = {0.1: (0.0, 2.0), 0.9: (1.0, 0.0), 0.5: (0.5, 0.5)}
    slopes = {"near/distance": (1.0, -1.0), "far/distance": (-3.9, 4.1)}

    def evaluate(proposal):
        scores = table.get(proposal.genome[0], (0.0, 0.0))
        given = zip(problem.objectives, scores, strict=True)
        sloped = {name: np.array(slope) for name, slope in slopes.items()}
        return dataclasses.replace(Evaluation.of({name: np.full(20, score) for name, score in given}), slopes=sloped)

    driver = polished(problem, Given([[0.1, 0.5], [0.9, 0.5], [0.5, 0.5]]), weights=None, steps=1)
    steps = drive(driver, evaluate, 6)[3:]
    # Slopes of the sums: far alone; near alone; 4 · 1 - 3.9 and -4 + 4.1, in both of which near prevails.
    moves = np.sign(np.array([p.genome for p in steps]) - [[0.1, 0.5], [0.9, 0.5], [0.5, 0.5]])
    assert moves.tolist() == [[-1, 1], [1, -1], [1, 1]]


def test_step_that_does_not_improve_or_fails_is_repeated_at_half_its_length():
    problem = scattered_spheres(4)
    low = {name: np.full(20, -9.0, np.float32) for name in problem.objectives}
    for worse in ({"error": "out of memory"}, {"scores": low}):

        def evaluate(proposal, worse=worse):
            done = problem.evaluate(proposal)
            return dataclasses.replace(done, **worse) if proposal.number else done

        breeder = Given([[0.5] * 4])
        proposals = drive(polished(problem, breeder, steps=3), evaluate, 99)
        moves = np.array([p.genome for p in proposals[1:]]) - 0.5
        np.testing.assert_allclose(moves, moves[0] * np.array([[1], [0.5], [0.25]]))
        assert breeder.learnt[0][0].tolist() == [[0.5] * 4]


def test_failed_candidate_does_not_climb_and_counts_below_every_point_of_the_others():
    problem = scattered_spheres(4)
    breeder = Given([[0.5] * 4, [0.7] * 4])
    proposals = drive(polished(problem, breeder), lambda p: FAILED if p.number == 1 else problem.evaluate(p), 99)
    assert len(proposals) == 2 + 3
    [(_, means, evaluations)] = breeder.learnt
    assert (means[1] < means[0]).all()
    assert [evaluation.error for evaluation in evaluations] == [None, "out of memory"]


def test_candidate_without_a_way_up_does_not_climb():
    """At the best corner of the box, or with slopes that are not finite."""
    problem = dataclasses.replace(scattered_spheres(2), space=Box({"x": (0, 1), "y": (0, 1)}))
    for slope in (1.0, np.nan):
        slopes = {name: np.array([slope, -slope]) for name in problem.objectives}
        scores = {name: np.zeros(20, np.float32) for name in problem.objectives}

        def evaluate(proposal, scores=scores, slopes=slopes):
            return Evaluation(scores, slopes=slopes)

        breeder = Given([[1.0, 0.0]], [[1.0, 0.0]], np.empty((0, 2)))
        assert len(drive(polished(problem, breeder), evaluate, 99)) == len(breeder.learnt) == 2


def test_dry_run_line_says_how_many_genes_are_polished():
    assert str(make(choosy(), kind="nsga2", polish={})).endswith(
        "each polished by 3 steps along slopes in 8 of 10 genes"
    )


def test_without_polish_the_search_is_the_same_as_before():
    problem = choosy()
    ids = [
        [p.recipe.id for p in drive(make(problem, kind="nsga2", **given), problem.evaluate, 60)]
        for given in ({}, {"polish": None})
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("space", "metrics", "sizes", "polish", "message"),
    [
        (toy_space(), {"a/accuracy": Metric("accuracy")}, {"a": 9}, {}, "driver `cma` with `polish` needs slopes, and `a/accuracy` has none; .* leave out `polish`"),
        (Box({"n": {"int": [0, 3]}, "m": ["p", "q"]}), DISTANCE, {"x": 9}, {}, "only `n`, `m`; leave out `polish`"),
        (toy_space(), DISTANCE, {}, {}, "expected `sizes`"),
        (toy_space(), DISTANCE, {"x": 9}, {"steps": 0}, "`polish.steps`: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_does_not_suit_is_refused(space, metrics, sizes, polish, message):
    with pytest.raises(DriverError, match=message):
        search.make({"kind": "cma", "polish": polish}, space, metrics, 0, sizes)


def test_success_without_slopes_is_an_error_that_says_what_to_type():
    problem = choosy()
    with pytest.raises(DriverError, match=r"no slopes of near/distance, far/distance; .* leave out `polish`"):
        drive(make(problem, kind="cma", polish={}), lambda p: Evaluation(problem.evaluate(p).scores), 10)


def test_polish_cannot_be_raced():
    problem = choosy()
    with pytest.raises(DriverError, match=r"a driver with `polish` cannot be raced: .* leave out `polish`"):
        make(problem, kind="racing", driver={"kind": "cma", "polish": {"steps": 3}})
