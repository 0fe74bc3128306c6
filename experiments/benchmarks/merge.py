"""What a merge costs beside the bandwidth of this machine's memory, and beside mergekit.

A pool of a base and three experts with random weights, shaped like a Llama and near each other, is written as checkpoints.
The floor of a merge of K models of n parameters in b bytes is copying (K + 2)·n·b bytes: reading K models and the base,
writing one. Beside it stand, for each operator and dtype, in turns, so that whatever slows the machine slows all of them:

- `ours-cold`: a process's first merge, its cache folders empty: opening the pool, preparing, compiling, merging;
- `ours-warm`: its later merges into tensors that stay in memory, each with other numbers of the parameters that are cheap;
- `mergekit-memory`: mergekit's `merge_state_dicts` on tensors in memory, in their own dtype, as it does by default;
- `mergekit-disk`: its merge to a folder, and transformers' loading of that.

Every path of an operator has a process of its own, whose imports are not charged. Seconds are the least of several merges
(a merge that takes long is made once), as the bandwidth is the best of several copies; the files have the medians, too.
Memory is the peak of what a path allocates (RssAnon of Linux, or what torch has allocated on a GPU) over what its process
had before: models held in memory count, mapped files do not.

    pip install 'mergekit>=0.1.5,<0.2'    # without it, its rows are left out
    python experiments/benchmarks/merge.py [--parameters 110M] [--threads 1] [--dtypes bf16,fp32] [--operators ties,…]
                                           [--device cuda] [--smoke] [--json] [--out DIR]
    python experiments/benchmarks/merge.py --profile ties

The last one shows where the time of warm merges goes. A smoke run takes 2M parameters, two operators and bf16.
What a merge costs does not depend on the weights, so `--seeds` changes nothing.
"""

import argparse
import contextlib
import cProfile
import json
import math
import multiprocessing
import os
import pstats
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from evomerge.build import Builder
from evomerge.checkpoints.pool import Pool
from evomerge.errors import StudyError
from evomerge.placement import Placement, find
from evomerge.recipe import Recipe

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared import by_mergekit
from shared.harness import Findings, Switches, main, say, table

EXPERTS = ("maths", "code", "prose")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
STEP = 0.1  # standard deviation of a task vector's elements, by that of the base's
TURNS, SMOKE_TURNS = 5, 2
WARM_PER_TURN = 2
ENOUGH = 3.0  # seconds that a path may have taken and still get another turn
COPIES = 3  # per turn
SAMPLED = 0.005  # seconds between looks at a process's memory
PROFILED = 5  # warm merges
SMOKE_PARAMETERS, SMOKE_OPERATORS, SMOKE_DTYPES = 2_000_000, ("task_arithmetic", "ties"), ("bf16",)


def weights(number: int) -> dict[str, Any]:
    """Return a weight for each expert, other ones for each number."""
    return {"per": ["expert"], "values": {name: 0.3 + 0.07 * i + 0.01 * number for i, name in enumerate(EXPERTS)}}


@dataclass(frozen=True)
class Operator:
    """A method, and parameters that cost nothing to change; an integer stands for one choice of them."""

    parameters: Callable[[int], dict[str, Any]]
    inputs: int = len(EXPERTS)
    method: str = ""
    """By default the operator's name."""


OPERATORS = {
    "linear": Operator(lambda i: {"weight": weights(i)}),
    "task_arithmetic": Operator(lambda i: {"weight": weights(i), "lambda": 1 + 0.01 * i}),
    "lines": Operator(lambda i: {"weight": weights(i), "alpha": 0.3, "beta": 0.5 + 0.01 * i}),
    "slerp": Operator(lambda i: {"t": 0.3 + 0.01 * i}, inputs=2),
    "karcher": Operator(lambda i: {"weight": weights(i)}),
    "model_stock": Operator(lambda i: {}),  # it has nothing to change
    "ties": Operator(lambda i: {"weight": weights(i), "density": 0.2 + 0.01 * i}),
    "dare_linear": Operator(lambda i: {"weight": weights(i), "drop": 0.5 + 0.01 * i}),
    "dare_ties": Operator(lambda i: {"weight": weights(i), "drop": 0.5 + 0.01 * i}),
    "della": Operator(lambda i: {"weight": weights(i), "density": 0.5 + 0.01 * i, "epsilon": 0.1}),
    "breadcrumbs": Operator(lambda i: {"weight": weights(i), "density": 0.6 + 0.01 * i, "gamma": 0.01}),
    "sce": Operator(lambda i: {"select": 0.5 + 0.01 * i}),
    "consensus": Operator(lambda i: {"weight": weights(i), "threshold": 0.4 + 0.01 * i}),
    # A factorisation of each matrix for each merge; one for all `alpha`; one for all weights of two inputs.
    "regmean": Operator(lambda i: {"weight": weights(i), "alpha": 0.9 - 0.01 * i}),
    "regmean_alpha": Operator(lambda i: {"alpha": 0.9 - 0.01 * i, "solver": "eigen"}, method="regmean"),
    "regmean_pair": Operator(lambda i: {"weight": weights(i), "solver": "eigen"}, inputs=2, method="regmean"),
}


def recipe(operator: str, number: int) -> Recipe:
    made = OPERATORS[operator]
    names = EXPERTS[: made.inputs]
    parameters = made.parameters(number)
    if "weight" in parameters:
        parameters["weight"] = {
            **parameters["weight"],
            "values": {name: parameters["weight"]["values"][name] for name in names},
        }
    inputs = [{"expert": name} for name in names]
    return Recipe.parse({"merge": {"method": made.method or operator, "inputs": inputs, "parameters": parameters}})


# -- the pool ----------------------------------------------------------------------------------------------------------


def llama(parameters: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return the config and the shapes of the tensors of the Llama whose size is nearest to `parameters`.

    Its proportions are those of the 110M one, 12 blocks 768 wide with 32k tokens; embedding and head are tied.
    """
    width = min(range(32, 8192, 32), key=lambda width: abs(42 * width**2 + (width // 64) * 12 * width**2 - parameters))
    blocks, inner, tokens = max(width // 64, 1), width * 8 // 3, 42 * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (tokens, width)}
    for block in range(blocks):
        at = f"model.layers.{block}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (width,)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "tie_word_embeddings": True,
    }
    return config, shapes


def size(parameters: int) -> int:
    """Return how many parameters the Llama of about `parameters` has."""
    return sum(math.prod(shape) for shape in llama(parameters)[1].values())


def write_pool(folder: Path, parameters: int, dtype: torch.dtype) -> dict[str, Path]:
    """Write the base and the experts, and return their folders."""
    config, shapes = llama(parameters)
    scale = config["hidden_size"] ** -0.5
    base = {name: scale * torch.randn(shape, generator=seeded(0)) for name, shape in shapes.items()}
    found = {}
    for seed, name in enumerate(("base", *EXPERTS)):
        found[name] = folder / name
        found[name].mkdir(parents=True)
        (found[name] / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
        generator = seeded(seed)
        tensors = {
            tensor: values if name == "base" else values + STEP * scale * torch.randn(values.shape, generator=generator)
            for tensor, values in base.items()
        }
        save_file({k: v.to(dtype) for k, v in tensors.items()}, found[name] / "model.safetensors", {"format": "pt"})
    return found


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Grams:
    """Statistics of an expert's inputs, for operators that read them: the same random Gram matrix for all matrices of its width."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._made: dict[tuple[str, int], torch.Tensor] = {}

    def digest(self, kind: str, expert: str) -> str:
        """Return the name of an expert's statistic."""
        return f"{kind} of {expert}"

    def tables(self, kind: str, expert: str, name: str) -> dict[str, torch.Tensor]:
        """Return the tables of a matrix; of norms and of the embedding there are none."""
        shape = self._shapes[name]
        if len(shape) < 2 or "embed" in name:  # a matrix
            return {}
        key = expert, shape[1]
        if key not in self._made:
            rows = torch.randn(2 * shape[1], shape[1], generator=seeded(EXPERTS.index(expert)))
            self._made[key] = rows.mT @ rows / len(rows)
        return {"gram": self._made[key], "axis": torch.tensor(1)}


# -- the paths, each in a process of its own ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a process is to merge, and how."""

    path: str
    operator: str
    dtype: str
    parameters: int
    folders: dict[str, Path]
    scratch: Path
    threads: int
    device: str


@dataclass(frozen=True)
class Took:
    """Seconds of one merge, some of its parts by name, and MiB allocated on the device."""

    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    device_mib: float = 0.0


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Ours:
    """The first merge opens the pool; the later ones find it open."""

    def __init__(self, job: Job) -> None:
        os.environ["XDG_CACHE_HOME"] = str(job.scratch / "cache")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.scratch / "compiled")
        self._job = job
        self._builder: Builder | None = None
        _, shapes = llama(job.parameters)
        self._out = {
            name: torch.ones(shape, dtype=DTYPES[job.dtype], device=job.device) for name, shape in shapes.items()
        }

    def merge(self, number: int) -> Took:
        """Merge in place with the parameters of `number`."""
        start = clock(self._job.device)
        parts = {}
        if self._builder is None:
            experts = {name: self._job.folders[name] for name in EXPERTS}
            placement = Placement(find(self._job.device))
            pool = Pool(self._job.folders["base"], experts)
            pool.evidence = Grams(llama(self._job.parameters)[1])
            self._builder = Builder(pool, search=True, placement=placement)
            parts["opening"] = clock(self._job.device) - start
        merged = self._builder.build(recipe(self._job.operator, number))
        for name, out in self._out.items():
            merged.write(name, out)
        seconds = clock(self._job.device) - start
        self._builder.placement.settle()  # on a GPU, models stay there from the next merge on
        if parts:
            parts["compiling"] = compiling()
        return Took(seconds, parts)


def compiling() -> float:
    """Return the seconds that torch.compile has taken in this process."""
    from torch._dynamo.utils import calculate_time_spent  # what `torch._dynamo.utils.compile_times` prints

    return float(calculate_time_spent().get("total_wall_time", 0.0))


class MergekitMemory:
    """All models are in memory before the first merge."""

    def __init__(self, job: Job) -> None:
        from safetensors.torch import load_file

        self._job = job
        self._pool = {  # cloned: read into memory, no longer mapped
            name: {key: value.clone() for key, value in load_file(folder / "model.safetensors", job.device).items()}
            for name, folder in job.folders.items()
        }

    def merge(self, number: int) -> Took:
        """Merge into new tensors, and drop them."""
        start = clock(self._job.device)
        by_mergekit.merge_in_memory(by_mergekit.order(recipe(self._job.operator, number)), self._pool)
        return Took(clock(self._job.device) - start)


class MergekitDisk:
    """What its users do: merge to a folder, load the folder."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def merge(self, number: int) -> Took:
        """Merge into a new folder, and drop that and the model loaded from it."""
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory(dir=self._job.scratch) as folder:
            start = clock(self._job.device)
            what, dtype = by_mergekit.order(recipe(self._job.operator, number)), DTYPES[self._job.dtype]
            by_mergekit.merge_to_folder(
                what,
                self._job.folders,
                str(dtype).removeprefix("torch."),
                Path(folder),
                copy_tokenizer=False,
                cuda=self._job.device == "cuda",
            )
            merged = clock(self._job.device) - start
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
            model.to(self._job.device)
            return Took(clock(self._job.device) - start, {"merge to disk": merged})


PATHS: dict[str, type[Ours | MergekitMemory | MergekitDisk]] = {
    "ours": Ours,
    "mergekit-memory": MergekitMemory,
    "mergekit-disk": MergekitDisk,
}
ROWS = ("ours-warm", "ours-cold", "mergekit-memory", "mergekit-disk")


def serve(pipe: Any, job: Job) -> None:
    """Merge with the number that comes through the pipe, again and again, until None comes."""
    sys.stdout = sys.stderr  # the one JSON object on standard output is not ours
    torch.set_num_threads(job.threads)
    pipe.recv()
    path = PATHS[job.path](job)
    pipe.send(None)
    while (number := pipe.recv()) is not None:
        if job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = path.merge(number)
        pipe.send(replace(took, device_mib=torch.cuda.max_memory_allocated() / 2**20) if job.device == "cuda" else took)


class Child:
    """A process that merges by one path, seen from outside."""

    def __init__(self, processes: Any, job: Job) -> None:
        self._device = job.device
        self._pipe, other = processes.Pipe()
        self._process = processes.Process(target=serve, args=(other, job), daemon=True)
        self._process.start()
        other.close()
        self._before = self._anonymous()
        self._ask(0)

    def merge(self, number: int) -> tuple[Took, float]:
        """Return what a merge took, and the peak of memory in MiB."""
        took, peak = self._ask(number)
        return took, took.device_mib if self._device == "cuda" else peak - self._before

    def close(self) -> None:
        """End the process, which may have ended by itself."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join()

    def _ask(self, what: int) -> tuple[Any, float]:
        self._pipe.send(what)
        peak = self._anonymous()
        while not self._pipe.poll(SAMPLED):
            peak = max(peak, self._anonymous())
        try:
            return self._pipe.recv(), peak
        except EOFError:
            raise StudyError("a merging process has died; what it said last is above") from None

    def _anonymous(self) -> float:
        """Return the MiB of the process's memory that map no file."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"RssAnon:\s*(\d+) kB", status)
        return int(found[1]) / 2**10 if found else 0.0


# -- the race ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What this experiment can be told beside what all can."""

    parameters: int
    threads: int
    device: str
    dtypes: tuple[str, ...]
    operators: tuple[str, ...]


def measure(switches: Switches, options: Options) -> Findings:
    torch.set_num_threads(options.threads)
    peers = find_spec("mergekit") is not None
    processes = multiprocessing.get_context("forkserver")
    # Imported once, and forked from there.
    processes.set_forkserver_preload(["evomerge.build", "transformers", "mergekit.merge"])
    rows: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    bandwidth = Bandwidth(options)
    turns = SMOKE_TURNS if switches.smoke else TURNS
    with tempfile.TemporaryDirectory(prefix="merge-benchmark-") as folder:
        for dtype in options.dtypes:
            say(f"writing a pool in {dtype}")
            folders = write_pool(Path(folder) / dtype, options.parameters, DTYPES[dtype])
            for operator in options.operators:
                say(f"{operator}, {dtype}")
                paths = ["ours", *(["mergekit-memory", "mergekit-disk"] if peers and shared(operator) else [])]
                with tempfile.TemporaryDirectory(prefix="scratch-", dir=folder) as scratch:
                    jobs = [
                        Job(
                            path,
                            operator,
                            dtype,
                            options.parameters,
                            folders,
                            Path(scratch),
                            options.threads,
                            options.device,
                        )
                        for path in paths
                    ]
                    found = race(processes, jobs, turns, bandwidth)
                for path, own in found.items():
                    row = {"operator": operator, "dtype": dtype, "path": path, "threads": options.threads}
                    rows.append({**row, "seconds": own["seconds"], "ratio_to_floor": 0.0, "peak_mib": own["peak_mib"]})
                    details.append({**row, **own})
    for row in rows:
        inputs = OPERATORS[row["operator"]].inputs
        row["ratio_to_floor"] = row["seconds"] / bandwidth.floor(inputs, row["dtype"])
    figures = {
        "copy_gbps": bandwidth.best / 1e9,
        "floor_s": {dtype: bandwidth.floor(len(EXPERTS), dtype) for dtype in options.dtypes},
        "rows": rows,
    }
    written = {**figures, "options": {**asdict(options), "parameters": size(options.parameters)}, "details": details}
    if not peers:
        why = (
            "a smoke run" if find_spec("mergekit") else f"not installed; type: pip install '{by_mergekit.REQUIREMENT}'"
        )
        say(f"mergekit is left out: {why}")
    recipes = {f"{operator}, first": recipe(operator, 0).id for operator in options.operators}
    return Findings(written, tables(written), draw(written), recipes, ["mergekit"] if peers else [])


def shared(operator: str) -> bool:
    return operator in by_mergekit.BY_INPUT


class Bandwidth:
    """The best of all copies so far, of a flat tensor of the model's size in bf16, in bytes read and written per second."""

    def __init__(self, options: Options) -> None:
        self._numel = size(options.parameters)
        self._source = torch.ones(self._numel, dtype=torch.bfloat16, device=options.device)
        self._target = torch.ones_like(self._source)
        self._device = options.device
        self.best = 0.0
        self.again()

    def again(self) -> None:
        """Copy some more."""
        for _ in range(COPIES):
            start = clock(self._device)
            self._target.copy_(self._source)
            self.best = max(self.best, 2 * self._source.nbytes / (clock(self._device) - start))

    def floor(self, inputs: int, dtype: str) -> float:
        """Return the seconds of copying (K + 2)·n·b bytes."""
        return (inputs + 2) * self._numel * DTYPES[dtype].itemsize / self.best


def race(processes: Any, jobs: Sequence[Job], turns: int, bandwidth: Bandwidth) -> dict[str, Any]:
    """Merge by every path in turns, and return what each took: seconds (the least), their median, MiB, parts."""
    merges: dict[str, list[tuple[Took, float]]] = defaultdict(list)
    children = {job.path: Child(processes, job) for job in jobs}
    try:
        merges["ours-cold"].append(children["ours"].merge(0))
        children["ours"].merge(1)  # what other numbers need once, such as a guard of the compiler's, is no longer first
        number = 2
        for _ in range(turns):
            bandwidth.again()
            for path, child in children.items():
                row = "ours-warm" if path == "ours" else path
                if sum(took.seconds for took, _ in merges[row]) < ENOUGH or not merges[row]:
                    for _ in range(WARM_PER_TURN if path == "ours" else 1):
                        merges[row].append(child.merge(number))
                        number += 1
    finally:
        for child in children.values():
            child.close()
    found = {row: summary(merges[row]) for row in ROWS if row in merges}
    cold = found["ours-cold"]
    rest = cold["seconds"] - sum(cold["parts"].values()) - found["ours-warm"]["seconds"]
    cold["parts"] |= {"merging": found["ours-warm"]["seconds"], "preparing": max(rest, 0.0)}
    return found


def summary(merges: Sequence[tuple[Took, float]]) -> dict[str, Any]:
    best = min((took for took, _ in merges), key=lambda took: took.seconds)
    return {
        "seconds": best.seconds,
        "median": statistics.median(took.seconds for took, _ in merges),
        "merges": len(merges),
        "peak_mib": max(peak for _, peak in merges),
        "parts": dict(best.parts),
    }


# -- where the time of a warm merge goes -------------------------------------------------------------------------------

PLACES = {  # part of a function's file and name → what its own time is
    "kernel.kernel": "compiled kernels",
    "torchinductor": "compiled kernels",
    "/compiled/": "compiled kernels",
    "torch/_dynamo": "dispatch to them",
    "torch/_functorch": "dispatch to them",
    "torch/_inductor": "dispatch to them",
    "evomerge/merging": "the pipeline's Python",
    "evomerge/": "the rest of evomerge",
}


def profile(operator: str, options: Options) -> str:
    """Return a table of the own time of functions over some warm merges, by place and one by one."""
    torch.set_num_threads(options.threads)
    texts = []
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory(prefix="merge-benchmark-") as folder:
            folders = write_pool(Path(folder) / "pool", options.parameters, DTYPES[dtype])
            ours = Ours(
                Job("ours", operator, dtype, options.parameters, folders, Path(folder), options.threads, options.device)
            )
            for number in range(2):
                ours.merge(number)
            plain = min(ours.merge(2 + i).seconds for i in range(PROFILED))
            profiler = cProfile.Profile()
            profiler.enable()
            for i in range(PROFILED):
                ours.merge(10 + i)
            profiler.disable()
        own = {name: entry[2] / PROFILED for name, entry in pstats.Stats(profiler).stats.items()}  # type: ignore[attr-defined]  # its stub lacks it
        places: dict[str, float] = defaultdict(float)
        for (file, _, name), seconds in own.items():
            place = next((words for part, words in PLACES.items() if part in f"{file} {name}"), None)
            places[place or f"other: {'built in' if file == '~' else Path(file).parent.name}"] += seconds
        single = {f"{Path(file).name}:{line} {name}": seconds for (file, line, name), seconds in own.items()}
        whole = sum(own.values())
        texts += [
            f"{operator}, {dtype}: {1e3 * plain:.1f} ms a merge; with the profiler {1e3 * whole:.1f} ms, of which",
            table(["own time", "ms", "share"], shares(places, whole)),
            table(["function", "ms", "share"], shares(single, whole)),
        ]
    return "\n\n".join(texts)


def shares(seconds: Mapping[str, float], whole: float) -> list[list[str]]:
    ranked = sorted(seconds.items(), key=lambda entry: -entry[1])
    return [[name, f"{1e3 * own:.2f}", f"{own / whole:.0%}"] for name, own in ranked[:15]]


# -- what is shown -----------------------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> str:
    options = found["options"]
    floors = ", ".join(f"{1e3 * seconds:.1f} ms ({dtype})" for dtype, seconds in found["floor_s"].items())
    by = {(row["operator"], row["dtype"], row["path"]): row for row in found["details"]}
    ratio = {(row["operator"], row["dtype"], row["path"]): row["ratio_to_floor"] for row in found["rows"]}
    rows, cold = [], []
    for operator, dtype in dict.fromkeys((row["operator"], row["dtype"]) for row in found["rows"]):
        warm = by[operator, dtype, "ours-warm"]
        cells = [f"{operator}, {dtype}"]
        cells += [f"{1e3 * warm['seconds']:.0f}", f"{1e3 * warm['median']:.0f}"]
        cells += [f"{ratio[operator, dtype, 'ours-warm']:.1f}x", f"{warm['peak_mib']:.0f}"]
        for path in ("mergekit-memory", "mergekit-disk"):
            theirs = by.get((operator, dtype, path))
            if theirs is None:
                cells += ["", "", ""]
            else:
                times = theirs["seconds"] / warm["seconds"]
                cells += [f"{1e3 * theirs['seconds']:.0f}", f"{times:.0f}x", f"{theirs['peak_mib']:.0f}"]
        rows.append(cells)
        first = by[operator, dtype, "ours-cold"]
        parts = [f"{first['parts'].get(part, 0.0):.2f}" for part in ("opening", "compiling", "preparing", "merging")]
        cold.append([f"{operator}, {dtype}", f"{first['seconds']:.2f}", *parts, f"{first['peak_mib']:.0f}"])
    columns = ["ours, warm", "ms", "median", "by the floor", "MiB"]
    for path in ("mergekit in memory", "on disk"):
        columns += [f"{path}: ms", "by ours", "MiB"]
    return (
        f"{options['parameters']:,} parameters, {len(EXPERTS)} experts, {options['threads']} thread(s) on "
        f"{options['device']}. A copy runs at {found['copy_gbps']:.1f} GB/s, so that the floor is {floors} for "
        f"K = {len(EXPERTS)}; each operator is compared with that of its own K.\n\n{table(columns, rows)}\n\n"
        + table(["ours, cold", "s", "opening", "compiling", "preparing", "merging", "MiB"], cold)
    )


def draw(found: Mapping[str, Any]) -> Figure:
    colours = dict(zip(ROWS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True))
    dtypes, operators = list(found["floor_s"]), list(dict.fromkeys(row["operator"] for row in found["rows"]))
    figure = Figure(figsize=(5.5 * len(dtypes), 1.4 + 0.42 * len(operators)), layout="constrained")
    for axes, dtype in zip(figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0], dtypes, strict=True):
        for i, (path, colour) in enumerate(colours.items()):
            rows = [row for row in found["rows"] if row["path"] == path and row["dtype"] == dtype]
            heights = [operators.index(row["operator"]) + 0.2 * (i - 1.5) for row in rows]
            axes.barh(heights, [row["ratio_to_floor"] for row in rows], 0.2, color=colour, label=path)
        axes.axvline(1, color="#6b6b6b", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(dtype)
        axes.set_xlabel("seconds by the floor")
        axes.set_yticks(range(len(operators)), operators)
    axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, loc="outside upper center")
    return figure


# -- the command line --------------------------------------------------------------------------------------------------


def count(text: str) -> int:
    """Read a number such as 110M or 7B."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    if found is None:
        msg = f"expected a number such as 110M, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return round(float(found[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[found[2]])


def some(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                msg = f"{name!r} is none of {', '.join(known)}"
                raise argparse.ArgumentTypeError(msg)
        return names

    return read


def read(arguments: Sequence[str]) -> tuple[Options, str | None, list[str]]:
    """Return the options, the operator to profile, and what all experiments understand."""
    parser = argparse.ArgumentParser(add_help=False, usage="further options:", allow_abbrev=False)
    parser.add_argument("--parameters", type=count, metavar="N", help="size of the model (default 110M)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a merge (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where merges are made (default cpu)")
    parser.add_argument("--dtypes", type=some(tuple(DTYPES)), metavar="A,B", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--operators", type=some(tuple(OPERATORS)), metavar="A,B", help="some operators (default all)")
    parser.add_argument(
        "--profile", choices=tuple(OPERATORS), metavar="OPERATOR", help="where its warm merges' time goes"
    )
    own, rest = parser.parse_known_args(arguments)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    if own.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no such device here; leave the option out")
    smoke = "--smoke" in rest
    options = Options(
        own.parameters or (SMOKE_PARAMETERS if smoke else 110_000_000),
        own.threads,
        own.device,
        own.dtypes or (SMOKE_DTYPES if smoke else tuple(DTYPES)),
        own.operators or (SMOKE_OPERATORS if smoke else tuple(OPERATORS)),
    )
    return options, own.profile, rest


def run(arguments: Sequence[str]) -> None:
    options, profiled, rest = read(arguments)
    if profiled is not None:
        sys.stdout.write(f"{profile(profiled, options)}\n")
        return
    main("merge", __doc__, lambda switches: measure(switches, options), arguments=rest)


if __name__ == "__main__":
    run(sys.argv[1:])
