"""Results: what a study found, on examples that its search never saw. Plain data, written as `report.json`."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Interval = tuple[float, float, float]
"""A value and the ends of its 95% bootstrap interval over examples: (value, low, high)."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Objective(_Data):
    """One column: a task, the metric that was searched and the one that is reported. Higher is better."""

    name: str
    search: str
    report: str
    examples: tuple[int, int]
    """How many examples the search split and the report split have."""


class Candidate(_Data):
    """One model: a point of the front, or a reference."""

    name: str
    recipe_id: str
    recipe: Any
    search: Mapping[str, float]
    """Objective → mean of the searched metric on the search split."""
    report: Mapping[str, Interval]
    """Objective → mean of the reported metric on the report split, with its interval."""
    mean: Interval
    """Mean over objectives of `report`."""


class Comparison(_Data):
    """A paired bootstrap over the same unseen examples: `better` minus `worse`, on the report split."""

    better: str
    worse: str
    values: tuple[float, float]
    """The two values on the report split: of `better`, of `worse`."""
    what: str
    """`mean` over objectives of the reported metric, or `hypervolume`."""
    difference: Interval
    level: float = 0.95
    """Of the interval: above 95% where several comparisons share the 5% of errors (Bonferroni)."""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no difference shown`, by whether the interval holds zero."""
        _, low, high = self.difference
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


class Hypervolume(_Data):
    """Hypervolumes above one reference point per split: the lowest score of any reference in each objective.

    `search` and `report` are the front's; `search_references` and `references` those of all references taken together.
    """

    search: float
    report: float
    search_references: float
    references: float
    search_point: Mapping[str, float]
    report_point: Mapping[str, float]
    history: tuple[float, ...]
    """Search-split hypervolume after each evaluation, in order of number."""


class Diagnostics(_Data):
    """How well a population of models covered the search examples, along its search: one entry for each point looked at.

    See `evomerge.search.Population.diagnostics` for what coverage and entropy are.
    """

    evaluations: tuple[int, ...]
    """How many candidates had been evaluated, in the order in which evaluations arrived; rising."""
    coverage: tuple[float, ...]
    entropy: tuple[float, ...] | None
    """None where scores have none: some were outside of [0, 1]."""
    members: int
    """How many different models the population has at the end."""


class Elite(_Data):
    """The best model of its cell."""

    cell: tuple[int, ...]
    recipe_id: str
    quality: float


class Cells(_Data):
    """One grid of cells at the end of a search, with at most one elite in each. A `CellMap` of the search as plain data."""

    quality: str
    """What the elites are best at: an objective, `task/metric`, or several."""
    axes: tuple[str, ...]
    """The objective of each axis."""
    edges: tuple[tuple[float, ...], ...]
    """Along each axis, the rising edges of its cells: one more than there are cells."""
    elites: tuple[Elite, ...]
    """In the order of their cells."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return tuple(len(edges) - 1 for edges in self.edges)

    @property
    def size(self) -> int:
        """Number of cells, filled or not."""
        return math.prod(self.shape)


class ObjectiveFit(_Data):
    """How well one objective is predicted: the surrogate that was chosen, and each candidate as the others predict it.

    Scores are means of the searched metric over the search examples.
    """

    rung: str
    r2: float
    coverage: float
    """Share of the candidates whose score lies in its 90% interval."""
    standard_error: float | None
    """Of a candidate's score, over examples; None where there is only one."""
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    widths: tuple[float, ...]
    """Half of each prediction's 90% interval."""


class Surface(_Data):
    """The front as the surrogates of a study predict it. A `Surface` of the search as plain data.

    Rows are points of it, columns objectives. Not to be confused with the front, which was evaluated.
    """

    refused: str | None
    """Why it must not be relied on; None where it may be."""
    best_for_all: str | None = None
    """Id of the one recipe that is best for all objectives, where they do not conflict."""
    means: tuple[tuple[float, ...], ...] = ()
    widths: tuple[tuple[float, ...], ...] = ()
    """Half of each prediction's 90% interval."""
    evaluated: tuple[tuple[float, ...], ...] = ()
    """What the candidates that did not fail scored."""
    fits: Mapping[str, ObjectiveFit] = {}
    """Objective → its fit, of those that vary."""


class Verified(_Data):
    """What a predicted merge scores when it is evaluated."""

    candidate: Candidate
    unseen: Mapping[str, Interval]
    """Objective → mean of the searched metric, the one that was predicted, on the report split, where that is scored there."""


class Results(_Data):
    """Everything that `evomerge show` prints and draws."""

    name: str
    digest: str
    evaluations: int
    """Candidates that were evaluated on all search examples, or failed."""
    failed: int
    stopped: int = 0
    """Candidates that lost their race, and were evaluated on some of the examples."""
    spent: float
    """Of the budget: all scores of search examples, in units of a whole evaluation."""
    objectives: tuple[Objective, ...]
    hypervolume: Hypervolume | None
    """None where it would take too long: see `pareto.affordable`."""
    front: tuple[Candidate, ...]
    picked: str
    """Recipe id of the front's point that was picked by default: the best mean on the search split."""
    references: Mapping[str, Candidate]
    unscored: Mapping[str, str] = {}
    """References and models of the front that could not be scored, and why: they are in nothing else here."""
    comparisons: tuple[Comparison, ...]
    diagnostics: Diagnostics | None = None
    """Of a population of models that has members; None of any other search."""
    cells: tuple[Cells, ...] = ()
    """Of a population that is kept in cells."""
    not_replayed: str | None = None
    """Why the journal of a population could not be replayed, so that its diagnostics and cells are not known."""
    surface: Surface | None = None
    """Of a study whose driver leaves one, such as `front`; None of any other."""
    costs: Mapping[str, float]
    """Seconds of work by kind: merge, score, and so on."""
    damaged_costs: int = 0
    """Number of unreadable lines of `costs.jl`, whose seconds are not in `costs`."""
    study: Mapping[str, Any]
    """The study's settings as they were run."""

    def table(self) -> "DataFrame":
        """Return the front and the references as a DataFrame, scores on unseen examples with the ends of their intervals."""
        from pandas import DataFrame

        rows = []
        for candidate in (*self.front, *self.references.values()):
            row: dict[str, Any] = {"name": candidate.name, "recipe_id": candidate.recipe_id}
            for name, (value, low, high) in {**candidate.report, "mean": candidate.mean}.items():
                row |= {name: value, f"{name} low": low, f"{name} high": high}
            rows.append(row)
        return DataFrame(rows)

    def figure(self) -> "Figure":
        """Return the picture of the front, as `evomerge show` draws it. A notebook shows it inline."""
        from evomerge.report.figures import front_figure

        return front_figure(self)

    def public(self) -> dict[str, Any]:
        """Return the stable JSON form of `evomerge show --json`."""
        found: dict[str, Any] = {
            "digest": self.digest,
            "evaluations": self.evaluations,
            "objectives": [objective.name for objective in self.objectives],
            "hypervolume": {
                split: self.hypervolume and getattr(self.hypervolume, split) for split in ("search", "report")
            },
            "front": [
                {
                    "recipe_id": point.recipe_id,
                    "search": dict(point.search),
                    "report": {k: list(v) for k, v in point.report.items()},
                }
                for point in self.front
            ],
            "references": {
                name: {
                    "recipe_id": point.recipe_id,
                    "search": dict(point.search),
                    "report": {k: list(v) for k, v in point.report.items()},
                }
                for name, point in self.references.items()
            },
        }
        if self.unscored:
            found["unscored"] = dict(self.unscored)
        if self.stopped:
            found["race"] = {"stopped": self.stopped, "spent": self.spent}
        if self.diagnostics is not None:
            found["population"] = {
                "coverage": self.diagnostics.coverage[-1],
                "entropy": self.diagnostics.entropy and self.diagnostics.entropy[-1],
                "members": self.diagnostics.members,
                "cells": [
                    {"quality": cells.quality, "axes": list(cells.axes), "filled": len(cells.elites), "of": cells.size}
                    for cells in self.cells
                ],
            }
        if self.surface is not None:
            found["surface"] = {
                "refused": self.surface.refused,
                "best_for_all": self.surface.best_for_all,
                "points": len(self.surface.means),
                "fits": {
                    name: {
                        "rung": fit.rung,
                        "r2": fit.r2,
                        "coverage": fit.coverage,
                        "standard_error": fit.standard_error,
                    }
                    for name, fit in self.surface.fits.items()
                },
            }
        return found
