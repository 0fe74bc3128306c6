"""What a score with slopes costs beside a plain score, in seconds and in memory, and beside plain automatic differentiation.

The peer keeps the merge in torch's graph: weights θ + Σ w·τ are made from the genes, the model runs on them
(`torch.func.functional_call`), and torch differentiates the scores with respect to the genes. Each measurement is a process of
its own, with one thread; the three take turns. Memory is the process's peak, minus its peak after a plain score.

    python experiments/benchmarks/slopes_cost.py [--smoke] [--seeds REPETITIONS] [--only CASE …] [--json] [--out DIR]
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from evomerge import zoo
from evomerge.evaluate import Worker
from evomerge.parts import Parts, open_parts
from evomerge.settings import StudySettings

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

CASES = {  # zoo and space
    "digits": ("digits", "task_arithmetic_per_block"),
    "text": ("text", "task_arithmetic_per_block"),
    "text per tensor": ("text", "task_arithmetic_per_tensor"),
    "text TIES": ("text", "ties_per_block"),
}
KINDS = ("plain", "slopes", "autograd")
REPETITIONS = 3
TARGET = 3.5
MIB = 1 << 10  # of KiB


def measure(switches: Switches) -> Findings:
    rows = []
    for case in ("digits",) if switches.smoke else switches.parts:
        zoo.find_or_build(CASES[case][0], progress=lambda done, doing: say(f"{done:4.0%} {doing}"))
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for repetition in switches.seeds:
            say(f"{case}, repetition {repetition}")
            for kind in KINDS:
                if kind != "autograd" or case != "text TIES":
                    command = [sys.executable, __file__, "one", *CASES[case], kind]
                    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603  # this file
                    found[kind].append(json.loads(answer))
        plain = float(np.median([one["seconds"] for one in found["plain"]]))
        for kind, runs in found.items():
            if runs:
                middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
                rows.append({"case": case, "kind": kind, **middle, "ratio": middle["seconds"] / plain})
    return Findings({"rows": rows, "target": TARGET}, text(rows), draw(rows))


def one(zoo_name: str, space: str, kind: str) -> dict[str, float]:
    """Return CPU seconds of one evaluation after another of its kind, and the memory that it adds in MiB."""
    torch.set_num_threads(1)
    embedded = zoo.load(zoo_name)
    given = {"pool": embedded.pool, "tasks": embedded.tasks, "space": space}
    parts = open_parts(StudySettings.parse(given, "slopes", Path()))
    worker, recipe = Worker(parts.setup), parts.space.decode(parts.space.initial)
    examples = {task: tuple(range(size)) for task, size in parts.sizes["search"].items()}
    slopes = None if kind == "plain" else examples
    worker.evaluate(recipe)
    before = _peak()
    seconds = []
    for _ in range(2):
        start = time.process_time()
        if kind == "autograd":
            differentiated(parts, worker)
        else:
            error = worker.evaluate(recipe, slopes=slopes).error
            assert error is None, error
        seconds.append(time.process_time() - start)
    return {"seconds": seconds[-1], "memory": (_peak() - before) / MIB, "numbers": float(len(recipe.numbers))}


def _peak() -> float:
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def differentiated(parts: Parts, worker: Worker) -> Any:
    """Return the slopes of one weight for each expert and tensor, by torch alone. Tensors have the model's own names."""
    loaded = worker.prepare()
    pool, model = parts.pool, loaded.model
    held = {name: tensor for name, tensor in model.module.state_dict().items() if name in pool.merged}
    base = {name: pool.base.tensor(name).float() for name in held}
    vectors = {name: [expert.tensor(name).float() - base[name] for expert in pool.experts.values()] for name in held}
    genes = {name: torch.full((len(pool.experts),), 0.33, requires_grad=True) for name in held}
    functional: Any = _Functional(model, base, vectors, genes)
    return [
        torch.autograd.grad(part.value.sum(), list(genes.values()), allow_unused=True)
        for task in loaded.tasks
        for part in task.graph(functional, "search", range(task.size("search")))
    ]


class _Functional:
    """A live model whose weights are a function of genes. Tasks read it as they read a live model."""

    def __init__(self, model: Any, base: Any, vectors: Any, genes: Any) -> None:
        self._model, self._base, self._vectors, self._genes = model, base, vectors, genes
        self.base_model = self

    def __getattr__(self, name: str) -> Any:
        return self if name == "module" else getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        merged = {
            name: base + sum(w * vector for w, vector in zip(self._genes[name], self._vectors[name], strict=True))
            for name, base in self._base.items()
        }
        return torch.func.functional_call(self._model.module, merged, kwargs=inputs)


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["case", "kind", "numbers", "CPU s", "of a plain score", "memory beyond a plain score, MiB"]
    cells = [
        [
            row["case"],
            row["kind"],
            f"{row['numbers']:.0f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['memory']:.0f}",
        ]
        for row in rows
    ]
    worst = max((row["ratio"] for row in rows if row["kind"] == "slopes" and "text" in row["case"]), default=None)
    verdict = "" if worst is None else f"\n\nTarget: at most {TARGET} plain scores on text; the most is {worst:.2f}."
    return table(columns, cells) + verdict


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the ratio to a plain score, a bar for each case and kind."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    cases = list(dict.fromkeys(row["case"] for row in rows))
    for i, kind in enumerate(KINDS[1:]):
        of = {row["case"]: row["ratio"] for row in rows if row["kind"] == kind}
        places = [cases.index(case) + 0.4 * i for case in of]
        axes.bar(places, list(of.values()), width=0.38, label=kind, color=("#D55E00", "#999999")[i])
    axes.axhline(TARGET, color="#6b6b6b", linestyle="--", linewidth=1)
    axes.set_xticks([i + 0.2 for i in range(len(cases))], cases)
    axes.set_ylabel("CPU seconds over a plain score's")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        sys.stdout.write(json.dumps(one(*sys.argv[2:])))
    else:
        main("slopes_cost", __doc__, measure, seeds=REPETITIONS, parts=tuple(CASES))
