"""The front driver: its design, its batches, when it ends, and what it says of its surface."""

import functools
import itertools

import numpy as np
import pytest
from problems import mixed, sphere
from scipy.stats import qmc

from evomerge import pareto, search, surrogate
from evomerge import space as spaces
from evomerge.errors import DriverError
from evomerge.search.driver import Generational
from evomerge.search.fronts import front
from evomerge.search.fronts.front import Front
from evomerge.search.fronts.settings import FrontSettings
from evomerge.space import SearchSpace
from evomerge.testing import GenomeSuite, Problem, SurfaceSuite, drive, toy_space, two_spheres
from evomerge.trial import Evaluation, Proposal


def driver(problem, seed=0, **settings):
    breeder = Front(problem.space, problem.objectives, seed, FrontSettings(**settings))
    return Generational(problem.space, problem.objectives, breeder)


class TestFront(GenomeSuite):
    budget = 12

    def problem(self):
        return two_spheres(2)

    def make(self, problem, seed):
        settings = {"kind": "front", "points": 6, "batch": 9, "tolerance": 0}
        return search.make(settings, problem.space, problem.objectives, seed)


class TestFrontSurface(SurfaceSuite):
    budget = 16

    def make(self, problem, seed):
        return driver(problem, seed, tolerance=0, batch=8)


class Bed:
    """As many tiny classifiers as tasks, merged by task arithmetic: a layer of tanh, and a frozen head for each task."""

    def __init__(self, tasks, seed, groups=1, examples=400):
        rng = np.random.default_rng([seed, tasks])
        self.tasks, self.groups = tasks, groups
        self.base = rng.standard_normal((12, 24)) / np.sqrt(12)
        self.vectors = 0.5 * rng.standard_normal((tasks, 12, 24)) / np.sqrt(12)
        self.heads = rng.standard_normal((tasks, 24, 6))
        self.inputs = rng.standard_normal((tasks, examples, 12))
        experts = np.stack([self.logits(np.eye(tasks)[t].repeat(groups))[t] for t in range(tasks)])
        self.labels = (experts + 1.5 * rng.standard_normal(experts.shape)).argmax(axis=2)
        per = ["expert"] + ([f"block/{groups}"] if groups > 1 else [])
        merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": {"lambda": 1.0}}
        merge["parameters"]["weight"] = {"float": [0, 1], "per": per}
        self.space = SearchSpace({"merge": merge}, experts=[f"e{t}" for t in range(tasks)])
        self.objectives = tuple(f"t{t}/accuracy" for t in range(tasks))

    def logits(self, genome):
        weights = np.repeat(np.reshape(genome, (self.tasks, self.groups)), 12 // self.groups, axis=1)
        layer = self.base + np.einsum("ti,tij->ij", weights, self.vectors)
        return np.tanh(self.inputs @ layer) @ self.heads

    def margins(self, genome):
        """Return the labels' logits minus all others, `(tasks, examples, 5)`."""
        logits = self.logits(genome)
        own = np.take_along_axis(logits, self.labels[..., None], axis=2)
        others = logits[self.labels[..., None] != np.arange(6)]
        return own - others.reshape(self.tasks, -1, 5)

    def score(self, genome):
        return (self.margins(genome) > 0).all(axis=2).mean(axis=1)

    def evaluate(self, proposal):
        margins = self.margins(proposal.genome)
        scores = {f"t{t}/accuracy": (rows > 0).all(axis=1).astype(np.float32) for t, rows in enumerate(margins)}
        outputs = {f"t{t}/margins": rows.astype(np.float32) for t, rows in enumerate(margins)}
        return Evaluation(scores=scores, outputs=outputs)

    def plain(self, proposal):
        """Return the evaluation without the margins."""
        return Evaluation(scores=self.evaluate(proposal).scores)

    @functools.cache  # noqa: B019  # beds are few
    def dense(self):
        """Return reference point and hypervolume of the front of 3,000 evaluations: Sobol points, then around the best."""
        rng = np.random.default_rng(0)
        points = np.concatenate([list(self.space.landmarks().values()), qmc.Sobol(self.tasks, seed=rng).random(1024)])
        scores = np.array([self.score(point) for point in points])
        for step in 0.3 * 0.7 ** np.arange(10):
            chosen = points[rng.choice(np.flatnonzero(pareto.nondominated(scores)), 200)]
            near = np.clip(chosen + step * rng.standard_normal(chosen.shape), 0, 1)
            points = np.concatenate([points, near])
            scores = np.concatenate([scores, [self.score(point) for point in near]])
        front = scores[pareto.nondominated(scores)]
        reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
        return reference, pareto.hypervolume(front, reference)


@functools.cache
def two_tasks(seed):
    """Return a bed of two tasks, and the first 24 candidates of its search."""
    bed = Bed(2, seed)
    return bed, drive(driver(bed, seed, tolerance=0), bed.evaluate, 24)


@functools.cache
def finished():
    """Return a bed of two tasks, and all candidates of its search."""
    bed = Bed(2, 0, examples=150)
    return bed, drive(driver(bed, batch=8), bed.evaluate, 200)


def reached(problem, proposals, reference, volume, share=0.95):
    """Return the number of evaluations after which that share of the volume is reached, or infinity."""
    history = pareto.hypervolume_history([problem.score(proposal.genome) for proposal in proposals], reference)
    return next((i + 1 for i, so_far in enumerate(history) if so_far >= share * volume), np.inf)


def tiles(count, kind="float"):
    parameters = {"weight": {kind: [0, 1], "per": ["expert", f"block/{count}"]}}
    return SearchSpace({"merge": {"method": "linear", "inputs": "experts", "parameters": parameters}}, experts=["a"])


def int_space(high, weights=1):
    """Return a space of one int gene, and `weights` float ones."""
    merge = {"method": "dare_ties", "inputs": "experts", "seed": {"int": [0, high]}}
    merge["parameters"] = {"weight": {"float": [0, 1], "per": ["expert"]} if weights else 1.0}
    return SearchSpace({"merge": merge}, experts=[f"e{i}" for i in range(max(weights, 1))])


@pytest.mark.parametrize("seed", [0, 1])
def test_front_of_two_accuracies_is_reached_within_24_evaluations(seed):
    bed, proposals = two_tasks(seed)
    reference, volume = bed.dense()
    assert reached(bed, proposals, reference, volume) <= 24
    mapping = search.make({"kind": "map", "points": 30, "validated": 30}, bed.space, bed.objectives, seed)
    assert reached(bed, drive(mapping, bed.evaluate, 60), reference, volume) == np.inf
    for kind in ("nsga2", "random"):
        other = search.make({"kind": kind}, bed.space, bed.objectives, seed)
        assert reached(bed, drive(other, bed.evaluate, 150), reference, volume) > 150


@pytest.mark.parametrize("genes", [2, 4])
def test_front_of_two_spheres_is_reached_before_nsga2_has_its_third_generation(genes):
    problem = two_spheres(genes)
    proposals = drive(driver(problem, tolerance=0, batch=8), problem.evaluate, 40)
    ours = reached(problem, proposals, problem.reference, problem.volume)
    theirs = search.make({"kind": "nsga2"}, problem.space, problem.objectives, 0)
    assert ours <= 40
    assert reached(problem, drive(theirs, problem.evaluate, 80), problem.reference, problem.volume) > 80


def test_margins_save_evaluations():
    bed, by_margin = two_tasks(1)
    reference, volume = bed.dense()
    by_score = drive(driver(bed, 1, tolerance=0), bed.plain, 24)
    assert reached(bed, by_margin, reference, volume) < reached(bed, by_score, reference, volume)


def test_many_tiled_genes_are_searched():
    bed = Bed(2, 0, groups=6, examples=150)  # 12 genes
    searching = driver(bed, tolerance=0)
    proposals = drive(searching, bed.evaluate, 73)
    assert searching.breeder._size == 65
    scores = np.array([bed.score(proposal.genome) for proposal in proposals])
    reference = scores.min(axis=0)
    assert pareto.hypervolume(scores, reference) > 1.3 * pareto.hypervolume(scores[:65], reference)


def test_design_is_the_known_recipes_and_points_that_identify_a_quadratic():
    bed = Bed(3, 0)
    searching = driver(bed)
    proposals = drive(searching, bed.evaluate, 12)  # 1.2 p = 12
    known = {bed.space.decode(genome).id for genome in bed.space.landmarks().values()}
    assert {proposal.recipe.id for proposal in proposals[: len(known)]} == known
    assert surrogate.identifies(np.array([proposal.genome for proposal in proposals]))
    assert "6 known recipes and 6 Sobol points" in str(searching)
    assert "\n" not in str(searching)


@pytest.mark.parametrize(("tasks", "groups"), [(2, 1), (3, 1), (4, 1), (2, 3)])
def test_half_of_the_design_beside_known_recipes_can_be_mixtures(tasks, groups):
    bed = Bed(tasks, 0, groups)
    plain, searching = driver(bed), driver(bed, mixtures=True)
    design = searching.breeder.draw()
    known = searching.breeder._known
    mixtures = (len(design) - len(known)) // 2
    assert len(design) == len(plain.breeder.draw())
    assert surrogate.identifies(design)
    totals = design.reshape(len(design), tasks, groups)[len(known) :].sum(axis=1)
    assert (totals[:mixtures] >= 1 - 1e-9).all()
    assert np.isclose(totals[:mixtures], 1).any()
    assert (design[: len(known)] == known).all()
    assert f"{len(known)} known recipes, {mixtures} mixtures and {len(design) - len(known) - mixtures} Sobol" in str(
        searching
    )


def test_surrogates_of_mixtures_are_fitted_to_the_weights():
    bed = Bed(3, 0, examples=150)
    bed.space = SearchSpace.parse(spaces.read("task_arithmetic_mixture"), experts=[f"e{t}" for t in range(3)])
    evaluate = bed.evaluate

    def by_weights(proposal):
        values = proposal.recipe.data["merge"]["parameters"]["weight"]["values"]
        return evaluate(Proposal(proposal.number, proposal.recipe, np.array(list(values.values()))))

    searching = driver(bed, tolerance=0)
    proposals = drive(searching, by_weights, 16)
    assert surrogate.identifies(bed.space.coordinates(bed.space.to_unit(np.array([p.genome for p in proposals]))))
    for fit in searching.breeder._fits.values():
        assert fit.r2 > 0.9
        unit = np.random.default_rng(0).random((5, 3))
        assert fit.predict(unit)[0] == pytest.approx(fit.rung.predict(bed.space.coordinates(unit))[0])


@pytest.mark.parametrize(("tasks", "groups"), [(2, 1), (3, 1), (2, 3)])
def test_half_of_each_batch_are_mixtures_that_fill_gaps(tasks, groups):
    bed = Bed(tasks, 0, groups, examples=100)
    searching = driver(bed, mixtures=True, tolerance=0)
    proposals = drive(searching, bed.evaluate, searching.breeder._size + 8)
    genomes = np.array([proposal.genome for proposal in proposals[searching.breeder._size :]])
    totals = genomes.reshape(2, 4, tasks, groups).sum(axis=2)
    assert np.isclose(totals, 1).all(axis=2)[:, 2:].all()
    assert len({proposal.recipe.id for proposal in proposals}) == len(proposals)


def test_without_weights_of_experts_mixtures_change_nothing():
    space = int_space(6)
    plain, searching = (Front(space, ["x"], 0, FrontSettings(mixtures=mixtures)) for mixtures in (False, True))
    assert (plain.draw() == searching.draw()).all()
    assert str(plain) == str(searching)


def test_design_that_cannot_identify_a_quadratic_is_refused_before_anything_is_spent(monkeypatch):
    line = np.linspace(0, 1, 12)[:, None].repeat(2, axis=1)
    monkeypatch.setattr(surrogate, "design", lambda *given: line)
    with pytest.raises(DriverError, match=r"does not identify a quadratic.*only change together.*raise `points`"):
        driver(Bed(2, 0), points=12)


@pytest.mark.parametrize(("groups", "expected"), [(1, 4), (2, 8), (6, 34), (7, 40), (24, 125), (40, 205)])
def test_design_grows_with_the_square_of_the_genes_and_then_with_their_number(groups, expected):
    space = tiles(groups)
    breeder = Front(space, ["x"], 0, FrontSettings(seed_known=False))
    assert len(breeder.draw()) == expected


def test_of_many_candidates_a_part_is_fitted_and_few_are_fitted_all():
    bed = Bed(2, 0, examples=100)
    all_fitted, bounded = (driver(bed, tolerance=0, batch=8, most=most) for most in (None, 50))
    plain = drive(all_fitted, bed.plain, 56)
    proposals = drive(bounded, bed.plain, 80)
    assert [p.recipe.id for p in proposals[:56]] == [p.recipe.id for p in plain], "chosen from 48"
    assert len({proposal.recipe.id for proposal in proposals}) == 80
    breeder = bounded.breeder
    for fit in breeder._fits.values():
        assert len(fit.values) == 50
        assert (fit.points[:8] == breeder._points[:8]).all(), "the design"
        assert fit.points.tolist() == breeder._points[breeder._fitted].tolist()
    assert (breeder._seen, len(breeder._points)) == (72, 80), "fitted again at 56, 64 and 72, then at 81"


@pytest.mark.parametrize(("in_flight", "count", "largest"), [(1, 80, 9), (40, 130, 5)])
def test_large_searches_save_the_driver_time_by_counts_alone(in_flight, count, largest, monkeypatch):
    """Few fits, few candidates for hyperparameters, larger batches; and the same search in any order of results."""
    monkeypatch.setattr(front, "_LARGE", 36)
    monkeypatch.setattr(front, "_CHOSEN", 12)
    monkeypatch.setattr(front, "_BATCHES", 8)
    chosen, sizes = [], []
    fit, batch = front.fit_surrogates, Front._batch
    monkeypatch.setattr(Front, "_batch", lambda *args: sizes.append(rows := batch(*args)) or rows)
    monkeypatch.setattr(front, "fit_surrogates", lambda *args: chosen.append((len(args[1]), args[-1])) or fit(*args))
    problem = two_spheres(4)
    settings = {"tolerance": 0, "most": 1000} | ({"in_flight": 40} if in_flight > 1 else {})
    searches = [driver(problem, **settings) for _ in range(2)]
    drawn = [[], []]
    for rows, searching, newest in zip(drawn, searches, (False, True), strict=True):
        pending = []
        while len(rows) < count:
            while len(pending) < 16 and (proposal := searching.ask()) is not None:
                pending.append(proposal)
                rows.append(proposal.genome.tolist())
            proposal = pending.pop(-1 if newest else 0)
            searching.tell(proposal, problem.evaluate(proposal))
    assert drawn[0][:count] == drawn[1][:count]
    counts = [fitted for fitted, _ in chosen[: len(chosen) // 2]]
    late = [after / before for before, after in itertools.pairwise(counts) if before > 36]
    assert all(ratio >= 1.125 for ratio in late)
    assert len(late) >= 2
    assert {len(rows) for rows in sizes} == set(range(4, largest + 1))
    assert all(few == (12 if fitted > 36 else None) for fitted, few in chosen)


def test_int_genes_are_whole_and_no_candidate_is_evaluated_twice():
    space = int_space(6)
    problem = Problem(
        space, ("x", "y"), lambda g: -np.array([(g[0] - 1) ** 2 + g[1], (g[0] - 4) ** 2 - g[1]]), np.zeros(2)
    )
    proposals = drive(driver(problem, tolerance=0, batch=8), problem.evaluate, 30)
    assert len({proposal.recipe.id for proposal in proposals}) == 30
    seeds = np.array([proposal.genome[[gene.kind for gene in space.genes].index("int")] for proposal in proposals])
    assert (seeds == seeds.round()).all()


@pytest.mark.parametrize(("high", "count"), [(2, 3), (6, 7)])
def test_space_that_is_exhausted_ends_the_search(high, count):
    problem = Problem(int_space(high, weights=0), ("x",), lambda g: -((g - 2) ** 2), np.zeros(1))
    searching = driver(problem, tolerance=0)
    assert len(drive(searching, problem.evaluate, 50)) == count
    refused = searching.breeder.surface().refused
    assert ("3 candidates could be evaluated; expected 4" in (refused or "")) == (count == 3)


def test_search_ends_when_the_expected_gain_is_noise_and_not_with_tolerance_0():
    bed, proposals = finished()
    assert 12 <= len(proposals) <= 60
    longer = len(proposals) + 8
    assert len(drive(driver(bed, tolerance=0, batch=8), bed.evaluate, longer)) == longer
    assert len(drive(driver(bed, tolerance=1e9), bed.evaluate, 200)) == 8 + 4


def test_fewer_examples_end_the_search_sooner():
    bed, proposals = finished()

    def few(proposal):
        full = bed.evaluate(proposal)
        scores, outputs = ({name: rows[:40] for name, rows in part.items()} for part in (full.scores, full.outputs))
        return Evaluation(scores, outputs=outputs)

    assert len(drive(driver(bed, batch=8), few, 100)) < len(proposals)


def test_one_objective_is_found_and_the_search_ends():
    problem = sphere(2)
    proposals = drive(driver(problem), problem.evaluate, 100)
    assert len(proposals) < 40
    best = max(proposals, key=lambda proposal: problem.score(proposal.genome)[0])
    np.testing.assert_allclose(best.genome, 0.3, atol=0.02)


def test_batches_are_where_the_surrogates_are_as_sure_as_about_the_design():
    bed = Bed(2, 3)
    searching = driver(bed, tolerance=0)
    drive(searching, bed.evaluate, 8)
    batch = searching.breeder.draw()
    for fit in searching.breeder._fits.values():
        limit = np.quantile(fit.factor * fit.rung.left_out[1], 0.9)
        assert (fit.predict(batch)[1] <= limit * (1 + 1e-9)).all()


def test_failures_are_left_out_and_not_approached():
    problem = two_spheres(2)

    def evaluate(proposal):
        return Evaluation(error="out of memory") if proposal.genome[0] > 0.6 else problem.evaluate(proposal)

    searching = driver(problem, points=16, tolerance=0, batch=8)
    proposals = drive(searching, evaluate, 48)
    late = np.array([proposal.genome[0] for proposal in proposals[-24:]])
    assert (late > 0.6).mean() < 0.35
    fit = searching.breeder._fits["near"]
    good = [problem.score(proposal.genome)[0] for proposal in proposals if proposal.genome[0] <= 0.6]
    np.testing.assert_allclose(fit.values, good, rtol=1e-5)


def test_design_is_drawn_anew_for_what_failed_until_half_of_it_succeeds():
    problem = two_spheres(2)

    def evaluate(proposal):
        return Evaluation(error="boom") if proposal.number < 13 else problem.evaluate(proposal)

    searching = driver(problem, points=12, tolerance=0, batch=8)
    proposals = drive(searching, evaluate, 40)
    assert len({proposal.recipe.id for proposal in proposals}) == 40
    assert searching.breeder._fits["near"].points.shape == (27, 2)  # 12, 12 more with one failure, then batches


def flat(problem, *names):
    def evaluate(proposal):
        scores = dict(problem.evaluate(proposal).scores)
        return Evaluation(scores=scores | {name: np.full_like(scores[name], 0.25) for name in names})

    return evaluate


def test_task_that_does_not_vary_is_left_out_and_named():
    bed = Bed(2, 0, examples=150)
    searching = driver(bed, batch=8)
    proposals = drive(searching, flat(bed, "t0/accuracy"), 60)
    surface = searching.breeder.surface()
    assert len(proposals) > 8
    assert surface.refused is not None
    assert "`t0/accuracy` does not vary" in surface.refused
    assert list(surface.fits) == ["t1/accuracy"]
    np.testing.assert_array_equal(surface.means[:, 0], 0.25)
    alone = max(bed.score(proposal.genome)[1] for proposal in proposals)
    assert surface.means[:, 1].max() == pytest.approx(alone, abs=0.03)


def test_search_in_which_nothing_varies_ends_after_its_design():
    problem = two_spheres(2)
    searching = driver(problem)
    assert len(drive(searching, flat(problem, "near", "far"), 60)) == 8
    surface = searching.breeder.surface()
    assert "none of the objectives varies over 8 candidates" in (surface.refused or "")
    assert surface.means.shape == (0, 2)


def test_tasks_that_do_not_conflict_have_one_best_point():
    problem = two_spheres(2)
    same = Problem(problem.space, ("a", "b"), lambda g: np.repeat(problem.score(g)[:1], 2), problem.reference)
    for searched, expected in ((same, True), (problem, False)):
        searching = driver(searched, batch=8)
        drive(searching, searched.evaluate, 16)
        best = searching.breeder.surface().best_for_all
        assert (best is not None) == expected
        if best is not None:
            np.testing.assert_allclose(best, 0.25, atol=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_surface_predicts_the_true_front(seed):
    bed, proposals = two_tasks(seed)
    genomes = np.array([proposal.genome for proposal in proposals[:16]])
    surface = driver(bed, seed).breeder.surface(genomes, [bed.evaluate(proposal) for proposal in proposals[:16]])
    assert surface.refused is None
    assert len(surface.genomes) > 15
    true = np.array([bed.score(genome) for genome in surface.genomes])
    reference, volume = bed.dense()
    assert pareto.hypervolume(true, reference) > 0.97 * volume
    assert np.abs(surface.means - true).mean() < 0.004
    inside = np.abs(surface.means - true) <= surrogate.NORMAL_90 * surface.deviations
    assert inside.mean() > 0.75
    for fit in surface.fits.values():
        assert fit.name == "margins"
        assert fit.r2 > 0.9


def test_surface_includes_evaluations_that_were_not_learnt_and_widens_intervals_of_few_candidates():
    problem = two_spheres(2)
    searching = driver(problem)
    drive(searching, problem.evaluate, 10)  # two of a batch of four
    before = searching.breeder.surface()
    assert before.fits["near"].values.shape == (8,)
    assert searching.breeder.surface(*searching.unfinished()).fits["near"].values.shape == (10,)
    np.testing.assert_array_equal(searching.breeder.surface().means, before.means)  # the breeder did not change
    for column, fit in enumerate(before.fits.values()):  # p = 6: the factor is 1 + 1 / (2 · 2)
        deviations = fit.predict(problem.space.to_unit(before.genomes))[1]
        np.testing.assert_allclose(before.deviations[:, column], 1.25 * deviations)


def test_scores_that_no_surface_explains_are_searched_for_three_designs_and_refused():
    problem = two_spheres(3)

    def noise(proposal):
        rng = np.random.default_rng([proposal.number])
        return Evaluation(scores={name: rng.standard_normal(50).astype(np.float32) for name in problem.objectives})

    searching = driver(problem)
    assert len(drive(searching, noise, 60)) == 3 * 8
    refused = searching.breeder.surface().refused or ""
    assert "`near`: the surrogate (" in refused
    assert "expected 0.9" in refused


def test_too_few_evaluations_are_refused():
    problem = two_spheres(6)
    searching = driver(problem, points=10, tolerance=0)
    drive(searching, problem.evaluate, 10)
    refused = searching.breeder.surface().refused or ""
    assert "10 candidates could be evaluated; expected 14 or more for 6 genes" in refused
    assert "0 candidates could be evaluated; expected 5" in (driver(problem, points=10).breeder.surface().refused or "")


@pytest.mark.parametrize(
    ("space", "objectives", "settings", "expected"),
    [
        (mixed().space, ("x", "y"), {}, r"gene `method` is a choice; .* type `kind: nsga2`"),
        (mixed().space, ("x",), {}, "type `kind: cma`"),
        (tiles(41), ("x", "y"), {}, "up to 40 genes, and the space has 41"),
        (toy_space(2), ("x", "y"), {"points": 4, "bounds": {"z": (0, 1)}}, "unknown objective `z`"),
        (toy_space(8), ("x", "y"), {"bounds": {"x": (1, 0)}}, "expected a lower and a higher number"),
        (Bed(3, 0).space, ("x", "y"), {"points": 4}, "`points` is 4; expected 6"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_to_type(space, objectives, settings, expected):
    with pytest.raises(DriverError, match=expected):
        Front(space, objectives, 0, FrontSettings(**settings))


def test_score_out_of_bounds_is_refused_with_what_to_type():
    bed = Bed(2, 0)

    def percent(proposal):
        return Evaluation(scores={name: 100 * score for name, score in bed.plain(proposal).scores.items()})

    expected = r"driver `front`: objective `t0/accuracy` scores 100.*type `bounds: {t0/accuracy"
    with pytest.raises(DriverError, match=expected):
        drive(driver(bed), percent, 8)
    assert len(drive(driver(bed, bounds=dict.fromkeys(bed.objectives, (0, 100))), percent, 12)) == 12
