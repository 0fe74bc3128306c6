"""What is spared by stacks that begin alike: layers that need not be run again, and the time that this wins.

Two real searches over experts of the `language` zoo for sums asked in German: the source of each layer, and a path through
all layers, by the shipped spaces and their drivers. Each candidate is evaluated twice in the same turn of the loop, by a worker that keeps hidden
states and by one that does not, taking turns at going first; the scores must be the same to the bit. A layer's execution is
one layer on one batch of examples.

    python experiments/benchmarks/prefix.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from evomerge import zoo
from evomerge.evaluate import Worker
from evomerge.parts import open_parts
from evomerge.settings import StudySettings
from evomerge.trial import Evaluation

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

SPACES = ("layer_swap", "data_flow")
EXPERTS = ("german", "addition")
TASK = "german_addition"
EVALUATIONS = 120
SHARED_MIB = 1024
SMOKE_EXPERTS = ("turned", "inverted")
SMOKE_TASK = "shifted"
SMOKE_EVALUATIONS = 12


@dataclass
class Run:
    """One search, candidate by candidate."""

    run: list[int] = field(default_factory=list)
    spared: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seconds_without: list[float] = field(default_factory=list)

    def share(self, half: slice) -> float:
        """Return the share of layer executions that were spared."""
        spared = sum(self.spared[half])
        return spared / max(spared + sum(self.run[half]), 1)

    def ratio(self, half: slice) -> float:
        """Return the time with sharing, as a share of that without."""
        return sum(self.seconds[half]) / sum(self.seconds_without[half])


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    found = {(space, seed): search(space, seed, smoke=switches.smoke) for space in SPACES for seed in switches.seeds}
    rows, figures = [], []
    for (space, seed), one in found.items():
        halves = {"first half": slice(len(one.run) // 2), "second half": slice(len(one.run) // 2, None)}
        for half, part in halves.items():
            if not one.run[part]:  # a smoke run may have had one new candidate only
                continue
            figures.append(
                {
                    "space": space,
                    "seed": seed,
                    "half": half,
                    "candidates": len(one.run[part]),
                    "layer_executions": sum(one.run[part]) + sum(one.spared[part]),
                    "spared": one.share(part),
                    "time_ratio": one.ratio(part),
                }
            )
            rows.append(
                [
                    f"{space}, seed {seed}, {half}",
                    str(figures[-1]["candidates"]),
                    str(figures[-1]["layer_executions"]),
                    f"{100 * one.share(part):.0f} %",
                    f"{one.ratio(part):.2f}x",
                ]
            )
    columns = ["search", "candidates", "layer executions", "spared", "time, by that without"]
    return Findings({"rows": figures, "shared_mib": SHARED_MIB}, table(columns, rows), draw(found))


def search(space: str, seed: int, *, smoke: bool) -> Run:
    """Search as a study does, with every candidate evaluated with and without sharing."""
    embedded = zoo.find_or_build("digits" if smoke else "language", seed=0, progress=lambda done, doing: say(doing))
    task = SMOKE_TASK if smoke else TASK
    experts = {name: embedded.pool["experts"][name] for name in (SMOKE_EXPERTS if smoke else EXPERTS)}
    given = {
        "pool": {"base": embedded.pool["base"], "experts": experts},
        "tasks": {task: embedded.tasks[task]},
        "space": space,
        "seed": seed,
        "evaluations": SMOKE_EVALUATIONS if smoke else EVALUATIONS,
        "precision": str(zoo.fast_precision()).removeprefix("torch."),
        "shared_mib": SHARED_MIB,
    }
    settings = StudySettings.parse(given, "prefix", Path())
    parts = open_parts(settings)
    driver = parts.new_driver(seed)
    workers = {True: Worker(parts.setup), False: Worker(replace(parts.setup, shared_mib=0))}
    for worker in workers.values():
        worker.prepare()
    found = Run()
    seen: dict[str, Evaluation] = {}  # as in a study, no recipe is evaluated twice
    for number in range(settings.evaluations):
        proposal = driver.ask()
        if proposal is None:
            break
        if proposal.recipe.id not in seen:
            order = (True, False) if number % 2 else (False, True)
            taken: Mapping[bool, tuple[float, Evaluation]] = {
                shares: timed(workers[shares], proposal) for shares in order
            }
            if taken[True][1].to_json() != taken[False][1].to_json():
                raise AssertionError(f"candidate {number}: other scores with shared hidden states than without")
            count = workers[True].prepare().model.prefixes.count
            found.run.append(count.run)
            found.spared.append(count.spared)
            found.seconds.append(taken[True][0])
            found.seconds_without.append(taken[False][0])
            seen[proposal.recipe.id] = taken[True][1]
        driver.tell(proposal, seen[proposal.recipe.id])
        if (number + 1) % 10 == 0:
            last = slice(max(0, len(found.run) - 10), None)
            say(
                f"{space}, seed {seed}: {number + 1} of {settings.evaluations}, lately {100 * found.share(last):.0f} % spared"
            )
    return found


def timed(worker: Worker, proposal: Any) -> tuple[float, Evaluation]:
    before = time.perf_counter()
    evaluation = worker.evaluate(proposal.recipe)
    return time.perf_counter() - before, evaluation


def draw(found: Mapping[tuple[str, int], Run]) -> Figure:
    """Draw the share of layer executions spared, candidate by candidate, smoothed over ten."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(SPACES, ("#0072B2", "#D55E00"), strict=True))
    for (space, seed), one in found.items():
        spared, run = np.array(one.spared, dtype=float), np.array(one.run, dtype=float)
        width = min(10, len(run))
        window = np.ones(width)
        share = np.convolve(spared, window, "valid") / np.maximum(np.convolve(spared + run, window, "valid"), 1)
        axes.plot(np.arange(width, len(run) + 1), 100 * share, color=colours[space], label=space if seed == 0 else None)
    axes.axhline(40, color="#6b6b6b", linestyle="--", linewidth=1)
    axes.set_ylim(0, 100)
    axes.set_xlabel("candidates")
    axes.set_ylabel("layer executions spared, %")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main("prefix", __doc__, measure)
