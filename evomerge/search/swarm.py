"""Model Swarms (Feng et al., arXiv 2410.11163): particle swarm optimisation (Kennedy & Eberhart 1995) of model weights.

There a particle is a model, and each step adds differences of models to it. So all particles are affine combinations of the
experts that they start from, and a swarm over one weight for each expert, as in the space `model_swarm`, takes the same steps
in weight space; what a particle's weights are is made anew of the experts, and no rounding adds up. Over other spaces it is
the same rule on their genes, along the logarithm where a gene is on a log scale.

The paper moves all particles at once, when all have been evaluated. Here a particle moves as soon as its own evaluation has
come, by the bests that are known then, and nobody waits for the slowest: the order in which evaluations arrive matters. And
there is a box, the space's, into which positions are clipped.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from evomerge.errors import DriverError
from evomerge.search.driver import Genomes, known_recipes, latin_hypercube, propose, read_weights
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Proposal


class SwarmSettings(BaseModel):
    """`driver:` of a study that searches by a swarm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["swarm"] = "swarm"
    seed_known: bool | Literal["experts"] = True
    """Start at the known recipes (base, each expert, mean), as in the paper at the `experts` alone, or at random points."""
    particles: int = Field(default=20, ge=2)
    """How many; all known recipes start, if they are more. With fewer particles than slots, slots are idle."""
    inertia: float = Field(default=0.4, ge=0)
    """φ_v, how much a particle goes on as it went."""
    cognitive: float = Field(default=0.3, ge=0)
    """φ_p, how much it is drawn to its own best."""
    social: float = Field(default=0.3, ge=0)
    """φ_g, how much it is drawn to the best of all."""
    repel: float = Field(default=0.3, ge=0)
    """φ_w, how much it is driven away from the worst of all."""
    worst: Literal["all_time", "current"] = "all_time"
    """The worst that there ever was (paper), which repels for ever, or the worst of where the particles are now."""
    step: float = Field(default=1.0, gt=0)
    """λ of a particle's first move, in velocities."""
    decay: float = Field(default=0.95, gt=0, le=1)
    """By what λ is multiplied after each of its moves."""
    least_step: float = Field(default=0.1, ge=0)
    """λ becomes no smaller."""
    restart: int = Field(default=6, ge=1)
    """After so many evaluations without a better one a particle moves from its own best, without velocity, until it has a
    better one. The paper's 0.67 · 10, which count the best as well."""
    patience: int | None = Field(default=None, ge=1)
    """End the search when the best of all has stayed the same for so many evaluations of each particle. The paper's is 10;
    by default the budget is used up."""
    weights: dict[str, float] | None = None
    """Objective → weight in the mean that is maximised; those left out weigh 0. Default: equal weights."""


@dataclass(slots=True)
class _Particle:
    """Positions and velocities are in the unit cube, `(genes,)`."""

    position: Genome
    velocity: Genome
    moves: int = 0
    best: Genome | None = None  # None before an evaluation has succeeded
    value: float = -np.inf  # at `best`
    stale: int = 0  # evaluations since `best`
    failed: bool = False  # the last evaluation did
    seen: tuple[float, Genome] | None = None  # value and position of the last evaluation that succeeded


class Swarm:
    """A `Driver` of particles that move by what they, and all, have found so far.

    With shares c = r·φ, each r uniform in (0, 1] and drawn anew for each move, and C = c_v + c_p + c_g + c_w:

        v ← [c_v v + c_p (p - x) + c_g (g - x) + c_w (x - w)] / C
        x ← x + λ v, clipped into the box

    of a particle at x with its own best p, the best g and the worst w of all, as in the released code. Particles that
    do not start at a known recipe start at u a + (1 - u) b, of two known recipes a and b and u uniform in [0, 2); with fewer
    than two, anywhere in the box. The first velocity is the way to another particle's start.

    What failed is neither best nor worst: the particle goes on from its own best, without velocity, and one that has none
    yet starts again as above. Several objectives are made one by the weighted mean of their mean scores. Proposal n draws
    from the generator keyed by (seed, n).
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], seed: int, settings: SwarmSettings) -> None:
        """Put the particles into `space`. Raises `DriverError` for genes that are no floats and for bad weights."""
        for gene in space.genes:
            if gene.kind != "float":
                msg = (
                    f"driver `swarm` moves float genes alone, and `{gene.name}` is of kind {gene.kind}; "
                    "type one of its values in its place, or `kind: cma`"
                )
                raise DriverError(msg)
        self._pulls = np.array([settings.inertia, settings.cognitive, settings.social, settings.repel])
        if not self._pulls.any():
            msg = (
                "driver `swarm`: `inertia`, `cognitive`, `social` and `repel` are all 0; expected at least one above 0"
            )
            raise DriverError(msg)
        self._space = space
        self._objectives = tuple(objectives)
        self._weights = read_weights(objectives, settings.weights)
        self._seed = seed
        self._settings = settings
        self._known = _known(space, settings.seed_known)
        self._sources = space.to_unit(self._known)
        count = max(settings.particles, len(self._known))
        generators = [self._generator(number) for number in range(count)]
        self._starts = np.array([self._start(number, rng) for number, rng in enumerate(generators)])
        self._particles = [
            _Particle(self._starts[number], self._way(number, self._starts[number], rng))
            for number, rng in enumerate(generators)
        ]
        self._asked = 0
        self._flying: dict[int, int] = {}  # number of the proposal → whose it is
        self._ready: deque[int] = deque()  # whose evaluations have come, in their order
        self._best: tuple[float, Genome] | None = None
        self._worst: tuple[float, Genome] | None = None
        self._stale = 0  # evaluations since the best of all

    def __str__(self) -> str:
        ends = f", until {self._settings.patience} rounds bring nothing better" if self._settings.patience else ""
        return f"particle swarm (Model Swarms), {len(self._particles)} particles, from {len(self._known)} known recipes{ends}"

    def ask(self) -> Proposal | None:
        """Return where the next particle starts or goes, or None while all are being evaluated or the search is over."""
        number = self._asked
        if number < len(self._particles):
            index = number
        elif self._ready and not self._over:
            index = self._ready.popleft()
            self._move(index, self._generator(number))
        else:
            return None
        self._asked += 1
        self._flying[number] = index
        known = self._known[number] if number < len(self._known) else None
        genome = self._space.from_unit(self._particles[index].position) if known is None else known
        return propose(self._space, number, genome)

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Learn what the particle found: it may then move on.

        Raises `DriverError` for a proposal that is not in flight.
        """
        if proposal.number not in self._flying:
            msg = f"proposal {proposal.number} is not in flight; expected one of {sorted(self._flying)}, each told once"
            raise DriverError(msg)
        index = self._flying.pop(proposal.number)
        self._ready.append(index)
        particle = self._particles[index]
        means = evaluation.means(self._objectives)
        particle.failed = not np.isfinite(means).all()
        particle.stale += 1
        self._stale += 1
        if particle.failed:
            return
        value, position = float((means * self._weights).sum()), particle.position
        particle.seen = value, position
        if particle.best is None or value > particle.value:
            particle.best, particle.value, particle.stale = position, value, 0
        if self._best is None or value > self._best[0]:
            self._best, self._stale = (value, position), 0
        if self._worst is None or value < self._worst[0]:
            self._worst = value, position

    def members(self) -> tuple[str, ...]:
        """Return nothing: a particle is made of its genome alone."""
        return ()

    # -- inside --------------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        patience = self._settings.patience
        return patience is not None and self._best is not None and self._stale >= patience * len(self._particles)

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self._seed, number]))

    def _start(self, number: int, rng: np.random.Generator) -> Genome:
        """Return a known recipe's position, or one made of two of them."""
        if number < len(self._sources):
            known: Genome = self._sources[number]
            return known
        if len(self._sources) < 2:
            return self._space.to_unit(latin_hypercube(self._space, 1, rng)[0])
        one, other = rng.choice(len(self._sources), 2, replace=False)
        share = 2 * rng.random()  # half of the time beyond one of the two
        child: Genome = np.clip(share * self._sources[one] + (1 - share) * self._sources[other], 0, 1)
        return child

    def _way(self, index: int, start: Genome, rng: np.random.Generator) -> Genome:
        """Return the way of the particle `index` from `start` to where another one started."""
        other = int(rng.integers(len(self._starts) - 1))
        way: Genome = self._starts[other + (other >= index)] - start
        return way

    def _move(self, index: int, rng: np.random.Generator) -> None:
        settings, particle = self._settings, self._particles[index]
        if particle.best is None or self._best is None:
            particle.position = self._start(len(self._starts), rng)
            particle.velocity = self._way(index, particle.position, rng)
            return
        if particle.failed or particle.stale >= settings.restart:
            particle.position, particle.velocity = particle.best, np.zeros_like(particle.best)
        shares = self._pulls * (1 - rng.random(4))
        particle.velocity = steer(
            shares, particle.velocity, particle.position, particle.best, self._best[1], self._repellent()
        )
        step = max(settings.step * settings.decay**particle.moves, settings.least_step)
        particle.position = np.clip(particle.position + step * particle.velocity, 0, 1)
        particle.moves += 1

    def _repellent(self) -> Genome:
        """Return the worst position, by the settings."""
        worst = self._worst
        if self._settings.worst == "current":
            seen = [particle.seen for particle in self._particles if particle.seen is not None]
            worst = min(seen, key=lambda pair: pair[0])
        assert worst is not None  # somebody has succeeded
        return worst[1]


def steer(
    shares: NDArray[np.float64], velocity: Genome, position: Genome, own: Genome, best: Genome, worst: Genome
) -> Genome:
    """Return the new velocity, `(genes,)`: a mean weighted by the four `shares`, 0 or more and not all 0.

    It is of the old velocity, of the ways to the `own` best and to the `best` of all, and of the way here from the `worst`.
    """
    ways = np.array([velocity, own - position, best - position, position - worst])
    new: Genome = (shares[:, None] * ways).sum(axis=0) / shares.sum()
    return new


def _known(space: SearchSpace, which: bool | Literal["experts"]) -> Genomes:
    """Return the genomes at which particles start, `(known, genes)`. Raises `DriverError`."""
    if which == "experts":
        found = [genome for name, genome in space.landmarks().items() if name.startswith("expert ")]
        if len(found) < 2:
            msg = f"driver `swarm` `seed_known: experts`: the space has {len(found)} experts among its points; type `true`"
            raise DriverError(msg)
        return np.array(found)
    return known_recipes(space) if which else np.empty((0, len(space.genes)))
