"""Commands that look in on a search that runs unattended."""

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import StudyFolder

app = typer.Typer()
_PANEL = "Look in"


@app.command(rich_help_panel=_PANEL)
def status(
    folder: StudyFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Print it again and again, until the search is done.", min=0.1),
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it as metrics too, atomically, for Prometheus' textfile collector."),
    ] = None,
) -> None:
    """Say how far a search is, what failed, what takes the time and what is best so far. Only reads; at any time, on any machine."""
    from evomerge.cli import status

    status.show(folder, watch, prometheus, as_json=as_json)
