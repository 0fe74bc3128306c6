"""The console that commands print to."""

import sys

from rich.console import Console

from evomerge.errors import printable


def new_console() -> Console:
    """Return the console of a command's output: as wide as the terminal; when piped, nothing is wrapped."""
    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)


def say(console: Console, line: str) -> None:
    """Print a line without markup and without wrapping it. Names and texts in it may come from others."""
    console.print(printable(line), markup=False, soft_wrap=True)
