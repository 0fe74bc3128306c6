"""What slopes of recipes are worth: unseen scores against CPU seconds and evaluations, over genes and over search examples.

Zoos: `text`, `text4`, `language`. The examples of both splits are pooled: half of each task is unseen, and the first 50 to 400 of
the other half are searched. All drivers search task arithmetic: `few` genes are one weight for each expert, or two with
`block/2`, `blocks` one for each expert and block, `tensors` one for each expert and tensor. The budget is in plain scores; an
example with slopes counts as three. On `language`, where a score takes many times as long, budget and examples are a fifth and a
quarter of the others', and unseen are 48 examples of each task.

After each of several parts of the budget the candidate with the best search score so far, of the validation part where the
driver has one, is scored on the unseen examples: accuracy where the task has it. At the end so is the front of the search
scores, whose hypervolume is above the worst of base and experts in each task.

    python experiments/slopes.py [--smoke] [--seeds N] [--evaluations N] [--only ZOO:METHOD:GENES:EXAMPLES …] [--json] [--out DIR]

An interrupted run resumes with the same command: its studies are kept in `runs/slopes/`. Searches of which `slopes.json` in the
output folder has the rows are not run again, so that a full run, of many hours, can be made in parts and on several machines.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.harness import Findings, Switches, main, say, table

from evomerge import files, pareto, zoo
from evomerge.evaluate import Worker
from evomerge.history import Completed, cost
from evomerge.recipe import Recipe, base, expert
from evomerge.report.figures import style
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.trial import Evaluation, Proposal

SEEDS = 3
EVALUATIONS = 120
PRECISION = str(zoo.fast_precision()).removeprefix("torch.")
COLOURS = 10  # of lines in the figure, before they repeat
PARTS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the budget, after which the best candidate is scored on the unseen examples
SIZES = (50, 100, 200, 400)
STUDIES = Path("runs") / "slopes"

METHODS: dict[str, dict[str, Any]] = {
    "gradient": {"kind": "gradient"},
    "gradient front": {"kind": "front", "slopes": True},
    "CMA-ES": {"kind": "cma"},
    "NSGA-II": {"kind": "nsga2", "population": 16},
    "TPE": {"kind": "tpe"},
    "front": {"kind": "front"},
    "AdaMerging": {"kind": "gradient", "rule": "adamerging"},
    "Frank-Wolfe": {"kind": "gradient", "rule": "frank_wolfe"},
}
TILINGS = {
    "few": ["expert"],
    "halves": ["expert", "block/2"],
    "blocks": ["expert", "block/{blocks}"],
    "tensors": ["expert", "tensor"],
}


@dataclass(frozen=True)
class Bed:
    """How much of a zoo takes part."""

    blocks: int
    """Groups of blocks of the tiling `blocks`."""
    share: float = 1.0
    """Of the budget."""
    examples: int = 100
    """That are searched, of each task, where their number is not what is compared."""
    unseen: int | None = None
    """The most of each task; by default half of it."""
    front: int = 8
    """Points of a front that are scored on the unseen examples."""


BEDS = {"text": Bed(6), "text4": Bed(6), "language": Bed(8, 0.2, 25, 48, 4), "digits": Bed(4)}


@dataclass(frozen=True)
class Case:
    """One search."""

    zoo: str
    method: str
    genes: str
    examples: int

    def __str__(self) -> str:
        return f"{self.zoo}:{self.method}:{self.genes}:{self.examples}"


def _cases() -> Iterator[Case]:
    for name in ("text", "text4", "language"):
        examples = BEDS[name].examples
        for method, driver in METHODS.items():
            sloped = driver["kind"] == "gradient" or driver.get("slopes")
            yield Case(name, method, "tensors" if sloped else "halves", examples)
        yield from (Case(name, "gradient", genes, examples) for genes in ("few", "halves", "blocks"))
        yield from (Case(name, "gradient", "tensors", size) for size in SIZES if size != examples)


CASES = {str(case): case for case in _cases()}
SMOKE = (Case("digits", "gradient", "tensors", 50), Case("digits", "NSGA-II", "halves", 50))


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    rows = [] if switches.smoke else kept_rows(switches)
    done = {(row["zoo"], row["method"], row["tiling"], row["examples"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="slopes-") as scratch:
        folder = Path(scratch) if switches.smoke else STUDIES
        for seed in switches.seeds:
            for case in SMOKE if switches.smoke else [CASES[name] for name in switches.parts]:
                if (case.zoo, case.method, case.genes, case.examples, seed) in done:
                    continue
                kept = folder / f"{case}-{budget(case.zoo, switches)}-{seed}".replace(":", "-").replace(" ", "-")
                if not (kept / "rows.json").exists():
                    say(f"{case}, seed {seed}")
                    found = rows_of(case, seed, kept, switches)
                    files.write(kept / "rows.json", json.dumps(found))
                rows += json.loads((kept / "rows.json").read_text(encoding="utf-8"))
    rows.sort(
        key=lambda row: (
            list(BEDS).index(row["zoo"]),
            list(METHODS).index(row["method"]),
            row["genes"],
            row["examples"],
            row["seed"],
        )
    )
    return Findings({"rows": rows}, text(rows), draw(rows), packages=["cmaes", "pymoo", "optuna"])


def kept_rows(switches: Switches) -> list[dict[str, Any]]:
    """Return the rows of earlier runs with the same budget and precision from the output folder."""
    path = None if switches.out is None else switches.out / "slopes.json"
    if path is None or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["figures"]["rows"]
    return [row for row in rows if (row["budget"], row["precision"]) == (budget(row["zoo"], switches), PRECISION)]


def budget(name: str, switches: Switches) -> int:
    """Return the budget of each search of a zoo, in plain scores."""
    return round(BEDS[name].share * switches.evaluations)


def rows_of(case: Case, seed: int, folder: Path, switches: Switches) -> list[dict[str, Any]]:
    """Run or resume one search, and return a row for each part of its budget."""
    settings = settings_of(case, seed, folder, switches)
    study = Study.create(folder / "study", settings)
    clock = folder / "cpu.json"
    spent: dict[str, float] = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {}
    start = time.process_time()

    def watch(proposal: Proposal, evaluation: Evaluation) -> None:
        nonlocal start
        spent[str(proposal.number)] = time.process_time() - start
        start = time.process_time()
        files.write(clock, json.dumps(spent))

    with study.evaluator() as evaluator:
        study.run(evaluator, watch)
    completed = study.population()
    full = sum(study.parts.sizes["search"].values())
    units = np.cumsum([cost(proposal, full, 0) / full for proposal, _ in completed])
    worker, unseen = Worker(study.parts.setup), Unseen(study, folder.parent / f"{case.zoo}-{seed}-unseen.json")
    rows = []
    for share in PARTS:
        upto = [
            pair for pair, so_far in zip(completed, units, strict=True) if so_far <= share * settings.evaluations + 1
        ]
        pick, stopping = best(upto, study)
        final = share == PARTS[-1]
        rows.append(
            {
                "zoo": case.zoo,
                "method": case.method,
                "tiling": case.genes,
                "genes": len(study.parts.space.genes),
                "examples": case.examples,
                "seed": seed,
                "budget": settings.evaluations,
                "precision": settings.precision,
                "evaluations": len(upto),
                "with_slopes": sum(proposal.slopes is not None for proposal, _ in upto),
                "units": float(units[len(upto) - 1]),
                "cpu_s": sum(spent[str(proposal.number)] for proposal, _ in upto),
                "search": float(pick[1].means(study.parts.searched).mean()),
                "stopping": stopping,
                "unseen": float(unseen(worker, pick[0].recipe).mean()),
                "unseen_hv": volume(upto, study, worker, unseen, BEDS[case.zoo].front) if final else None,
            }
        )
    return rows


def settings_of(case: Case, seed: int, folder: Path, switches: Switches) -> StudySettings:
    """Return the settings of one search, whose tasks' files are written first."""
    bed = BEDS[case.zoo]
    built = zoo.find_or_build(case.zoo, seed=seed, progress=lambda done, doing: say(f"{case.zoo}: {done:4.0%} {doing}"))
    tasks = {}
    for name, given in built.tasks.items():
        lines = [
            line
            for split in ("search", "report")
            for line in Path(given[split]).read_text(encoding="utf-8").splitlines()
        ]
        order = np.random.default_rng([seed, *name.encode()]).permutation(len(lines))
        half = len(lines) // 2
        for split, rows in (("search", order[: min(case.examples, half)]), ("report", order[half:][: bed.unseen])):
            files.write(folder / f"{name}.{split}.jsonl", "".join(f"{lines[row]}\n" for row in rows))
        paths = {split: str((folder / f"{name}.{split}.jsonl").resolve()) for split in ("search", "report")}
        searched = {"search_metric": "entropy"} if case.method == "AdaMerging" else {}
        metrics = (
            {"metrics": [*given.get("metrics", ["accuracy", "log_likelihood"]), "entropy"]}
            if searched and given["kind"] != "language_modelling"
            else {}
        )
        tasks[name] = {**given, **paths, **searched, **metrics}
    per = [axis.format(blocks=bed.blocks) for axis in TILINGS[case.genes]]
    weight = {"float": [0, 1.2], "init": round(1 / len(built.pool["experts"]), 3), "per": per}
    recipe = {
        "merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": weight, "lambda": 1}}
    }
    given = {
        "pool": built.pool,
        "tasks": tasks,
        "space": {"recipe": recipe},
        "driver": METHODS[case.method],
        "seed": seed,
        "evaluations": budget(case.zoo, switches),
        "precision": PRECISION,
    }
    return StudySettings.parse(given, str(case), Path())


def best(completed: Completed, study: Study) -> tuple[tuple[Proposal, Evaluation], float | None]:
    """Return the candidate with the best search score, and the score of its validation part where it has one.

    If some candidates have slopes, the validation part of the search examples chooses among all.
    """
    wanted = next((proposal.slopes for proposal, _ in completed if proposal.slopes is not None), None)
    good = [pair for pair in completed if pair[1].error is None]
    rest = (
        None
        if wanted is None
        else {task: np.setdiff1d(np.arange(study.parts.sizes["search"][task]), rows) for task, rows in wanted.items()}
    )
    if rest is None or not all(len(rows) for rows in rest.values()):
        return max(good, key=lambda pair: float(pair[1].means(study.parts.searched).mean())), None

    def validation(pair: tuple[Proposal, Evaluation]) -> float:
        return float(
            np.mean([pair[1].scores[name][rest[name.rpartition("/")[0]]].mean() for name in study.parts.searched])
        )

    pick = max(good, key=validation)
    return pick, validation(pick)


class Unseen:
    """Mean scores of recipes on the unseen examples, by reported metric, each once."""

    def __init__(self, study: Study, path: Path) -> None:
        self._reported = [f"{name}/{task.report_metric}" for name, task in study.parts.tasks.items()]
        self._path = path
        self._known: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __call__(self, worker: Worker, recipe: Recipe) -> pareto.Points:
        """Return the mean scores, `(tasks,)`."""
        if recipe.id not in self._known:
            found = worker.evaluate(recipe, "report")
            self._known[recipe.id] = found.means(self._reported).tolist()
            files.write(self._path, json.dumps(self._known))
        return np.array(self._known[recipe.id])


def volume(completed: Completed, study: Study, worker: Worker, unseen: Unseen, most: int) -> float:
    """Return the hypervolume on the unseen examples of the front of the search scores, or of `most` points of it."""
    good = [
        (proposal.recipe, evaluation.means(study.parts.searched))
        for proposal, evaluation in completed
        if evaluation.error is None
    ]
    points = np.array([means for _, means in good])
    front = np.flatnonzero(pareto.nondominated(points))
    if len(front) > most:
        front = front[pareto.subset(points[front], points.min(axis=0), most)]
    known = [base(), *map(expert, study.parts.pool.experts)]
    corner = np.min([unseen(worker, recipe) for recipe in known], axis=0)
    return pareto.hypervolume(np.array([unseen(worker, good[i][0]) for i in front]), corner)


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    final = [row for row in rows if row["unseen_hv"] is not None]
    groups = list(dict.fromkeys((row["zoo"], row["method"], row["genes"], row["examples"]) for row in final))
    cells = []
    for group in groups:
        of = [row for row in final if (row["zoo"], row["method"], row["genes"], row["examples"]) == group]
        mean = {
            key: np.mean([row[key] for row in of])
            for key in ("units", "with_slopes", "cpu_s", "search", "unseen", "unseen_hv")
        }
        stopping = [row["stopping"] for row in of if row["stopping"] is not None]
        cells.append(
            [
                f"{group[0]}: {group[1]}",
                *map(str, group[2:]),
                str(len(of)),
                f"{mean['units']:.0f}",
                f"{mean['with_slopes']:.0f}",
                f"{mean['cpu_s']:.0f}",
                f"{mean['search']:.4f}",
                f"{np.mean(stopping):.4f}" if stopping else "",
                f"{mean['unseen']:.4f}",
                f"{mean['unseen_hv']:.4g}",
            ]
        )
    columns = [
        "search",
        "genes",
        "examples",
        "seeds",
        "units",
        "with slopes",
        "CPU s",
        "search score",
        "stopping score",
        "unseen score",
        "unseen hypervolume",
    ]
    about = (
        "Means over seeds of whole searches. Search and stopping scores are of what is searched, unseen scores of what is reported. Each seed has "
        "models of its own, or other examples: rows of unlike numbers of seeds do not compare."
    )
    return f"{table(columns, cells)}\n\n{about}"


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the unseen score against CPU seconds, a panel for each zoo, a line for each search with as many examples.

    Lines are means over the seeds that all searches of a zoo have: another zoo is trained for each.
    """
    zoos = list(dict.fromkeys(row["zoo"] for row in rows))
    figure = Figure(figsize=(max(5.2 * len(zoos), 7), 5.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(zoos), squeeze=False)[0], zoos, strict=True):
        of_zoo = [
            row for row in rows if row["zoo"] == name and (row["examples"] == BEDS[name].examples or name == "digits")
        ]
        searches = dict.fromkeys((row["method"], row["genes"]) for row in of_zoo)
        seeds = set.intersection(
            *({row["seed"] for row in of_zoo if (row["method"], row["genes"]) == one} for one in searches)
        )
        of_zoo = [row for row in of_zoo if row["seed"] in seeds]
        for method, genes in searches:
            of = [row for row in of_zoo if (row["method"], row["genes"]) == (method, genes)]
            steps = [[row for row in of if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in of)]
            seconds = np.mean([[row["cpu_s"] for row in seed] for seed in steps], axis=0)
            unseen = np.mean([[row["unseen"] for row in seed] for seed in steps], axis=0)
            line = "--" if len(axes.lines) >= COLOURS else "-"
            axes.plot(seconds, unseen, line, marker="o", label=f"{method}, {genes} genes")
        style(axes)
        axes.set_title(f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}")
        axes.set_xlabel("CPU seconds")
        axes.set_ylabel("unseen score of the best candidate")
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


if __name__ == "__main__":
    main("slopes", __doc__, measure, seeds=SEEDS, evaluations=(EVALUATIONS, 12), parts=tuple(CASES))
