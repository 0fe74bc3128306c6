"""Where a candidate's seconds go, and what a driver costs by itself, beside this machine's own limits.

Part 1, candidates: a search as `Study.run` does it, with a clock around each step, over the embedded experts. Beside each
candidate, in the same turn of the loop, two limits are timed: copying the bytes that a merge must at least touch,
(K + 2)·n·b for K experts of n parameters in b bytes; and writing and syncing the journal's lines to a bare file.

Part 2, drivers: asks, tells and journals of a large search (10,000 trials, 1,000 genes) whose scores cost nothing.
What the disk takes for a bare write and sync is no doing of ours: the target holds for the rest.

    python experiments/benchmarks/overhead.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evomerge import search, zoo
from evomerge.evaluate import Worker
from evomerge.journal import Journal
from evomerge.parts import open_parts
from evomerge.recipe import Recipe
from evomerge.settings import StudySettings
from evomerge.space import Genome, SearchSpace
from evomerge.trial import Evaluation, Proposal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

SPACES = {  # shipped space → how many of the zoo's experts it takes, None for all
    "task_arithmetic_per_block": None,
    "ties_per_block": None,
    "dare_ties_per_kind": None,
    "slerp_per_block": 2,
}
CANDIDATES = {"digits": 60, "text": 12}
WARM_UP = 2  # the first candidates read files and prepare what is kept for the whole search
DRIVERS: dict[str, dict[str, Any]] = {
    "NSGA-II": {"kind": "nsga2", "population": 100},
    "CMA-ES (separable)": {"kind": "cma"},
    "random": {"kind": "random"},
}
TRIALS = 10_000
GENES = 1_000
EXAMPLES = 400  # scores of an objective in the journal
TARGET_MS = 2.0
SMOKE_SPACES = ("task_arithmetic_per_block",)
SMOKE_CANDIDATES = 4
SMOKE_TRIALS = 60

PHASES = ("ask", "decode", "merge", "score", "journal", "tell")
Clock = dict[str, list[float]]
Floats = NDArray[np.float64]


@contextmanager
def timed(clock: Clock, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    clock[phase].append(time.perf_counter() - start)


def measure(switches: Switches) -> Findings:
    torch.set_num_threads(1)
    with scratch(switches.out) as folder:
        candidates, recipes = measure_candidates(switches, folder)
        drivers, course = measure_drivers(switches, folder)
    constants = {"target_ms": TARGET_MS, "genes": GENES, "examples": EXAMPLES}
    figures = {"candidates": candidates, "drivers": drivers, **constants}
    return Findings(figures, tables(candidates, drivers), draw(candidates, course), recipes)


# -- part 1 ------------------------------------------------------------------------------------------------------------


def measure_candidates(switches: Switches, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the summary of each zoo and space, and the recipe id of its last candidate."""
    found: dict[str, Any] = {}
    recipes: dict[str, str] = {}
    for name in ("digits",) if switches.smoke else CANDIDATES:
        embedded = zoo.find_or_build(name, progress=lambda done, doing: say(f"{done:4.0%} {doing}"))
        count = SMOKE_CANDIDATES if switches.smoke else CANDIDATES[name]
        for space in SMOKE_SPACES if switches.smoke else SPACES:
            say(f"candidates of {name}, {space}")
            pool = {**embedded.pool, "experts": dict(list(embedded.pool["experts"].items())[: SPACES[space]])}
            given = {"pool": pool, "tasks": embedded.tasks, "space": space, "driver": {"kind": "random"}}
            settings = StudySettings.parse(given, "overhead", Path())
            runs = [time_candidates(settings, seed, count, folder) for seed in switches.seeds]
            found[f"{name}, {space}"] = summary_of_candidates([clock for clock, _ in runs])
            recipes[f"{name}, {space}"] = runs[-1][1].id
    return found, recipes


def time_candidates(settings: StudySettings, seed: int, count: int, folder: Path) -> tuple[Clock, Recipe]:
    """Return the seconds by phase, and of the two limits, of each candidate after the warm-up; and the last recipe."""
    parts = open_parts(settings)
    worker = Worker(parts.setup)
    worker.prepare()
    driver = parts.new_driver(seed)
    touched = (len(parts.pool.experts) + 2) * sum(entry.nbytes for entry in parts.pool.merged.values())
    source, target = torch.ones(touched // 2, dtype=torch.uint8), torch.empty(touched // 2, dtype=torch.uint8)
    clock: Clock = defaultdict(list)
    with recorder(folder) as made:
        for _ in range(WARM_UP + count):
            with timed(clock, "ask"):
                proposal = driver.ask()
            assert proposal is not None  # random search never waits
            assert proposal.genome is not None  # and its proposals are genomes
            with timed(clock, "decode"):  # once more, by itself: the driver has done it inside of `ask`
                parts.space.decode(proposal.genome)
            clock["ask"][-1] -= clock["decode"][-1]
            recipe = proposal.recipe
            evaluation = worker.evaluate(recipe)
            if evaluation.error is not None:
                raise RuntimeError(evaluation.error)
            made.record(clock, proposal, evaluation)
            clock["decode"][-1] += evaluation.seconds["decode"]  # the worker's reading of the recipe
            clock["merge"].append(evaluation.seconds["merge"])
            clock["score"].append(evaluation.seconds["score"])
            with timed(clock, "tell"):
                driver.tell(proposal, evaluation)
            with timed(clock, "copy"):
                target.copy_(source)
    return {phase: seconds[WARM_UP:] for phase, seconds in clock.items()}, recipe


class Recorder:
    """A journal, and beside it a bare file that takes as many bytes with the least that this needs."""

    def __init__(self, journal: Journal, bare: BinaryIO) -> None:
        self._journal = journal
        self._bare = bare
        self._size = self._grown = 0

    def record(self, clock: Clock, proposal: Proposal, evaluation: Evaluation) -> None:
        """Journal ask and tell, and write and sync the bare file; the two take turns in going first.

        What goes second may find the disk busy, or just done. The bare file that goes first is given as many bytes as
        the journal was the last time.
        """
        turns = (self._to_journal, self._to_bare)
        for turn in turns if proposal.number % 2 == 0 else reversed(turns):
            with timed(clock, "journal" if turn == self._to_journal else "bare"):
                turn(proposal, evaluation)
            if turn == self._to_journal:
                size = self._journal.path.stat().st_size
                self._size, self._grown = size, size - self._size

    def _to_journal(self, proposal: Proposal, evaluation: Evaluation) -> None:
        self._journal.ask(proposal)
        self._journal.tell(proposal.number, evaluation)

    def _to_bare(self, proposal: Proposal, evaluation: Evaluation) -> None:
        self._bare.write(b"x" * self._grown)
        os.fsync(self._bare.fileno())


@contextmanager
def recorder(parent: Path) -> Iterator[Recorder]:
    with (
        scratch(parent) as folder,
        Journal(folder / "journal.jl") as journal,
        (folder / "bare").open("ab", buffering=0) as bare,
    ):
        yield Recorder(journal, bare)


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """Yield a folder on the disk of `parent` that vanishes: an fsync costs what it costs where studies lie."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".overhead-", dir=parent) as folder:
        yield Path(folder)


def summary_of_candidates(clocks: Sequence[Clock]) -> dict[str, Any]:
    """Return median seconds by phase, and the median of each candidate's ratio to the limit beside it."""
    seconds = {phase: np.concatenate([clock[phase] for clock in clocks]) for phase in clocks[0]}
    medians = {phase: float(np.median(seconds[phase])) for phase in PHASES}
    return {
        "candidates": len(seconds["ask"]),
        "seconds": {**medians, "total": float(np.median(sum(seconds[phase] for phase in PHASES)))},
        "floor_seconds": float(np.median(seconds["copy"])),
        "merge_to_floor": float(np.median(seconds["merge"] / seconds["copy"])),
        "journal_to_bare_fsync": float(np.median(seconds["journal"] / seconds["bare"])),
    }


# -- part 2 ------------------------------------------------------------------------------------------------------------


def measure_drivers(switches: Switches, folder: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return the summary of each driver, and its milliseconds per trial in the course of the search, `(trials,)`."""
    found: dict[str, Any] = {}
    course: dict[str, Floats] = {}
    for name, settings in DRIVERS.items():
        say(f"driver {name}")
        trials = SMOKE_TRIALS if switches.smoke else TRIALS
        runs = [time_driver(settings, seed, trials, folder) for seed in switches.seeds]
        found[name] = summary_of_driver(runs)
        course[name] = np.mean([1e3 * whole_cost(run) for run in runs], axis=0)
    return found, course


def time_driver(settings: Mapping[str, Any], seed: int, trials: int, folder: Path) -> Clock:
    """Return the seconds of each trial's ask, tell, journal and bare write."""
    hole = {"float": [0, 1], "init": 0.3, "per": ["expert", f"block/{GENES // 4}"]}
    template = {
        "merge": {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": hole, "lambda": 1.0}}
    }
    space = SearchSpace(template, experts=["a", "b", "c", "d"])
    driver = search.make(settings, space, ("one/score", "two/score"), seed)
    clock: Clock = defaultdict(list)
    with recorder(folder) as made:
        for _ in range(trials):
            with timed(clock, "ask"):
                proposal = driver.ask()
            assert proposal is not None  # all that was asked has been told
            assert proposal.genome is not None  # the driver's proposals are genomes
            evaluation = free(proposal.genome)
            made.record(clock, proposal, evaluation)
            with timed(clock, "tell"):
                driver.tell(proposal, evaluation)
    return clock


def free(genome: Genome) -> Evaluation:
    """Return scores of two objectives in conflict, nearness to 1/4 and to 3/4, alike for all examples."""
    means = {"one/score": -np.mean((genome - 0.25) ** 2), "two/score": -np.mean((genome - 0.75) ** 2)}
    return Evaluation(scores={name: np.full(EXAMPLES, mean, np.float32) for name, mean in means.items()})


def whole_cost(clock: Clock) -> Floats:
    """Return the seconds of each trial that are no evaluation, the disk's included, `(trials,)`."""
    whole: Floats = np.array([clock["ask"], clock["tell"], clock["journal"]]).sum(axis=0)
    return whole


def summary_of_driver(runs: Sequence[Clock]) -> dict[str, Any]:
    """Return mean milliseconds by step; a generation's work falls on one trial of many, so medians would hide it."""
    whole = np.array([whole_cost(run) for run in runs])
    last = max(whole.shape[1] // 10, 1)
    steps = {step: 1e3 * float(np.mean([run[step] for run in runs])) for step in ("ask", "tell", "journal", "bare")}
    total = sum(steps[step] for step in ("ask", "tell", "journal"))
    own = total - steps["bare"]
    return {
        "trials": whole.shape[1],
        "ms": {**steps, "sum": total, "own": own},
        "ms_99th_percentile": 1e3 * float(np.quantile(whole, 0.99)),
        "ms_last_tenth": 1e3 * float(whole[:, -last:].mean()),
        "journal_to_bare_fsync": float(np.median([np.divide(run["journal"], run["bare"]) for run in runs])),
        "within_target": own < TARGET_MS,
    }


# -- what is shown -----------------------------------------------------------------------------------------------------


def tables(candidates: Mapping[str, Any], drivers: Mapping[str, Any]) -> str:
    trials = next(iter(drivers.values()))["trials"]
    columns = ["ms per candidate (median)", *PHASES, "total", "merge / floor", "journal / bare fsync"]
    rows = [
        [
            name,
            *(f"{1e3 * found['seconds'][phase]:.2f}" for phase in (*PHASES, "total")),
            f"{found['merge_to_floor']:.1f}x",
            f"{found['journal_to_bare_fsync']:.1f}x",
        ]
        for name, found in candidates.items()
    ]
    steps = ("ask", "tell", "journal", "sum")
    headings = [*steps, "99th percentile", "last tenth", "bare fsync", "sum - fsync", f"under {TARGET_MS:g}"]
    driver_rows = [
        [
            name,
            *(f"{found['ms'][step]:.2f}" for step in steps),
            f"{found['ms_99th_percentile']:.2f}",
            f"{found['ms_last_tenth']:.2f}",
            f"{found['ms']['bare']:.2f}",
            f"{found['ms']['own']:.2f}",
            "yes" if found["within_target"] else "no",
        ]
        for name, found in drivers.items()
    ]
    return (
        f"{table(columns, rows)}\n\n"
        "The floor is copying (K + 2)·n·b bytes with one thread, timed beside each candidate; its pages stay in cache "
        "where the model is tiny.\n\n"
        f"{table([f'ms per trial (mean of {trials:,}), {GENES:,} genes', *headings], driver_rows)}"
    )


def draw(candidates: Mapping[str, Any], course: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(candidates)
    start = np.zeros(len(names))
    for phase, colour in zip(PHASES, ("#56B4E9", "#CC79A7", "#D55E00", "#0072B2", "#009E73", "#E69F00"), strict=True):
        share = np.array([100 * found["seconds"][phase] / found["seconds"]["total"] for found in candidates.values()])
        left.barh(names, share, left=start, label=phase, color=colour)
        start = start + share
    left.invert_yaxis()
    left.set_xlabel("share of a candidate's seconds (%)")
    left.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    for (name, cost), colour in zip(course.items(), ("#0072B2", "#D55E00", "#009E73"), strict=True):
        width = max(len(cost) // 50, 1)
        smooth = cost[: len(cost) // width * width].reshape(-1, width).mean(axis=1)
        right.plot(np.arange(1, len(smooth) + 1) * width, smooth, label=name, color=colour)
    right.axhline(TARGET_MS, color="#6b6b6b", linestyle="--", linewidth=1)
    right.set_ylim(bottom=0)
    right.set_xlabel("trials")
    right.set_ylabel("ask + tell + journal (ms per trial)")
    right.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main("overhead", __doc__, measure)
