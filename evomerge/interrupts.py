"""Interrupts that take effect even where a library swallows them, and stops that let what runs finish.

A signal's handler raises `KeyboardInterrupt` wherever the main thread is; in a finaliser or a callback of an extension module
the exception is printed and lost. The loop over evaluations raises it again. Within `graceful`, SIGTERM asks to stop, and
interrupts only after a while.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Never

GRACE = 20.0
"""Seconds from SIGTERM to the interrupt of a search: SLURM and Kubernetes kill after 30."""


@dataclass(slots=True)
class _State:
    """What this process has received; signals belong to the process."""

    interrupted: bool = False
    terminated: bool = False
    grace: float = 0.0
    """Seconds from SIGTERM to the interrupt."""


_state = _State()


def install() -> None:
    """Let SIGTERM, and SIGINT unless it is ignored, interrupt this process. Forget earlier interrupts."""
    _state.interrupted = _state.terminated = False
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Raise `KeyboardInterrupt` if the process was interrupted before."""
    if _state.interrupted:
        raise KeyboardInterrupt


def terminated() -> bool:
    """Return whether SIGTERM came."""
    return _state.terminated


@contextmanager
def graceful(seconds: float) -> Iterator[None]:
    """Let the block go on for at most `seconds` after a first SIGTERM, of which `terminated` tells; a second one interrupts it.

    Without `install`, or in a thread, it has no effect.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not _terminate:
        yield
        return
    before = signal.signal(signal.SIGALRM, _interrupt)
    _state.grace = seconds
    try:
        yield
    finally:
        _state.grace = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _terminate(*_: object) -> None:
    again, _state.terminated = _state.terminated, True
    if again or _state.grace <= 0:
        _interrupt()
    signal.setitimer(signal.ITIMER_REAL, _state.grace)


def _interrupt(*_: object) -> Never:
    _state.interrupted = True
    raise KeyboardInterrupt
