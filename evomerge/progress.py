"""Progress that a person can watch and a log file can hold: how much is done, how long it takes, when it ends."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from evomerge.report.wording import duration

_EVERY = 10.0  # seconds between two lines when nobody is watching
_AGAIN = 1.0  # seconds between two times that a text is found out


class Progress:
    """One line of progress: a live bar on a terminal, a line every ten seconds when piped."""

    def __init__(self, what: str, total: int, console: Console) -> None:
        """Show `what` until the block ends."""
        self._what, self._total, self._console = what, total, console
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._bar = Bar(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Say that `done` of `total` are done."""
        self._total = total or self._total
        self._bar.update(self._task, completed=done, total=self._total, note=note)
        now = time.monotonic()
        if self._first is None:
            self._first = done - 1
        if not self._console.is_terminal and (now - self._last > _EVERY or done == self._total):
            self._last = now
            rate = (now - self._start) / max(done - self._first, 1)
            left = rate * (self._total - done)
            end = "done" if done == self._total else f"{duration(left)} left"
            self._console.print(
                f"{self._what}: {done}/{self._total}, {duration(now - self._start)} elapsed, {end}{note and f', {note}'}"
            )


class Throttled:
    """A text that takes a while to find out: found out again at most once a second, and shown as it was until then."""

    def __init__(self, find: Callable[[], str]) -> None:
        """Ask `find` for the text."""
        self._find = find
        self._text = ""
        self._due = 0.0

    def __call__(self, *, now: bool = False) -> str:
        """Return the text, of this moment where `now` is."""
        if now or time.monotonic() >= self._due:
            self._text = self._find()
            self._due = time.monotonic() + _AGAIN
        return self._text


def step_printer(console: Console) -> Callable[[str], None]:
    """Return a teller of single steps: one dim line each."""
    return lambda what: console.print(f"[dim]{what}[/dim]")
