"""The search over shuffled experts, on a terminal."""

from rich.console import Console

from evomerge import control
from evomerge.cli.console import say
from evomerge.cli.searches import search_and_report, write_report
from evomerge.progress import step_printer
from evomerge.report import tables
from evomerge.settings import ClusterSettings, StudySettings
from evomerge.study import Study


def search_control(study: Study, asked: StudySettings, console: Console, *, grace: float) -> None:
    """Search over shuffled experts by the settings `asked`, and say what the real ones give beyond it."""
    say(console, f"control: {asked.evaluations} evaluations over shuffled experts, {crew(asked)}")
    made = control.start(study, asked, step_printer(console))
    if search_and_report(made, console, grace=grace, quiet=True) is None:
        return
    results = write_report(study, console)
    say(console, tables.control(results) or f"the control has no comparable pick: see `evomerge show {made.folder}`")
    say(console, f"more: {study.folder / 'report.html'}, and of the control {made.folder / 'report.html'}")


def crew(settings: StudySettings) -> str:
    """Return in words which workers evaluate."""
    workers = settings.workers
    if isinstance(workers, int):
        return f"{workers} workers"
    if isinstance(workers, ClusterSettings):
        bounds = f"{workers.min} to {workers.most}" if workers.most > workers.min else f"{workers.min}"
        return f"{bounds} workers on a Ray cluster"
    return f"up to {workers.in_flight} candidates in a queue, for workers that you start by `evomerge worker {workers.queue}`"
