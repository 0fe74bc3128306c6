"""view: serves the page of some studies until Ctrl-C."""

from collections.abc import Sequence
from pathlib import Path

from evomerge import files
from evomerge.cli.console import new_console, say
from evomerge.errors import StudyError
from evomerge.view import frozen
from evomerge.view.server import Server, studies

_RUNS = Path("runs")


def view(folders: Sequence[Path], port: int) -> None:
    """Serve the page of the studies in `folders`, or in their subfolders. Raises `StudyError` where there is none."""
    for folder in folders or [_RUNS]:
        _studies(folder)
    console = new_console()
    try:
        server = Server(folders or [_RUNS], port)
    except OSError as error:
        raise StudyError(f"port {port}: {error.strerror}; type `--port 0` for a free one") from None
    with server:
        say(console, f"{len(server.sources)} {'study' if len(server.sources) == 1 else 'studies'}: {server.url}")
        say(console, f"token for exports: {server.token}")
        say(console, "Ctrl-C ends it; the searches go on")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say(console, "ended")


def save(folders: Sequence[Path], file: Path) -> None:
    """Write the page of one study into `file`. Raises `StudyError` for several studies, or none."""
    found = [study for folder in folders or [_RUNS] for study in _studies(folder)]
    if len(found) != 1:
        raise StudyError(f"--save writes the page of one study, got {len(found)}; name its directory")
    files.write(file, frozen.save(found[0]))
    say(new_console(), f"page: {file}")


def _studies(folder: Path) -> list[Path]:
    """Return the studies in a folder. Raises `StudyError` for none."""
    found = studies(folder)
    if not found:
        raise StudyError(
            f"{folder}: no study here; expected a study's directory, or a folder of some, such as `evomerge view runs`"
        )
    return found
