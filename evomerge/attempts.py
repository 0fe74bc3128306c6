"""Attempts: candidates at which a process that evaluates by itself died, so that none of them ends a study for ever.

`attempt.json`, in a study's folder while it runs, says with which proposal the process began, and for how many times. A process
that ends by itself, interrupted or not, removes it.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evomerge import files

_NAME = "attempt.json"
_MOST = 2
ERROR = f"the process died at this candidate, and again when it was resumed {_MOST} times; to evaluate it in a process of its own, type `evomerge resume … --workers 2 --retry-failed`"


@contextmanager
def counted(folder: Path, pending: Iterable[int]) -> Iterator[int | None]:
    """Yield the number of a `pending` proposal to give up on, or None, and count the attempt that the block makes.

    Proposals are evaluated in their order, so the first pending one is that at which an earlier process was.
    """
    path, first = folder / _NAME, next(iter(pending), None)
    tried = _read(path).get("tries", 0) if first is not None and _read(path).get("number") == first else 0
    hopeless = first if tried >= _MOST else None
    if first is not None and hopeless is None:
        files.write(path, json.dumps({"number": first, "tries": tried + 1}) + "\n")
    try:
        yield hopeless
    finally:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, int]:
    """Return the number of the proposal and of its tries; nothing where no process died."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in content.items() if type(value) is int} if isinstance(content, dict) else {}
