"""Denoised scores: what candidates would score on other examples, estimated from the scores of all of them together.

The best of many candidates is partly lucky: its mean over the search examples overestimates what it does on others (the
winner's curse). Two facts correct that. A smooth metric, such as a log-likelihood, varies far less with the examples than the
share of right answers; so the mean of the metric that counts is predicted from that of the smooth one, by a quadratic fitted
over all candidates. And what such a curve leaves is spread that the examples' noise explains in part; so a candidate keeps
only the share of its deviation that the noise does not explain (empirical Bayes: Efron & Morris, JASA 70, 1975).

Scores are tables `(candidates, examples)`; all candidates are scored on the same examples. Higher is better.
"""

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float32]
"""Scores of one metric, `(candidates, examples)`."""

Means = NDArray[np.float64]

_MEDIAN = 0.4549
"""Median of a squared standard normal number: a median of squares over it is a variance that outliers do not inflate."""
_SPREAD = 6.0
"""Smooth scores are cut this many median deviations below their median, so that a few hopeless examples do not rule means."""


def denoise(scores: Table, smooth: Table | None, counts: NDArray[np.float32]) -> Means:
    """Return the estimated mean score of each candidate on other examples, `(draws, candidates)`.

    `counts`, `(draws, examples)`, says how often each draw has each example: ones for the estimate itself, a bootstrap's
    resamples for its uncertainty. `smooth` holds another metric that predicts `scores`; without one, all candidates are
    expected to be alike. With fewer than 8 candidates nothing can be learnt, and plain means are returned.
    """
    shares = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    means: Means = scores.astype(np.float64) @ shares.T  # (candidates, draws)
    if len(scores) < 8:
        return means.T
    cut = None if smooth is None else _cut(smooth)
    return np.array([_denoised(scores, cut, share, mean) for share, mean in zip(shares, means.T, strict=True)])


def _denoised(scores: Table, smooth: Table | None, share: Means, means: Means) -> Means:
    """Return the estimates for one draw of the examples, whose shares are `share`."""
    if smooth is None:
        expected, noise = np.full_like(means, means.mean()), scores - scores.mean(axis=0)
    else:
        predictor = smooth @ share
        x = predictor - predictor.mean()
        x /= max(float(x.std()), 1e-12)
        terms = np.stack([np.ones_like(x), x, x * x], axis=1)
        coefficients = np.linalg.lstsq(terms, means, rcond=None)[0]
        expected = terms @ coefficients
        slope = (coefficients[1] + 2 * coefficients[2] * x) / max(float(predictor.std()), 1e-12)
        noise = scores - scores.mean(axis=0) - slope[:, None] * (smooth - smooth.mean(axis=0))
    noise = noise - (noise @ share)[:, None]
    by_chance = float(np.median((noise * noise) @ share)) / scores.shape[1]  # variance of a mean over examples
    left = means - expected
    spread = float(np.median(left * left)) / _MEDIAN
    kept = max(0.0, spread - by_chance) / spread if spread > 0 else 0.0
    return expected + kept * left


def _cut(smooth: Table) -> Table:
    """Return the scores, those far below their median cut off."""
    middle = np.median(smooth)
    deviation = np.median(np.abs(smooth - middle))
    cut: Table = np.maximum(smooth, middle - _SPREAD * deviation) if deviation > 0 else smooth
    return cut
