"""Every driver, held to the rules."""

from problems import bits

from evomerge import search
from evomerge.testing import DriverSuite, mixed, sphere, three_corners


class TestCma(DriverSuite):
    def problem(self):
        return sphere()

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnSeveralObjectives(DriverSuite):
    def problem(self):
        return three_corners()

    def make(self, problem, seed):
        weights = {"left": 2, "right": 1}
        return search.make({"kind": "cma", "weights": weights}, problem.space, problem.objectives, seed)

    def quality(self, problem, proposals):
        return max(problem.evaluate(p).means(problem.objectives) @ [0, 2, 1] for p in proposals)


class TestSeparableCma(DriverSuite):
    budget = 250

    def problem(self):
        return sphere(102)

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnMixedGenes(DriverSuite):
    def problem(self):
        return mixed()

    def quality(self, problem, proposals):
        return max(problem.evaluate(p).means(problem.objectives).mean() for p in proposals)

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnBits(DriverSuite):
    def problem(self):
        return bits()

    def make(self, problem, seed):
        return search.make({"kind": "cma"}, problem.space, problem.objectives, seed)


class TestCmaOnRelaxedBits(DriverSuite):
    budget = 120

    def problem(self):
        return bits(scaled=True)

    def make(self, problem, seed):
        return search.make({"kind": "cma", "whole": "relaxed"}, problem.space, problem.objectives, seed)


class TestNsga2(DriverSuite):
    def make(self, problem, seed):
        return search.make({"kind": "nsga2"}, problem.space, problem.objectives, seed)


class TestNsga2OnMixedGenes(DriverSuite):
    def problem(self):
        return mixed()

    def make(self, problem, seed):
        return search.make({"kind": "nsga2", "population": 10}, problem.space, problem.objectives, seed)


class TestNsga2OnBits(DriverSuite):
    def problem(self):
        return bits()

    def make(self, problem, seed):
        return search.make({"kind": "nsga2", "population": 10}, problem.space, problem.objectives, seed)


class TestNsga3(DriverSuite):
    def problem(self):
        return three_corners()

    def make(self, problem, seed):
        return search.make({"kind": "nsga3"}, problem.space, problem.objectives, seed)


class TestTpe(DriverSuite):
    budget = 32

    def make(self, problem, seed):
        return search.make({"kind": "tpe"}, problem.space, problem.objectives, seed)


class TestTpeOnMixedGenes(DriverSuite):
    budget = 32

    def problem(self):
        return mixed()

    def make(self, problem, seed):
        return search.make({"kind": "tpe"}, problem.space, problem.objectives, seed)


class TestGp(DriverSuite):
    budget = 8

    def problem(self):
        return sphere(2)

    def make(self, problem, seed):
        return search.make({"kind": "gp", "batch": 2}, problem.space, problem.objectives, seed)


class TestQmc(DriverSuite):
    learns = False

    def make(self, problem, seed):
        return search.make({"kind": "qmc"}, problem.space, problem.objectives, seed)


class TestRandom(DriverSuite):
    learns = False

    def make(self, problem, seed):
        return search.make({"kind": "random"}, problem.space, problem.objectives, seed)
