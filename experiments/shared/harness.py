"""What every experiment shares: its switches, the machine it ran on, the three files that a full run writes.

An experiment is a script that measures something through the public API and ends with `main`. Not to be
confused with a study, which searches: an experiment may run several.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evomerge import files
from evomerge.errors import EvomergeError, StudyError
from evomerge.parts import versions
from evomerge.report.figures import png

_RESULTS = Path("experiments") / "results"


@dataclass(frozen=True, slots=True)
class Switches:
    """How an experiment was asked to run. `smoke`: within 20 seconds, to show that it works, not what it finds."""

    smoke: bool
    seeds: tuple[int, ...]
    json: bool
    evaluations: int
    """Of each search; 0 for an experiment that does not ask for them."""
    parts: tuple[str, ...]
    """Those of its parts that it runs; nothing for an experiment without parts."""
    out: Path | None
    """Where the three files go; None for nowhere, as a smoke run's are not worth keeping unless asked for."""
    minutes: float = 0.0
    """How long it goes on; 0 for an experiment that does not ask for them."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an experiment found.

    `figures` is JSON data, `table` Markdown, `figure` what the PNG shows. `recipes` maps names to recipe ids,
    and `packages` names distributions whose versions matter, beside those that evomerge stands on.
    """

    figures: Mapping[str, Any]
    table: str
    figure: Figure
    recipes: Mapping[str, str] = field(default_factory=dict)
    packages: Sequence[str] = ()


def main(
    name: str,
    about: str,
    measure: Callable[[Switches], Findings],
    *,
    seeds: int = 1,
    evaluations: tuple[int, int] | None = None,
    parts: Sequence[str] = (),
    minutes: int | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Run an experiment as a script, and exit: 0 done, 2 for an error the user can fix.

    `measure` does the work. While it runs, what it (or a library) prints goes to standard error: standard
    output holds the figures as one JSON object with `--json`, and else the table. `seeds` is the default of `--seeds`,
    `evaluations` that of `--evaluations` and what it is with `--smoke`; None for an experiment without. `parts` are what
    `--only` chooses among. `minutes` is the default of `--minutes`, None for an experiment without.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    switches = _parse(name, about, seeds, evaluations, parts, minutes, arguments)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure(switches)
            record = _record(name, switches, arguments, found)
            if switches.out is not None:
                _write(switches.out, name, record, found)
                say(f"written: {switches.out / name}.json, .md and .png")
    except EvomergeError as error:
        say(f"{name}: {error}")
        sys.exit(2)
    sys.stdout.write(f"{json.dumps(record['figures'], allow_nan=False) if switches.json else found.table}\n")


def say(text: str) -> None:
    """Show progress, on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are set flush right, as numbers want it."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def machine() -> dict[str, Any]:
    """Return what timings depend on: processor, cores, memory (GiB), system, load of the last minute."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _parse(
    name: str,
    about: str,
    seeds: int,
    evaluations: tuple[int, int] | None,
    parts: Sequence[str],
    minutes: int | None,
    arguments: Sequence[str],
) -> Switches:
    parser = argparse.ArgumentParser(name, description=about.strip().partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a small version that ends within 20 seconds")
    shown = f"run seeds 0 to N-1 (default {seeds}, with --smoke 1)"
    parser.add_argument("--seeds", type=_positive, metavar="N", help=shown)
    if evaluations is not None:
        shown = f"of each search (default {evaluations[0]}, with --smoke {evaluations[1]})"
        parser.add_argument("--evaluations", type=_positive, metavar="N", help=shown)
    if parts:
        shown = f"run these alone, of {', '.join(parts)}"
        parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), metavar="PART", help=shown)
    if minutes is not None:
        shown = f"go on for so long (default {minutes})"
        parser.add_argument("--minutes", type=_positive, metavar="N", default=minutes, help=shown)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    kept = f"where {name}.json, {name}.md and {name}.png go (default {_RESULTS}/, with --smoke nowhere)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=kept)
    given = parser.parse_args(arguments)
    out = given.out if given.out is not None or given.smoke else _RESULTS
    if out is not None and out.exists() and not out.is_dir():
        parser.error(f"--out: {out} is a file; expected a directory")
    chosen = 0 if evaluations is None else given.evaluations or evaluations[given.smoke]
    only = tuple(part for part in parts if part in given.only)
    run = tuple(range(given.seeds or (1 if given.smoke else seeds)))
    return Switches(given.smoke, run, given.json, chosen, only, out, getattr(given, "minutes", 0))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"expected 1 or more, got {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _record(name: str, switches: Switches, arguments: Sequence[str], found: Findings) -> dict[str, Any]:
    known = {**versions(), **{package: metadata.version(package) for package in found.packages}}
    record = {
        "experiment": name,
        "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *arguments]),
        "smoke": switches.smoke,
        "seeds": list(switches.seeds),
        "figures": dict(found.figures),
        "recipes": dict(found.recipes),
        "versions": known,
        "machine": machine(),
    }
    try:
        json.dumps(record, allow_nan=False)
    except ValueError as error:
        msg = f"the figures are no JSON ({error}); expected finite numbers, texts, lists and mappings"
        raise StudyError(msg) from None
    return record


def _write(out: Path, name: str, record: Mapping[str, Any], found: Findings) -> None:
    """Write the three files, each atomically, the figures last: where they are, the other two are."""
    files.write(out / f"{name}.png", png(found.figure))
    made = f"Made by `{record['command']}` on {_in_words(record['machine'])}."
    files.write(out / f"{name}.md", f"# {name}\n\n{found.table}\n\n{made}\n")
    files.write(out / f"{name}.json", json.dumps(record, indent=2, allow_nan=False) + "\n")


def _in_words(known: Mapping[str, Any]) -> str:
    return f"{known['processor']}, {known['cores']} cores, {known['memory_gib']} GiB, {known['system']}"


def _processor() -> str:
    """Return the processor's name; Linux tells it only in /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
