"""Exports that the page started: each is the command that the page shows, run by itself."""

import subprocess
import sys
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from evomerge.errors import StudyError
from evomerge.view.candidate import export_folder

_LINES = 40


class _Export:
    """One export, which runs or has ended."""

    def __init__(self, folder: Path, number: int) -> None:
        self.out = export_folder(folder, number)
        self.lines: list[str] = []
        command = [
            sys.executable,
            "-m",
            "evomerge",
            "pick",
            str(folder),
            "--candidate",
            str(number),
            "-o",
            str(self.out),
        ]
        self.process = subprocess.Popen(  # noqa: S603  # no shell reads it: a folder of ours and a number
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines = [*self.lines, line.rstrip("\n")][-_LINES:]
        self.process.wait()


class Exports:
    """All exports of a server; one runs at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._exports: dict[tuple[Path, int], _Export] = {}

    def start(self, folder: Path, number: int) -> dict[str, Any]:
        """Start to export a candidate, and return its state. Raises `StudyError` while another export runs."""
        with self._lock:
            if any(one.process.poll() is None for one in self._exports.values()):
                raise StudyError("an export is running; wait until it has ended")
            self._exports[folder, number] = _Export(folder, number)
        return self.state(folder, number)

    def state(self, folder: Path, number: int) -> dict[str, Any]:
        """Return the state of an export: `none`, `running`, `done` or `failed`, its folder, and the last lines that it printed."""
        found = self._exports.get((folder, number))
        if found is None:
            return {"state": "none", "out": str(export_folder(folder, number)), "lines": []}
        code = found.process.poll()
        state = "running" if code is None else "failed" if code else "done"
        return {"state": state, "out": str(found.out), "lines": found.lines}
