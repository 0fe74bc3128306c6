"""Commands of evomerge, run in this process: importing torch takes longer than most of them."""

import io
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from evomerge.cli import main


def evomerge(*arguments, cwd=None, code=0):
    """Run a command, which must exit with `code`; return its exit code and its output."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # `main` replaces it
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as exit_:
            main()
    signal.signal(signal.SIGTERM, before)
    done = SimpleNamespace(returncode=exit_.value.code, stdout=stdout.getvalue(), stderr=stderr.getvalue())
    assert done.returncode == code, done.stdout + done.stderr
    return done
