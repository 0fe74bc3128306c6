"""Response surfaces: what they predict, how sure they are, which is chosen."""

import numpy as np
import pytest

from evomerge import surrogate
from evomerge.surrogate.fitting import _choose, _factor, _factors_of_others, _ladder

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
    """Return which examples are right, 1 or 0, `(points, examples)`."""
    return (margins > 0).all(axis=2).astype(float)


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


def fit_rung(name, points, margins):
    """Return the surrogate of accuracy by the rung `name`, or by the chosen one if it is None."""
    scores = right(margins)
    if name is None:
        return surrogate.fit(points, scores, bounds=ACCURACY, margins=margins)
    rungs = {rung.name: rung for rung in _ladder(points, scores, ACCURACY, margins)}
    return surrogate.judge(points, scores, rungs[name])


def quadratic_scores(points, seed=0, examples=5):
    """Return scores without bounds, whose mean is exactly a quadratic of the genes."""
    rng = np.random.default_rng(seed)
    terms = surrogate.quadratic_terms(points)
    return terms @ rng.standard_normal(terms.shape[1])[:, None] + np.linspace(-1, 1, examples)


@pytest.mark.parametrize("genes", [2, 3])
def test_margins_predict_accuracy_better_than_a_quadratic_of_it_with_few_evaluations(genes):
    by_margin, by_quadratic = [], []
    for seed in range(5):
        bed, points, margins, _ = fit_bed(genes, seed)
        test = held_out(genes)
        true = right(bed.evaluate(test)[0]).mean(axis=1)
        fitted = fit_rung("margins", points, margins)
        plain = fit_rung("weighted quadratic", points, margins)
        by_margin.append(r2(true, fitted.predict(test)[0]))
        by_quadratic.append(r2(true, plain.predict(test)[0]))
    assert np.all(np.array(by_margin) > np.array(by_quadratic))
    assert np.median(by_margin) > 0.97
    assert np.median(by_quadratic) < 0.95  # accuracy's staircase, and curvature that is not quadratic


@pytest.mark.parametrize(("genes", "factor"), [(2, 1.2), (3, 2.0)])
def test_log_loss_is_a_quadratic_of_the_genes(genes, factor):
    for seed in range(3):
        bed, points, _, likelihoods = fit_bed(genes, seed, factor)
        (fitted, _) = _ladder(points, likelihoods, LIKELIHOOD, None)
        test = held_out(genes)
        assert r2(bed.evaluate(test)[1].mean(axis=1), fitted.predict(test)[0]) > 0.99


@pytest.mark.parametrize("rung", ["margins", "quadratic + Matérn", "weighted quadratic", None])
@pytest.mark.parametrize("genes", [2, 3])
def test_intervals_hold_what_was_held_out(rung, genes):
    inside = []
    for seed in range(6):
        bed, points, margins, _ = fit_bed(genes, seed, 2)
        fitted = fit_rung(rung, points, margins)
        test = held_out(genes)
        mean, deviation = fitted.predict(test)
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
        fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
        assert (fitted.name, fitted.widening) == ("margins", 1)
    points = surrogate.design(3, [], 10, 0)
    assert surrogate.fit(points, quadratic_scores(points)).widening == 1


def test_deviations_grow_away_from_what_was_evaluated():
    points = surrogate.design(3, [], 30, 0) * 0.3
    margins, _ = Bed(3, 0).evaluate(points)
    fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    near, far = fitted.predict(np.full((1, 3), 0.15))[1], fitted.predict(np.ones((1, 3)))[1]
    assert far > 3 * near


def test_fewer_evaluations_than_unknowns_are_enough_for_processes():
    bed = Bed(6, 0)
    points = surrogate.design(6, bed.known, 16, 0)  # of 28 unknowns
    margins, likelihoods = bed.evaluate(points)
    test = held_out(6)
    tested, tested_likelihoods = bed.evaluate(test)
    accuracy = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    assert accuracy.name in {"quadratic + Matérn", "margins"}
    assert r2(right(tested).mean(axis=1), accuracy.predict(test)[0]) > 0.8
    likelihood = surrogate.fit(points, likelihoods, bounds=LIKELIHOOD)
    assert r2(tested_likelihoods.mean(axis=1), likelihood.predict(test)[0]) > 0.7


def test_many_genes_and_candidates_are_fitted():
    bed = Bed(24, 0)
    points = 0.3 * surrogate.design(24, bed.known, 120, 0)
    margins, _ = bed.evaluate(points)
    fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
    test = 0.3 * held_out(24)
    mean, deviation = fitted.predict(test)
    assert mean.shape == deviation.shape == (256,)
    assert r2(right(bed.evaluate(test)[0]).mean(axis=1), mean) > 0.8


def test_scores_that_are_a_quadratic_are_fitted_exactly_and_by_the_simplest_rung():
    points = surrogate.design(2, [], 12, 0)
    fitted = surrogate.fit(points, quadratic_scores(points))
    assert fitted.name == "quadratic"
    test = held_out(2)
    np.testing.assert_allclose(fitted.predict(test)[0], quadratic_scores(test).mean(axis=1), atol=1e-9)
    assert fitted.r2 == pytest.approx(1)
    assert fitted.left_out == pytest.approx(fitted.values)


@pytest.mark.parametrize("genes", [2, 3])
def test_rung_with_the_lowest_left_out_error_is_chosen(genes):
    for seed in range(5):
        _, points, margins, _ = fit_bed(genes, seed, 2)
        fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
        assert fitted.name == "margins"
        rungs = _ladder(points, right(margins), ACCURACY, margins)
        assert [rung.name for rung in rungs] == ["margins", "weighted quadratic", "quadratic + Matérn"]
        errors = [np.mean((rung.left_out[0] - fitted.values) ** 2) for rung in rungs]
        assert np.mean((fitted.left_out - fitted.values) ** 2) == min(errors)


def test_ties_go_to_the_first_and_one_candidate_decides_nothing():
    errors = np.full(10, 4.0)
    once = np.where(np.arange(10) == 3, 0.0, errors)
    assert _choose({"simple": errors, "other": once}) == "simple"
    assert _choose({"simple": errors, "other": errors - 1e-3}) == "other"
    assert _choose({"simple": errors, "other": errors}) == "simple"


def test_same_input_same_bytes_whatever_the_global_generator_does():
    _, points, margins, _ = fit_bed(2, 0)
    predictions = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002  # the global generator is what must not matter
        fitted = surrogate.fit(points, right(margins), bounds=ACCURACY, margins=margins)
        predictions.append(b"".join(part.tobytes() for part in fitted.predict(held_out(2))))
    assert predictions[0] == predictions[1]


def test_noise_floor_is_the_standard_error_over_examples():
    # By hand: rows have the variances 1/3, 1/3, 0 and 1/4 over four examples (divisor 3), and so the errors of the mean
    # 0.288675, 0.288675, 0, 0.25.
    scores = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0.0]])
    points = surrogate.design(1, [], 4, 0)
    fitted = surrogate.fit(points, scores, bounds=ACCURACY)
    assert fitted.standard_error == pytest.approx(np.median([0.288675, 0.288675, 0, 0.25]), abs=1e-5)


def test_noise_floor_of_one_example_is_unknown():
    points = surrogate.design(2, [], 12, 0)
    fitted = surrogate.fit(points, quadratic_scores(points, examples=1))
    assert np.isnan(fitted.standard_error)


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


@pytest.mark.parametrize("count", [4, 9, 10, 29, 30, 31, 60])
def test_factors_without_a_candidate_are_those_of_the_others(count):
    sizes = np.random.default_rng(count).exponential(2, count).round(1)  # with ties
    expected = [_factor(np.delete(sizes, i)) for i in range(count)]
    assert _factors_of_others(sizes).tolist() == expected
