"""References, and the comparisons of a search with them on the report split. References are models without a search."""

from collections.abc import Mapping, Sequence

from evomerge import pareto
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.report import bootstrap
from evomerge.report.results import Candidate, Comparison
from evomerge.report.scorer import Scorer
from evomerge.settings import Parts

_RESAMPLES = 1000
"""Resamples of hypervolumes, at most."""


def references(parts: Parts, scales: Sequence[float]) -> dict[str, Recipe]:
    """Return the references by name: the base, each expert, the plain average, and task arithmetic with each of the scales."""
    names = list(parts.pool.experts)
    return {
        "base": base(),
        **{f"expert {name}": expert(name) for name in names},
        "average": merge("linear", names),
        **{f"scale {scale:g}": merge("task_arithmetic", names, {"lambda": scale}) for scale in scales},
    }


def show(references: Mapping[str, Recipe], scorer: Scorer) -> tuple[dict[str, Recipe], dict[str, str]]:
    """Return the references to show by name, and those to compare with: description → name.

    Of the scales, only the best is shown: chosen as the front is, by its mean on the search split.
    """
    shown = {name: recipe for name, recipe in references.items() if not name.startswith("scale ")}
    rivals = {"plain average": "average"} if "average" in shown else {}
    scales = [name for name in references if name.startswith("scale ")]
    if scales:
        best = max(scales, key=lambda name: float(scorer.means([references[name]], "search").mean()))
        shown[f"best {best}"] = references[best]
        rivals[f"best single scale ({best.removeprefix('scale ')})"] = f"best {best}"
    return shown, rivals


def compare(
    scorer: Scorer,
    picked: Candidate,
    rivals: Mapping[str, Candidate],
    front: Sequence[Recipe],
    references: Sequence[Recipe],
    point: pareto.Points,
) -> tuple[Comparison, ...]:
    """Return the comparisons of the picked merge with each of the `rivals`, and of the hypervolumes of front and references.

    The hypervolumes are above `point`, `(objectives,)`, and left out where they would take too long. The comparisons share
    an error rate of 5%: with n of them, each interval is at 1 - 0.05 / n (Bonferroni).
    """
    larger = max(len(front), len(references))
    affordable = pareto.affordable(larger, len(point), repeats=4 * _RESAMPLES)
    level = 1 - (1 - bootstrap.LEVEL) / max(len(rivals) + affordable, 1)
    comparisons = [
        Comparison(
            better="picked merge",
            worse=what,
            values=(picked.mean[0], rival.mean[0]),
            what="mean",
            difference=bootstrap.difference(
                scorer.scores(picked.recipe_id), scorer.scores(rival.recipe_id), scorer.reported, level
            ),
            level=level,
        )
        for what, rival in rivals.items()
    ]
    if affordable:
        volumes = [pareto.hypervolume(scorer.means(recipes, "report"), point) for recipes in (front, references)]
        gap = bootstrap.hypervolume_difference(
            [scorer.scores(recipe.id) for recipe in front],
            [scorer.scores(recipe.id) for recipe in references],
            dict(zip(scorer.parts.reported, point.tolist(), strict=True)),
            scorer.reported,
            _RESAMPLES,
            level,
        )
        comparisons.append(
            Comparison(
                better="searched front",
                worse="base, experts, average and scale sweep together",
                values=(volumes[0], volumes[1]),
                what="hypervolume",
                difference=gap,
                level=level,
            )
        )
    return tuple(comparisons)
