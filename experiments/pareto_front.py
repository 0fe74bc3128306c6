"""How many evaluations does a front of merged experts take, and how good is it on unseen examples?

One weight per expert (task arithmetic), one objective per task: accuracy. Compared: surrogates of each example's margin
(ours), MAP (Li et al., ICLR 2025, arXiv 2406.07529), NSGA-II, NSGA-III, Optuna's TPE and Gaussian process (its box decomposition
takes 8 GiB for 60 evaluations of four tasks), COMO-CatCMA (two tasks), random search, and weights that sum to 1, drawn uniformly
(`simplex`). The cost is the number of evaluations: candidates merged and scored on the search split. The reference is a dense
set together with all evaluations of all methods. Hypervolumes are shares of the reference's, above the nadir of its front minus a tenth of its range; on the report split
they are of the candidates not dominated on the search split, as a share of the dense set's there. p is the number of
coefficients of a quadratic: 6, 10, 15 for 2, 3, 4 tasks.

    python experiments/pareto_front.py [--smoke] [--seeds N] [--evaluations N] [--only PART ...] [--json] [--out DIR]

An interrupted run resumes with the same command: scores and searches are kept in `runs/pareto_front/`. All seeds share
the zoos.
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
from shared.fronts import Bench, Como, Run, Simplex
from shared.harness import Findings, Switches, main, say, table

from evomerge import files, pareto, search
from evomerge.recipe import Recipe
from evomerge.report import bootstrap
from evomerge.report.figures import style
from evomerge.search import Driver
from evomerge.search.fronts.map import Map
from evomerge.search.fronts.quadratic import predicted_front
from evomerge.surrogate.map_quadratic import fit_map_quadratic
from evomerge.trial import Evaluation, Proposal

SEEDS = 5
EVALUATIONS = 1200
SMOKE_EVALUATIONS = 12
SCORES = Path("runs") / "pareto_front"
SHARES = (90, 95, 99)  # % of the reference's hypervolume
SHOWN = 15  # number of points of a surface that are evaluated
ALL = 400  # maximum number for the full surface, on beds with cheap candidates


@dataclass(frozen=True)
class Bed:
    """A problem: the first tasks of a zoo, with the sizes of its dense reference and the budgets of its searches."""

    zoo: str
    tasks: int
    levels: int = 0
    """Levels of the reference's grid per gene."""
    points: int = 0
    """Number of the reference's Sobol points."""
    refinements: int = 0
    seeds: int = SEEDS
    evaluations: int = 300
    """Maximum budget of a search."""
    ours: int = 150
    """Maximum budget of ours."""
    precision: str = "float32"
    batch: int = 512
    full: bool = True
    """Whether full surfaces are evaluated as well."""

    def __str__(self) -> str:
        return f"{self.zoo}, {self.tasks} tasks"

    @property
    def part(self) -> str:
        """The name for `--only`."""
        return f"{self.zoo}-{self.tasks}"


# A candidate takes 1.3 CPU seconds or more, and 3.4 on the report split.
TEXT = Bed(
    "text", 3, points=256, refinements=100, seeds=3, evaluations=350, ours=100, precision="fast", batch=64, full=False
)
BEDS = (
    Bed("digits", 2, levels=41),
    Bed("digits", 3, points=1024, refinements=1000, evaluations=1200, ours=250),
    Bed("digits", 4, points=1024, refinements=1000),
    TEXT,
    replace(TEXT, zoo="text4", tasks=4, seeds=1, evaluations=100),
)
SMOKE_BEDS = (Bed("digits", 2, levels=4, refinements=4, full=False),)

Make = Callable[[Bench, int], Driver]


def of_kind(kind: str, **settings: Any) -> Make:
    """Return a factory of drivers of a `kind`."""
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
    "simplex": (lambda bench, seed: Simplex(bench.space, seed), 300),
}
"""Driver and maximum budget of each method."""
MOST_TASKS = {"COMO-CatCMA": 2}
TWINS = ("ours, without its stop", "MAP, 50 + 50", "NSGA-III")
"""Methods that a smoke run omits: others run the same code."""
SURFACES = ("ours", "MAP")
"""Methods whose fit predicts a front without evaluating it."""


@dataclass(frozen=True)
class Surface:
    """Up to 15 or 400 candidates on the predicted front of a fit to 2p evaluations, evaluated only to judge it."""

    method: str
    seed: int
    recipes: Sequence[Recipe]
    points: NDArray[np.float64]
    """Measured mean scores on the search split, `(recipes, objectives)`."""
    refused: str | None
    """The driver's reason not to publish it, if any."""


@dataclass(frozen=True)
class Reference:
    """The reference point and volume of all shares, and the dense reference's models on the report split."""

    corner: NDArray[np.float64]
    volume: float
    models: Sequence[Mapping[str, NDArray[np.float32]]]
    few: Sequence[Mapping[str, NDArray[np.float32]]]
    """15 of them, as many as in a surface, chosen by their search scores."""
    report_corner: NDArray[np.float64]
    report_volume: float
    report_interval: tuple[float, float]
    """The 95 % interval of that volume over the unseen examples."""
    evaluations: int


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pareto_front-") as scratch:
        folder = Path(scratch) if switches.smoke else SCORES
        beds = SMOKE_BEDS if switches.smoke else [bed for bed in BEDS if bed.part in switches.parts]
        results = [(bed, *compare(bed, folder, switches)) for bed in beds]
    figures = {
        "rows": [row for _, rows, _, _ in results for row in rows],
        "references": [{"zoo": bed.zoo, "tasks": bed.tasks, **about} for bed, _, about, _ in results],
    }
    parts = [text(bed, rows, about) for bed, rows, about, _ in results]
    drawn = draw([(bed, curves) for bed, _, _, curves in results])
    return Findings(figures, "\n\n".join(parts), drawn, packages=["pymoo", "cmaes", "optuna", "moocore", "matplotlib"])


def compare(
    bed: Bed, folder: Path, switches: Switches
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, list[NDArray[np.float64]]]]:
    """Return the rows of a bed, its reference, and each method's shares after 1, 2, … evaluations."""
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
            run = cached(method, make, seed, bench, budget)
            runs.append(run)
            say(f"{bed}, seed {seed}: {method}, {len(run.points)} evaluations")
        if switches.evaluations >= reported(bed)[0]:
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


def cached(method: str, make: Make, seed: int, bench: Bench, budget: int) -> Run:
    """Return the run of a method and seed, from its file if there is one."""
    path = bench.folder / f"{method}, seed {seed}, {budget}.json"
    if path.exists():
        run_data = json.loads(path.read_text(encoding="utf-8"))
        recipes = [Recipe.parse(data) for data in run_data["recipes"]]
        return Run(method, seed, recipes, bench.means(recipes), len(recipes), run_data["over"])
    trail: list[tuple[Proposal, Evaluation]] = []
    over = fronts.drive(make(bench, seed), bench, budget, trail)
    bench.save()
    run = fronts.as_run(method, seed, trail, bench, over=over)
    files.write(path, json.dumps({"recipes": [recipe.data for recipe in run.recipes], "over": over}) + "\n")
    return run


def judged(bed: Bed, seed: int, bench: Bench) -> list[Surface]:
    """Return the surfaces of each method after 2p evaluations: 15 candidates, and if the bed says so the full front."""
    fits = {}
    for method in SURFACES:
        driver = METHODS[method][0](bench, seed)
        trail: list[tuple[Proposal, Evaluation]] = []
        fronts.drive(driver, bench, reported(bed)[0], trail)
        fits[method] = proposed(driver, trail, bench, seed)
    surfaces = []
    for name, most in {"surface": SHOWN, **({"whole surface": ALL} if bed.full else {})}.items():
        for method, (recipes, scores, refused) in fits.items():
            chosen = [recipes[i] for i in fronts.few(scores, most)]
            surfaces.append(Surface(f"{method}, {name}", seed, chosen, bench.means(chosen), refused))
    return surfaces


def proposed(
    driver: Any, trail: Sequence[tuple[Proposal, Evaluation]], bench: Bench, seed: int
) -> tuple[Sequence[Recipe], NDArray[np.float64], str | None]:
    """Return the predicted front of a fit: candidates, their predicted means, and the reason not to publish it, if any."""
    if isinstance(driver.breeder, Map):
        unit = bench.space.to_unit(np.array([proposal.genome for proposal, _ in trail]))
        means = np.array([evaluation.means(bench.objectives) for _, evaluation in trail])
        fits = [fit_map_quadratic(unit, column, (0.0, 1.0)) for column in means.T]
        points, scores = predicted_front(fits, unit.shape[1], seed)
        return [bench.space.decode(genome) for genome in bench.space.from_unit(points)], scores, None
    surface = driver.breeder.surface(*driver.unfinished())
    return surface.recipes, surface.means, surface.refused


def refer(bench: Bench, dense: tuple[list[Recipe], NDArray[np.float64]], runs: Sequence[Run]) -> Reference:
    """Return the reference: all evaluations on the search split, the dense set's front on the report split."""
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
        spread(scored, bench, report_corner),
        len(dense[0]),
    )


def spread(
    models: Sequence[Mapping[str, NDArray[np.float32]]], bench: Bench, corner: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the 95 % interval, over examples, of the hypervolume of models."""
    draws = bootstrap.resamples(bench.examples("report"), n=200)
    means = np.stack([draws.means(model) for model in models], axis=1)  # (resamples, models, objectives)
    low, high = np.quantile([pareto.hypervolume(drawn, corner) for drawn in means], (0.025, 0.975))
    return float(low), float(high)


def history(run: Run, reference: Reference) -> NDArray[np.float64]:
    """Return the shares of the reference's hypervolume after 1, 2, … evaluations."""
    return pareto.hypervolume_history(run.points, reference.corner) / reference.volume


def row_of(bed: Bed, bench: Bench, reference: Reference, run: Run) -> dict[str, Any]:
    shares = history(run, reference)
    counts = reported(bed)
    reached = {share: np.flatnonzero(shares >= share / 100) for share in SHARES}
    available = [count for count in counts if run.reaches(count)]
    sets = {count: run.front(count) for count in available}
    early = counts[0]
    return {
        "zoo": bed.zoo,
        "tasks": bed.tasks,
        "method": run.method,
        "seed": run.seed,
        "evaluations": len(run.points),
        "over": run.over,
        "evaluations_to": {str(share): int(rows[0]) + 1 if len(rows) else None for share, rows in reached.items()},
        "search_hv": {str(count): float(shares[:count][-1]) for count in available},
        "report_hv": {str(count): report_share(bench, reference, models) for count, models in sets.items()},
        "report_minus_dense": {str(early): against(bench, reference, sets[early], reference.models)}
        if early in sets
        else {},
    }


def row_of_surface(bed: Bed, bench: Bench, reference: Reference, surface: Surface) -> dict[str, Any]:
    early = str(reported(bed)[0])
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
    """Return the hypervolume on the report split of 15 models of the dense reference, as a share of that of all."""
    means = np.array([[scores[name].mean(dtype=np.float64) for name in objectives] for scores in reference.few])
    return pareto.hypervolume(means, reference.report_corner) / reference.report_volume


def against(
    bench: Bench,
    reference: Reference,
    models: Sequence[Recipe],
    rivals: Sequence[Mapping[str, NDArray[np.float32]]],
) -> list[float]:
    """Return the hypervolume of models minus that of rivals on the report split, [value, low, high] at 95 %.

    It is a share of the dense reference's, corrected for the sizes of the sets: see `bootstrap.hypervolume_difference`.
    """
    scores = [bench.score(recipe, "report").scores for recipe in models]
    point = dict(zip(bench.objectives, reference.report_corner, strict=True))
    draws = bootstrap.resamples(bench.examples("report"), n=500)
    gap = bootstrap.hypervolume_difference(scores, rivals, point, draws)
    return [value / reference.report_volume for value in gap]


def reported(bed: Bed) -> list[int]:
    """Return the numbers of evaluations at which hypervolumes are reported: 2p, 4p and 100."""
    p = fronts.unknowns(bed.tasks)
    return [2 * p, 4 * p, 100]


def text(bed: Bed, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Return the table of a bed, and whether its targets are met."""
    counts = reported(bed)
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
        runs = [row for row in rows if row["method"] == method]
        cells = [] if "judged_by" in runs[0] else [reached(runs, str(share)) for share in SHARES]
        cells = cells or [""] * len(SHARES)
        cells += [band([row[kind].get(str(n)) for row in runs]) for kind in ("search_hv", "report_hv") for n in counts]
        gaps = [differences(runs, kind, str(counts[0])) for kind in ("report_minus_dense", "report_minus_dense_15")]
        lines.append([method, *cells, *gaps])
    n = len({row["seed"] for row in rows})
    low, high = about["dense_report_interval"]
    about_text = (
        f"Evaluations to a share of the reference's hypervolume on the search split: median over {n} seeds (number of seeds that "
        f"reached it); hypervolumes are shares: median [lowest, highest]. Dense reference: {about['evaluations']:,} evaluations, "
        f"{about['dense_share']:.3f} on the search split; {about['dense_front']} models on the report split, where their hypervolume "
        f"has the 95 % interval [{low:.3f}, {high:.3f}]. A surface is the predicted front of a fit to {counts[0]} evaluations: {SHOWN} "
        f"candidates, or up to {ALL} of a whole surface, evaluated only to judge it. Last columns: differences on unseen "
        f"examples from the dense reference's front and, for sets of equal size, from {SHOWN} of its models; medians over seeds "
        "of the value and of its 95 % interval."
    )
    return "\n\n".join([table(head, lines), about_text, *targets(bed, rows, low)])


def reached(rows: Sequence[Mapping[str, Any]], share: str) -> str:
    values = [row["evaluations_to"][share] for row in rows]
    count = sum(value is not None for value in values)
    middle = median_to(rows, share)
    shown = f">{max(row['evaluations'] for row in rows)}" if middle is None else f"{middle:g}"
    return f"{shown} ({count}/{len(values)})"


def median_to(rows: Sequence[Mapping[str, Any]], share: str) -> float | None:
    """Return the median over seeds of the evaluations to a share; None if half of the seeds or more did not reach it."""
    values = [np.inf if (count := row["evaluations_to"][share]) is None else count for row in rows]
    middle = float(np.median(values)) if np.isfinite(values).sum() > len(values) / 2 else np.inf
    return middle if np.isfinite(middle) else None


def band(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return ""
    if len(present) == 1:
        return f"{present[0]:.3f}"
    return f"{np.median(present):.3f} [{min(present):.3f}, {max(present):.3f}]"


def differences(rows: Sequence[Mapping[str, Any]], kind: str, count: str) -> str:
    gaps = [row[kind][count] for row in rows if count in row.get(kind, {})]
    if not gaps:
        return ""
    value, low, high = np.median(gaps, axis=0)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def targets(bed: Bed, rows: Sequence[Mapping[str, Any]], low: float) -> list[str]:
    """Return the state of the targets: evaluations against NSGA-II, the report split against the dense reference and MAP.

    `low` is the lower end of the interval of the dense reference's hypervolume on the report split, as a share of it.
    """
    by_method = {
        name: [row for row in rows if row["method"] == name] for name in dict.fromkeys(r["method"] for r in rows)
    }
    rivals = by_method["NSGA-II"]
    needed = median_to(rivals, "95")
    most = max(row["evaluations"] for row in rivals)
    verdicts = []
    for name in [name for name in by_method if name in ("ours", "ours, without its stop")]:
        ours = median_to(by_method[name], "95")
        if ours is None:
            verdicts.append(f"{name} does not reach 95 %")
        elif needed is None:
            verdicts.append(
                f"{name} reaches 95 % with {ours:g} evaluations, NSGA-II not with {most}: less than {ours / most:.2f} of them"
            )
        else:
            verdicts.append(
                f"{name} reaches 95 % with {ours / needed:.2f} of NSGA-II's evaluations ({ours:g} of {needed:g})"
            )
    early = str(reported(bed)[0])
    lines = [f"95 %: {'; '.join(verdicts)}."]
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


COLOURS = (
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#E69F00",
    "#009E73",
    "#7f7f7f",
    "#CC79A7",
    "#8c564b",
    "#000000",
    "#bcbd22",
    "#8da0cb",
)


def draw(results: Sequence[tuple[Bed, Mapping[str, Sequence[NDArray[np.float64]]]]]) -> Figure:
    """Draw shares of the reference's hypervolume against evaluations: median and range over seeds."""
    columns = min(len(results), 2)
    count = -(-len(results) // columns)
    figure = Figure(figsize=(5.6 * columns + 0.6, 3.9 * count + 0.7), layout="constrained")
    panels = figure.subplots(count, columns, squeeze=False).ravel()
    colours = dict(zip(METHODS, COLOURS, strict=True))
    for axes, (bed, curves) in zip(panels, results, strict=False):
        panel(axes, bed, curves, colours)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label() in METHODS}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=9
    )
    return figure


def panel(
    axes: Axes, bed: Bed, curves: Mapping[str, Sequence[NDArray[np.float64]]], colours: Mapping[str, str]
) -> None:
    for name, runs in curves.items():
        longest = max(map(len, runs))
        # The curve of a search that ended by itself is continued at its last value.
        values = np.array([np.pad(curve, (0, longest - len(curve)), mode="edge") for curve in runs])
        evaluations = np.arange(1, longest + 1)
        ours = name.startswith("ours")
        axes.plot(
            evaluations, np.median(values, axis=0), color=colours[name], linewidth=2.2 if ours else 1.4, label=name
        )
        axes.fill_between(evaluations, values.min(0), values.max(0), color=colours[name], alpha=0.1, linewidth=0)
    axes.axhline(0.95, color="#6b6b6b", linestyle="--", linewidth=0.8)
    axes.axvline(reported(bed)[0], color="#6b6b6b", linestyle=":", linewidth=0.8)
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
