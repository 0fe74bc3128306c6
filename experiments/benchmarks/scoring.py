"""What a candidate's scoring costs, beside a plain loop over the same batches and the machine's own matrix products.

Each variant is a worker that stays in memory, as in a study; the variants take turns, and the CPU seconds are medians. The plain loop
replays the batches that the worker gave to the model. The floor is nothing but the products of its linear layers, on memory of
the same shapes. `lower half shared` is a search whose lower half of the blocks is the same for every candidate: its scores must be
those without sharing to the bit. The other variants have other last bits, and the largest change of an objective is stated.

    python experiments/benchmarks/scoring.py [--smoke] [--seeds REPETITIONS] [--json] [--out DIR]
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from evomerge import zoo
from evomerge.evaluate import Setup, Worker
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.settings import StudySettings

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

REPETITIONS = 3
BATCHES = (8, 64)
DEFAULT = "as it is"
SHARED = "lower half shared"
SHARED_MIB = 1024
WARM_UP = 3  # candidates after which the shared hidden states are kept
TARGET = 0.6
Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    embedded = zoo.find_or_build("digits" if switches.smoke else "text", progress=lambda done, doing: say(doing))
    given = {"pool": embedded.pool, "tasks": embedded.tasks, "space": "task_arithmetic_per_block"}
    setup = replace(open_parts(StudySettings.parse(given, "scoring", Path())).setup, shared_mib=0)
    workers = {name: Worker(variant) for name, variant in variants(setup).items()}
    for name, worker in workers.items():
        for number in range(WARM_UP if name == SHARED else 1):
            worker.evaluate(candidate(setup, -1 - number))
    calls, shapes = recorded(workers[DEFAULT], candidate(setup, 0))
    seconds: dict[str, list[float]] = defaultdict(list)
    means: dict[str, list[Any]] = defaultdict(list)
    for repetition in switches.seeds:
        say(f"repetition {repetition}")
        recipe = candidate(setup, repetition)
        answers = {}
        for name, worker in workers.items():
            before = time.process_time()
            answers[name] = worker.evaluate(recipe)
            seconds[name].append(time.process_time() - before)
            means[name].append(answers[name].means([*answers[name].scores]))
        if answers[SHARED].to_json() != answers[DEFAULT].to_json():
            raise AssertionError(f"candidate {repetition}: other scores with shared hidden states than without")
        module = workers[DEFAULT].prepare().model.module.base_model
        seconds["plain loop"].append(timed(lambda module=module: [module(*args, **kwargs) for args, kwargs in calls]))
        seconds["matrix products"].append(products(shapes))
    return findings(seconds, means)


def variants(setup: Setup) -> dict[str, Setup]:
    """Return the setups to compare."""
    found = {DEFAULT: setup, SHARED: replace(setup, shared_mib=SHARED_MIB)}
    for size in BATCHES:
        tasks = {name: {**task, "batch": size} for name, task in setup.tasks.items()}
        found[f"batch: {size}"] = replace(setup, tasks=tasks)
    found["precision: bfloat16"] = replace(setup, precision="bfloat16")
    return found


def candidate(setup: Setup, number: int) -> Recipe:
    """Return a merge whose lower half is that of every candidate."""
    weight = {"per": ["block/2"], "values": [0.3, 0.3 + 0.01 * number]}
    parameters = {"weight": weight, "lambda": 1.0}
    merge = {"method": "task_arithmetic", "inputs": [*setup.experts], "parameters": parameters}
    return Recipe.parse({"merge": merge})


def recorded(worker: Worker, recipe: Recipe) -> tuple[list[Call], list[tuple[int, int, int]]]:
    """Return the calls of the model in one evaluation, and the rows, inputs and outputs of each of its matrix products."""
    calls: list[Call] = []
    shapes: list[tuple[int, int, int]] = []
    backbone = worker.prepare().model.module.base_model
    hooks = [
        backbone.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args, dict(kwargs))), with_kwargs=True
        )
    ]
    linear = [part for part in backbone.modules() if isinstance(part, torch.nn.Linear)]
    hooks += [part.register_forward_hook(partial(_note, shapes)) for part in linear]
    worker.evaluate(recipe)
    for hook in hooks:
        hook.remove()
    return calls, shapes


def _note(shapes: list[tuple[int, int, int]], part: torch.nn.Linear, args: tuple[Any, ...], output: Any) -> None:
    shapes.append((args[0].numel() // part.in_features, part.in_features, part.out_features))


def products(shapes: Sequence[tuple[int, int, int]]) -> float:
    """Return the CPU seconds of matrix products of these shapes."""
    made = {(rows, inner, outer): (torch.rand(rows, inner), torch.rand(outer, inner)) for rows, inner, outer in shapes}
    return timed(lambda: [made[shape][0] @ made[shape][1].T for shape in shapes])


def timed(work: Callable[[], Any]) -> float:
    with torch.inference_mode():
        before = time.process_time()
        work()
        return time.process_time() - before


def findings(seconds: Mapping[str, Sequence[float]], means: Mapping[str, Sequence[Any]]) -> Findings:
    rows = []
    plain = float(np.median(seconds["plain loop"]))
    whole = np.array(seconds[DEFAULT])
    for name, taken in seconds.items():
        change = np.abs(np.array(means[name]) - np.array(means[DEFAULT])).max() if name in means else None
        rows.append(
            {
                "variant": name,
                "cpu_seconds": float(np.median(taken)),
                "of_plain_loop": float(np.median(taken)) / plain,
                "of_as_it_is": float(np.median(np.array(taken) / whole)),
                "largest_change": None if change is None else float(change),
            }
        )
    columns = [
        "a candidate, merge included",
        "CPU s",
        "of the plain loop",
        "of as it is",
        "largest change of an objective",
    ]
    cells = [
        [
            row["variant"],
            f"{row['cpu_seconds']:.2f}",
            f"{row['of_plain_loop']:.2f}x",
            f"{row['of_as_it_is']:.2f}x",
            ""
            if row["largest_change"] is None
            else f"{row['largest_change']:.1e}"
            if row["largest_change"]
            else "none",
        ]
        for row in rows
    ]
    ratio = next(row["of_as_it_is"] for row in rows if row["variant"] == SHARED)
    verdict = f"Target: half of the blocks shared, at most {TARGET} of the time; measured {ratio:.2f}."
    return Findings({"rows": rows, "target": TARGET}, f"{table(columns, cells)}\n\n{verdict}", draw(rows))


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the CPU seconds of each variant, by those of the plain loop."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.barh([row["variant"] for row in rows], [row["of_plain_loop"] for row in rows], color="#0072B2")
    axes.axvline(1, color="#6b6b6b", linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds over those of the plain loop")
    return figure


if __name__ == "__main__":
    main("scoring", __doc__, measure, seeds=REPETITIONS)
