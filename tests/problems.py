"""Search problems on genomes, for tests."""

import numpy as np

from evomerge.space import SearchSpace
from evomerge.testing import Problem


def bits(*, scaled=False):
    """Return the problem of which of two experts' twelve blocks to include; the optimum has seven and keeps the initial path.

    Two objectives: the share of correct bits of each expert; if `scaled`, minus the mean distance of its scales from 1.2.
    """
    path = {"sources": "experts", "include": {"bit": "first", "per": ["slot"]}}
    if scaled:
        path["scale"] = {"float": [0.5, 1.5], "init": 1, "per": ["slot"]}
    space = SearchSpace({"stack": {"rest": "base", "path": path}}, experts=("left", "right"), blocks=6)
    optimum = np.array([1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1.0])

    def score(genome):
        correct = (genome[:12] == optimum).reshape(2, 6).mean(axis=1)
        return correct - (np.abs(genome[12:] - 1.2).reshape(2, 6).mean(axis=1) if scaled else 0)

    return Problem(space, ("left", "right"), score, np.full(2, -1.0), 4.0)
