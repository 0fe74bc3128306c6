"""Does racing find the same front of merged experts with at most half of the scored examples?

One weight per expert of the digits zoo (task arithmetic), one objective per task: accuracy on 400 examples. NSGA-II
(population 20), and CMA-ES for the first task only, each plain, with all examples for every candidate, and raced: by examples
(regression or item response), or by examples and genes. The cost is the number of scored examples, in units of a full evaluation
(all examples of all tasks). A raced search counts complete candidates only, never estimates. The reference point of
hypervolumes is the nadir of the front of all runs, minus a tenth of its range; on the report split they are of the candidates
not dominated on the search split. Each recipe is merged once and scored on all examples, and parts are taken from these scores
(equal to scoring parts, up to rounding). So stopped candidates can be audited, at a cost that is not counted.

    python experiments/racing.py [--smoke] [--seeds N] [--evaluations N] [--json] [--out DIR]

An interrupted run resumes with the same command: scores are kept in `runs/racing/`. All seeds share the zoo.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import stdtrit
from shared import fronts
from shared.fronts import Bench
from shared.harness import Findings, Switches, main, say, table

from evomerge import pareto, search
from evomerge.recipe import Recipe
from evomerge.report.figures import style
from evomerge.search import Breeder, Driver, Generational
from evomerge.search.racing import Racing, RacingSettings
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal, ScoreTable

SEEDS = 5
EVALUATIONS = 300
SMOKE_EVALUATIONS = 40
SCORES = Path("runs") / "racing"
HALF = 0.5  # target cost, as a share of the plain search's
LONGEST = 0.6  # maximum cost of a raced search, as a share of the plain search's
AUDITED = 200  # about how many of a search's unscored candidates the audit scores
LOSS = 0.01  # largest relative loss of hypervolume on the search split for a front that counts as the same
METHODS: Mapping[str, Mapping[str, Any]] = {
    "regression, tolerance 0.5": {"tolerance": 0.5, "surrogate": False},
    "item response, tolerance 1": {"tolerance": 1, "estimator": "item_response", "surrogate": False},
    "regression and genes, tolerance 0.5": {"tolerance": 0.5},
}
SMOKE_METHODS = ("item response, tolerance 1", "regression and genes, tolerance 0.5")

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Bed:
    """A problem: the weights of the first experts of the digits zoo, for the first objectives."""

    tasks: int
    objectives: int
    driver: Mapping[str, Any]
    evaluations: int
    """Budget of the plain search."""

    def __str__(self) -> str:
        return f"{self.driver['kind'].upper()}, {self.tasks} experts, {self.objectives} objective{'s' * (self.objectives > 1)}"


NSGA = {"kind": "nsga2", "population": 20}
BEDS = (Bed(2, 2, NSGA, 300), Bed(3, 3, NSGA, 300), Bed(3, 1, {"kind": "cma"}, 100))


@dataclass(frozen=True)
class Part:
    """One proposal of a search: the cost up to it, in full evaluations, and whether its recipe is complete then."""

    recipe: Recipe
    spent: float
    complete: bool


class Recorded(Generational):
    """A generational driver that records its tells."""

    def __init__(self, space: SearchSpace, objectives: Sequence[str], breeder: Breeder) -> None:
        super().__init__(space, objectives, breeder)
        self.told: list[tuple[Recipe, float]] = []  # recipe, tolerance of its race
        self.racing: Racing | None = None

    def tell(self, proposal: Proposal, evaluation: Evaluation) -> None:
        """Record the recipe, and pass it on."""
        self.told.append((proposal.recipe, self.racing.tolerance if self.racing else 0.0))
        super().tell(proposal, evaluation)


@dataclass(frozen=True)
class Race:
    """Candidates that raced against the same rivals, and the cost up to the end of their race."""

    spent: float
    candidates: Sequence[tuple[Recipe, float, bool]]
    """Each once: recipe, tolerance, and whether it is complete."""


@dataclass(frozen=True)
class Run:
    """The proposals of a search, in order, and its races."""

    parts: Sequence[Part]
    races: Sequence[Race]


@dataclass(frozen=True)
class Audit:
    """How the candidates of a search were treated, by the scores that it did not have."""

    candidates: int
    stopped: int
    unscored: int
    """Of the stopped: by their genes only. The audit scores an even sample of about 200, weighted."""
    on_front: int
    """Of the stopped: those that no other candidate dominates."""
    mattered: int
    """Competitive candidates: better by the tolerance, in some objective, than each complete one before their race."""
    mattered_stopped: int


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="racing-") as scratch:
        folder = Path(scratch) if switches.smoke else SCORES
        results = [(bed, *compare(bed, folder, switches)) for bed in (BEDS[:1] if switches.smoke else BEDS)]
    rows = [row for _, rows, _ in results for row in rows]
    parts = [text(bed, rows) for bed, rows, _ in results]
    drawn = draw([(bed, curves) for bed, _, curves in results])
    return Findings({"rows": rows}, "\n\n".join(parts), drawn, packages=["pymoo", "cmaes", "moocore", "matplotlib"])


def compare(bed: Bed, folder: Path, switches: Switches) -> tuple[list[dict[str, Any]], dict[str, list[Points]]]:
    """Return the rows of a bed, and each method's curves: `(2, candidates)`, shares of the budget and of hypervolume."""
    bench = fronts.open_bench("digits", bed.tasks, folder)
    objectives = bench.objectives[: bed.objectives]
    budget = min(bed.evaluations, switches.evaluations)
    methods = {name: METHODS[name] for name in (SMOKE_METHODS if switches.smoke else METHODS)}
    runs: dict[tuple[str, int], Run] = {}
    for seed in switches.seeds:
        runs["plain", seed] = drive(bed, bench, seed, None, budget)
        for name, settings in methods.items():
            run = runs[name, seed] = drive(bed, bench, seed, settings, LONGEST * budget)
            say(f"{bed}, seed {seed}: {name}, {sum(len(race.candidates) for race in run.races)} candidates")
        bench.save()
    points = np.concatenate([means(bench, complete(run.parts), objectives) for run in runs.values()])
    corner = fronts.corner(points)
    chosen = {key: front(bench, run.parts, objectives, limit(key[0], budget)) for key, run in runs.items()}
    unseen = {key: means(bench, recipes, objectives, "report") for key, recipes in chosen.items()}
    below = fronts.corner(np.concatenate(list(unseen.values())))
    bench.save()
    curves = {key: curve(bench, run.parts, objectives, corner) for key, run in runs.items()}
    rows = []
    shares: dict[str, list[Points]] = {}
    for (name, seed), run in runs.items():
        spent, volumes = curves[name, seed]
        end = curves["plain", seed][1][-1]
        reached = np.flatnonzero(volumes >= end)
        report, plain_report = (pareto.hypervolume(unseen[key, seed], below) for key in (name, "plain"))
        shares.setdefault(name, []).append(np.stack([spent / budget, volumes / end]))
        row = {
            "bed": str(bed),
            "method": name,
            "seed": seed,
            "budget": budget,
            "spent_to_plain": float(spent[reached[0]] / budget) if len(reached) else None,
            "spent_to_99": float(spent[volumes >= 0.99 * end][0] / budget) if volumes[-1] >= 0.99 * end else None,
            "search_hv_at_half": float(volumes[spent <= HALF * budget][-1] / end),
            "report_hv": report / plain_report,  # of a raced search at half of the budget
        }
        if name != "plain":
            row |= asdict(audit(bench, run, objectives, HALF * budget))
        rows.append(row)
    return rows, shares


def drive(bed: Bed, bench: Bench, seed: int, racing: Mapping[str, Any] | None, budget: float) -> Run:
    """Search with the bed's driver, raced by these settings or plain, up to a cost of `budget` full evaluations."""
    objectives = bench.objectives[: bed.objectives]
    counts = sizes(bench, objectives)
    plain = search.make(bed.driver, bench.space, objectives, seed)
    if not isinstance(plain, Generational):
        raise TypeError(f"{bed}: expected a generational driver, got {plain}")
    inner = Recorded(bench.space, objectives, plain.breeder)
    driver: Driver = inner
    if racing is not None:
        settings = RacingSettings(driver=dict(bed.driver), **racing)
        driver = inner.racing = Racing(inner, bench.space, objectives, seed, settings, counts)
    known: dict[str, ScoreTable] = {}
    parts: list[Part] = []
    races: list[Race] = []
    spent, told, total = 0, 0, sum(counts.values())
    while spent < budget * total and (proposal := driver.ask()) is not None:
        everything = ScoreTable(counts)
        everything.add(None, bench.score(proposal.recipe))
        evaluation = everything.take(proposal.examples)
        driver.tell(proposal, evaluation)
        scored = known.setdefault(proposal.recipe.id, ScoreTable(counts))
        scored.add(proposal.examples, evaluation)
        spent += total if proposal.examples is None else sum(map(len, proposal.examples.values()))
        parts.append(Part(proposal.recipe, spent / total, scored.complete))
        if new := {recipe.id: (recipe, tolerance) for recipe, tolerance in inner.told[told:]}:
            ran = [(*one, name in known and known[name].complete) for name, one in new.items()]
            races.append(Race(spent / total, ran))
            told = len(inner.told)
    return Run(parts, races)


def sizes(bench: Bench, objectives: Sequence[str]) -> dict[str, int]:
    """Return the number of search examples of each objective's task."""
    scores = bench.score(bench.space.decode(next(iter(bench.space.landmarks().values())))).scores
    return {task_of(name): len(scores[name]) for name in objectives}


def task_of(objective: str) -> str:
    return objective.rpartition("/")[0]


def limit(method: str, budget: int) -> float:
    """Return the cost up to which a method is judged on the report split."""
    return budget if method == "plain" else HALF * budget


def complete(run: Sequence[Part], spent: float = math.inf) -> list[Recipe]:
    """Return the complete candidates up to the cost `spent`, in order."""
    return [part.recipe for part in run if part.complete and part.spent <= spent]


def means(bench: Bench, recipes: Sequence[Recipe], objectives: Sequence[str], split: Any = "search") -> Points:
    """Return mean scores, `(recipes, objectives)`."""
    return np.array([bench.score(recipe, split).means(objectives) for recipe in recipes])


def front(bench: Bench, run: Sequence[Part], objectives: Sequence[str], spent: float) -> list[Recipe]:
    """Return the complete candidates not dominated on the search split, each once."""
    recipes = list({recipe.id: recipe for recipe in complete(run, spent)}.values())
    return [recipes[i] for i in np.flatnonzero(pareto.nondominated(means(bench, recipes, objectives)))]


def curve(bench: Bench, run: Sequence[Part], objectives: Sequence[str], corner: Points) -> tuple[Points, Points]:
    """Return the cost, in full evaluations, and the hypervolume at each complete candidate."""
    spent = np.array([part.spent for part in run if part.complete])
    return spent, pareto.hypervolume_history(means(bench, complete(run), objectives), corner)


def audit(bench: Bench, run: Run, objectives: Sequence[str], spent: float) -> Audit:
    """Return the audit of the candidates up to the cost `spent`, by their scores on all examples.

    Candidates are compared with those complete before their race. Recipes complete before are not counted again.
    """
    scored = {part.recipe.id for part in run.parts}
    races = [race for race in run.races if race.spent <= spent]
    unscored = sum(recipe.id not in scored for race in races for recipe, _, _ in race.candidates)
    step = max(1, unscored // AUDITED)
    means_of: dict[str, Points] = {}  # of complete candidates
    errors_of: dict[str, Points] = {}
    judged: list[tuple[Points, bool, bool, int]] = []  # means, complete, competitive, weight
    passed = 0
    for race in races:
        known, errors = (np.array(list(t.values())).reshape(-1, len(objectives)) for t in (means_of, errors_of))
        for recipe, tolerance, done in race.candidates:
            if recipe.id in means_of:
                continue
            weight = 1
            if recipe.id not in scored:
                passed += 1
                if passed % step:
                    continue
                weight = step
            mean = bench.score(recipe).means(objectives)
            beaten = (known + tolerance * errors >= mean).all(axis=1).any()
            judged.append((mean, done, len(known) > 0 and not beaten, weight))
        for recipe, _, done in race.candidates:
            if done:
                tables = [bench.score(recipe).scores[name].astype(np.float64) for name in objectives]
                means_of[recipe.id] = np.array([table.mean() for table in tables])
                errors_of[recipe.id] = np.array([table.std() / math.sqrt(len(table)) for table in tables])
    best = pareto.nondominated(np.array([mean for mean, _, _, _ in judged]))
    stopped = np.array([not done for _, done, _, _ in judged])
    competitive = np.array([competes for _, _, competes, _ in judged])
    weights = np.array([weight for _, _, _, weight in judged])
    return Audit(
        candidates=int(weights.sum()),
        stopped=int(weights[stopped].sum()),
        unscored=unscored,
        on_front=int(weights[stopped & best].sum()),
        mattered=int(weights[competitive].sum()),
        mattered_stopped=int(weights[competitive & stopped].sum()),
    )


def text(bed: Bed, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a bed, and whether its target is met."""
    head = [
        str(bed),
        "cost to plain's",
        "cost to 99 %",
        "search, at half",
        "report, at half",
        "minus plain's",
        "stopped",
        "by genes only",
        "on the front",
        "competitive",
    ]
    lines, verdicts = [], []
    for method in dict.fromkeys(row["method"] for row in rows):
        runs = [row for row in rows if row["method"] == method]
        cells = [reached(runs, "spent_to_plain"), reached(runs, "spent_to_99"), band(runs, "search_hv_at_half")]
        if method == "plain":
            lines.append([method, *cells, "1", "", "", "", "", ""])
            continue
        low, high = interval([row["report_hv"] - 1 for row in runs])
        gap = float(np.mean([row["report_hv"] - 1 for row in runs]))
        total = {key: sum(row[key] for row in runs) for key in asdict(Audit(0, 0, 0, 0, 0, 0))}
        lines.append(
            [
                method,
                *cells,
                band(runs, "report_hv"),
                f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{total['stopped'] / total['candidates']:.0%} of {total['candidates']}",
                f"{total['unscored']}",
                f"{total['on_front']} of {total['stopped']}",
                f"{total['mattered_stopped']} of {total['mattered']}",
            ]
        )
        share = float(np.median([row["search_hv_at_half"] for row in runs]))
        met = share >= 1 - LOSS and high >= 0
        verdicts.append(
            f"{method}: {'met' if met else 'missed'} (search {share:.3f}, report {gap:+.3f}, at most {high:+.3f})"
        )
    n = len({row["seed"] for row in rows})
    about = (
        f"Shares of the plain search's budget ({rows[0]['budget']} evaluations) and of its final hypervolume; medians over {n} "
        "seeds [lowest, highest] (number of seeds that reached it). Report: hypervolume at half of the budget on unseen examples, "
        "and its mean difference from the final plain one, with the 95 % interval over seeds. Stopped: of all candidates, at "
        "half of the budget; by genes only: without any scored example (an even sample of about 200 is scored for the audit). On "
        "the front: stopped candidates that no other candidate dominates. Competitive: stopped candidates of those better "
        "by the tolerance, in some objective, than each complete one; the settings allow "
        f"{1 - RacingSettings(driver=dict(NSGA)).confidence:.0%}."
    )
    target = f"The same front (search: median at most {LOSS:.0%} below; report: not below by more than its interval) with half of the examples: {'; '.join(verdicts)}."
    return "\n\n".join([table(head, lines), about, target])


def reached(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    count = sum(value is not None for value in values)
    most = 1.0 if rows[0]["method"] == "plain" else LONGEST
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return f"{f'{middle:.2f}' if math.isfinite(middle) else f'>{most:.2f}'} ({count}/{len(values)})"


def band(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean; for a single value that value twice."""
    if len(values) < 2:
        return values[0], values[0]
    reach = float(stdtrit(len(values) - 1, 0.975)) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


COLOURS = dict(zip(("plain", *METHODS), ("#7f7f7f", "#56B4E9", "#CC79A7", "#009E73"), strict=True))


def draw(results: Sequence[tuple[Bed, Mapping[str, Sequence[Points]]]]) -> Figure:
    """Draw hypervolume against cost: median and range over seeds."""
    figure = Figure(figsize=(4.4 * len(results) + 0.4, 4.3), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False).ravel()
    for axes, (bed, curves) in zip(panels, results, strict=True):
        panel(axes, bed, curves)
    panels[0].set_ylabel("share of the plain search's final hypervolume")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def panel(axes: Axes, bed: Bed, curves: Mapping[str, Sequence[Points]]) -> None:
    style(axes)
    for method, runs in curves.items():
        spent = np.linspace(0.03, 1.0 if method == "plain" else LONGEST, 200)
        steps = np.array([step(run, spent) for run in runs])
        axes.fill_between(spent, steps.min(axis=0), steps.max(axis=0), color=COLOURS[method], alpha=0.12, linewidth=0)
        axes.plot(spent, np.median(steps, axis=0), color=COLOURS[method], linewidth=1.6, label=method)
    axes.axvline(HALF, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.axhline(1 - LOSS, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_ylim(bottom=0.8)
    axes.set_xlabel("examples scored, share of the plain search's")
    axes.set_title(str(bed), fontsize=10, loc="left")


def step(run: Points, spent: Points) -> Points:
    """Return the hypervolume at each cost of `spent`."""
    at = np.searchsorted(run[0], spent, side="right") - 1
    volumes: Points = np.where(at >= 0, run[1][np.maximum(at, 0)], 0.0)
    return volumes


if __name__ == "__main__":
    main("racing", __doc__ or "", measure, seeds=SEEDS, evaluations=(EVALUATIONS, SMOKE_EVALUATIONS))
