"""Does the picked merge hold on unseen examples, and does the searched front?

Beds: the first experts of the zoos `digits`, `text`, `text4` and `language`, merged by task arithmetic with one weight per expert.
All examples of both splits are pooled; of `language`, whose tasks are texts, the first of each, and log-likelihood is its accuracy. Each draw makes another split: some examples per task to search, all others unseen. The
whole search is repeated on each: with NSGA-II and with the default driver, `front`, by log-likelihood and by accuracy, and without a
search, as convex mixtures of the experts drawn at random (`simplex`). Weights are rounded to the bed's grid, so that a merge is
scored once for all draws.

Picks: the candidate with the best mean accuracy or log-likelihood on the search examples, the best denoised estimate, and what
evomerge picks by default (`safe`): that candidate, or the best reference where it is not likely enough to be better, by several
probabilities, one of which is evomerge's. All references of a report compete: base, experts, average, scales, mixtures. A pick is shown better or worse than the best
reference if the paired interval of 95% over the unseen examples leaves out 0. Draws share most of their examples, so the shares
of draws describe these zoos; they are no test over zoos.

    python experiments/holds.py [--smoke] [--seeds DRAWS] [--evaluations N] [--only BED:METHOD …] [--json] [--out DIR]

An interrupted run resumes with the same command: scores, and the figures of each bed, size and method, are kept in `runs/holds/`. Figures
of beds and methods that are not run are taken from `holds.json` in the output folder.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from shared.fronts import Bench, open_bench
from shared.harness import Findings, Switches, main, say, table

from evomerge import files, pareto, search
from evomerge.recipe import Recipe
from evomerge.report import bootstrap
from evomerge.report.comparisons import references
from evomerge.report.estimates import estimate
from evomerge.report.figures import style
from evomerge.report.scorer import singles
from evomerge.search.driver import known_recipes
from evomerge.settings import ReportSettings
from evomerge.trial import Evaluation, Proposal, Split

DRAWS = 40
EVALUATIONS = 60
SIZES = (50, 100, 200, 400)
"""Search examples per task."""
SCORES = Path("runs") / "holds"
FRONT = 24  # points of a front, as in a report


@dataclass(frozen=True)
class Bed:
    """The first experts of a zoo; their weights are multiples of `step`."""

    zoo: str
    tasks: int
    step: float
    precision: str = "float32"
    batch: int = 64
    metrics: tuple[str, ...] = ("accuracy", "log_likelihood")
    """What is scored; the first is what a pick is judged by."""
    examples: int | None = None
    """Examples per task, half of each split; None for all."""
    sizes: tuple[int, ...] = SIZES

    def __str__(self) -> str:
        return f"{self.zoo}-{self.tasks}"


BEDS = {
    str(bed): bed
    for bed in (
        Bed("digits", 2, 0.05),
        Bed("digits", 3, 0.1),
        Bed("digits", 4, 0.2),
        Bed("text", 3, 0.3, "fast", 16),
        Bed("text4", 4, 0.3, "fast", 16),
        Bed("language", 2, 0.3, "fast", 16, ("log_likelihood",), 96, (25, 50)),
    )
}
METHODS = (
    ("simplex", "log_likelihood"),
    ("nsga2", "log_likelihood"),
    ("nsga2", "accuracy"),
    ("front", "log_likelihood"),
)
PARTS = tuple(f"{bed}:{method}" for bed in BEDS for method in dict.fromkeys(method for method, _ in METHODS))
SMOKE_METHODS = (("simplex", "log_likelihood"), ("nsga2", "accuracy"))
NEEDED = (0.6, 0.7, 0.8, 0.9)
"""Probabilities of being better than the best reference from which a candidate is picked; evomerge's is `estimates.NEEDED`."""
RULES = ("accuracy", "log-likelihood", "denoised", *(f"safe, {needed}" for needed in NEEDED))


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    fronts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="holds-") as scratch:
        folder = Path(scratch) if switches.smoke else SCORES
        for name in switches.parts[:1] if switches.smoke else switches.parts:
            bed, _, wanted = name.partition(":")
            methods = [one for one in METHODS if one[1] in BEDS[bed].metrics and one[0] == wanted]
            if switches.smoke:
                methods = [*SMOKE_METHODS]
            for size in (100,) if switches.smoke else BEDS[bed].sizes:
                kept = folder / f"{name.replace(':', '-')}-{size}-{switches.evaluations}-{len(switches.seeds)}.json"
                if not kept.exists():
                    files.write(kept, json.dumps(of_bed(BEDS[bed], size, methods, folder, switches)))
                picks, volumes = json.loads(kept.read_text(encoding="utf-8"))
                rows += picks
                fronts += volumes
    if not switches.smoke:
        earlier_rows, earlier_fronts = earlier(switches)
        rows, fronts = merged(rows, earlier_rows), merged(fronts, earlier_fronts)
    return Findings({"rows": rows, "fronts": fronts}, text(rows, fronts), draw(rows), packages=["pymoo", "matplotlib"])


def earlier(switches: Switches) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of earlier runs of as many draws and evaluations, from the output folder."""
    path = None if switches.out is None else switches.out / "holds.json"
    if path is None or not path.exists():
        return [], []
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    same = {"draws": len(switches.seeds), "evaluations": switches.evaluations}
    rows, fronts = ([row for row in figures[kind] if same.items() <= row.items()] for kind in ("rows", "fronts"))
    return rows, fronts


def merged(rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows, and those from before of other beds, sizes and methods, in the order of the beds and methods."""

    def key(row: Mapping[str, Any]) -> tuple[int, int, int]:
        method = METHODS.index((row["method"], row["searched"]))
        return list(BEDS).index(row["bed"]), row["examples"], method

    new = {key(row) for row in rows}
    return sorted([*rows, *(row for row in before if key(row) not in new)], key=key)


def of_bed(
    bed: Bed, size: int, methods: Sequence[tuple[str, str]], folder: Path, switches: Switches
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each method and rule, and one for each method's front, over all draws of `size` search examples."""
    scored = {"metrics": [*bed.metrics]} if len(bed.metrics) > 1 else {}  # texts have no other
    bench = open_bench(bed.zoo, bed.tasks, folder, precision=bed.precision, batch=bed.batch, scored=scored)
    fixed = references(bench.parts, ReportSettings())
    pooled = Pooled(bench, bed)
    for recipe in fixed.values():
        pooled.score(recipe)
    found: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = {}
    volumes: dict[tuple[str, str], list[float]] = {}
    for seed in switches.seeds:
        drawn = pooled.draw(size, seed)
        for method, searched in dict.fromkeys((METHODS[0], *methods)):
            recipes = list(candidates(bed, pooled, drawn, method, searched, seed, switches.evaluations))
            if (method, searched) in methods:
                found.setdefault((method, searched), []).append(picks(pooled, drawn, recipes, fixed, seed))
            volumes.setdefault((method, searched), []).append(volume(pooled, drawn, recipes, list(fixed.values())))
        say(f"{bed}, {size} search examples, draw {seed}: {len(pooled)} merges scored")
    bench.save()
    about = {"bed": str(bed), "examples": size, "evaluations": switches.evaluations, "draws": len(switches.seeds)}
    rows = [
        {
            **about,
            "method": method,
            "searched": searched,
            "rule": rule,
            **{key: float(np.mean([draws[rule][key] for draws in all_draws])) for key in all_draws[0][rule]},
        }
        for (method, searched), all_draws in found.items()
        for rule in RULES
    ]
    plain = np.array(volumes["simplex", "log_likelihood"])
    fronts = [
        {
            **about,
            "method": method,
            "searched": searched,
            "unseen_hv": float(np.mean(one)),
            "of_simplex": float(np.mean(np.array(one) / plain)),
            "above_simplex": float(np.mean(np.array(one) >= plain)),
        }
        for (method, searched), one in volumes.items()
        if (method, searched) in methods
    ]
    return rows, fronts


@dataclass(frozen=True)
class Draw:
    """A split of the pooled examples: objective `task` → indices to search, and indices unseen."""

    search: Mapping[str, NDArray[np.intp]]
    unseen: Mapping[str, NDArray[np.intp]]


class Pooled:
    """Scores of merges on the examples of both splits together, each merge once."""

    def __init__(self, bench: Bench, bed: Bed) -> None:
        self.bench = bench
        self.tasks = bench.parts.tasks
        self.judged = bed.metrics[0]
        splits: tuple[Split, Split] = ("search", "report")
        self._count = None if bed.examples is None else bed.examples // 2
        self.keys = {
            name: [f"{split} {key}" for split in splits for key in task.example_keys(split)[: self._count]]
            for name, task in self.tasks.items()
        }
        self._known: dict[str, Evaluation] = {}

    def __len__(self) -> int:
        return len(self._known)

    def score(self, recipe: Recipe) -> Evaluation:
        """Return the scores of a recipe on all examples. Raises `RuntimeError` if it fails."""
        if recipe.id not in self._known:
            parts = [self.bench.score(recipe, split, self._count) for split in ("search", "report")]
            for part in parts:
                if part.error is not None:
                    raise RuntimeError(f"{recipe.json}: {part.error}")
            scores = {key: np.concatenate([part.scores[key] for part in parts]) for key in parts[0].scores}
            self._known[recipe.id] = Evaluation(scores)
        return self._known[recipe.id]

    def draw(self, size: int, seed: int) -> Draw:
        """Return a split with `size` search examples per task; an example that tasks share is on one side for all."""
        rng = np.random.default_rng([size, seed])
        shared = sorted({key for keys in self.keys.values() for key in keys})
        rank = dict(zip(shared, rng.permutation(len(shared)).tolist(), strict=True))
        search_, unseen = {}, {}
        for name, keys in self.keys.items():
            order = np.argsort([rank[key] for key in keys], kind="stable")
            search_[name], unseen[name] = np.sort(order[:size]), np.sort(order[size:])
        return Draw(search_, unseen)

    def part(self, recipe: Recipe, indices: Mapping[str, NDArray[np.intp]]) -> Evaluation:
        """Return the scores of a recipe on some of the examples."""
        scores = self.score(recipe).scores
        return Evaluation({key: vector[indices[key.rpartition("/")[0]]] for key, vector in scores.items()})

    def means(self, recipes: Sequence[Recipe], indices: Mapping[str, NDArray[np.intp]], metric: str) -> pareto.Points:
        """Return mean scores, `(recipes, tasks)`."""
        return np.array([self.part(one, indices).means([f"{name}/{metric}" for name in self.tasks]) for one in recipes])


def candidates(
    bed: Bed, pooled: Pooled, drawn: Draw, method: str, searched: str, seed: int, count: int
) -> Iterator[Recipe]:
    """Search, and yield the recipes of the candidates, with weights on the bed's grid."""
    space = pooled.bench.space

    def on_grid(genome: NDArray[np.float64]) -> Recipe:
        return space.decode(np.round(np.round(genome / bed.step) * bed.step, 6))

    if method == "simplex":
        rng = np.random.default_rng([7, seed])
        known = known_recipes(space)
        yield from map(on_grid, [*known, *rng.dirichlet(np.ones(bed.tasks), size=count - len(known))])
        return
    objectives = {f"{name}/{searched}": task.metrics[searched] for name, task in pooled.tasks.items()}
    driver = search.make(search.completed({"kind": method}, space), space, objectives, seed)
    for proposal in search.asks(driver, count):
        assert proposal.genome is not None
        recipe = on_grid(proposal.genome)
        driver.tell(Proposal(proposal.number, proposal.recipe, proposal.genome), pooled.part(recipe, drawn.search))
        yield recipe


def picks(
    pooled: Pooled, drawn: Draw, recipes: Sequence[Recipe], fixed: Mapping[str, Recipe], seed: int
) -> dict[str, dict[str, float]]:
    """Return, by rule, what its pick is worth on the unseen examples beside the best reference.

    `gain` is the pick's mean accuracy minus that of the best reference by the estimates, `above_raw` minus that of the best reference
    by accuracy on the search examples, and `regret` the best candidate's or reference's minus the pick's.
    """
    ours = {recipe.id: recipe for recipe in recipes}
    theirs = {recipe.id: recipe for recipe in fixed.values()}
    both = theirs | ours
    scored = {identity: pooled.part(both[identity], drawn.search) for identity in sorted(both)}
    names = list(pooled.tasks)
    keys = {name: [pooled.keys[name][i] for i in drawn.search[name]] for name in names}
    resamples = bootstrap.resamples(keys, 100, seed)
    estimates = estimate(scored, pooled.tasks, resamples, [one.id for one in singles(fixed).values()])
    reference, best = estimates.best(list(theirs)), estimates.best(list(ours))
    _, probability = estimates.gain(best, reference)

    def highest(models: Mapping[str, Recipe], metric: str) -> str:
        objectives = [f"{name}/{metric}" for name in names]
        return max(models, key=lambda identity: float(scored[identity].means(objectives).mean()))

    raw = highest(theirs, pooled.judged)
    chosen = {
        "accuracy": highest(ours, pooled.judged),
        "log-likelihood": highest(ours, "log_likelihood"),
        "denoised": best,
        **{f"safe, {needed}": best if probability >= needed else reference for needed in NEEDED},
    }
    unseen = {name: [pooled.keys[name][i] for i in drawn.unseen[name]] for name in names}
    draws = bootstrap.resamples({f"{name}/{pooled.judged}": unseen[name] for name in names}, 300, seed)
    judged = {identity: pooled.part(one, drawn.unseen).scores for identity, one in both.items()}
    truth = {
        key: float(np.mean([scores[f"{n}/{pooled.judged}"].mean() for n in names])) for key, scores in judged.items()
    }
    found = {}
    for rule, pick in chosen.items():
        value, low, high = bootstrap.difference(judged[pick], judged[reference], draws)
        found[rule] = {
            "shown_worse": float(high < 0),
            "shown_better": float(low > 0),
            "gain": value,
            "above_raw": truth[pick] - truth[raw],
            "regret": max(truth.values()) - truth[pick],
            "reference_kept": float(pick in theirs),
        }
    return found


def volume(pooled: Pooled, drawn: Draw, recipes: Sequence[Recipe], fixed: Sequence[Recipe]) -> float:
    """Return the hypervolume on the unseen examples of the front on the search examples, by what judges a pick."""
    once = list({recipe.id: recipe for recipe in recipes}.values())
    points = pooled.means(once, drawn.search, pooled.judged)
    front = [once[i] for i in np.flatnonzero(pareto.nondominated(points))]
    corner = pooled.means(fixed, drawn.search, pooled.judged).min(axis=0)
    if len(front) > FRONT:
        front = [front[i] for i in pareto.subset(pooled.means(front, drawn.search, pooled.judged), corner, FRONT)]
    below = pooled.means(fixed, drawn.unseen, pooled.judged).min(axis=0)
    return pareto.hypervolume(pooled.means(front, drawn.unseen, pooled.judged), below)


def text(rows: Sequence[Mapping[str, Any]], fronts: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        "bed, search examples",
        "method",
        "rule",
        "shown worse",
        "shown better",
        "gain",
        "above raw",
        "regret",
        "reference",
    ]
    cells = [
        [
            f"{row['bed']}, {row['examples']}",
            f"{row['method']} by {row['searched'].replace('_', ' ')}",
            row["rule"],
            f"{100 * row['shown_worse']:.1f}%",
            f"{100 * row['shown_better']:.1f}%",
            f"{100 * row['gain']:+.2f}",
            f"{100 * row['above_raw']:+.2f}",
            f"{100 * row['regret']:.2f}",
            f"{100 * row['reference_kept']:.0f}%",
        ]
        for row in rows
    ]
    draws = rows[0]["draws"]
    first = (
        f"Picks over {draws} draws of the search examples, against the best reference on the unseen ones: share of draws in which "
        "the pick is shown worse or better, mean gain, the same above the reference that accuracy on the search examples picks, and "
        "mean regret (points of accuracy; hundredths of a nat per token for language), share of draws that keep a reference."
    )
    head = ["bed, search examples", "method", "unseen hypervolume", "of simplex", "draws at or above simplex"]
    volumes = [
        [
            f"{row['bed']}, {row['examples']}",
            f"{row['method']} by {row['searched'].replace('_', ' ')}",
            f"{row['unseen_hv']:.4g}",
            f"{row['of_simplex']:.3f}",
            f"{100 * row['above_simplex']:.0f}%",
        ]
        for row in fronts
    ]
    second = "Fronts by accuracy on the search examples, at equal evaluations: hypervolume on the unseen ones, and over `simplex`'s."
    return "\n\n".join([summary(rows), first, table(columns, cells), second, table(head, volumes)])


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a row for each bed and rule, over all sizes and methods."""
    cells = []
    for bed, rule in dict.fromkeys((row["bed"], row["rule"]) for row in rows):
        of = [row for row in rows if (row["bed"], row["rule"]) == (bed, rule)]
        mean = {key: 100 * float(np.mean([row[key] for row in of])) for key in ("shown_worse", "gain", "above_raw")}
        most = 100 * max(row["shown_worse"] for row in of)
        cells.append(
            [
                bed,
                rule,
                f"{mean['shown_worse']:.1f}%",
                f"{most:.1f}%",
                f"{mean['gain']:+.2f}",
                f"{mean['above_raw']:+.2f}",
            ]
        )
    about = "Means over numbers of search examples and methods, and the largest share of draws in which a pick is shown worse, of one of them."
    return f"{about}\n\n{table(['bed', 'rule', 'shown worse', 'at most', 'gain', 'above raw'], cells)}"


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw mean gain over the best reference against search examples: a panel for each bed, a line for each rule."""
    beds = list(dict.fromkeys(row["bed"] for row in rows))
    colours = dict(
        zip(RULES, ("#999999", "#56B4E9", "#E69F00", "#F5C0A0", "#E88A60", "#D55E00", "#8F3F00"), strict=True)
    )
    figure = Figure(figsize=(max(4.2 * len(beds), 8), 3.8), layout="constrained")
    for axes, bed in zip(figure.subplots(1, len(beds), squeeze=False)[0], beds, strict=True):
        for rule, colour in colours.items():
            of = [row for row in rows if row["bed"] == bed and row["rule"] == rule and row["method"] != "simplex"]
            sizes = sorted({row["examples"] for row in of})
            gains = [100 * float(np.mean([row["gain"] for row in of if row["examples"] == size])) for size in sizes]
            axes.plot(sizes, gains, marker="o", color=colour, label=rule)
        axes.axhline(0, color="#6b6b6b", linewidth=1, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        style(axes)
        axes.set_title(bed)
        axes.set_xlabel("search examples per task")
        axes.set_ylabel("gain over the best reference, points")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(RULES), fontsize=8, frameon=False
    )
    return figure


if __name__ == "__main__":
    main(
        "holds",
        __doc__,
        measure,
        seeds=DRAWS,
        evaluations=(EVALUATIONS, 16),
        parts=(*BEDS, *(f"{bed}:{method}" for bed in BEDS for method in dict.fromkeys(one for one, _ in METHODS))),
    )
