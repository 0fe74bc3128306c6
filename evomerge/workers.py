"""Workers: the evaluator that a study's settings ask for, in this process, by Ray, or by a queue."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evomerge import evaluate, header
from evomerge.parts import Parts, versions
from evomerge.settings import ClusterSettings, StudySettings

_DEADLINE = 3600.0  # seconds per candidate by default, where workers can be stopped


def start(
    settings: StudySettings, parts: Parts, folder: Path, *, queue: bool, say: Callable[[str], None]
) -> evaluate.CachingEvaluator:
    """Return a new evaluator for the study in `folder`. Raises `StudyError` on another device than the study's, and `EvaluatorError`.

    Without `queue`, all is evaluated in this process in place of one. `say` is called with a line while candidates wait and there is no worker.
    """
    started = header.read(folder)
    if parts.setup.device == settings.device:  # else it was chosen for this evaluator
        header.check_device(started, settings.device, folder)
    workers, deadline, known = settings.workers, settings.deadline, started.identity
    digests = known.get("pool_digests", {})
    setup = replace(parts.setup, members=str(folder / "members") if parts.space.parents else None)
    made: evaluate.Evaluator
    if isinstance(workers, int):
        made = evaluate.make(setup, workers, _DEADLINE if deadline is None and workers > 1 else deadline, say, digests)
    elif isinstance(workers, ClusterSettings):
        setup = replace(setup, gpus=workers.gpus or setup.gpus)
        memory = int((workers.memory_gb or 0) * 10**9)
        fleet = evaluate.Fleet(workers.min, workers.most, cpus=workers.cpus, memory=memory, labels=workers.labels)
        made = evaluate.make(setup, fleet, _DEADLINE if deadline is None else deadline, say, digests)
    elif not queue:
        made = evaluate.make(setup)
    else:
        made = evaluate.QueueEvaluator(
            setup,
            Path(workers.queue),
            workers.in_flight,
            workers.lease,
            _DEADLINE if deadline is None else deadline,
            study=folder.resolve(),
            same={key: known[key] for key in ("pool_digests", "data_digests", "code_digests") if key in known},
            versions=versions(),
            say=say,
        )
    return evaluate.CachingEvaluator(made, parts.sizes)
