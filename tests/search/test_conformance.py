"""Every driver, held to the rules."""

from typing import ClassVar

import numpy as np
from problems import bits, choosy, mixed, sphere, three_corners

from evomerge import search
from evomerge.testing import DecodedSuite, GenomeSuite, PopulationSuite, SteadySuite, family, scattered_spheres


class Made:
    """Makes the driver of `settings`."""

    settings: ClassVar = {}

    def make(self, problem, seed):
        return search.make(self.settings, problem.space, problem.objectives, seed)


def best_sum(problem, proposals, weights=1.0):
    """Return the best weighted sum of the objectives."""
    return max((problem.evaluate(p).means(problem.objectives) * weights).sum() for p in proposals)


class TestCma(Made, GenomeSuite):
    settings: ClassVar = {"kind": "cma"}
    problem = staticmethod(sphere)


class TestCmaOnSeveralObjectives(Made, GenomeSuite):
    settings: ClassVar = {"kind": "cma", "weights": {"left": 2, "right": 1}}
    problem = staticmethod(three_corners)

    def quality(self, problem, proposals):
        return best_sum(problem, proposals, [0, 2, 1])


class TestSeparableCma(TestCma):
    budget = 250

    def problem(self):
        return sphere(102)


class TestCmaOnMixedGenes(TestCma):
    problem = staticmethod(mixed)
    quality = staticmethod(best_sum)


class TestCmaOnBits(Made, GenomeSuite):
    settings: ClassVar = {"kind": "cma"}
    problem = staticmethod(bits)


class TestCmaOnRelaxedBits(Made, GenomeSuite):
    settings: ClassVar = {"kind": "cma", "whole": "relaxed"}
    budget = 120

    def problem(self):
        return bits(scaled=True)


class TestNsga2(Made, GenomeSuite):
    settings: ClassVar = {"kind": "nsga2"}


class TestNsga2OnMixedGenes(Made, GenomeSuite):
    settings: ClassVar = {"kind": "nsga2", "population": 10}
    problem = staticmethod(mixed)


class TestNsga2OnBits(Made, GenomeSuite):
    settings: ClassVar = {"kind": "nsga2", "population": 10}
    problem = staticmethod(bits)


class TestNsga3(Made, GenomeSuite):
    settings: ClassVar = {"kind": "nsga3"}
    problem = staticmethod(three_corners)


class TestTpe(Made, GenomeSuite):
    settings: ClassVar = {"kind": "tpe"}
    budget = 32


class TestTpeOnMixedGenes(TestTpe):
    problem = staticmethod(mixed)


class TestGp(Made, GenomeSuite):
    settings: ClassVar = {"kind": "gp", "batch": 2}
    budget = 8

    def problem(self):
        return sphere(2)


class TestQmc(Made, GenomeSuite):
    settings: ClassVar = {"kind": "qmc"}
    learns = False


class TestRandom(Made, GenomeSuite):
    settings: ClassVar = {"kind": "random"}
    learns = False


class TestRandomMixtures(Made, GenomeSuite):
    settings: ClassVar = {"kind": "random", "mixtures": True}
    learns = False


class TestNiches(Made, PopulationSuite):
    settings: ClassVar = {"kind": "niches", "population": 8}


class TestPlainGeneticAlgorithm(Made, PopulationSuite):
    settings: ClassVar = {"kind": "niches", "population": 8, "alpha": 0, "matchmaker": False}


class TestNichesWithWarmUp(Made, PopulationSuite):
    settings: ClassVar = {"kind": "niches", "population": 3, "warm_up": 10}


class TestMapElites(Made, PopulationSuite):
    settings: ClassVar = {"kind": "map_elites"}


class TestCycle(Made, PopulationSuite):
    settings: ClassVar = {"kind": "cycle"}

    def quality(self, problem, proposals):
        """Return the sum over objectives of the best score, as each has a grid."""
        return np.max([problem.evaluate(p).means(problem.objectives) for p in proposals], axis=0).sum()


class TestCycleWithSpecialists(TestCycle):
    settings: ClassVar = {"kind": "cycle", "sampling": "code", "warm_up": 5}

    def problem(self):
        return family(specialist=True)


class TestSwarm(Made, SteadySuite, DecodedSuite):
    settings: ClassVar = {"kind": "swarm"}


class TestSwarmOnSeveralObjectives(Made, SteadySuite, DecodedSuite):
    settings: ClassVar = {"kind": "swarm", "weights": {"left": 2, "right": 1}, "worst": "current", "particles": 8}
    problem = staticmethod(three_corners)

    def quality(self, problem, proposals):
        return best_sum(problem, proposals, [0, 2, 1])


class TestGradient(GenomeSuite):
    settings: ClassVar = {"kind": "gradient", "learning_rate": 0.02}
    budget = 12  # the search ends by itself
    problem = staticmethod(scattered_spheres)
    quality = staticmethod(best_sum)

    def make(self, problem, seed):
        return search.make(self.settings, problem.space, problem.metrics, seed, problem.sizes)


class Polished:
    """Makes the driver of `settings`, with `polish`, for a problem with slopes."""

    settings: ClassVar = {}
    problem = staticmethod(choosy)

    def make(self, problem, seed):
        settings = {"polish": {"steps": 2}, **self.settings}
        return search.make(settings, problem.space, problem.metrics, seed, problem.sizes)


class TestPolishedCma(Polished, GenomeSuite):
    settings: ClassVar = {"kind": "cma"}
    budget = 120
    quality = staticmethod(best_sum)

    def problem(self):
        return choosy(1)


class TestPolishedNsga2(Polished, GenomeSuite):
    settings: ClassVar = {"kind": "nsga2", "population": 8}


class TestPolishedNsga3(Polished, GenomeSuite):
    settings: ClassVar = {"kind": "nsga3", "population": 8}


class TestPolishedTpe(Polished, GenomeSuite):
    settings: ClassVar = {"kind": "tpe"}
    budget = 48
