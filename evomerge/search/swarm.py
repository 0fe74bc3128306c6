"""Model Swarms (Feng et al., arXiv 2410.11163): particle swarm optimisation (Kennedy & Eberhart 1995) of model weights.

In the paper a particle is a model, and each step adds differences of models to it. All particles are therefore affine
combinations of the initial experts, and a swarm over one weight per expert, as in the space `model_swarm`, takes the same steps;
each model is merged from the experts, so that rounding errors do not accumulate. In other spaces the same rule is applied to the
genes, or to their logarithms for genes on a log scale.

The paper updates all particles at once. Here a particle moves as soon as its own evaluation has arrived, by the bests so far, so
the order in which evaluations arrive changes the search. Positions are clipped to the space's box.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, check_in_flight, known_recipes, latin_hypercube, propose, read_weights
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Proposal


class SwarmSettings(BaseModel, extra="forbid", frozen=True):
    """`driver:` of a study with a particle swarm."""

    kind: Literal["swarm"] = "swarm"
    seed_known: bool | Literal["experts"] = True
    """Start at the known recipes (base, each expert, mean); at the `experts` only, as in the paper; or at random points."""
    particles: int = Field(default=20, ge=2)
    """Number of particles, at least that of the known recipes. With fewer particles than slots, slots are idle."""
    inertia: float = Field(default=0.4, ge=0)
    """φ_v, the inertia weight."""
    cognitive: float = Field(default=0.3, ge=0)
    """φ_p, the cognitive coefficient: attraction to the particle's best position (personal best)."""
    social: float = Field(default=0.3, ge=0)
    """φ_g, the social coefficient: attraction to the best position of all particles (global best)."""
    repel: float = Field(default=0.3, ge=0)
    """φ_w, the repel coefficient: repulsion from the worst position of all particles (global worst)."""
    worst: Literal["all_time", "current"] = "all_time"
    """Global worst: of all evaluations so far (paper), or of the particles' last ones."""
    step: float = Field(default=1.0, gt=0)
    """λ, the step length of a particle's first move, in velocities."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """Factor of λ after each move of the particle."""
    least_step: float = Field(default=0.1, ge=0)
    """Lower bound of λ."""
    restart: int = Field(default=6, ge=1)
    """Number of evaluations without a new personal best after which a particle moves from its personal best with velocity 0,
    until it improves. The paper's 0.67 · 10, where the best itself is counted as well."""
    patience: int | None = Field(default=None, ge=1)
    """End the search after so many evaluations per particle without a new global best. 10 in the paper; by default the search uses
    the full budget."""
    weights: dict[str, float] | None = None
    """Objective → weight in the mean that is maximised; 0 for missing ones. Default: equal weights."""


@dataclass(slots=True)
class _Particle:
    """A particle, with positions and velocities in unit coordinates, `(genes,)`."""

    position: Genome
    velocity: Genome
    moves: int = 0
    best: Genome | None = None  # personal best; None before the first success
    value: float = -np.inf  # at `best`
    stale: int = 0  # evaluations since `best`
    failed: bool = False  # whether the last evaluation failed
    latest: tuple[float, Genome] | None = None  # value and position of the last success


class Swarm:
    """A `Driver`: a particle swarm with asynchronous updates.

    With c = r·φ, each r uniform in (0, 1] and drawn anew for each move, and C = c_v + c_p + c_g + c_w:

        v ← [c_v v + c_p (p - x) + c_g (g - x) + c_w (x - w)] / C
        x ← x + λ v, clipped to the box

    for a particle at x with personal best p, global best g and global worst w, as in the released code. Particles that do not
    start at a known recipe start at u a + (1 - u) b, for two known recipes a and b and u uniform in [0, 2); with fewer than
    two known recipes, uniformly in the box. The initial velocity is the difference to another particle's start.

    Failed evaluations are neither best nor worst: the particle continues from its personal best with velocity 0, or from a new
    start if it has none. Several objectives are combined by the weighted mean of their mean scores. Proposal n draws from
    the generator keyed by (seed, n).
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: SwarmSettings) -> None:
        """Initialise the particles in `space`. Raises `DriverError` for genes other than floats and for invalid weights."""
        for gene in space.genes:
            if gene.kind != "float":
                raise DriverError(
                    f"driver `swarm` supports float genes only, and `{gene.name}` is of kind {gene.kind}; "
                    "type one of its values in its place, or `kind: cma`"
                )
        self._coefficients = np.array([settings.inertia, settings.cognitive, settings.social, settings.repel])
        if not self._coefficients.any():
            raise DriverError(
                "driver `swarm`: `inertia`, `cognitive`, `social` and `repel` are all 0; expected at least one above 0"
            )
        self._space = space
        self._objectives = tuple(objectives)
        self._weights = read_weights(objectives, settings.weights)
        self._seed = seed
        self._settings = settings
        self._known = _known(space, settings.seed_known)
        self._sources = space.to_unit(self._known)
        count = max(settings.particles, len(self._known))
        generators = [self._generator(number) for number in range(count)]
        drawn = [self._start(rng) for rng in generators[len(self._sources) :]]
        self._starts = np.array([*self._sources, *drawn])
        self._particles = [
            _Particle(start, self._first_velocity(index, start, generators[index]))
            for index, start in enumerate(self._starts)
        ]
        self._asked = 0
        self._pending: dict[int, int] = {}  # number of the proposal → index of its particle
        self._ready: deque[int] = deque()  # particles with a new evaluation, in order of arrival
        self._best: tuple[float, Genome] | None = None  # value and position of the global best
        self._worst: tuple[float, Genome] | None = None
        self._stale = 0  # evaluations since the global best

    def __str__(self) -> str:
        ends = f", until {self._settings.patience} rounds bring nothing better" if self._settings.patience else ""
        return f"particle swarm (Model Swarms), {len(self._particles)} particles, from {len(self._known)} known recipes{ends}"

    def ask(self) -> Proposal | None:
        """Return the next particle's start or move, or None while all are being evaluated or the search is over."""
        number, patience = self._asked, self._settings.patience
        over = patience and self._best and self._stale >= patience * len(self._particles)
        if number < len(self._particles):
            index = number
        elif self._ready and not over:
            index = self._ready.popleft()
            self._move(index, self._generator(number))
        else:
            return None
        self._asked += 1
        self._pending[number] = index
        if number < len(self._known):
            return propose(self._space, number, self._known[number])
        return propose(self._space, number, self._space.from_unit(self._particles[index].position))

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Update the bests and the worst. Raises `DriverError` for a proposal that is not in flight."""
        check_in_flight(proposal, self._pending)
        index = self._pending.pop(proposal.number)
        self._ready.append(index)
        particle = self._particles[index]
        means = evaluation.means(self._objectives)
        particle.failed = not np.isfinite(means).all()
        particle.stale += 1
        self._stale += 1
        if particle.failed:
            return
        value, position = float((means * self._weights).sum()), particle.position
        particle.latest = value, position
        if particle.best is None or value > particle.value:
            particle.best, particle.value, particle.stale = position, value, 0
        if self._best is None or value > self._best[0]:
            self._best, self._stale = (value, position), 0
        if self._worst is None or value < self._worst[0]:
            self._worst = value, position

    def members(self) -> tuple[str, ...]:
        """Return nothing: a candidate is made of its genome alone."""
        return ()

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, number]))

    def _start(self, rng: np.random.Generator) -> Genome:
        """Return a random combination of two known recipes, or a random position."""
        if len(self._sources) < 2:
            return self._space.to_unit(latin_hypercube(self._space, 1, rng)[0])
        one, other = rng.choice(len(self._sources), 2, replace=False)
        share = 2 * rng.random()  # above 1, an extrapolation, half of the time
        return np.asarray(np.clip(share * self._sources[one] + (1 - share) * self._sources[other], 0, 1))

    def _first_velocity(self, index: int, start: Genome, rng: np.random.Generator) -> Genome:
        """Return the difference from `start`, of the particle `index`, to another particle's start."""
        other = int(rng.integers(len(self._starts) - 1))
        return np.asarray(self._starts[other + (other >= index)] - start)

    def _move(self, index: int, rng: np.random.Generator) -> None:
        settings, particle = self._settings, self._particles[index]
        if particle.best is None or self._best is None or self._worst is None:
            particle.position = self._start(rng)
            particle.velocity = self._first_velocity(index, particle.position, rng)
            return
        if particle.failed or particle.stale >= settings.restart:
            particle.position, particle.velocity = particle.best, np.zeros_like(particle.best)
        worst = self._worst
        if settings.worst == "current":
            latest = [particle.latest for particle in self._particles if particle.latest is not None]
            worst = min(latest, key=lambda pair: pair[0])
        weights = self._coefficients * (1 - rng.random(4))
        particle.velocity = steer(weights, particle.velocity, particle.position, particle.best, self._best[1], worst[1])
        step = max(settings.step * settings.decay**particle.moves, settings.least_step)
        particle.position = np.clip(particle.position + step * particle.velocity, 0, 1)
        particle.moves += 1


def steer(
    weights: NDArray[np.float64], velocity: Genome, position: Genome, personal: Genome, best: Genome, worst: Genome
) -> Genome:
    """Return the new velocity, `(genes,)`: the mean of `Swarm` with four `weights`, 0 or more and not all 0."""
    terms = np.array([velocity, personal - position, best - position, position - worst])
    return np.asarray((weights[:, None] * terms).sum(axis=0) / weights.sum())


def _known(space: SearchSpace, which: bool | Literal["experts"]) -> Genomes:
    """Return the genomes of the known recipes, `(known, genes)`. Raises `DriverError`."""
    if which == "experts":
        experts = [genome for name, genome in space.landmarks().items() if name.startswith("expert ")]
        if len(experts) < 2:
            msg = f"driver `swarm` `seed_known: experts`: the space contains {len(experts)} experts, expected 2 or more; type `true`"
            raise DriverError(msg)
        return np.array(experts)
    return known_recipes(space) if which else np.empty((0, len(space.genes)))
