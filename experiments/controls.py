"""What merges gain beyond controls: sham experts, experts of other tasks, and fine-tuning the base for as long.

For each subset of two and more experts of a zoo, the tasks of these experts are merged for, and scored by mean accuracy on unseen
examples. Merged are the experts themselves (`real`), the same with each task vector permuted within each tensor, so that norms stay
(`sham`), and the zoo's experts of other tasks (`wild`), where there are any. A merge beats the base, or the best single model of the
subset's real experts, where its score is higher; a tie counts half. The best expert is the best on the unseen examples, which is hard on
the merge.

`adaptive` searches a weight of each expert by CMA-ES on search examples with labels, by log-likelihood. `fine-tuning` gets the same
examples and the CPU seconds that `adaptive` took with the real experts: three rates of AdamW with a third of the time each, the best of
them by a quarter of the examples, which are not trained on.

Subsets of a seed share experts, base and examples, and so are not independent: the intervals, of shares by Clopper and Pearson and over all
subsets, are too short by that. A zoo has few wild experts: what others train is further away than these are.

    python experiments/controls.py [--smoke] [--seeds N] [--only BED …] [--json] [--out DIR]

A full run goes on where it was interrupted. A smoke run takes one subset of the zoo `digits`.
"""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from shared.harness import Findings, Switches, main, say, table

import evomerge as em
from evomerge import files, placement, zoo
from evomerge.evaluate import Worker
from evomerge.evaluate.setup import open_model
from evomerge.parts import Parts, open_parts
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.report import bootstrap
from evomerge.report.figures import style
from evomerge.settings import StudySettings

SEEDS = 10
ROWS = Path("runs") / "controls"
METHODS: dict[str, str] = {
    "average": "linear",
    "task arithmetic": "task_arithmetic",
    "TIES": "ties",
    "TSV-M": "tsv",
    "ISO-C": "iso_c",
}
KINDS = ("real", "sham", "wild")
RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates of fine-tuning. On `text` a tenth of them."""
BATCH = 16
"""Examples of each task in a step of fine-tuning."""
SPACE = {
    "recipe": {
        "merge": {
            "method": "task_arithmetic",
            "inputs": "experts",
            "parameters": {"weight": {"float": [0, 1.2], "init": 0.4, "per": ["expert"]}, "lambda": 1.0},
        }
    }
}


@dataclass(frozen=True)
class Bed:
    """A zoo, and how much of it is scored: unseen examples and search examples of each task, evaluations of a search."""

    zoo: str
    unseen: int
    searched: int
    evaluations: int
    seeds: int
    rate: float = 1.0
    precision: str = "float32"


BEDS = {"digits": Bed("digits", 497, 100, 24, SEEDS), "text": Bed("text", 100, 40, 12, 1, 0.1, "fast")}
SMOKE = Bed("digits", 100, 30, 4, 1)

Row = dict[str, Any]


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    if switches.smoke:
        rows = of_subset(opened(SMOKE, 0), SMOKE, 0, ("turned", "shifted"))
        lines = summed("smoke", rows)
        return Findings(
            {"lines": lines, "subsets": compact("smoke", rows)}, text(lines), draw(lines), packages=["matplotlib"]
        )
    lines, subsets = [], []
    for name in switches.parts:
        bed = BEDS[name]
        of_bed = [row for seed in switches.seeds[: bed.seeds] for row in of_seed(name, bed, seed)]
        lines += summed(name, of_bed)
        subsets += compact(name, of_bed)
    return Findings({"lines": lines, "subsets": subsets}, text(lines), draw(lines), packages=["matplotlib"])


def of_seed(name: str, bed: Bed, seed: int) -> Iterator[Row]:
    """Yield the rows of all subsets of a zoo, each subset kept when it is done."""
    kept: Workbench | None = None
    names = list(zoo.find_or_build(bed.zoo, seed=seed).tasks)
    for size in range(2, len(names) + 1):
        for subset in itertools.combinations(names, size):
            path = ROWS / f"{name}-{seed}-{'-'.join(subset)}.json"
            if not path.exists():
                say(f"{name}, seed {seed}: {', '.join(subset)}")
                kept = kept or opened(bed, seed)
                files.write(path, json.dumps(of_subset(kept, bed, seed, subset)))
            yield from json.loads(path.read_text(encoding="utf-8"))


class Workbench:
    """The models of a zoo, real and sham, and the unseen accuracies of what was scored."""

    def __init__(self, bed: Bed, real: Parts, sham: Parts) -> None:
        """Open a worker for each."""
        self.bed, self.parts = bed, real
        self.workers = {"real": Worker(real.setup), "sham": Worker(sham.setup)}
        self._known: dict[tuple[str, str], dict[str, float]] = {}
        for worker in self.workers.values():  # reading models and data is no part of a search's time
            worker.evaluate(base(), "search", {name: tuple(range(bed.searched)) for name in real.tasks})

    def accuracies(self, pool: str, recipe: Recipe) -> dict[str, float]:
        """Return the accuracy on the first unseen examples of every task."""
        if (pool, recipe.id) not in self._known:
            examples = {name: tuple(range(self.bed.unseen)) for name in self.parts.tasks}
            found = self.workers[pool].evaluate(recipe, "report", examples)
            if found.error is not None:
                raise RuntimeError(f"{recipe.json}: {found.error}")
            accuracies = {name: float(found.scores[f"{name}/accuracy"].mean(dtype=np.float64)) for name in examples}
            self._known[pool, recipe.id] = accuracies
        return self._known[pool, recipe.id]


def opened(bed: Bed, seed: int) -> Workbench:
    """Return the models of a bed."""
    built = zoo.find_or_build(bed.zoo, seed=seed)
    fast = str(zoo.fast_precision()).removeprefix("torch.")
    data = {
        "tasks": {name: {**task, "metrics": ["accuracy", "log_likelihood"]} for name, task in built.tasks.items()},
        "space": "task_arithmetic",
        "precision": fast if bed.precision == "fast" else bed.precision,
    }
    real, sham = (
        open_parts(StudySettings.parse({**data, "pool": built.pool | more}, "controls", Path()))
        for more in ({}, {"shuffled": seed})
    )
    return Workbench(bed, real, sham)


def of_subset(bench: Workbench, bed: Bed, seed: int, subset: tuple[str, ...]) -> list[Row]:
    """Return a row for each kind of experts and each method, and one for fine-tuning: scores are means over the subset's tasks."""

    def mean(accuracies: dict[str, float]) -> float:
        return float(np.mean([accuracies[name] for name in subset]))

    known = {
        "base": mean(bench.accuracies("real", base())),
        "best_expert": max(mean(bench.accuracies("real", expert(name))) for name in subset),
    }
    rows, seconds = [], 0.0
    others = [name for name in bench.parts.pool.experts if name not in subset]
    for kind, names in (("real", subset), ("sham", subset), ("wild", others)):
        pool = "sham" if kind == "sham" else "real"
        recipes = {method: merge(word, list(names)) for method, word in METHODS.items()} if names else {}
        spent = dict.fromkeys(recipes, 0.0)
        if names:
            start = time.process_time()
            recipes["adaptive"] = adapted(bench.workers[pool], bed, seed, subset, names)
            spent["adaptive"] = time.process_time() - start
            seconds = seconds or spent["adaptive"]
        for method, recipe in recipes.items():
            score = mean(bench.accuracies(pool, recipe))
            rows.append({"kind": kind, "method": method, "score": score, "cpu_s": spent[method]})
    score, steps = tuned(bench.parts, bed, seed, subset, seconds)
    rows.append({"kind": "none", "method": "fine-tuning", "score": score, "cpu_s": seconds, "steps": steps})
    return [{"seed": seed, "subset": list(subset), **known, **row} for row in rows]


def adapted(worker: Worker, bed: Bed, seed: int, tasks: Sequence[str], names: Sequence[str]) -> Recipe:
    """Return the best of the merges of experts that CMA-ES proposes, by the mean log-likelihood on search examples of tasks."""
    space = em.SearchSpace.parse(SPACE, experts=list(names))
    driver = em.driver({"kind": "cma"}, space, ["score"], seed=seed)
    examples = {name: tuple(range(bed.searched)) for name in tasks}
    objectives = [f"{name}/log_likelihood" for name in tasks]
    best, recipe = -np.inf, None
    for proposal in em.asks(driver, bed.evaluations):
        found = worker.evaluate(proposal.recipe, "search", examples)
        if found.error is not None:
            raise RuntimeError(f"{proposal.recipe.json}: {found.error}")
        score = float(found.means(objectives).mean())
        driver.tell(proposal, em.Evaluation.of({"score": score}))
        if score > best:
            best, recipe = score, proposal.recipe
    assert recipe is not None  # at least one is proposed
    return recipe


def tuned(parts: Parts, bed: Bed, seed: int, subset: Sequence[str], seconds: float) -> tuple[float, int]:
    """Fine-tune the base on the search examples for so many CPU seconds; return its mean unseen accuracy, and the steps it took."""
    device = placement.find("cpu")
    live = open_model(replace(parts.setup, precision="float32"), parts.pool, device)
    held = bed.searched // 4
    judged, trained = list(range(held)), np.arange(held, bed.searched)
    tasks = [parts.tasks[name] for name in subset]
    tried: list[tuple[float, float, int]] = []
    for number, rate in enumerate(RATES):
        rng, start, steps = np.random.default_rng([seed, number]), time.process_time(), 0
        live.module.requires_grad_(requires_grad=False)
        live.refit(parts.pool.base)
        live.module.requires_grad_(requires_grad=True)
        optimiser = torch.optim.AdamW(live.module.parameters(), lr=rate * bed.rate, weight_decay=0.01)
        while time.process_time() - start < seconds / len(RATES):
            optimiser.zero_grad()
            for task in tasks:
                task.put_head_on(live)
                chosen = rng.choice(trained, min(BATCH, len(trained)), replace=False).tolist()
                for part in task.graph(live, "search", chosen):
                    (-part.value.sum() / (len(chosen) * len(tasks))).backward()
            torch.nn.utils.clip_grad_norm_(live.module.parameters(), 1.0)
            optimiser.step()
            steps += 1
        values = []
        for task in tasks:
            task.put_head_on(live)
            likely = task.score(live, "search", judged).scores["log_likelihood"]
            right = task.score(live, "report", range(bed.unseen)).scores["accuracy"]
            values.append((likely.mean(dtype=np.float64), right.mean(dtype=np.float64)))
        likelihood, accuracy = np.mean(values, axis=0).tolist()
        tried.append((likelihood, accuracy, steps))
    _, accuracy, _ = max(tried)
    return accuracy, sum(steps for *_, steps in tried)


def summed(bed: str, rows: Sequence[Row]) -> list[Row]:
    """Return a line for each kind of experts and each method of a bed."""
    lines = []
    by_subset = {(row["seed"], *row["subset"], row["kind"], row["method"]): row["score"] for row in rows}
    for kind, method in dict.fromkeys((row["kind"], row["method"]) for row in rows):
        of = [row for row in rows if (row["kind"], row["method"]) == (kind, method)]
        line = {
            "bed": bed,
            "kind": kind,
            "method": method,
            "subsets": len(of),
            "score": mean_of(row["score"] for row in of),
        }
        for key in ("base", "best_expert"):
            line[key] = beats([row["score"] - row[key] for row in of])
            line[f"above_{key}"] = mean_of(row["score"] - row[key] for row in of)
        others = [by_subset[row["seed"], *row["subset"], "none", "fine-tuning"] for row in of]
        line["fine_tuning"] = beats([row["score"] - other for row, other in zip(of, others, strict=True)])
        line["cpu_s"] = mean_of(row["cpu_s"] for row in of)
        lines.append(line)
    return lines


def compact(bed: str, rows: Sequence[Row]) -> list[Row]:
    """Return the scores of each subset of a bed in one row."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        about = {"bed": bed, **{key: row[key] for key in ("seed", "subset")}}
        known = {key: round(row[key], 4) for key in ("base", "best_expert")}
        of = found.setdefault((row["seed"], *row["subset"]), {**about, "subset": ", ".join(row["subset"]), **known})
        of[f"{row['kind']}: {row['method']}"] = round(row["score"], 4)
        if "steps" in row:
            of["steps"] = row["steps"]
    return list(found.values())


def beats(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return the share of differences above 0, those of 0 by half, with its interval."""
    share = float(np.mean([(one > 0) + 0.5 * (one == 0) for one in differences]))
    return bootstrap.share_interval(share, len(differences))


def mean_of(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def text(lines: Sequence[Row]) -> str:
    head = "bed: experts, method, subsets, mean accuracy, P(beats base), above base, P(beats best expert), above best expert, P(beats fine-tuning), CPU s"

    def share(interval: Sequence[float]) -> str:
        return "{:.0f}% [{:.0f}, {:.0f}]".format(*(100 * value for value in interval))

    cells = [
        [
            f"{line['bed']}: {line['kind']}",
            line["method"],
            str(line["subsets"]),
            f"{100 * line['score']:.1f}",
            share(line["base"]),
            f"{100 * line['above_base']:+.1f}",
            share(line["best_expert"]),
            f"{100 * line['above_best_expert']:+.1f}",
            "" if line["kind"] == "none" else share(line["fine_tuning"]),
            f"{line['cpu_s']:.1f}" if line["cpu_s"] else "",
        ]
        for line in lines
    ]
    about = (
        "Accuracy in percent on unseen examples, the mean over a subset's tasks. Intervals are of 95%, as if subsets were independent: those "
        "of a seed share experts, so that they are too short. CPU seconds of the search, and of fine-tuning."
    )
    return f"{about}\n\n{table(head.split(', '), cells)}"


def draw(lines: Sequence[Row]) -> Figure:
    """Draw how often each merge beats the base, and the best expert: a row of panels for each bed."""
    beds = list(dict.fromkeys(line["bed"] for line in lines))
    figure = Figure(figsize=(9, 3.4 * len(beds)), layout="constrained")
    colours = dict(zip((*KINDS, "none"), ("#0072B2", "#6b6b6b", "#E69F00", "#000000"), strict=True))
    for row, bed in zip(figure.subplots(len(beds), 2, squeeze=False), beds, strict=True):
        of_bed = [line for line in lines if line["bed"] == bed]
        methods = list(dict.fromkeys(line["method"] for line in of_bed))
        for axes, key, what in zip(row, ("base", "best_expert"), ("the base", "the best expert"), strict=True):
            for kind, colour in colours.items():
                of = [line for line in of_bed if line["kind"] == kind]
                places = [methods.index(line["method"]) + 0.2 * ((*KINDS, "none").index(kind) % 3 - 1) for line in of]
                held = 100 * np.array([line[key] for line in of]).reshape(-1, 3)
                bars = np.abs(held[:, 1:] - held[:, :1]).T
                label = "no experts" if kind == "none" else kind
                axes.errorbar(held[:, 0], places, xerr=bars, fmt="o", color=colour, capsize=2, label=label)
            axes.set_yticks(range(len(methods)), methods)
            axes.set_xlim(-3, 103)
            axes.invert_yaxis()
            axes.set_xlabel(f"{bed}: % of subsets in which it beats {what}")
            style(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main("controls", __doc__, measure, seeds=SEEDS, parts=tuple(BEDS))
