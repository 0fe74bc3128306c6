"""Results of a study on examples that its search never used. Plain data, written as `report.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from evomerge.report.data import Data, Gains, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Objective(Data):
    """A task, its metric in the search and its metric in the report. Higher is better."""

    name: str
    search: str
    report: str
    examples: tuple[int, int]
    """Numbers of examples of the search split and of the report split."""


class Candidate(Data):
    """One model: a point of the front, or a reference."""

    name: str
    recipe_id: str
    recipe: Any
    search: Mapping[str, float]
    """Objective → mean of the searched metric on the search split."""
    report: Mapping[str, Interval]
    """Objective → mean of the reported metric on the report split, with its interval."""
    mean: Interval
    """Mean over objectives of `report`. Where their metrics differ, each is first scaled: 0 is the base's score, 1 that of the
    best expert for it."""
    estimate: Mapping[str, float] = {}
    """Objective → what the search examples say of its score on others: see `evomerge.report.estimates`."""
    on_front: float | None = None
    """Of a point of the front: the probability that no other candidate of the search dominates it."""
    equals: str | None = None
    """Of a point of the front: a reference that scores the same on every search example, such as `base`."""

    @property
    def label(self) -> str:
        """The name, with what it equals: `#0 = base`."""
        return self.name if self.equals is None else f"{self.name} = {self.equals}"


class Comparison(Data):
    """A paired comparison on the same unseen examples: `better` minus `worse`."""

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


class Choice(Data):
    """The default pick: the best candidate of the search if it is likely enough better than the best reference, else that one.

    Both have the best estimated mean of their kind, which the report's examples play no part in.
    """

    candidate: str
    """Recipe id of the best candidate of the search."""
    reference: str
    """Name of the best reference."""
    gain: Interval
    """Estimated mean of the candidate minus that of the reference."""
    probability: float
    """That the candidate is better than the reference."""
    needed: float
    """The probability from which the candidate is picked."""
    metrics: Mapping[str, str]
    """Objective → the metric of the estimates: the reported one if the search measured it, else the searched one."""
    noise: float
    """Share, in [0, 1], of the variance between the means of the better half of models that is the search examples' noise."""

    @property
    def is_candidate(self) -> bool:
        """Whether the pick is a candidate of the search."""
        return self.probability >= self.needed


class Fitted(Data):
    """Mean over objectives of the searched metric of the picked model, by what the search did with the examples."""

    metric: str
    slopes: float | None
    """On the search examples whose slopes the search followed: genes are fitted to them."""
    others: float | None
    """On the search examples that only chose when to stop; None without such."""
    unseen: float | None
    """On the report split; None if the metric is not scored there."""


class Advice(Data):
    """What to try next."""

    text: str
    evidence: str
    """The numbers that it rests on."""
    sure: Literal["shown", "likely", "a guess"]
    """`shown`: the evidence is an interval of unseen examples, or exact; `a guess`: a rule of thumb that was not tested here."""


class Control(Data):
    """What the same search over shuffled experts reaches: see `evomerge.control`. Means are over objectives, on the report split."""

    picked: str
    """Name of the control's default pick: a candidate of its search, or a reference."""
    evaluations: int
    spent: tuple[float, float]
    """Used budget of the control, and of the study."""
    base: Interval | None
    """Mean of the base; None where it could not be scored."""
    mean: Interval
    """Mean of the control's pick."""
    difference: Interval
    """Mean of the study's pick minus that of the control's, with its paired 95% interval over unseen examples."""


class Hypervolume(Data):
    """Hypervolumes above one reference point per split, which has the lowest score of any reference in each objective.

    `search` and `report` are the front's; `search_references` and `references` those of the best references together.
    """

    search: float
    report: float
    search_references: float
    references: float
    search_point: Mapping[str, float]
    report_point: Mapping[str, float]
    history: tuple[float, ...]
    """Search-split hypervolume after each evaluation, in order of number."""


class Diagnostics(Data):
    """Coverage of the search examples by a population of models, at several points of its search.

    `evomerge.search.Population.diagnostics` defines coverage and entropy.
    """

    evaluations: tuple[int, ...]
    """Number of evaluated candidates at each point, in the order in which evaluations arrived; increasing."""
    coverage: tuple[float, ...]
    entropy: tuple[float, ...] | None
    """None if some scores are outside of [0, 1]."""
    members: int
    """Number of different models in the population at the end."""


class Elite(Data):
    """The best model of its cell."""

    cell: tuple[int, ...]
    recipe_id: str
    quality: float


class Cells(Data):
    """One grid of cells at the end of a search, with at most one elite in each. A `CellMap` of the search as plain data."""

    quality: str
    """What the elites maximise: an objective, `task/metric`, or several."""
    axes: tuple[str, ...]
    """The objective of each axis."""
    edges: tuple[tuple[float, ...], ...]
    """Along each axis, the increasing edges of its cells: one more than cells."""
    elites: tuple[Elite, ...]
    """Sorted by cell."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return tuple(len(edges) - 1 for edges in self.edges)

    @property
    def size(self) -> int:
        """Number of cells, filled or not."""
        return math.prod(self.shape)


class ObjectiveFit(Data):
    """The surrogate of one objective, and its prediction of each candidate from all others.

    Scores are means of the searched metric over the search examples.
    """

    rung: str
    r2: float
    coverage: float
    """Share of the candidates whose score lies in its 90% interval."""
    standard_error: float | None
    """Of a candidate's score, over examples; None for a single example."""
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    widths: tuple[float, ...]
    """Half of each prediction's 90% interval."""


class Surface(Data):
    """The front that the surrogates of a study predict: a `Surface` of the search as plain data.

    Rows are points, columns objectives. Not to be confused with the front, which was evaluated.
    """

    refused: str | None
    """Why the surface is unreliable; None if it is reliable."""
    best_for_all: str | None = None
    """Id of the recipe that is best for all objectives, if they do not conflict."""
    means: tuple[tuple[float, ...], ...] = ()
    widths: tuple[tuple[float, ...], ...] = ()
    """Half of each prediction's 90% interval."""
    evaluated: tuple[tuple[float, ...], ...] = ()
    """Scores of the candidates that did not fail."""
    fits: Mapping[str, ObjectiveFit] = {}
    """Objective → its fit, without constant objectives."""


class Verified(Data):
    """Measured scores of a predicted merge."""

    candidate: Candidate
    unseen: Mapping[str, Interval]
    """Objective → mean of the searched (predicted) metric on the report split, if it is scored there."""


class Results(Data):
    """Everything that `evomerge show` prints and draws."""

    name: str
    split: Literal["report", "final"] = "report"
    """The split that models are judged on: what is called the report split here."""
    digest: str
    evaluations: int
    """Candidates that were evaluated on all search examples, or failed."""
    failed: int
    common_failure: tuple[str, int] | None = None
    """The most frequent error of the failed candidates, and its count."""
    stopped: int = 0
    """Candidates that lost their race, and were evaluated on some of the examples."""
    spent: float
    """Used budget: all scores of search examples, in units of a full evaluation."""
    objectives: tuple[Objective, ...]
    genes: int
    """Number of genes that were searched."""
    hypervolume: Hypervolume | None
    """None where it would take too long: see `pareto.affordable`."""
    front: tuple[Candidate, ...]
    picked: str
    """Recipe id of the model that is picked by default: a point of the front, or a reference."""
    choice: Choice
    """Why it is picked."""
    references: Mapping[str, Candidate]
    unscored: Mapping[str, str] = {}
    """References and models of the front that could not be scored, with the reasons. All other fields leave them out."""
    comparisons: tuple[Comparison, ...]
    diagnostics: Diagnostics | None = None
    """Only for a population of models that has members."""
    cells: tuple[Cells, ...] = ()
    """Only for a population in cells."""
    not_replayed: str | None = None
    """Why the journal of a population could not be replayed: it then has no diagnostics and cells."""
    surface: Surface | None = None
    """Only for a driver that fits surrogates of the objectives, such as `front`."""
    fitted: Fitted | None = None
    """Only where the picked model was searched by slopes."""
    control: Control | None = None
    """Only where the search over shuffled experts came to its end, on the report split."""
    gains: Gains | None = None
    """What one expert more would add, where the study asks for it."""
    advice: tuple[Advice, ...] = ()
    """What to try next; not of shuffled experts."""
    costs: Mapping[str, float]
    """Seconds of work by kind: merge, score, and so on."""
    damaged_costs: int = 0
    """Number of unreadable lines of `costs.jl`, whose seconds are not in `costs`."""
    study: Mapping[str, Any]
    """The study's settings as they were run."""

    @property
    def pick(self) -> Candidate:
        """The model that is picked by default."""
        return self.model(self.picked)

    def model(self, recipe_id: str) -> Candidate:
        """Return a point of the front or a reference by its recipe id."""
        return next(one for one in (*self.front, *self.references.values()) if one.recipe_id == recipe_id)

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

    def figure(self, pairs: Sequence[Sequence[str]] = ()) -> "Figure":
        """Return the picture of the front, as `evomerge show` draws it. A notebook shows it inline.

        `pairs` of objectives, such as `[("maths", "code")]`, have a panel each; by default all pairs of up to four.
        """
        from evomerge.report.figures import front_figure

        return front_figure(self, pairs)

    def public(self) -> dict[str, Any]:
        """Return the stable JSON form of `evomerge show --json`.

        An interval is [value, low, high]; each covers with 95% by itself, not all together.
        """
        data: dict[str, Any] = {
            "digest": self.digest,
            "evaluations": self.evaluations,
            "failed": self.failed,
            "common_failure": self.common_failure,
            "objectives": [objective.name for objective in self.objectives],
            "hypervolume": {
                split: self.hypervolume and getattr(self.hypervolume, split) for split in ("search", "report")
            },
            "picked": {
                **_public(self.pick),
                "is_candidate": self.choice.is_candidate,
                "choice": self.choice.model_dump(),
            },
            "comparisons": [{**one.model_dump(), "verdict": one.verdict} for one in self.comparisons],
            "front": [
                _public(point) | {"number": int(point.name[1:]), "on_front": point.on_front, "equals": point.equals}
                for point in self.front
            ],
            "references": {name: _public(point) for name, point in self.references.items()},
        }
        if self.advice:
            data["advice"] = [one.model_dump() for one in self.advice]
        if self.gains is not None:
            data["gains"] = self.gains.model_dump(mode="json")
        if self.control is not None:
            data["control"] = self.control.model_dump(mode="json")
        if self.split != "report":
            data["split"] = self.split
        if self.unscored:
            data["unscored"] = dict(self.unscored)
        if self.stopped:
            data["race"] = {"stopped": self.stopped, "spent": self.spent}
        if self.diagnostics is not None:
            data["population"] = {
                "coverage": self.diagnostics.coverage[-1],
                "entropy": self.diagnostics.entropy and self.diagnostics.entropy[-1],
                "members": self.diagnostics.members,
                "cells": [
                    {"quality": cells.quality, "axes": list(cells.axes), "filled": len(cells.elites), "of": cells.size}
                    for cells in self.cells
                ],
            }
        if self.surface is not None:
            data["surface"] = {
                "refused": self.surface.refused,
                "best_for_all": self.surface.best_for_all,
                "points": len(self.surface.means),
                "fits": {
                    name: fit.model_dump(include={"rung", "r2", "coverage", "standard_error"})
                    for name, fit in self.surface.fits.items()
                },
            }
        return data


def _public(point: Candidate) -> dict[str, Any]:
    return {
        "name": point.name,
        "recipe_id": point.recipe_id,
        "recipe": point.recipe,
        "search": dict(point.search),
        "estimate": dict(point.estimate),
        "report": {name: list(interval) for name, interval in point.report.items()},
        "mean": list(point.mean),
    }
