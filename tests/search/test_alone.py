"""Drivers search any function, without a study, a pool or a model."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from evomerge import search
from evomerge.errors import SpaceError
from evomerge.space import Box
from evomerge.trial import Evaluation


def quadratic(x, y):
    """Lowest, 0, at (1, -2)."""
    return ((x - 1) ** 2 + (y + 2) ** 2) / 10


@pytest.mark.parametrize(("kind", "budget", "reached"), [("cma", 200, 1e-6), ("tpe", 60, 0.1), ("front", 40, 1e-3)])
def test_function_is_minimised(kind, budget, reached):
    space = Box({"x": (-5, 5), "y": (-5, 5)})
    driver = search.make({"kind": kind}, space, ["score"], seed=0)
    lowest = np.inf
    for proposal in search.asks(driver, budget):
        value = quadratic(**space.values(proposal.genome))
        lowest = min(lowest, value)
        driver.tell(proposal, Evaluation.of({"score": -value}))
    assert lowest < reached


def test_front_of_two_functions_is_found():
    space = Box({"x": (-5, 5), "y": (-5, 5)})
    driver = search.make({"kind": "nsga2"}, space, ["left", "right"], seed=0)
    scores = []
    for proposal in search.asks(driver, budget=480):
        x, y = space.values(proposal.genome).values()
        scores.append([-(x**2 + y**2), -((x - 2) ** 2 + y**2)])  # best in turn along y = 0, 0 ≤ x ≤ 2
        driver.tell(proposal, Evaluation.of(dict(zip(("left", "right"), scores[-1], strict=True))))
    # Where the front meets its middle, x = 1, both are -1.
    assert max(min(pair) for pair in scores) > -1.1


@pytest.mark.parametrize("kind", ["cma", "random", "swarm"])
def test_several_proposals_may_be_pending(kind):
    space = Box({"x": (-5, 5), "y": (-5, 5)})
    driver = search.make({"kind": kind}, space, ["score"], seed=0)
    lowest = np.inf
    with ThreadPoolExecutor(4) as executor:
        for _ in range(30):
            batch = list(search.asks(driver, budget=4))
            values = executor.map(lambda proposal: quadratic(**space.values(proposal.genome)), batch)
            for proposal, value in zip(batch, values, strict=True):
                lowest = min(lowest, value)
                driver.tell(proposal, Evaluation.of({"score": -value}))
    assert lowest < 0.3


def test_values_are_those_of_every_kind_of_gene():
    space = Box(
        {"merge": (0, 1), "layers": {"int": [1, 8]}, "rate": {"float": [1e-4, 1], "log": True}, "norm": ["pre", "post"]}
    )
    assert space.values(space.initial) == {"merge": 0.5, "layers": 4, "rate": pytest.approx(0.01), "norm": "pre"}
    assert space.values(space.upper) == {"merge": 1.0, "layers": 8, "rate": 1.0, "norm": "post"}
    assert space.decode(space.upper).id == space.decode(space.upper + 1).id != space.decode(space.lower).id
    driver = search.make({"kind": "cma"}, space, ["score"], seed=0)
    for proposal in search.asks(driver, budget=40):
        values = space.values(proposal.genome)
        assert values["layers"] in range(1, 9)
        assert values["norm"] in ("pre", "post")
        driver.tell(proposal, Evaluation.of({"score": values["layers"]}))


@pytest.mark.parametrize(
    "genes", [{}, {"x": (1, 0)}, {"x": ["one"]}, {"x": 3}, {"x": {"flaot": [0, 1]}}, {"float": (0, 1)}]
)
def test_genes_are_checked(genes):
    with pytest.raises(SpaceError):
        Box(genes)


def test_scores_are_one_number_or_one_per_example_and_finite():
    assert Evaluation.of({"a": 1, "b": [0.5, 1.5]}).means(["a", "b"]).tolist() == [1.0, 1.0]
    for bad in (float("nan"), 1e99):
        assert Evaluation.of({"a": 1, "b": bad}).error == "the score `b` is not finite"
