"""Model Swarms: one move by hand, the swarm against plain loops over weights, failures, restarts, termination."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import mixed, sphere

from evomerge import recipe, search, space
from evomerge.errors import DriverError
from evomerge.search.swarm import steer
from evomerge.settings import StudySettings
from evomerge.space import SearchSpace
from evomerge.study import Study
from evomerge.testing import Problem, drive, toy_space, two_spheres
from evomerge.trial import Evaluation, Proposal

EXPERTS = ("maths", "code", "prose")
FAILED = Evaluation(error="out of memory")


def make(problem, seed=0, **settings):
    return search.make({"kind": "swarm", **settings}, problem.space, problem.objectives, seed)


def affine(bound=10.0, experts=EXPERTS):
    """Return the space of affine combinations of experts in a large box."""
    data = space.read("model_swarm")
    data["recipe"]["merge"]["parameters"]["weight"]["float"] = [-bound, bound]
    return SearchSpace.parse(data, experts=experts, blocks=2)


def values(problem, proposals):
    return np.array([problem.evaluate(p).means(problem.objectives)[0] for p in proposals])


def test_one_move_by_hand():
    weights = np.array([0.2, 0.1, 0.3, 0.4])
    velocity = steer(weights, *map(np.array, ([1.0, 0], [0.5, 0.5], [0.7, 0.1], [0.2, 0.9], [0.0, 1.0])))
    # 0.2 (1, 0) + 0.1 (0.2, -0.4) + 0.3 (-0.3, 0.4) + 0.4 (0.5, -0.5), divided by the sum of the weights, 1
    np.testing.assert_allclose(velocity, [0.2 + 0.02 - 0.09 + 0.2, -0.04 + 0.12 - 0.2])
    np.testing.assert_allclose(steer(3 * weights, *np.eye(5)), steer(weights, *np.eye(5)), rtol=0, atol=1e-12)


@given(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(np.array),
    st.lists(st.floats(-1, 1), min_size=15, max_size=15).map(lambda entries: np.array(entries).reshape(5, 3)),
    st.floats(-3, 3),
)
def test_velocity_is_invariant_to_translation(weights, vectors, shift):
    moved = vectors + np.array([0, 1, 1, 1, 1])[:, None] * shift
    np.testing.assert_allclose(steer(weights, *moved), steer(weights, *vectors), rtol=0, atol=1e-12)
    assert (np.abs(steer(weights, *vectors)) <= 2 + 1e-12).all()


def slow_swarm(experts, score, count, seed, particles, restart=6, current=False):
    """The paper's loop over models' weights, `(experts, parameters)`; the particles move one after the other."""
    draw = [np.random.default_rng(np.random.SeedSequence([seed, number])) for number in range(count)]
    models = [np.array(one) for one in experts]
    for number in range(len(experts), particles):
        one, other = draw[number].choice(len(experts), 2, replace=False)
        share = 2 * draw[number].random()
        models.append(share * experts[one] + (1 - share) * experts[other])
    starts = [model.copy() for model in models]
    velocity = []
    for i in range(particles):
        others = [j for j in range(particles) if j != i]
        velocity.append(starts[others[draw[i].integers(particles - 1)]] - starts[i])
    history = [[] for _ in range(particles)]  # of each particle: (value, model)
    every = []
    for number in range(count):
        i = number % particles
        if number >= particles:
            mine = [value for value, _ in history[i]]
            first = mine.index(max(mine))
            best, all_values = history[i][first][1], [value for value, _ in every]
            if len(mine) - 1 - first >= restart:
                models[i], velocity[i] = best, np.zeros_like(best)
            top = every[all_values.index(max(all_values))][1]
            worst = every[all_values.index(min(all_values))][1]
            if current:
                worst = min((h[-1] for h in history), key=lambda pair: pair[0])[1]
            r = 1 - draw[number].random(4)
            c = r * [0.4, 0.3, 0.3, 0.3]
            x = models[i]
            velocity[i] = (c[0] * velocity[i] + c[1] * (best - x) + c[2] * (top - x) + c[3] * (x - worst)) / sum(c)
            models[i] = x + max(0.95 ** (len(mine) - 1), 0.1) * velocity[i]
        history[i].append((score(models[i]), models[i]))
        every.append(history[i][-1])
    return np.array([model for _, model in every])


@pytest.mark.parametrize("current", [False, True])
def test_swarm_over_the_experts_weights_is_the_papers_swarm_over_models(current):
    """Its recipes are affine combinations: the weights sum to 1."""
    rng = np.random.default_rng(0)
    experts, target = rng.standard_normal((3, 7)), rng.standard_normal(7)
    searched = affine()

    def score(model):
        return -float(np.float32(np.mean((model - target) ** 2)))

    problem = Problem(searched, ("near",), lambda genome: np.array([score(genome @ experts)]), np.zeros(1))
    settings = {"seed_known": "experts", "particles": 5, "worst": "current" if current else "all_time"}
    proposals = drive(make(problem, 3, **settings), problem.evaluate, 250)
    genomes = np.array([proposal.genome for proposal in proposals])
    expected = slow_swarm(experts, score, 250, 3, 5, current=current)
    np.testing.assert_allclose(genomes @ experts, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(genomes.sum(axis=1), 1, rtol=0, atol=1e-9)


def test_recipe_of_a_particle_is_the_affine_combination_of_the_experts(builder, models):
    searched = affine(2)
    built = builder.build(searched.decode(np.array([1.5, -0.75, 0.25])))
    for name in ("layers.0.attn.weight", "layers.0.norm.weight"):
        one, two, three = (models.experts[expert][name].double() for expert in EXPERTS)
        expected = 1.5 * one - 0.75 * two + 0.25 * three
        torch.testing.assert_close(built.tensor(name).double(), expected, rtol=0, atol=1e-5)


def test_particles_start_at_known_recipes_and_at_combinations_of_two():
    problem = Problem(affine(), ("a",), lambda genome: np.zeros(1), np.zeros(1))
    proposals = drive(make(problem, particles=400, seed_known="experts"), problem.evaluate, 400, slots=400)
    assert [p.recipe for p in proposals[:3]] == [
        problem.space.decode(problem.space.landmarks()[f"expert {name}"]) for name in EXPERTS
    ]
    shares = []
    for proposal in proposals[3:]:
        among = np.flatnonzero(np.abs(proposal.genome) > 1e-12)
        assert len(among) <= 2
        assert proposal.genome.sum() == pytest.approx(1)
        shares.append(proposal.genome.max())
    # u uniform in [0, 2): the larger of u and 1 - u is above 1 half of the time, and never 2.
    assert np.mean(np.array(shares) > 1) == pytest.approx(0.5, abs=0.08)
    assert max(shares) < 2


def test_shipped_space_starts_with_base_experts_and_mean():
    searched = SearchSpace.parse(space.read("model_swarm"), experts=EXPERTS, blocks=2)
    driver = search.make(searched.driver, searched, ["a"], 0)
    weights = [driver.ask().genome.tolist() for _ in range(5)]
    assert weights == [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3] * 3]
    assert str(driver) == "particle swarm (Model Swarms), 20 particles, from 5 known recipes"


def test_all_known_recipes_start_even_if_there_are_more_than_particles():
    problem = two_spheres()
    driver = make(problem, particles=2)
    known = len({problem.space.decode(genome).id for genome in problem.space.landmarks().values()})
    assert known == 4
    assert len([driver.ask() for _ in range(known)]) == known
    assert driver.ask() is None


def test_without_known_recipes_starts_are_uniform_in_the_box():
    problem = Problem(toy_space(2), ("a",), lambda genome: np.zeros(1), np.zeros(1))
    starts = drive(make(problem, seed_known=False, particles=300), problem.evaluate, 300, slots=300)
    counts, _, _ = np.histogram2d(*np.array([p.genome for p in starts]).T, bins=2, range=[[0, 1]] * 2)
    assert counts.ravel().tolist() == pytest.approx([75] * 4, abs=25)


def test_genes_on_a_log_scale_move_in_their_logarithm():
    template = {"merge": {"method": "linear", "inputs": "experts", "parameters": {"weight": {}}}}
    template["merge"]["parameters"]["weight"] = {"float": [0.01, 1], "log": True, "per": ["expert"]}
    searched = SearchSpace(template, experts=("left", "right"))
    problem = Problem(searched, ("a",), lambda x: -np.abs(np.log10(x) + 1).sum(keepdims=True), np.zeros(1))
    starts = drive(make(problem, seed_known=False, particles=300), problem.evaluate, 300, slots=300)
    assert np.mean([p.genome[0] < 0.1 for p in starts]) == pytest.approx(0.5, abs=0.1)
    assert max(values(problem, drive(make(problem, worst="current"), problem.evaluate, 400))) > -0.02


def test_particle_moves_as_soon_as_its_own_evaluation_arrives():
    problem = two_spheres()
    driver = make(problem, particles=6)
    starts = [driver.ask() for _ in range(6)]
    for arrived in (4, 1, 3):
        assert driver.ask() is None
        driver.tell(starts[arrived], problem.evaluate(starts[arrived]))
        moved = driver.ask()
        assert moved is not None
        assert driver._pending[moved.number] == arrived
        assert driver.ask() is None


def test_ask_that_returns_none_changes_nothing():
    problem = two_spheres()
    expected = drive(make(problem, particles=6), problem.evaluate, 60, slots=6, shuffle=1)
    proposals = drive(make(problem, particles=6), problem.evaluate, 60, slots=100, shuffle=1)
    assert [p.recipe.id for p in proposals] == [p.recipe.id for p in expected]


def test_first_particle_to_move_uses_the_bests_so_far():
    """After its own evaluation only, its position is best and worst, and only its velocity remains."""
    problem = two_spheres()
    driver = make(problem, particles=5, step=0.01)
    starts = [driver.ask() for _ in range(5)]
    driver.tell(starts[2], problem.evaluate(starts[2]))
    before = driver._particles[2].velocity.copy()
    moved = driver.ask()
    rng = np.random.default_rng(np.random.SeedSequence([0, 5]))
    weights = (1 - rng.random(4)) * [0.4, 0.3, 0.3, 0.3]
    step = before * weights[0] / weights.sum()
    expected = np.clip(starts[2].genome + 0.1 * step, 0, 1)  # the least step is 0.1
    np.testing.assert_allclose(moved.genome, expected, rtol=0, atol=1e-12)


def test_step_length_decays_with_the_moves_of_the_particle():
    problem = Problem(toy_space(2), ("a",), lambda genome: np.zeros(1), np.zeros(1))
    driver = make(problem, particles=4, social=0, cognitive=0, repel=0, restart=1000)  # v is constant
    driver._particles[0].velocity = np.array([0.03, -0.02])
    driver._particles[0].position = np.array([0.2, 0.8])
    driver._known[0] = [0.2, 0.8]
    path = []
    for _ in range(4 * 60):
        proposal = driver.ask()
        if driver._pending[proposal.number] == 0:
            path.append(proposal.genome)
        driver.tell(proposal, problem.evaluate(proposal))
    steps = np.diff(path, axis=0)
    inside = (np.array(path[1:]) < 1).all(axis=1)
    lengths = [max(0.95**k, 0.1) for k in range(59)]
    np.testing.assert_allclose(steps[inside], np.outer(lengths, [0.03, -0.02])[inside], rtol=0, atol=1e-12)
    assert inside.sum() > 20


def test_failed_particle_continues_from_its_personal_best_with_velocity_0():
    problem = two_spheres()
    driver = make(problem, particles=4, social=0, repel=0, restart=1000)
    for _ in range(4):
        start = driver.ask()
        driver.tell(start, problem.evaluate(start))
    best = driver._particles[0].best.copy()
    moved = driver.ask()
    assert np.abs(moved.genome - best).max() > 0.05
    driver.tell(moved, FAILED)
    for _ in range(3):
        other = driver.ask()
        driver.tell(other, problem.evaluate(other))
    again = driver.ask()  # with velocity 0, at its personal best, no term is left
    np.testing.assert_allclose(again.genome, best, rtol=0, atol=1e-12)


def test_particle_without_a_success_gets_a_new_start():
    problem = Problem(affine(), ("a",), lambda genome: np.zeros(1), np.zeros(1))
    driver = make(problem, particles=6)
    starts = [driver.ask() for _ in range(6)]
    for start in starts:
        driver.tell(start, FAILED)
    fresh = [driver.ask() for _ in range(6)]
    assert len({p.recipe.id for p in fresh}) == 6
    assert not {p.recipe.id for p in fresh} & {p.recipe.id for p in starts}
    for proposal in fresh:
        driver.tell(proposal, problem.evaluate(proposal))
    assert driver.ask() is not None


def test_failures_are_never_the_global_worst():
    problem = two_spheres()
    driver = make(problem, particles=4)
    first = driver.ask()
    driver.tell(first, FAILED)
    assert driver._worst is None
    second = driver.ask()
    driver.tell(second, Evaluation(scores={name: np.array([np.nan]) for name in problem.objectives}))
    third = driver.ask()
    driver.tell(third, problem.evaluate(third))
    np.testing.assert_allclose(driver._worst[1], third.genome, rtol=0, atol=1e-12)


@given(st.integers(0, 2**16), st.integers(2, 9), st.lists(st.sampled_from(["good", "fail", "nan"]), min_size=1))
def test_positions_stay_in_the_box_with_any_mixture_of_failures(seed, particles, fates):
    problem = two_spheres(4)
    fate = itertools.cycle(fates)

    def evaluate(proposal):
        what = next(fate)
        if what == "fail":
            return FAILED
        if what == "nan":
            return Evaluation(scores={name: np.array([np.nan], dtype=np.float32) for name in problem.objectives})
        return problem.evaluate(proposal)

    proposals = drive(make(problem, seed, particles=particles), evaluate, 60, slots=3, shuffle=seed)
    assert len(proposals) == 60
    for proposal in proposals:
        assert ((proposal.genome >= 0) & (proposal.genome <= 1)).all()


def scripted(driver, script, count):
    """Return `count` proposals; proposal `number` scores `script(number)`."""
    proposals = []
    for _ in range(count):
        proposal = driver.ask()
        if proposal is None:
            break
        proposals.append(proposal)
        scores = {"near": np.array([script(proposal.number)], dtype=np.float32), "far": np.zeros(1, dtype=np.float32)}
        driver.tell(proposal, Evaluation(scores=scores))
    return proposals


def test_particle_without_improvement_restarts_from_its_personal_best():
    problem = two_spheres()
    driver = make(problem, particles=4, social=0, repel=0, restart=3)
    proposals = scripted(driver, lambda number: 1.0 if number < 4 else 0.0, 24)
    path = [p.genome for p in proposals[::4]]  # of particle 0
    assert all(np.abs(genome - path[0]).max() > 1e-3 for genome in path[1:4])
    np.testing.assert_allclose(path[4], path[0], rtol=0, atol=1e-12)  # after three worse evaluations
    np.testing.assert_allclose(path[5], path[0], rtol=0, atol=1e-12)


def test_search_ends_after_patience_rounds_without_a_new_best():
    problem = two_spheres()
    driver = make(problem, particles=4, patience=3)
    assert str(driver).endswith("4 particles, from 4 known recipes, until 3 rounds bring nothing better")
    proposals = scripted(driver, lambda number: 1.0 if number == 6 else 0.0, 100)
    assert len(proposals) == 7 + 3 * 4
    assert driver.ask() is None
    assert driver.ask() is None


def test_without_patience_it_never_ends():
    assert len(scripted(make(two_spheres(), particles=4), lambda number: 0.0, 500)) == 500


@pytest.mark.parametrize("seed", range(3))
def test_swarm_with_the_current_worst_converges_to_the_optimum(seed):
    """The all-time worst of the paper keeps repelling, and the swarm stays farther away."""
    problem = sphere()
    ends = {}
    for worst in ("current", "all_time"):
        proposals = drive(make(problem, seed, worst=worst), problem.evaluate, 1500)
        ends[worst] = values(problem, proposals)
        blind = problem.space.from_unit(np.random.default_rng(seed).random((1500, 8)))
        assert ends[worst].max() > max(problem.score(genome)[0] for genome in blind)
    assert ends["current"].max() > -1e-4
    assert ends["current"][-200:].mean() > 3 * ends["all_time"][-200:].mean()


def test_weights_choose_the_point_of_the_front():
    problem = two_spheres()
    for name, target in (("near", 0.25), ("far", 0.75)):
        driver = make(problem, weights={name: 3}, worst="current")
        proposals = drive(driver, problem.evaluate, 800)
        best = max(proposals, key=lambda p: problem.evaluate(p).scores[name][0])
        np.testing.assert_allclose(best.genome, target, rtol=0, atol=0.06)


def test_resumed_study_of_the_shipped_space_has_the_same_bytes(small_digits, tmp_path):
    def run(name, evaluations):
        tasks = dict(list(small_digits.tasks.items())[:2])
        data = {"name": "swarm", "pool": small_digits.pool, "tasks": tasks, "space": "model_swarm"}
        settings = StudySettings.parse({**data, "evaluations": evaluations}, "test", tmp_path)
        study = Study.create(tmp_path / name, settings)
        with study.evaluator() as evaluator:
            study.run(evaluator)
        assert all(evaluation.error is None for _, evaluation in study.population())
        return study.journal_path.read_bytes()

    expected = run("uninterrupted", 28)
    assert [run("parts", count) for count in (7, 23, 28)][-1] == expected


def test_genes_other_than_floats_are_refused_by_name():
    with pytest.raises(DriverError) as caught:
        make(mixed())
    assert "driver `swarm` supports float genes only, and `method` is of kind choice" in str(caught.value)
    assert "type one of its values in its place, or `kind: cma`" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"particles": 1}, "`particles`: input should be greater than or equal to 2, got 1"),
        ({"inertia": -1}, "`inertia`: input should be greater than or equal to 0, got -1"),
        ({"inertia": 0, "cognitive": 0, "social": 0, "repel": 0}, "are all 0; expected at least one above 0"),
        ({"patience": 0}, "`patience`: input should be greater than or equal to 1, got 0"),
        ({"decay": 1.5}, "`decay`: input should be less than or equal to 1, got 1.5"),
        ({"worst": "ever"}, "`worst`"),
        ({"weights": {"nera": 1}}, "unknown objective `nera`; did you mean `near`?"),
        ({"partcles": 3}, "unknown key `partcles`; did you mean `particles`?"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(DriverError) as caught:
        make(two_spheres(), **settings)
    assert message in str(caught.value)


def test_space_without_the_experts_cannot_start_at_them():
    template = {"merge": {"method": "ties", "inputs": "experts", "parameters": {"density": {"float": [0.1, 0.5]}}}}
    searched = SearchSpace(template, experts=("left", "right"))
    with pytest.raises(DriverError, match="the space contains 0 experts, expected 2 or more; type `true`"):
        search.make({"kind": "swarm", "seed_known": "experts"}, searched, ["a"], 0)


def test_telling_a_proposal_not_in_flight_raises_an_error_with_those_that_are():
    problem = two_spheres()
    driver = make(problem)
    first = driver.ask()
    driver.ask()
    with pytest.raises(DriverError, match=r"proposal 7 is not in flight; expected one of \[0, 1\]"):
        driver.tell(Proposal(7, recipe.base()), FAILED)
    driver.tell(first, FAILED)
    with pytest.raises(DriverError, match=r"proposal 0 is not in flight; expected one of \[1\]"):
        driver.tell(first, FAILED)
