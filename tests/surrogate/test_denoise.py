"""Denoised scores: invariants, limits, and less regret than raw means where the truth is known."""

import numpy as np
import pytest

from evomerge.surrogate import denoise


def drawn(seed, candidates=60, examples=100, spread=0.06):
    """Return 0/1 scores, smooth scores and the true shares of candidates whose two metrics have one cause."""
    rng = np.random.default_rng(seed)
    truth = 0.6 + spread * rng.standard_normal(candidates).clip(-2, 1.5)
    hard = rng.random(examples)
    luck = 0.15 * rng.standard_normal((candidates, examples))
    scores = (hard + luck < truth[:, None]).astype(np.float32)
    smooth = (truth[:, None] - hard + 0.05 * rng.standard_normal((candidates, examples))).astype(np.float32)
    return scores, smooth, truth


ONES = np.ones((1, 100), np.float32)


def test_picks_by_denoised_scores_lose_less_than_picks_by_raw_means():
    losses = {"raw": 0.0, "alone": 0.0, "smooth": 0.0}
    for seed in range(40):
        scores, smooth, truth = drawn(seed)
        picks = {
            "raw": scores.mean(axis=1),
            "alone": denoise(scores, None, ONES)[0],
            "smooth": denoise(scores, smooth, ONES)[0],
        }
        for name, estimates in picks.items():
            losses[name] += (truth.max() - truth[np.argmax(estimates)]) / 40
    assert losses["smooth"] < 0.5 * losses["raw"], losses
    assert losses["alone"] <= losses["raw"] + 1e-12  # one factor for all: the order stays


def test_the_best_estimate_is_no_longer_too_high():
    raw, estimated = [], []
    for seed in range(40):
        scores, smooth, truth = drawn(seed)
        for found, estimates in ((raw, scores.mean(axis=1)), (estimated, denoise(scores, smooth, ONES)[0])):
            best = int(np.argmax(estimates))
            found.append(estimates[best] - scores.mean() - (truth[best] - truth.mean()))
    assert np.mean(raw) > 0.015
    assert abs(np.mean(estimated)) < 0.5 * np.mean(raw)


def test_deviations_that_noise_does_not_explain_are_kept():
    rng = np.random.default_rng(0)
    scores = (rng.random((40, 1)) + 0.001 * rng.standard_normal((40, 500))).astype(np.float32)
    np.testing.assert_allclose(denoise(scores, None, np.ones((1, 500), np.float32))[0], scores.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("with_smooth", [False, True])
def test_order_of_candidates_and_of_examples_does_not_matter(with_smooth):
    scores, smooth, _ = drawn(3)
    smooth = smooth if with_smooth else None
    rows, columns = np.random.default_rng(0).permutation(60), np.random.default_rng(1).permutation(100)
    shuffled = denoise(scores[rows][:, columns], None if smooth is None else smooth[rows][:, columns], ONES)
    np.testing.assert_allclose(shuffled, denoise(scores, smooth, ONES)[:, rows], rtol=0, atol=1e-9)


def test_draws_count_examples_as_often_as_they_have_them():
    scores, smooth, _ = drawn(4)
    counts = np.random.default_rng(0).multinomial(100, np.ones(100) / 100, size=3).astype(np.float32)
    estimates = denoise(scores, smooth, counts)
    assert estimates.shape == (3, 60)
    np.testing.assert_allclose(estimates[1], denoise(scores, smooth, counts[1:2])[0], rtol=0, atol=1e-12)


def test_few_candidates_keep_their_means_and_equal_ones_are_equal():
    scores, smooth, _ = drawn(5)
    np.testing.assert_allclose(denoise(scores[:5], smooth[:5], ONES)[0], scores[:5].mean(axis=1), atol=1e-12)
    same = np.repeat(scores[:1], 9, axis=0)
    assert np.ptp(denoise(same, np.repeat(smooth[:1], 9, axis=0), ONES)) < 1e-9


def told_apart(own):
    """Return right and wrong answers on 2000 examples, log-likelihoods that know nothing of `own`, `(40,)`, and the true shares."""
    rng = np.random.default_rng(1)
    level = np.linspace(0.3, 0.7, 40)
    hard = rng.random(2000)
    scores = hard + 0.3 * rng.standard_normal((40, 2000)) < (level + own)[:, None]
    smooth = level[:, None] - hard + 0.01 * rng.standard_normal((40, 2000))
    return scores.astype(np.float32), smooth.astype(np.float32), level


def test_what_the_smooth_metric_does_not_predict_is_left_out_unless_it_exceeds_three_times_the_noise():
    ones, own = np.ones((1, 2000), np.float32), 0.1 * np.random.default_rng(0).standard_normal(40)
    kept = []
    for signal in (0 * own, own):
        scores, smooth, level = told_apart(signal)
        deviations, estimates = (
            values - np.polyval(np.polyfit(level, values, 3), level)
            for values in (scores.mean(axis=1), denoise(scores, smooth, ones)[0])
        )
        kept.append(np.polyfit(deviations, estimates, 1)[0])
    assert kept[0] == pytest.approx(0, abs=0.1)
    assert kept[1] > 0.8


def test_estimates_depend_on_the_smooth_metric_by_its_order_alone():
    scores, smooth, _ = drawn(6)
    np.testing.assert_allclose(
        denoise(scores, np.exp(smooth.astype(np.float64)), ONES), denoise(scores, smooth, ONES), rtol=0, atol=1e-9
    )


def test_broken_candidates_hardly_change_how_the_others_compare():
    scores, smooth, _ = drawn(7)
    before = denoise(scores, smooth, ONES)[0, 6:]
    scores[:6], smooth[:6] = 0, -1e6
    assert np.corrcoef(denoise(scores, smooth, ONES)[0, 6:], before)[0, 1] > 0.99


def test_hopeless_examples_do_not_rule_the_estimates():
    scores, smooth, _ = drawn(8)
    before = denoise(scores, smooth, ONES)[0]
    hopeless = np.argsort(scores.mean(axis=0))[:5]  # wrong for nearly all, and differently far off
    smooth[:, hopeless] -= 100 * np.random.default_rng(0).random((60, 1)).astype(np.float32)
    assert np.corrcoef(denoise(scores, smooth, ONES)[0], before)[0, 1] > 0.95
