"""Journal: the append-only record of a study, and its only truth. Resume is replay.

One record a line: eight hexadecimal digits of CRC-32, a space, JSON. An `ask` reaches the operating system before any work on
it begins, a `tell` before anything acts on it: a recorded result survives the death of the process. Results are synced to
disk at most once a second, so a power cut costs the last second of results, which are evaluated again. A torn last line is cut
off at the next opening; a damaged line in the middle is refused, until `repair` cuts the journal before it.

The bytes depend only on what was asked and told, in order, not on the clock or the host. With several workers the order of
arrival may differ between runs; the lines do not. Format 2 records have the `genome` of an ask, as base64 of
little-endian float64; those of format 1 have none. A journal may hold both.
"""

import errno
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import NonNegativeInt, PositiveInt, ValidationError

from evomerge import files
from evomerge.errors import JournalError
from evomerge.recipe import Recipe, describe
from evomerge.recipe.validation import FrozenModel
from evomerge.trial import Evaluation, Examples, Proposal, Split, from_base64, to_base64

_SYNC_INTERVAL = 1.0
"""Seconds between syncs: results that come in between are synced together."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The record of a proposal's evaluation."""

    number: int
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class Sketch:
    """The record of a proposal whose recipe was not read. Not to be confused with the proposal, which has one."""

    number: int
    recipe: str
    """Names the recipe where a proposal is of a part of the examples, else empty."""
    examples: Examples | None = None
    slopes: Examples | None = None


Event = tuple[Proposal, Evaluation | None]
"""A proposal that is asked, with None, or one that is told, with its evaluation."""


class Journal:
    """A journal open for appending, by one writer. Use `read` to look at one that another process may be writing."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal at `path`, cutting a torn last line. Raises `JournalError` if it is damaged."""
        self.path = path
        fresh = not path.exists()
        if not fresh:
            size = sum(len(line) for line, _ in _lines(path))
            with path.open("r+b") as file:
                file.truncate(size)
        self._file = path.open("ab", buffering=0)
        self._synced = -_SYNC_INTERVAL  # time of the last sync
        self._timer: threading.Timer | None = None  # of the next sync, if one is due
        self._open = threading.Lock()  # held while the file must not be closed
        self._failure: OSError | None = None  # of a sync by the timer
        if fresh:
            files.sync(path.parent)

    def ask(self, proposal: Proposal) -> None:
        """Record a proposal. It reaches the operating system before this returns, so it survives the process."""
        self._append(_asked(proposal), durable=False)

    def tell(self, number: int, evaluation: Evaluation) -> None:
        """Record an evaluation. It reaches the operating system before this returns, and the disk within a second."""
        self._append(_compact({"tell": number, **evaluation.to_json()}), durable=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._timer
        if timer is not None:
            timer.cancel()
            self._sync_now()
        with self._open:
            self._file.close()
        if kind is None:
            self._check()

    def _append(self, body: str, *, durable: bool) -> None:
        self._check()
        content = body.encode()
        line = b"%08x %s\n" % (zlib.crc32(content), content)
        start = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301  # cut off like any other failure
            if durable:
                self._sync()
        except OSError as error:
            try:
                self._file.truncate(start)
            except OSError:
                self._file.close()  # nothing may follow a torn line; the next opening cuts it off
            raise self._error(error) from error

    def _sync(self) -> None:
        """Sync now, or when the interval since the last sync is over."""
        if self._timer is not None:
            return
        if time.monotonic() - self._synced >= _SYNC_INTERVAL:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
            return
        self._timer = threading.Timer(_SYNC_INTERVAL, self._sync_now)
        self._timer.daemon = True
        self._timer.start()

    def _sync_now(self) -> None:
        self._timer = None  # this sync does not cover later results
        with self._open:
            if not self._file.closed:
                try:
                    os.fsync(self._file.fileno())
                except OSError as error:
                    self._failure = error
        self._synced = time.monotonic()

    def _check(self) -> None:
        """Raise the failure of a sync by the timer, if there was one."""
        if self._failure is not None:
            raise self._error(self._failure) from self._failure

    def _error(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot write ({error.strerror}); nothing acknowledged is lost: fix the cause, then `evomerge resume`"
        )


class Followed:
    """A journal that another process may be writing: each call of `skim` or `events` reads what is new since the last one.

    Not to be confused with `Journal`, its one writer. Use one of the two, `skim` or `events`.
    """

    def __init__(self, path: Path) -> None:
        """Follow the journal at `path`, which need not exist yet."""
        self.path = path
        self._tail = files.Tail(path)
        self._lines = 0
        self._pending: set[int] = set()
        self._order = _Order(path)

    @property
    def replaced(self) -> bool:
        """Whether another journal is in its place, as after a repair: then begin anew."""
        return self._tail.replaced

    def skim(self) -> Iterator[Sketch | Tell]:
        """Yield the new records. Recipes, which take most of the time of `events`, are not read.

        Raises `JournalError` naming a line that is damaged, or the result of no proposal.
        """
        for line, body in self._bodies():
            plain = None if b'"examples":' in body or b'"slopes":' in body else _PLAIN_ASK.match(body)
            if plain:
                record: Proposal | Tell | Sketch = Sketch(int(plain[1]), "")
            else:
                record = _record(self.path, line, body)
            if isinstance(record, Proposal):
                record = Sketch(record.number, record.recipe.id, record.examples, record.slopes)
            if isinstance(record, Sketch):
                self._pending.add(record.number)
            elif record.number in self._pending:
                self._pending.remove(record.number)
            else:
                raise JournalError(
                    f"{self.path}: line {line} is the result of a proposal that is not pending; {_RESTORE}"
                )
            yield record

    def events(self) -> Iterator[Event]:
        """Yield the new events, as `events` does. Raises `JournalError` naming a line that is damaged or out of order."""
        for line, body in self._bodies():
            yield self._order.add(line, _record(self.path, line, body))

    def _bodies(self) -> Iterator[tuple[int, bytes]]:
        for _, body in _checked(self.path, self._tail.new(), self._lines + 1):
            self._lines += 1
            yield self._lines, body


def read(path: Path) -> list[Proposal | Tell]:
    """Return the records of a journal, without a torn last line. Raises `JournalError` naming a line that is not valid."""
    if not path.exists():
        return []
    return [_record(path, number, body) for number, (_, body) in enumerate(_lines(path), start=1)]


_PLAIN_ASK = re.compile(rb'\{"ask":(\d+),"recipe":')


def events(path: Path, *, retried: bool = False) -> Iterator[Event]:
    """Yield each proposal of a journal when it is asked, with None, and again with its evaluation.

    Proposals are numbered from 0 without a gap; each is evaluated at most once. With `retried`, one without an evaluation
    may be asked again, as a report does that was interrupted. Raises `JournalError` naming a line that is out of order.
    """
    records = (_record(path, number, body) for number, (_, body) in enumerate(_lines(path), start=1))
    return _in_order(path, records if path.exists() else (), retried=retried)


def replay(
    path: Path, ask: Callable[[], Proposal | None], match: Callable[[Proposal, Proposal | None], Proposal]
) -> Iterator[Event]:
    """Yield the events of a journal with the proposals that `ask` makes again, one for each record of one.

    A record that is byte for byte that of its proposal is not read, which takes most of the time of `events`. Where another
    proposal is as good as the recorded one, `match(recorded, proposal)` returns it; otherwise it raises. Raises `JournalError` as
    `events` does.
    """
    order = _Order(path)
    for line, (_, body) in enumerate(_lines(path) if path.exists() else (), start=1):
        proposal = ask() if body.startswith(b'{"ask":') else None
        if proposal is not None and _asked(proposal).encode() == body:
            yield order.add(line, proposal)
            continue
        recorded, evaluation = order.add(line, _record(path, line, body))
        yield order.replace(match(recorded, proposal)) if evaluation is None else (recorded, evaluation)


def repair(path: Path, *, retried: bool = False) -> tuple[int, int] | None:
    """Cut a journal before its first line that is not valid; the whole file is kept as `NAME.damaged`.

    Returns the numbers of lines that are kept and cut, None where all are valid. Raises `JournalError` if there is a
    `NAME.damaged` already.
    """
    if not path.exists():
        return None
    kept = [0, 0]  # lines and bytes

    def records() -> Iterator[Proposal | Tell]:
        for number, (line, body) in enumerate(_lines(path), start=1):
            yield _record(path, number, body)
            kept[:] = number, kept[1] + len(line)  # it was in order: the next one is wanted

    try:
        for _ in _in_order(path, records(), retried=retried):
            pass
    except JournalError:
        content, copy = path.read_bytes(), path.with_name(f"{path.name}.damaged")
        if copy.exists():
            raise JournalError(f"{copy}: exists, from an earlier repair; move it away first") from None
        files.write(copy, content)
        files.write(path, content[: kept[1]])
        return kept[0], content[kept[1] :].count(b"\n")
    return None


def _in_order(path: Path, records: Iterable[Proposal | Tell], *, retried: bool) -> Iterator[Event]:
    order = _Order(path, retried=retried)
    for line, record in enumerate(records, start=1):
        yield order.add(line, record)


class _Order:
    """The order of a journal's records, which is checked one by one."""

    def __init__(self, path: Path, *, retried: bool = False) -> None:
        self._path, self._retried = path, retried
        self._pending: dict[int, Proposal] = {}
        self._count = 0

    def add(self, line: int, record: Proposal | Tell) -> Event:
        """Return the proposal of the next record, and its evaluation if this is one. Raises `JournalError`."""
        if isinstance(record, Tell):
            if record.number not in self._pending:
                msg = f"{self._path}: line {line} is the result of proposal {record.number}, which is not pending; lines are missing, doubled or swapped: {_RESTORE}"
                raise JournalError(msg)
            return self._pending.pop(record.number), record.evaluation
        if record.number != self._count and not (self._retried and record.number in self._pending):
            msg = f"{self._path}: line {line} is proposal {record.number}, expected proposal {self._count}; lines are missing, doubled or swapped: {_RESTORE}"
            raise JournalError(msg)
        self._count = max(self._count, record.number + 1)
        self._pending[record.number] = record
        return record, None

    def replace(self, proposal: Proposal) -> Event:
        """Put a proposal in the place of the recorded one of its number. Return its event."""
        self._pending[proposal.number] = proposal
        return proposal, None


_RESTORE = "restore the file from a copy, or type `evomerge repair DIR` to cut it before that line"


def _asked(proposal: Proposal) -> str:
    """Return the record of a proposal."""
    # The recipe's canonical JSON is inserted as it is: parsing and writing it again would be most of the cost.
    parts = [f'"ask":{proposal.number},"recipe":{proposal.recipe.json}']
    if proposal.split != "search":
        parts.append(f'"split":"{proposal.split}"')
    if proposal.examples is not None:
        parts.append(f'"examples":{_compact(dict(proposal.examples))}')
    if proposal.slopes is not None:
        parts.append(f'"slopes":{_compact(dict(proposal.slopes))}')
    if proposal.genome is not None:
        parts.append(f'"genome":"{to_base64(proposal.genome, np.float64)}"')
    return f"{{{','.join(parts)}}}"


def _record(path: Path, line: int, body: bytes) -> Proposal | Tell:
    try:
        data = json.loads(body)
        if isinstance(data, dict) and "ask" in data:
            return _ask(data)
        if isinstance(data, dict) and "tell" in data:
            return _tell(data)
    except (ValueError, RecursionError) as error:  # also RecipeError, and those of json, base64, pydantic and numpy
        cause = describe(error, "record", {}) if isinstance(error, ValidationError) else error
        raise JournalError(f"{path}: line {line} is no valid record ({cause}); {_RESTORE}") from None
    kind = ", ".join(data) if isinstance(data, dict) else repr(data)[:40]
    raise JournalError(f"{path}: line {line} is of a kind unknown to this version ({kind}); install the newer evomerge")


def _ask(data: dict[str, Any]) -> Proposal:
    record = _AskRecord.model_validate(data)
    genome = None if record.genome is None else from_base64(record.genome, np.float64)
    examples, slopes = (
        None if named is None else {task: tuple(indices) for task, indices in named.items()}
        for named in (record.examples, record.slopes)
    )
    return Proposal(record.ask, Recipe.parse(record.recipe), genome, record.split, examples, slopes)


def _tell(data: dict[str, Any]) -> Tell:
    record = _TellRecord.model_validate(data)
    if (record.error is None) == (record.scores is None):
        raise ValueError("expected either `scores` or `error`")
    return Tell(record.tell, Evaluation.from_json(data))


class _AskRecord(FrozenModel, strict=True):
    ask: NonNegativeInt
    recipe: Any
    split: Split = "search"
    examples: dict[str, list[NonNegativeInt]] | None = None
    slopes: dict[str, list[NonNegativeInt]] | None = None
    genome: str | None = None


class _Columns(FrozenModel, strict=True):
    columns: PositiveInt
    rows: str


class _TellRecord(FrozenModel, strict=True):
    tell: NonNegativeInt
    error: str | None = None
    scores: dict[str, str] | None = None
    outputs: dict[str, _Columns] | None = None
    slopes: dict[str, str] | None = None


def _compact(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _lines(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield each complete line, and the body in it. Raises `JournalError` for one whose checksum is wrong."""
    with path.open("rb") as file:
        yield from _checked(path, file, 1)


def _checked(path: Path, lines: Iterable[bytes], first: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the complete lines among `lines` and the bodies in them; `first` is the number of the first one."""
    for number, line in enumerate(lines, start=first):
        if not line.endswith(b"\n"):
            return  # torn by a kill during the write: it was never acknowledged
        body = line[9:-1]
        if line[:9] != b"%08x " % zlib.crc32(body):
            raise JournalError(f"{path}: line {number} is damaged; {_RESTORE}")
        yield line, body
