"""Presence: how many workers of a queue live and how many candidates wait, by the times of files. Needs no torch.

What lies in a queue's folder, and what the times mean, is in `evomerge.evaluate.folder_queue.folder`.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge.progress import duration


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is at a queue. Not to be confused with a study's status, of which it is a part."""

    folder: str
    waiting: int
    """Candidates that no worker has."""
    workers: int
    """Workers that gave a sign of life within the last lease."""
    alone: float | None
    """Seconds since the last worker ended or was taken for dead, or since the queue was made; None while there is a worker."""

    def __str__(self) -> str:
        """Return the state in words; without a worker also what to type."""
        waiting = f"{self.waiting} candidate{'s' * (self.waiting != 1)} wait{'s' * (self.waiting == 1)}"
        if self.alone is None:
            return f"{self.workers} at the queue {self.folder}; {waiting}"
        return f"{waiting}, and no worker has shown itself for {duration(self.alone)}: type `evomerge worker {self.folder}`"


def read(folder: Path, lease: float) -> Presence | None:
    """Return who is at the queue in `folder`, None where there is no queue. Only reads.

    The study's process touches the file `clock`, and workers theirs: the newest of these times is the present of the file system.
    """
    try:
        touched = [touched for name in listed(folder / "workers") if (touched := time_of(folder / "workers" / name))]
        waiting = len(listed(folder / "todo"))
        changed = (folder / "workers").stat().st_mtime  # when a worker came, ended or was removed as dead
    except (FileNotFoundError, NotADirectoryError):
        return None
    now = max([*touched, time_of(folder / "clock") or changed])
    workers = sum(one >= now - lease for one in touched)
    return Presence(str(folder), waiting, workers, None if workers else max(time.time() - changed, 0.0))


def time_of(path: Path) -> float | None:
    """Return when a file was touched, None if it is gone. It is opened, for which network file systems ask their server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, those of temporary files left out."""
    return [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
