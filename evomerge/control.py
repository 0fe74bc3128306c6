"""control: a study's sham control, the same search over experts whose task vectors are shuffled.

It is an ordinary study in the folder `sham` of the study's directory: resumed, watched and shown like any other. Nothing of the
study itself is written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge import costs
from evomerge.errors import StudyError
from evomerge.settings import ControlSettings, QueueSettings, StudySettings
from evomerge.study import Study
from evomerge.tasks import PythonTask

FOLDER = "sham"
"""The control's directory, in that of its study."""


def settings(study: Study) -> StudySettings:
    """Return the settings of a study's control: its own, with its driver and the seed of its search for the shuffling too.

    Budgets of time are left out: the control has as many evaluations. Raises `StudyError` for a study that is a control itself, and
    for one whose search has not ended.
    """
    own = study.settings
    if own.pool.shuffled is not None:
        raise StudyError(
            f"{study.folder}: its experts are shuffled, so it is a control itself; expected a study of real experts"
        )
    spent = study.history().spent
    if not ended(study.folder, own, spent):
        shorter = (
            f"; or `evomerge resume {study.folder} --evaluations {int(spent)}`, to end it here" if spent >= 1 else ""
        )
        raise StudyError(
            f"{study.folder}: {spent:g} of {own.evaluations} evaluations are done, and a control has as many as its study; type "
            f"`evomerge resume {study.folder}` first{shorter}"
        )
    update: dict[str, Any] = {
        "name": f"{own.name}-{FOLDER}",
        "pool": own.pool.model_copy(update={"shuffled": own.seed}),
        "driver": dict(study.parts.driver),
        "controls": ControlSettings(),
        "hours": None,
        "worker_hours": None,
    }
    if isinstance(own.workers, QueueSettings):  # a queue is one study's
        update["workers"] = own.workers.model_copy(update={"queue": f"{own.workers.queue}-{FOLDER}"})
    return own.model_copy(update=update)


def start(study: Study, asked: StudySettings, progress: Callable[[str], None] = lambda step: None) -> Study:
    """Start the control of a study by the settings `asked`, or open it with them: see `settings`. Raises `StudyError`."""
    python = {name: task for name, task in study.parts.setup.tasks.items() if isinstance(task, PythonTask)}
    return Study.create(study.folder / FOLDER, asked, progress, python)


def ended(folder: Path, own: StudySettings, spent: float) -> bool:
    """Return whether a search came to its end: of its budget, of which `spent` is used, or because its driver proposed no more."""
    if spent >= own.evaluations:
        return True
    runs, _ = costs.runs(folder)
    return bool(runs) and runs[-1].ended == costs.DONE
