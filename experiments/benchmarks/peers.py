"""A candidate in a model that stays in memory, beside the same candidate merged to disk, reloaded and evaluated.

The second is the path of mergekit-evolve and mergenetic. The same experts, recipes and evaluation go through three paths,
candidate by candidate in turns (A B C, C B A, …), so that whatever slows the machine slows all of them:

- `in memory`: evomerge's worker writes the candidate into its live model;
- `via disk`: evomerge writes the merge as a checkpoint folder, transformers loads it;
- `mergekit`: mergekit writes the folder (`run_merge`, in this process, quiet and without a model card), transformers loads it.

The peers' best case: nothing is charged for importing or starting them, files stay in the system's page cache, and tokens
are kept between candidates as ours are. Where both define the same numbers, mergekit's are compared with ours, element by
element. The two define TIES differently only for magnitudes equal to the threshold (we keep all, mergekit some), and SLERP
where the cosine exceeds 0.9995 (mergekit goes along the chord there).

    pip install 'mergekit>=0.1.5,<0.2'
    python experiments/benchmarks/peers.py [--smoke] [--seeds N] [--json] [--out DIR]

A smoke run takes the tiny `digits` experts and leaves mergekit out.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from evomerge import zoo
from evomerge.build import Builder
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.models import LiveModel
from evomerge.parts import Parts, open_parts
from evomerge.recipe import Recipe
from evomerge.settings import StudySettings
from evomerge.zoo import Zoo

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared import by_mergekit
from shared.harness import Findings, Switches, main, say, table

WEIGHT = {"float": [0.05, 1], "init": 0.3, "per": ["expert"]}
SPACES: dict[str, dict[str, Any]] = {  # method → parameters, with holes; constants are those that mergekit shares
    "linear": {"weight": WEIGHT},
    "task_arithmetic": {"weight": WEIGHT, "lambda": 1.0},
    "ties": {"weight": WEIGHT, "lambda": 1.0, "density": 0.5, "scope": "tensor", "undecided": "positive"},
    "slerp": {"t": {"float": [0, 1]}},
}
ENDS = {"slerp": 2}  # experts that a method takes, if not all
ZOO, SMOKE_ZOO = "text", "digits"
CANDIDATES, SMOKE_CANDIDATES = 3, 1
WARM_UP = 1
TOLERANCE = 1e-6  # of a tensor's largest magnitude: the rounding of fp32 sums in another order
SLERP_TOLERANCE = 1e-5  # mergekit sums the cosine in fp32, we in fp64
CHORD = 0.9995  # cosine above which mergekit's SLERP is linear
PHASES = ("merge", "reload", "score")
COLOURS = ("#D55E00", "#E69F00", "#0072B2")

Write = Callable[[Recipe, Path], None]
Scores = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    if not switches.smoke and find_spec("mergekit") is None:
        raise StudyError(f"mergekit is not installed; type: pip install '{by_mergekit.REQUIREMENT}'")
    embedded = zoo.find_or_build(
        SMOKE_ZOO if switches.smoke else ZOO, progress=lambda done, doing: say(f"{done:4.0%} {doing}")
    )
    methods: dict[str, Any] = {}
    recipes: dict[str, str] = {}
    for method in SPACES:
        methods[method], ids = race(method, embedded, switches)
        recipes |= ids
    figures = {
        "methods": methods,
        "zoo": embedded.name,
        "experts": len(embedded.pool["experts"]),
        "parameters": Pool(embedded.pool["base"], embedded.pool["experts"]).parameters,
    }
    packages = [] if switches.smoke else ["mergekit"]
    return Findings(figures, tables(figures, switches), draw(methods), recipes, packages)


def race(method: str, embedded: Zoo, switches: Switches) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what each path took for the candidates of one method, and their recipe ids."""
    pool = {**embedded.pool, "experts": dict(list(embedded.pool["experts"].items())[: ENDS.get(method)])}
    space = {"recipe": {"merge": {"method": method, "inputs": "experts", "parameters": SPACES[method]}}}
    driver = {"kind": "random", "seed_known": False}
    given = {"pool": pool, "tasks": embedded.tasks, "space": space, "driver": driver}
    parts = open_parts(StudySettings.parse(given, "peers", Path()))
    paths: dict[str, InMemory | ViaDisk] = {
        "in memory": InMemory(parts),
        "via disk": ViaDisk(parts, writer(parts.pool)),
    }
    if not switches.smoke:
        paths["mergekit"] = ViaDisk(parts, mergekit_writer(parts.pool))
    seconds: dict[str, list[dict[str, float]]] = {path: [] for path in paths}
    apart = dict.fromkeys(paths, 0.0)
    recipes: dict[str, str] = {}
    for seed in switches.seeds:
        made = parts.new_driver(seed)
        for number in range(WARM_UP + (SMOKE_CANDIDATES if switches.smoke else CANDIDATES)):
            say(f"{method}, seed {seed}, candidate {number}")
            proposal = made.ask()
            assert proposal is not None  # random search never waits
            recipe = proposal.recipe
            recipes[f"{method}, seed {seed}, candidate {number}"] = recipe.id
            scores: dict[str, Scores] = {}
            for path in list(paths) if number % 2 == 0 else reversed(paths):
                took, scores[path] = paths[path].evaluate(recipe)
                if number >= WARM_UP:
                    seconds[path].append(took)
            for path, found in scores.items():
                gaps = [np.abs(found[name] - vector).max() for name, vector in scores["in memory"].items()]
                apart[path] = max(apart[path], float(max(gaps)))
    shown = summary(seconds, apart)
    if not switches.smoke:
        shown["mergekit"]["agreement"] = agreement(method, recipe, parts.pool)
    return shown, recipes


# -- the paths ---------------------------------------------------------------------------------------------------------


class InMemory:
    """evomerge's own path: a worker and its live model."""

    def __init__(self, parts: Parts) -> None:
        self._worker = Worker(parts.setup)

    def evaluate(self, recipe: Recipe) -> tuple[dict[str, float], Scores]:
        """Return seconds by phase, and the scores."""
        found = self._worker.evaluate(recipe)
        if found.error is not None:
            raise StudyError(found.error)
        took = found.seconds
        return {"merge": took["decode"] + took["merge"], "reload": 0.0, "score": took["score"]}, dict(found.scores)


class ViaDisk:
    """Merge to a folder, load it with transformers, evaluate that model, throw all of it away."""

    def __init__(self, parts: Parts, write: Write) -> None:
        self._tasks = parts.tasks
        self._write = write
        # Holds the tokenizer and what the tasks keep between candidates; each candidate's module takes its model's place.
        self._model = LiveModel(parts.setup.base, parts.setup.auto, parts.setup.precision)

    def evaluate(self, recipe: Recipe) -> tuple[dict[str, float], Scores]:
        """Return seconds by phase, and the scores."""
        with tempfile.TemporaryDirectory(prefix="peers-") as parent:
            folder = Path(parent) / "merged"
            times = [time.perf_counter()]
            self._write(recipe, folder)
            times.append(time.perf_counter())
            kind = type(self._model.module)
            dtype = self._model.module.dtype
            self._model.module = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
            times.append(time.perf_counter())
            scores = {
                f"{name}/{metric}": vector
                for name, task in self._tasks.items()
                for metric, vector in task.score(self._model, "search").scores.items()
            }
            times.append(time.perf_counter())
        return dict(zip(PHASES, np.diff(times).tolist(), strict=True)), scores


def writer(pool: Pool) -> Write:
    """Return what `evomerge merge` does, keeping what can be kept from candidate to candidate."""
    builder = Builder(pool)
    return lambda recipe, folder: save(builder.build(recipe), folder, like=pool.base.path)


def mergekit_writer(pool: Pool) -> Write:
    """Return what `mergekit-yaml` does."""
    folders = {"base": pool.base.path, **{name: expert.path for name, expert in pool.experts.items()}}
    tokenizer = (pool.base.path / "tokenizer_config.json").exists()
    return lambda recipe, folder: by_mergekit.merge_to_folder(
        by_mergekit.order(recipe), folders, "float32", folder, copy_tokenizer=tokenizer
    )


# -- do they agree? ----------------------------------------------------------------------------------------------------


def agreement(method: str, recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """Merge once more with both, and compare every element. Raises `StudyError` where they differ and should not."""
    ours = Builder(pool).build(recipe)
    found: dict[str, Any] = {"elements": 0, "max_difference": 0.0, "defined_otherwise": 0, "max_difference_there": 0.0}
    with tempfile.TemporaryDirectory(prefix="peers-") as parent:
        mergekit_writer(pool)(recipe, Path(parent) / "merged")
        theirs = Folder(Path(parent) / "merged")
        for name in pool.merged:
            tensor = ours.tensor(name)
            apart = (tensor - theirs.tensor(name)).abs()
            free = otherwise(method, name, recipe, pool)
            for key, elements in (("max_difference", apart[~free]), ("max_difference_there", apart[free])):
                found[key] = max(found[key], float(elements.max()) if elements.numel() else 0.0)
            found["elements"] += tensor.numel()
            found["defined_otherwise"] += int(free.sum())
            allowed = SLERP_TOLERANCE if method == "slerp" else TOLERANCE
            if bool((apart[~free] > allowed * tensor.abs().max()).any()):
                raise StudyError(f"{method}: mergekit's `{name}` differs from ours by {float(apart[~free].max()):.3g}")
    return found


def otherwise(method: str, name: str, recipe: Recipe, pool: Pool) -> torch.Tensor:
    """Return the elements of a tensor that mergekit defines in another way than we do, as a mask of its shape."""
    base = pool.base.tensor(name)
    experts = [pool.experts[expert].tensor(name) for expert in recipe.experts]
    mask = torch.zeros(base.shape, dtype=torch.bool)
    if method == "slerp":
        one, other = (expert.double().flatten() for expert in experts)
        if bool(one @ other > CHORD * one.norm() * other.norm()):
            mask.fill_(value=True)
    elif method == "ties":
        for expert in experts:
            size = (expert - base).abs()
            kept = round(SPACES["ties"]["density"] * size.numel())
            mask |= (size > 0) & (size == size.flatten().kthvalue(size.numel() - kept + 1).values)
    return mask


# -- what is shown -----------------------------------------------------------------------------------------------------


def summary(seconds: Mapping[str, list[dict[str, float]]], apart: Mapping[str, float]) -> dict[str, Any]:
    """Return median seconds by path and phase, and the median over candidates of each path's ratio to `in memory`."""
    totals = {path: np.array([sum(took.values()) for took in each]) for path, each in seconds.items()}
    made = {path: np.array([took["merge"] + took["reload"] for took in each]) for path, each in seconds.items()}
    return {
        path: {
            "seconds": {phase: float(np.median([took[phase] for took in each])) for phase in PHASES},
            "total": float(np.median(totals[path])),
            "ratio": float(np.median(totals[path] / totals["in memory"])),
            "ratio_quartiles": np.quantile(totals[path] / totals["in memory"], [0.25, 0.75]).tolist(),
            "ratio_without_score": float(np.median(made[path] / made["in memory"])),
            "candidates": len(each),
            "largest_difference_of_a_score": apart[path],
        }
        for path, each in seconds.items()
    }


def tables(figures: Mapping[str, Any], switches: Switches) -> str:
    columns = [
        "seconds per candidate (median)",
        *PHASES,
        "total",
        "ratio",
        "quartiles",
        "ratio without score",
        "score differs by",
    ]
    rows = [
        [
            f"{method}, {path}",
            *(f"{found['seconds'][phase]:.3f}" for phase in PHASES),
            f"{found['total']:.3f}",
            f"{found['ratio']:.2f}x",
            "{:.2f}-{:.2f}".format(*found["ratio_quartiles"]),
            f"{found['ratio_without_score']:.1f}x",
            f"{found['largest_difference_of_a_score']:.1g}",
        ]
        for method, paths in figures["methods"].items()
        for path, found in paths.items()
    ]
    text = (
        f"{figures['experts']} experts of {figures['parameters']:,} parameters (`{figures['zoo']}`), one thread; "
        f"a ratio is a path's seconds over those of `in memory` for the same candidate.\n\n{table(columns, rows)}"
    )
    if switches.smoke:
        return text
    headings = [
        "mergekit's numbers beside ours",
        "elements",
        "largest difference",
        "defined otherwise",
        "difference there",
    ]
    agreed = [
        [
            method,
            f"{found['elements']:,}",
            f"{found['max_difference']:.2g}",
            f"{found['defined_otherwise']:,}",
            f"{found['max_difference_there']:.2g}",
        ]
        for method, found in ((method, paths["mergekit"]["agreement"]) for method, paths in figures["methods"].items())
    ]
    return f"{text}\n\n{table(headings, agreed)}"


def draw(methods: Mapping[str, Any]) -> Figure:
    rows = [(f"{method}, {path}", found) for method, paths in methods.items() for path, found in paths.items()]
    figure = Figure(figsize=(8, 0.8 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    start = np.zeros(len(rows))
    for phase, colour in zip(PHASES, COLOURS, strict=True):
        width = np.array([found["seconds"][phase] for _, found in rows])
        axes.barh([name for name, _ in rows], width, left=start, color=colour, label=phase)
        start = start + width
    for row, (_, found) in enumerate(rows):
        axes.annotate(f" {found['ratio']:.1f}x", (start[row], row), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds per candidate (median)")
    axes.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main("peers", __doc__, measure)
