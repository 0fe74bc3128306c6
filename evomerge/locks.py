"""Locks: files that one process at a time holds, which name it. A lock ends with its process, however that ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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


@contextmanager
def single_flight(made: Path) -> Iterator[None]:
    """Let one process of this machine at a time make the file `made`; the others wait, and should then look whether it is there.

    Its lock is a file beside it while it is made. Where files cannot be locked, all make it.
    """
    path = made.with_name(f".{made.name}.lock")
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # a process that waits for it, or comes later, finds the file made


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
