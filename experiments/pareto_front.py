"""How many evaluations does a front of merged experts cost, and what is it worth on examples that no search has seen?

One weight for each expert (task arithmetic), one objective for each task: accuracy. Surrogates of each example's margin
(ours) beside MAP (Li et al., ICLR 2025, arXiv 2406.07529), NSGA-II, NSGA-III, Optuna's TPE and Gaussian process (which cuts
the space above a front into boxes: with four tasks, 60 evaluations take 8 GiB), COMO-CatCMA (two tasks) and random search. What is counted are real evaluations: a candidate merged, and scored on the search split. The
reference is a dense one, and all that any method evaluated. Hypervolumes are shares of the reference's, above the
nadir of its front less a tenth of its range; on the report split, of what was not dominated on the search split, as a
share of what the dense reference has there. p is the number of coefficients of a quadratic: 6, 10, 15 for 2, 3, 4 tasks.

    python experiments/pareto_front.py [--smoke] [--seeds N] [--evaluations N] [--only PART ...] [--json] [--out DIR]

A run that was cut short goes on where it was when typed again: scores and searches are kept under `runs/pareto_front/`.
The zoos are the same for all seeds, the searches are not.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from shared import fronts
from shared.fronts import Bench, Como, Run
from shared.harness import Findings, Switches, main, say, table

from evomerge import files, pareto, search
from evomerge.recipe import Recipe
from evomerge.report import bootstrap
from evomerge.report.figures import style
from evomerge.search import Driver
from evomerge.search.fronts import quadratic
from evomerge.trial import Evaluation, Proposal

SEEDS = 5
EVALUATIONS = 1200
SMOKE_EVALUATIONS = 12
SCORES = Path("runs") / "pareto_front"
SHARES = (90, 95, 99)  # % of the reference's hypervolume
SHOWN = 15  # points of a surface that are evaluated, to judge it by
WHOLE = 400  # where a candidate costs little, so many


@dataclass(frozen=True)
class Bed:
    """What is searched: the first tasks of a zoo, and what its dense reference and its searches may cost."""

    zoo: str
    tasks: int
    levels: int = 0
    """Of the reference's grid, a gene."""
    points: int = 0
    """Of the reference's Sobol points."""
    refinements: int = 0
    seeds: int = SEEDS
    evaluations: int = 300
    """The most that a search may have."""
    ours: int = 150
    """The most that ours may have."""
    precision: str = "float32"
    batch: int = 512
    whole: bool = True
    """Judge whole surfaces too."""

    def __str__(self) -> str:
        return f"{self.zoo}, {self.tasks} tasks"

    @property
    def part(self) -> str:
        """Its name for `--only`."""
        return f"{self.zoo}-{self.tasks}"


# A candidate takes 1.3 CPU seconds or more, and 3.4 on the report split.
TEXT = Bed(
    "text", 3, points=256, refinements=100, seeds=3, evaluations=350, ours=100, precision="fast", batch=64, whole=False
)
BEDS = (
    Bed("digits", 2, levels=41),
    Bed("digits", 3, points=1024, refinements=1000, evaluations=1200, ours=250),
    Bed("digits", 4, points=1024, refinements=1000),
    TEXT,
    replace(TEXT, zoo="text4", tasks=4, seeds=1, evaluations=100),
)
SMOKE_BEDS = (Bed("digits", 2, levels=4, refinements=4),)

Make = Callable[[Bench, int], Driver]


def of_kind(kind: str, **settings: Any) -> Make:
    """Return what makes the driver of a `kind`."""
    return lambda bench, seed: search.make({"kind": kind, **settings}, bench.space, bench.objectives, seed)


METHODS: Mapping[str, tuple[Make, int]] = {
    "ours": (of_kind("front"), 250),
    "ours, without its stop": (of_kind("front", tolerance=0), 250),
    "MAP": (of_kind("map"), 100),
    "MAP, 50 + 50": (of_kind("map", points=50, validated=50), 100),
    "NSGA-II": (of_kind("nsga2", population=20), 1200),
    "NSGA-III": (of_kind("nsga3", population=20), 300),
    "TPE": (of_kind("tpe", batch=1), 100),
    "GP sampler": (of_kind("gp", batch=1), 60),
    "COMO-CatCMA": (lambda bench, seed: Como(bench.space, bench.objectives, seed), 300),
    "random": (of_kind("random"), 300),
}
"""Each method's driver and the most evaluations that it may have."""
MOST_TASKS = {"COMO-CatCMA": 2}
TWINS = ("ours, without its stop", "MAP, 50 + 50", "NSGA-III")
"""Methods that a smoke run leaves out: others run the same code."""
SURFACES = ("ours", "MAP")
"""Methods whose fit proposes a front without evaluating it."""


@dataclass(frozen=True)
class Surface:
    """What a fit of the first 2p evaluations proposes: up to 15 candidates, or 400, evaluated only to judge it."""

    method: str
    seed: int
    recipes: Sequence[Recipe]
    points: NDArray[np.float64]
    """Mean scores on the search split that were measured, `(recipes, objectives)`."""
    refused: str | None
    """Why the driver itself would not publish it."""


@dataclass(frozen=True)
class Reference:
    """What shares are of, and the dense reference's models on the report split."""

    corner: NDArray[np.float64]
    volume: float
    models: Sequence[Mapping[str, NDArray[np.float32]]]
    few: Sequence[Mapping[str, NDArray[np.float32]]]
    """15 of them, chosen by their search scores: as many as a surface has."""
    report_corner: NDArray[np.float64]
    report_volume: float
    report_interval: tuple[float, float]
    """Ends of the 95 % interval of that volume over the unseen examples."""
    evaluations: int


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pareto_front-") as scratch:
        folder = Path(scratch) if switches.smoke else SCORES
        beds = SMOKE_BEDS if switches.smoke else [bed for bed in BEDS if bed.part in switches.parts]
        found = [(bed, *compare(bed, folder, switches)) for bed in beds]
    figures = {
        "rows": [row for _, rows, _, _ in found for row in rows],
        "references": [{"zoo": bed.zoo, "tasks": bed.tasks, **about} for bed, _, about, _ in found],
    }
    parts = [text(bed, rows, about) for bed, rows, about, _ in found]
    drawn = draw([(bed, curves) for bed, _, _, curves in found])
    return Findings(figures, "\n\n".join(parts), drawn, packages=["pymoo", "cmaes", "optuna", "moocore", "matplotlib"])


# -- searching ---------------------------------------------------------------------------------------------------------


def compare(
    bed: Bed, folder: Path, switches: Switches
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, list[NDArray[np.float64]]]]:
    """Return the rows of one bed, its reference, and each method's shares after 1, 2, … evaluations."""
    bench = fronts.open_bench(bed.zoo, bed.tasks, folder, precision=bed.precision, batch=bed.batch)
    say(f"{bed}: dense reference")
    dense = fronts.dense(bench, bed.levels, bed.points, bed.refinements)
    runs: list[Run] = []
    surfaces: list[Surface] = []
    for seed in switches.seeds[: bed.seeds]:
        for method, (make, most) in METHODS.items():
            if bed.tasks > MOST_TASKS.get(method, bed.tasks) or (method in TWINS and switches.smoke):
                continue
            budget = min(most, bed.ours if method.startswith("ours") else bed.evaluations, switches.evaluations)
            if method == "ours, without its stop" and not runs[-1].over:
                runs.append(replace(runs[-1], method=method))  # it did not stop before
                continue
            run = kept(method, make, seed, bench, budget)
            runs.append(run)
            say(f"{bed}, seed {seed}: {method}, {len(run.points)} evaluations")
        if switches.evaluations >= told(bed)[0]:
            surfaces += judged(bed, seed, bench)
    reference = refer(bench, dense, runs)
    rows = [row_of(bed, bench, reference, run) for run in runs]
    rows += [row_of_surface(bed, bench, reference, surface) for surface in surfaces]
    curves: dict[str, list[NDArray[np.float64]]] = {}
    for run in runs:
        curves.setdefault(run.method, []).append(history(run, reference))
    bench.save()
    about = {
        "evaluations": reference.evaluations,
        "search_hv": reference.volume,
        "dense_share": pareto.hypervolume(dense[1], reference.corner) / reference.volume,
        "dense_report_hv": reference.report_volume,
        "dense_report_interval": [end / reference.report_volume for end in reference.report_interval],
        "dense_front": len(reference.models),
        "dense_15_report_share": few_share(reference, bench.objectives),
        "search_corner": reference.corner.tolist(),
        "report_corner": reference.report_corner.tolist(),
        "objectives": bench.objectives,
    }
    return rows, about, curves


def kept(method: str, make: Make, seed: int, bench: Bench, budget: int) -> Run:
    """Search by one method; a search that was written before is read."""
    path = bench.folder / f"{method}, seed {seed}, {budget}.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        recipes = [Recipe.parse(data) for data in known["recipes"]]
        return Run(method, seed, recipes, bench.means(recipes), len(recipes), known["over"])
    trail: list[tuple[Proposal, Evaluation]] = []
    over = fronts.drive(make(bench, seed), bench, budget, trail)
    bench.save()
    run = fronts.as_run(method, seed, trail, bench, over=over)
    files.write(path, json.dumps({"recipes": [recipe.data for recipe in run.recipes], "over": over}) + "\n")
    return run


def judged(bed: Bed, seed: int, bench: Bench) -> list[Surface]:
    """Return what each fit of a method's first 2p evaluations proposes: 15 of its candidates, and if it is wanted the whole."""
    fits = {}
    for method in SURFACES:
        driver = METHODS[method][0](bench, seed)
        trail: list[tuple[Proposal, Evaluation]] = []
        fronts.drive(driver, bench, told(bed)[0], trail)
        fits[method] = proposed(driver, trail, bench, seed)
    found = []
    for name, most in {"surface": SHOWN, **({"whole surface": WHOLE} if bed.whole else {})}.items():
        for method, (recipes, scores, refused) in fits.items():
            chosen = [recipes[i] for i in fronts.few(scores, most)]
            found.append(Surface(f"{method}, {name}", seed, chosen, bench.means(chosen), refused))
    return found


def proposed(
    driver: Any, trail: Sequence[tuple[Proposal, Evaluation]], bench: Bench, seed: int
) -> tuple[Sequence[Recipe], NDArray[np.float64], str | None]:
    """Return the front that a fit proposes: candidates, their predicted means, and why it must not be published."""
    if isinstance(driver.breeder, quadratic.Map):
        unit = bench.space.to_unit(np.array([proposal.genome for proposal, _ in trail]))
        means = np.array([evaluation.means(bench.objectives) for _, evaluation in trail])
        fits = [quadratic.fit(unit, column, (0.0, 1.0)) for column in means.T]
        points, scores = quadratic.front(fits, unit.shape[1], seed)
        return [bench.space.decode(genome) for genome in bench.space.from_unit(points)], scores, None
    surface = driver.breeder.surface(*driver.unfinished())
    return surface.recipes, surface.means, surface.refused


# -- judging -----------------------------------------------------------------------------------------------------------


def refer(bench: Bench, dense: tuple[list[Recipe], NDArray[np.float64]], runs: Sequence[Run]) -> Reference:
    """Return the reference: on the search split of all that was evaluated, on the report split of the dense one's front."""
    everything = np.concatenate([dense[1], *(run.points for run in runs)])
    corner = fronts.corner(everything)
    best = [dense[0][i] for i in np.flatnonzero(pareto.nondominated(dense[1]))]
    chosen = [best[i] for i in fronts.few(bench.means(best), SHOWN)]
    means = bench.means(best, "report")
    report_corner = fronts.corner(means)
    scored = [bench.score(recipe, "report").scores for recipe in best]
    return Reference(
        corner,
        pareto.hypervolume(everything, corner),
        scored,
        [bench.score(recipe, "report").scores for recipe in chosen],
        report_corner,
        pareto.hypervolume(means, report_corner),
        spread(scored, bench.objectives, report_corner),
        len(dense[0]),
    )


def spread(
    models: Sequence[Mapping[str, NDArray[np.float32]]], objectives: Sequence[str], corner: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the ends of the 95 % interval, over examples, of the hypervolume of models."""
    draws = bootstrap.resamples({name: len(models[0][name]) for name in objectives}, n=200)
    means = np.stack([draws.means(model) for model in models], axis=1)  # (resamples, models, objectives)
    low, high = np.quantile([pareto.hypervolume(drawn, corner) for drawn in means], (0.025, 0.975))
    return float(low), float(high)


def history(run: Run, reference: Reference) -> NDArray[np.float64]:
    """Return the shares of the reference's hypervolume after 1, 2, … evaluations."""
    return pareto.hypervolume_history(run.points, reference.corner) / reference.volume


def row_of(bed: Bed, bench: Bench, reference: Reference, run: Run) -> dict[str, Any]:
    shares = history(run, reference)
    counts = told(bed)
    reached = {share: np.flatnonzero(shares >= share / 100) for share in SHARES}
    known = [count for count in counts if run.reaches(count)]
    sets = {count: run.front(count) for count in known}
    early = counts[0]
    return {
        "zoo": bed.zoo,
        "tasks": bed.tasks,
        "method": run.method,
        "seed": run.seed,
        "evaluations": len(run.points),
        "over": run.over,
        "evaluations_to": {str(share): int(rows[0]) + 1 if len(rows) else None for share, rows in reached.items()},
        "search_hv": {str(count): float(shares[:count][-1]) for count in known},
        "report_hv": {str(count): report_share(bench, reference, models) for count, models in sets.items()},
        "report_minus_dense": {str(early): against(bench, reference, sets[early], reference.models)}
        if early in sets
        else {},
    }


def row_of_surface(bed: Bed, bench: Bench, reference: Reference, surface: Surface) -> dict[str, Any]:
    early = str(told(bed)[0])
    proposed_any = bool(surface.recipes)
    volume = pareto.hypervolume(surface.points, reference.corner) if proposed_any else 0.0
    return {
        "zoo": bed.zoo,
        "tasks": bed.tasks,
        "method": surface.method,
        "seed": surface.seed,
        "evaluations": int(early),
        "judged_by": len(surface.recipes),
        "refused": surface.refused,
        "evaluations_to": dict.fromkeys(map(str, SHARES)),
        "search_hv": {early: volume / reference.volume},
        "report_hv": {early: report_share(bench, reference, surface.recipes)},
        "report_minus_dense": {early: against(bench, reference, surface.recipes, reference.models)}
        if proposed_any
        else {},
        "report_minus_dense_15": {early: against(bench, reference, surface.recipes, reference.few)}
        if 0 < len(surface.recipes) <= SHOWN
        else {},
    }


def report_share(bench: Bench, reference: Reference, models: Sequence[Recipe]) -> float:
    """Return the hypervolume of models on the report split, as a share of the dense reference's."""
    if not models:
        return 0.0
    return pareto.hypervolume(bench.means(models, "report"), reference.report_corner) / reference.report_volume


def few_share(reference: Reference, objectives: Sequence[str]) -> float:
    """Return the hypervolume on the report split of 15 models of the dense reference, as a share of what all have."""
    means = np.array([[scores[name].mean(dtype=np.float64) for name in objectives] for scores in reference.few])
    return pareto.hypervolume(means, reference.report_corner) / reference.report_volume


def against(
    bench: Bench,
    reference: Reference,
    models: Sequence[Recipe],
    rivals: Sequence[Mapping[str, NDArray[np.float32]]],
) -> list[float]:
    """Return by what share of the dense reference models exceed rivals on the report split, [value, low, high] at 95 %.

    Corrected for the luck of larger sets: see `bootstrap.hypervolume_difference`.
    """
    found = [bench.score(recipe, "report").scores for recipe in models]
    point = dict(zip(bench.objectives, reference.report_corner, strict=True))
    draws = bootstrap.resamples({name: len(rivals[0][name]) for name in bench.objectives}, n=500)
    gap = bootstrap.hypervolume_difference(found, rivals, point, draws)
    return [value / reference.report_volume for value in gap]


def told(bed: Bed) -> list[int]:
    """Return the numbers of evaluations at which hypervolumes are told: 2p, 4p and 100."""
    p = fronts.unknowns(bed.tasks)
    return [2 * p, 4 * p, 100]


# -- what is shown -----------------------------------------------------------------------------------------------------


def text(bed: Bed, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Return the table of one bed, and how its targets stand."""
    counts = told(bed)
    head = [
        str(bed),
        *(f"to {share} %" for share in SHARES),
        *(f"search @{count}" for count in counts),
        *(f"report @{count}" for count in counts),
        f"report @{counts[0]} minus dense",
        f"minus {SHOWN} of dense",
    ]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [] if "judged_by" in own[0] else [reached(own, str(share)) for share in SHARES]
        cells = cells or [""] * len(SHARES)
        cells += [band([row[kind].get(str(n)) for row in own]) for kind in ("search_hv", "report_hv") for n in counts]
        gaps = [differences(own, kind, str(counts[0])) for kind in ("report_minus_dense", "report_minus_dense_15")]
        lines.append([method, *cells, *gaps])
    n = len({row["seed"] for row in rows})
    low, high = about["dense_report_interval"]
    about_text = (
        f"Evaluations to a share of the reference's hypervolume on the search split: median over {n} seeds (how many got "
        f"there); hypervolumes are shares: median [lowest, highest]. The dense reference: {about['evaluations']:,} evaluations, "
        f"{about['dense_share']:.3f} on the search split, {about['dense_front']} models on the report split, whose hypervolume has the 95 % "
        f"interval [{low:.3f}, {high:.3f}] there. A surface is what a fit proposes after {counts[0]} evaluations: {SHOWN} "
        f"candidates of it, or of a whole one up to {WHOLE}, which are evaluated only to judge it. Last "
        f"columns: differences on unseen examples from all of the dense reference's front and, of sets of one size, from {SHOWN} "
        "of it; medians over seeds of the value and of its 95 % interval."
    )
    return "\n\n".join([table(head, lines), about_text, *targets(bed, rows, low)])


def reached(rows: Sequence[Mapping[str, Any]], share: str) -> str:
    values = [row["evaluations_to"][share] for row in rows]
    got = [value for value in values if value is not None]
    middle = median_to(rows, share)
    shown = f">{max(row['evaluations'] for row in rows)}" if middle is None else f"{middle:g}"
    return f"{shown} ({len(got)}/{len(values)})"


def median_to(rows: Sequence[Mapping[str, Any]], share: str) -> float | None:
    """Return the median over seeds of the evaluations to a share; None where half of them or more did not get there."""
    values = [np.inf if (found := row["evaluations_to"][share]) is None else found for row in rows]
    middle = float(np.median(values)) if np.isfinite(values).sum() > len(values) / 2 else np.inf
    return middle if np.isfinite(middle) else None


def band(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{np.median(known):.3f} [{min(known):.3f}, {max(known):.3f}]"


def differences(rows: Sequence[Mapping[str, Any]], kind: str, count: str) -> str:
    found = [row[kind][count] for row in rows if count in row.get(kind, {})]
    if not found:
        return ""
    value, low, high = np.median(found, axis=0)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def targets(bed: Bed, rows: Sequence[Mapping[str, Any]], low: float) -> list[str]:
    """Return how the targets stand: evaluations beside NSGA-II's, the report split beside the dense reference and MAP.

    `low` is the lower end of the interval of the dense reference's hypervolume on the report split, as a share of it.
    """
    by_method = {
        name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)
    }
    rivals = by_method["NSGA-II"]
    needed = median_to(rivals, "95")
    most = max(row["evaluations"] for row in rivals)
    said = []
    for name in [name for name in by_method if name in ("ours", "ours, without its stop")]:
        own = median_to(by_method[name], "95")
        if own is None:
            said.append(f"{name} does not get to 95 %")
        elif needed is None:
            said.append(
                f"{name} gets to 95 % with {own:g} evaluations, NSGA-II not with {most}: less than {own / most:.2f} of its"
            )
        else:
            said.append(f"{name} gets to 95 % with {own / needed:.2f} of NSGA-II's evaluations ({own:g} of {needed:g})")
    early = str(told(bed)[0])
    lines = [f"95 %: {'; '.join(said)}."]
    for name, rival, kind, what in (
        ("ours", "MAP", "report_minus_dense", "the dense reference"),
        ("ours, surface", "MAP, surface", "report_minus_dense_15", f"{SHOWN} models of the dense reference"),
        ("ours, whole surface", "MAP, whole surface", "report_minus_dense", "the dense reference"),
    ):
        pairs = list(zip(by_method.get(name, []), by_method.get(rival, []), strict=True))
        pairs = [(a, b) for a, b in pairs if early in a[kind] and early in b["report_hv"]]
        if not pairs:
            continue
        not_below = sum(a[kind][early][2] >= 0 for a, _ in pairs)
        above = sum(a["report_hv"][early] >= b["report_hv"][early] for a, b in pairs)
        refused = sum(bool(a.get("refused")) for a, _ in pairs)
        within = sum(a["report_hv"][early] >= low for a, _ in pairs)
        lines.append(
            f"{name}, {early} evaluations, unseen examples: not below {what} by more than the paired interval in {not_below} "
            f"of {len(pairs)} seeds, in {within} not below the interval of all of the dense reference, not below {rival} in {above}"
            + (f"; {refused} refused to be published." if "refused" in pairs[0][0] else ".")
        )
    return lines


COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#7f7f7f", "#CC79A7", "#8c564b", "#000000", "#bcbd22")


def draw(found: Sequence[tuple[Bed, Mapping[str, Sequence[NDArray[np.float64]]]]]) -> Figure:
    """Draw shares of the reference's hypervolume against evaluations: the median over seeds, and the range in which they lie."""
    columns = min(len(found), 2)
    count = -(-len(found) // columns)
    figure = Figure(figsize=(5.6 * columns + 0.6, 3.9 * count + 0.7), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False).ravel()
    colours = dict(zip(METHODS, COLOURS, strict=True))
    for axes, (bed, curves) in zip(panels, found, strict=False):
        panel(axes, bed, curves, colours)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label() in METHODS}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=9
    )
    return figure


def panel(
    axes: Axes, bed: Bed, curves: Mapping[str, Sequence[NDArray[np.float64]]], colours: Mapping[str, str]
) -> None:
    for name, found in curves.items():
        longest = max(map(len, found))
        # What a search that ended by itself has is what it keeps.
        values = np.array([np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in found])
        evaluations = np.arange(1, longest + 1)
        ours = name.startswith("ours")
        axes.plot(
            evaluations, np.median(values, axis=0), color=colours[name], linewidth=2.2 if ours else 1.4, label=name
        )
        axes.fill_between(evaluations, values.min(0), values.max(0), color=colours[name], alpha=0.1, linewidth=0)
    axes.axhline(0.95, color="#6b6b6b", linestyle="--", linewidth=0.8)
    axes.axvline(told(bed)[0], color="#6b6b6b", linestyle=":", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(left=4)
    axes.set_ylim(0.4, 1.01)
    axes.set_title(str(bed), loc="left", fontsize=11)
    axes.set_xlabel("evaluations (dotted: 2p)")
    axes.set_ylabel("share of the reference's hypervolume")
    style(axes)


if __name__ == "__main__":
    main(
        "pareto_front",
        __doc__,
        measure,
        seeds=SEEDS,
        evaluations=(EVALUATIONS, SMOKE_EVALUATIONS),
        parts=[bed.part for bed in BEDS],
    )
