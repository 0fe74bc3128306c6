"""score: models on the report splits of any tasks, with intervals. It searches nothing and writes nothing.

Not to be confused with a `Scorer`, which scores a study's models on the study's own tasks, and keeps the scores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge import strict_yaml, tasks
from evomerge.errors import StudyError, nearest
from evomerge.evaluate import Setup, Worker
from evomerge.parts import sources
from evomerge.recipe import Recipe
from evomerge.report import bootstrap, wording
from evomerge.report.data import Interval
from evomerge.settings import ReportSettings, StudySettings


@dataclass(frozen=True, slots=True)
class Scored:
    """A model's scores on the report split. Not to be confused with a `Candidate` of a study, which has search scores too."""

    name: str
    recipe_id: str
    report: Mapping[str, Interval]
    """Objective → mean of the reported metric, with its 95% interval."""
    mean: Interval | None
    """Mean over objectives of `report`; None where metrics differ, unless a study scales them: see `Candidate.mean`."""


def read_tasks(file: Path) -> dict[str, Any]:
    """Return the fields of a `Setup` that say how to score: of a study file, or `tasks`, `defaults`, `folder` of any other YAML.

    Paths of tasks start at `folder`, by default that of the file. Raises `StudyError` for anything else.
    """
    if not file.is_file():
        raise StudyError(f"{file}: no such file; expected YAML with `tasks:` as in a study file, or a study file")
    data = strict_yaml.read(file)
    if isinstance(data, dict) and "space" in data:
        settings = StudySettings.read(file)
        settled = settings.settled()
        fields = {key: getattr(settled, key) for key in ("folder", "precision", "threads", "device")}
        return {**fields, "tasks": sources(settings)[2], "auto": settings.pool.auto, "module": settings.pool.module}
    known = ("tasks", "defaults", "folder", "evidence")
    for key in data if isinstance(data, dict) else ():
        if key not in known:
            raise StudyError(f"{file}: unknown key `{key}`; {nearest(key, known)}")
    listed = data.get("tasks") if isinstance(data, dict) else None
    if not listed or not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise StudyError(
            f"{file}: no `tasks`; expected `tasks: {{NAME: {{kind: …, search: …, report: …}}}}`, got {data!r}"
        )
    defaults = data.get("defaults", {})
    if not isinstance(defaults, dict):
        raise StudyError(f"{file} `defaults`: expected a mapping, got {defaults!r}")
    return {"tasks": tasks.complete(listed, defaults), "folder": str((file.parent / data.get("folder", ".")).resolve())}


def score(
    models: Mapping[str, Recipe],
    setup: Setup,
    lineage: Mapping[str, Recipe],
    settings: ReportSettings,
    seed: int,
    watch: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, str], list[Scored]]:
    """Return the reported metric of each task of `setup`, and the scores of recipes, by name, of its pool.

    `lineage` has the recipes of earlier candidates that models are made of, `watch` gets the number of completed models.
    Resamples are those of `settings` and `seed`. Raises `StudyError` for a model that cannot be scored, and the errors of
    models and tasks.
    """
    judged = {name: tasks.make(name, entry, Path(setup.folder)) for name, entry in setup.tasks.items()}
    metrics = {name: task.report_metric for name, task in judged.items()}
    objectives = {name: f"{name}/{metric}" for name, metric in metrics.items()}
    examples = {objective: judged[name].example_keys("report") for name, objective in objectives.items()}
    draws = bootstrap.resamples(examples, settings.resamples, seed)
    worker, rows = Worker(setup), []
    worker.members.lineage.update(lineage)
    for done, (name, recipe) in enumerate(models.items(), start=1):
        evaluation = worker.evaluate(recipe, "report")
        if evaluation.error is not None:
            raise StudyError(f"cannot score {name}: {evaluation.error}")
        intervals = bootstrap.intervals(evaluation.scores, draws)
        common = wording.common_metric(metrics.values())
        mean = None if common is None else bootstrap.mean_interval(evaluation.scores, draws)
        rows.append(Scored(name, recipe.id, {task: intervals[key] for task, key in objectives.items()}, mean))
        watch(done)
    return metrics, rows
