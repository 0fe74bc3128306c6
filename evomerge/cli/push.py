"""The command that sends a checkpoint to the hub: push."""

import sys
from pathlib import Path

import typer
from rich.table import Table

from evomerge import strict_yaml
from evomerge.checkpoints import hub
from evomerge.checkpoints.hub.push import contents
from evomerge.checkpoints.hub.push import push as send
from evomerge.cli.console import new_console, say
from evomerge.errors import CheckpointError


def push(folder: Path, repository: str, *, private: bool, yes: bool, dry_run: bool) -> None:
    """Show what would be sent, ask, and send it."""
    console = new_console()
    model = hub.hub_id(f"hf://{repository.removeprefix('hf://')}")
    if model is None or "@" in repository:
        raise CheckpointError(f"{repository!r}: expected the name of a model on the hub, such as `org/name`")
    files = contents(folder)
    table = Table("file", "size", box=None)
    for name, count in files.items():
        table.add_row(name, hub.size(count))
    console.print(table)
    place = f"{hub.address(model)} ({'private, where it is new' if private else 'public, where it is new'})"
    say(console, f"{len(files)} files, {hub.size(sum(files.values()))}, from {folder} to {place}")
    if folders := _local_folders(folder):
        say(console, f"note: recipe.yaml, which is sent too, names folders of this machine: {', '.join(folders)}")
    if dry_run:
        say(console, "nothing was sent")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise CheckpointError(
                "push: the input is no terminal, so the question cannot be asked; type the same command with `--yes`, or `--dry-run`"
            )
        typer.confirm("Send them?", abort=True)
    say(console, f"pushed: {send(folder, model, private=private)}")


def _local_folders(folder: Path) -> list[str]:
    """Return the models of an export's recipe that are folders, not names of the hub."""
    path = folder / "recipe.yaml"
    pool = strict_yaml.read(path).get("pool", {}) if path.is_file() else {}
    return [str(model) for model in (pool.get("base"), *pool.get("experts", {}).values()) if str(model).startswith("/")]
