"""Denoised scores: what candidates would score on other examples, estimated from the scores of all of them together.

The best of many candidates is partly lucky: its mean over the search examples overestimates what it does on others (the
winner's curse). A smooth metric, such as a log-likelihood, varies far less with the examples than the share of right answers.
But its mean is ruled by examples that no candidate gets right. So each example's smooth score first becomes a soft score, which
is flat where all are right or all are wrong, and steep where right turns to wrong:

    soft = Φ((Φ⁻¹(r) - Φ⁻¹(1 - ȳ)) / 0.3)

with Φ the normal distribution function, r in (0, 1) the rank of the smooth score among those of all candidates and examples,
and ȳ the mean score of all, the share of right answers. Ranks make it independent of the metric's units. The mean score y of a
candidate is then predicted from its mean soft score x, by a line fitted over all candidates. What the line leaves is spread s²,
which the examples' noise n² explains in part, and a candidate keeps only a share of it (empirical Bayes: Efron & Morris, JASA
70, 1975):

    estimate = a + b x + max(0, 1 - 3 n² / s²) (y - a - b x)

s² and n² are those of the half with the better a + b x, from which the best is chosen. They are compared with a factor of 3, since
neighbours share most of their noise, so that s² has few degrees of freedom: that of two exceeds 3 times its expectation in 5% of
cases. Without a smooth metric all candidates are expected to be alike: b is 0, a is the mean, and the factor is 1.

`experiments/holds.py` measures what picks by these estimates are worth.

Scores are tables `(candidates, examples)`; all candidates are scored on the same examples. Higher is better.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Table = NDArray[np.float32]
"""Scores of one metric, `(candidates, examples)`."""

Means = NDArray[np.float64]

_WIDTH = 0.3
"""Width of the step from 0 to 1 of soft scores, in standard deviations of the normal scores of all examples."""
_CHANCE = 3.0
"""The 95% quantile of a χ² of two degrees of freedom over its mean."""
_MEDIAN = 0.4549
"""Median of a squared standard normal number: a median of squares over it is a variance that outliers do not inflate."""


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
    soft = None if smooth is None else _soft(scores, smooth)
    return np.array([_denoised(scores, soft, share, mean) for share, mean in zip(shares, means.T, strict=True)])


def _denoised(scores: Table, soft: Means | None, share: Means, means: Means) -> Means:
    """Return the estimates for one draw of the examples, whose shares are `share`."""
    if soft is None:
        expected = np.full_like(means, means.mean())
        spread = float(np.median((means - expected) ** 2)) / _MEDIAN
        by_chance = float(np.median(_variances(scores, share)))
    else:
        x = soft @ share
        x -= x.mean()
        slope = float(x @ means) / max(float(x @ x), 1e-12)
        expected = means.mean() + slope * x
        better = np.argsort(-expected, kind="stable")[: len(means) // 2]
        spread = float(np.mean((means - expected)[better] ** 2))
        by_chance = _CHANCE * float(np.mean(_variances(scores[better] - slope * soft[better], share)))
    kept = max(0.0, spread - by_chance) / spread if spread > 0 else 0.0
    return expected + kept * (means - expected)


def _soft(scores: Table, smooth: Table) -> Means:
    """Return soft scores in (0, 1), `(candidates, examples)`, from smooth ones."""
    _, place, count = np.unique(smooth, return_inverse=True, return_counts=True)
    ranks = ((np.cumsum(count) - count / 2) / smooth.size)[place].reshape(smooth.shape)
    low, high = float(scores.min()), float(scores.max())
    right = (float(scores.mean(dtype=np.float64)) - low) / (high - low) if high > low else 0.5
    edge = 0.5 / smooth.size
    soft: Means = ndtr((ndtri(ranks) - ndtri(np.clip(1 - right, edge, 1 - edge))) / _WIDTH)
    return soft


def _variances(table: NDArray[np.floating], share: Means) -> Means:
    """Return the variance of each candidate's mean over examples, apart from what all candidates have in common."""
    noise = table - table.mean(axis=0)
    noise = noise - (noise @ share)[:, None]
    variances: Means = (noise * noise) @ share / table.shape[1]
    return variances
