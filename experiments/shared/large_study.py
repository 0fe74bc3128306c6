"""What a study of many trials costs: the driver's time, the journal's bytes, and what opening it again takes.

Beside them, the least that this needs: reading the file's lines as JSON, and genes in 8 bytes and scores in 4.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from shared.harness import say

from evomerge import journal, search
from evomerge.journal import Journal
from evomerge.space import SearchSpace
from evomerge.trial import Evaluation, Proposal

GENES, EXAMPLES = 1_000, 100
FEWER_GENES = 100
OBJECTIVES = ("near/log_likelihood", "far/log_likelihood")

REOPEN = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[2])
from shared import large_study
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
large_study.replay(sys.argv[1], json.loads(sys.argv[3]), int(sys.argv[4]))
seconds = time.process_time() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "before_mib": before / 1024, "peak_mib": after / 1024}))
"""


def space_of(genes: int) -> SearchSpace:
    hole = {"float": [0, 1], "init": 0.3, "per": ["expert", f"block/{genes // 4}"]}
    merge = {"method": "task_arithmetic", "inputs": "experts", "parameters": {"weight": hole, "lambda": 1.0}}
    return SearchSpace({"merge": merge}, experts=["a", "b", "c", "d"])


def new_driver(settings: Mapping[str, Any], genes: int) -> Any:
    return search.make(settings, space_of(genes), OBJECTIVES, 0)


def replay(path: str, settings: Mapping[str, Any], genes: int) -> None:
    """Read a journal through a fresh driver, as a study that is opened again does."""
    driver = new_driver(settings, genes)

    def match(recorded: Proposal, proposal: Proposal | None) -> Proposal:
        raise AssertionError(f"{proposal} is not {recorded}: it is another search")

    for proposal, evaluation in journal.replay(Path(path), driver.ask, match):
        if evaluation is not None:
            driver.tell(proposal, evaluation)


def large(trials: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield the name of each case, and a function that returns what its study costs: `trials` of many genes, and ten times as many of fewer."""
    cases: dict[str, tuple[dict[str, Any], int, int]] = {
        "CMA-ES (separable)": ({"kind": "cma"}, trials, GENES),
        "NSGA-II": ({"kind": "nsga2", "population": 100}, trials, GENES),
        "NSGA-II, many trials": ({"kind": "nsga2", "population": 100}, 10 * trials, FEWER_GENES),
    }
    for name, (settings, count, genes) in cases.items():
        yield name, partial(study, name.partition(",")[0], settings, count, genes)


def study(name: str, settings: Mapping[str, Any], trials: int, genes: int) -> dict[str, Any]:
    """Return what a study of so many trials costs its driver and its journal."""
    say(f"driver: {name}, {trials} trials")
    driver = new_driver(settings, genes)
    with tempfile.TemporaryDirectory(prefix="large-") as folder:
        path = Path(folder) / "journal.jl"
        spent = 0.0
        with Journal(path) as record:
            for _ in range(trials):
                start = time.process_time()
                proposal = driver.ask()
                spent += time.process_time() - start
                means = [-np.mean((proposal.genome - centre) ** 2) for centre in (0.25, 0.75)]
                scores = {key: np.full(EXAMPLES, mean, np.float32) for key, mean in zip(OBJECTIVES, means, strict=True)}
                evaluation = Evaluation(scores)
                record.ask(proposal)
                record.tell(proposal.number, evaluation)
                start = time.process_time()
                driver.tell(proposal, evaluation)
                spent += time.process_time() - start
        start = time.process_time()
        with path.open("rb") as file:
            for line in file:
                json.loads(line[line.index(b"{") : line.rindex(b"}") + 1])
        plain = time.process_time() - start
        here = str(Path(__file__).resolve().parents[1])
        command = [sys.executable, "-c", REOPEN, str(path), here, json.dumps(settings), str(genes)]
        again = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603  # this program
        size = path.stat().st_size / trials
    return {
        "driver": name,
        "trials": trials,
        "genes": genes,
        "ms_per_candidate": 1e3 * spent / trials,
        "reopen_seconds": again["seconds"],
        "plain_seconds": plain,
        "reopen_ratio": again["seconds"] / plain,
        "memory_mib": again["peak_mib"] - again["before_mib"],
        "peak_mib": again["peak_mib"],
        "bytes_per_trial": size,
        "bytes_ratio": size / (genes * 8 + len(OBJECTIVES) * EXAMPLES * 4),
    }
