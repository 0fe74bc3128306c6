"""Racing: competitive candidates are kept, stopped ones are dominated, and the inner driver is told estimates."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import exam, sphere

from evomerge import search
from evomerge.errors import DriverError
from evomerge.search.racing import Racing, RacingSettings, Regression
from evomerge.space import SearchSpace
from evomerge.surrogate import item_response
from evomerge.testing import GenomeSuite, drive, toy_space, two_spheres
from evomerge.trial import Evaluation, Proposal, ScoreTable

NSGA = {"kind": "nsga2", "population": 12}
CMA = {"kind": "cma"}
KNOWN = 10  # complete candidates before racing starts


def race(problem, driver=NSGA, seed=0, **settings):
    given = {"kind": "racing", "driver": driver, **settings}
    return search.make(given, problem.space, problem.objectives, seed, problem.sizes)


class Rounds:
    """A driver that proposes candidates by row number, one round at a time, and records its tells."""

    def __init__(self, rounds, space):
        self.rounds = [list(rows) for rows in rounds]
        self.space = space
        self.told = []
        self.asked = 0

    def ask(self):
        if self.rounds and not self.rounds[0] and len(self.told) == self.asked:
            self.rounds.pop(0)
        if not self.rounds or not self.rounds[0]:
            return None
        genome = np.full(len(self.space.genes), self.rounds[0].pop(0) / 1000)
        proposal = Proposal(self.asked, self.space.decode(genome), genome)
        self.asked += 1
        return proposal

    def tell(self, proposal, evaluation):
        self.told.append((proposal, evaluation))

    def members(self):
        return ()


class Table:
    """Candidates with the scores of tables, `(candidates, examples)` by task."""

    def __init__(self, *rounds, **tables):
        self.tables = {name: np.asarray(table, dtype=np.float32) for name, table in tables.items()}
        self.sizes = {name: table.shape[1] for name, table in self.tables.items()}
        self.space = toy_space(2)
        rows = range(len(next(iter(self.tables.values()))))
        self.inner = Rounds(rounds or [rows], self.space)
        self.asked = Counter()

    def evaluate(self, proposal):
        row = round(proposal.genome[0] * 1000)
        asked = proposal.examples or {task: tuple(range(size)) for task, size in self.sizes.items()}
        self.asked.update((row, task, i) for task, indices in asked.items() for i in indices)
        return Evaluation({f"{task}/m": self.tables[task][row][list(indices)] for task, indices in asked.items()})

    def race(self, seed=0, evaluate=None, slots=3, **settings):
        """Run the race, and return the rows of the candidates that were evaluated completely."""
        given = RacingSettings(driver={"kind": "random"}, **{"surrogate": False, **settings})
        driver = Racing(self.inner, self.space, [f"{task}/m" for task in self.tables], seed, given, self.sizes)
        self.proposals = drive(driver, evaluate or self.evaluate, 10**6, slots=slots)
        spent = Counter(row for row, _, _ in self.asked.elements())
        return {row for row, count in spent.items() if count == sum(self.sizes.values())}


class Raced(GenomeSuite):
    budget = 100

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
        return race(problem, CMA, seed=seed, surrogate=False)  # with surrogates it ends too early for the suite


def alike(rng, candidates, size):
    """Return scores of 0 and 1, `(candidates, size)`, of candidates that differ in two skills, as merges do."""
    of_example = rng.standard_normal((2, size))
    of_example[0] = np.abs(
        of_example[0]
    )  # one skill helps on all examples, the other helps on some and harms on others
    logits = rng.standard_normal((candidates, 2)) @ of_example + rng.standard_normal(size)
    return (rng.random((candidates, size)) < 1 / (1 + np.exp(-6 * logits))).astype(np.float64)


def test_regression_is_the_conditional_normal_distribution_of_the_missing_scores():
    rng = np.random.default_rng(0)
    complete, new, seen = rng.standard_normal((12, 9)), rng.standard_normal((3, 9)), np.array([7, 0, 4])
    mean, centred = complete.mean(axis=0), complete - complete.mean(axis=0)
    variance = (centred**2).mean() + mean.var() / 12
    covariance = centred.T @ centred / 12 + 0.3 * variance * np.eye(9) + 10 * variance * np.ones((9, 9))
    rest = np.array([1, 2, 3, 5, 6, 8])
    slopes = covariance[np.ix_(rest, seen)] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
    left = covariance[np.ix_(rest, rest)] - slopes @ covariance[np.ix_(seen, rest)]
    filled = new.copy()
    filled[:, rest] = mean[rest] + (new[:, seen] - mean[seen]) @ slopes.T
    means, deviation = Regression(complete)._linear.predict(seen, new[:, seen])
    assert means == pytest.approx(filled.mean(axis=1), abs=1e-9)
    assert deviation == pytest.approx(math.sqrt(left.sum()) / 9, abs=1e-9)


def test_estimate_of_a_candidate_far_better_than_all_before_is_not_shrunk():
    rng = np.random.default_rng(6)
    complete, seen = rng.standard_normal((20, 60)) * 0.1 + rng.standard_normal(60), np.arange(15)
    best = complete[:1] + 5
    means, _ = Regression(complete).estimate(seen, best[:, seen])
    assert means == pytest.approx(best.mean(axis=1), abs=0.1)


def test_estimate_with_all_examples_is_exact():
    rng = np.random.default_rng(1)
    scores = rng.random((4, 20))
    means, deviations = Regression(rng.random((11, 20))).estimate(np.arange(20), scores)
    assert means == pytest.approx(scores.mean(axis=1))
    assert deviations.tolist() == [0, 0, 0, 0]


def test_estimates_are_equivariant_to_scale_and_offset_of_the_scores():
    rng = np.random.default_rng(2)
    complete, scores, seen = rng.random((11, 30)), rng.random((2, 6)), np.arange(6)
    means, deviations = Regression(complete).estimate(seen, scores)
    others = Regression(50 * complete - 7).estimate(seen, 50 * scores - 7)
    assert others[0] == pytest.approx(50 * means - 7)
    assert others[1] == pytest.approx(50 * deviations)


@pytest.mark.parametrize("count", [12, 60])
def test_regression_errs_less_than_the_difference_estimator_and_its_deviations_are_calibrated(count):
    rng = np.random.default_rng(count)
    errors, differences, deviations = [], [], []
    for _ in range(30):
        table = alike(rng, count + 20, 240)
        complete, new, seen = table[:count], table[count:], rng.permutation(240)[:40]
        means, deviation = Regression(complete).estimate(seen, new[:, seen])
        errors += (means - new.mean(axis=1)).tolist()
        deviations += deviation.tolist()
        shifts = (new - complete.mean(axis=0))[:, seen].mean(axis=1)
        differences += (shifts + complete.mean() - new.mean(axis=1)).tolist()
    errors, deviations = np.array(errors), np.array(deviations)
    assert errors.std() < 0.85 * np.std(differences)
    assert 0.88 < (np.abs(errors) < 1.96 * deviations).mean() < 0.98
    assert abs(errors.mean()) < 0.2 * errors.std()


def test_deviation_is_positive_if_all_complete_candidates_are_equal():
    complete = np.tile(np.arange(20.0) % 2, (10, 1))
    means, deviations = Regression(complete).estimate(np.arange(5), complete[:1, :5])
    assert means == pytest.approx([0.5])
    assert 0.001 < deviations[0] < 0.1


def test_racing_starts_at_ten_complete_candidates():
    rng = np.random.default_rng(3)
    table = Table(a=alike(rng, 16, 80))

    def evaluate(proposal):
        return Evaluation(error="killed") if proposal.number in (2, 5) else table.evaluate(proposal)

    table.race(evaluate=evaluate)
    # two of the first ten failed: the second round, with the other six, is no race either
    assert [proposal.examples for proposal in table.proposals] == [None] * 16
    raced = Table(a=alike(rng, 16, 80))
    raced.race()
    assert {len(p.examples["a"]) if p.examples else None for p in raced.proposals[:16]} == {None, 10}


def test_only_the_candidate_far_behind_is_stopped_at_the_first_rung():
    rng = np.random.default_rng(0)
    share = np.array([[0.5]] * KNOWN + [[0.8], [0.1], [0.8], [0.75]])
    table = (rng.random((KNOWN + 4, 200)) < share).astype(np.float64)
    all_but = set(range(KNOWN + 4)) - {KNOWN + 1}
    single = Table(a=table)
    assert single.race(tolerance=0) == all_but
    assert sum(count for (row, _, _), count in single.asked.items() if row == KNOWN + 1) == 25
    both = Table(a=table, b=table[:, ::-1])
    assert both.race(tolerance=0) == all_but
    other = Table(a=table, b=1 - table[:, ::-1])  # the worst on one objective is the best on the other
    assert other.race(tolerance=0) == all_but | {KNOWN + 1}


MEANS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=KNOWN + 1, max_size=KNOWN + 8)


@given(MEANS, st.integers(0, 5))
def test_without_noise_only_dominated_candidates_are_stopped(means, seed):
    rng = np.random.default_rng(seed)
    points = np.array(means, dtype=np.float64)
    easy = rng.integers(0, 4, (2, 24))
    tables = {name: points[:, [j]] + easy[j] for j, name in enumerate("ab")}  # integers: exact in float32
    kept = Table(**tables).race(seed, tolerance=0)
    assert set(range(KNOWN)) <= kept
    for row, point in enumerate(points):
        if row not in kept:
            assert any((points[other] >= point).all() for other in range(KNOWN))


@pytest.mark.parametrize(
    ("estimator", "tasks", "races"), [("regression", 1, 50), ("regression", 2, 25), ("item_response", 1, 8)]
)
def test_competitive_candidates_are_stopped_no_more_often_than_the_confidence_allows(estimator, tasks, races):
    confidence, competitive, false, stopped = 0.8, 0, 0, 0
    for seed in range(races):
        rng = np.random.default_rng([seed, tasks])
        tables = {f"t{j}": alike(rng, 12 + 28, 64) for j in range(tasks)}
        kept = Table(range(12), range(12, 40), **tables).race(
            seed, confidence=confidence, tolerance=0, estimator=estimator
        )
        means = np.stack([table.mean(axis=1) for table in tables.values()], axis=1)
        for row in range(12, 40):
            beats = not (means[:12] >= means[row]).all(axis=1).any()
            competitive += beats
            false += beats and row not in kept
            stopped += row not in kept
    # The one-sided 99.9% bound of a binomial share with probability 0.2 (normal approximation).
    assert false / competitive <= 1 - confidence + 3.1 * math.sqrt(0.16 / competitive)
    assert stopped > 0.5 * 28 * races  # and most candidates are stopped


def test_larger_tolerance_stops_more_candidates():
    table = alike(np.random.default_rng(1), 60, 200)
    kept = [len(Table(a=table).race(tolerance=tolerance)) for tolerance in (0, 1, 3)]
    assert kept[0] > kept[1] > kept[2] >= KNOWN


def test_first_examples_are_the_same_for_all_candidates():
    rng = np.random.default_rng(2)
    table = Table(a=rng.random((KNOWN + 5, 40)), b=rng.random((KNOWN + 5, 80)))
    table.race(seed=3)
    seen = [proposal.examples for proposal in table.proposals[KNOWN : KNOWN + 5]]
    assert len({tuple(sorted(examples.items())) for examples in seen}) == 1
    assert {task: len(indices) for task, indices in seen[0].items()} == {"a": 5, "b": 10}


def test_item_response_adds_the_most_informative_examples_to_the_permutation():
    table = alike(np.random.default_rng(5), KNOWN + 8, 80)
    plain, found, parallel = Table(a=table), Table(a=table), Table(a=table)
    plain.race(seed=3)
    found.race(seed=3, estimator="item_response")
    parallel.race(seed=3, estimator="item_response", slots=1)
    assert found.asked == parallel.asked
    assert set(found.asked.values()) == {1}
    by_permutation, first = (set(one.proposals[KNOWN].examples["a"]) for one in (plain, found))
    assert len(first) == len(by_permutation) == 10
    model = item_response.fit(table[:KNOWN])
    prefix = [int(i) for i in np.random.default_rng(np.random.SeedSequence([3, *b"a"])).permutation(80)[:5]]
    assert set(prefix) <= by_permutation
    assert first == {*prefix, *model.anchors(5, prefix).tolist()}
    told = found.inner.told[KNOWN:]
    estimated = {proposal.number: evaluation for proposal, evaluation in told if len(evaluation.scores["a/m"]) == 1}
    assert estimated
    for row, evaluation in estimated.items():
        asked = np.array(sorted(i for number, _, i in found.asked if number == row))
        assert evaluation.means(["a/m"])[0] == pytest.approx(
            float(model.estimate(asked, table[[row]][:, asked])[0][0]), abs=1e-6
        )


def test_item_response_refuses_scores_outside_of_0_to_1():
    table = Table(a=np.full((3, 8), 1.5))
    with pytest.raises(DriverError, match=r"objective `a/m` has scores in \[1.5, 1.5\].*or `estimator: regression`"):
        table.race(estimator="item_response")


@pytest.mark.parametrize("driver", [NSGA, CMA, {"kind": "random"}], ids=lambda driver: driver["kind"])
def test_no_example_is_asked_for_twice_and_the_inner_driver_is_told_once_in_order(driver, monkeypatch):
    problem = exam(two_spheres(4), 24, easiness=0.1, noise=0.05)
    racing = race(problem, driver)
    told, asked, known = [], Counter(), {}
    inner = racing._driver.tell
    monkeypatch.setattr(racing._driver, "tell", lambda p, e: (told.append((p, e)), inner(p, e)))

    def evaluate(proposal):
        evaluation = problem.evaluate(proposal)
        known.setdefault(proposal.recipe.id, ScoreTable(problem.sizes)).add(proposal.examples, evaluation)
        examples = proposal.examples or {task: range(size) for task, size in problem.sizes.items()}
        asked.update((proposal.recipe.id, task, i) for task, indices in examples.items() for i in indices)
        return evaluation

    drive(racing, evaluate, 160, slots=5, shuffle=1)
    assert set(asked.values()) == {1}
    assert [proposal.number for proposal, _ in told] == list(range(len(told)))
    kinds = Counter()
    for proposal, evaluation in told:
        assert proposal.examples is None
        scores = known.get(proposal.recipe.id)
        kinds["not scored" if scores is None else "complete" if scores.complete else "stopped"] += 1
        for name in problem.objectives:
            if scores is not None and scores.complete:
                assert np.array_equal(evaluation.scores[name], scores.take().scores[name])
            else:
                assert evaluation.scores[name].shape == (1,)
    assert min(kinds["complete"], kinds["stopped"] + kinds["not scored"]) > 3
    assert kinds["not scored"] > 0


def test_race_finds_a_better_candidate_with_the_same_number_of_examples():
    problem = exam(sphere(16), 200, easiness=0.3, noise=0.1)
    gains = []
    for seed in range(3):
        proposals = drive(race(problem, CMA, seed), problem.evaluate, 450)
        cost = sum(200 if p.examples is None else len(p.examples["sphere"]) for p in proposals) // 200
        known = {}
        for proposal in proposals:
            scores = known.setdefault(proposal.recipe.id, ScoreTable(problem.sizes))
            scores.add(proposal.examples, problem.evaluate(proposal))
        complete = [replace(p, examples=None) for p in proposals if known[p.recipe.id].complete]
        plain = search.make(CMA, problem.space, problem.objectives, seed)
        gains.append(problem.quality(complete) - problem.quality(drive(plain, problem.evaluate, cost)))
        assert len(known) > 1.3 * cost
    assert np.mean(gains) > 0


def test_inner_driver_is_told_the_estimate_of_a_stopped_candidate():
    table = 3 * alike(np.random.default_rng(4), KNOWN + 10, 200) - 1
    found = Table(a=table)
    complete = found.race()
    assert len(complete) < KNOWN + 10
    order = np.random.default_rng(np.random.SeedSequence([0, *b"a"])).permutation(200)
    for row, (_, evaluation) in enumerate(found.inner.told):
        if row in complete:
            assert evaluation.scores["a/m"].shape == (200,)
        else:
            seen = order[: sum(number == row for number, _, _ in found.asked)]
            mean, _ = Regression(table[:KNOWN]).estimate(seen, table[row : row + 1, seen])
            assert evaluation.scores["a/m"] == pytest.approx(mean, rel=1e-6)


def test_recipe_proposed_again_continues_from_its_scores():
    rng = np.random.default_rng(0)
    share = np.array([[0.5]] * KNOWN + [[0.9], [0.1], [0.88]])
    table = (rng.random((KNOWN + 3, 80)) < share).astype(np.float64)
    good, bad, other = range(KNOWN, KNOWN + 3)
    found = Table(range(KNOWN), [good, bad, other], [bad, good, bad, other], a=table)
    assert found.race(tolerance=0) == set(range(KNOWN + 3)) - {bad}
    assert set(found.asked.values()) == {1}
    assert [proposal.number for proposal, _ in found.inner.told] == list(range(KNOWN + 7))
    told = [evaluation.to_json() for _, evaluation in found.inner.told[KNOWN:]]
    assert told[3] == told[5]
    assert told[0] == told[4]


def test_failed_part_fails_the_candidate_which_may_be_proposed_again():
    rng = np.random.default_rng(0)
    found = Table(range(KNOWN), [KNOWN], [KNOWN], a=rng.random((KNOWN + 1, 40)) + np.arange(KNOWN + 1)[:, None])
    failed = []

    def evaluate(proposal):
        if proposal.number > KNOWN and not failed:
            failed.append(proposal.number)
            return Evaluation(error="out of memory")
        return found.evaluate(proposal)

    assert found.race(evaluate=evaluate) == set(range(KNOWN + 1))
    assert [evaluation.error for _, evaluation in found.inner.told[KNOWN:]] == ["out of memory", None]
    assert set(found.asked.values()) == {1}  # scores from before the failure are not asked for again


def test_race_on_tasks_of_one_example_equals_the_inner_driver():
    problem = exam(two_spheres(4), 1)
    plain = search.make(NSGA, problem.space, problem.objectives, 3)
    one = replace(problem, sizes=dict.fromkeys(problem.sizes, 1))
    expected = drive(plain, one.evaluate, 60)
    proposals = drive(race(one, seed=3, surrogate=False), one.evaluate, 60, slots=4)
    assert [(p.number, p.recipe.id, p.examples) for p in proposals] == [(p.number, p.recipe.id, None) for p in expected]


def test_search_ends_when_the_space_is_exhausted():
    merge = {"method": {"choice": ["ties", "dare_ties"]}, "inputs": "experts", "seed": {"int": [0, 1]}}
    space = SearchSpace({"merge": merge}, experts=("left", "right"))
    driver = search.make({"kind": "racing", "driver": {"kind": "random"}}, space, ["t/m"], 0, {"t": 9})

    def evaluate(proposal):
        indices = range(9) if proposal.examples is None else proposal.examples["t"]
        return Evaluation({"t/m": np.array([proposal.genome.sum() + i for i in indices], np.float32)})

    proposals = drive(driver, evaluate, 10**6)
    assert len({proposal.recipe.id for proposal in proposals}) == 4
    assert driver.ask() is None


@pytest.mark.parametrize("kind", ["niches", "map_elites", "cycle", "swarm", "front", "map", "racing", None])
def test_drivers_that_cannot_be_raced_are_refused(kind):
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
        ({"estimator": "mean"}, "`estimator`"),
        ({"rung": [0.5]}, "unknown key `rung`; did you mean `rungs`?"),
        ({"driver": {"kind": "nsga2", "popular": 3}}, "unknown key `popular`"),
    ],
)
def test_invalid_settings_are_refused(change, message):
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


def test_description_names_the_driver_the_rungs_and_the_estimators():
    problem = exam(two_spheres(4), 9)
    line = str(race(problem))
    assert line.startswith("NSGA-II, 12 candidates a generation")
    assert line.endswith(", raced at 0.125, 0.25, 0.5 of the examples by regression and surrogates of the genes")
    assert str(race(problem, surrogate=False)).endswith("by regression")


def tells(problem, budget, seed=0, **settings):
    """Return the tells of the inner driver by round, and the recipes of which any example was scored."""
    racing = race(problem, seed=seed, **settings)
    rounds, scored = [[]], set()
    inner = racing._driver.tell
    racing._driver.tell = lambda p, e: (rounds[-1].append((p, e)), inner(p, e))

    def evaluate(proposal):
        if rounds[-1]:
            rounds.append([])
        scored.add(proposal.recipe.id)
        return problem.evaluate(proposal)

    drive(racing, evaluate, budget, slots=1)
    return [told for told in rounds if told], scored


def test_surrogates_save_candidates_from_scoring_and_improve_the_estimates():
    problem = exam(two_spheres(4), 24, easiness=0.1, noise=0.05)
    unscored, errors = {}, {}
    for surrogate in (True, False):
        rounds, scored = tells(problem, 200, surrogate=surrogate)
        told = [pair for pairs in rounds for pair in pairs]
        unscored[surrogate] = len({proposal.recipe.id for proposal, _ in told} - scored) / len(told)
        errors[surrogate] = [
            float(evaluation.scores[name][0]) - problem.evaluate(replace(proposal, examples=None)).scores[name].mean()
            for proposal, evaluation in told
            for name in problem.objectives
            if evaluation.scores[name].shape == (1,)
        ]
    assert unscored[True] > 0.2
    assert unscored[False] == 0
    assert np.std(errors[True]) < 0.7 * np.std(errors[False])


def test_competitive_candidates_are_stopped_no_more_often_with_surrogates():
    false = competitive = 0
    for seed in range(3):
        problem = exam(two_spheres(4), 200, easiness=0.3, noise=0.2)
        complete = []
        for told in tells(problem, 200, seed, tolerance=0)[0]:
            before = np.array(complete)
            for proposal, evaluation in told:
                means = problem.evaluate(replace(proposal, examples=None)).means(problem.objectives)
                stopped = evaluation.scores[problem.objectives[0]].shape == (1,)
                if len(before) >= KNOWN and not (before >= means).all(axis=1).any():
                    competitive += 1
                    false += stopped
                if not stopped:
                    complete.append(means)
    assert competitive > 50
    assert false / competitive < 0.2


def test_race_in_a_space_of_choices_has_no_surrogates():
    merge = {"method": "linear", "inputs": "experts", "parameters": {"weight": {"choice": [0.1, 0.5]}}}
    space = SearchSpace({"merge": merge}, experts=["a", "b"])
    racing = search.make({"kind": "racing", "driver": NSGA}, space, ["a/m", "b/m"], 0, {"a": 9, "b": 9})
    assert str(racing).endswith("by regression")


def test_tolerance_of_a_race_with_surrogates_is_halved_to_the_configured_one():
    problem = exam(two_spheres(4), 24, easiness=0.1, noise=0.05)
    racing = race(problem, tolerance=0.25)
    tolerances = []

    def evaluate(proposal):
        tolerances.append(racing.tolerance)
        return problem.evaluate(proposal)

    drive(racing, evaluate, 2000, slots=1)
    assert list(dict.fromkeys(tolerances)) == [1.0, 0.5, 0.25]
    assert racing.ask() is None  # no new candidate is competitive
    assert race(problem, tolerance=0.25, surrogate=False).tolerance == 0.25
