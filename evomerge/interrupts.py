"""Interrupts that take effect even where a library swallows them.

A signal's handler raises `KeyboardInterrupt` wherever the main thread is; in a finaliser or a callback of an extension module
the exception is printed and lost. The loop over evaluations raises it again.
"""

import signal
from typing import Never

_received = False


def install() -> None:
    """Let SIGTERM, and SIGINT unless it is ignored, interrupt this process. Forget earlier interrupts."""
    global _received  # noqa: PLW0603  # signals belong to the process
    _received = False
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def check() -> None:
    """Raise `KeyboardInterrupt` if the process was interrupted before."""
    if _received:
        raise KeyboardInterrupt


def _interrupt(*_: object) -> Never:
    global _received  # noqa: PLW0603  # as above
    _received = True
    raise KeyboardInterrupt
