"""Commands that look in on a search that runs unattended, and on the machine that is to run it."""

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import Json, StudyFolder

app = typer.Typer()
_PANEL = "Look in"


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge status runs/digits --watch 10")
def status(
    folder: StudyFolder,
    as_json: Json = False,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Print it again and again, until the search is done.", min=0.1),
    ] = None,
    prometheus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.prom", help="Write it as metrics too, atomically, for Prometheus' textfile collector."
        ),
    ] = None,
) -> None:
    """Say how far a search is, what failed, what takes the time and what is best so far. Only reads; at any time, on any machine."""
    from evomerge.cli import status

    status.show(folder, watch, prometheus, as_json=as_json)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge view runs")
def view(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR...]", help="Study directories, or folders of some. By default runs.", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine; 0 takes a free one.", min=0, max=65535)] = 8040,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the page of one study as one file, as report.html, and stop."),
    ] = None,
) -> None:
    """Show searches in a browser on this machine, while they run: front, recipes, progress, genes, populations, preferences.

    It only reads. A candidate can be exported from the page with the token that this command prints.
    """
    from evomerge.cli import viewing

    if save is not None:
        viewing.save(folders or [], save)
        return
    viewing.view(folders or [], port)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge doctor study.yaml --ray")
def doctor(
    what: Annotated[
        Path | None, typer.Argument(help="A study's YAML, or its directory.", metavar="[DIR | STUDY.yaml]")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Start Ray too, or connect to RAY_ADDRESS. Takes seconds.")
    ] = False,
) -> None:
    """Check this machine before a long search: versions, cores, memory, disks, limits. Exits with 2 where there is a problem."""
    from evomerge.cli import doctor

    if not doctor.print_checks(what, ray=ray):
        raise typer.Exit(2)
