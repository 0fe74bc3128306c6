"""Whether a GPU merges, scores and searches as the CPU does, and how fast it merges beside a copy in its memory.

Every method merges the experts of the zoo `digits` on both, and the bytes are compared. A larger pool of random weights is
then merged on the device: its first merge copies the models to it, later ones find them there. The floor of a merge of K
models of n parameters in b bytes is copying (K + 2)·n·b bytes. At last the two score one candidate, with slopes, and the
device makes one small search twice. On a GPU all of it is meant to take under eight minutes.

    python experiments/benchmarks/device.py [--device cuda] [--smoke] [--json] [--out DIR]

Without `--device` it takes the accelerator, if there is one; a smoke run on the CPU shows only that the script works.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

import evomerge as em
from evomerge import zoo
from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.evaluate import Worker
from evomerge.merging import METHODS
from evomerge.parts import Parts, initial_recipe, open_parts
from evomerge.placement import Placement, describe, find
from evomerge.recipe import merge
from evomerge.settings import StudySettings

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

PARAMETERS, SMOKE_PARAMETERS = 400_000_000, 300_000
BLOCKS = 8
NAMES = ("a", "b", "c")
SPEEDS = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties")
TARGETS = {
    "linear": 1.3,
    "slerp": 1.3,
    "task_arithmetic": 1.3,
    "ties": 2.0,
    "dare_ties": 2.0,
}  # times the floor, on a GPU
MERGES, COPIES = 4, 5
EVALUATIONS, SMOKE_EVALUATIONS = 60, 4


def clocked(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the seconds of `work`, all that it started on the device included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def inputs_of(method: str, names: tuple[str, ...]) -> list[str]:
    return list(names[: METHODS[method].inputs or len(names)])


def compare_bytes(pool: Pool, device: torch.device, methods: tuple[str, ...]) -> dict[str, float]:
    """Return the largest difference between device and CPU of each method's merge; 0 where the bytes are equal."""
    host, placed = Builder(pool, search=True), Builder(pool, search=True, placement=Placement(device, copies=True))
    found = {}
    for method in methods:
        recipe = merge(method, inputs_of(method, tuple(pool.experts)), seed=3)
        one, two = host.build(recipe), placed.build(recipe)
        pairs = ((one.tensor(name), two.tensor(name)) for name in pool.merged)
        found[method] = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    return found


def write_pool(folder: Path, parameters: int) -> Pool:
    """Write a base and three experts of random weights in bf16."""
    side = int((parameters / BLOCKS) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.mlp.weight": torch.randn(side, side, generator=generator) for i in range(BLOCKS)}
    for name in ("base", *NAMES):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": BLOCKS}))
        shift = 0.0 if name == "base" else 0.1
        tensors = {
            key: (tensor + shift * torch.randn(side, side, generator=generator)).bfloat16()
            for key, tensor in base.items()
        }
        save_file(tensors, folder / name / "model.safetensors")
    return Pool(folder / "base", {name: folder / name for name in NAMES})


def speeds(pool: Pool, device: torch.device) -> list[dict[str, Any]]:
    """Return seconds of first and later merges of each method, beside the floor."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 22), dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    best = min(clocked(device, lambda: target.copy_(source)) for _ in range(COPIES))
    rows = []
    for method in SPEEDS:
        placement = Placement(device, copies=True)
        builder = Builder(pool, search=True, placement=placement)
        names = inputs_of(method, NAMES)
        out = {
            name: torch.empty(pool.base.info[name].shape, dtype=torch.bfloat16, device=device) for name in pool.merged
        }

        def run(builder: Builder = builder, method: str = method, names: list[str] = names, out: Any = out) -> None:
            built = builder.build(merge(method, names))
            for name, tensor in out.items():
                built.write(name, tensor)

        first = clocked(device, run)
        placement.settle()
        run()  # the models stay from now on
        before = placement.sent
        later = [clocked(device, run) for _ in range(MERGES)]
        floor = (len(names) + 2) * pool.nbytes * best / (2 * source.nbytes)
        row = {"method": method, "first": first, "later": min(later), "floor": floor, "ratio": min(later) / floor}
        rows.append({**row, "target": TARGETS[method], "copied_bytes": (placement.sent - before) / MERGES})
        say(f"{method}: {min(later):.4f} s, {min(later) / floor:.2f} times the floor")
    return rows


def compare_scores(parts: Parts, device: str) -> dict[str, Any]:
    """Return the largest differences of scores and slopes between device and CPU, and the seconds of each."""
    recipe = initial_recipe(parts.space)
    wanted = {name: list(range(size)) for name, size in parts.sizes["search"].items()}
    found = []
    for where in ("cpu", device):
        worker = Worker(replace(parts.setup, device=where))
        worker.evaluate(recipe, slopes=wanted)
        plain, sloped = worker.evaluate(recipe), worker.evaluate(recipe, slopes=wanted)
        for evaluation in (plain, sloped):
            assert evaluation.error is None, evaluation.error
        found.append((plain, sloped))
    (one, two), (three, four) = found

    def apart(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
        return max(float(np.nanmax(np.abs(left[key] - right[key]))) for key in left)

    return {
        "scores_differ_by": apart(one.scores, three.scores),
        "slopes_differ_by": apart(two.slopes, four.slopes),
        "largest_slope": max(float(np.nanmax(np.abs(values))) for values in two.slopes.values()),
        "seconds": {
            "cpu": one.seconds,
            "device": three.seconds,
            "cpu with slopes": two.seconds,
            "device with slopes": four.seconds,
        },
    }


def search_twice(folder: Path, device: str, evaluations: int) -> dict[str, Any]:
    """Return the seconds of a search on the device, and whether the same search again has the same scores."""
    digests, start = [], time.perf_counter()
    for number in range(2):
        study = em.create_study(
            folder / f"search-{number}",
            pool={"zoo": "digits"},
            space="task_arithmetic",
            evaluations=evaluations,
            driver={"kind": "nsga2", "population": 4},
            device=device,
        )
        study.run(progress=False)
        digests.append(study.digest())
    return {"seconds": (time.perf_counter() - start) / 2, "evaluations": evaluations, "same": len({*digests}) == 1}


def measure(switches: Switches, device: torch.device) -> Findings:
    zoo.find_or_build("digits", progress=lambda done, doing: say(f"{done:4.0%} {doing}"))
    data = {"pool": {"zoo": "digits"}, "space": "task_arithmetic_per_block", "evaluations": 1000}
    parts = open_parts(StudySettings.parse(data, "device", Path()))
    say(f"device: {describe(device)}")
    differences = compare_bytes(parts.pool, device, SPEEDS if switches.smoke else tuple(METHODS))
    with tempfile.TemporaryDirectory() as folder:
        pool = write_pool(Path(folder), SMOKE_PARAMETERS if switches.smoke else PARAMETERS)
        rows = speeds(pool, device)
        scored = compare_scores(parts, str(device))
        searched = search_twice(Path(folder), str(device), SMOKE_EVALUATIONS if switches.smoke else EVALUATIONS)
    figures = {
        "device": describe(device),
        "merges_differ_by": differences,
        "speed": rows,
        "scoring": scored,
        "search": searched,
    }
    return Findings(figures, text(figures), draw(rows))


def text(figures: Mapping[str, Any]) -> str:
    """Return what was found as Markdown."""
    cells = [
        [
            row["method"],
            *(f"{row[key]:.4f}" for key in ("first", "later", "floor")),
            f"{row['ratio']:.2f}",
            f"{row['target']}",
        ]
        for row in figures["speed"]
    ]
    unequal = [f"{method} {by:.2g}" for method, by in figures["merges_differ_by"].items() if by]
    scored, searched = figures["scoring"], figures["search"]
    return "\n".join(
        [
            f"Device: {figures['device']}.",
            "",
            table(["method", "first merge, s", "later, s", "floor, s", "times the floor", "target on a GPU"], cells),
            "",
            f"Merges that differ from the CPU's: {', '.join(unequal) or 'none'}, of {len(figures['merges_differ_by'])} methods.",
            (
                f"Scores differ by up to {scored['scores_differ_by']:.2g}, slopes by {scored['slopes_differ_by']:.2g} "
                f"(the largest is {scored['largest_slope']:.2g})."
            ),
            (
                f"A search of {searched['evaluations']} evaluations takes {searched['seconds']:.1f} s; again, its scores are "
                f"{'the same' if searched['same'] else 'others'}."
            ),
        ]
    )


def draw(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar([row["method"] for row in rows], [row["ratio"] for row in rows])
    axes.set_ylabel("seconds by the floor's")
    return figure


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, usage="further options:", allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, or auto (default)")
    own, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    try:
        device = find(own.device)
    except ValueError as error:
        parser.error(str(error))
    main("device", __doc__, lambda switches: measure(switches, device), arguments=rest)


if __name__ == "__main__":
    run(sys.argv[1:])
