"""What scoring a candidate costs with `kind: lm_eval`, beside lm-evaluation-harness's own `evaluate` on the same documents.

Both score a Llama of two layers with random weights, with batches of the same size, after a first call of each: the harness with its task and
its wrapper of the model made once, and without bootstrap. They take turns at going first. The scores of all documents must be
equal. A second ratio is that to `lm_eval.simple_evaluate`, which makes the tasks anew.

    python experiments/benchmarks/lm_eval_cost.py [--smoke] [--seeds REPETITIONS] [--json] [--out DIR]
"""

import contextlib
import copy
import io
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from matplotlib.figure import Figure

from evomerge.models import LiveModel
from evomerge.tasks import make

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table
from shared.small_llama import write_small_llama

TARGET = 1.3
REPETITIONS = 5
BATCH = 8
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "documents.jsonl"}}, "test_split": "test"}
CASES: Mapping[str, Mapping[str, Any]] = {  # documents, metric, shots, configuration
    "multiple choice": {
        "documents": 64,
        "metric": "acc",
        "shots": 3,
        "config": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "fewshot_config": {"sampler": "first_n"},
        },
    },
    "generation": {
        "documents": 16,
        "metric": "exact_match",
        "shots": 0,
        "config": {
            "output_type": "generate_until",
            "doc_to_target": "text",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    },
}


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = LiveModel(write_small_llama(Path(folder) / "model"))
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        for case in CASES:
            rows.append({"case": case, **compare(case, model, Path(folder), len(switches.seeds))})
            say(f"{case}: {rows[-1]['ratio']:.2f} of `evaluate`, {rows[-1]['ratio_simple']:.2f} of `simple_evaluate`")
    return Findings({"rows": rows, "target": TARGET}, text(rows), draw(rows), packages=["lm-eval", "datasets"])


def compare(case: str, model: LiveModel, folder: Path, repetitions: int) -> dict[str, Any]:
    """Return the median time of each way to score all documents of a case, and the ratios."""
    given = CASES[case]
    count, metric = given["documents"], given["metric"]
    write_documents(folder / "documents.jsonl", count + 1)  # one to report on, which is not scored
    config = {**DATA, "doc_to_text": "{{question}} =", **given["config"]}
    settings = {"kind": "lm_eval", "config": config, "search": count, "report": 1, "num_fewshot": given["shots"]}
    ours = make("mine", {**settings, "batch_size": BATCH}, folder)
    files = {"data_files": {"test": str(folder / "documents.jsonl")}}

    def new() -> Any:
        return ConfigurableTask(config={**copy.deepcopy(config), "task": "own", "dataset_kwargs": copy.deepcopy(files)})

    leaf = new()
    leaf.set_config("num_fewshot", given["shots"])
    wrapped = HFLM(pretrained=model.module, tokenizer=model.tokenizer, batch_size=BATCH)

    chosen = {"own": sorted(example.number for example in ours.examples["search"])}

    def evomerge() -> dict[str, float]:
        questions = [example.document["question"] for example in ours.examples["search"]]
        return dict(zip(questions, map(float, ours.score(model, "search").scores[metric]), strict=True))

    def evaluate() -> dict[str, float]:
        return by_question(
            lm_eval.evaluate(wrapped, {"tasks": {"own": leaf}}, samples=chosen, bootstrap_iters=0), metric
        )

    nothing = TaskManager(include_defaults=False)  # an index of all tasks takes seconds, and none is asked for here

    def simple() -> dict[str, float]:
        more = {"num_fewshot": given["shots"], "bootstrap_iters": 0, "samples": chosen, "task_manager": nothing}
        return by_question(lm_eval.simple_evaluate(wrapped, tasks=[new()], **more), metric)

    ways: dict[str, Callable[[], dict[str, float]]] = {"evomerge": evomerge, "evaluate": evaluate, "simple": simple}
    expected = evaluate()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(repetitions + 1):
        for way in [*ways] if repetition % 2 else [*ways][::-1]:
            taken, values = timed(ways[way])
            if values != expected:
                raise AssertionError(f"{case}: {way} scores other than `evaluate`")
            if repetition:  # the first warms up
                seconds[way].append(taken)
    middle = {way: float(np.median(found)) for way, found in seconds.items()}
    ratios = {"ratio": middle["evomerge"] / middle["evaluate"], "ratio_simple": middle["evomerge"] / middle["simple"]}
    return {"documents": count, **ratios}


def timed(way: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    with contextlib.redirect_stderr(io.StringIO()):
        before = time.perf_counter()
        values = way()
        return time.perf_counter() - before, values


def by_question(result: Any, metric: str) -> dict[str, float]:
    [samples] = result["samples"].values()
    return {sample["doc"]["question"]: float(sample[metric]) for sample in samples}


def write_documents(file: Path, count: int) -> None:
    """Write questions of sums, each with four choices."""
    generator = random.Random(0)  # noqa: S311  # no secret
    rows = []
    for i in range(count):
        right = 10 + i + i % 7
        others = [str(right + generator.randint(1, 9)), str(right + 10), str(right + 20)]
        place = generator.randrange(4)
        choices = [*others[:place], str(right), *others[place:]]
        rows.append({"question": f"{10 + i} + {i % 7}", "choices": choices, "answer": place, "text": str(right)})
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["task", "documents", "time, by `evaluate`", "time, by `simple_evaluate`"]
    cells = [
        [row["case"], str(row["documents"]), f"{row['ratio']:.2f}x", f"{row['ratio_simple']:.2f}x"] for row in rows
    ]
    return table(columns, cells)


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar([row["case"] for row in rows], [row["ratio"] for row in rows], color="#0072B2")
    axes.axhline(TARGET, color="#D55E00", linestyle="--", label=f"target {TARGET}x")
    axes.set_ylabel("time, by the harness's evaluate")
    axes.legend()
    return figure


if __name__ == "__main__":
    main("lm_eval_cost", str(__doc__), measure, seeds=REPETITIONS)
