"""Genes: importance and slices of functions whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from evomerge.errors import SurrogateError
from evomerge.recipe import base
from evomerge.space import Box
from evomerge.trial import Evaluation, Metric, Proposal
from evomerge.view import genes


def study(function, count=30, names=("a", "b", "c")):
    """Return the parts and the evaluations of a search of one task, whose score is `function(genomes)` on each of three examples."""
    space = Box(dict.fromkeys(names, (0.0, 1.0)))
    points = np.random.default_rng(0).random((count, len(names)))
    task = SimpleNamespace(search_metric="score", metrics={"score": Metric("score")})
    parts = SimpleNamespace(space=space, tasks={"t": task})
    scores = function(points)[:, None] + np.array([-0.1, 0.0, 0.1])
    evaluated = [
        (Proposal(i, base(), point), Evaluation({"t/score": row.astype(np.float32)}))
        for i, (point, row) in enumerate(zip(points, scores, strict=True))
    ]
    return parts, evaluated


def test_importance_is_the_share_of_the_variance():
    # For 3a + b with uniform genes the variances are 9/12 and 1/12: shares of 0.9 and 0.1.
    parts, evaluated = study(lambda x: 3 * x[:, 0] + x[:, 1])
    shares = np.array(genes.importance(parts, evaluated, genes.fits(parts, evaluated))["t"])
    assert shares[:, 0] == pytest.approx([0.9, 0.1, 0.0], abs=0.03)
    assert (shares[:, 1] <= shares[:, 0]).all()
    assert (shares[:, 0] <= shares[:, 2]).all()


def test_the_interval_is_wide_where_candidates_tell_little():
    noise = np.random.default_rng(1)
    parts, evaluated = study(lambda x: 3 * x[:, 0] + noise.normal(0, 1, len(x)), count=14)
    [[_, low, high], *_] = genes.importance(parts, evaluated, genes.fits(parts, evaluated))["t"]
    quiet, known = study(lambda x: 3 * x[:, 0], count=30)
    [[_, sure_low, sure_high], *_] = genes.importance(quiet, known, genes.fits(quiet, known))["t"]
    assert high - low > 2 * (sure_high - sure_low)


def test_a_slice_goes_through_the_candidate_and_follows_the_function():
    parts, evaluated = study(lambda x: 3 * x[:, 0] + x[:, 1])
    genome = np.array([0.5, 0.25, 0.75])
    first, second, third = genes.slices(parts, genes.fits(parts, evaluated), genome)
    assert [one["here"] for one in (first, second, third)] == genome.tolist()
    assert first["scores"]["t"]["mean"] == pytest.approx(3 * np.array(first["values"]) + 0.25, abs=0.05)
    assert second["scores"]["t"]["mean"] == pytest.approx(1.5 + np.array(second["values"]), abs=0.05)
    assert min(first["scores"]["t"]["half"]) > 0


def test_too_many_genes_or_too_few_candidates_are_refused_in_words():
    with pytest.raises(SurrogateError, match="41 genes are too many"):
        genes.fits(*study(lambda x: x[:, 0], names=[f"g{i}" for i in range(41)]))
    with pytest.raises(SurrogateError, match="4 candidates or more"):
        genes.fits(*study(lambda x: x[:, 0], count=3))


def test_an_objective_that_does_not_vary_has_no_surrogate():
    parts, evaluated = study(lambda x: 0 * x[:, 0])
    assert genes.fits(parts, evaluated) == {}
