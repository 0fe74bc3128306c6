"""Optuna's samplers."""

import numpy as np
import optuna
import pytest
from problems import bits, mixed, sphere

from evomerge import search
from evomerge.testing import drive, toy_space, two_spheres
from evomerge.trial import Evaluation


def test_batches_have_the_size_of_the_settings():
    problem = two_spheres()
    driver = search.make({"kind": "tpe", "batch": 5, "seed_known": False}, problem.space, problem.objectives, 0)
    for _ in range(3):
        batch = list(search.asks(driver, 100))
        assert len(batch) == 5
        for proposal in batch:
            driver.tell(proposal, problem.evaluate(proposal))


def test_tpe_searches_bits():
    problem = bits()
    driver = search.make({"kind": "tpe", "options": {"n_startup_trials": 8}}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 80)
    assert {value for p in proposals for value in p.genome} == {0, 1}
    assert max(problem.score(p.genome).sum() for p in proposals) > problem.score(problem.space.initial).sum()


def test_tpe_learns_from_the_known_recipes_too():
    problem = sphere(2)
    driver = search.make({"kind": "tpe", "options": {"n_startup_trials": 4}}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 60)
    assert max(problem.quality([p]) for p in proposals) > 0.2499


@pytest.mark.parametrize("kind", ["tpe", "gp", "qmc"])
def test_mixed_genes_keep_their_kinds(kind):
    problem = mixed()
    driver = search.make({"kind": kind, "batch": 3}, problem.space, problem.objectives, 0)
    proposals = drive(driver, problem.evaluate, 9)
    for i, gene in enumerate(problem.space.genes):
        values = {proposal.genome[i] for proposal in proposals}
        if gene.kind != "float":
            assert values <= set(range(int(gene.low), int(gene.high) + 1))
            assert len(values) > 1


def test_qmc_covers_the_cube_evenly():
    space = toy_space(2)
    driver = search.make({"kind": "qmc", "seed_known": False, "batch": 1}, space, ["score"], 0)
    flat = Evaluation.of({"score": 0.0})
    genomes = np.array([p.genome for p in drive(driver, lambda p: flat, 65)])[1:]  # Optuna's first trial is random
    for column in genomes.T:  # 64 points of a scrambled Sobol sequence: 8 in each eighth, up to rounding
        assert np.bincount((column * 8).astype(int), minlength=8).min() >= 7


def test_optunas_log_is_silenced_and_its_level_restored(caplog, capsys):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        problem = two_spheres()
        drive(search.make({"kind": "tpe"}, problem.space, problem.objectives, 0), problem.evaluate, 20)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capsys.readouterr() == ("", "")
