"""NSGA-II (Deb, Pratap, Agarwal & Meyarivan 2002) and NSGA-III (Deb & Jain 2014): a front at once, by pymoo.

Genomes are bred in the unit cube. Float and int genes use simulated binary crossover (Deb & Agrawal 1995) and polynomial
mutation, and int genes are then rounded; choices and bits use uniform crossover and mutate to any option. The first
generation is the known recipes, filled up by a Latin hypercube. Its bits are near the initial ones, since a random half of a
path's slots makes no working model.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UX
from pymoo.operators.mutation.pm import PM
from pymoo.problems.static import StaticProblem
from pymoo.util.ref_dirs import get_reference_directions

from evomerge.errors import DriverError
from evomerge.search.driver import FLIPPED, Genomes, Means, known_recipes, latin_hypercube, round_integers
from evomerge.search.slopes.polish import PolishSettings
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation


class NsgaSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study that searches by NSGA-II or NSGA-III."""

    kind: Literal["nsga2", "nsga3"] = "nsga2"
    seed_known: bool = True
    """Put the known recipes (base, each expert, mean) into the first generation."""
    population: int = Field(default=24, ge=4)
    """Candidates in a generation. The first generation is larger if there are more known recipes."""
    polish: PolishSettings | None = None
    """Let each candidate take steps along slopes first: `{steps: 3}`. Default: none."""


class Nsga:
    """A `Breeder`: after each generation the best of parents and offspring survive."""

    def __init__(self, space: SearchSpace, objectives: Collection[str], seed: int, settings: NsgaSettings) -> None:
        """Search `space` for the front of `objectives`. Raises `DriverError` for a single objective, or too many."""
        if len(objectives) < 2:  # a front needs two
            raise DriverError(f"driver `{settings.kind}` needs two or more objectives, got one; type `kind: cma`")
        self._space = space
        self._settings = settings
        self._known = known_recipes(space, settings.seed_known)
        self._queue = self._known
        self._filler = np.random.default_rng(np.random.SeedSequence([seed, 0]))
        self._problem = Problem(n_var=len(space.genes), n_obj=len(objectives), xl=0.0, xu=1.0)
        self._algorithm = _algorithm(space, len(objectives), settings)
        bred = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
        self._algorithm.setup(self._problem, termination=NoTermination(), seed=bred)

    def __str__(self) -> str:
        name = "NSGA-II" if self._settings.kind == "nsga2" else "NSGA-III"
        return f"{name}, {self._settings.population} candidates a generation, {len(self._known)} known recipes in the first"

    def draw(self) -> Genomes:
        """Return the first generation, then offspring; no rows if no new genome can be bred."""
        if not self._algorithm.is_initialized:
            known, self._queue = self._queue, self._queue[:0]
            return np.concatenate([known, self._fill(max(self._settings.population - len(known), 0))])
        offspring = self._algorithm.ask()
        if offspring is None:  # every child is already in the population of a small discrete space
            return np.empty((0, len(self._space.genes)))
        return round_integers(self._space, self._space.from_unit(offspring.get("X")))

    def _fill(self, count: int) -> Genomes:
        """Return `count` genomes spread over the box, with few of the initial bits flipped, different ones in each."""
        genomes = latin_hypercube(self._space, count, self._filler)
        bits = np.flatnonzero([gene.kind == "bit" for gene in self._space.genes])
        if len(bits):
            seen = {self._space.initial[bits].tobytes()}
            for genome in genomes:
                flipped = self._filler.random(len(bits)) < FLIPPED
                for bit in self._filler.permutation(len(bits)):
                    genome[bits] = np.where(flipped, 1 - self._space.initial[bits], self._space.initial[bits])
                    if genome[bits].tobytes() not in seen:
                        break
                    flipped[bit] = True
                seen.add(genome[bits].tobytes())
        return genomes

    def learn(self, genomes: Genomes, means: Means, evaluations: Sequence[Evaluation]) -> None:
        """Select the survivors among parents and offspring."""
        evaluated = Population.new(X=self._space.to_unit(genomes))
        Evaluator().eval(StaticProblem(self._problem, F=-means), evaluated)
        self._algorithm.tell(infills=evaluated)


def _algorithm(space: SearchSpace, objectives: int, settings: NsgaSettings) -> Any:
    choices = np.flatnonzero([gene.kind in ("choice", "bit") for gene in space.genes])
    options = space.upper[choices] + 1
    operators = {"mutation": _Mutation(choices, options), "repair": _Rounding(space), "output": None}
    size = settings.population
    if settings.kind == "nsga2":
        return NSGA2(pop_size=size, crossover=_Crossover(choices, eta=15, prob=0.9), **operators)
    directions = reference_directions(objectives, size)
    return NSGA3(directions, pop_size=size, crossover=_Crossover(choices, eta=30, prob=1.0), **operators)


def reference_directions(objectives: int, population: int) -> NDArray[np.float64]:
    """Return at most `population` directions over the unit simplex, `(directions, objectives)`.

    The lattice of Das & Dennis (1998), as fine as the population allows. If it has no point inside of the simplex, a second
    layer half-way to the centre is added (Deb & Jain 2014). Raises `DriverError` for fewer candidates than objectives.
    """
    outer = _partitions(objectives, population)
    if outer == 0:
        msg = f"driver `nsga3`: `population` is {population}; expected {objectives} or more (the objectives)"
        raise DriverError(msg)
    layers = [get_reference_directions("das-dennis", objectives, n_partitions=outer)]
    inner = min(_partitions(objectives, population - len(layers[0])), outer)
    if outer < objectives and inner > 0:
        layers.append(get_reference_directions("das-dennis", objectives, n_partitions=inner, scaling=0.5))
    return np.concatenate(layers)


def _partitions(objectives: int, points: int) -> int:
    """Return the number of parts into which each axis can be cut such that the lattice has at most `points` points."""
    return next(count for count in itertools.count() if math.comb(count + objectives, objectives - 1) > points)


class _Crossover(SBX):  # type: ignore[misc]  # pymoo has no types
    """Simulated binary crossover, but uniform crossover of choices and bits."""

    def __init__(self, choices: NDArray[np.intp], **settings: float) -> None:
        super().__init__(**settings)
        self._choices = choices

    def _do(self, problem: Any, X: Genomes, *, random_state: Any, **kwargs: Any) -> Genomes:  # noqa: N803  # its name in pymoo
        children: Genomes = super()._do(problem, X, random_state=random_state, **kwargs)
        if len(self._choices):
            parents = X[:, :, self._choices]
            uniform = UX()._do(problem, parents, random_state=random_state)  # noqa: SLF001  # what pymoo's own `do` calls
            children[:, :, self._choices] = uniform
        return children


class _Mutation(PM):  # type: ignore[misc]  # pymoo has no types
    """Polynomial mutation, but a random option for choices and bits; each gene with probability min(1/2, 1/genes)."""

    def __init__(self, choices: NDArray[np.intp], options: Genomes) -> None:
        super().__init__(eta=20)
        self._choices = choices
        self._options = options

    def _do(self, problem: Any, X: Genomes, *, random_state: Any, **kwargs: Any) -> Genomes:  # noqa: N803  # its name in pymoo
        mutants: Genomes = super()._do(problem, X, random_state=random_state, **kwargs)
        if len(self._choices):
            parents = X[:, self._choices]
            hit = random_state.random(parents.shape) < min(0.5, 1 / problem.n_var)
            drawn = np.floor(random_state.random(parents.shape) * self._options) / (self._options - 1)
            mutants[:, self._choices] = np.where(hit, drawn, parents)
        return mutants


class _Rounding(Repair):  # type: ignore[misc]  # pymoo has no types
    """Rounds int, choice and bit genes, so that pymoo removes children with the same recipe."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self._space = space

    def _do(self, problem: Any, X: Genomes, **kwargs: Any) -> Genomes:  # noqa: N803  # its name in pymoo
        return self._space.to_unit(round_integers(self._space, self._space.from_unit(X)))
