"""Progress on a terminal, in a notebook or in a log file: what is done, the elapsed time, the time left."""

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_EVERY = 10.0  # seconds between two lines of a log
_PHASE_EVERY = 60.0
_FIRST_SHARE = 200  # parts of a phase, of which one tells its rate
_NOTEBOOK_EVERY = 0.5
_THROTTLE = 1.0  # seconds between two updates of a `Throttled` text
_hidden = False


def hide(hidden: bool) -> None:
    """Show no progress in this process from now on, or show it again. Lines that are said, such as what a search waits for, stay."""
    global _hidden  # noqa: PLW0603  # of the process, as its terminal is
    _hidden = hidden


def duration(seconds: float) -> str:
    """Return `0.2 s`, `41 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def gib(count: int) -> str:
    """Return bytes of memory as `1.5 GiB`."""
    return f"{count / 2**30:.1f} GiB"


class Progress:
    """One line of progress: a live bar on a terminal, a live line in a notebook, a line every ten seconds when piped."""

    def __init__(self, what: str, total: int, console: Console) -> None:
        self._what, self._total, self._console = what, total, console
        self._start = self._last = time.monotonic()
        # Time and amount of the first call, from which the rest is estimated: start-up takes no part.
        self._first: tuple[float, int] | None = None
        self._last_done = 0
        self._warned = False
        self._notebook_line: Any = None  # IPython's handle of the line that is shown
        amount = "{task.description:<10}", BarColumn(bar_width=30), MofNCompleteColumn()
        times = "elapsed", TimeElapsedColumn(), "left", TimeRemainingColumn()
        note = TextColumn("{task.fields[note]}", style="dim", markup=False)
        self._bar = Bar(*amount, *times, note, console=console, disable=_hidden or not console.is_terminal)
        self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self._last_done > done or (total or self._total) != self._total:  # another phase
            self._first = None
        self._total, self._last_done = total or self._total, done
        self._bar.update(self._task, completed=done, total=self._total, note=note)
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if _hidden:
            return
        every = _NOTEBOOK_EVERY if self._console.is_jupyter else _EVERY
        if not self._console.is_terminal and (now - self._last > every or done == self._total):
            self._last = now
            since, first = self._first
            parts = [f"{self._what}: {done}/{self._total}", f"{duration(now - self._start)} elapsed"]
            if done == self._total:
                parts.append("done")
            elif done > first:
                parts.append(f"{duration((now - since) / (done - first) * (self._total - done))} left")
            self._print(", ".join([*parts, note] if note else parts))

    def say(self, line: str) -> None:
        """Print a line."""
        self._print(f"{self._what}: {line}")

    def remind(self, line: str) -> None:
        """Print a line that is said again and again; on a terminal only the first time, and then beside the bar."""
        self._bar.update(self._task, note=line)
        if not (self._console.is_terminal and self._warned):
            self.say(line)
        self._warned = True

    def _print(self, line: str) -> None:
        if not self._console.is_jupyter or self._console.quiet:
            self._console.print(line, markup=False, soft_wrap=True)
            return
        display = import_module("IPython.display").display
        data = {"text/plain": line}
        if self._notebook_line is None:
            self._notebook_line = display(data, raw=True, display_id=True)
        else:
            self._notebook_line.update(data, raw=True)


class Phases:
    """Progress of work in phases: a live bar on a terminal; when piped, a line for each phase that takes a second, and each minute.

    A phase may be interrupted by another one, whose time is not its own: the time left is that of the rest of the phase, at
    the rate so far.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = self._first = ""
        self._since = self._shown = time.monotonic()
        self._seconds: dict[str, float] = {}  # of each phase, without that of phases within
        self._before: dict[str, float] = {}  # those before it began again
        note = TextColumn("{task.fields[note]}", markup=False)
        self._bar = Bar(
            "{task.description:<10}",
            BarColumn(bar_width=30),
            note,
            console=console,
            disable=_hidden or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if error[0] is None:
            self._end(finished=True)

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` units of a phase are done; 0 of them at its beginning."""
        now = time.monotonic()
        if phase != self._phase:
            self._end()
            self._phase, self._first, self._shown = phase, self._first or phase, now
        else:
            self._seconds[phase] += now - self._since
        self._since = now
        seconds = self._seconds.setdefault(phase, 0.0)
        if not done:
            self._before[phase] = seconds
        taken = seconds - self._before.get(phase, 0.0)
        known = taken and total / _FIRST_SHARE <= done < total
        left = f"{duration(taken * (total - done) / done)} left" if known else ""
        self._bar.update(self._task, description=phase, completed=done, total=total, note=left)
        if not _hidden and not self._console.is_terminal and now - self._shown > _PHASE_EVERY and known:
            self._shown = now
            say = [f"{phase}: {done / total:.0%}", f"{duration(seconds)} elapsed", left]
            self._console.print(", ".join(filter(None, say)), markup=False)

    def _end(self, *, finished: bool = False) -> None:
        """Print what the phase that ends took; the first one, in which the others are, when all is `finished`."""
        if not self._phase:
            return
        now = time.monotonic()
        seconds = self._seconds[self._phase] = self._seconds[self._phase] + now - self._since
        self._since = now
        if not _hidden and not self._console.is_terminal and seconds >= 1 and (finished or self._phase != self._first):
            self._console.print(f"{self._phase}: {duration(seconds)}", markup=False)


class Throttled:
    """A text that is expensive to compute: computed at most once a second, and shown unchanged until then."""

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find
        self._text = ""
        self._due = 0.0

    def __call__(self, *, now: bool = False) -> str:
        """Return the text; with `now` it is computed again."""
        if now or time.monotonic() >= self._due:
            self._text = self._find()
            self._due = time.monotonic() + _THROTTLE
        return self._text


def step_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a step as one dim line."""
    return lambda what: None if _hidden else console.print(what, style="dim", markup=False)
