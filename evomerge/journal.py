"""Journal: the append-only record of a study, and its only truth. Resume is replay.

One record a line: eight hexadecimal digits of CRC-32, a space, JSON. An `ask` is with the operating system before any work on
it begins, a `tell` before anybody acts on it: a result that was acknowledged survives any kill. On disk it is at once, too,
but no more than once a second: what is told in between is synced together, a second later at most. So a power cut costs the
last second of results, which are evaluated again. A last line that was torn is cut off at the next opening; a damaged line in
the middle is refused.

The bytes depend only on what was asked and told, in order: no clock, no host. Arrival order may differ between runs with
several workers; `canonical` is the form that may not.
"""

import errno
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evomerge import files
from evomerge.errors import JournalError
from evomerge.recipe import Recipe
from evomerge.trial import Evaluation, Examples, Proposal, Split

_GROUP = 1.0
"""Seconds whose results are synced together."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The record that a proposal was made."""

    number: int
    recipe: Recipe
    split: Split
    examples: Examples | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """The record of a proposal's evaluation."""

    number: int
    evaluation: Evaluation


class Journal:
    """A journal open for appending, by one writer. Use `read` to look at one that another process may be writing."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path`, cutting a torn last line. Raises `JournalError` if it is damaged."""
        self.path = path
        fresh = not path.exists()
        if not fresh:
            good = sum(len(line) for _, line, _ in _lines(path))
            with path.open("r+b") as file:
                file.truncate(good)
        self._file = path.open("ab", buffering=0)
        self._synced = -_GROUP  # when the last sync was
        self._late: threading.Timer | None = None  # what will sync the results of this second
        self._open = threading.Lock()  # held while the file must not be closed
        self._failure: OSError | None = None  # of a late sync
        if fresh:
            files.sync(path.parent)

    def ask(self, proposal: Proposal) -> None:
        """Record a proposal. It reaches the operating system before this returns, so it survives the process."""
        # The recipe's canonical JSON goes in as it is: to read and write it again would be most of the cost.
        split = "" if proposal.split == "search" else f',"split":"{proposal.split}"'
        examples = "" if proposal.examples is None else f',"examples":{_compact(dict(proposal.examples))}'
        body = f'{{"ask":{proposal.number},"recipe":{proposal.recipe.json}{split}{examples}}}'
        self._append(body, durable=False)

    def tell(self, number: int, evaluation: Evaluation) -> None:
        """Record an evaluation. It reaches the operating system before this returns, and the disk within a second."""
        self._append(_compact({"tell": number, **evaluation.to_json()}), durable=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        late = self._late
        if late is not None:
            late.cancel()
            self._sync_late()
        with self._open:
            self._file.close()
        if kind is None:
            self._check()

    def _append(self, body: str, *, durable: bool) -> None:
        self._check()
        line = _frame(body.encode())
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._write(line)
            if durable:
                self._sync()
        except OSError as error:
            try:
                self._file.truncate(start)
            except OSError:
                self._file.close()  # nothing may follow a torn line; the next opening cuts it off
            raise self._error(error) from error

    def _sync(self) -> None:
        """Sync now, or with what else is told within the second after the last sync."""
        if self._late is not None:
            return
        if time.monotonic() - self._synced >= _GROUP:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
            return
        self._late = threading.Timer(_GROUP, self._sync_late)
        self._late.daemon = True
        self._late.start()

    def _sync_late(self) -> None:
        self._late = None  # what is told from here on is not synced by this
        with self._open:
            if not self._file.closed:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._failure = error
        self._synced = time.monotonic()

    def _check(self) -> None:
        """Raise what a late sync has met."""
        if self._failure is not None:
            raise self._error(self._failure) from self._failure

    def _error(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot write ({error.strerror}); nothing acknowledged is lost: mend it, then `evomerge resume`"
        )

    def _write(self, line: bytes) -> None:
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read(path: Path) -> list[Ask | Tell]:
    """Return the records of a journal, without a torn last line. Raises `JournalError` if it is damaged."""
    return [_record(path, number, data) for number, _, data in _lines(path)] if path.exists() else []


def canonical(path: Path) -> bytes:
    """Return the journal with each number's ask and tell together, in order of number: equal for equal searches."""
    keyed = [((data.get("ask", data.get("tell")), "tell" in data), line) for _, line, data in _lines(path)]
    return b"".join(line for _, line in sorted(keyed, key=lambda entry: entry[0]))


def _frame(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _compact(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _record(path: Path, number: int, data: dict[str, Any]) -> Ask | Tell:
    if "ask" in data:
        part = data.get("examples")
        examples = None if part is None else {task: tuple(numbers) for task, numbers in part.items()}
        return Ask(data["ask"], Recipe.parse(data["recipe"]), data.get("split", "search"), examples)
    if "tell" in data:
        return Tell(data["tell"], Evaluation.from_json(data))
    msg = f"{path}: line {number} is of a kind unknown to this version ({', '.join(data)}); install the newer evomerge"
    raise JournalError(msg)


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Yield each whole line's number, bytes and data."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a kill in mid-write: it was never acknowledged
            body = line[9:-1]
            if line[:9] != b"%08x " % zlib.crc32(body):
                msg = f"{path}: line {number} is damaged; restore the file from a copy, or cut it before that line to lose what follows"
                raise JournalError(msg)
            yield number, line, json.loads(body)
