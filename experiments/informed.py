"""What data say of weights: methods that read examples beside methods that do not, by number of examples.

Beds: `text` merges the first three experts of the zoo `text4`, which are those of the zoo `text`, and holds its fourth task out: no
merged model was trained on it, and the base's own accuracy there is what can be forgotten. `text4` merges all four. Each seed
has other splits, experts and heads.

Statistics are collected of 16 to 1,024 examples for each expert, from the rows that it was trained on; no label of them is read
but by `fisher_empirical`. Methods have their papers' defaults. `best scale` (of task arithmetic) and `best mixture` (weighted average)
are picked by log-likelihood on 60 search examples of each task with labels, and so have more to go by than their names say.

Models are scored on the first unseen examples of each task. Held-in accuracy is divided by that of the task's own expert, and
averaged over tasks and seeds; held-out accuracy has the base's subtracted. Intervals are of 95%, paired, over unseen
examples, of which those that tasks or seeds share are drawn together; they are of these seeds' experts, and not corrected for
their number.

    python experiments/informed.py [--smoke] [--seeds N] [--only BED:STATISTIC:EXAMPLES …] [--json] [--out DIR]

Cells of which `informed.json` in the output folder has the rows are not run again, so that a full run can be made in parts. A
smoke run takes the zoo `digits`, two experts and 16 examples.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from shared.harness import Findings, Switches, main, say, table

from evomerge import files, zoo
from evomerge.evaluate import Worker
from evomerge.evidence import Evidence
from evomerge.parts import Parts, open_parts
from evomerge.recipe import Recipe, base, expert, merge
from evomerge.report import bootstrap
from evomerge.report.comparisons import references
from evomerge.report.figures import style
from evomerge.settings import ReportSettings, StudySettings
from evomerge.statistics import EvidenceSettings
from evomerge.tasks import Task

SEEDS = 3
SIZES = (16, 64, 256, 1024)
"""Examples of evidence for each expert."""
ROWS = Path("runs") / "informed"
UNSEEN = 200  # examples per task that models are scored on
PICKING = 60  # search examples per task, by which scale and mixture are picked
PICKED_FROM = ReportSettings(scales=(0.2, 0.3, 0.5, 0.8), mixtures=8)

FREE: dict[str, dict[str, Any]] = {
    "average": {"method": "linear"},
    "task arithmetic": {"method": "task_arithmetic"},
    "TIES": {"method": "ties"},
    "TSV-M": {"method": "tsv"},
    "ISO-C": {"method": "iso_c"},
    "CART": {"method": "cart"},
    "Localize-and-Stitch": {"method": "localize_stitch"},
    "DOGE": {"method": "doge"},
    "WUDI, exact": {"method": "wudi", "parameters": {"solver": "exact"}},
}
INFORMED: dict[str, dict[str, dict[str, Any]]] = {
    "gram": {"RegMean": {"method": "regmean"}},
    "gram_merged": {"RegMean++": {"method": "regmean_plus"}},
    "base_activation": {"AIM, task arithmetic": {"method": "aim", "parameters": {"lambda": 0.3}}},
    "fisher_sampled": {"Fisher, sampled": {"method": "fisher", "parameters": {"estimate": "sampled"}}},
    "fisher_empirical": {"Fisher, empirical": {"method": "fisher", "parameters": {"estimate": "empirical"}}},
    "fisher_exact": {"Fisher, exact": {"method": "fisher", "parameters": {"estimate": "exact"}}},
}
"""By statistic: the methods that read it."""


@dataclass(frozen=True)
class Bed:
    """The first experts of a zoo, to be merged; its other tasks are held out."""

    zoo: str
    merged: int
    precision: str = "fast"


BEDS = {"text": Bed("text4", 3), "text4": Bed("text4", 4)}
SMOKE_BEDS = {"digits": Bed("digits", 2, "float32")}


@dataclass(frozen=True)
class Cell:
    """What is scored at once: methods without data, or those that read one statistic of a number of examples."""

    bed: str
    statistic: str
    examples: int

    def __str__(self) -> str:
        return f"{self.bed}:{self.statistic}:{self.examples}"


CELLS = {
    str(cell): cell
    for bed in BEDS
    for cell in (Cell(bed, "none", 0), *(Cell(bed, statistic, size) for statistic in INFORMED for size in SIZES))
}
SMOKE = [Cell("digits", "none", 0), *(Cell("digits", statistic, 16) for statistic in INFORMED)]

Row = dict[str, Any]


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    rows = [] if switches.smoke else kept_rows(switches)
    done = {(row["cell"], row["seed"]) for row in rows}
    chosen = SMOKE if switches.smoke else [CELLS[name] for name in switches.parts]
    needed = [Cell(bed, "none", 0) for bed in dict.fromkeys(cell.bed for cell in chosen)]  # what all are compared with
    with tempfile.TemporaryDirectory(prefix="informed-") as scratch:
        for seed in switches.seeds:
            for cell in dict.fromkeys([*needed, *chosen]):
                if (str(cell), seed) in done:
                    continue
                kept = (Path(scratch) if switches.smoke else ROWS) / f"{cell}-{seed}.json".replace(":", "-")
                if not kept.exists():
                    say(f"{cell}, seed {seed}")
                    files.write(kept, json.dumps(of_cell(cell, seed)))
                rows += json.loads(kept.read_text(encoding="utf-8"))
    order = [str(cell) for cell in SMOKE] if switches.smoke else list(CELLS)
    rows.sort(key=lambda row: (order.index(row["cell"]), row["seed"]))
    lines = [line for bed in dict.fromkeys(row["bed"] for row in rows) for line in compared(bed, rows)]
    return Findings({"lines": lines, "rows": rows}, text(lines), draw(lines), packages=["matplotlib"])


def kept_rows(switches: Switches) -> list[Row]:
    """Return the rows of earlier runs from the output folder, of any seeds."""
    path = None if switches.out is None else switches.out / "informed.json"
    if path is None or not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["figures"]["rows"]
    return rows


def of_cell(cell: Cell, seed: int) -> list[Row]:
    """Return a row for each model of a cell."""
    bed = (BEDS | SMOKE_BEDS)[cell.bed]
    built = zoo.find_or_build(bed.zoo, seed=seed, progress=lambda done, doing: say(f"{bed.zoo}: {done:4.0%} {doing}"))
    about = {"cell": str(cell), "bed": cell.bed, "statistic": cell.statistic, "examples": cell.examples, "seed": seed}
    with own_cache():
        scored = opened(bed, built, built.tasks)
        cpu_s, nbytes, statistics = 0.0, 0, {}
        if cell.statistic != "none":
            cpu_s, nbytes, statistics = collected(bed, built, cell)
        worker = Worker(replace(scored.setup, statistics=statistics))
        models = plain(scored, worker) if cell.statistic == "none" else informed(scored, cell.statistic)
        keys = {"keys": {name: keys_of(task) for name, task in scored.tasks.items()}}
        return [
            {
                **about,
                **(keys if name == "base" else {}),
                "method": name,
                "cpu_s": cpu_s,
                "nbytes": nbytes,
                "right": right(worker, scored, recipe),
            }
            for name, recipe in models.items()
        ]


def keys_of(task: Task) -> str:
    """Return eight hexadecimal digits for each of the first unseen examples, equal for the same example in any task or seed."""
    keys = task.example_keys("report")[:UNSEEN]
    return "".join(hashlib.sha256(key.encode()).hexdigest()[:8] for key in keys)


@contextmanager
def own_cache() -> Iterator[None]:
    """Keep what is collected and prepared in a folder of its own: all of it is paid for, and none of it is left."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="informed-cache-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def opened(bed: Bed, built: zoo.Zoo, tasks: Mapping[str, Any]) -> Parts:
    """Return the bed's experts, and some tasks."""
    given = {
        "name": "informed",
        "pool": {
            "base": built.pool["base"],
            "experts": {one: built.pool["experts"][one] for one in merged(bed, built)},
        },
        "tasks": {name: {**tasks[name], "metrics": ["accuracy", "log_likelihood"]} for name in tasks},
        "space": "task_arithmetic",
        "precision": str(zoo.fast_precision()).removeprefix("torch.") if bed.precision == "fast" else bed.precision,
    }
    return open_parts(StudySettings.parse(given, "informed", Path()))


def merged(bed: Bed, built: zoo.Zoo) -> list[str]:
    """Return the names of the bed's experts, and of their tasks."""
    return list(built.tasks)[: bed.merged]


def collected(bed: Bed, built: zoo.Zoo, cell: Cell) -> tuple[float, int, Mapping[str, Mapping[str, str]]]:
    """Collect a statistic of rows that the experts were trained on; return CPU seconds, bytes, and where it is."""
    trained = {
        name: {**built.tasks[name], "search": str(Path(built.tasks[name]["search"]).with_name("train.jsonl"))}
        for name in merged(bed, built)
    }
    parts = opened(bed, built, trained)
    asked = {name: EvidenceSettings(task=name, examples=cell.examples) for name in trained}
    evidence = Evidence(parts.pool, parts.setup, parts.tasks, asked, [cell.statistic])
    start = time.process_time()
    evidence.collect(Console(stderr=True))
    cpu_s = time.process_time() - start
    nbytes = sum(file.stat().st_size for entry in evidence.entries for file in entry.folder.iterdir())
    return cpu_s, nbytes, evidence.folders


def informed(scored: Parts, statistic: str) -> dict[str, Recipe]:
    """Return the merges that read a statistic."""
    return {
        name: merge(given["method"], list(scored.pool.experts), given.get("parameters", {}))
        for name, given in INFORMED[statistic].items()
    }


def plain(scored: Parts, worker: Worker) -> dict[str, Recipe]:
    """Return base, experts, the merges that read no data, and the scale and the mixture that are best on search examples."""
    names = list(scored.pool.experts)
    known = references(scored, PICKED_FROM)
    examples = {name: np.arange(min(PICKING, scored.tasks[name].size("search"))) for name in names}
    value = {
        name: float(
            worker.evaluate(recipe, "search", examples).means([f"{one}/log_likelihood" for one in names]).mean()
        )
        for name, recipe in known.items()
        if name.startswith(("scale ", "mixture ")) or name == "average"
    }

    def best(*kinds: str) -> Recipe:
        return known[max((name for name in value if name.startswith(kinds)), key=lambda name: value[name])]

    free = {name: merge(given["method"], names, given.get("parameters", {})) for name, given in FREE.items()}
    picked = {"best scale": best("scale "), "best mixture": best("mixture ", "average")}
    return {"base": base(), **{f"expert {name}": expert(name) for name in names}, **free, **picked}


def right(worker: Worker, scored: Parts, recipe: Recipe) -> dict[str, str]:
    """Return which of the first unseen examples of each task a model gets right, as bits in hexadecimal digits."""
    found = worker.evaluate(recipe, "report", {name: np.arange(UNSEEN) for name in scored.tasks})
    if found.error is not None:
        raise RuntimeError(f"{recipe.json}: {found.error}")
    return {name: np.packbits(found.scores[f"{name}/accuracy"] > 0).tobytes().hex() for name in scored.tasks}


class Unseen:
    """The models of a bed on the unseen examples of some seeds, each task of each seed an objective of its own."""

    def __init__(self, rows: Sequence[Row], seeds: Sequence[int]) -> None:
        """Take the rows of one bed."""
        self._seeds = seeds
        self._rows = {(row["method"], row["examples"], row["seed"]): row for row in rows if row["seed"] in seeds}
        bases = {seed: self._rows["base", 0, seed] for seed in seeds}
        keys = {
            f"{task} {seed}/accuracy": [found[i : i + 8] for i in range(0, len(found), 8)]
            for seed, row in bases.items()
            for task, found in row["keys"].items()
        }
        self._lengths = {name: len(of) for name, of in keys.items()}
        experts = {method.removeprefix("expert ") for method, *_ in self._rows if method.startswith("expert ")}
        held = {name: name.rpartition(" ")[0] in experts for name in keys}
        self._held_in = bootstrap.resamples({name: keys[name] for name in keys if held[name]})
        out = {name: keys[name] for name in keys if not held[name]}
        self._held_out = bootstrap.resamples(out) if out else None
        self._units = [self.own_expert(name) for name in self._held_in.counts]

    def scores(self, method: str, examples: int = 0) -> dict[str, NDArray[np.float32]]:
        """Return 1 for each example that is right and 0 for others, by objective."""
        found = {}
        for seed in self._seeds:
            for task, digits in self._rows[method, examples, seed]["right"].items():
                name = f"{task} {seed}/accuracy"
                bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))
                found[name] = bits[: self._lengths[name]].astype(np.float32)
        return found

    def own_expert(self, name: str) -> float:
        """Return the accuracy of the task's own expert on an objective."""
        return float(self.scores(f"expert {name.rpartition(' ')[0]}")[name].mean())

    def line(self, method: str, examples: int) -> Row:
        """Return what one method reached, with intervals (value, low, high)."""
        ours = self.scores(method, examples)
        shares = {name: ours[name].mean() / unit for name, unit in zip(self._held_in.counts, self._units, strict=True)}
        by_seed = [
            float(np.mean([share for name, share in shares.items() if name.endswith(f" {seed}/accuracy")]))
            for seed in self._seeds
        ]
        paired = {"above_average": "average", "above_mixture": "best mixture"}
        out = self._held_out
        return {
            "held_in": bootstrap.mean_interval(ours, self._held_in, self._units),
            "by_seed": by_seed,
            **{
                key: bootstrap.difference(ours, self.scores(other), self._held_in, units=self._units)
                for key, other in paired.items()
            },
            "held_out": None if out is None else bootstrap.difference(ours, self.scores("base"), out),
        }


def compared(bed: str, rows: Sequence[Row]) -> list[Row]:
    """Return a line for each method and number of examples of a bed, over its seeds."""
    of_bed = [row for row in rows if row["bed"] == bed]
    lines, known = [], {}
    for method, statistic, examples in dict.fromkeys(
        (row["method"], row["statistic"], row["examples"]) for row in of_bed
    ):
        of = [row for row in of_bed if (row["method"], row["examples"]) == (method, examples)]
        seeds = tuple(sorted(row["seed"] for row in of))
        if seeds not in known:
            known[seeds] = Unseen(of_bed, seeds)
        spent = {key: float(np.mean([row[key] for row in of])) for key in ("cpu_s", "nbytes")}
        about = {"bed": bed, "method": method, "statistic": statistic, "examples": examples, "seeds": list(seeds)}
        lines.append({**about, **spent, **known[seeds].line(method, examples)})
    return lines


def text(lines: Sequence[Row]) -> str:
    head = "bed: method, examples, seeds, held in, least seed, above the average, above the best mixture, held out, CPU s, MiB"

    def points(interval: Sequence[float] | None) -> str:
        return "" if interval is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in interval))

    cells = [
        [
            f"{line['bed']}: {line['method']}",
            str(line["examples"] or ""),
            str(len(line["seeds"])),
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in line["held_in"])),
            f"{100 * min(line['by_seed']):.1f}",
            points(line["above_average"]),
            points(line["above_mixture"]),
            points(line["held_out"]),
            f"{line['cpu_s']:.1f}" if line["examples"] else "",
            f"{line['nbytes'] / 2**20:.0f}" if line["examples"] else "",
        ]
        for line in lines
        if not line["method"].startswith("expert ")
    ]
    about = (
        "Held in: accuracy on the experts' own tasks in percent of the experts', and the least of the seeds. Held out: points of "
        "accuracy above the base's on a task of no expert. CPU seconds and MiB of collecting, for all experts together. "
        "Intervals are of 95%, each by itself."
    )
    return f"{about}\n\n{table(head.split(', '), cells)}"


def draw(lines: Sequence[Row]) -> Figure:
    """Draw held-in accuracy against examples of evidence: a panel for each bed, data-free methods as levels."""
    beds = dict.fromkeys(line["bed"] for line in lines)
    figure = Figure(figsize=(max(5.4 * len(beds), 8), 4.4), layout="constrained")
    for axes, bed in zip(figure.subplots(1, len(beds), squeeze=False)[0], beds, strict=True):
        of_bed = [line for line in lines if line["bed"] == bed]
        for number, method in enumerate(dict.fromkeys(line["method"] for line in of_bed if line["examples"])):
            of = [line for line in of_bed if line["method"] == method]
            sizes = [line["examples"] * 1.05 ** (number - 2) for line in of]  # apart from each other
            held = 100 * np.array([line["held_in"] for line in of])
            bars = np.abs(held[:, 1:] - held[:, :1]).T
            axes.errorbar(sizes, held[:, 0], bars, marker="o", capsize=2, linewidth=1.2, label=method)
        levels = ("average", "task arithmetic", "TIES", "best mixture")
        for method, colour in zip(levels, ("#6b6b6b", "#b0b0b0", "#c9a86a", "#000000"), strict=True):
            level = next(line["held_in"][0] for line in of_bed if line["method"] == method)
            axes.axhline(100 * level, color=colour, linewidth=1, linestyle="--", label=method)
        axes.set_xscale("log", base=2)
        style(axes)
        axes.set_title(bed)
        axes.set_xlabel("examples of evidence for each expert")
        axes.set_ylabel("held-in accuracy, % of the experts'")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main("informed", __doc__, measure, seeds=SEEDS, parts=tuple(CELLS))
