"""CMA-ES: one objective, by adapting a normal distribution (Hansen, arXiv 1604.00772).

Up to `separable_above` genes the covariance is full, beyond it is diagonal (sep-CMA-ES, Ros & Hansen 2008). Spaces with int,
choice or bit genes use CatCMA with margin (arXiv 2504.07884). Its covariance is always full: 180 ms a candidate at 1,000
float genes, 3 ms at 100. With more than `separable_above` float genes, discrete genes are therefore relaxed: each is a float
gene with thresholds (as in the data-flow paper, arXiv 2403.13187) for plain CMA-ES.

When CMA-ES has converged or degenerated, it restarts at the best candidate so far with twice the population
(IPOP-CMA-ES, Auger & Hansen 2005, restarts at a random point), so that a large budget is used up.
"""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import cmaes
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from evomerge.search.driver import FLIPPED, Genomes, Means, known_recipes, read_weights, round_integers
from evomerge.search.slopes.polish import PolishSettings
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation


class CmaSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by CMA-ES."""

    kind: Literal["cma"] = "cma"
    seed_known: bool = True
    """Evaluate the known recipes (base, each expert, mean) first, and start from the best."""
    sigma: float = Field(default=1 / 6, gt=0, le=1)
    """Initial standard deviation, in units of each gene's range."""
    population: int | None = Field(default=None, ge=4)
    """Candidates in a generation. Default: 4 + ⌊3 ln genes⌋."""
    separable_above: int = Field(default=100, ge=1)
    """With more float genes than this, only variances are adapted, no covariances."""
    whole: Literal["categorical", "relaxed"] | None = None
    """Discrete genes: `categorical` uses CatCMA with margin, `relaxed` makes them thresholds of float genes for plain CMA-ES.

    Default: categorical, but relaxed with more than `separable_above` float genes.
    """
    weights: dict[str, float] | None = None
    """Objective → weight in the maximised mean, 0 for those left out. Default: equal weights."""
    polish: PolishSettings | None = None
    """Let each candidate take steps along slopes first: `{steps: 3}`. Default: none."""


class Cma:
    """A `Breeder` that maximises the weighted mean of the objectives' mean scores."""

    def __init__(self, space: SearchSpace, objectives: Collection[str], seed: int, settings: CmaSettings) -> None:
        """Search `space` for the best weighted mean of `objectives`. Raises `DriverError` for bad weights."""
        self._space = space
        self._seed = seed
        self._settings = settings
        self._weights = read_weights(objectives, settings.weights)
        self._known = known_recipes(space, settings.seed_known)
        self._queue = self._known
        self._start = space.initial
        self._best = -np.inf
        self._restarts = 0
        self._sampler: _Normal | _Mixed | None = None

    def __str__(self) -> str:
        sampler = self._make_sampler()
        return (
            f"{sampler}, {sampler.population} candidates a generation, sigma {self._settings.sigma:.3g},"
            f" from the best of {len(self._known)} known recipes"
        )

    def draw(self) -> Genomes:
        """Return the known recipes first, then populations."""
        known, self._queue = self._queue, self._queue[:0]
        if len(known):
            return known
        if self._sampler is None:
            self._sampler = self._make_sampler()
        return self._sampler.draw()

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Adapt the distribution; restart if it has converged."""
        values = means @ self._weights
        if values.max() > self._best:
            self._best = float(values.max())
            self._start = genomes[int(values.argmax())]
        if self._sampler is not None and self._sampler.learn(values):
            self._restarts += 1
            self._sampler = self._make_sampler()

    def _make_sampler(self) -> "_Normal | _Mixed":
        seed = int(np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)[0])
        genes = len(self._space.genes)
        default = 4 + int(3 * np.log(genes))  # eq. 48 (arXiv 1604.00772)
        size = (self._settings.population or default) * 2**self._restarts
        discrete, most = self._space.integer, self._settings.separable_above
        relaxed = (~discrete).sum() > most if self._settings.whole is None else self._settings.whole == "relaxed"
        if discrete.any() and not relaxed:
            return _Mixed(self._space, self._start, self._settings.sigma, size, seed)
        return _Normal(self._space, self._start, self._settings.sigma, size, seed, separable=genes > most)


class _Normal:
    """CMA-ES over float genes; discrete genes are rounded.

    A sample outside of the unit cube is reflected at its faces: the reflected point is evaluated and recorded, CMA-ES learns
    from the sample, and so its landscape has no edges. (`cmaes` would resample, which hardly ends in many dimensions.)
    """

    def __init__(
        self, space: SearchSpace, start: Genome, sigma: float, population: int, seed: int, *, separable: bool
    ) -> None:
        self.population = population
        self._space = space
        bits = np.array([gene.kind == "bit" for gene in space.genes])
        included = np.clip(0.5 + np.where(start > 0.5, 2, -2) * sigma, 0, 1)
        self._cma = (cmaes.SepCMA if separable else cmaes.CMA)(
            mean=np.where(bits, included, space.to_unit(start)), sigma=sigma, population_size=population, seed=seed
        )
        self._samples: list[NDArray[np.float64]] = []

    def __str__(self) -> str:
        name = "separable CMA-ES" if isinstance(self._cma, cmaes.SepCMA) else "CMA-ES"
        return f"{name}, discrete genes relaxed" if self._space.integer.any() else name

    def draw(self) -> Genomes:
        self._samples = [self._cma.ask() for _ in range(self.population)]
        # Reflect at 0 and 1, by a triangle wave of period 2: 1.2 becomes 0.8, and -0.1 becomes 0.1.
        reflected = 1.0 - np.abs(np.mod(np.array(self._samples), 2.0) - 1.0)
        return round_integers(self._space, self._space.from_unit(reflected))

    def learn(self, values: NDArray[np.float64]) -> bool:
        """Take the value, higher is better, of each row of the last `draw`; return whether the run has converged."""
        self._cma.tell(list(zip(self._samples, -values, strict=True)))
        return bool(self._cma.should_stop())


class _Mixed:
    """CatCMA with margin (arXiv 2504.07884): ints are levels in the unit cube; choices, bits and binary ints are categories.

    It clips to the unit cube and penalises the distance, as its paper does.
    """

    def __init__(self, space: SearchSpace, start: Genome, sigma: float, population: int, seed: int) -> None:
        self.population = population
        self._space = space
        levels = [0 if gene.kind == "float" else int(gene.high - gene.low) + 1 for gene in space.genes]
        kinds = [
            "category" if g.kind == "choice" or n == 2 else g.kind for g, n in zip(space.genes, levels, strict=True)
        ]
        self._floats, self._ints, self._categories = (
            np.flatnonzero([kind == wanted for kind in kinds]) for wanted in ("float", "int", "category")
        )
        options = [levels[i] for i in self._categories]
        probabilities = np.zeros((len(options), max(options, default=0)))
        for row, (i, count) in enumerate(zip(self._categories, options, strict=True)):
            spread = 2 * FLIPPED if space.genes[i].kind == "bit" else 0.5  # shared evenly by all options
            probabilities[row, :count] = spread / count
            probabilities[row, int(start[i] - space.lower[i])] += 1 - spread
        gaussian = np.concatenate([self._floats, self._ints])
        self._cma = cmaes.CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._floats) or None,
            z_space=[self._steps(i, levels[i]) for i in self._ints] or None,
            c_space=options or None,
            population_size=population,
            mean=space.to_unit(start)[gaussian],
            sigma=sigma,
            cov=np.eye(len(gaussian)),
            cat_param=probabilities if options else None,
            seed=seed,
        )
        self._samples: list[Any] = []

    def __str__(self) -> str:
        return "CatCMA with margin"

    def draw(self) -> Genomes:
        self._samples = [self._cma.ask() for _ in range(self.population)]
        unit = np.zeros((self.population, len(self._space.genes)))
        if len(self._floats):
            unit[:, self._floats] = [sample.x for sample in self._samples]
        if len(self._ints):
            unit[:, self._ints] = [sample.z for sample in self._samples]
        genomes = self._space.from_unit(unit)
        genomes[:, self._ints] = np.floor(genomes[:, self._ints] + 0.5)
        if len(self._categories):
            chosen = [sample.c.argmax(axis=1) for sample in self._samples]
            genomes[:, self._categories] = self._space.lower[self._categories] + chosen
        return genomes

    def learn(self, values: NDArray[np.float64]) -> bool:
        """As `_Normal.learn`; a run without float and int genes never converges."""
        # CMA-ES only uses ranks, but CatCMA's penalty for leaving the box scales with the interquartile range of the values,
        # and is NaN where all are equal, as scores of discrete recipes can be. Ranks always differ.
        ranks = np.argsort(np.argsort(-values, kind="stable")).astype(np.float64)
        self._cma.tell(list(zip(self._samples, ranks, strict=True)))
        return bool(len(self._floats) or len(self._ints)) and bool(self._cma.should_stop())

    def _steps(self, index: np.intp, levels: int) -> list[float]:
        genomes = np.tile(self._space.lower, (levels, 1))
        genomes[:, index] += np.arange(levels)
        return [float(unit) for unit in self._space.to_unit(genomes)[:, index]]
