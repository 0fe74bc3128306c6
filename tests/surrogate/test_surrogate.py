"""Response surfaces: what they predict, how sure they are, which is chosen; designs; bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import surrogate
from evomerge.errors import SurrogateError
from evomerge.surrogate.fitting import _choose
from evomerge.surrogate.regression import LeastSquares, Process
from evomerge.surrogate.warps import Identity, Log, Logit, unwarp_normal

ACCURACY = (0.0, 1.0)
LIKELIHOOD = (-np.inf, 0.0)


class Bed:
    """A tiny classifier, merged by task arithmetic: a layer of tanh whose weights are linear in the genes, a frozen head.

    `margins`, `(points, 400, 5)`, and `log_likelihood`, `(points, 400)`, are those of the first gene's task.
    """

    def __init__(self, genes, seed):
        rng = np.random.default_rng([seed, genes])
        self.base = rng.standard_normal((12, 24)) / np.sqrt(12)
        self.vectors = 0.35 * rng.standard_normal((genes, 12, 24)) / np.sqrt(12)
        self.head = rng.standard_normal((24, 6))
        self.inputs = rng.standard_normal((400, 12))
        expert = np.tanh(self.inputs @ (self.base + self.vectors[0])) @ self.head
        self.labels = (expert + 1.5 * rng.standard_normal(expert.shape)).argmax(axis=1)
        self.known = np.vstack([np.zeros(genes), np.eye(genes), np.full(genes, 1 / genes)])

    def evaluate(self, points):
        weights = self.base + np.einsum("pg,gij->pij", points, self.vectors)
        logits = np.tanh(self.inputs @ weights) @ self.head
        own = logits[:, np.arange(400), self.labels]
        others = logits[:, self.labels[:, None] != np.arange(6)].reshape(len(points), 400, 5)
        return own[..., None] - others, own - np.log(np.exp(logits).sum(axis=2))


def right(margins):
    """Return which examples are right, `(points, examples)`."""
    return (margins > 0).all(axis=2)


def held_out(genes):
    return surrogate.design(genes, [], 256, 999)


def r2(true, predicted):
    return 1 - np.mean((true - predicted) ** 2) / np.var(true)


def fit_bed(genes, seed, factor=1.2):
    """Return margins and log-likelihoods at a design of `factor` times the unknowns, and the surrogates of both."""
    bed = Bed(genes, seed)
    points = surrogate.design(genes, bed.known, int(np.ceil(factor * surrogate.unknowns(genes))), seed)
    margins, likelihoods = bed.evaluate(points)
    return bed, points, margins, likelihoods


def quadratic_scores(points, seed=0, examples=5):
    """Return scores without bounds, whose mean is exactly a quadratic of the genes."""
    rng = np.random.default_rng(seed)
    terms = surrogate.quadratic_terms(points)
    return terms @ rng.standard_normal(terms.shape[1])[:, None] + np.linspace(-1, 1, examples)


# -- what is predicted --


@pytest.mark.parametrize("genes", [2, 3])
def test_margins_predict_accuracy_better_than_a_quadratic_of_it_with_few_evaluations(genes):
    by_margin, by_quadratic = [], []
    for seed in range(5):
        bed, points, margins, _ = fit_bed(genes, seed)
        test = held_out(genes)
        true = right(bed.evaluate(test)[0]).mean(axis=1)
        found = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins, rungs=["margins"])
        plain = surrogate.fit(points, right(margins), bounds=ACCURACY, rungs=["weighted quadratic"])
        by_margin.append(r2(true, found.predict(test)[0]))
        by_quadratic.append(r2(true, plain.predict(test)[0]))
    assert np.all(np.array(by_margin) > np.array(by_quadratic))
    assert np.median(by_margin) > 0.97
    assert np.median(by_quadratic) < 0.95  # accuracy's staircase, and curvature that is not quadratic


@pytest.mark.parametrize(("genes", "factor"), [(2, 1.2), (3, 2.0)])
def test_log_loss_is_a_quadratic_of_the_genes(genes, factor):
    for seed in range(3):
        bed, points, _, likelihoods = fit_bed(genes, seed, factor)
        found = surrogate.fit(points, likelihoods, bounds=LIKELIHOOD, rungs=["log-loss quadratic"])
        test = held_out(genes)
        assert r2(bed.evaluate(test)[1].mean(axis=1), found.predict(test)[0]) > 0.99


@pytest.mark.parametrize("rung", ["margins", "quadratic + Matérn", "weighted quadratic", None])
@pytest.mark.parametrize("genes", [2, 3])
def test_intervals_hold_what_was_held_out(rung, genes):
    inside = []
    for seed in range(6):
        bed, points, margins, _ = fit_bed(genes, seed, 2)
        found = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins, rungs=[rung] if rung else None)
        test = held_out(genes)
        mean, deviation = found.predict(test)
        true = right(bed.evaluate(test)[0]).mean(axis=1)
        inside.append(np.mean(np.abs(true - mean) <= surrogate.NORMAL_90 * deviation))
    assert 0.75 <= np.mean(inside) <= 0.99


def test_published_intervals_of_few_candidates_hold_nine_of_ten_new_scores():
    # n - p = 2: the rung was chosen for its left-out errors, which are smaller than those at new points.
    inside = []
    new = surrogate.design(3, [], 64, 999)
    for seed in range(40):
        bed = Bed(3, seed)
        points = surrogate.design(3, bed.known, 12, seed)
        fitted = surrogate.fit(points, right(bed.evaluate(points)[0]), bounds=ACCURACY)
        assert fitted.widening == 1.25
        mean, deviation = fitted.predict(new)
        errors = np.abs(right(bed.evaluate(new)[0]).mean(axis=1) - mean) / (surrogate.NORMAL_90 * deviation)
        inside.append([np.mean(errors <= 1), np.mean(errors <= fitted.widening), fitted.coverage])
    plain, widened, claimed = np.mean(inside, axis=0)
    assert plain < 0.89
    assert claimed > 0.95
    assert 0.88 <= widened <= 0.95


def test_published_intervals_are_not_widened_for_margins_and_for_fewer_candidates_than_unknowns():
    for count in (6, 8):
        points = surrogate.design(2, [], count, 0)
        margins, _ = Bed(2, 0).evaluate(points)
        fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins, rungs=["margins"])
        assert fitted.widening == 1
    points = surrogate.design(3, [], 10, 0)
    assert surrogate.fit(points, quadratic_scores(points), rungs=["quadratic + Matérn"]).widening == 1


def test_deviations_grow_away_from_what_was_evaluated():
    points = surrogate.design(3, [], 30, 0) * 0.3
    margins, _ = Bed(3, 0).evaluate(points)
    found = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    near, far = found.predict(np.full((1, 3), 0.15))[1], found.predict(np.ones((1, 3)))[1]
    assert far > 3 * near


def test_fewer_evaluations_than_unknowns_are_enough_for_processes():
    bed = Bed(6, 0)
    points = surrogate.design(6, bed.known, 16, 0)  # of 28 unknowns
    margins, likelihoods = bed.evaluate(points)
    test = held_out(6)
    tested, tested_likelihoods = bed.evaluate(test)
    accuracy = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    assert set(accuracy.ladder) == {"quadratic + Matérn", "margins"}
    assert r2(right(tested).mean(axis=1), accuracy.predict(test)[0]) > 0.8
    likelihood = surrogate.fit(points, likelihoods, bounds=LIKELIHOOD)
    assert r2(tested_likelihoods.mean(axis=1), likelihood.predict(test)[0]) > 0.7


def test_many_genes_and_candidates_are_fitted():
    bed = Bed(24, 0)
    points = 0.3 * surrogate.design(24, bed.known, 120, 0)
    margins, _ = bed.evaluate(points)
    found = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    test = 0.3 * held_out(24)
    mean, deviation = found.predict(test)
    assert mean.shape == deviation.shape == (256,)
    assert r2(right(bed.evaluate(test)[0]).mean(axis=1), mean) > 0.8


def test_scores_that_are_a_quadratic_are_fitted_exactly_and_by_the_simplest_rung():
    points = surrogate.design(2, [], 12, 0)
    found = surrogate.fit(points, quadratic_scores(points))
    assert found.name == "quadratic"
    test = held_out(2)
    np.testing.assert_allclose(found.predict(test)[0], quadratic_scores(test).mean(axis=1), atol=1e-9)
    assert found.r2 == pytest.approx(1)
    assert found.left_out == pytest.approx(found.values)


@pytest.mark.parametrize("genes", [2, 3])
def test_rung_with_the_lowest_left_out_error_is_chosen(genes):
    for seed in range(5):
        _, points, margins, _ = fit_bed(genes, seed, 2)
        found = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
        assert found.name == "margins"
        assert found.ladder[found.name] == min(found.ladder.values()) == found.rmse
        assert list(found.ladder) == ["margins", "weighted quadratic", "quadratic + Matérn"]
        assert found.rmse == pytest.approx(np.sqrt(np.mean((found.left_out - found.values) ** 2)))


def test_ties_go_to_the_first_and_one_candidate_decides_nothing():
    errors = np.full(10, 4.0)
    once = np.where(np.arange(10) == 3, 0.0, errors)
    assert _choose({"simple": errors, "other": once}) == "simple"
    assert _choose({"simple": errors, "other": errors - 1e-3}) == "other"
    assert _choose({"simple": errors, "other": errors}) == "simple"


def test_same_input_same_bytes_whatever_the_global_generator_does():
    _, points, margins, _ = fit_bed(2, 0)
    found = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002  # the global generator is what must not matter
        fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
        found.append(b"".join(part.tobytes() for part in fitted.predict(held_out(2))))
    assert found[0] == found[1]


def test_noise_floor_is_the_standard_error_over_examples():
    # By hand: rows have the variances 1/3, 1/3, 0 and 1/4 over four examples (divisor 3), and so the errors of the mean
    # 0.288675, 0.288675, 0, 0.25.
    scores = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0.0]])
    points = surrogate.design(1, [], 4, 0)
    found = surrogate.fit(points, scores, bounds=ACCURACY, rungs=["quadratic + Matérn"])
    assert found.standard_error == pytest.approx(np.median([0.288675, 0.288675, 0, 0.25]), abs=1e-5)


def test_noise_floor_of_one_example_is_unknown():
    points = surrogate.design(2, [], 12, 0)
    found = surrogate.fit(points, quadratic_scores(points, examples=1))
    assert np.isnan(found.standard_error)


# -- regressions --


@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_least_squares_leaves_out_as_refitting_without_the_point_does(seed, genes, ridge):
    rng = np.random.default_rng(seed)
    points = rng.random((surrogate.unknowns(genes) + 4, genes))
    target, weights = rng.standard_normal(len(points)), rng.uniform(0.2, 2, len(points))
    mean, _ = LeastSquares(points, target, weights, ridge).left_out
    for i in range(len(points)):
        rest = np.arange(len(points)) != i
        fitted = LeastSquares(points[rest], target[rest], weights[rest], ridge)
        np.testing.assert_allclose(fitted.predict(points[i : i + 1], np.ones_like)[0], mean[i], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_process_leaves_out_as_conditioning_without_the_point_does(seed, genes, outputs):
    rng = np.random.default_rng(seed)
    points = rng.random((9, genes))
    targets, noise = rng.standard_normal((9, outputs)), rng.uniform(0.5, 2, 9)
    kernel = np.log([0.7, 0.4, 0.5, 0.8, 0.05, *rng.uniform(0.5, 2, genes)])
    process = Process(points, targets, noise, kernel)
    mean, variance = process.left_out(targets)
    scaled = (targets - targets.mean(axis=0)) / targets.std(axis=0)  # the normalisation is held, as is the kernel
    for i in range(9):
        rest = np.arange(9) != i
        covariance = process._kernel(2 * points, 2 * points)
        inverse = np.linalg.inv(covariance[np.ix_(rest, rest)] + np.diag(0.05 * noise[rest]))
        cross = covariance[i, rest]
        expected = targets.mean(axis=0) + targets.std(axis=0) * (cross @ inverse @ scaled[rest])
        np.testing.assert_allclose(mean[i], expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(variance[i], covariance[i, i] + 0.05 * noise[i] - cross @ inverse @ cross, rtol=1e-5)


def test_process_is_a_conditional_normal_distribution():
    # The same numbers from numpy's dense formulas.
    rng = np.random.default_rng(0)
    points, new = rng.random((7, 2)), rng.random((3, 2))
    targets = rng.standard_normal((7, 1))
    process = Process(points, targets, np.ones(7), np.log([1.0, 0.5, 0.3, 0.6, 0.01, 1.5, 0.5]))

    def kernel(one, other):
        z, w = 2 * one * [1.5, 0.5], 2 * other * [1.5, 0.5]
        inner = z @ w.T / 2
        a = np.sqrt(5) * np.linalg.norm(z[:, None] - w[None], axis=2) / (0.6 * np.sqrt(2))
        return 100 + inner + 0.5 * inner**2 + 0.3 * (1 + a + a**2 / 3) * np.exp(-a)

    inverse = np.linalg.inv(kernel(points, points) + 0.01 * np.eye(7))
    cross = kernel(new, points)
    scaled = (targets - targets.mean()) / targets.std()
    mean, variance = process.predict(new)
    np.testing.assert_allclose(mean, targets.mean() + targets.std() * cross @ inverse @ scaled, rtol=1e-8)
    expected = np.diag(kernel(new, new)) - np.einsum("ij,jk,ik->i", cross, inverse, cross) + 0.01
    np.testing.assert_allclose(variance, expected, rtol=1e-6)


def test_least_squares_is_numpys():
    rng = np.random.default_rng(0)
    points, target, weights = rng.random((15, 3)), rng.standard_normal(15), rng.uniform(0.2, 2, 15)
    root = np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(root * surrogate.quadratic_terms(points), root[:, 0] * target)[0]
    found = LeastSquares(points, target, weights).predict(points, np.ones_like)[0]
    np.testing.assert_allclose(found, surrogate.quadratic_terms(points) @ expected, rtol=1e-8)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_hyperparameters_are_at_least_as_likely_as_where_their_search_starts(seed):
    rng = np.random.default_rng(seed)
    points = rng.random((12, 2))
    targets = np.sin(4 * points @ rng.standard_normal((2, 3))) + 0.05 * rng.standard_normal((12, 3))
    process = Process(points, targets, np.ones(12))
    outputs = (targets - targets.mean(axis=0)) / targets.std(axis=0)

    def posterior(kernel):
        covariance = process._covariance(kernel)[0] + np.exp(kernel[4]) * np.eye(12)
        likely = -0.5 * np.mean([y @ np.linalg.solve(covariance, y) for y in outputs.T])
        prior = -0.5 * np.sum(((kernel[:5] - Process._CENTRE) / Process._SPREAD) ** 2) - 0.5 * kernel[5:] @ kernel[5:]
        return likely - 0.5 * np.linalg.slogdet(covariance)[1] + prior

    best = posterior(process.kernel)
    assert all(best >= posterior(np.append(start, [0, 0])) for start in Process._STARTS)
    bounds = [*Process._BOUNDS, Process._RELEVANCE, Process._RELEVANCE]
    for i in range(7):  # and nowhere better close by, but for bounds
        for step in (-0.3, 0.3):
            moved = process.kernel.copy()
            moved[i] = np.clip(moved[i] + step, *bounds[i])
            assert posterior(moved) <= best + 1e-4


def test_gene_that_does_not_matter_is_found_out_from_many_outputs_and_one_output_takes_all_alike():
    rng = np.random.default_rng(0)
    points = rng.random((20, 2))
    targets = np.sin(5 * points[:, :1] + rng.uniform(0, 6, 8))  # of the first gene alone
    many, one = (Process(points, found, np.ones(20)).kernel[5:] for found in (targets, targets[:, :1]))
    assert many[0] > many[1] + np.log(4)
    np.testing.assert_array_equal(one, 0)


@pytest.mark.parametrize(
    ("warp", "values"),
    [
        (Identity(), [-3.0, 0.0, 7.0]),
        (Logit(0, 1, 40), [0.0, 0.3, 0.975, 1.0]),
        (Logit(-1, 3, 10), [-1.0, 0.2, 3.0]),
        (Log(0, -1), [-5.0, -0.1]),
        (Log(2, 1), [2.5, 90.0]),
    ],
)
def test_warps_have_an_inverse_and_certain_scores_come_back_certain(warp, values):
    given = np.array(values)
    np.testing.assert_allclose(warp.unwarp(warp.warp(given)), given, atol=1e-9)
    mean, deviation = unwarp_normal(warp, warp.warp(given), np.zeros(len(given)))
    np.testing.assert_allclose(mean, given, atol=1e-9)
    np.testing.assert_allclose(deviation, 0, atol=1e-7)


def test_mean_and_deviation_come_back_through_a_warp():
    # A log-normal's: exp(μ + s²/2) and mean · √(exp(s²) - 1); here μ = 0.2, s² = 0.25.
    mean, deviation = unwarp_normal(Log(0, -1), np.array([0.2]), np.array([0.25]))
    np.testing.assert_allclose(mean, [-1.384031], rtol=1e-5)
    np.testing.assert_allclose(deviation, [1.384031 * 0.532940], rtol=1e-4)


# -- designs --


def test_unknowns_of_a_quadratic():
    assert [surrogate.unknowns(genes) for genes in range(1, 9)] == [3, 6, 10, 15, 21, 28, 36, 45]


def test_quadratic_terms_by_hand():
    # Genes 0.75 and 0 are 0.5 and -1 when centred: 1, both, and 0.25, -0.5, 1.
    np.testing.assert_allclose(surrogate.quadratic_terms([[0.75, 0.0]]), [[1, 0.5, -1, 0.25, -0.5, 1]])


def test_design_begins_with_what_is_known_and_fills_the_box():
    known = np.vstack([np.zeros(3), np.eye(3)])
    points = surrogate.design(3, known, 20, 7)
    np.testing.assert_array_equal(points[:4], known)
    assert points.shape == (20, 3)
    for column in points[4:].T:  # of the 16, one in each sixteenth
        assert sorted(np.floor(column * 16)) == list(range(16))
    np.testing.assert_array_equal(points, surrogate.design(3, known, 20, 7))
    assert (points[4:] != surrogate.design(3, known, 20, 8)[4:]).any()
    assert surrogate.identifies(points)


def test_design_that_has_no_room_for_what_is_known_is_refused():
    with pytest.raises(SurrogateError, match="4 known points do not fit into 3"):
        surrogate.design(3, np.eye(4)[:, :3], 3, 0)


def test_two_levels_do_not_identify_a_quadratic():
    # The published design in eight dimensions: rank 37 of 45.
    points = np.array(np.unravel_index(np.arange(256), [2] * 8)).T.astype(float)
    with pytest.raises(SurrogateError, match=r"256 points identify 37 of the 45 unknowns.*gene 0 takes fewer than 3"):
        surrogate.check_rank(points)


def test_genes_that_change_together_do_not_identify_a_quadratic():
    line = np.linspace(0, 1, 9)
    with pytest.raises(SurrogateError, match="only change together"):
        surrogate.check_rank(np.stack([line, line], axis=1))


def test_fewer_points_than_unknowns_do_not_identify_a_quadratic():
    for count in (0, 5):
        with pytest.raises(SurrogateError, match="evaluate 6 or more"):
            surrogate.check_rank(surrogate.design(2, [], 8, 0)[:count])


# -- do tasks conflict? --


def peaks(*middles, noise=0.0):
    points = surrogate.design(2, [], 16, 0)
    rng = np.random.default_rng(0)
    return [
        surrogate.fit(
            points, -((points - middle) ** 2).sum(axis=1, keepdims=True) + noise * rng.standard_normal((16, 1))
        )
        for middle in middles
    ]


def test_tasks_with_one_best_point_do_not_conflict():
    best = surrogate.best_for_all(peaks((0.3, 0.6), (0.32, 0.6)))
    np.testing.assert_allclose(best, [0.31, 0.6], atol=0.1)


def test_tasks_with_different_best_points_conflict():
    assert surrogate.best_for_all(peaks((0.2, 0.2), (0.8, 0.8))) is None
    assert surrogate.best_for_all(peaks((0.3, 0.6), (0.3, 0.6), (0.9, 0.1))) is None


def test_ignorance_is_no_agreement():
    assert surrogate.best_for_all(peaks((0.1, 0.1), (0.9, 0.9), noise=0.3)) is None


# -- bad input --


def bad(**changes):
    points = surrogate.design(2, [], 12, 0)
    scores = (quadratic_scores(points) > 0).astype(float)
    given = {"points": points, "scores": scores, "bounds": ACCURACY} | {
        name: change(points, scores) for name, change in changes.items()
    }
    return surrogate.fit(given.pop("points"), given.pop("scores"), **given)


def spoilt(table, value):
    found = table.copy()
    found[3, 1] = value
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"points": lambda x, y: x[0]}, r"expected shape \(points, genes\)"),
        ({"points": lambda x, y: spoilt(x, np.nan)}, "row 3 has a number that is not finite"),
        ({"points": lambda x, y: spoilt(x, 1.5)}, "gene 1 of row 3 is 1.5; expected unit coordinates"),
        ({"scores": lambda x, y: y[:5]}, r"expected shape \(12, examples\)"),
        ({"scores": lambda x, y: spoilt(y, np.inf)}, "scores: row 3 has numbers that are not finite"),
        ({"scores": lambda x, y: spoilt(y, 1.2)}, r"outside of the declared bounds \[0, 1\]"),
        ({"scores": lambda x, y: np.ones_like(y)}, "does not vary"),
        ({"points": lambda x, y: x[:3], "scores": lambda x, y: y[:3]}, "3 evaluations; a surrogate needs 4"),
        (
            {
                "points": lambda x, y: x[:6],
                "scores": lambda x, y: y[:6],
                "rungs": lambda x, y: ["weighted quadratic"],
            },
            "`weighted quadratic` needs 7 or more evaluations for 2 genes, got 6",
        ),
        ({"rungs": lambda x, y: ["margin"]}, "no rung `margin`"),
        ({"margins": lambda x, y: y[:, :2]}, r"got \(12, 2\) margins for \(12, 5\) scores"),
        (
            {"margins": lambda x, y: spoilt(2 * y - 1, np.nan)[..., None]},
            "margins: row 3 has numbers that are not finite",
        ),
        ({"margins": lambda x, y: (1 - 2 * y)[..., None]}, "expected 1 exactly where all margins are positive"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(changes, expected):
    with pytest.raises(SurrogateError, match=expected):
        bad(**changes)


def test_surrogates_of_different_spaces_are_refused():
    others = [surrogate.fit(points, quadratic_scores(points)) for points in (held_out(2), held_out(3))]
    with pytest.raises(SurrogateError, match="surrogates of one space"):
        surrogate.best_for_all(others)
