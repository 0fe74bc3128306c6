"""Item response: means estimated from few examples, how sure they are, which examples tell most."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit
from scipy.stats import spearmanr

from evomerge.surrogate import item_response
from evomerge.surrogate.item_response import _loss


class Bed:
    """Responses drawn from an item-response model of given dimensions: some candidates to fit on, others to estimate."""

    def __init__(self, seed, dimensions=1, candidates=40, new=60, examples=160):
        rng = np.random.default_rng([seed, dimensions])
        self.abilities = rng.standard_normal((candidates + new, dimensions))
        discriminations = rng.standard_normal((examples, dimensions))
        discriminations[:, 0] = np.exp(0.7 + 0.5 * discriminations[:, 0])
        logits = self.abilities @ discriminations.T - 1.5 * rng.standard_normal(examples)
        responses = (rng.random(logits.shape) < expit(logits)).astype(np.float64)
        self.fitted, self.new = np.split(responses, [candidates])
        self.true = self.new.mean(axis=1)
        self.random = rng.permutation(examples)[:20]


@functools.cache
def fit_bed(seed, dimensions=1, fitted=6):
    bed = Bed(seed, dimensions)
    return bed, item_response.fit(bed.fitted, fitted)


def rms(errors):
    return np.sqrt(np.mean(np.square(errors)))


def two_tasks_in_one():
    """Return responses of 160 candidates; being right on one half of the examples says nothing of the other half."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((160, 2))[:, np.arange(200) % 2] - rng.standard_normal(200)
    return (rng.random(logits.shape) < expit(logits)).astype(np.float64)


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    table = rng.random((4, 5))  # shares too
    values = rng.standard_normal(4 * 3 + 5 * 3 + 5)
    by_differences = approx_fprime(values, lambda x: _loss(x, table, 3)[0], 1e-7)
    np.testing.assert_allclose(_loss(values, table, 3)[1], by_differences, atol=1e-5)


def test_loss_by_hand():
    # One candidate of ability 1, right on one example with a = 3, b = 1: log(1 + exp(-2)), and priors 1/2, 1/2 and 1/8.
    assert _loss(np.array([1.0, 3.0, 1.0]), np.ones((1, 1)), 1)[0] == pytest.approx(np.log1p(np.exp(-2)) + 1.125)


def test_abilities_of_simulated_candidates_are_found_again():
    bed, model = fit_bed(0, fitted=1)
    assert spearmanr(model.abilities[:, 0], bed.abilities[:40, 0]).statistic > 0.97
    located, _ = model.examples.only(np.arange(0, 160, 2)).locate(bed.new[:, ::2])
    assert spearmanr(located[:, 0], bed.abilities[40:, 0]).statistic > 0.95


def test_the_same_responses_give_the_same_model():
    bed, model = fit_bed(1, 2)
    again = item_response.fit(bed.fitted.copy())
    np.testing.assert_array_equal(again.abilities, model.abilities)
    np.testing.assert_array_equal(again.anchors(20), model.anchors(20))
    np.testing.assert_array_equal(
        again.estimate(bed.random, bed.new[:, bed.random]), model.estimate(bed.random, bed.new[:, bed.random])
    )


def test_what_all_or_none_are_right_on_stays_finite():
    table = np.repeat(np.linspace(0, 1, 12)[:, None] > 0.5, 30, axis=1).astype(np.float64)
    table[:, :5], table[:, 5:10] = 0, 1
    model = item_response.fit(table)
    right = model.examples.right(model.abilities)
    assert ((right[:, :5] > 0) & (right[:, :5] < 0.2)).all()
    assert ((right[:, 5:10] > 0.8) & (right[:, 5:10] < 1)).all()
    scores = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0]])
    mean, deviation = model.estimate(np.array([0, 5, 10, 11]), scores)
    assert mean[0] > mean[2] > mean[1]
    assert (np.isfinite(deviation) & (deviation > 0)).all()


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_candidates_that_all_answer_alike_are_no_obstacle(level):
    (mean,), (deviation,) = item_response.fit(np.full((10, 8), level)).estimate(np.array([2]), np.array([[level]]))
    assert mean == pytest.approx(level, abs=0.1)
    assert 0 < deviation < 0.2


def test_one_example_is_enough_of_a_task():
    model = item_response.fit(np.arange(12.0)[:, None] % 2)
    assert model.abilities.shape == (12, 1)
    assert model.estimate(np.array([0]), np.array([[1]])) == (1, 0)


def test_estimate_is_the_most_probable_ability_s_and_its_deviation_the_delta_method_s():
    bed, model = fit_bed(2, 2, 2)
    slopes, difficulties = model.examples.discriminations, model.examples.difficulties
    seen, scores = bed.random, bed.new[0, bed.random]
    unknown = np.setdiff1d(np.arange(160), seen)

    def loss(ability):
        right = expit(slopes[seen] @ ability - difficulties[seen])
        return -np.log(np.where(scores == 1, right, 1 - right)).sum() + 0.5 * ability @ ability

    def total(ability):
        return (scores.sum() + expit(slopes[unknown] @ ability - difficulties[unknown]).sum()) / 160

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    step = 1e-3 * np.eye(2)
    second = [
        [loss(best + a + b) - loss(best + a - b) - loss(best - a + b) + loss(best - a - b) for a in step] for b in step
    ]
    towards = approx_fprime(best, total, 1e-7)
    right = expit(slopes[unknown] @ best - difficulties[unknown])
    variance = (right * (1 - right)).sum() / 160**2 + towards @ np.linalg.inv(np.array(second) / 4e-6) @ towards

    (mean,), (deviation,) = model.estimate(seen, scores[None])
    assert mean == pytest.approx(total(best), abs=1e-7)
    assert deviation == pytest.approx(model.factor(seen) * np.sqrt(variance), rel=1e-4)


def test_with_every_example_known_the_mean_is_exact():
    bed, model = fit_bed(0)
    order = np.random.default_rng(0).permutation(160)
    mean, deviation = model.estimate(order, bed.new[:, order])
    np.testing.assert_allclose(mean, bed.true, atol=1e-12)
    assert (deviation == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 159))
def test_estimates_do_not_depend_on_the_order_of_examples_or_candidates_and_keep_what_is_known(seed, count):
    _, model = fit_bed(0, fitted=1)
    rng = np.random.default_rng(seed)
    seen, scores = rng.permutation(160)[:count], rng.random((3, count)).round(1)
    mean, deviation = model.estimate(seen, scores)
    order = rng.permutation(count)
    for i in range(3):
        alone = model.estimate(seen[order], scores[i : i + 1, order])
        np.testing.assert_allclose(alone, ([mean[i]], [deviation[i]]), rtol=1e-6)
    least = scores.sum(axis=1) / 160
    assert (least < mean).all()
    assert (mean < least + (160 - count) / 160).all()


@pytest.mark.parametrize("dimensions", [1, 2])
def test_anchors_tell_more_than_random_examples_and_than_their_mean_s_difference_to_the_whole(dimensions):
    by_anchors, at_random, plain, paired = [], [], [], []
    for seed in range(3):
        bed, model = fit_bed(seed, dimensions, dimensions)
        for errors, seen in ((by_anchors, model.anchors(20)), (at_random, bed.random)):
            errors.append(model.estimate(seen, bed.new[:, seen])[0] - bed.true)
        shift = (bed.fitted.mean(axis=1) - bed.fitted[:, bed.random].mean(axis=1)).mean()
        plain.append(bed.new[:, bed.random].mean(axis=1) - bed.true)
        paired.append(plain[-1] + shift)
    assert rms(by_anchors) < 0.95 * rms(at_random)
    assert rms(by_anchors) < 0.85 * min(rms(plain), rms(paired))


def test_dimensions_that_are_not_needed_cost_little():
    many, one = [], []
    for seed in range(3):
        bed, _ = fit_bed(seed)
        for errors, fitted in ((many, 6), (one, 1)):
            mean, _ = fit_bed(seed, 1, fitted)[1].estimate(bed.random, bed.new[:, bed.random])
            errors.append(mean - bed.true)
    assert rms(many) < 1.2 * rms(one)


def test_dimensions_that_are_needed_pay():
    responses = two_tasks_in_one()
    errors = []
    for dimensions in (1, 6):
        model = item_response.fit(responses[:60], dimensions)
        seen = model.anchors(60)
        errors.append(rms(model.estimate(seen, responses[60:, seen])[0] - responses[60:].mean(axis=1)))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(("dimensions", "fitted"), [(1, 6), (2, 6), (3, 1)])
@pytest.mark.parametrize("chosen", ["at random", "anchors"])
def test_intervals_hold_new_candidates(dimensions, fitted, chosen):
    inside = []
    for seed in range(3):
        bed, model = fit_bed(seed, dimensions, fitted)
        seen = bed.random if chosen == "at random" else model.anchors(20)
        mean, deviation = model.estimate(seen, bed.new[:, seen])
        inside.append(np.abs(mean - bed.true) <= item_response.NORMAL_95 * deviation)
        assert 4 * deviation.mean() < np.ptp(bed.true)  # and are worth something
    assert np.mean(inside) >= 0.9


def test_left_out_candidates_widen_the_intervals_of_a_model_that_is_too_simple():
    responses = two_tasks_in_one()
    model = item_response.fit(responses[:60], 1)
    seen = model.anchors(60)
    mean, deviation = model.estimate(seen, responses[60:, seen])
    sizes = np.abs(mean - responses[60:].mean(axis=1)) / deviation
    assert np.mean(sizes * model.factor(seen) <= item_response.NORMAL_95) < 0.7
    assert np.mean(sizes <= item_response.NORMAL_95) >= 0.9


def test_no_candidate_is_left_out_of_its_own_fold_twice_or_never():
    _, model = fit_bed(0)
    assert sorted(np.concatenate([rows for rows, _ in model.folds])) == list(range(40))


def test_the_next_anchor_is_the_one_that_most_lowers_the_variance():
    _, model = fit_bed(1, 2, 2)
    slopes = model.examples.discriminations
    seen = [3, 17, 40]

    def variance(ability, known):
        luck = expit(slopes @ ability - model.examples.difficulties)
        luck = luck * (1 - luck)
        unknown = np.setdiff1d(np.arange(160), known)
        information = np.eye(2) + (slopes[known].T * luck[known]) @ slopes[known]
        towards = luck[unknown] @ slopes[unknown] / 160
        return luck[unknown].sum() / 160**2 + towards @ np.linalg.solve(information, towards)

    for where in (model.abilities[:8], model.abilities[:1]):
        known = list(seen)
        for anchor in replace(model, abilities=where).anchors(3, seen):
            left = np.setdiff1d(np.arange(160), known)
            after = [np.mean([variance(ability, [*known, j]) for ability in where]) for j in left]
            assert anchor == left[np.argmin(after)]
            known.append(anchor)


def test_anchors_go_on_where_they_were():
    _, model = fit_bed(1, 2)
    anchors = model.anchors(160)
    assert sorted(anchors) == list(range(160))
    np.testing.assert_array_equal(model.anchors(30), anchors[:30])
    np.testing.assert_array_equal(model.anchors(20, seen=anchors[:10]), anchors[10:30])
    assert model.anchors(0).tolist() == []


def test_anchors_depend_on_the_ability():
    bed, model = fit_bed(0)
    low, high = bed.new[bed.true.argmin()], bed.new[bed.true.argmax()]
    first = model.anchors(10)
    chosen = []
    for one in (low, high):
        abilities, _ = model.examples.only(first).locate(one[None, first])
        chosen.append(replace(model, abilities=abilities).anchors(20, first))
    easy, hard = (model.responses[:, numbers].mean() for numbers in chosen)
    assert easy > hard + 0.2
