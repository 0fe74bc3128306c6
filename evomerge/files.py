"""Files that appear whole or not at all, and where evomerge keeps what it can make again."""

import os
import tempfile
from pathlib import Path


def cache() -> Path:
    """Return evomerge's cache folder: `$XDG_CACHE_HOME/evomerge`, by default `~/.cache/evomerge`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "evomerge"


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically and durably: temporary file, sync, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
