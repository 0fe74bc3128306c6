"""Store: statistics in the machine's cache, by content, for all studies; parts of one collection are kept when it is stopped.

A statistic is a folder, `statistics/KEY[:2]/KEY`: files of tensors, and last of all `statistic.json`, which says where the tables of
each matrix are. Files are locked while they are written or read.
"""

import fcntl
import hashlib
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from evomerge import files, locks
from evomerge.errors import RecipeError
from evomerge.merging import Tables, Watch
from evomerge.statistics.statistic import Statistic, Subject

_INDEX = "statistic.json"
_LOCK = "lock"


def place(key: str) -> Path:
    """Return the folder of the statistic with this key, which may not exist yet."""
    return files.cache() / "statistics" / key[:2] / key


def is_complete(folder: Path) -> bool:
    """Return whether a statistic has been collected."""
    return (folder / _INDEX).is_file()


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a statistic that is complete: what it is about, and `silent`, the matrices without tables."""
    index: dict[str, Any] = json.loads((folder / _INDEX).read_bytes())
    return index


class Stored:
    """The tables of one statistic in the cache, mapped from their files; kept from `prune` while this process reads them."""

    def __init__(self, folder: Path) -> None:
        """Open the statistic. Raises `RecipeError` if it is not, or no longer, in the cache."""
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            weakref.finalize(self, os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._index: dict[str, dict[str, list[str]]] = read_index(folder)["tables"]
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"the statistic {folder.name[:12]} is not in the cache of this machine ({files.cache()}); type `evomerge statistics STUDY`, "
                "with the study's file or directory, which collects it, or `evomerge merge RECIPE --evidence STUDY.yaml`"
            ) from error
        with suppress(OSError):
            os.utime(folder / _INDEX)  # the latest use, by which `prune` goes
        self._folder = folder
        self._open = cache(self._opened)

    def tables(self, name: str) -> Tables:
        """Return the tables of a matrix, {} if there are none."""
        index = self._index.get(name, {})
        read: dict[str, Callable[[str], torch.Tensor]] = {
            file: self._open(file).get_tensor for file, _ in index.values()
        }
        return {field: read[file](key) for field, (file, key) in index.items()}

    def _opened(self, file: str) -> Any:
        try:
            return safe_open(self._folder / file, "pt")
        except (OSError, SafetensorError) as error:
            raise RecipeError(
                f"{self._folder / file}: expected a part of a statistic, but it is missing or broken ({error}); remove the folder, and "
                "what it had is collected again"
            ) from error


class Collected:
    """The statistics of a pool's experts: by kind and expert, the folder that has, or will have, each."""

    def __init__(self, folders: Mapping[str, Mapping[str, str]]) -> None:
        """Open nothing yet."""
        self.folders = folders
        self._open = cache(lambda folder: Stored(Path(folder)))

    def digest(self, kind: str, expert: str) -> str:
        """Return the key of an expert's statistic. Raises `RecipeError` if the pool has none."""
        return Path(self._folder(kind, expert)).name

    def tables(self, kind: str, expert: str, name: str) -> Tables:
        """Return the tables of an expert's matrix. Raises `RecipeError` if the statistic is not collected."""
        return self._open(self._folder(kind, expert)).tables(name)

    def _folder(self, kind: str, expert: str) -> str:
        if expert not in self.folders.get(kind, {}):
            raise RecipeError(missing(kind, expert))
        return self.folders[kind][expert]


def missing(kind: str, expert: str) -> str:
    """Return the message of a merge for which a model has no evidence."""
    if kind == "repair":
        return (
            f"the corrections of the repair {expert[:12]} are not among the statistics that were asked for; type `evomerge merge RECIPE "
            "--evidence STUDY.yaml`, a study file or any YAML with `tasks:`"
        )
    name, _, task = kind.partition("@")
    if task:
        return (
            f"the recipe needs the statistic `{name}` of `{expert}` on the task `{task}`, and there is no evidence; type `evomerge merge "
            f"RECIPE --evidence STUDY.yaml`, a study file or any YAML with `tasks:` and `{task}` among them"
        )
    return (
        f"the merge needs the statistic `{kind}` of `{expert}`, and there is no evidence for it; name a task that shows what it is good at: "
        f"`evidence: {{{expert}: {{task: TASK}}}}` under `pool` in a study, or `evomerge merge RECIPE --evidence STUDY.yaml`"
    )


def collect(
    statistic: Statistic, subject: Subject, folder: Path, about: Mapping[str, Any], memory: int, watch: Watch
) -> None:
    """Collect a statistic into its folder, in as many passes over the examples as `memory` bytes ask for.

    What an earlier process finished of it is kept. While another process collects the same, this one waits for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if is_complete(folder):
            return
        done = {name for _, part in _parts(folder) for name in part["names"]}
        left = [name for name in subject.matrices if name not in done]
        groups = grouped(left, lambda name: statistic.nbytes(subject.shape(name)), memory)
        for number, names in enumerate(groups):
            chosen = Subject(
                subject.live,
                subject.task,
                subject.examples,
                {name: subject.matrices[name] for name in names},
                subject.shapes,
                subject.seed,
            )
            offset, total = number * len(subject.examples), len(groups) * len(subject.examples)
            made = statistic.collect(chosen, within(offset, total, watch))
            add(folder, names, made)
        finish(folder, about, list(subject.matrices))


def add(folder: Path, names: Sequence[str], made: Mapping[str, Tables]) -> None:
    """Write the tables of some matrices of a statistic, those of `names` without tables among them."""
    file = f"{len(list(folder.glob('*.safetensors'))):05}.safetensors"
    _write(folder / file, names, made)


def finish(folder: Path, about: Mapping[str, Any], names: Sequence[str]) -> None:
    """Write the index of a statistic of all these matrices, with which it is complete."""
    index = {
        name: {field: [file, key] for field, key in fields.items()}
        for file, part in _parts(folder)
        for name, fields in part["tables"].items()
    }
    silent = [name for name in names if name not in index]
    files.write(folder / _INDEX, json.dumps({"format": 1, **about, "silent": silent, "tables": index}))


def within(offset: int, total: int, watch: Watch) -> Watch:
    """Return the progress of one of several passes."""
    return lambda what, done, _: watch(what, offset + done, total)


def grouped(names: Sequence[str], nbytes: Callable[[str], int], memory: int) -> list[list[str]]:
    """Return the names in groups, in order, each of at most `memory` bytes or of one name."""
    groups: list[list[str]] = []
    held = 0
    for name in names:
        size = nbytes(name)
        if not groups or held + size > memory:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def unique(made: Mapping[str, Tables]) -> dict[int, torch.Tensor]:
    """Return the tensors of tables by their identity: matrices may share them."""
    return {id(table): table for tables in made.values() for table in tables.values()}


def _write(file: Path, names: Sequence[str], made: Mapping[str, Tables]) -> None:
    """Write the tables of one group, with what the file says of itself."""
    keys = {identity: str(number) for number, identity in enumerate(unique(made))}
    part = {
        "names": list(names),
        "tables": {name: {field: keys[id(table)] for field, table in tables.items()} for name, tables in made.items()},
    }
    tensors = {keys[identity]: table.contiguous() for identity, table in unique(made).items()}
    files.write(file, save(tensors, {"part": json.dumps(part)}))


def _parts(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files that an earlier process has finished, with what they say of themselves; a broken one is removed."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                yield file.name, json.loads(opened.metadata()["part"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            file.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a statistic that is being collected; wait while another process does."""
    while True:
        try:
            file = locks.take(folder / _LOCK)
            break
        except locks.TakenError:
            time.sleep(1.0)
            if is_complete(folder):
                yield
                return
    with file:
        yield


@contextmanager
def emptied(folders: Sequence[Path]) -> Iterator[bool]:
    """Lock statistics that are collected together; wait while another process collects them.

    Yields False where all are complete, else True: then the folders are empty, whatever a process that was stopped has left in them.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
        to_do = not all(map(is_complete, folders))
        for folder in folders if to_do else ():
            (folder / _INDEX).unlink(missing_ok=True)
            for file in folder.glob("*.safetensors"):
                file.unlink()
        yield to_do


def key_of(about: Mapping[str, Any]) -> str:
    """Return the key of a statistic: the sha256 of all that it depends on."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
