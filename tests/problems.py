"""Search problems on genomes that only tests need."""

import numpy as np

from evomerge.space import SearchSpace
from evomerge.testing import Problem


def bits(*, scaled=False):
    """Which of two experts' twelve layers to go through, optimal at seven that begin as the initial path does.

    Two objectives, the share of each expert's bits that are right; with `scaled`, less how far its scales are from 1.2.
    """
    path = {"sources": "experts", "include": {"bit": "first", "per": ["slot"]}}
    if scaled:
        path["scale"] = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    space = SearchSpace({"stack": {"rest": "base", "path": path}}, experts=("left", "right"), blocks=6)
    wanted = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1.0])

    def score(genome):
        right = (genome[:12] == wanted).reshape(2, 6).mean(axis=1)
        return right - (np.abs(genome[12:] - 1.2).reshape(2, 6).mean(axis=1) if scaled else 0)

    return Problem(space, ("left", "right"), score, np.full(2, -1.0), 4.0)
