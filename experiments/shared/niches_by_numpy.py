"""Natural niches from scratch as one loop of numpy over one matrix, for one network only: a peer, to the result and to the time.

Written from the paper's equations and the released code's constants (arXiv 2508.16204), without anything of evomerge. Nothing
is recorded, so nothing could go on after a stop.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

INPUTS, HIDDEN, CLASSES = 64, 256, 10
ENDS = np.cumsum([INPUTS * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES])
MEMBERS, SIGMA = 20, 0.01


def right(weights: NDArray[np.float32], images: Images, labels: Labels) -> NDArray[np.bool_]:
    """Return which images a network with these weights, one after the other, tells right, `(images,)`."""
    first, bias, second, last = np.split(weights, ENDS[:-1])
    hidden = np.maximum(images @ first.reshape(INPUTS, HIDDEN) + bias, 0)
    found: NDArray[np.bool_] = (hidden @ second.reshape(HIDDEN, CLASSES) + last).argmax(1) == labels
    return found


def search(
    images: Images, labels: Labels, seed: int, evaluations: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield each candidate's weights, and which images it tells right."""
    rng = np.random.default_rng(seed)
    members = np.zeros((MEMBERS + 1, ENDS[-1]), np.float32)
    scores = np.zeros((MEMBERS + 1, len(images)))
    for number in range(evaluations):
        if number < 2:
            child = SIGMA * rng.standard_normal(ENDS[-1])
        else:
            child = crossed(members[:MEMBERS], scores[:MEMBERS], rng) + SIGMA * rng.standard_normal(ENDS[-1])
        members[-1] = child
        found = right(members[-1], images, labels)
        yield members[-1], found
        scores[-1] = found
        worst = number if number < 2 else int(shares(scores).sum(1).argmin())
        members[worst], scores[worst] = members[-1], scores[-1]


def shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each member's share of each image, which is split among all who tell it right."""
    total = scores.sum(0)
    divided: NDArray[np.float64] = scores / np.where(total > 0, total, 1)
    return divided


def crossed(members: NDArray[np.float32], scores: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the child of a member drawn by fitness and one drawn by attraction, before its mutation."""
    divided = shares(scores)
    fitness = divided.sum(1)
    mother = rng.choice(MEMBERS, p=fitness / fitness.sum())
    pull = np.maximum(divided - divided[mother], 0).sum(1)
    father = rng.choice(MEMBERS, p=pull / pull.sum()) if pull.any() else rng.choice(MEMBERS, p=fitness / fitness.sum())
    split, t = rng.integers(members.shape[1]), rng.random()
    return slerp(members[mother], members[father], int(split), t)


def slerp(one: NDArray[np.float32], other: NDArray[np.float32], split: int, t: float) -> NDArray[np.float32]:
    """Return the point at the share t of the arc between two members, and at 1 - t from the weight number `split` on."""
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    angle = np.arccos(np.clip(cosine, -1, 1))
    at = np.where(np.arange(len(one)) < split, t, 1 - t)
    if np.sin(angle) <= 1e-6:
        straight: NDArray[np.float32] = (1 - at) * one + at * other
        return straight
    child: NDArray[np.float32] = (np.sin((1 - at) * angle) * one + np.sin(at * angle) * other) / np.sin(angle)
    return child
