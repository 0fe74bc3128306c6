"""What the command `evomerge merge` costs the first time, beside mergekit and beside copying the files.

A pool of a base and experts with random weights in bf16, shaped like a Llama and near each other, is written as sharded
checkpoints. For each operator the same files go, in turns, through

- `evomerge`: the command `evomerge merge`, with empty cache folders;
- `mergekit`: the command `mergekit-yaml`;
- `plain`: a loop in torch over the mapped tensors of the models that the merge reads, which sums them in fp32 with one weight
  each, rounds once, and writes one file: what a weighted sum costs with torch and without checks;
- `copy`: `cat` of all the models that the merge reads, and `cp` of one of them, without `sync`: as many bytes are read and
  written as by the merge, and as many again are read for `cp`; nothing is computed;
- `start`: a process that imports what `evomerge merge` imports, and ends;
- `torch`: a process that imports torch, which takes as long whatever is merged.

Each is a process of its own with one thread, and everything counts: imports, checks, compiling. Figures are the least of all
turns: seconds by the clock, CPU seconds (user and system), and the peak of what is resident (`ru_maxrss`), which includes
pages of mapped files. Of times ratios are kept, and the CPU seconds of imports: the others depend on who else uses the machine.

    pip install 'mergekit>=0.1.5,<0.2'    # without it, its rows are left out
    python experiments/benchmarks/one_off.py [--width 1216] [--blocks 19] [--experts 3] [--operators ties,…] [--turns 2]
                                             [--alone] [--name one_off] [--smoke] [--json] [--out DIR]

`--width 4096 --blocks 32 --experts 2 --alone` is a model of the shapes of Llama 7B, merged without mergekit; it needs 55 GB of
disk. With `--blocks 2` its tensors are as large, and there are fewer. A smoke run takes two blocks 64 wide and one operator.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import save_file

from evomerge.recipe import Recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared import by_mergekit
from shared.harness import Findings, Switches, main, say, table

NAMES = ("maths", "code", "prose", "law")
TOKENS = 32_000
STEP = 0.1  # standard deviation of a task vector's elements, by that of the base's
SHARD = 1 << 29  # elements of one file of a checkpoint
DRAWN = 1 << 24  # normal numbers that are drawn for a model; tensors take them from different places on
OPERATORS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {},
    "ties": {"density": 0.4},
    "dare_ties": {"drop": 0.5},
    "della": {"density": 0.5, "epsilon": 0.1},
    "breadcrumbs": {"density": 0.6, "gamma": 0.01},
}
PATHS = ("evomerge", "mergekit", "plain", "copy", "start", "torch")

PLAIN = """
import json, os, sys
from pathlib import Path
import torch
from safetensors import safe_open
out, *folders = map(Path, sys.argv[1:])
index = json.loads((folders[0] / "model.safetensors.index.json").read_text())["weight_map"]
with out.open("wb") as file:
    for shard in sorted(set(index.values())):
        models = [safe_open(folder / shard, "pt") for folder in folders]
        for name in models[0].keys():
            rows = [model.get_tensor(name).view(-1) for model in models]
            merged = torch.empty_like(rows[0])
            for at in range(0, len(merged), 1 << 16):
                total = rows[0][at : at + (1 << 16)].float().mul_(1 / len(rows))
                for row in rows[1:]:
                    total.add_(row[at : at + (1 << 16)].float(), alpha=1 / len(rows))
                merged[at : at + (1 << 16)].copy_(total)
            file.write(merged.view(torch.uint8).numpy())
    os.fsync(file.fileno())
"""
"""A plain loop; torch and safetensors are all that it imports."""


WATCH = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(code)
"""
"""A small process that starts a command and writes down what it used: Linux counts the memory of what started a process as its own."""


@dataclass(frozen=True)
class Options:
    """What this experiment can be told beside what all can."""

    width: int
    blocks: int
    experts: tuple[str, ...]
    operators: tuple[str, ...]
    turns: int
    peers: bool


@dataclass(frozen=True)
class Took:
    """What a process took: seconds by the clock, CPU seconds, and MiB resident at most."""

    wall: float
    cpu: float
    peak: float

    def least(self, other: "Took") -> "Took":
        """Return the least of each figure."""
        return Took(min(self.wall, other.wall), min(self.cpu, other.cpu), min(self.peak, other.peak))


def recipe(operator: str, options: Options) -> Recipe:
    names = options.experts[:2] if operator == "slerp" else options.experts
    inputs = [{"expert": name} for name in names]
    return Recipe.parse({"merge": {"method": operator, "inputs": inputs, "parameters": OPERATORS[operator]}})


# -- the pool ----------------------------------------------------------------------------------------------------------


def llama(options: Options) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the config and the shapes of the tensors; those of Llama 7B at a width of 4096 and 32 blocks."""
    width = options.width
    inner = -(-width * 8 // 3 // 256) * 256
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (TOKENS, width)}
    for block in range(options.blocks):
        at = f"model.layers.{block}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (TOKENS, width)}
    heads = max(width // (64 if width % 128 else 128), 1)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": TOKENS,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": options.blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    return config, shapes


def write_pool(folder: Path, options: Options) -> dict[str, Path]:
    """Write the base and the experts, shard by shard, and return their folders."""
    config, shapes = llama(options)
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if shards[-1] and held + torch.Size(shape).numel() > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += torch.Size(shape).numel()
    scale = options.width**-0.5
    base, *steps = [
        scale * size * torch.randn(DRAWN, generator=torch.Generator().manual_seed(seed))
        for seed, size in enumerate([1.0] + [STEP] * len(options.experts))
    ]
    drawn = {"base": base, **{name: base + step for name, step in zip(options.experts, steps, strict=True)}}
    numbers = {name: values.bfloat16() for name, values in drawn.items()}
    places = {name: 7919 * i % DRAWN for i, name in enumerate(shapes)}
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": 2 * sum(torch.Size(shape).numel() for shape in shapes.values())},
        "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
    }
    found = {name: folder / name for name in numbers}
    for model, path in found.items():
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        for file, names in zip(files, shards, strict=True):
            tensors = {name: taken(numbers[model], shapes[name], places[name]) for name in names}
            save_file(tensors, path / file, {"format": "pt"})
    return found


def taken(numbers: torch.Tensor, shape: Sequence[int], place: int) -> torch.Tensor:
    """Return a tensor of drawn numbers, from a place on, and from the first again after the last."""
    end = place + torch.Size(shape).numel()
    drawn = numbers if end <= DRAWN else numbers.repeat(-(-end // DRAWN))
    return drawn[place:end].clone().reshape(shape)


# -- the paths: each is a command --------------------------------------------------------------------------------------


def evomerge(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    file = scratch / "recipe.yaml"
    experts = {name: str(path) for name, path in pool.items() if name != "base"}
    file.write_text(yaml.safe_dump({"pool": {"base": str(pool["base"]), "experts": experts}, "recipe": what.data}))
    return [sys.executable, "-m", "evomerge", "merge", str(file), "-o", str(out)]


def mergekit(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    file = scratch / "mergekit.yaml"
    file.write_text(yaml.safe_dump(by_mergekit.configuration(by_mergekit.order(what), pool, "bfloat16")))
    options = ["--quiet", "--no-copy-tokenizer", "--no-write-model-card", "--num-threads", "1"]
    return [str(Path(sys.executable).with_name("mergekit-yaml")), str(file), str(out), *options]


def read(what: Recipe, pool: Mapping[str, Path]) -> list[Path]:
    """Return the folders of the models that a merge reads."""
    names = [*what.experts] if "slerp" in str(what.data) else [*what.experts, "base"]  # slerp reads no base
    return [pool[name] for name in names]


def plain(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    del out
    return [sys.executable, "-c", PLAIN, str(scratch / "plain.safetensors"), *map(str, read(what, pool))]


def copy(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    del scratch
    folders = read(what, pool)
    files = " ".join(f"{path}/*.safetensors" for path in folders)
    return ["sh", "-c", f"cat {files} > /dev/null && cp -r {folders[-1]} {out}"]


def start(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    del what, pool, scratch, out
    return [sys.executable, "-c", "import evomerge.cli.merges"]


def bare(what: Recipe, pool: Mapping[str, Path], scratch: Path, out: Path) -> list[str]:
    del what, pool, scratch, out
    return [sys.executable, "-c", "import torch"]


COMMANDS: dict[str, Callable[[Recipe, Mapping[str, Path], Path, Path], list[str]]] = {
    "evomerge": evomerge,
    "mergekit": mergekit,
    "plain": plain,
    "copy": copy,
    "start": start,
    "torch": bare,
}


def run(path: str, what: Recipe, pool: Mapping[str, Path], folder: Path) -> Took:
    """Return what one process takes, whose caches and output are removed when it has ended."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = COMMANDS[path](what, pool, Path(scratch), Path(scratch) / "out")
        caches = {"XDG_CACHE_HOME": f"{scratch}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/compiled"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        usage = Path(scratch) / "usage.json"
        watched = [sys.executable, "-S", "-c", WATCH, str(usage), *command]
        begun = time.perf_counter()
        done = subprocess.run(watched, env={**os.environ, **caches, **threads}, capture_output=True, check=False)  # noqa: S603  # commands of this file
        wall = time.perf_counter() - begun
        if done.returncode:
            raise RuntimeError(f"{path} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        cpu, peak = json.loads(usage.read_text())
        return Took(wall, cpu, peak / 1024)


# -- the race ----------------------------------------------------------------------------------------------------------


def measure(switches: Switches, options: Options) -> Findings:
    paths = [path for path in PATHS if path != "mergekit" or options.peers]
    took: dict[str, dict[str, Took]] = {}
    with tempfile.TemporaryDirectory(prefix="one-off-", dir=os.environ.get("TMPDIR")) as folder:
        say("writing a pool")
        pool = write_pool(Path(folder) / "pool", options)
        for operator in options.operators:
            best: dict[str, Took] = {}
            for turn in range(options.turns):
                for path in paths if turn % 2 == 0 else reversed(paths):
                    say(f"{operator}: {path}")
                    new = run(path, recipe(operator, options), pool, Path(folder))
                    best[path] = new.least(best.get(path, new))
            took[operator] = best
    elements = sum(torch.Size(shape).numel() for shape in llama(options)[1].values())
    figures = {
        "options": {**asdict(options), "parameters": elements},
        "imports": {path: min(best[path].cpu for best in took.values()) for path in ("start", "torch")},
        "rows": [{"operator": operator, **ratios(best)} for operator, best in took.items()],
    }
    recipes = {operator: recipe(operator, options).id for operator in options.operators}
    return Findings(figures, text(figures), draw(figures), recipes, ["mergekit"] if options.peers else [])


def ratios(best: Mapping[str, Took]) -> dict[str, float]:
    """Return ratios of times, and peaks of memory in MiB, of one operator."""
    ours, copied, begun, loop = best["evomerge"], best["copy"], best["start"], best["plain"]
    found = {
        "cpu_by_copy": ours.cpu / copied.cpu,
        "cpu_after_start_by_copy": max(ours.cpu - begun.cpu, 0.0) / copied.cpu,
        "cpu_by_plain": ours.cpu / loop.cpu,
        "start_by_plain": begun.cpu / loop.cpu,
        "cpu_after_start_by_plain_after_torch": max(ours.cpu - begun.cpu, 0.0)
        / max(loop.cpu - best["torch"].cpu, 0.01),
        "wall_by_copy": ours.wall / copied.wall,
        "peak_mib": ours.peak,
    }
    if theirs := best.get("mergekit"):
        found |= {
            "cpu_by_mergekit": ours.cpu / theirs.cpu,
            "wall_by_mergekit": ours.wall / theirs.wall,
            "mergekit_peak_mib": theirs.peak,
        }
    return found


COLUMNS = {
    "cpu_by_mergekit": "CPU by mergekit's",
    "wall_by_mergekit": "time by mergekit's",
    "peak_mib": "peak, MiB",
    "mergekit_peak_mib": "mergekit's",
    "cpu_by_copy": "CPU by a copy's",
    "cpu_after_start_by_copy": "without imports",
    "wall_by_copy": "time by a copy's",
    "cpu_by_plain": "CPU by a plain loop's",
    "cpu_after_start_by_plain_after_torch": "both without imports",
    "start_by_plain": "imports by a plain loop's CPU",
}


def text(figures: Mapping[str, Any]) -> str:
    options = figures["options"]
    shown = [key for key in COLUMNS if key in figures["rows"][0]]
    rows = [
        [row["operator"], *(f"{row[key]:.0f}" if "mib" in key else f"{row[key]:.2f}" for key in shown)]
        for row in figures["rows"]
    ]
    return (
        f"{options['parameters']:,} parameters in bf16, {len(options['experts'])} experts, one thread, the first time: no cache "
        f"is there. Times are ratios of the least of {options['turns']} turn(s). Options: `--width {options['width']} --blocks "
        f"{options['blocks']} --experts {len(options['experts'])} --turns {options['turns']}`. "
        f"Imports take {figures['imports']['start']:.1f} CPU seconds, of which torch {figures['imports']['torch']:.1f}.\n\n"
        + table(["evomerge merge", *(COLUMNS[key] for key in shown)], rows)
    )


def draw(figures: Mapping[str, Any]) -> Figure:
    rows, figure = figures["rows"], Figure(figsize=(6, 1.4 + 0.4 * len(figures["rows"])), layout="constrained")
    axes = figure.subplots()
    shown = [key for key in ("cpu_by_mergekit", "cpu_by_copy") if key in rows[0]]
    for i, key in enumerate(shown):
        places = [number + 0.4 * (i - 0.5 * (len(shown) - 1)) for number in range(len(rows))]
        axes.barh(places, [row[key] for row in rows], 0.35, label=COLUMNS[key])
    axes.axvline(1, color="#6b6b6b", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["operator"] for row in rows])
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


# -- the command line --------------------------------------------------------------------------------------------------


def some(words: str) -> tuple[str, ...]:
    names = tuple(words.split(","))
    for name in names:
        if name not in OPERATORS:
            msg = f"{name!r} is none of {', '.join(OPERATORS)}"
            raise argparse.ArgumentTypeError(msg)
    return names


def begin(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, usage="further options:", allow_abbrev=False)
    parser.add_argument("--width", type=int, metavar="N", help="of the model (default 1216)")
    parser.add_argument("--blocks", type=int, metavar="N", help="of the model (default 19)")
    parser.add_argument("--experts", type=int, choices=(2, 3, 4), default=3, help="how many (default 3)")
    parser.add_argument("--operators", type=some, metavar="A,B", help="some operators (default all)")
    parser.add_argument("--turns", type=int, metavar="N", help="how often each process runs (default 2)")
    parser.add_argument("--alone", action="store_true", help="without mergekit")
    parser.add_argument("--name", default="one_off", help="of the files that are written (default one_off)")
    own, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    smoke = "--smoke" in rest
    options = Options(
        own.width or (64 if smoke else 1216),
        own.blocks or (2 if smoke else 19),
        NAMES[: own.experts],
        own.operators or (("ties",) if smoke else tuple(OPERATORS)),
        own.turns or (1 if smoke else 2),
        not own.alone and not smoke and find_spec("mergekit") is not None,
    )
    main(own.name, __doc__, lambda switches: measure(switches, options), arguments=rest)


if __name__ == "__main__":
    begin(sys.argv[1:])
