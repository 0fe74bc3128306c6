"""Commands that list what there is, and build the embedded experts."""

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import Quiet, hide_progress

app = typer.Typer()
zoo_app = typer.Typer(help="The embedded experts: real models and data, built on this machine.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo", rich_help_panel="Lists")
cache_app = typer.Typer(help="What is kept on this machine, and can be made again.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel="Lists")
_PANEL = "Lists"


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge spaces task_arithmetic")
def spaces(
    name: Annotated[str | None, typer.Argument(help="Print this one's YAML.", show_default=False)] = None,
    from_method: Annotated[str | None, typer.Option(help="Print a space of all parameters of a merge method.")] = None,
) -> None:
    """List the shipped search spaces and the merge methods; or print a space to start your own from."""
    from evomerge.cli import listings

    listings.spaces(name, from_method)


@app.command(rich_help_panel=_PANEL, epilog="Example: evomerge tasks generation")
def tasks(
    kind: Annotated[str | None, typer.Argument(help="Print all keys of this kind.", show_default=False)] = None,
) -> None:
    """List the kinds of tasks; or print one's keys, defaults and an example."""
    from evomerge.cli import listings

    listings.task_kinds(kind)


@zoo_app.command("list", epilog="Example: evomerge zoo list")
def zoo_list() -> None:
    """List the embedded zoos, and whether they are built."""
    from evomerge.cli import listings

    listings.zoos()


@zoo_app.command("build", epilog="Example: evomerge zoo build digits")
def zoo_build(
    name: Annotated[str, typer.Argument(help="text, text4, digits or language.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed makes other experts.", min=0)] = 0,
    text: Annotated[Path | None, typer.Option(help="For `language`: a folder of German plain text.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Build a zoo from files that installed packages ship; it is kept in the cache folder."""
    hide_progress(quiet)
    from evomerge.cli import listings

    listings.build_zoo(name, seed, text=text, again=again)


@cache_app.command("list", epilog="Example: evomerge cache list")
def cache_list() -> None:
    """List prepared tables and statistics, and their size."""
    from evomerge.cli import statistics

    statistics.list_cache()


@cache_app.command("prune", epilog="Example: evomerge cache prune --keep 20GB")
def cache_prune(
    keep: Annotated[str, typer.Option(help="How much to keep: 20GB, 500MB, or 0.")] = "20GB",
) -> None:
    """Remove what has not been used for longest, until the cache has this size. What is in use stays."""
    from evomerge.cli import statistics

    statistics.prune_cache(keep)
