"""Locks: files that one process at a time holds, which name it. A lock ends with its process, however that ends."""

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TextIO


class TakenError(Exception):
    """The lock is held; the message names by which process."""


def take(path: Path) -> TextIO:
    """Lock the file at `path`, made where it is missing, and return it; closing it unlocks it. Raises `TakenError`."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with file:
            raise TakenError(_named(file)) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def holder(path: Path) -> str | None:
    """Return the process that holds the lock at `path`, None if it is free."""
    with suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _named(file)
    return None


def _named(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
