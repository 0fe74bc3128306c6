"""status: a study's search at a glance, as text, JSON or metrics."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console

from evomerge import files, status
from evomerge.costs import HOURS, INTERRUPTED, TERMINATED, WORKER_HOURS
from evomerge.errors import printable
from evomerge.progress import duration
from evomerge.status import NUMBERS, Status

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST_CAUSE = 80
_CAUSES = 5  # of failures, that are printed
_ENDED = {
    INTERRUPTED: "by Ctrl-C",
    TERMINATED: "by SIGTERM",
    HOURS: "as its hours are used",
    WORKER_HOURS: "as its worker-hours are used",
    None: "as the process was killed or its machine lost",
}


def show(folder: Path, watch: float | None, prometheus: Path | None, *, as_json: bool) -> None:
    """Print the status of the study in `folder`, and write it as metrics; every `watch` seconds until the search is done."""
    while True:
        found = status.read(folder)
        if prometheus is not None:
            files.write(prometheus, metrics(found))
        if as_json:
            sys.stdout.write(json.dumps(asdict(found), indent=None if watch else 2) + "\n")
            sys.stdout.flush()
        else:
            if watch and sys.stdout.isatty():
                Console().clear()
            typer.echo(printable("\n".join(lines(found))))
        if not watch or found.state == "done":
            return
        time.sleep(watch)


def lines(found: Status) -> Iterator[str]:
    """Yield the lines of a status."""
    yield f"{found.folder}: {_state(found)}"
    amount = f"{found.spent:g} of {found.budget} evaluations ({found.spent / found.budget:.0%})"
    yield f"  done      {amount}{'' if found.left is None else f', about {duration(found.left)} left'}"
    for name, (used, whole) in found.times.items():
        yield f"            {used:.3g} of {whole:g} {name.replace('_', '-')}"
    if found.queue is not None:
        yield f"  workers   {found.queue}"
    if found.failed:
        yield f"  failed    {found.failed} of {found.evaluated}"
        for error, count in found.failures[:_CAUSES]:
            yield f"            {count} x {error}"
    if found.seconds:
        idle = "" if found.idle is None else f"; the workers were idle for {found.idle:.0%} of it"
        yield f"  time      {duration(found.elapsed)}{idle}"
        yield f"            {', '.join(f'{part} {duration(seconds)}' for part, seconds in found.seconds.items())}"
    if found.best is not None:
        scores = ", ".join(f"{name} {score:.4g}" for name, score in found.best.scores.items())
        yield f"  best      #{found.best.number}: mean {found.best.mean:.4g} ({scores})"
    for name, (number, score) in found.bests.items() if found.best is None else ():
        yield f"  best      {name} {score:.4g} (#{number})"
    if found.hypervolume is not None and len(found.bests) > 1:
        yield f"  front     hypervolume {found.hypervolume:.4g} above the lowest scores of the first candidates"
    if len(found.curve) > 1:
        yield f"  gain      {_sparkline(found.curve)} best mean, from {found.curve[0]:.4g} to {found.curve[-1]:.4g}"
    if found.state == "stopped":
        more = f" --{found.ended.replace('_', '-')} MORE" if found.ended in (HOURS, WORKER_HOURS) else ""
        yield f"  to go on  evomerge resume {found.folder}{more}"


def metrics(found: Status) -> str:
    """Return the status in the text format of Prometheus, for the textfile collector of its node exporter.

    The collector refuses all files if two have one series, so the folder is a label too: studies may have one name.
    """
    labels = ",".join(
        f'{name}="{_escaped(value)}"'
        for name, value in (("study", found.study), ("folder", str(Path(found.folder).resolve())))
    )
    causes = Counter[str]()
    for error, count in found.failures:
        causes[cause(error)] += count
    gauges: list[tuple[str, str, dict[str, float]]] = [
        ("running", "Whether a process runs the search.", {"": float(found.state == "running")}),
        ("evaluations_done", "Used budget, in full evaluations.", {"": found.spent}),
        ("evaluations_budget", "Whole budget, in full evaluations.", {"": found.budget}),
        ("evaluations_failed", "Failed evaluations.", {"": found.failed}),
        ("failures", "Failed evaluations by cause.", _labelled("cause", causes)),
        ("workers", "Workers of the search that live now.", {"": found.workers}),
        ("elapsed_seconds", "Seconds of all runs of the search.", {"": found.elapsed}),
        ("seconds", "Seconds of all evaluations, and of the driver.", _labelled("part", found.seconds)),
        ("best_score", "Best mean search score.", _labelled("objective", {n: s for n, (_, s) in found.bests.items()})),
    ]
    optional = {
        "best_mean": (
            "Best mean of the search scores over objectives.",
            None if found.best is None else found.best.mean,
        ),
        "left_seconds": ("Seconds until a budget is used.", found.left),
        "queue_waiting": (
            "Candidates in the queue that no worker has.",
            None if found.queue is None else found.queue.waiting,
        ),
        "hypervolume": (
            "Hypervolume of the front on the search examples, above the lowest scores of the first candidates.",
            found.hypervolume,
        ),
        "idle_share": ("Share of the workers' time in which they evaluate nothing.", found.idle),
        "last_result_seconds": ("Seconds since the last result.", found.since),
    }
    gauges += [(name, about, {"": value}) for name, (about, value) in optional.items() if value is not None]
    text = []
    for name, about, values in gauges:
        text += [f"# HELP evomerge_{name} {about}", f"# TYPE evomerge_{name} gauge"]
        text += [f"evomerge_{name}{{{labels}{more}}} {value!r}" for more, value in values.items()]
    return "\n".join(text) + "\n"


def _labelled(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f',{name}="{_escaped(key)}"': value for key, value in values.items()}


def _escaped(label: str) -> str:
    return printable(label).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def cause(error: str) -> str:
    """Return what an error begins with, without its numbers: a label must not have a new value for each candidate."""
    return NUMBERS.sub("#", error.partition(":")[0])[:_LONGEST_CAUSE]


def _state(found: Status) -> str:
    since = "" if found.since is None else f"; last result {duration(found.since)} ago"
    if found.state == "running":
        unseen = "" if found.certain else ", as it says itself: it cannot be seen from this machine"
        return f"running, {found.process}{unseen}{since}"
    if found.state == "stopped" and found.process is not None:
        return f"stopped {_ENDED.get(found.ended, f'by {found.ended}')} ({found.process}{since})"
    return found.state


def _sparkline(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / ((high - low) or 1.0) * (len(_BARS) - 1))] for value in values)
