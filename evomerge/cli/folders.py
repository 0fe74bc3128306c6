"""Commands on a study's directory itself: trust, repair."""

from pathlib import Path

from evomerge import header, journal, trust
from evomerge.cli.console import new_console, say
from evomerge.parts import code
from evomerge.study import Study


def trust_code(folder: Path) -> None:
    """Agree to run the code of the study in `folder`, and print its files."""
    console, files = new_console(), code(header.read(folder).settings)
    trust.remove_compiled(files)
    trust.record(files)
    for file in files:
        say(console, f"trusted: {file}")
    if not files:
        say(console, f"{folder}: the study names no code of its own")


def repair(folder: Path) -> None:
    """Cut the damaged journals of the study in `folder` before the first line that is not valid."""
    console, study = new_console(), Study.open(folder)
    whole = True
    with study.lock(), study.lock("report.lock"):
        for name, retried in (("journal.jl", False), ("retried.jl", True), ("report.jl", True)):
            path = folder / name
            if (counts := journal.repair(path, retried=retried)) is not None:
                whole = False
                say(console, f"{path}: {counts[0]} lines kept, {counts[1]} cut; the whole file is {name}.damaged")
    say(console, "no journal is damaged" if whole else f"go on by `evomerge resume {folder}`")
