"""Optuna's samplers in batches of a fixed size: TPE (Bergstra et al. 2011), Gaussian process, quasi-Monte Carlo (Sobol).

Practical limits: some 50 genes for TPE (one second a candidate at 1,000 genes and 400 candidates, far more with several
objectives), 20 genes and 200 candidates for the Gaussian process. For more genes use `cma` or `nsga2`.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import optuna
from pydantic import BaseModel, Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, Means, known_recipes
from evomerge.search.slopes.polish import PolishSettings
from evomerge.space import Gene, Genome, SearchSpace
from evomerge.trial import Evaluation

_SAMPLERS: dict[str, tuple[type[optuna.samplers.BaseSampler], dict[str, Any]]] = {
    "tpe": (optuna.samplers.TPESampler, {}),
    "gp": (optuna.samplers.GPSampler, {}),
    "qmc": (optuna.samplers.QMCSampler, {"scramble": True, "warn_independent_sampling": False}),
}


class OptunaSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by one of Optuna's samplers."""

    kind: Literal["tpe", "gp", "qmc"] = "tpe"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first."""
    batch: int = Field(default=8, ge=1)
    """Candidates in a batch; fixed, so that the search does not depend on the number of workers."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of Optuna's sampler, such as `n_startup_trials`."""
    polish: PolishSettings | None = None
    """Let each candidate take steps along slopes first: `{steps: 3}`. Default: none."""


class Optuna:
    """A `Breeder` around an in-memory Optuna study that maximises the mean of each objective."""

    def __init__(self, space: SearchSpace, objectives: Collection[str], seed: int, settings: OptunaSettings) -> None:
        """Search `space`. Raises `DriverError` for `options` that the sampler does not accept."""
        self._space = space
        self._settings = settings
        self._known = known_recipes(space, settings.seed_known)
        self._queue = self._known
        self._distributions = {str(i): distribution(gene) for i, gene in enumerate(space.genes)}
        self._asked: list[optuna.Trial] = []
        sampler_type, defaults = _SAMPLERS[settings.kind]
        sampler_seed = int(np.random.SeedSequence([seed]).generate_state(1)[0])
        with quiet():
            try:
                sampler = sampler_type(**{**defaults, "seed": sampler_seed, **settings.options})
            except (TypeError, ValueError) as error:
                msg = f"driver `{settings.kind}`: `options` do not suit optuna's {sampler_type.__name__}: {error}"
                raise DriverError(msg) from None
            self._study = optuna.create_study(sampler=sampler, directions=["maximize"] * len(objectives))

    def __str__(self) -> str:
        name = _SAMPLERS[self._settings.kind][0].__name__
        return f"optuna {name}, {self._settings.batch} candidates at once, after {len(self._known)} known recipes"

    def draw(self) -> Genomes:
        """Return the known recipes first, then batches from the sampler."""
        known, self._queue = self._queue, self._queue[:0]
        if len(known):
            return known
        with quiet():
            for trial in self._asked:  # without a success so far, failures have no substitute scores
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self._asked = [self._study.ask(self._distributions) for _ in range(self._settings.batch)]
        return np.array([[float(trial.params[name]) for name in self._distributions] for trial in self._asked])

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Tell Optuna the means, in the order of the batch."""
        with quiet():
            if self._asked:
                for trial, values in zip(self._asked, means, strict=True):
                    self._study.tell(trial, values.tolist())
            else:
                self._study.add_trials([self._known_trial(*row) for row in zip(genomes, means, strict=True)])
        self._asked = []

    def _known_trial(self, genome: Genome, means: Means) -> optuna.trial.FrozenTrial:
        genes = zip(self._distributions, self._space.genes, genome, strict=True)
        params = {name: float(x) if gene.kind == "float" else int(x) for name, gene, x in genes}
        return optuna.trial.create_trial(params=params, distributions=self._distributions, values=means.tolist())


def distribution(gene: Gene) -> optuna.distributions.BaseDistribution:
    """Return the range of a gene's number."""
    if gene.kind in ("choice", "bit"):
        return optuna.distributions.CategoricalDistribution(range(int(gene.high) + 1))
    if gene.kind == "int":
        return optuna.distributions.IntDistribution(int(gene.low), int(gene.high), log=gene.log)
    return optuna.distributions.FloatDistribution(gene.low, gene.high, log=gene.log)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log below warnings, and its warnings about experimental samplers."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
