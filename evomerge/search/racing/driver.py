"""The racing driver: it turns an inner driver's proposals into rounds, and the rounds' results into evaluations for it."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import DriverError
from evomerge.search.driver import Driver, Generational, Objectives, check_in_flight, read_metrics
from evomerge.search.fronts.front import suits
from evomerge.search.racing.race import Criteria, Race, RacingSettings, Setup, fit_criteria
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal, ScoreTable

_ROUND_SIZE = 32
"""Candidates in a round of an inner driver that is not generational."""
_MIN_COMPLETE = 10
"""Minimum number of complete candidates before racing starts: fewer cannot show how far estimates err."""
_DRAWS = 2048
"""Normal draws by which the probability of being competitive is estimated."""
_INITIAL_TOLERANCE = 4.0
"""Initial tolerance of a race with surrogates, in units of the configured one."""
_HALVING_PATIENCE = 5
"""Consecutive rounds without a new complete candidate after which the tolerance is halved."""
_STALE_ROUNDS = 20
"""Consecutive rounds without anything to score after which the search is over: nothing new is left in the space."""


class Racing:
    """A `Driver` that races the candidates of another one, which may be generational or not.

    Its proposals are parts of candidates, with numbers counted by itself; no example of a recipe is asked for twice, except
    after a failure. The inner driver is told of all its candidates in order of number at the end of the round, so that nothing
    depends on the order of arrival. For a stopped candidate it is told an *estimate* of the mean of each objective, a vector of
    one number, which never leaves the search: only drivers that use nothing but means, `RACED`, can be raced. A candidate fails
    if any of its parts fails. Each rung merges the candidate again: where merging costs as much as scoring, rungs save little.
    """

    def __init__(
        self,
        driver: Driver,
        space: SearchSpace,
        objectives: Objectives,
        seed: int,
        settings: RacingSettings,
        sizes: Mapping[str, int],
    ) -> None:
        """Race `driver`; `sizes` has each task's number of search examples. Raises `DriverError` for objectives of others."""
        tasks = tuple(name.rpartition("/")[0] for name in objectives)
        for name, task in zip(objectives, tasks, strict=True):
            if task not in sizes:
                msg = f"driver `racing`: objective `{name}` is of the task `{task}`; expected one of known size: {', '.join(sizes) or 'none'}"
                raise DriverError(msg)
        draws = np.random.default_rng([seed, len(objectives)]).standard_normal((_DRAWS, len(objectives)))
        orders = {name: np.random.default_rng([seed, *name.encode()]).permutation(sizes[name]) for name in sizes}
        inside = space if settings.surrogate and suits(space) else None
        self._setup = Setup(settings, inside, read_metrics(objectives), tasks, dict(sizes), orders, draws)
        self._driver = driver
        self.tolerance = settings.tolerance * (_INITIAL_TOLERANCE if self._setup.space else 1)
        """The tolerance of the current round, in standard errors."""
        self._barren = 0  # consecutive rounds without a new complete candidate
        self._partial: dict[str, ScoreTable] = {}  # scores of the recipes that are not complete, by id
        self._complete: dict[str, tuple[Proposal, Evaluation]] = {}  # by id
        self._criteria = Criteria([self._setup.everything])
        self._race: Race | None = None
        self._pending: set[int] = set()
        self._asked = 0
        self._over = False

    def __str__(self) -> str:
        settings = self._setup.settings
        rungs = ", ".join(f"{rung:.3g}" for rung in settings.rungs)
        by = settings.estimator.replace("_", " ") + (" and surrogates of the genes" if self._setup.space else "")
        return f"{self._driver}, raced at {rungs} of the examples by {by}"

    def ask(self) -> Proposal | None:
        """Return the next part to score, or None while the parts of this rung are being scored."""
        rounds = 0
        while self._race is None and not self._over:
            self._start_round()
            rounds += 1
            finest = self.tolerance <= self._setup.settings.tolerance
            self._over |= finest and self._race is None and rounds >= _STALE_ROUNDS
        if self._race is None or not self._race.queue:
            return None
        proposal = replace(self._race.queue.popleft(), number=self._asked)
        self._asked += 1
        self._pending.add(proposal.number)
        return proposal

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Add the scores of a part; when the rung is complete, stop candidates and go to the next rung.

        Raises `DriverError` for a proposal that is not in flight, and for scores outside of the estimator's range.
        """
        check_in_flight(proposal, self._pending)
        assert self._race is not None
        self._pending.remove(proposal.number)
        candidate = self._race.candidates[proposal.recipe.id]
        scores = {name: vector for name, vector in evaluation.scores.items() if name in self._setup.metrics}
        if evaluation.error is not None:
            candidate.error = evaluation.error
        elif not all(np.isfinite(vector).all() for vector in scores.values()):
            candidate.error = "scores that are not finite"
        else:
            if self._setup.settings.estimator == "item_response":
                _check_unit_interval(scores)
            candidate.scores.add(proposal.examples, evaluation)
        if not self._pending and not self._race.queue:
            self._race.stop()
            self._advance(self._race)

    def members(self) -> tuple[str, ...]:
        """Return nothing: candidates of drivers that can be raced are made of their genomes alone."""
        return ()

    def _start_round(self) -> None:
        """Start a round with the inner driver's next proposals; without any the search is over."""
        size = math.inf if isinstance(self._driver, Generational) else _ROUND_SIZE
        if len(self._complete) < _MIN_COMPLETE:
            size = _MIN_COMPLETE
        proposals: list[Proposal] = []
        while len(proposals) < size and (proposal := self._driver.ask()) is not None:
            proposals.append(proposal)
            if proposal.recipe.id not in self._complete:
                self._partial.setdefault(proposal.recipe.id, ScoreTable(self._setup.sizes))
        if not proposals:
            self._over = True
            return
        if len(self._complete) >= _MIN_COMPLETE and len(self._complete) > self._criteria.complete:
            self._criteria = fit_criteria(self._setup, list(self._complete.values()), self.tolerance)
        self._advance(Race(self._setup, self._criteria, proposals, self._partial))

    def _advance(self, race: Race) -> None:
        """Go to the next rung, or finish the round: tell the inner driver the results in order of number."""
        if race.advance():
            self._race = race
            return
        self._race = None
        before = len(self._complete)
        for identity, candidate in race.candidates.items():
            if candidate.scores.complete:
                self._complete[identity] = candidate.proposal, candidate.scores.take()
                del self._partial[identity]
        for proposal in race.proposals:
            self._driver.tell(proposal, self._result(race, proposal.recipe.id))
        self._barren = 0 if len(self._complete) > before else self._barren + 1
        if self._barren >= _HALVING_PATIENCE and self.tolerance > self._setup.settings.tolerance:
            self.tolerance /= 2
            self._barren = 0
            self._criteria = replace(self._criteria, complete=0)  # fit again, with the new tolerance

    def _result(self, race: Race, identity: str) -> Evaluation:
        """Return the evaluation of a recipe for the inner driver: its scores, its error, or an estimate of its means."""
        if identity in self._complete:
            return self._complete[identity][1]
        candidate = race.candidates[identity]
        if candidate.estimate is None:
            return Evaluation(error=candidate.error)
        means = zip(self._setup.metrics, candidate.estimate, strict=True)
        return Evaluation({name: np.array([mean], np.float32) for name, mean in means})


def _check_unit_interval(scores: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise `DriverError` for scores that an item-response model does not apply to."""
    for name, vector in scores.items():
        if len(vector) and not 0 <= vector.min() <= vector.max() <= 1:
            raise DriverError(
                f"driver `racing`: objective `{name}` has scores in [{vector.min():g}, {vector.max():g}], and an item-response "
                "model needs right and wrong, in [0, 1]; choose a metric such as accuracy, or `estimator: regression`"
            )
