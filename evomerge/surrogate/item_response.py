"""Item response: a candidate's mean score over all examples, estimated from its scores on a few of them.

A two-parameter logistic model in several dimensions (Reckase 2009) is fitted on the candidates that a study evaluated on
all examples: candidate i is right on example j with probability expit(a_j·θ_i - b_j), of its ability θ and the example's
discrimination a and difficulty b. A new candidate's ability is estimated from what it was scored on, and what it was not
scored on is predicted (p-IRT of Maia Polo et al. 2024, arXiv 2402.14992; for merges MERGE3, Mencattini et al. 2025,
arXiv 2502.10436, whose model is fitted on published models instead). Not to be confused with a surrogate, which predicts
from the genes a candidate that was not scored at all. Scores are of right and wrong; higher is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from evomerge.errors import SurrogateError

Values = NDArray[np.float64]

NORMAL_95 = 1.959963984540054
"""Half the width of a 95% interval, in standard deviations of a normal distribution."""

_LEAST = 10
"""Candidates below which no interval can be checked: the largest of n left-out errors holds a new one with n / (n + 1)."""
_FOLDS = 5
_DISCRIMINATION = 2.0
"""Prior mean of discriminations along the first axis; along the others it is 0. Their prior deviation is 1."""
_DIFFICULTY = 2.0
"""Prior deviation of difficulties."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """What an item-response model knows of each example."""

    discriminations: Values
    """`(examples, dimensions)`."""
    difficulties: Values
    """`(examples,)`, logits at ability 0, higher is harder."""

    def only(self, numbers: NDArray[np.intp]) -> "Examples":
        """Return these examples alone."""
        return Examples(self.discriminations[numbers], self.difficulties[numbers])

    def right(self, abilities: Values) -> Values:
        """Return the probabilities of right answers, `(candidates, examples)`, at `abilities`, `(candidates, dimensions)`."""
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
            for _ in range(30):  # the loss is convex, but a whole step may go too far
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
    """Those of the candidates that it was fitted on, `(candidates, dimensions)`."""
    responses: Values
    """What it was fitted on, `(candidates, examples)`."""
    folds: Sequence[tuple[NDArray[np.intp], Examples]]
    """Candidates, and what is known of the examples from the other candidates alone. Each candidate is in one fold."""

    def estimate(self, examples: ArrayLike, scores: ArrayLike) -> tuple[Values, Values]:
        """Return a new candidate's mean score over all examples and its standard deviation, from `scores` on `examples`.

        `examples` are numbers of columns, `(m,)`; `scores` are `(m,)`, or `(candidates, m)` of several, and the results
        `()` or `(candidates,)`. Known scores count as they are. The variance is that of the unknown ones, independent
        given the ability, and of the ability (delta method), times `factor` squared. With all examples known, the mean is
        exact and the deviation 0. Raises `SurrogateError`.
        """
        numbers, given = self._scored(examples, scores)
        mean, deviation = self.examples.estimate(numbers, np.atleast_2d(given))
        shape = given.shape[:-1]
        return mean.reshape(shape), self.factor(numbers) * deviation.reshape(shape)

    def factor(self, examples: ArrayLike) -> float:
        """Return by how much deviations are widened for candidates scored on these `examples`, `(m,)`; 1 at least.

        The model is not the truth: responses are not independent given an ability, and the examples' parameters are
        estimates. So each fitted candidate is estimated from its own scores on the same examples, by parameters fitted
        without it. The factor makes 95% intervals hold as many of these as hold a new candidate with 95% if it is drawn
        as they were (Vovk et al. 2005): the ⌈0.95 (n + 1)⌉-th smallest error, in deviations, or the largest of few. A
        search that moves far from what was fitted is not held by it.
        """
        numbers = self._numbers("examples", examples)
        if len(numbers) == self.responses.shape[1]:
            return 1.0
        sizes = []
        for rows, known in self.folds:
            mean, deviation = known.estimate(numbers, self.responses[np.ix_(rows, numbers)])
            sizes.append(np.abs(self.responses[rows].mean(axis=1) - mean) / deviation)
        errors = np.sort(np.concatenate(sizes))
        rank = min(math.ceil(0.95 * (len(errors) + 1)), len(errors))
        return max(1.0, float(errors[rank - 1]) / NORMAL_95)

    def locate(self, examples: ArrayLike, scores: ArrayLike) -> Values:
        """Return abilities, `(candidates, dimensions)`, from `scores` on `examples` as in `estimate`."""
        numbers, given = self._scored(examples, scores)
        return self.examples.only(numbers).locate(np.atleast_2d(given))[0]

    def anchors(self, count: int, seen: ArrayLike = (), abilities: ArrayLike | None = None) -> NDArray[np.intp]:
        """Return the next `count` examples to score candidates on, `(count,)`, the most telling first.

        `seen` are those that are scored anyway. `abilities`, `(candidates, dimensions)`, are where it matters, None for
        those of the fitted candidates; for a candidate that is scored by and by, its own from `locate`. Greedy: each next
        example is the one that most lowers the variance of `estimate`, averaged over the abilities,

            Cov(y, mean)² / Var(y) = w (gᵀC a + 1/n)² / (1 + w aᵀC a),    w = p (1 - p),

        of the linearised model: C is the ability's covariance given what is seen, g the slope of the mean by the unseen.
        Not to be confused with D-optimal examples (the determinant of Fisher's information), which are sharp whatever they
        say about the mean: on the digits zoo, errors from those are 1.3 to 1.7 times as large. Ties go to the first.
        Raises `SurrogateError`.
        """
        taken = self._numbers("seen", seen)
        slopes = self.examples.discriminations
        total, dimensions = slopes.shape
        where = self.abilities if abilities is None else np.asarray(abilities, dtype=np.float64)
        if where.ndim != 2 or where.shape[1] != dimensions or not len(where) or not np.isfinite(where).all():
            msg = f"abilities: expected finite numbers of shape (candidates, {dimensions}), got shape {where.shape}"
            raise SurrogateError(msg)
        if not 0 <= count <= total - len(taken):
            msg = f"count: expected 0 to {total - len(taken)}, the examples that are not seen, got {count}"
            raise SurrogateError(msg)
        right = self.examples.right(where)
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

    def _scored(self, examples: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.intp], Values]:
        """Return the numbers of examples, and the scores on them. Raises `SurrogateError`."""
        numbers = self._numbers("examples", examples)
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim not in {1, 2} or given.shape[-1] != len(numbers):
            msg = f"scores: expected shape ({len(numbers)},) or (candidates, {len(numbers)}), one for each of the examples, got {given.shape}"
            raise SurrogateError(msg)
        _check("scores", given)
        return numbers, given

    def _numbers(self, what: str, given: ArrayLike) -> NDArray[np.intp]:
        """Return the numbers of examples, each once. Raises `SurrogateError`."""
        values = np.asarray(given)
        total = self.responses.shape[1]
        whole = values.size == 0 or np.issubdtype(values.dtype, np.integer)
        if values.ndim != 1 or not whole or len(np.unique(values)) != len(values):
            msg = f"{what}: expected whole numbers of examples, each once, shape (m,), got {values.dtype} of shape {values.shape}"
            raise SurrogateError(msg)
        if len(values) and not 0 <= values.min() <= values.max() < total:
            msg = f"{what}: expected numbers in [0, {total - 1}], got [{values.min()}, {values.max()}]"
            raise SurrogateError(msg)
        return values.astype(np.intp)


def fit(responses: ArrayLike, dimensions: int = 6) -> Model:
    """Return the model of `responses`, `(candidates, examples)`: 1 for right, 0 for wrong, or a share of right answers.

    The most probable abilities, discriminations and difficulties under normal priors, N(0, I), N(2 e₁, I) and N(0, 2²):
    they keep finite what all or no candidates are right on, and they let an ability have more `dimensions` than it needs.
    On the digits zoo estimates get better up to about six, and no worse beyond; on simulated responses that need but one,
    six cost up to a fifth in error. There are at most as many as candidates or examples. The same responses give the
    same model. Raises `SurrogateError`.
    """
    table = np.asarray(responses, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        msg = f"responses: expected shape (candidates, examples), got {table.shape}"
        raise SurrogateError(msg)
    _check("responses", table)
    if len(table) < _LEAST:
        msg = f"responses: {len(table)} candidates; an item-response model needs {_LEAST} or more that were evaluated on all examples"
        raise SurrogateError(msg)
    if dimensions < 1:
        msg = f"dimensions: expected 1 or more, got {dimensions}"
        raise SurrogateError(msg)
    abilities, examples = _start(table, dimensions)
    abilities, examples = _fit(table, abilities, examples)
    numbers = np.arange(len(table))
    folds = []
    for fold in range(_FOLDS):
        held = numbers % _FOLDS == fold
        folds.append((numbers[held], _fit(table[~held], *_start(table[~held], dimensions))[1]))
    return Model(examples, abilities, table, folds)


def _start(table: Values, dimensions: int) -> tuple[Values, Examples]:
    """Return where the optimiser begins: the candidates' logits along the first axis, singular vectors of the rest."""
    candidates, total = table.shape
    levels = _logits(table.sum(axis=1), total)
    first = levels - levels.mean()
    first /= max(float(first.std()), 1e-9)
    centred = table - table.mean(axis=0)
    rest = centred - np.outer(first, first @ centred) / max(float(first @ first), 1e-9)
    left, singular, axes = np.linalg.svd(rest, full_matrices=False)
    kept = min(dimensions, candidates, total) - 1
    signs = np.where(axes[:kept].sum(axis=1) < 0, -1.0, 1.0)  # a singular vector has none of its own
    abilities = np.column_stack([first, left[:, :kept] * signs * math.sqrt(candidates)])
    shares = (signs * singular[:kept])[:, None] * axes[:kept] / math.sqrt(candidates)
    slopes = 4 * shares  # d logit p / dp is 4 at 1/2
    discriminations = np.column_stack([np.full(total, _DISCRIMINATION), slopes.T])
    return abilities, Examples(discriminations, -_logits(table.sum(axis=0), candidates))


def _fit(table: Values, abilities: Values, examples: Examples) -> tuple[Values, Examples]:
    """Return the most probable abilities and examples, by L-BFGS-B from those given."""
    shape = (*table.shape, abilities.shape[1])

    def loss(values: Values) -> tuple[float, Values]:
        return _loss(values, table, shape[2])

    start = np.concatenate([abilities.ravel(), examples.discriminations.ravel(), examples.difficulties])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-6})
    return _parts(found.x, shape)


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


def _check(what: str, scores: Values) -> None:
    """Raise `SurrogateError` for scores that are not of right and wrong."""
    if not np.isfinite(scores).all():
        msg = f"{what}: expected finite numbers; leave failed evaluations out"
        raise SurrogateError(msg)
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        msg = f"{what} lie in [{scores.min():g}, {scores.max():g}]; an item-response model is of right and wrong: expected scores in [0, 1], such as accuracy, no log-likelihoods or margins"
        raise SurrogateError(msg)
