"""The command `evomerge`: its commands in the order of its help."""

import time
from typing import Annotated

import typer

from evomerge.cli.commands import lists, models, searches, watching

STARTED = time.monotonic()
app = typer.Typer(
    help="Search for the recipe by which fine-tuned models that share a base merge into one, or into a whole front.",
    epilog="Exit codes: 0 done, 2 an error you can fix (the message says what to type), 75 stopped by SIGTERM or a budget of time, "
    "and more can be done by `evomerge resume`, 130 interrupted by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (searches, watching, models, lists):
    app.add_typer(part.app)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"evomerge {version('evomerge')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""
