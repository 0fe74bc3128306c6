"""What `evomerge worker` does: it checks that this machine is like the study's, and serves the queue."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evomerge import interrupts, trust
from evomerge.cli.console import new_console, say
from evomerge.digests import code_digests, data_digest
from evomerge.errors import EvaluatorError
from evomerge.evaluate import Worker
from evomerge.evaluate.folder_queue import Opened, QueueFolder, QueueWorker
from evomerge.parts import versions

_PAUSE = 0.5  # seconds between looks for a queue


def serve(folder: Path, idle: float, *, once: bool) -> None:
    """Wait for a study to open the queue in `folder`, then evaluate its candidates until it is done.

    Raises `EvaluatorError` where no study does so within `idle` seconds, and where this machine has other models, data or code,
    and `StudyError` for code that this account has not agreed to run.
    """
    console, queue = new_console(), QueueFolder(folder)
    opened = _wait(queue, idle)
    setup, study = opened.setup, Path(opened.study)
    trust.check(trust.code_files(setup.tasks, setup.module, Path(setup.folder)), study)
    for name, version in versions().items():
        if opened.versions.get(name, version) != version:
            say(
                console,
                f"note: {name} is {version} here and {opened.versions[name]} where the study runs: the last bits of scores may differ",
            )

    def prepare(worker: Worker) -> None:
        digests = worker.prepare().builder.pool.digests
        here: dict[str, dict[str, Any]] = {"pool_digests": dict(digests), **code_digests(setup)}
        here["data_digests"] = {name: data_digest(task, setup.folder) for name, task in setup.tasks.items()}
        if different := list(_different(opened, here)):
            raise EvaluatorError(
                f"{folder}: {', '.join(different)} on this machine are not those of the study in {study}; copy them from there to the "
                "same paths"
            )
        say(console, f"{folder}: ready, for the study in {study}")

    done = QueueWorker(queue, opened).serve(prepare, idle, 1 if once else None)
    say(console, f"{folder}: {done} candidates evaluated")


def _wait(queue: QueueFolder, idle: float) -> Opened:
    """Return what the study wrote, as soon as it is there."""
    start = time.monotonic()
    while (opened := queue.opened()) is None:
        interrupts.check()
        if time.monotonic() - start >= idle:
            raise EvaluatorError(
                f"{queue.path}: no study has opened this queue; type `evomerge run STUDY.yaml --queue {queue.path}`"
            )
        time.sleep(_PAUSE)
    return opened


def _different(opened: Opened, here: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield in words which models, data and files of code are not those of the study."""
    words = {"pool_digests": "the weights of", "data_digests": "the data of", "code_digests": "the code of"}
    for kind, what in words.items():
        there, found = opened.same.get(kind, {}), here.get(kind, {})
        yield from (f"{what} `{name}`" for name in there if found.get(name) != there[name])
