"""The command line. Each command is declared in `commands`, and carried out in a module of this folder.

Those import torch and transformers, and are imported only when their command runs: help and completion stay fast.
"""

import errno
import os
import sys
import warnings

from rich.console import Console

from evomerge import interrupts
from evomerge.cli.app import app
from evomerge.errors import EvomergeError, printable

_INTERRUPTED = 130
_NOT_OURS = (  # what a disk, or its permissions, refuse
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)


def main() -> None:
    """Run the command line, and exit: 0 done, 2 for an error the user can fix, 130 for Ctrl-C, 75 for SIGTERM."""
    interrupts.install()
    warnings.showwarning = _warn
    try:
        code = app(standalone_mode=False)  # typer returns the exit code of an interrupt instead of raising it
    except EvomergeError as error:
        code = _failed(str(error))
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        code = _failed(f"{where}{error.strerror}; nothing recorded is lost: fix the cause, then type the command again")
    except Exception as error:
        if not error.__class__.__module__.startswith(("click", "typer")):
            raise
        code = getattr(error, "exit_code", _INTERRUPTED)  # an abort has none
        if hasattr(error, "show"):
            error.show()  # a usage error
    if code == _INTERRUPTED:
        Console(stderr=True, soft_wrap=True).print(
            "evomerge: interrupted; no finished evaluation is lost: `evomerge resume DIR` goes on", markup=False
        )
        code = os.EX_TEMPFAIL if interrupts.terminated() else code  # schedulers and services: run it again
    sys.exit(code if isinstance(code, int) else 0)


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    """Print a warning without the line of code that it comes from."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"warning: {printable(str(message))}", markup=False)


def _failed(message: str) -> int:
    """Print the message of an error that the user can fix, and return its exit code."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"evomerge: {printable(message)}", markup=False)
    return 2
