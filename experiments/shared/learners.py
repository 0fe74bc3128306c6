"""Learners that train side by side, each on examples of its own, and average their weights with each other now and then.

Averages *during* the training are products with a matrix, as the literature of gossip has them. Merges of what it leaves are evomerge's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from shared.deep_perceptron import start
from shared.perceptron import CLASSES
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

LEARNERS = 16
LEAST = 8
"""Examples that each learner has at least."""
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
BATCH = 16
ROUND = 10
"""Steps between two communications."""
ONE_OF = 5
"""One of so many rounds has communication, `early`, `evenly` or `late`."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """When and how learners communicate."""

    by: str = "pairs"
    """`pairs`: each averages with one other; `server`: all are averaged."""
    rounds: Callable[[int], range] | None = None
    """(number of rounds) → those, from 0, after which they do; None for after each single step."""
    shared: bool = True
    """Whether they start from one initialisation."""
    concentration: float = 0.1
    """Of the Dirichlet distribution by which classes are divided: the smaller, the more are a class's digits at few learners."""

    def steps(self, total: int) -> set[int]:
        """Return the steps, from 1, after which learners communicate, of `total`."""
        if self.rounds is None:
            return set(range(1, total + 1))
        return {ROUND * (number + 1) for number in self.rounds(total // ROUND)}


WHEN: Mapping[str, Callable[[int], range]] = {
    "never": lambda _: range(0),
    "early": lambda rounds: range(rounds // ONE_OF),
    "evenly": lambda rounds: range(ONE_OF - 1, rounds, ONE_OF),
    "late": lambda rounds: range(rounds - rounds // ONE_OF, rounds),
    "each round": range,
}


def shares(labels: Tensor, concentration: float, seed: int) -> list[Tensor]:
    """Return the rows of each learner: each class is divided by a draw from a Dirichlet distribution; at least `LEAST` rows each."""
    random = np.random.default_rng(seed)
    while True:
        owner = np.empty(len(labels), dtype=np.int64)
        for one in range(CLASSES):
            rows = random.permutation(np.flatnonzero(labels.numpy() == one))
            ends = np.cumsum(random.dirichlet([concentration] * LEARNERS))[:-1] * len(rows)
            for learner, some in enumerate(np.split(rows, ends.astype(int))):
                owner[some] = learner
        owned = [torch.from_numpy(np.flatnonzero(owner == learner)) for learner in range(LEARNERS)]
        if min(map(len, owned)) >= LEAST:
            return owned


def mixing(by: str, drawn: torch.Generator) -> Tensor:
    """Return the matrix `(N, N)` by which weights are averaged, rows and columns with a sum of 1."""
    if by == "server":
        return torch.full((LEARNERS, LEARNERS), 1 / LEARNERS)
    matrix = torch.eye(LEARNERS) / 2
    for one, other in torch.randperm(LEARNERS, generator=drawn).view(-1, 2).tolist():
        matrix[one, other] = matrix[other, one] = 0.5
    return matrix


def sent(by: str, nbytes: int) -> int:
    """Return the bytes of one communication: each learner sends its model, of so many bytes, and a server sends each the mean."""
    return LEARNERS * nbytes * (2 if by == "server" else 1)


def train(
    width: int,
    seed: int,
    schedule: Schedule,
    owned: Sequence[Tensor],
    data: tuple[Tensor, Tensor],
    steps: int,
    kept: set[int],
) -> dict[int, list[State]]:
    """Train all learners at once, by SGD; return their weights after the steps to keep."""
    images, labels = data
    starts = [start(width, 100 * seed + (0 if schedule.shared else learner)) for learner in range(LEARNERS)]
    weights = {
        name: torch.stack([dict(one.named_parameters())[name].detach() for one in starts])
        for name, _ in starts[0].named_parameters()
    }
    speeds = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    slopes = vmap(grad(lambda state, x, y: cross_entropy(functional_call(starts[0], state, (x,)), y)))
    padded = torch.nn.utils.rnn.pad_sequence(list(owned), batch_first=True)
    sizes = torch.tensor([[len(rows)] for rows in owned])
    batches, pairs = (torch.Generator().manual_seed(10 * seed + i) for i in range(2))
    when, found = schedule.steps(steps), {}
    for step in range(1, steps + 1):
        drawn = (torch.rand((LEARNERS, BATCH), generator=batches) * sizes).long()
        rows = padded.gather(1, drawn)
        for name, slope in slopes(weights, images[rows], labels[rows]).items():
            speeds[name] = MOMENTUM * speeds[name] + slope + DECAY * weights[name]
            weights[name] = weights[name] - RATE * speeds[name]
        if step in when:
            matrix = mixing(schedule.by, pairs)
            weights = {name: torch.tensordot(matrix, tensor, 1) for name, tensor in weights.items()}
        if step in kept:
            found[step] = [{name: tensor[learner] for name, tensor in weights.items()} for learner in range(LEARNERS)]
    return found
