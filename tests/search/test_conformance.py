"""Every driver, held to the rules."""

import numpy as np
from problems import bits

from evomerge import search
from evomerge.testing import (
    DecodedSuite,
    GenomeSuite,
    PopulationSuite,
    SteadySuite,
    family,
    mixed,
    sphere,
    three_corners,
)


class TestCma(GenomeSuite):
    def problem(self):
        return sphere()

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnSeveralObjectives(GenomeSuite):
    def problem(self):
        return three_corners()

    def make(self, problem, seed):
        weights = {"left": 2, "right": 1}
        return search.make({"kind": "cma", "weights": weights}, problem.space, problem.objectives, seed)

    def quality(self, problem, proposals):
        return max(problem.evaluate(p).means(problem.objectives) @ [0, 2, 1] for p in proposals)


class TestSeparableCma(GenomeSuite):
    budget = 250

    def problem(self):
        return sphere(102)

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnMixedGenes(GenomeSuite):
    def problem(self):
        return mixed()

    def quality(self, problem, proposals):
        return max(problem.evaluate(p).means(problem.objectives).mean() for p in proposals)

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnBits(GenomeSuite):
    def problem(self):
        return bits()

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnRelaxedBits(GenomeSuite):
    budget = 120

    def problem(self):
        return bits(scaled=True)

    def make(self, problem, seed):
        return search.make({"kind": "cma", "whole": "relaxed"}, problem.space, problem.objectives, seed)


class TestNsga2(GenomeSuite):
    def make(self, problem, seed):
        return search.make({"kind": "nsga2"}, problem.space, problem.objectives, seed)


class TestNsga2OnMixedGenes(GenomeSuite):
    def problem(self):
        return mixed()

    def make(self, problem, seed):
        return search.make({"kind": "nsga2", "population": 10}, problem.space, problem.objectives, seed)


class TestNsga2OnBits(GenomeSuite):
    def problem(self):
        return bits()

    def make(self, problem, seed):
        return search.make({"kind": "nsga2", "population": 10}, problem.space, problem.objectives, seed)


class TestNsga3(GenomeSuite):
    def problem(self):
        return three_corners()

    def make(self, problem, seed):
        return search.make({"kind": "nsga3"}, problem.space, problem.objectives, seed)


class TestTpe(GenomeSuite):
    budget = 32

    def make(self, problem, seed):
        return search.make({"kind": "tpe"}, problem.space, problem.objectives, seed)


class TestTpeOnMixedGenes(GenomeSuite):
    budget = 32

    def problem(self):
        return mixed()

    def make(self, problem, seed):
        return search.make({"kind": "tpe"}, problem.space, problem.objectives, seed)


class TestGp(GenomeSuite):
    budget = 8

    def problem(self):
        return sphere(2)

    def make(self, problem, seed):
        return search.make({"kind": "gp", "batch": 2}, problem.space, problem.objectives, seed)


class TestQmc(GenomeSuite):
    learns = False

    def make(self, problem, seed):
        return search.make({"kind": "qmc"}, problem.space, problem.objectives, seed)


class TestRandom(GenomeSuite):
    learns = False

    def make(self, problem, seed):
        return search.make({"kind": "random"}, problem.space, problem.objectives, seed)


class TestNiches(PopulationSuite):
    def make(self, problem, seed):
        return search.make({"kind": "niches", "population": 8}, problem.space, problem.objectives, seed)


class TestPlainGeneticAlgorithm(PopulationSuite):
    def make(self, problem, seed):
        settings = {"kind": "niches", "population": 8, "alpha": 0, "matchmaker": False}
        return search.make(settings, problem.space, problem.objectives, seed)


class TestNichesWithWarmUp(PopulationSuite):
    def make(self, problem, seed):
        settings = {"kind": "niches", "population": 3, "warm_up": 10}
        return search.make(settings, problem.space, problem.objectives, seed)


class TestMapElites(PopulationSuite):
    def make(self, problem, seed):
        return search.make({"kind": "map_elites"}, problem.space, problem.objectives, seed)


class TestCycle(PopulationSuite):
    def quality(self, problem, proposals):
        """Return the sum of what each grid is best at."""
        return np.max([problem.evaluate(p).means(problem.objectives) for p in proposals], axis=0).sum()

    def make(self, problem, seed):
        return search.make({"kind": "cycle"}, problem.space, problem.objectives, seed)


class TestCycleWithSpecialists(TestCycle):
    def problem(self):
        return family(specialist=True)

    def make(self, problem, seed):
        settings = {"kind": "cycle", "sampling": "code", "warm_up": 5}
        return search.make(settings, problem.space, problem.objectives, seed)


class TestSwarm(SteadySuite, DecodedSuite):
    def make(self, problem, seed):
        return search.make({"kind": "swarm"}, problem.space, problem.objectives, seed)


class TestSwarmOnSeveralObjectives(SteadySuite, DecodedSuite):
    def problem(self):
        return three_corners()

    def make(self, problem, seed):
        settings = {"kind": "swarm", "weights": {"left": 2, "right": 1}, "worst": "current", "particles": 8}
        return search.make(settings, problem.space, problem.objectives, seed)

    def quality(self, problem, proposals):
        return max(problem.evaluate(p).means(problem.objectives) @ [0, 2, 1] for p in proposals)
