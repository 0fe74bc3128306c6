"""The contract of every breeder that leaves a surface."""

from typing import ClassVar

import numpy as np

from evomerge import pareto, search
from evomerge.search import Generational, Surfaced
from evomerge.search.fronts.surface import Surface
from evomerge.testing.drivers import drive
from evomerge.testing.problems import Problem, two_spheres
from evomerge.trial import Proposal


class SurfaceSuite:
    """The contract of a `Surfaced` breeder, as pytest tests. Run `GenomeSuite` beside it, which tests the search.

    Subclass and write `make`. `problem` must be one with a surface that is not refused after `budget` evaluations.
    """

    budget = 40
    close = 1e-3
    """Largest error of a predicted score of the problem."""
    _searches: ClassVar[dict[type, tuple[list[Proposal], Surface]]] = {}

    def make(self, problem: Problem, seed: int) -> Generational:
        """Return a fresh driver for the problem."""
        raise NotImplementedError

    def problem(self) -> Problem:
        """Return the problem to search."""
        return two_spheres(2)

    def breeder(self, driver: Generational) -> Surfaced:
        """Return the part of the driver that leaves a surface."""
        breeder = search.surfaced(driver)
        assert breeder is not None
        assert breeder is driver.breeder
        return breeder

    def _searched(self) -> tuple[list[Proposal], Surface]:
        """Return the proposals of one search, and the surface that it leaves."""
        if type(self) not in self._searches:
            problem = self.problem()
            driver = self.make(problem, 0)
            proposals = drive(driver, problem.evaluate, self.budget)
            self._searches[type(self)] = proposals, self.breeder(driver).surface(*driver.unfinished())
        return self._searches[type(self)]

    def test_surface_is_a_front_of_predictions_and_agrees_with_the_truth(self) -> None:
        """Rows are decoded, inside the box, finite, none dominated; fits are of the objectives; there is no reason to refuse."""
        problem = self.problem()
        _, surface = self._searched()
        assert surface.refused is None
        assert surface.objectives == tuple(problem.objectives)
        assert 1 < len(surface.genomes) == len(surface.recipes) <= 400
        assert surface.means.shape == surface.deviations.shape == (len(surface.genomes), len(problem.objectives))
        assert all(surface.recipes[i] == problem.space.decode(genome) for i, genome in enumerate(surface.genomes))
        assert (surface.genomes >= problem.space.lower).all()
        assert (surface.genomes <= problem.space.upper).all()
        assert np.isfinite(surface.deviations).all()
        assert (surface.deviations >= 0).all()
        assert pareto.nondominated(surface.means).all()
        assert set(surface.fits) == set(problem.objectives)
        truth = np.array([problem.score(genome) for genome in surface.genomes])
        np.testing.assert_allclose(surface.means, truth, atol=self.close)

    def test_fresh_breeder_leaves_the_same_surface_from_all_evaluations(self) -> None:
        """No replay of the search is needed, and the fresh breeder has learnt nothing afterwards."""
        problem = self.problem()
        proposals, expected = self._searched()
        fresh = self.breeder(self.make(problem, 0))
        genomes = np.array([proposal.genome for proposal in proposals])
        surface = fresh.surface(genomes, [problem.evaluate(proposal) for proposal in proposals])
        for name in ("genomes", "means", "deviations"):
            np.testing.assert_allclose(getattr(surface, name), getattr(expected, name), atol=1e-12)
        assert (surface.recipes, surface.refused) == (expected.recipes, expected.refused)
        assert fresh.surface().refused is not None
        assert len(fresh.surface().genomes) == 0

    def test_surface_does_not_change_the_search(self) -> None:
        """A search whose surface is read halfway proposes the same."""
        problem = self.problem()
        driver = self.make(problem, 0)
        proposals = drive(driver, problem.evaluate, self.budget // 2)
        self.breeder(driver).surface(*driver.unfinished())
        proposals += drive(driver, problem.evaluate, self.budget - self.budget // 2)
        assert [p.recipe.id for p in proposals] == [p.recipe.id for p in self._searched()[0]]

    def test_too_few_evaluations_are_refused_with_a_reason(self) -> None:
        """The surface is empty, of the right shapes, and gives a reason."""
        problem = self.problem()
        driver = self.make(problem, 0)
        breeder = self.breeder(driver)
        for count in (0, min(3, breeder.min_evaluations - 1)):
            drive(driver, problem.evaluate, count)
            surface = breeder.surface(*driver.unfinished())
            assert surface.refused
            assert surface.means.shape == surface.deviations.shape == (0, len(problem.objectives))
            assert surface.genomes.shape == (0, len(problem.space.genes))
            assert (surface.recipes, dict(surface.fits), surface.best_for_all) == ((), {}, None)
