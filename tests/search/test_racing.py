"""Racing: who may matter stays, who is stopped was beaten, and the inner driver never knows but by the estimates."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.racing import Difference, Racing, RacingSettings, lower_limits
from evomerge.space import SearchSpace
from evomerge.testing import GenomeSuite, drive, exam, sphere, toy_space, two_spheres
from evomerge.trial import Evaluation, Proposal, Scored

NSGA = {"kind": "nsga2", "population": 12}
CMA = {"kind": "cma"}


def race(problem, driver=NSGA, seed=0, **settings):
    given = {"kind": "racing", "driver": driver, **settings}
    return search.make(given, problem.space, problem.objectives, seed, problem.sizes)


class Field:
    """Proposes recipes by number, a field at a time, and keeps what it is told."""

    def __init__(self, fields, space):
        self.fields = [list(field) for field in fields]
        self.space = space
        self.told = []
        self.asked = 0
        self.due = 0

    def ask(self):
        if self.fields and not self.fields[0] and len(self.told) == self.asked:
            self.fields.pop(0)
        if not self.fields or not self.fields[0]:
            return None
        genome = np.full(len(self.space.genes), self.fields[0].pop(0) / 1000)
        proposal = Proposal(self.asked, self.space.decode(genome), genome)
        self.asked += 1
        return proposal

    def tell(self, proposal, evaluation):
        self.told.append((proposal, evaluation))

    def members(self):
        return ()


class Table:
    """Candidates that score what a table says, `(candidates, examples)` by task."""

    def __init__(self, *fields, **tables):
        self.tables = {name: np.asarray(table, dtype=np.float32) for name, table in tables.items()}
        self.sizes = {name: table.shape[1] for name, table in self.tables.items()}
        self.space = toy_space(2)
        numbers = range(len(next(iter(self.tables.values()))))
        self.inner = Field(fields or [list(numbers)], self.space)
        self.asked = Counter()

    def evaluate(self, proposal):
        row = round(proposal.genome[0] * 1000)
        asked = proposal.examples or {task: tuple(range(size)) for task, size in self.sizes.items()}
        self.asked.update((row, task, i) for task, numbers in asked.items() for i in numbers)
        return Evaluation({f"{task}/m": self.tables[task][row][list(numbers)] for task, numbers in asked.items()})

    def race(self, seed=0, evaluate=None, **settings):
        """Run the race, and return the numbers of the candidates that came through whole."""
        given = RacingSettings(driver={"kind": "random"}, **settings)
        driver = Racing(self.inner, [f"{task}/m" for task in self.tables], seed, given, self.sizes)
        self.proposals = drive(driver, evaluate or self.evaluate, 10**6, slots=3)
        whole = sum(self.sizes.values())
        spent = Counter(row for row, _, _ in self.asked.elements())
        return {row for row, count in spent.items() if count == whole}


class Raced(GenomeSuite):
    budget = 150

    def quality(self, problem, proposals):
        return problem.quality([replace(proposal, examples=None) for proposal in proposals])


class TestRacingNsga2(Raced):
    def problem(self):
        return exam(two_spheres(), 16, easiness=0.2, noise=0.05)

    def make(self, problem, seed):
        return race(problem, seed=seed)


class TestRacingCma(Raced):
    def problem(self):
        return exam(sphere(), 16, easiness=0.2, noise=0.02)

    def make(self, problem, seed):
        return race(problem, CMA, seed=seed)


# -- the decision ------------------------------------------------------------------------------------------------------


def test_limit_is_the_one_computed_by_hand():
    # m = 4 of n = 8, differences 1, 0, 1, 1: r = 1, d' = 1, 0, 1, 1, -1 with mean 0.4 and variance 3.2 / 4 = 0.8.
    # 0.5 * 0.75 + 0.5 * 0.4 - t(3, 0.95) * sqrt(0.8) * sqrt(0.5 / 4), with t(3, 0.95) = 2.353363 from a printed table
    expected = 0.575 - 2.353363 * math.sqrt(0.8) * math.sqrt(0.125)
    assert lower_limits(np.array([[1.0, 0, 1, 1]]), 8, 0.05) == pytest.approx([expected], abs=1e-6)


def test_limit_of_all_examples_is_the_difference_itself():
    assert lower_limits(np.array([[1.0, 0, 1, 1], [0, 0, 0, 0]]), 4, 0.05).tolist() == [0.75, 0]


def test_few_examples_on_which_nobody_differs_say_nothing():
    assert lower_limits(np.zeros((2, 5)), 8, 0.05).tolist() == [-np.inf, -np.inf]
    assert lower_limits(np.ones((2, 1)), 8, 0.05).tolist() == [-np.inf, -np.inf]
    same, better = lower_limits(np.array([[0.0] * 5, [1.0] * 5]), 80, 0.05)
    assert -1 < same < -0.1  # of 80 examples many may yet differ, by 1 each as others do
    assert same < better < 1


def test_candidate_far_behind_is_stopped_at_the_first_rung_and_the_others_are_not():
    rng = np.random.default_rng(0)
    table = rng.random((4, 200)) < np.array([[0.8], [0.2], [0.8], [0.75]])
    found = Table(a=table)
    assert found.race(tolerance=0) == {0, 2, 3}
    assert sum(count for (row, _, _), count in found.asked.items() if row == 1) == 25
    both = Table(a=table, b=table[:, ::-1])
    assert both.race(tolerance=0) == {0, 2, 3}
    other = Table(a=table, b=1 - table[:, ::-1])  # who is worst in one is best in the other
    assert other.race(tolerance=0) == {0, 1, 2, 3}


MEANS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(MEANS, st.integers(0, 5))
def test_without_noise_nobody_is_stopped_who_is_better_in_any_objective(means, seed):
    rng = np.random.default_rng(seed)
    points = np.array(means, dtype=np.float64)
    easy = rng.integers(0, 4, (2, 24))
    tables = {name: points[:, [j]] + easy[j] for j, name in enumerate("ab")}  # whole numbers: exact in float32
    kept = Table(**tables).race(seed, tolerance=0)
    for row, point in enumerate(points):
        if row not in kept:
            assert any((points[other] > point).all() for other in kept)
    assert kept


@pytest.mark.parametrize("gap", [0, 0.15])
def test_who_matters_is_stopped_falsely_no_more_often_than_said(gap):
    confidence, size, false, races = 0.8, 48, 0, 150
    for seed in range(races):
        rng = np.random.default_rng([seed, 7])
        table = rng.standard_normal((10, size)) + rng.standard_normal(size)
        table -= table.mean(axis=1, keepdims=True) - gap * (np.arange(10) % 5 == 3)[:, None]
        best = int(rng.integers(10))
        table[best] += gap + 1e-3  # the only one that matters: better than all others, if by nothing that can be seen
        false += best not in Table(a=table).race(seed, confidence=confidence, tolerance=0)
    # A fair coin of that probability would be above this bound once in a thousand experiments.
    assert false / races <= 1 - confidence + 3.1 * math.sqrt(0.16 / races)
    if gap == 0:
        assert false > 0  # so the experiment can fail


def test_tolerance_stops_who_cannot_gain_more_than_the_noise():
    rng = np.random.default_rng(1)
    table = rng.standard_normal((16, 400)) * 0.2 + rng.standard_normal(400)
    table -= table.mean(axis=1, keepdims=True)
    table += np.linspace(0, 0.02, 16)[:, None]  # a standard error of a whole evaluation is 0.05
    exact, tolerant = Table(a=table), Table(a=table)
    assert len(exact.race(tolerance=0)) > 10
    kept = tolerant.race(tolerance=1)
    assert 1 <= len(kept) < 5


def test_bad_examples_come_first_for_everybody_alike():
    rng = np.random.default_rng(2)
    found = Table(a=rng.random((5, 40)), b=rng.random((5, 80)))
    found.race(seed=3)
    seen = {proposal.number: proposal.examples for proposal in found.proposals[:5]}
    assert len({tuple(sorted(examples.items())) for examples in seen.values()}) == 1
    assert {task: len(numbers) for task, numbers in seen[0].items()} == {"a": 5, "b": 10}


# -- what is asked and told --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [NSGA, CMA, {"kind": "random"}], ids=lambda driver: driver["kind"])
def test_no_example_is_asked_for_twice_and_the_inner_driver_hears_of_all_once_in_order(driver, monkeypatch):
    problem = exam(two_spheres(4), 24, easiness=0.1, noise=0.05)
    racing = race(problem, driver)
    told, asked, known = [], Counter(), {}
    inner = racing._driver.tell
    monkeypatch.setattr(racing._driver, "tell", lambda p, e: (told.append((p, e)), inner(p, e)))

    def evaluate(proposal):
        found = problem.evaluate(proposal)
        known.setdefault(proposal.recipe.id, Scored(problem.sizes)).add(proposal.examples, found)
        whole = {task: range(size) for task, size in problem.sizes.items()}
        examples = whole if proposal.examples is None else proposal.examples
        asked.update((proposal.recipe.id, task, i) for task, numbers in examples.items() for i in numbers)
        return found

    drive(racing, evaluate, 250, slots=5, shuffle=1)
    assert set(asked.values()) == {1}
    assert [proposal.number for proposal, _ in told] == list(range(len(told)))
    kinds = Counter()
    for proposal, evaluation in told:
        assert proposal.examples is None
        scores = known[proposal.recipe.id]
        kinds[scores.whole] += 1
        for name in problem.objectives:
            if scores.whole:
                assert np.array_equal(evaluation.scores[name], scores.take().scores[name])
            else:
                assert evaluation.scores[name].shape == (1,)
    assert min(kinds[True], kinds[False]) > 3


def test_for_the_same_number_of_examples_more_candidates_are_seen_and_the_best_is_better():
    problem = exam(sphere(16), 200, easiness=0.3, noise=0.1)
    better = []
    for seed in range(3):
        proposals = drive(race(problem, CMA, seed), problem.evaluate, 450)
        cost = sum(len(p.examples["sphere"]) for p in proposals) // 200
        known = {}
        for proposal in proposals:
            scores = known.setdefault(proposal.recipe.id, Scored(problem.sizes))
            scores.add(proposal.examples, problem.evaluate(proposal))
        done = [replace(p, examples=None) for p in proposals if known[p.recipe.id].whole]
        plain = search.make(CMA, problem.space, problem.objectives, seed)
        better.append(problem.quality(done) - problem.quality(drive(plain, problem.evaluate, cost)))
        assert len(known) > 1.3 * cost
    assert np.mean(better) > 0


def test_estimate_of_a_stopped_candidate_is_paired_with_the_whole_ones():
    rng = np.random.default_rng(4)
    easy = 2 * rng.standard_normal(200)
    table = easy + 0.3 * rng.standard_normal((6, 200)) + np.array([[2], [0], [2], [0.5], [2], [-1]])
    found = Table(a=table)
    whole = found.race(tolerance=0)
    assert whole == {0, 2, 4}
    for row, (_, evaluation) in enumerate(found.inner.told):
        mean = evaluation.means(["a/m"])[0]
        if row in whole:
            assert evaluation.scores["a/m"].shape == (200,)
        else:
            assert evaluation.scores["a/m"].shape == (1,)
            assert mean == pytest.approx(table[row].mean(), abs=0.2)  # the mean of 25 alone is off by 0.4 on average


def test_difference_estimate_is_the_one_computed_by_hand():
    whole = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], np.float32)  # the control is 0.5, 0, 1, 0.5: on average 0.5
    mean, error = Difference(whole).estimate(np.array([0, 1]), np.array([1.0, 0.0]))
    assert mean == 0.5 + 0.25  # it differs by 0.5 and by 0
    assert error == pytest.approx(math.sqrt(0.125) * math.sqrt(0.5 / 2))
    assert Difference(whole).estimate(np.arange(4), np.array([1.0, 0, 0, 0])) == (0.25, 0.0)
    alone = Difference(np.empty((0, 4), np.float32)).estimate(np.array([0, 3]), np.array([1.0, 0.0]))
    assert alone[0] == 0.5


def test_standard_error_covers_as_it_should():
    rng = np.random.default_rng(5)
    easy = rng.standard_normal(120)
    control = Difference((easy + 0.5 * rng.standard_normal((3, 120))).astype(np.float32))
    scores = easy + 0.5 * rng.standard_normal(120)
    hits = 0
    for _ in range(500):
        chosen = rng.permutation(120)[:40]
        mean, error = control.estimate(chosen, scores[chosen])
        hits += abs(mean - scores.mean()) <= norm.ppf(0.95) * error
    assert 0.86 < hits / 500 < 0.94


def test_recipe_that_comes_again_goes_on_from_where_it_was():
    rng = np.random.default_rng(0)
    table = rng.random((3, 80)) < np.array([[0.9], [0.1], [0.85]])
    found = Table([0, 1, 2], [1, 0, 1, 2], a=table)
    assert found.race() == {0, 2}
    assert set(found.asked.values()) == {1}
    assert [proposal.number for proposal, _ in found.inner.told] == list(range(7))
    first, again = found.inner.told[1][1], found.inner.told[3][1]
    assert first.to_json() == again.to_json()
    assert found.inner.told[0][1].to_json() == found.inner.told[4][1].to_json()


def test_part_that_fails_is_a_failed_candidate_which_may_come_again():
    rng = np.random.default_rng(0)
    found = Table([0, 1], [1], a=rng.random((2, 40)))
    failed = []

    def evaluate(proposal):
        if proposal.genome[0] > 0 and proposal.number > 1 and not failed:
            failed.append(proposal.number)
            return Evaluation(error="out of memory")
        return found.evaluate(proposal)

    assert found.race(evaluate=evaluate) == {0, 1}
    assert [evaluation.error for _, evaluation in found.inner.told] == [None, "out of memory", None]
    assert set(found.asked.values()) == {1}  # what was known of it when it failed stays known


def test_tasks_of_one_example_leave_nothing_to_race():
    problem = exam(two_spheres(4), 1)
    plain = search.make(NSGA, problem.space, problem.objectives, 3)
    one = replace(problem, sizes=dict.fromkeys(problem.sizes, 1))
    expected = drive(plain, one.evaluate, 60)
    found = drive(race(one, seed=3), one.evaluate, 60, slots=4)
    assert [(p.number, p.recipe.id, p.examples) for p in found] == [(p.number, p.recipe.id, None) for p in expected]


def test_space_in_which_nothing_is_new_ends_the_search():
    merge = {"method": {"choice": ["ties", "dare_ties"]}, "inputs": "experts", "seed": {"int": [0, 1]}}
    space = SearchSpace({"merge": merge}, experts=("left", "right"))
    driver = search.make({"kind": "racing", "driver": {"kind": "random"}}, space, ["t/m"], 0, {"t": 9})

    def evaluate(proposal):
        numbers = range(9) if proposal.examples is None else proposal.examples["t"]
        return Evaluation({"t/m": np.array([proposal.genome.sum() + i for i in numbers], np.float32)})

    proposals = drive(driver, evaluate, 10**6)
    assert len({proposal.recipe.id for proposal in proposals}) == 4
    assert driver.ask() is None


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["niches", "map_elites", "cycle", "swarm", "front", "map", "racing", None])
def test_drivers_that_would_take_estimates_for_scores_are_refused(kind):
    with pytest.raises(DriverError, match=rf"driver `driver`: a driver of kind `{kind}` cannot be raced.*nsga2"):
        search.make({"kind": "racing", "driver": {"kind": kind}}, toy_space(), ["a/m", "b/m"], 0, {"a": 9, "b": 9})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rungs": [0.5, 0.25]}, "`rungs`: expected rising shares between 0 and 1"),
        ({"rungs": [0.5, 1.0]}, "`rungs`: expected rising shares between 0 and 1"),
        ({"rungs": []}, "`rungs`: expected at least one entry"),
        ({"confidence": 0.5}, "`confidence`"),
        ({"tolerance": -1}, "`tolerance`"),
        ({"rung": [0.5]}, "unknown key `rung`; did you mean `rungs`?"),
        ({"driver": {"kind": "nsga2", "popular": 3}}, "unknown key `popular`"),
    ],
)
def test_wrong_settings_are_named(change, message):
    settings = {"kind": "racing", "driver": NSGA} | change
    with pytest.raises(DriverError) as error:
        search.make(settings, toy_space(), ["a/m", "b/m"], 0, {"a": 9, "b": 9})
    assert message in str(error.value)


def test_objectives_of_tasks_of_unknown_size_are_refused():
    with pytest.raises(DriverError, match="objective `b/m` is of the task `b`; expected one of known size: a"):
        search.make({"kind": "racing", "driver": NSGA}, toy_space(), ["a/m", "b/m"], 0, {"a": 9})


def test_proposals_that_are_not_in_flight_are_refused():
    driver = race(exam(two_spheres(4), 9))
    first = driver.ask()
    driver.tell(first, Evaluation(error="killed"))
    with pytest.raises(DriverError, match="proposal 0 is not in flight"):
        driver.tell(first, Evaluation(error="killed"))


def test_description_names_the_driver_and_the_rungs():
    problem = exam(two_spheres(4), 9)
    line = str(search.make({"kind": "racing", "driver": NSGA}, problem.space, problem.objectives, 0, problem.sizes))
    assert line.startswith("NSGA-II, 12 candidates a generation")
    assert line.endswith(", raced at 0.125, 0.25, 0.5 of the examples")
