"""What many workers need: slots kept busy, and a driver, a journal and a memory that last.

Part 1, waiting: how long slots are idle by `in_flight`, by counting alone: proposals cost the driver nothing, and evaluations last
log-normal times of mean 1.

Part 2, fronts: the same times, and real drivers on problems whose front is known: time until 95 % of its hypervolume, and the idle
share until then, for waiting batches against points in flight.

Part 3, a real search: the embedded experts of digits on two workers, each kind of search once, and once more on one worker.

Part 4, a large study: the driver's CPU time for a candidate, the journal's bytes, and what it takes to open a journal of 10,000 trials
again, beside the least that this needs: reading the file's lines as JSON.

Part 5, kinds of drivers with few slots and with a thousand, once all of them have had work: the driver's CPU time for a candidate, and the
idle share of the slots where the driver takes no time.

Parts that `--only` leaves out stay as an earlier run found them. An interrupted run of parts 4 and 5 resumes with the same command: finished
rows are kept in `runs/scale/` until all are there.

    python experiments/benchmarks/scale.py [--smoke] [--seeds N] [--json] [--out DIR]
"""

import heapq
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import evomerge as em
from evomerge import costs, files, pareto, search, zoo
from evomerge.search.driver import Generational
from evomerge.space import Box, SearchSpace
from evomerge.trial import Evaluation, Metric, Proposal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table
from shared.large_study import EXAMPLES, GENES, OBJECTIVES, large, space_of

PARTS = ("waiting", "fronts", "real", "driver", "steady")
SIGMAS = (0.3, 1.0)  # of the logarithm of an evaluation's time
LAGS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # `in_flight` as a multiple of the slots
MANY_LAGS = (2.0, 4.0)  # of 1000 slots, which take long to simulate
SLOTS = (8, 64, 1000)
ROUNDS = 20  # evaluations for each slot, where idle shares are counted
SHARE = 0.95  # of the known hypervolume
FRONT_GENES, SLOPE_GENES = 6, 100
MOST = 3  # evaluations for each slot, and 300, at which a search that has not reached the share gives up
REAL = {"waiting": {}, "in flight": {"batch": 2, "in_flight": 4}}
REAL_EVALUATIONS = 60
TRIALS = 10_000
FEW_SLOTS, MANY_SLOTS = 16, 1000
STEADY = {FEW_SLOTS: (200, 400), MANY_SLOTS: (6000, 8000)}  # evaluations before what is counted, and in all
FEW_ALONE = {"TPE, 20 genes": "time grows with the evaluations before, by about 10 ms for 100, in Optuna's sampler"}
NEVER_IDLE = 4  # `in_flight` by slots at sigma 0.3

ROWS = Path("runs") / "scale"

Floats = NDArray[np.float64]


def measure(switches: Switches) -> Findings:
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "waiting": lambda: [row for sigma in SIGMAS for row in count(sigma, switches)],
        "fronts": lambda: fronts(switches),
        "real": lambda: real(switches),
        "driver": lambda: resumed("driver", large(60 if switches.smoke else TRIALS), switches),
        "steady": lambda: resumed("steady", steady(switches), switches),
    }
    earlier = Path() if switches.out is None else switches.out / "scale.json"
    found = json.loads(earlier.read_text())["figures"] if earlier.is_file() else {}
    rows = {part: parts[part]() if part in switches.parts else found.get(part, []) for part in PARTS}
    kept = [part for part in PARTS if rows[part] and part not in switches.parts]
    figures = {"share": SHARE, "kept": kept, **rows}
    for part in switches.parts:
        if not switches.smoke:
            shutil.rmtree(ROWS / part, ignore_errors=True)  # another run measures anew
    return Findings(figures, tables(figures), draw(figures))


def resumed(
    part: str, cases: Iterable[tuple[str, Callable[[], dict[str, Any]]]], switches: Switches
) -> list[dict[str, Any]]:
    """Return the row of each of a part's named cases: kept rows of an interrupted run, and new ones, which are kept until all are there."""
    if switches.smoke:
        return [run() for _, run in cases]
    folder, rows = ROWS / part, []
    for name, run in cases:
        path = folder / f"{name}.json"
        if not path.is_file():
            files.write(path, json.dumps(run()))
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    return rows


# -- time --------------------------------------------------------------------------------------------------------------


def simulate(
    driver: Any,
    evaluate: Callable[[Proposal], Evaluation],
    slots: int,
    sigma: float,
    seed: int,
    most: int,
    done: Callable[[Evaluation], bool] = lambda evaluation: False,
    warm: int = 0,
) -> dict[str, Any]:
    """Run a search in simulated time: `slots` evaluations at a time, of log-normal times with mean 1 that depend on their number.

    It ends after `most` evaluations, or when `done`. Return the time, the idle share of the slots until then, the evaluations,
    whether it was done, and the driver's CPU time for a candidate: idle share and CPU time are those after `warm` evaluations.
    """
    running: list[tuple[float, int, Proposal]] = []
    now = busy = spent = 0.0
    asked = finished = 0
    reached = False
    before = (0.0, 0.0, 0.0, 0)
    while not reached:
        begun = time.process_time()
        while len(running) < slots and asked < most and (proposal := driver.ask()) is not None:
            takes = float(np.random.default_rng([seed, proposal.number]).lognormal(-(sigma**2) / 2, sigma))
            heapq.heappush(running, (now + takes, proposal.number, proposal))
            asked += 1
        spent += time.process_time() - begun
        if not running:
            break
        end, _, proposal = heapq.heappop(running)
        busy += (len(running) + 1) * (end - now)
        now, finished = end, finished + 1
        evaluation = evaluate(proposal)
        begun = time.process_time()
        driver.tell(proposal, evaluation)
        spent += time.process_time() - begun
        reached = done(evaluation)
        if finished == warm:
            before = (now, busy, spent, asked)
        if asked == most and len(running) < slots and not reached and most == finished + len(running):
            break  # from here on slots are idle because the budget is spent
    idle = max(0.0, 1 - (busy - before[1]) / (slots * (now - before[0])))
    ms = 1e3 * (spent - before[2]) / max(asked - before[3], 1)
    return {"time": now, "idle": idle, "evaluations": finished, "reached": reached, "ms_per_candidate": ms}


# -- part 1 ------------------------------------------------------------------------------------------------------------


class Counting:
    """A breeder whose generations have no meaning."""

    def __init__(self, in_flight: int, batch: int) -> None:
        self.in_flight = in_flight
        self._batch = batch

    def draw(self, pending: Floats | None = None) -> Floats:
        """Return a generation."""
        return np.full((self._batch, 1), 0.5)

    def learn(self, genomes: Floats, means: Floats, evaluations: Sequence[Evaluation]) -> None:
        """Learn nothing."""


def count(sigma: float, switches: Switches) -> list[dict[str, Any]]:
    """Return the idle share of slots by how many candidates may be in flight; None is for batches as large as the slots."""
    rows = []
    space, score = Box({"x": (0, 1)}), Evaluation.of({"y": 0.0})
    for slots in SLOTS[: 1 if switches.smoke else None]:
        for lag in (None, *(LAGS if slots <= 64 else MANY_LAGS)):
            driver = Generational(
                space, ["y"], Counting(1, slots) if lag is None else Counting(round(lag * slots), max(1, slots // 32))
            )
            say(f"waiting: {slots} slots, sigma {sigma}, in flight {lag}")
            found = simulate(
                driver, lambda proposal: score, slots, sigma, 0, (10 if switches.smoke else ROUNDS) * slots
            )
            rows.append({"slots": slots, "sigma": sigma, "lag": lag, "idle": found["idle"]})
    return rows


# -- part 2 ------------------------------------------------------------------------------------------------------------


class Spheres:
    """Two objectives in conflict, minus the mean of scaled squared distances to 1/4 and to 3/4, with their slopes.

    The front is the segment between the two, whatever the scales: with s the mean scale, it consists of (-s t², -s (1/2 - t)²).
    """

    def __init__(self, genes: int) -> None:
        scales = np.geomspace(0.2, 5, genes)
        self._scales = scales / scales.mean()
        self._genes = genes
        self.space = Box({f"x{i}": {"float": [0, 1], "init": 0.1} for i in range(genes)})
        self.reference = np.full(2, -0.25)
        along = np.linspace(0, 0.5, 20_001)
        self.volume = pareto.hypervolume(-np.stack([along**2, (0.5 - along) ** 2], axis=1), self.reference)

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation, with slopes where they are wanted."""
        assert proposal.genome is not None  # of a box
        away = proposal.genome - np.array([[0.25], [0.75]])
        means = -np.mean(self._scales * away**2, axis=1)
        evaluation = Evaluation.of(dict(zip(OBJECTIVES, means, strict=True)))
        if proposal.slopes is None:
            return evaluation
        slopes = dict(zip(OBJECTIVES, -2 * self._scales * away / self._genes, strict=True))
        return Evaluation(evaluation.scores, slopes=slopes)


def drivers(slots: int, *, slopes: bool) -> dict[str, dict[str, Any]]:
    """Return the ways to search: as by default, with batches as large as the slots, and with points in flight."""
    kind: dict[str, Any] = {"kind": "front", "tolerance": 0, "slopes": slopes}
    batch = max(2, slots // 8)
    return {
        "default batch": kind,
        "batch = slots": kind | {"batch": slots},
        "in flight": kind | {"batch": batch, "in_flight": 2 * slots},
    }


def fronts(switches: Switches) -> list[dict[str, Any]]:
    """Return time, idle share and evaluations until `SHARE` of the front, for each problem, number of slots and way to search."""
    rows = []
    for slots in SLOTS[: 1 if switches.smoke else 2]:  # for a thousand, a batch takes the driver seconds
        for slopes in (True,) if switches.smoke else (False, True):
            problem = Spheres(SLOPE_GENES if slopes else FRONT_GENES)
            metrics = {name: Metric("log_likelihood", high=0.0, slopes=True) for name in OBJECTIVES}
            for name, settings in drivers(slots, slopes=slopes).items():
                for sigma in SIGMAS[: 1 if switches.smoke or (slots == 64 and not slopes) else None]:
                    say(f"fronts: {slots} slots, slopes {slopes}, {name}, sigma {sigma}")
                    runs = [reach(problem, metrics, settings, slots, sigma, seed) for seed in switches.seeds]
                    mean = {key: float(np.mean([run[key] for run in runs])) for key in ("time", "idle", "evaluations")}
                    reached = sum(run["reached"] for run in runs)
                    where = {"slots": slots, "slopes": slopes, "search": name, "sigma": sigma}
                    rows.append({**where, **mean, "reached": reached, "of": len(runs)})
    return rows


def reach(
    problem: Spheres, metrics: Mapping[str, Metric], settings: Mapping[str, Any], slots: int, sigma: float, seed: int
) -> dict[str, Any]:
    driver = search.make(settings, problem.space, metrics, seed, {"near": 1, "far": 1})
    front = np.empty((0, 2))

    def done(evaluation: Evaluation) -> bool:
        nonlocal front
        front = np.concatenate([front, [evaluation.means(OBJECTIVES)]])
        front = front[pareto.nondominated(front)]
        return pareto.hypervolume(front, problem.reference) >= SHARE * problem.volume

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits whose points leave something undetermined
        return simulate(driver, problem.evaluate, slots, sigma, seed, 300 + MOST * slots, done)


# -- part 3 ------------------------------------------------------------------------------------------------------------


def real(switches: Switches) -> list[dict[str, Any]]:
    """Return wall clock, idle share and digest of searches over the embedded experts of digits."""
    zoo.find_or_build("digits", progress=lambda share, doing: say(f"{share:4.0%} {doing}"))
    rows = []
    budget = 16 if switches.smoke else REAL_EVALUATIONS
    for name, more in REAL.items():
        for workers in (1,) if switches.smoke else (1, 2):
            say(f"real: {name}, {workers} workers")
            with scratch() as folder:
                study = em.create_study(
                    folder / "run",
                    pool={"zoo": "digits"},
                    space="task_arithmetic",
                    tasks={"turned": {}, "shifted": {}},
                    driver={"kind": "front", "tolerance": 0, **more},
                    evaluations=budget,
                    workers=workers,
                )
                study.run(progress=False)
                [run], _ = costs.runs(folder / "run")
                first = min(end - work for _, end, work in run.finished)  # Ray starts before it
                wall = run.elapsed - first
                busy = sum(work for _, _, work in run.finished)
                front = study.front()
                rows.append(
                    {
                        "search": name,
                        "workers": workers,
                        "evaluations": len(run.finished),
                        "seconds": wall,
                        "driver_seconds": run.driver,
                        "idle": max(0.0, 1 - busy / (wall * workers)),
                        "digest": study.digest(),
                        "front": len(front),
                    }
                )
    return rows


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        yield Path(folder)


# -- part 5 ------------------------------------------------------------------------------------------------------------


class Tasks:
    """Tasks whose score is minus a squared distance to a point, and less by an amount of each example's; with slopes.

    Where candidates are `crossed`, it is the exponential of that.
    """

    def __init__(self, space: SearchSpace, tasks: int) -> None:
        self._crossed = bool(space.parents)
        rng = np.random.default_rng(0)
        genes = len(space.genes)
        self._best, self._scales = rng.uniform(0.2, 0.8, (tasks, genes)), rng.uniform(0.5, 2, (tasks, genes))
        self._examples = np.exp(0.3 * rng.standard_normal((tasks, EXAMPLES)))
        metric = (
            Metric("share", low=0.0, high=1.0) if self._crossed else Metric("log_likelihood", high=0.0, slopes=True)
        )
        self.metrics = {f"task{i}/{metric.name}": metric for i in range(tasks)}

    def evaluate(self, proposal: Proposal) -> Evaluation:
        """Return the evaluation, with slopes where they are wanted."""
        genome = np.zeros(self._best.shape[1]) if proposal.genome is None else proposal.genome  # None: an expert
        away = genome - self._best
        means = -np.mean(self._scales * away**2, axis=1)
        rows = (mean - row for mean, row in zip(means, self._examples, strict=True))
        rows = (np.exp(row) if self._crossed else row for row in rows)
        scores = {name: row.astype(np.float32) for name, row in zip(self.metrics, rows, strict=True)}
        if proposal.slopes is None:
            return Evaluation(scores)
        slopes = np.pad(
            -2 * self._scales * away / away.shape[1], ((0, 0), (0, 1))
        )  # the recipe's last number is `lambda`
        return Evaluation(scores, slopes=dict(zip(self.metrics, slopes, strict=True)))


def kinds(slots: int) -> dict[str, tuple[dict[str, Any], SearchSpace, int]]:
    """Return drivers by name: settings, space and number of tasks."""
    flying = NEVER_IDLE * slots
    front = {"kind": "front", "tolerance": 0, "in_flight": flying}
    parents = SearchSpace(
        {
            "merge": {
                "method": "slerp",
                "inputs": [{"member": "mother"}, {"member": "father"}],
                "parameters": {"t": {"float": [0, 1]}},
            }
        },
        experts=["a", "b", "c", "d"],
    )
    return {
        "front, 4 genes": (front, space_of(4), 2),
        "front, 20 genes": (front, space_of(20), 4),
        "front along slopes, 100 genes": (front | {"slopes": True}, space_of(100), 2),
        "NSGA-II, 1,000 genes": ({"kind": "nsga2", "population": slots}, space_of(GENES), 2),
        "CMA-ES, 1,000 genes": ({"kind": "cma", "population": slots}, space_of(GENES), 2),
        "TPE, 20 genes": ({"kind": "tpe"}, space_of(20), 2),
        "random, 1,000 genes": ({"kind": "random"}, space_of(GENES), 2),
        "gradient, 1,000 genes": ({"kind": "gradient", "in_flight": flying}, space_of(GENES), 2),
        "MAP-Elites": ({"kind": "map_elites"}, parents, 2),
        "niches": ({"kind": "niches"}, parents, 2),
    }


def steady(switches: Switches) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each driver with few and many slots, and a function that returns its row."""
    for slots, (warm, most) in {FEW_SLOTS: (60, 80)}.items() if switches.smoke else STEADY.items():
        for name in kinds(slots):
            if slots == FEW_SLOTS or name not in FEW_ALONE:
                yield f"{name}, {slots} slots", partial(busy, name, slots, warm, most)


def busy(name: str, slots: int, warm: int, most: int) -> dict[str, Any]:
    """Return a driver's CPU time for a candidate and the idle share of the slots, after as many evaluations as it takes to be busy."""
    say(f"steady: {slots} slots, {name}")
    settings, space, count = kinds(slots)[name]
    tasks, sizes = Tasks(space, count), dict.fromkeys((f"task{i}" for i in range(count)), EXAMPLES)
    driver = search.make(search.completed(settings, space), space, tasks.metrics, 0, sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits whose points leave something undetermined
        found = simulate(driver, tasks.evaluate, slots, SIGMAS[0], 0, most, warm=warm)
    shown = {key: found[key] for key in ("ms_per_candidate", "idle", "evaluations")}
    return {"driver": name, "slots": slots, "warm": warm, **shown}


# -- what is shown -----------------------------------------------------------------------------------------------------


def tables(figures: Mapping[str, Any]) -> str:
    waiting = figures["waiting"]
    lags = (None, *LAGS)
    idle = {(row["slots"], row["sigma"], row["lag"]): max(row["idle"], 0.0) for row in waiting}
    first = [
        [
            f"{slots} slots, sigma {sigma}",
            *(f"{idle[slots, sigma, lag]:.1%}" if (slots, sigma, lag) in idle else "" for lag in lags),
        ]
        for slots, sigma in dict.fromkeys((row["slots"], row["sigma"]) for row in waiting)
    ]
    second = [
        [
            f"{row['slots']} slots, {'slopes, ' + str(SLOPE_GENES) if row['slopes'] else 'surrogates, ' + str(FRONT_GENES)} genes",
            row["search"],
            f"{row['sigma']}",
            f"{row['time']:.1f}",
            f"{row['idle']:.0%}",
            f"{row['evaluations']:.0f}",
            f"{row['reached']} of {row['of']}",
        ]
        for row in figures["fronts"]
    ]
    third = [
        [
            row["search"],
            f"{row['workers']}",
            f"{row['seconds']:.1f}",
            f"{row['driver_seconds']:.1f}",
            f"{row['idle']:.0%}",
            row["digest"][:8],
        ]
        for row in figures["real"]
    ]
    fourth = [
        [
            f"{row['driver']}, {row['genes']:,} genes, {row['trials']:,} trials",
            f"{row['ms_per_candidate']:.2f}",
            f"{row['reopen_seconds']:.1f}",
            f"{row['reopen_ratio']:.1f}x",
            f"{row['peak_mib']:.0f}",
            f"{row['bytes_per_trial']:,.0f}",
            f"{row['bytes_ratio']:.1f}x",
        ]
        for row in figures["driver"]
    ]
    slots = list(dict.fromkeys(row["slots"] for row in figures["steady"]))
    by_kind = {(row["driver"], row["slots"]): row for row in figures["steady"]}
    fifth = [
        [
            name,
            *(
                f"{by_kind[name, few][key]:{form}}" if (name, few) in by_kind else ""
                for few in slots
                for key, form in (("ms_per_candidate", ".2f"), ("idle", ".1%"))
            ),
        ]
        for name in dict.fromkeys(row["driver"] for row in figures["steady"])
    ]
    sections = {
        "waiting": (
            (
                "Idle share of the slots, by `in_flight` as a multiple of the slots. Evaluations last log-normal times; candidates are drawn "
                "by 1/32 of the slots."
            ),
            table(["", "batches of the slots", *(f"{lag:g}x" for lag in LAGS)], first),
        ),
        "fronts": (
            f"Until {SHARE:.0%} of the hypervolume of a known front, in mean times of an evaluation; drivers take none.",
            table(["", "search", "sigma", "time", "idle", "evaluations", "reached"], second),
        ),
        "real": (
            f"The embedded experts of digits, {REAL_EVALUATIONS} evaluations by `front`. The machine was busy: seconds do not compare.",
            table(["search", "workers", "seconds", "driver's seconds", "idle", "digest"], third),
        ),
        "driver": (
            (
                f"Studies of {len(OBJECTIVES)} objectives of {EXAMPLES} examples. Ratios: to reading the journal's "
                "lines as JSON, and to genes in 8 bytes and scores in 4."
            ),
            table(
                [
                    "",
                    "driver's CPU ms a candidate",
                    "reopening, CPU seconds",
                    "to JSON",
                    "MiB then, libraries included",
                    "bytes a trial",
                    "to the least",
                ],
                fourth,
            ),
        ),
        "steady": (
            (
                "Once all slots have had work: the driver's CPU time for a candidate, and the idle share of the slots where it takes none. "
                f"`front` has {NEVER_IDLE} times as many candidates in flight as slots, and else what new studies have. Measured on "
                f"{' and '.join(f'evaluations {warm:,} to {most:,} with {count:,} slots' for count, (warm, most) in STEADY.items())}. "
                + " ".join(f"{name}, with few slots alone: its {why}." for name, why in FEW_ALONE.items())
            ),
            table(
                ["", *(f"{heading}, {few:,} slots" for few in slots for heading in ("CPU ms a candidate", "idle"))],
                fifth,
            ),
        ),
    }
    shown = ["\n\n".join(section) for part, section in sections.items() if figures[part]]
    if figures["kept"]:
        shown.append(f"Of an earlier run: {', '.join(figures['kept'])}.")
    return "\n\n".join(shown)


def draw(figures: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ("#0072B2", "#D55E00", "#009E73")
    for slots, colour in zip(SLOTS, colours, strict=True):
        for sigma, style in zip(SIGMAS, ("-", "--"), strict=True):
            rows = [row for row in figures["waiting"] if row["slots"] == slots and row["sigma"] == sigma and row["lag"]]
            if rows:
                label = f"{slots} slots, sigma {sigma}"
                left.plot(
                    [row["lag"] for row in rows], [100 * row["idle"] for row in rows], style, color=colour, label=label
                )
    left.set_xlabel("in_flight / slots")
    left.set_ylabel("idle share of the slots (%)")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    rows = figures["fronts"]
    names = list(dict.fromkeys(row["search"] for row in rows))
    groups = list(dict.fromkeys((row["slots"], row["slopes"], row["sigma"]) for row in rows))
    for place, (name, colour) in enumerate(zip(names, colours, strict=False)):
        found = {(row["slots"], row["slopes"], row["sigma"]): row["time"] for row in rows if row["search"] == name}
        times = [found.get(group, 0.0) for group in groups]
        right.barh(np.arange(len(groups)) + 0.27 * (place - 1), times, 0.25, label=name, color=colour)
    labels = [f"{slots}, {'slopes' if slopes else 'surrogates'}, {sigma}" for slots, slopes, sigma in groups]
    right.set_yticks(np.arange(len(groups)), labels)
    right.invert_yaxis()
    right.set_xlabel(f"time until {SHARE:.0%} of the hypervolume (mean evaluations)")
    right.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main("scale", __doc__, measure, parts=PARTS)
