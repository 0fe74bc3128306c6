"""Does a searched merge of real experts beat merges without a search, on unseen examples?

Each seed has its own splits, heads and experts of the `text` zoo, and its own search. The references are the base, each
expert, the average, and task arithmetic with the best scale on the same search examples. All figures are from the report
split, with paired bootstrap intervals over its examples.

    python experiments/text_zoo.py [--smoke] [--seeds N] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/text_zoo/`. A smoke run
uses the tiny `digits` experts and keeps nothing.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.harness import Findings, Switches, main, say, table

from evomerge import zoo
from evomerge.report import wording
from evomerge.report.measure import measure as measure_study
from evomerge.report.results import Comparison, Results
from evomerge.settings import StudySettings
from evomerge.study import Study

SEEDS = 3
ZOO = "text"
SEARCH: dict[str, Any] = {
    "space": "task_arithmetic_per_block",
    "driver": {"kind": "nsga2", "population": 16},
    "precision": str(zoo.fast_precision()).removeprefix("torch."),
    "evaluations": 200,
    "workers": 2,
    "report": {"front": 16, "resamples": 2000},
}
STUDIES = Path("runs") / "text_zoo"
SMOKE_ZOO = "digits"
SMOKE_SEARCH: dict[str, Any] = {
    **SEARCH,
    "driver": {"kind": "nsga2", "population": 8},
    "evaluations": 12,
    "workers": 1,
    "report": {"front": 4, "scales": [0.3, 0.6], "resamples": 100},
}


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    by_seed: dict[int, Results] = {}
    with tempfile.TemporaryDirectory(prefix="text_zoo-") as scratch:
        studies = Path(scratch) if switches.smoke else STUDIES
        for seed in switches.seeds:
            by_seed[seed] = search(seed, studies / f"seed-{seed}", smoke=switches.smoke)
    figures = {
        "seeds": {str(seed): of_one_seed(results) for seed, results in by_seed.items()},
        "over_seeds": over_seeds(list(by_seed.values())),
    }
    recipes = {f"picked, seed {seed}": results.picked for seed, results in by_seed.items()}
    return Findings(figures, tables(by_seed, figures["over_seeds"]), draw(by_seed), recipes)


def search(seed: int, folder: Path, *, smoke: bool) -> Results:
    """Run or resume the study of one seed; return its results."""
    embedded = zoo.find_or_build(
        SMOKE_ZOO if smoke else ZOO, seed=seed, progress=lambda done, doing: say(f"seed {seed}: {done:4.0%} {doing}")
    )
    data = {
        "name": f"{embedded.name}-{seed}",
        "pool": embedded.pool,
        "tasks": embedded.tasks,
        "seed": seed,
        **(SMOKE_SEARCH if smoke else SEARCH),
    }
    settings = StudySettings.parse(data, "text_zoo", Path())
    study = Study.create(folder, settings)
    every = max(settings.evaluations // 10, 1)

    def watch(number: int) -> None:
        if (number + 1) % every == 0:
            say(f"seed {seed}: {number + 1} of {settings.evaluations} evaluations")

    with study.evaluator() as evaluator:
        study.run(evaluator, lambda proposal, evaluation: watch(proposal.number))
        say(f"seed {seed}: scoring the front and the references on unseen examples")
        return measure_study(study, evaluator)


def of_one_seed(results: Results) -> dict[str, Any]:
    """Return the figures of one seed: models and comparisons on the report split, each [value, low, high]."""
    models = {**results.references, "picked model": results.pick}
    return {
        "digest": results.digest,
        "evaluations": results.evaluations,
        "failed": results.failed,
        "examples": {objective.name: list(objective.examples) for objective in results.objectives},
        "models": {
            name: {
                "recipe_id": model.recipe_id,
                "report": {task: list(interval) for task, interval in model.report.items()},
                "mean": list(model.mean),
            }
            for name, model in models.items()
        },
        "front": len(results.front),
        "hypervolume": {"front": results.hypervolume.report, "references": results.hypervolume.references},
        "comparisons": {
            f"{one.better} - {one.worse}": {
                "what": one.what,
                "difference": list(one.difference),
                "verdict": one.verdict,
            }
            for one in results.comparisons
        },
        "costs": dict(results.costs),
    }


def by_name(results: Results) -> dict[str, Comparison]:
    """Return the comparisons by name; a seed has none of the pick with itself."""
    return {against(one.better, one.worse): one for one in results.comparisons}


def over_seeds(runs: Sequence[Results]) -> dict[str, Any]:
    """Return each comparison over all seeds that have it: mean, standard deviation, and the number of seeds by verdict."""
    found = [by_name(results) for results in runs]
    summary = {}
    for name in dict.fromkeys(name for one in found for name in one):
        rows = [one[name] for one in found if name in one]
        values = np.array([row.difference[0] for row in rows])
        summary[name] = {
            "what": rows[0].what,
            "mean": float(values.mean()),
            "deviation": float(values.std(ddof=1)) if len(values) > 1 else None,
            "shown_better": sum(row.verdict == "better" for row in rows),
            "shown_worse": sum(row.verdict == "worse" for row in rows),
            "seeds": len(rows),
        }
    return summary


def against(better: str, worse: str) -> str:
    """Return a comparison's name without that of the reference, which differs between seeds."""
    return f"{better} - {worse.partition(' (')[0]}"


def tables(by_seed: Mapping[int, Results], summary: Mapping[str, Any]) -> str:
    parts = []
    for seed, results in by_seed.items():
        reported = [objective.report for objective in results.objectives]
        share = wording.mean_metric(results)
        models = {**results.references, "**picked model**": results.pick}
        rows = [
            [
                name,
                *(wording.interval(model.report[o.name], o.report) for o in results.objectives),
                wording.interval(model.mean, share),
            ]
            for name, model in models.items()
        ]
        columns = [
            f"seed {seed}, {wording.metric(reported[0])} on unseen examples",
            *(o.name for o in results.objectives),
        ]
        parts.append(table([*columns, "mean"], rows))
        volume = results.hypervolume
        parts.append(
            f"Hypervolume on unseen examples: front ({len(results.front)} points) {wording.volume(volume.report)}, "
            f"best references together {wording.volume(volume.references)}; {results.evaluations} evaluations."
        )
    metric = wording.mean_metric(next(iter(by_seed.values())))
    rows = []
    for name, entry in summary.items():
        ones = [by_name(results).get(name) for results in by_seed.values()]
        each = ["" if one is None else shown(one.difference, entry["what"], metric) for one in ones]
        spread = "" if entry["deviation"] is None else f" ± {size(entry['deviation'], entry['what'], metric)}"
        mean = difference(entry["mean"], entry["what"], metric) + spread
        rows.append([name, *each, mean, f"{entry['shown_better']} of {entry['seeds']}"])
    columns = [
        "difference on unseen examples",
        *(f"seed {seed}" for seed in by_seed),
        "mean ± deviation",
        "shown better",
    ]
    return "\n\n".join([table(columns, rows), *parts])


def shown(values: tuple[float, float, float], what: str, metric: str) -> str:
    value, low, high = (difference(number, what, metric) for number in values)
    return f"{value} [{low}, {high}]"


def difference(number: float, what: str, metric: str) -> str:
    return wording.volume(number, sign=True) if what == "hypervolume" else wording.value(number, metric, sign=True)


def size(number: float, what: str, metric: str) -> str:
    return wording.volume(number) if what == "hypervolume" else wording.value(number, metric)


def draw(by_seed: Mapping[int, Results]) -> Figure:
    """Draw the difference of each comparison by seed, with its interval and a line at 0."""
    metric = wording.mean_metric(next(iter(by_seed.values())))
    found = {seed: by_name(results) for seed, results in by_seed.items()}
    names = {name: one.what for of in found.values() for name, one in of.items()}
    figure = Figure(figsize=(11, 1.6 + 0.35 * len(by_seed)), layout="constrained")
    for axes, (name, what) in zip(figure.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
        factor = 100.0 if what == "mean" and wording.is_share(metric) else 1.0
        for row, (seed, of) in enumerate(found.items()):
            if name not in of:
                continue
            value, low, high = (factor * number for number in of[name].difference)
            axes.plot([low, high], [row, row], color="#0072B2", linewidth=1.6)
            axes.plot(value, row, marker="o", color="#0072B2")
            axes.annotate(
                f"seed {seed}", (value, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        axes.axvline(0, color="#6b6b6b", linestyle="--", linewidth=1)
        axes.set_yticks([])
        axes.set_ylim(len(by_seed) - 0.5, -0.7)
        axes.set_title(name.replace(" - ", "\nminus "), fontsize=9)
        axes.set_xlabel("hypervolume" if what == "hypervolume" else f"mean {metric}{wording.unit(metric)}")
    return figure


if __name__ == "__main__":
    main("text_zoo", __doc__, measure, seeds=SEEDS)
