"""Item response: a candidate's mean score over all examples, estimated from its scores on a few of them.

A multidimensional two-parameter logistic model (Reckase 2009) of candidates that were evaluated on all examples: candidate i
is right on example j with probability expit(a_j·θ_i - b_j), of its ability θ and the example's discrimination a and
difficulty b. A new candidate's ability is estimated from its scores, and its other scores are predicted (p-IRT of Maia Polo
et al. 2024, arXiv 2402.14992; for merges MERGE3, Mencattini et al. 2025, arXiv 2502.10436, whose model is fitted to published
models instead). Not to be confused with a surrogate, which predicts from the genes. Scores are right and wrong; higher is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Values = NDArray[np.float64]

NORMAL_95 = 1.959963984540054
"""Half the width of a 95% interval, in standard deviations of a normal distribution."""

_FOLDS = 5
_DISCRIMINATION = 2.0
"""Prior mean of discriminations along the first axis; it is 0 along the others. Their prior deviation is 1."""
_DIFFICULTY = 2.0
"""Prior deviation of difficulties."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """The parameters of examples in an item-response model."""

    discriminations: Values
    """`(examples, dimensions)`."""
    difficulties: Values
    """`(examples,)`, minus the logits at ability 0: higher is harder."""

    def only(self, indices: NDArray[np.intp]) -> "Examples":
        """Return the examples at `indices`."""
        return Examples(self.discriminations[indices], self.difficulties[indices])

    def right(self, abilities: Values) -> Values:
        """Return the probabilities of right answers, `(candidates, examples)`, for `abilities`, `(candidates, dimensions)`."""
        return np.asarray(expit(abilities @ self.discriminations.T - self.difficulties))

    def locate(self, scores: Values) -> tuple[Values, Values]:
        """Return abilities and their covariances, from `scores` on all these examples, `(candidates, examples)`.

        The abilities, `(candidates, dimensions)`, are the most probable under a standard normal prior, by Newton's method;
        the covariances, `(candidates, dimensions, dimensions)`, are Laplace's: the inverse of information and prior.
        """
        slopes = self.discriminations
        abilities = np.zeros((len(scores), slopes.shape[1]))
        losses = self._losses(abilities, scores)
        for _ in range(50):
            downhill = (self.right(abilities) - scores) @ slopes + abilities
            steps = self._covariances(abilities) @ downhill[..., None]
            sizes = np.ones((len(scores), 1))
            for _ in range(30):  # the loss is convex, but a full Newton step may overshoot
                moved = abilities - sizes * steps[..., 0]
                after = self._losses(moved, scores)
                far = after > losses + 1e-9 * (1 + np.abs(losses))
                if not far.any():
                    break
                sizes[far] /= 2
            abilities, losses = moved, after
            if np.abs(steps).max(initial=0.0) < 1e-9:
                break
        return abilities, self._covariances(abilities)

    def estimate(self, examples: NDArray[np.intp], scores: Values) -> tuple[Values, Values]:
        """Return mean and standard deviation as `Model.estimate` does, before calibration, both `(candidates,)`."""
        total = len(self.difficulties)
        unknown = np.setdiff1d(np.arange(total), examples)
        abilities, covariances = self.only(examples).locate(scores)
        right = self.only(unknown).right(abilities)
        luck = right * (1 - right)
        slopes = luck @ self.discriminations[unknown]  # of the sum, by ability
        variance = luck.sum(axis=1) + np.einsum("ci,cij,cj->c", slopes, covariances, slopes)
        return (scores.sum(axis=1) + right.sum(axis=1)) / total, np.sqrt(variance) / total

    def _losses(self, abilities: Values, scores: Values) -> Values:
        """Return minus the logarithm of likelihood and prior, `(candidates,)`."""
        logits = abilities @ self.discriminations.T - self.difficulties
        cross_entropy = np.logaddexp(0, logits) - scores * logits
        return np.asarray(cross_entropy.sum(axis=1) + 0.5 * (abilities**2).sum(axis=1))

    def _covariances(self, abilities: Values) -> Values:
        right = self.right(abilities)
        weighed = (right * (1 - right))[:, None, :] * self.discriminations.T
        information = weighed @ self.discriminations + np.eye(weighed.shape[1])
        return np.asarray(np.linalg.inv(information), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A fitted item-response model of one objective."""

    examples: Examples
    abilities: Values
    """Abilities of the fitted candidates, `(candidates, dimensions)`."""
    responses: Values
    """Scores of the fitted candidates, `(candidates, examples)`."""
    folds: Sequence[tuple[NDArray[np.intp], Examples]]
    """Rows of candidates, and the examples as fitted to the other candidates. Each candidate is in one fold."""

    def estimate(self, examples: NDArray[np.intp], scores: Values) -> tuple[Values, Values]:
        """Return new candidates' mean scores over all examples and their standard deviations, both `(candidates,)`.

        `examples` are different column indices, `(m,)`; `scores` on them are `(candidates, m)`. Measured scores are used
        unchanged. The variance is that of the other scores, independent given the ability, and of the ability (delta
        method), times `factor` squared. With all examples measured, the mean is exact and the deviation 0.
        """
        mean, deviation = self.examples.estimate(examples, scores)
        return mean, self.factor(examples) * deviation

    def factor(self, examples: NDArray[np.intp]) -> float:
        """Return the calibration factor, 1 or more, of deviations for candidates scored on these `examples`, `(m,)`.

        Responses are not independent given an ability, and the examples' parameters are estimates. So each fitted
        candidate is estimated from its scores on the same examples, by parameters fitted without it. The factor is the
        ⌈0.95 (n + 1)⌉-th smallest of these errors, in deviations, or the largest of few: 95% intervals then hold a new
        candidate with probability 95%, if it is drawn like the others (Vovk et al. 2005).
        """
        if len(examples) == self.responses.shape[1]:
            return 1.0
        sizes = []
        for rows, fitted in self.folds:
            mean, deviation = fitted.estimate(examples, self.responses[np.ix_(rows, examples)])
            sizes.append(np.abs(self.responses[rows].mean(axis=1) - mean) / deviation)
        errors = np.sort(np.concatenate(sizes))
        rank = min(math.ceil(0.95 * (len(errors) + 1)), len(errors))
        return max(1.0, float(errors[rank - 1]) / NORMAL_95)

    def anchors(self, count: int, seen: Sequence[int] = ()) -> NDArray[np.intp]:
        """Return the next `count` examples to score candidates on, `(count,)`, the most informative first.

        `seen` examples are scored anyway. Greedy: each next example is the one that most lowers the variance of `estimate`,
        averaged over the fitted candidates, by

            Cov(y, mean)² / Var(y) = w (gᵀC a + 1/n)² / (1 + w aᵀC a),    w = p (1 - p),

        in the linearised model, where C is the ability's covariance given the seen examples and g the derivative of the
        mean of the others by the ability. Not to be confused with D-optimal examples (by the determinant of Fisher's
        information), which ignore the mean: on the digits zoo their errors are 1.3 to 1.7 times as large. Ties go to the
        first.
        """
        taken = np.array(seen, dtype=np.intp)
        slopes = self.examples.discriminations
        total, dimensions = slopes.shape
        right = self.examples.right(self.abilities)
        luck = right * (1 - right)
        free = np.ones(total, dtype=np.bool_)
        free[taken] = False
        information = (luck[:, None, taken] * slopes[taken].T) @ slopes[taken] + np.eye(dimensions)
        directions = slopes @ np.linalg.inv(information)  # C a, (candidates, examples, dimensions)
        chosen: list[int] = []
        for _ in range(count):
            towards = (luck * free) @ slopes / total
            along = np.einsum("ced,cd->ce", directions, towards)
            spread = np.einsum("ced,ed->ce", directions, slopes)
            gains = (luck * (along + 1 / total) ** 2 / (1 + luck * spread)).mean(axis=0)
            best = int(np.where(free, gains, -np.inf).argmax())
            free[best] = False
            chosen.append(best)
            step = directions[:, best]  # Sherman & Morrison 1950
            shrink = luck[:, best] / (1 + luck[:, best] * spread[:, best])
            directions = directions - (shrink[:, None] * (step @ slopes.T))[..., None] * step[:, None, :]
        return np.array(chosen, dtype=np.intp)


def fit(responses: Values, dimensions: int = 6) -> Model:
    """Return the model of `responses`, `(candidates, examples)`: 1 for right, 0 for wrong, or a share of right answers.

    For an interval there must be 10 candidates or more: the largest of n left-out errors bounds a new one with probability
    n / (n + 1).

    Abilities, discriminations and difficulties are the most probable under normal priors, N(0, I), N(2 e₁, I) and N(0, 2²),
    which keep the parameters finite of examples that all or no candidates solve, and allow more `dimensions` than needed: on
    the digits zoo estimates improve up to about six and get no worse beyond; on simulated responses of one dimension, six
    raise the error by up to a fifth. There are at most as many dimensions as candidates or examples.
    """
    abilities, examples = _fit(responses, dimensions)
    rows = np.arange(len(responses))
    folds = []
    for fold in range(_FOLDS):
        held = rows % _FOLDS == fold
        folds.append((rows[held], _fit(responses[~held], dimensions)[1]))
    return Model(examples, abilities, responses, folds)


def _start(table: Values, dimensions: int) -> tuple[Values, Examples]:
    """Return the optimiser's start: the candidates' logits along the first axis, singular vectors of the rest."""
    candidates, total = table.shape
    levels = _logits(table.sum(axis=1), total)
    first = levels - levels.mean()
    first /= max(float(first.std()), 1e-9)
    centred = table - table.mean(axis=0)
    rest = centred - np.outer(first, first @ centred) / max(float(first @ first), 1e-9)
    left, singular, axes = np.linalg.svd(rest, full_matrices=False)
    others = min(dimensions, candidates, total) - 1
    signs = np.where(axes[:others].sum(axis=1) < 0, -1.0, 1.0)  # a singular vector's sign is arbitrary
    abilities = np.column_stack([first, left[:, :others] * signs * math.sqrt(candidates)])
    shares = (signs * singular[:others])[:, None] * axes[:others] / math.sqrt(candidates)
    slopes = 4 * shares  # d logit p / dp is 4 at 1/2
    discriminations = np.column_stack([np.full(total, _DISCRIMINATION), slopes.T])
    return abilities, Examples(discriminations, -_logits(table.sum(axis=0), candidates))


def _fit(table: Values, dimensions: int) -> tuple[Values, Examples]:
    """Return the most probable abilities and examples, by L-BFGS-B from `_start`."""
    abilities, examples = _start(table, dimensions)
    shape = (*table.shape, abilities.shape[1])
    start = np.concatenate([abilities.ravel(), examples.discriminations.ravel(), examples.difficulties])
    options = {"maxiter": 1000, "ftol": 1e-6}
    result = minimize(_loss, start, (table, shape[2]), jac=True, method="L-BFGS-B", options=options)
    return _parts(result.x, shape)


def _loss(values: Values, table: Values, dimensions: int) -> tuple[float, Values]:
    """Return minus the logarithm of likelihood and priors, up to a constant, and its gradient, `(values,)`."""
    abilities, examples = _parts(values, (*table.shape, dimensions))
    slopes, difficulties = examples.discriminations, examples.difficulties
    logits = abilities @ slopes.T - difficulties
    away = slopes - _DISCRIMINATION * np.eye(1, dimensions)
    value = (np.logaddexp(0, logits) - table * logits).sum()
    value += 0.5 * ((abilities**2).sum() + (away**2).sum() + (difficulties**2).sum() / _DIFFICULTY**2)
    errors = expit(logits) - table
    by_ability = errors @ slopes + abilities
    by_slope = errors.T @ abilities + away
    by_difficulty = difficulties / _DIFFICULTY**2 - errors.sum(axis=0)
    return float(value), np.concatenate([by_ability.ravel(), by_slope.ravel(), by_difficulty])


def _parts(values: Values, shape: tuple[int, int, int]) -> tuple[Values, Examples]:
    candidates, total, dimensions = shape
    abilities, slopes, difficulties = np.split(values, [candidates * dimensions, (candidates + total) * dimensions])
    return abilities.reshape(candidates, dimensions), Examples(slopes.reshape(total, dimensions), difficulties)


def _logits(right: Values, total: int) -> Values:
    return np.asarray(np.log((right + 0.5) / (total - right + 0.5)))
