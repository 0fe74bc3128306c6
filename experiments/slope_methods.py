"""Which method follows slopes best: the drivers' own against published ones, at equal budgets, on unseen examples.

One objective, the mean of the tasks' log-likelihoods in units of what there is to gain: the driver `gradient`, also with the ridge
that it has where it is the default, plain Adam, L-BFGS-B of scipy (over all training examples, so that its slopes have no noise but that of the examples,
also with the ridge), and Levenberg-Marquardt on per-example log-likelihoods, whose slopes torch gives one example at a time. All have the
same training part, and the validation part chooses the candidate.

Fronts: the driver `front` along slopes, MGDA from several starts, EPO search over preferences, hypervolume gradient ascent of
a set of points, and weighted sums. The rivals improve equal weights first, as the driver does, and then ten points in turn,
one for each task and pair of tasks, by Adam in the direction that their rule gives. Nothing was tuned for them: Adam has the rate and
the levels of the driver `gradient`.

The bed is the zoo `digits`, a zoo for each seed: task arithmetic with a weight for each expert and tensor, the first 100 search
examples of each of four tasks. Every method scores the known recipes first. An example with slopes counts as three. Unseen scores are those
of the report examples. A front is that of the search scores, and its unseen hypervolume, of accuracies, is above the worst of base and
experts in each task, as a share of the volume up to the task's own expert.

    python experiments/slope_methods.py [--smoke] [--seeds N] [--evaluations N] [--only METHOD …] [--json] [--out DIR]

`--evaluations` is the budget for one objective, in plain scores; fronts have twice that. What is done is kept in `runs/slope_methods/`.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from shared import rivals
from shared.harness import Findings, Switches, main, say, table
from shared.rivals import Bed, Done, Spent, Trail, spent

from evomerge import files, pareto, search
from evomerge.recipe import base, expert
from evomerge.report.figures import style
from evomerge.search.slopes.gradient import RIDGE
from evomerge.trial import Evaluation, Proposal

SEEDS = 3
EVALUATIONS = 120
FRONT = 12  # points of a front that are scored on the unseen examples
PARTS = (1 / 4, 1 / 2, 1.0)  # of the budget
FOLDER = Path("runs") / "slope_methods"


def drive(settings: Mapping[str, Any], bed: Bed, seed: int, budget: float) -> Done:
    """Search with a driver of the package."""
    driver = search.make(settings, bed.space, bed.metrics, seed, bed.sizes)
    done: Done = []
    while (proposal := driver.ask()) is not None:
        evaluation = bed.score(proposal.recipe, proposal.slopes)
        if spent([*done, (proposal, evaluation)], bed)[-1] > budget:
            break
        driver.tell(proposal, evaluation)
        done.append((proposal, evaluation))
    return done


DRIVERS: dict[str, dict[str, Any]] = {
    "gradient": {"kind": "gradient"},
    "gradient, ridge": {"kind": "gradient", "ridge": RIDGE},
    "front": {"kind": "front", "slopes": True},
}
ONE: dict[str, Callable[[Trail], None]] = {
    "plain Adam": rivals.adam,
    "L-BFGS-B": rivals.lbfgs,
    "L-BFGS-B, ridge": lambda trail: rivals.lbfgs(trail, RIDGE),
    "Levenberg-Marquardt": rivals.gauss_newton,
}
MANY: dict[str, Callable[[Trail], None]] = {
    "MGDA": rivals.mgda,
    "EPO": rivals.epo,
    "hypervolume ascent": rivals.hypervolume,
    "weighted sums": rivals.weighted,
}
METHODS = (*[name for name in DRIVERS if name.startswith("gradient")], *ONE, "front", *MANY)
FRONTS = ("front", *MANY)


def searched(method: str, bed: Bed, seed: int, budget: float) -> Done:
    """Return what a method evaluates within its budget."""
    if method in DRIVERS:
        return drive(DRIVERS[method], bed, seed, budget)
    trail = Trail(bed, seed, budget, 0.0 if method in MANY else 0.2)
    with contextlib.suppress(Spent):
        (MANY | ONE)[method](trail)
    return trail.done


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    rows = []
    for seed in switches.seeds:
        bed = Bed(seed)
        for method in ("gradient", "MGDA") if switches.smoke else switches.parts:
            kept = FOLDER / f"{method}-{switches.evaluations}-{seed}.json".replace(" ", "-")
            if switches.smoke or not kept.exists():
                say(f"{method}, seed {seed}")
                found = list(rows_of(method, bed, seed, switches.evaluations * (2 if method in FRONTS else 1)))
                if switches.smoke:
                    rows += found
                    continue
                files.write(kept, json.dumps(found))
            rows += json.loads(kept.read_text(encoding="utf-8"))
    return Findings({"rows": rows}, text(rows), draw(rows), packages=["scipy"])


def rows_of(method: str, bed: Bed, seed: int, budget: float) -> Iterator[dict[str, Any]]:
    """Run one search, and yield a row for each part of its budget."""
    start = time.process_time()
    done = searched(method, bed, seed, budget)
    seconds, used = time.process_time() - start, spent(done, bed)
    for share in PARTS:
        upto = [pair for pair, units_ in zip(done, used, strict=True) if units_ <= share * budget + 1e-9]
        pick = picked(upto, bed)
        yield {
            "method": method,
            "seed": seed,
            "budget": share * budget,
            "units": float(used[len(upto) - 1]),
            "evaluations": len(upto),
            "cpu_s": seconds if share == PARTS[-1] else None,
            "search": float(pick[1].means(bed.objectives).mean()),
            "unseen": float(bed.unseen(pick[0].recipe).mean()),
            "unseen_log_likelihood": float(bed.unseen(pick[0].recipe, "log_likelihood").mean()),
            "unseen_hv": volume(upto, bed) if method in FRONTS else None,
        }


def picked(done: Done, bed: Bed) -> tuple[Proposal, Evaluation]:
    """Return the candidate with the best mean over the tasks, of the examples that gave no slopes where there are any."""
    wanted = next((proposal.slopes for proposal, _ in done if proposal.slopes is not None), {})
    rows = {task: np.setdiff1d(np.arange(size), wanted.get(task, ())) for task, size in bed.sizes.items()}
    rows = {task: found if len(found) else np.arange(bed.sizes[task]) for task, found in rows.items()}

    def mean(pair: tuple[Proposal, Evaluation]) -> float:
        return float(np.mean([pair[1].scores[name][rows[name.rpartition("/")[0]]].mean() for name in bed.objectives]))

    return max(done, key=mean)


def volume(done: Done, bed: Bed) -> float:
    """Return the unseen hypervolume of the front of the search scores, as a share of what the experts together would have."""
    points = np.array([evaluation.means(bed.objectives) for _, evaluation in done])
    front = np.flatnonzero(pareto.nondominated(points))
    if len(front) > FRONT:
        front = front[pareto.subset(points[front], points.min(axis=0), FRONT)]
    known = np.array([bed.unseen(recipe) for recipe in (base(), *map(expert, bed.parts.pool.experts))])
    corner, best = known.min(axis=0), known.max(axis=0)
    reached = np.array([bed.unseen(done[i][0].recipe) for i in front])
    return pareto.hypervolume(reached, corner) / float(np.prod(best - corner))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and half of the width of its interval of 95% by Student's t; 0 for one value."""
    spread = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(spread)


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    tables = []
    for fronts in (False, True):
        column, label = (
            ("unseen_hv", "unseen hypervolume") if fronts else ("unseen_log_likelihood", "unseen log-likelihood")
        )
        names = [name for name in METHODS if any(row["method"] == name for row in rows) and (name in FRONTS) == fronts]
        cells = []
        for name in names:
            final = [row for row in rows if row["method"] == name and row["cpu_s"] is not None]
            half = [row[column] for row in rows if row["method"] == name and row["budget"] == final[0]["budget"] / 2]
            first = [row for row in rows if row["method"] == names[0] and row["cpu_s"] is not None]
            others = {row["seed"]: row[column] for row in first}
            gain, spread = interval([row[column] - others[row["seed"]] for row in final])
            cells.append(
                [
                    name,
                    str(len(final)),
                    f"{np.mean([row['units'] for row in final]):.0f}",
                    f"{np.mean([row['cpu_s'] for row in final]):.0f}",
                    f"{np.mean([row['search'] for row in final]):.4f}",
                    f"{np.mean([row['unseen'] for row in final]):.4f}",
                    f"{np.mean(half):.4f}",
                    f"{np.mean([row[column] for row in final]):.4f}",
                    "" if name == names[0] else f"{gain:+.4f} ± {spread:.4f}",
                ]
            )
        columns = [
            "fronts" if fronts else "one objective",
            "seeds",
            "units",
            "CPU s",
            "search score",
            "unseen accuracy",
        ]
        columns += [f"{label} at half of the budget", label, f"minus that of {names[0]}"] if names else []
        tables += [table(columns, cells)] * bool(names)
    about = (
        "Means over seeds, differences with intervals of 95% over them. The search score is the mean log-likelihood of all search examples, the unseen "
        "accuracy that of the report examples, both of the candidate with the best mean, on the validation part where there is one."
    )
    return "\n\n".join([*tables, about])


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw unseen scores against the budget, a line for each method: means over seeds, and a dot for each seed at the end."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = (
        ("unseen_log_likelihood", "one objective: unseen log-likelihood of the pick"),
        ("unseen_hv", "fronts: unseen hypervolume"),
    )
    for axes, (column, label) in zip(figure.subplots(1, 2), panels, strict=True):
        fronts = column == "unseen_hv"
        for name in METHODS:
            of = [row for row in rows if row["method"] == name and (name in FRONTS) == fronts]
            if not of:
                continue
            budgets = sorted({row["budget"] for row in of})
            means = [np.mean([row[column] for row in of if row["budget"] == budget]) for budget in budgets]
            [line] = axes.plot(budgets, means, marker="o", markersize=4, label=name)
            final = [row[column] for row in of if row["budget"] == budgets[-1]]
            axes.scatter([budgets[-1] * 1.03] * len(final), final, s=10, color=line.get_color(), alpha=0.6)
        style(axes)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("budget, plain scores")
        if axes.has_data():
            axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main("slope_methods", __doc__, measure, seeds=SEEDS, evaluations=(EVALUATIONS, 16), parts=METHODS)
