"""The command bench: every method on one pool, with its defaults and searched."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge import zoo as zoos
from evomerge.bench import Bench, Runner, page, summarise
from evomerge.bench.run import Stopped
from evomerge.cli.console import new_console, say
from evomerge.errors import StudyError
from evomerge.evaluate import Worker
from evomerge.progress import Progress, duration, step_printer
from evomerge.recipe import merge
from evomerge.trial import Split

_ZOO = "text"
"""What is benched where nothing is asked for."""


def bench(
    file: Path | None,
    out: Path | None,
    zoo: str | None,
    methods: str | None,
    budget: int | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bench what a file says, or a zoo; or only say what it would cost."""
    console = Console(stderr=True) if as_json else new_console()
    if file is not None and zoo is not None:
        raise StudyError(f"{file} and `--zoo {zoo}`: expected one of them; `zoo: {zoo}` stands in a file too")
    given: dict[str, Any] = {}
    if methods is not None:
        given["methods"] = [name.strip() for name in methods.split(",") if name.strip()]
    if budget is not None:
        given["budget"] = budget
    if file is None:
        name = zoo or _ZOO
        with Progress(f"zoo {name}", 100, console) as bar:
            zoos.find_or_build(name, progress=lambda done, step: bar(round(100 * done), note=step))
        asked = Bench.parse({"name": f"bench-{name}", "zoo": name, **given}, "bench", Path.cwd())
    else:
        asked = Bench.read(file, given)
    runner = Runner(asked, out or Path("runs") / asked.study.name, step_printer(console))
    for note in runner.parts.pool.notes:
        say(console, f"note: {note}")
    if dry_run:
        _price(runner, console, as_json=as_json)
        return
    try:
        runner.run(console)
    except Stopped:
        say(console, "stopped by SIGTERM: the same command goes on")
        sys.exit(os.EX_TEMPFAIL)
    summary = summarise(runner)
    page.write(summary, runner.folder)
    if as_json:
        sys.stdout.write(summary.model_dump_json(indent=2) + "\n")
        return
    console.print(_table(*page.cells(summary)))
    for line in (*page.missing(summary), "", *page.sentences(summary)):
        say(console, line)
    say(console, f"more: {runner.folder / 'bench.html'}, bench.md, bench.png, bench.json")


def _price(runner: Runner, console: Console, *, as_json: bool) -> None:
    """Print the rows, the evaluations and the time that is left, by those of the plain average."""
    left = runner.left
    worker, average = Worker(runner.parts.setup), merge("linear", list(runner.parts.pool.experts))
    worker.evaluate(average)  # the first one also reads the model and the data
    seconds: dict[Split, float] = {}
    for split in left:
        evaluation = worker.evaluate(average, split)
        if evaluation.error is not None:
            raise StudyError(f"the plain average cannot be scored: {evaluation.error}")
        seconds[split] = sum(evaluation.seconds.values())
    worker.close()
    total = sum(seconds[split] * number for split, number in left.items())
    if as_json:
        rows = [{"name": row.name, "kind": row.kind, "reason": row.reason} for row in runner.rows]
        json.dump({"rows": rows, "evaluations": left, "seconds": total}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for row in runner.rows:
        say(console, f"{row.name}: {row.reason or 'possible'}")
    possible = sum(row.reason is None for row in runner.rows)
    say(
        console,
        f"{len(runner.rows)} rows, {possible} of them possible; left to do: {left['search']} evaluations on the search examples "
        f"({duration(seconds['search'])} each) and {left['report']} on the unseen ones ({duration(seconds['report'])} each)",
    )
    say(
        console,
        f"about {duration(total)}, by the plain average; methods that decompose matrices or climb take longer; nothing was written",
    )


def _table(head: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
