"""What a candidate costs whose tasks let the model write, beside plain loops over the same prompts.

The tasks are sums, sums in German, and lines of Python source that the model completes, on SmolLM2-135M (zoo `language`). The plain loop is the least that scores them: fp32,
batches of 64, one pass for the log-likelihoods of the right answers, and transformers' `generate`. In the second loop the keys and values have
memory from the start (`StaticCache`), in a loop written by hand. All read and write the same tokens; CPU seconds with one thread are compared, the merge of the candidate included. All variants
take turns, and the medians are shown.

    python experiments/benchmarks/generation.py [--smoke] [--seeds CANDIDATES] [--json] [--out DIR]
"""

import json
import sys
import tempfile
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
from torch import Tensor
from transformers import StaticCache

from evomerge import zoo
from evomerge.evaluate import Setup, Worker
from evomerge.models import LiveModel
from evomerge.recipe import Recipe
from evomerge.tasks.batches import pad

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table
from shared.small_llama import write_small_llama

CANDIDATES = 3
TARGET = 2.0
BATCH = 64
LINES, LINE_TOKENS = 32, 24
SMOKE = {"examples": 6, "new_tokens": 8}
OURS, HALF, PLAIN, STATIC = "as it is", "precision: bfloat16", "plain loop", "static cache"
Write = Callable[[LiveModel, Tensor, Tensor, int], Tensor]


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        setup = small(Path(folder)) if switches.smoke else language(Path(folder))
        workers = {OURS: Worker(setup), HALF: Worker(replace(setup, precision="bfloat16"))}
        loops = {PLAIN: written_by_generate, STATIC: written_by_hand}
        seconds: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        right: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        nats: defaultdict[str, list[float]] = defaultdict(list)
        for number in range(len(switches.seeds) + 1):
            say(f"candidate {number} of {len(switches.seeds)}")
            recipe = candidate(setup, number)
            scores = {}
            for name, worker in workers.items():
                loaded = worker.prepare()
                merge = timed(partial(loaded.refit, recipe, loaded.builder.build_model(recipe)))[0]
                ways = {name: partial(_scored, loaded)}
                if name == OURS:
                    ways |= {loop: partial(looped, loaded.model, setup, write=write) for loop, write in loops.items()}
                for way, score in ways.items():
                    for task in loaded.tasks:
                        taken, scores[way, task.name] = timed(partial(score, task))
                        if number:  # the first warms up
                            seconds[way][task.name].append(taken)
                    if number:
                        seconds[way]["merge"].append(merge)
            for (way, task_name), (accuracy, likelihood) in scores.items():
                expected = scores[PLAIN, task_name]
                right[way][task_name].append(float(np.mean(accuracy == expected[0])))
                nats[way].append(float(np.abs(likelihood - expected[1]).max()))
    return findings(seconds, right, nats)


def language(folder: Path) -> Setup:
    """Return the zoo's pool with its tasks of sums, and lines of source."""
    embedded = zoo.find_or_build("language", progress=lambda done, doing: say(doing))
    tasks = {name: task for name, task in embedded.tasks.items() if task["kind"] == "generation"}
    source = embedded.tasks["python"]
    for split in ("search", "report"):
        lines = []
        for row in _rows(Path(source[split])):
            first, _, rest = row["text"].partition("\n")[2].partition("(")
            if first and "\n" not in first and rest.partition("\n")[0]:
                lines.append({"prompt": f"{first}(", "answer": rest.partition("\n")[0]})
        _write(folder / f"lines.{split}.jsonl", lines[:LINES])
    own = {split: str(folder / f"lines.{split}.jsonl") for split in ("search", "report")}
    tasks["lines"] = {"kind": "generation", **own, "stop": ["\n"], "max_new_tokens": LINE_TOKENS}
    tasks = {name: {**task, "search_metric": "accuracy"} for name, task in tasks.items()}
    pool = embedded.pool
    return Setup(str(pool["base"]), {name: str(path) for name, path in pool["experts"].items()}, tasks)


def small(folder: Path) -> Setup:
    """Return random models and a few sums."""
    paths = {name: str(write_small_llama(folder / name, seed)) for seed, name in enumerate(("base", "one", "two"))}
    rows = [{"prompt": f"{number}+{number * number}=", "answer": "9"} for number in range(SMOKE["examples"])]
    for split in ("search", "report"):
        _write(folder / f"{split}.jsonl", [{**row, "prompt": f"{split} {row['prompt']}"} for row in rows])
    files = {split: str(folder / f"{split}.jsonl") for split in ("search", "report")}
    task = {"kind": "generation", **files, "max_new_tokens": SMOKE["new_tokens"], "search_metric": "accuracy"}
    return Setup(paths.pop("base"), paths, {"sums": task})


def candidate(setup: Setup, number: int) -> Recipe:
    parameters = {"weight": 0.5 + 0.05 * number}
    return Recipe.parse({"merge": {"method": "task_arithmetic", "inputs": [*setup.experts], "parameters": parameters}})


def _scored(loaded: Any, task: Any) -> tuple[np.ndarray, np.ndarray]:
    scores = loaded.score(task, "search", None).scores
    return scores["accuracy"], scores["log_likelihood"]


@torch.inference_mode()
def looped(model: LiveModel, setup: Setup, task: Any, *, write: Write) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each answer is right, and the log-likelihoods of the right ones in nats per token, by a plain loop."""
    settings = setup.tasks[task.name]
    rows = _rows(Path(settings["search"]))
    prompts, joined = (
        model.tokenizer(texts)["input_ids"]
        for texts in ([row["prompt"] for row in rows], [row["prompt"] + row["answer"] for row in rows])
    )
    right, likelihoods = np.zeros(len(rows)), np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda place: len(prompts[place]))
    for start in range(0, len(rows), BATCH):
        batch = order[start : start + BATCH]
        ids, mask = pad([joined[place] for place in batch], model.tokenizer.pad_token_id)
        logs = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        for row, place in enumerate(batch):
            first, end = len(prompts[place]), len(joined[place])
            tokens = ids[row, first:end, None]
            likelihoods[place] = float(logs[row, first - 1 : end - 1].gather(-1, tokens).double().mean())
        ids, mask = pad([prompts[place] for place in batch], model.tokenizer.pad_token_id, left=True)
        written = write(model, ids, mask, settings["max_new_tokens"])
        for place, tokens in zip(batch, written.tolist(), strict=True):
            right[place] = task.matches(model.tokenizer.decode(tokens, skip_special_tokens=True), rows[place]["answer"])
    return right, likelihoods


def written_by_generate(model: LiveModel, ids: Tensor, mask: Tensor, new: int) -> Tensor:
    ends, padding = list(model.end_tokens), model.tokenizer.pad_token_id
    settings = {"do_sample": False, "max_new_tokens": new, "eos_token_id": ends, "pad_token_id": padding}
    tokens: Tensor = model.module.generate(input_ids=ids, attention_mask=mask, **settings)
    return tokens[:, ids.shape[1] :]


def written_by_hand(model: LiveModel, ids: Tensor, mask: Tensor, new: int) -> Tensor:
    cache = StaticCache(config=model.module.config, max_cache_len=ids.shape[1] + new)
    ends, padding = torch.tensor(model.end_tokens), model.tokenizer.pad_token_id
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    written: list[Tensor] = []
    while True:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        token = model.module(**given, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        written.append(token.where(~ended, padding))
        ended |= torch.isin(written[-1], ends)
        if len(written) == new or bool(ended.all()):
            return torch.stack(written, 1)
        ids, mask = written[-1][:, None], torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
        positions = positions[:, -1:] + 1


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    before = time.process_time()
    result = work()
    return time.process_time() - before, result


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def findings(seconds: Mapping[str, Any], right: Mapping[str, Any], nats: Mapping[str, Sequence[float]]) -> Findings:
    rows = []
    steps = [*seconds[PLAIN]]
    plain = sum(float(np.median(seconds[PLAIN][step])) for step in steps)
    for way in (OURS, HALF, PLAIN, STATIC):
        used = {step: float(np.median(seconds[way][step])) for step in steps}
        whole = sum(used.values())
        equal = min(min(shares) for shares in right[way].values())
        row = {"variant": way, "cpu_seconds": used, "whole": whole, "candidates_of_plain_loop": plain / whole}
        rows.append({**row, "equal_answers": equal, "largest_difference_nats": max(nats[way])})
    columns = [
        "CPU seconds per candidate",
        *steps,
        "whole",
        "candidates a second, of the plain loop's",
        "equal answers",
    ]
    cells = [
        [
            row["variant"],
            *(f"{row['cpu_seconds'][step]:.3f}" for step in steps),
            f"{row['whole']:.2f}",
            f"{row['candidates_of_plain_loop']:.2f}x",
            f"{100 * row['equal_answers']:.0f} %",
        ]
        for row in rows
    ]
    ours, half, _, static = (row["candidates_of_plain_loop"] for row in rows)
    verdict = (
        f"Target: {TARGET:g}x the plain loop's candidates a second, with the same scores up to the rounding of bfloat16; measured {ours:.2f} in "
        f"float32 and {half:.2f} in bfloat16. A static cache alone: {static:.2f}. Largest difference of a right answer's log-likelihood, "
        f"in nats per token: {rows[0]['largest_difference_nats']:.1e} and {rows[1]['largest_difference_nats']:.1e}."
    )
    return Findings({"rows": rows, "target": TARGET}, f"{table(columns, cells)}\n\n{verdict}", draw(rows))


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the CPU seconds of each variant by task."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    done = np.zeros(len(rows))
    for step in rows[0]["cpu_seconds"]:
        used = [row["cpu_seconds"][step] for row in rows]
        axes.barh([row["variant"] for row in rows], used, left=done, label=step)
        done += used
    axes.invert_yaxis()
    axes.set_xlabel("CPU seconds per candidate")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main("generation", __doc__, measure, seeds=CANDIDATES)
