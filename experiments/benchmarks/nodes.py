"""What a node's memory grows by with each worker: at most one model, however many experts are merged.

A random ViT and experts of it lie on the disk, and 1, 2 and 4 workers evaluate merges of them as a search does. Experts and prepared
tables are mapped from files, so that the node holds their pages once, in its page cache, whoever reads them. The kernel says what each
worker holds alone (USS: private pages, clean and dirty), how much of that is no file (anonymous), and what all hold together when shared
pages count once (the sum of PSS). A worker of a model of half the layers, of the same shapes, shows what Python, its libraries and compiled code
take. The slope is that of a line through the sums of anonymous memory: pages of files are the system's to drop.

    python experiments/benchmarks/nodes.py [--smoke] [--json] [--out DIR]
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from evomerge.errors import StudyError
from evomerge.evaluate import Setup, make
from evomerge.evaluate.ray import connect
from evomerge.recipe import Recipe, merge
from evomerge.trial import Proposal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

EXPERTS = 4
HIDDEN, LAYERS = 512, 24  # 76 million parameters; merges of half of them are compiled, too
SMOKE = (128, 4)
WORKERS, SMOKE_WORKERS = (1, 2, 4), (1, 2)
CANDIDATES = (
    4  # for each worker: by task arithmetic, whose experts are only read, and by TIES, whose tables are prepared
)
TARGET = 1.25  # models by which the node may grow with a worker
MARK = "EVOMERGE_BENCHMARK"
MIB = 2**20
TASK = '''"""One score of an image of zeros."""

import numpy as np
import torch


def score(model, split, examples):
    with torch.no_grad():
        logits = model.module(pixel_values=torch.zeros(1, 3, 32, 32)).logits
    return np.full(len(examples), float(logits[0, 0]))
'''


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    counts = SMOKE_WORKERS if switches.smoke else WORKERS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[MARK] = str(os.getpid())
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        (folder / "one_image.py").write_text(TASK)
        hidden, layers = SMOKE if switches.smoke else (HIDDEN, LAYERS)
        model_bytes = write_pool(folder / "pool", hidden, layers)
        small_bytes = write_pool(folder / "small", hidden, layers // 2)
        connect(max(counts))
        small = memory(folder, "small", 1)["own"]
        found = {count: memory(folder, "pool", count) for count in counts}
    added, constant = map(float, np.polyfit(counts, [each["own"] * count for count, each in found.items()], 1))
    grown = (added - small) / (model_bytes - small_bytes)
    libraries = small - grown * small_bytes
    figures = {
        "experts": EXPERTS,
        "model_mib": model_bytes / MIB,
        "libraries_mib": libraries / MIB,
        "workers": {str(count): {key: value / MIB for key, value in each.items()} for count, each in found.items()},
        "added_by_a_worker_mib": added / MIB,
        "constant_mib": constant / MIB,
        "added_in_models": grown,
        "target": TARGET,
        "within_target": grown <= TARGET,
    }
    return Findings(figures, text(figures), draw(figures))


def write_pool(folder: Path, hidden: int, layers: int) -> int:
    """Write a random ViT and experts of it, and return the bytes of one."""
    from transformers import AutoModelForImageClassification, ViTConfig

    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        num_labels=10,
    )
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config)
    model.save_pretrained(folder / "base")
    for number in range(EXPERTS):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        model.save_pretrained(folder / f"expert{number}")
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def memory(folder: Path, pool: str, count: int) -> dict[str, float]:
    """Return bytes after a few candidates in each of `count` workers: mean USS, largest USS, the sum of PSS, mean of anonymous pages."""
    say(f"{count} workers, {pool}")
    experts = {f"expert{number}": f"{pool}/expert{number}" for number in range(EXPERTS)}
    task = {"kind": "callable", "function": "one_image:score", "search": 2, "report": 2}
    setup = Setup(base=f"{pool}/base", experts=experts, tasks={"image": task}, folder=str(folder), shared_mib=0)
    with make(setup, count, deadline=3600.0) as evaluator:
        for number, recipe in enumerate(recipes([*experts], CANDIDATES * count)):
            evaluator.submit(Proposal(number, recipe))
        for _ in range(CANDIDATES * count):
            _, evaluation = evaluator.wait()
            if evaluation.error is not None:
                raise StudyError(evaluation.error)
        held = [held_by(process) for process in workers()]
    if len(held) != count:
        raise StudyError(f"expected {count} workers, found {len(held)}: one has died, or not ended")
    uss = [each["Private_Clean"] + each["Private_Dirty"] for each in held]
    return {
        "uss": sum(uss) / count,
        "largest_uss": float(max(uss)),
        "pss": float(sum(each["Pss"] for each in held)),
        "own": sum(each["Anonymous"] for each in held) / count,
    }


def recipes(experts: Sequence[str], count: int) -> Iterator[Recipe]:
    for number in range(count):
        method = ("task_arithmetic", "ties")[number % 2]
        yield merge(method, experts, {"lambda": 0.2 + 0.01 * number})


def workers() -> Iterator[int]:
    """Yield the processes of the workers that this process started: they have its environment."""
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdecimal()
                and (entry / "cmdline").read_bytes().startswith(b"ray::_PlacedWorker")
                and f"{MARK}={os.getpid()}".encode() in (entry / "environ").read_bytes().split(b"\0")
            ):
                yield int(entry.name)
        except OSError:
            continue


def held_by(process: int) -> dict[str, int]:
    """Return what the kernel says of a process's memory, in bytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines}


def text(figures: Mapping[str, Any]) -> str:
    rows = [
        [count, *(f"{each[key]:.0f}" for key in ("uss", "largest_uss", "own", "pss"))]
        for count, each in figures["workers"].items()
    ]
    heads = ["workers", "USS of each, mean (MiB)", "largest", "anonymous, mean", "PSS of all"]
    return (
        f"{table(heads, rows)}\n\n"
        f"A model has {figures['model_mib']:.0f} MiB, the pool {1 + figures['experts']} of them. By a line through the sums of anonymous "
        f"memory, each worker adds {figures['added_by_a_worker_mib']:.0f} MiB to the node ({figures['constant_mib']:.0f} MiB at none). By a "
        f"worker of a model of half the layers that is {figures['libraries_mib']:.0f} MiB of libraries, and "
        f"{figures['added_in_models']:.2f} models (target: at most {figures['target']:g}). With one worker, the mapped files are "
        "its own, and its USS has them; with more they are shared."
    )


def draw(figures: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    counts = [int(count) for count in figures["workers"]]
    limit = [n * (figures["libraries_mib"] + figures["model_mib"]) for n in counts]
    held = [each["own"] * n for n, each in zip(counts, figures["workers"].values(), strict=True)]
    axes.plot(counts, held, "o-", color="#0072B2", label="measured")
    axes.plot(counts, limit, "--", color="#6b6b6b", label="a model and the libraries for each worker")
    axes.set_xlabel("workers on the node")
    axes.set_ylabel("anonymous memory of all workers (MiB)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main("nodes", __doc__, measure)
