"""Atomic writing of files and folders, and the cache folder."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache() -> Path:
    """Return evomerge's cache folder: `$XDG_CACHE_HOME/evomerge`, by default `~/.cache/evomerge`."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "evomerge"  # XDG: ignore relative paths


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically and durably: temporary file, sync, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which replaces it if the block ends without an exception."""
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        new.replace(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync(folder.parent)


class Tail:
    """The lines that another process appends to a file; each is read once. Not to be confused with the journal, whose lines are checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0

    @property
    def replaced(self) -> bool:
        """Whether the file that was read is gone, or another one is in its place: what was read is then no longer so."""
        if self._inode is None:
            return False
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return True
        return now.st_ino != self._inode or now.st_size < self._offset

    def new(self, *, torn: bool = False) -> Iterator[bytes]:
        """Yield the complete lines since the last one that was yielded, each with its end; none of a file that does not exist.

        With `torn` a last line without an end is one too.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            self._inode = os.fstat(file.fileno()).st_ino
            file.seek(self._offset)
            for line in file:
                if not torn and not line.endswith(b"\n"):
                    return  # it is being written, or is torn
                self._offset += len(line)
                yield line


def sync(path: Path) -> None:
    """Sync the content of a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
