"""A search whose workers, nodes and process are killed at random, beside the same search without faults: do they end alike?

Rounds of a search over the embedded digits zoo run on a Ray cluster of tiny nodes on this machine. At times drawn from the seed, a
worker, a node, or the process of the search itself is killed with SIGKILL; a node comes back later, the search is started again as a
user would. After each round its records are compared with those of a search in one process that nothing disturbed.

    python experiments/benchmarks/soak.py [--minutes N] [--smoke] [--seeds N] [--json] [--out DIR]
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from matplotlib.figure import Figure

from evomerge import journal, zoo
from evomerge.errors import StudyError
from evomerge.settings import StudySettings
from evomerge.study import Study

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where `shared` is
from shared.harness import Findings, Switches, main, say, table

STUDY: dict[str, Any] = {
    "name": "soak",
    "pool": {"zoo": "digits"},
    "space": "task_arithmetic_per_block",
    "tasks": {"turned": {}, "shifted": {}},
}
DRIVERS: tuple[dict[str, Any], ...] = (
    {"kind": "nsga2", "population": 16},
    {"kind": "random"},
    {"kind": "cma"},
)  # in turn, a round each
EVALUATIONS, SMOKE_EVALUATIONS = 200, 24
NODES = 2  # of one CPU each, beside the head, which has none
WORKERS = {"min": 1, "max": NODES, "labels": {"kind": "work"}}
KINDS = {"worker": 0.5, "node": 0.2, "search": 0.3}  # what is killed, and how often
GAP, SMOKE_GAP = 20.0, 1.0  # mean seconds between two kills, while a search evaluates
AWAY = 10.0  # mean seconds until a killed node is back
LATEST = 600.0  # seconds in which a search that nothing disturbs must record something
COLOURS = {"worker": "#0072B2", "node": "#E69F00", "search": "#D55E00"}


@dataclass
class Round:
    """One search, from its first start to its end."""

    driver: str
    faults: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, str]] = field(default_factory=list)
    """Seconds from the beginning, and what was killed."""
    course: list[tuple[float, int]] = field(default_factory=list)
    """Seconds from the beginning, and how many results were recorded."""
    ends: int = 0
    """How often the search ended by itself without being done, as where the node that it was connected through was killed."""
    seconds: float = 0.0
    lost: int = 0
    twice: int = 0
    same: Mapping[str, bool] = field(default_factory=dict)


def settings(seed: int, driver: Mapping[str, Any], evaluations: int, workers: Any) -> StudySettings:
    given = {**STUDY, "driver": dict(driver), "evaluations": evaluations, "seed": seed, "workers": workers}
    return StudySettings.parse(given, "soak", Path())


def measure(switches: Switches) -> Findings:
    zoo.find_or_build("digits", progress=lambda done, doing: say(f"{done:4.0%} {doing}"))
    evaluations = SMOKE_EVALUATIONS if switches.smoke else EVALUATIONS
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder, Nodes() as nodes:
        due = time.monotonic() + 60 * switches.minutes
        while not rounds or (time.monotonic() < due and not switches.smoke):
            number = len(rounds)
            driver = DRIVERS[number % len(DRIVERS)]
            seed = switches.seeds[number % len(switches.seeds)] * 1000 + number
            one = disturbed(Path(folder, f"{number}"), seed, driver, evaluations, nodes, smoke=switches.smoke)
            compare(one, Path(folder, f"{number}"), Path(folder, f"{number}-calm"), seed, driver, evaluations)
            rounds.append(one)
            say(
                f"round {number}, {one.driver}: {dict(one.faults)} in {one.seconds:.0f} s; lost {one.lost}, twice {one.twice}, {one.same}"
            )
    if not all(one.lost == one.twice == 0 and all(one.same.values()) for one in rounds):
        raise StudyError(f"a search that was disturbed ended otherwise than one that was not: {rounds}")
    figures = {
        "rounds": len(rounds),
        "evaluations": evaluations * len(rounds),
        "minutes": sum(one.seconds for one in rounds) / 60,
        "faults": dict(sum((one.faults for one in rounds), Counter[str]())),
        "ended_by_itself": sum(one.ends for one in rounds),
        "lost": sum(one.lost for one in rounds),
        "twice": sum(one.twice for one in rounds),
        "as_undisturbed": {name: sum(one.same[name] for one in rounds) for name in rounds[0].same},
        "by_driver": {
            name: dict(sum((one.faults for one in rounds if one.driver == name), Counter[str]()))
            for name in dict.fromkeys(one.driver for one in rounds)
        },
    }
    return Findings(figures, tables(rounds, evaluations), draw(rounds))


def disturbed(
    folder: Path, seed: int, driver: Mapping[str, Any], evaluations: int, nodes: "Nodes", *, smoke: bool
) -> Round:
    """Search to the end while things are killed at times drawn from the seed, and start the search again where it died."""
    draws = np.random.default_rng([seed, 1])
    one, start = Round(driver["kind"]), time.monotonic()
    rest = [*KINDS] if smoke else None  # a smoke run kills one of each
    path = folder / "journal.jl"
    given = json.dumps({"seed": seed, "driver": driver, "evaluations": evaluations, "address": nodes.address})
    process: subprocess.Popen[bytes] | None = None
    recorded, changed, strike = 0, start, None
    try:
        while True:
            now = time.monotonic()
            nodes.mend(now)
            if process is None:
                process = subprocess.Popen([sys.executable, __file__, "--search", folder, given], env=nodes.environment)  # noqa: S603  # this script
                strike = None
            elif (code := process.poll()) is not None:
                if code == 0:
                    break
                process = None
                one.ends += code != -signal.SIGKILL
                continue
            before, recorded = recorded, len(path.read_bytes().splitlines()) if path.exists() else 0
            if recorded != before:
                one.course.append((now - start, recorded))
                changed = now
                if strike is None:  # from its first new record on, the search evaluates
                    strike = now + draws.exponential(SMOKE_GAP if smoke else GAP)
            elif now - changed > LATEST:
                raise StudyError(f"nothing was recorded for {LATEST:g} seconds, after {one.times[-3:]}")
            if strike is not None and now >= strike and rest != []:
                what = rest.pop() if rest else str(draws.choice([*KINDS], p=[*KINDS.values()]))
                if nodes.kill(what, process, int(draws.integers(1 << 30)), now + draws.exponential(AWAY)):
                    one.faults[what] += 1
                    one.times.append((now - start, what))
                strike = now + draws.exponential(SMOKE_GAP if smoke else GAP)
            time.sleep(0.05)
    finally:
        if process is not None:
            process.kill()
            process.wait()
    one.seconds = time.monotonic() - start
    return one


def compare(one: Round, folder: Path, calm: Path, seed: int, driver: Mapping[str, Any], evaluations: int) -> None:
    """Search again in this process, and note what differs."""
    undisturbed = Study.create(calm, settings(seed, driver, evaluations, 1))
    undisturbed.run(progress=False)
    study = Study.open(folder)
    asked: Counter[int] = Counter()
    told: Counter[int] = Counter()
    for proposal, evaluation in journal.events(study.journal_path):
        (asked if evaluation is None else told)[proposal.number] += 1
    costs = [json.loads(line) for line in (folder / "costs.jl").read_text().splitlines()]
    timed = Counter(line["number"] for line in costs if "number" in line)
    one.lost = sum(told[number] == 0 for number in range(evaluations))
    one.twice = sum(count > 1 for counts in (asked, told, timed) for count in counts.values())
    one.same = {
        "digest": study.digest() == undisturbed.digest(),
        "journal": journal_digest(study) == journal_digest(undisturbed),
        "front": front_digest(study) == front_digest(undisturbed),
    }


def journal_digest(study: Study) -> str:
    """Return the sha256 of the journal's lines, sorted: with several workers results are recorded as they arrive."""
    return hashlib.sha256(b"".join(sorted(study.journal_path.read_bytes().splitlines(keepends=True)))).hexdigest()


def front_digest(study: Study) -> str:
    return hashlib.sha256(study.front().to_csv().encode()).hexdigest()


class Nodes:
    """A Ray cluster on this machine, and what is killed of it."""

    def __init__(self) -> None:
        token = hashlib.sha256(os.urandom(32)).hexdigest()
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        self._options = {"include_dashboard": False, "object_store_memory": 80 << 20}
        head = {**self._options, "num_cpus": 0, "node_ip_address": "127.0.0.2"}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.environment = {**os.environ, "RAY_ADDRESS": self.address}
        self._there: list[Any] = []
        self._away: list[float] = []  # when nodes come back
        self._made = 0
        for _ in range(NODES):
            self._join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()

    def _join(self) -> None:
        self._made += 1
        address = f"127.0.{self._made // 200}.{self._made % 200 + 3}"
        labels = {"kind": "work"}
        self._there.append(
            self._cluster.add_node(**self._options, num_cpus=1, node_ip_address=address, labels=labels, wait=False)
        )

    def mend(self, now: float) -> None:
        """Bring back the nodes whose time has come."""
        due = [when for when in self._away if when <= now]
        self._away = [when for when in self._away if when > now]
        for _ in due:
            self._join()

    def kill(self, what: str, process: "subprocess.Popen[bytes]", draw: int, back: float) -> bool:
        """Kill something, the `draw`-th of its kind; a node is back at the time `back`. Return whether there was one."""
        if what == "search":
            process.kill()
            process.wait()
        elif what == "node":
            if not self._there:
                return False
            self._cluster.remove_node(self._there.pop(draw % len(self._there)), allow_graceful=False)
            self._away.append(back)
        else:
            workers = self._workers()
            if not workers:
                return False
            os.kill(workers[draw % len(workers)], signal.SIGKILL)
        return True

    def _workers(self) -> list[int]:
        """Return the processes of the search's workers on these nodes."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self._there}
        found = []
        for entry in Path("/proc").iterdir():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and (entry / "cmdline").read_bytes().startswith(b"ray::_PlacedWorker"):
                    found.append(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue
        return sorted(found)


def tables(rounds: list[Round], evaluations: int) -> str:
    rows = []
    for name in dict.fromkeys(one.driver for one in rounds):
        of = [one for one in rounds if one.driver == name]
        faults = sum((one.faults for one in of), Counter[str]())
        same = [sum(one.same[what] for one in of) for what in ("digest", "journal", "front")]
        cells = [len(of), evaluations * len(of), f"{sum(one.seconds for one in of) / 60:.1f}"]
        cells += [*(faults[kind] for kind in KINDS), sum(one.lost for one in of), sum(one.twice for one in of)]
        rows.append([name, *map(str, cells), *(f"{count} of {len(of)}" for count in same)])
    heads = [
        "driver",
        "searches",
        "candidates",
        "minutes",
        *(f"{name} killed" for name in ("workers", "nodes", "searches")),
        "lost",
        "twice",
    ]
    return (
        f"{table([*heads, 'same digest', 'same journal', 'same front'], rows)}\n\n"
        "Lost: candidates without a result. Twice: candidates that were asked, recorded or timed more than once. Same: as a search in one "
        "process that nothing disturbed; of the journal, its lines in sorted order."
    )


def draw(rounds: list[Round]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    offset = 0.0
    for one in rounds:
        axes.plot(
            [(offset + when) / 60 for when, _ in one.course], [count / 2 for _, count in one.course], color="#6b6b6b"
        )
        for kind, colour in COLOURS.items():
            for when in (when for when, what in one.times if what == kind):
                axes.axvline((offset + when) / 60, color=colour, linewidth=0.7, alpha=0.7)
        offset += one.seconds
    for kind, colour in COLOURS.items():
        axes.plot([], [], color=colour, label=f"a {kind} is killed")
    axes.set_xlabel("minutes")
    axes.set_ylabel("candidates of the search, asked and told")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def search(folder: Path, given: Mapping[str, Any]) -> None:
    """Run one search, or resume it, on the cluster: the process that is killed."""
    asked = settings(given["seed"], given["driver"], given["evaluations"], WORKERS)
    Study.create(folder, asked).run(progress=False, say=say)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        search(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main("soak", __doc__, measure, minutes=60)
