"""References, and the comparisons of a search with them on the report split. References are models without a search."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge import pareto
from evomerge.parts import Parts
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.report import bootstrap
from evomerge.report.estimates import Estimates
from evomerge.report.results import Candidate, Comparison
from evomerge.report.scorer import Scorer
from evomerge.settings import ReportSettings

RESAMPLES = 1000
"""Resamples of hypervolumes, at most."""
_LINE, _SIMPLEX = 9, 24
"""Mixtures by default: points between two experts, and convex combinations of more."""


def references(parts: Parts, settings: ReportSettings) -> dict[str, Recipe]:
    """Return the references by name: base, experts, average, task arithmetic by scale, and mixtures of the experts.

    A mixture is a weighted average. Those of two experts lie evenly on the line between them; those of more are drawn
    uniformly from the simplex, the same for every study of that many experts.
    """
    names = list(parts.pool.experts)
    count = settings.mixtures if settings.mixtures is not None else _LINE if len(names) == 2 else _SIMPLEX
    return {
        "base": base(),
        **{f"expert {name}": expert(name) for name in names},
        "average": merge("linear", names),
        **{f"scale {scale:g}": merge("task_arithmetic", names, {"lambda": scale}) for scale in settings.scales},
        **{
            "mixture " + ":".join(f"{share:.2f}" for share in shares): merge(
                "linear", names, {"weight": {"per": ["expert"], "values": dict(zip(names, shares, strict=True))}}
            )
            for shares in _mixtures(len(names), count)
        },
    }


def _mixtures(experts: int, count: int) -> list[list[float]]:
    """Return `count` shares of the experts, each with sum 1; the equal ones are the average, and left out."""
    if experts == 1:
        return []
    if experts == 2:
        line = np.arange(1, count + 1) / (count + 1)
        shares = np.stack([1 - line, line], axis=1)
    else:
        shares = np.random.default_rng(experts).dirichlet(np.ones(experts), size=count)
    return [row.round(4).tolist() for row in shares if np.ptp(row) > 1e-9]


def show(references: Mapping[str, Recipe], estimates: Estimates) -> dict[str, str]:
    """Return the references to show, name → name to show: of the scales and of the mixtures, only the best is shown."""
    shown = {name: name for name in references if not name.startswith(("scale ", "mixture "))}
    for kind in ("scale ", "mixture "):
        ids = {recipe.id: name for name, recipe in references.items() if name.startswith(kind)}
        if ids:
            best = ids[estimates.best(list(ids))]
            shown[best] = f"best {best}"
    return shown


def compare(
    scorer: Scorer,
    picked: Candidate,
    rivals: Mapping[str, Candidate],
    front: Sequence[Recipe],
    references: Sequence[Recipe],
    point: pareto.Points,
) -> tuple[Comparison, ...]:
    """Return the comparisons of the picked model with each of the `rivals`, and of the hypervolumes of front and references.

    The hypervolumes are above `point`, `(objectives,)`, and left out where they would take too long. The comparisons share
    an error rate of 5%: with n of them, each interval is at 1 - 0.05 / n (Bonferroni).
    """
    larger = max(len(front), len(references))
    affordable = pareto.affordable(larger, len(point), repeats=4 * RESAMPLES)
    level = 1 - (1 - bootstrap.LEVEL) / max(len(rivals) + affordable, 1)
    comparisons = [
        Comparison(
            better="picked model",
            worse=what,
            values=(picked.mean[0], rival.mean[0]),
            what="mean",
            difference=scorer.difference(picked.recipe_id, rival.recipe_id, level),
            level=level,
        )
        for what, rival in rivals.items()
    ]
    if affordable:
        fronts = [[scorer.scores(recipe.id) for recipe in recipes] for recipes in (front, references)]
        below = dict(zip(scorer.parts.reported, point.tolist(), strict=True))
        names = "searched front", "best references together"
        comparisons.append(of_fronts(names, (fronts[0], fronts[1]), below, scorer.reported, level))
    return tuple(comparisons)


def of_fronts(
    names: tuple[str, str],
    fronts: tuple[Sequence[bootstrap.Scores], Sequence[bootstrap.Scores]],
    point: Mapping[str, float],
    draws: bootstrap.Resamples,
    level: float,
) -> Comparison:
    """Return the comparison of the hypervolumes of two sets of models above `point`, by objective: the first minus the second."""
    return Comparison(
        better=names[0],
        worse=names[1],
        values=(volume(fronts[0], point), volume(fronts[1], point)),
        what="hypervolume",
        difference=bootstrap.hypervolume_difference(*fronts, point, draws, RESAMPLES, level),
        level=level,
    )


def volume(front: Sequence[bootstrap.Scores], point: Mapping[str, float]) -> float:
    """Return the hypervolume of the models' mean scores above `point`, by objective."""
    means = [[float(scores[name].mean(dtype=np.float64)) for name in point] for scores in front]
    return pareto.hypervolume(means, list(point.values()))
