"""Costs: the seconds of each evaluation, in `costs.jl` beside the journal, whose bytes must not depend on the clock."""

import json
import os
from collections import defaultdict
from pathlib import Path

from evomerge.trial import Evaluation, Proposal

_NAME = "costs.jl"


def append(folder: Path, proposal: Proposal, evaluation: Evaluation) -> None:
    """Append one evaluation of the study in `folder`, on a new line even if the last line is torn."""
    line = {"number": proposal.number, "split": proposal.split, "seconds": dict(evaluation.seconds)}
    with (folder / _NAME).open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")


def totals(folder: Path) -> tuple[dict[str, float], int]:
    """Return the seconds by `split: phase`, and the number of damaged lines, which are skipped."""
    path, total = folder / _NAME, defaultdict[str, float](float)
    damaged = 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            seconds = {f"{entry['split']}: {kind}": float(value) for kind, value in entry["seconds"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged += 1
            continue
        for phase, value in seconds.items():
            total[phase] += value
    return dict(total), damaged
