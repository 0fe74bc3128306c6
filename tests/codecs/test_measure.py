"""What a codec loses: distances, and the choice of λ."""

import math

import pytest

from evomerge.checkpoints.pool import Pool
from evomerge.codecs.compression import choose_lambdas, fidelity


def test_the_expert_has_error_0_and_the_base_error_1(pool):
    exact = fidelity(pool, "code", pool.experts["code"])
    assert exact.error == 0
    assert exact.cosine == pytest.approx(1)
    nothing = fidelity(pool, "code", pool.base)
    assert nothing.error == 1
    assert math.isnan(nothing.cosine)


def test_another_expert_has_a_cosine_below_one(pool):
    near = fidelity(pool, "code", pool.experts["maths"])
    assert near.error > 1
    assert -1 < near.cosine < 0.9


def test_an_expert_that_is_the_base_has_no_scale(pool):
    same = Pool(pool.base.path, {"twin": pool.base.path})
    assert math.isnan(fidelity(same, "twin", same.base).error)


def test_each_expert_takes_the_lambda_whose_reconstruction_scores_best(pool):
    """With the negative error as the score, the chosen λ has the smallest error; ties take the smallest λ."""
    seen = {}

    def judge(name, candidate):
        near = -fidelity(pool, name, candidate).error
        seen.setdefault(name, []).append(near)
        return near

    chosen = choose_lambdas(pool, judge)
    lambdas = [0.2, 0.3, 0.4, 0.5, 0.6]
    assert chosen == {name: lambdas[scores.index(max(scores))] for name, scores in seen.items()}
    assert len(set(seen["maths"])) == 5
    assert set(choose_lambdas(pool, lambda name, candidate: 0.0).values()) == {0.2}
