"""An estimator of candidates' means over all examples, from their scores on some, of one objective."""

import math

import numpy as np
from numpy.typing import NDArray

_NOISE = 0.3
"""Variance of the noise of a single example, relative to the mean variance of scores over candidates. On the digits zoo, with 10
to 140 complete candidates, errors are the same from 0.1 to 0.3, and at least a fifth larger at 1."""
_SHIFT = 10.0
"""Variance of a candidate's shift common to all examples, in the same unit: large, so that the prediction of a candidate better
than all before is not pulled towards them."""
_FOLDS = 5
"""Folds of the cross-validation that calibrates standard deviations."""

Scores = NDArray[np.float64]


class Regression:
    """The best linear prediction of the missing scores from the available ones (Goldberger 1962).

    Candidates' score vectors are modelled with the mean and the covariance of the complete candidates', independent noise per
    example, and a common shift with a wide prior. A new candidate is thus predicted from the complete candidates with similar
    scores on the same examples. It is a regression estimator (Cochran 1977, ch. 7) with a ridge and one control per complete
    candidate; not to be confused with the difference estimator, whose only control is the complete candidates' mean, and whose
    errors are twice as large on the digits zoo. Scores may have any unit and scale.
    """

    def __init__(self, complete: Scores) -> None:
        """Fit to the scores of the complete candidates, `(candidates, examples)`, two or more."""
        self._complete = complete
        self._linear = _Linear(complete)
        folds = min(_FOLDS, len(complete))
        fold = np.arange(len(complete)) % folds
        self._left_out = [(complete[fold == k], _Linear(complete[fold != k])) for k in range(folds)]

    def estimate(self, examples: NDArray[np.intp], scores: Scores) -> tuple[Scores, Scores]:
        """Return means and their standard deviations, both `(candidates,)`, from `scores`, `(candidates, m)`, on `examples`.

        With all examples the mean is exact and the deviation 0. Deviations are the model's times the root mean square of the
        standardised errors of the cross-validation and one further error of 1: above 0 where all candidates are equal.
        """
        means, deviation = self._linear.predict(examples, scores)
        if len(examples) == self._complete.shape[1]:
            return means, np.zeros(len(means))
        squares = 1.0
        for left_out, linear in self._left_out:
            predicted, expected = linear.predict(examples, left_out[:, examples])
            squares += float((((left_out.mean(axis=1) - predicted) / expected) ** 2).sum())
        factor = math.sqrt(squares / (len(self._complete) + 1))
        return means, np.full(len(means), factor * deviation)


class _Linear:
    """The linear prediction, not calibrated.

    With X the n complete candidates' differences from their mean, the covariance is XᵀX/n + s·11ᵀ + λI: a candidate's scores
    are mean + Xᵀa + b + noise, with a ~ N(0, I/n), a common shift b ~ N(0, s), and noise ~ N(0, λI).
    """

    def __init__(self, complete: Scores) -> None:
        self._mean: Scores = complete.mean(axis=0)
        centred = complete - self._mean
        # If all candidates are equal the next one may differ: the variance over examples counts as one candidate.
        variance = (centred**2).mean() + self._mean.var() / len(complete) + 1e-12
        self._noise = _NOISE * variance
        shift = np.full((1, complete.shape[1]), math.sqrt(_SHIFT * variance))
        self._controls = np.concatenate([centred / math.sqrt(len(complete)), shift])  # (n + 1, examples)

    def predict(self, examples: NDArray[np.intp], scores: Scores) -> tuple[Scores, float]:
        """Return the means over all examples, `(candidates,)`, and their standard deviation."""
        count, size = self._controls.shape
        unseen = np.setdiff1d(np.arange(size), examples)
        seen, towards = self._controls[:, examples], self._controls[:, unseen].sum(axis=1)
        weights = np.linalg.solve(np.eye(count) + seen @ seen.T / self._noise, towards)
        rest = weights @ seen @ (scores - self._mean[examples]).T / self._noise
        means: Scores = (scores.sum(axis=1) + self._mean[unseen].sum() + rest) / size
        return means, math.sqrt(self._noise * len(unseen) + float(towards @ weights)) / size
