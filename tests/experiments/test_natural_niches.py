"""M2N2 by a study against the plain numpy loop, which has nothing of evomerge: children, scores, and who stays in the archive."""

import json

import natural_niches
import numpy as np
import pytest
import torch
from shared import niches_by_numpy, perceptron
from shared.harness import Switches
from shared.niches_by_numpy import MEMBERS, SIGMA

from evomerge.merging.randomness import noise, own_key
from evomerge.merging.site import INDICES
from evomerge.study import Study

pytest.importorskip("sklearn")
EVALUATIONS = 150


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    """Return the candidates of a study from scratch, and the weights of its two seeds."""
    folder = tmp_path_factory.mktemp("niches")
    seeds = {name: natural_niches.random_model(0, i) for i, name in enumerate(("one", "two"))}
    natural_niches.write_pool(folder, seeds)
    driver, space = natural_niches.DRIVERS["natural niches"], natural_niches.crossing(noise=True)
    natural_niches.search(folder, "niches", driver, space, 0, EVALUATIONS)
    found = Study.open(folder / "studies" / "niches").population()
    return found, {name: module.weights.detach().numpy() for name, module in seeds.items()}


def test_a_study_makes_the_children_and_keeps_the_members_of_the_plain_loop(population):
    completed, seeds = population
    images, labels = (tensor.numpy() for tensor in perceptron.digits()["train"])
    index = torch.arange(len(seeds["one"]), dtype=torch.int32) - INDICES // 2
    weights, members = {}, []
    scores = np.zeros((MEMBERS + 1, len(images)))
    places = []  # of each draw, in [0, 1]: where it lies in the plain loop's distribution
    for proposal, evaluation in completed:
        recipe = proposal.recipe.data
        if "expert" in recipe:
            child = seeds[recipe["expert"]]
        else:
            merge = recipe["merge"]
            mother, father = (entry["member"] for entry in merge["inputs"])
            shares = niches_by_numpy.shares(scores[:MEMBERS])
            one, other = members.index(mother), members.index(father)
            pull = np.maximum(shares - shares[one], 0).sum(1)
            places += [middle(shares.sum(1), one), middle(pull, other)]
            stage = merge["stages"]["weigh"][0]["split_slerp"]
            split = int(stage["split"] * len(index))
            child = niches_by_numpy.slerp(weights[mother], weights[father], split, stage["t"])
            child = child + SIGMA * noise(index, own_key(merge["seed"], "noise", "weights")).numpy()
        identity = proposal.recipe.id
        weights[identity] = child.astype(np.float32)
        scores[-1] = evaluation.scores["digits/accuracy"]
        right = niches_by_numpy.right(weights[identity], images, labels)
        assert (right != scores[-1]).sum() <= 2  # of 1,437; logits that are equal but for rounding
        worst = len(members) if len(members) < MEMBERS else int(niches_by_numpy.shares(scores).sum(1).argmin())
        scores[worst] = scores[-1]
        members[worst : worst + 1] = [identity] if worst < MEMBERS else []
    assert len(members) == MEMBERS
    assert len(completed) == EVALUATIONS
    assert abs(np.mean(places) - 0.5) < 4 / np.sqrt(12 * len(places))
    assert abs(12 * np.var(places) - 1) < 0.25


def middle(weights, chosen):
    """Return the middle of the part of [0, 1] that a draw by `weights` has for `chosen`, whose weight must be above 0."""
    ends = np.cumsum(weights / weights.sum())
    assert weights[chosen] > 0
    return ends[chosen] - weights[chosen] / weights.sum() / 2


def test_rows_of_other_methods_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(natural_niches, "STUDIES", tmp_path / "studies")

    def measured(*parts, evaluations=3):
        found = natural_niches.measure(
            Switches(smoke=False, seeds=(0,), json=False, evaluations=evaluations, parts=parts, out=tmp_path)
        )
        (tmp_path / "natural_niches.json").write_text(json.dumps({"figures": dict(found.figures)}))
        return [row["method"] for row in found.figures["rows"]], found.table

    assert measured(natural_niches.CMA)[0] == [natural_niches.CMA]
    methods, table = measured(natural_niches.NUMPY)
    assert methods == [natural_niches.NUMPY, natural_niches.CMA]
    assert "natural niches in plain numpy, from scratch: 1 of 1 stalled, 100% [" in table
    assert measured(natural_niches.CMA, evaluations=4)[0] == [natural_niches.CMA]
