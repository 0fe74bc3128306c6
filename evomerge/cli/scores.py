"""Commands that score models on unseen examples without a search: score, compare."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from rich.console import Console

from evomerge import placement
from evomerge.build import Builder
from evomerge.checkpoints import hub
from evomerge.checkpoints.pool import Pool
from evomerge.cli.console import new_console, say
from evomerge.cli.merges import PoolOptions, read_recipe
from evomerge.errors import StudyError
from evomerge.evaluate import Setup
from evomerge.progress import Progress, step_printer
from evomerge.recipe import Recipe
from evomerge.recipe import base as base_recipe
from evomerge.report import runs, tables
from evomerge.report import score as scoring
from evomerge.report.export import made_of, needed
from evomerge.report.results import Results
from evomerge.report.score import Scored
from evomerge.settings import ReportSettings
from evomerge.statistics import Collected
from evomerge.study import Study


def score(
    what: Path, tasks_file: Path | None, options: PoolOptions, *, front: bool, as_json: bool, device: str | None = None
) -> None:
    """Score a checkpoint, a recipe, or models of a study on unseen examples of tasks; on `device`, by default the tasks' study's."""
    console = Console(stderr=True) if as_json else new_console()
    fields = None if tasks_file is None else scoring.read_tasks(tasks_file)
    lineage: Mapping[str, Recipe] = {}
    settings, seed = ReportSettings(), 0
    if (what / "study.json").exists():
        study = Study.open(what)
        results = _read_report(study, console)
        candidates = [*results.references.values(), *results.front] if front else [results.pick]
        if fields is None:
            metrics = {objective.name: objective.report for objective in results.objectives}
            rows = [Scored(one.name, one.recipe_id, one.report, one.mean) for one in candidates]
            _print(rows, metrics, console, as_json=as_json)
            return
        models = {one.name: Recipe.parse(one.recipe) for one in candidates}
        setup = replace(study.parts.setup, tasks=fields["tasks"], folder=fields["folder"])
        lineage, settings, seed = study.lineage(), study.settings.report, study.settings.seed
    elif front:
        raise StudyError(f"{what}: `--front` goes with a study's directory, and there is no study.json here")
    elif fields is None:
        raise StudyError(
            f"{what}: which tasks? give `--tasks FILE`: YAML with `tasks:` as in a study file, or a study file"
        )
    elif what.is_dir() or hub.hub_id(hub.locate(what)) is not None:
        # The base of a pool and its only expert, so that it is checked as the models of a pool are.
        path = str(Path(hub.resolve(hub.locate(what), step_printer(console))).resolve())
        models, setup = {str(what): base_recipe()}, Setup(path, {"model": path}, **fields)
    else:
        assert tasks_file is not None  # `fields` are its
        pool, recipe, lineage = read_recipe(what, options, console, "evomerge score RUN")
        statistics: Mapping[str, Mapping[str, str]] = {}
        if kinds := needed(recipe, lineage):
            from evomerge.cli.statistics import attach

            attach(pool, kinds, {}, what, tasks_file, None, console, made_of(recipe, lineage), dry_run=False)
            statistics = pool.evidence.folders if isinstance(pool.evidence, Collected) else {}
        if not recipe.members:
            Builder(pool, search=True).build_model(recipe)  # reads no tensor: an impossible recipe is refused now
        models, setup = {str(what): recipe}, replace(setup_of(pool, **fields), statistics=statistics)
    if device is not None:
        setup = replace(setup, device=str(placement.find(device)))
    with Progress("score", len(models), console) as progress:
        metrics, rows = scoring.score(models, setup, lineage, settings, seed, progress)
    checkpoint = (
        what if (what.is_dir() or hub.hub_id(hub.locate(what))) and not (what / "study.json").exists() else None
    )
    _print(rows, metrics, console, as_json=as_json, path=checkpoint)


def setup_of(pool: Pool, **fields: Any) -> Setup:
    """Return the setup of the tasks in `fields` on a pool that is open."""
    experts = {name: str(expert.path.resolve()) for name, expert in pool.experts.items()}
    heads: Literal["own"] | None = "own" if pool.heads else None
    choice = None if pool.vocabulary is None else pool.vocabulary.choice
    base = str(pool.base.path.resolve())
    return Setup(base, experts, like=pool.like, heads=heads, tokenizer=choice, **fields)


def compare(folders: list[Path], *, as_json: bool) -> None:
    """Compare studies with the same tasks."""
    console = Console(stderr=True) if as_json else new_console()
    studies = [Study.open(folder) for folder in folders]
    with Progress("report", 1, console) as progress:
        compared, comparisons = runs.compare(studies, progress)
    if not as_json:
        for part in tables.runs(compared, comparisons):
            console.print(part)
        return
    verdicts = [{**one.model_dump(), "verdict": one.verdict} for one in comparisons]
    data = {"runs": [run.public() for run in compared], "comparisons": verdicts}
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True) + "\n")


def _read_report(study: Study, console: Console) -> Results:
    """Return the last report of a study. Raises `StudyError` if there is none; a note says if the study has gone on."""
    path = study.folder / "report.json"
    try:
        results = Results.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        msg = f"{path}: no report of this version yet, which says what is picked; type: evomerge show {study.folder}"
        raise StudyError(msg) from None
    if results.digest != study.digest():
        say(
            console,
            f"note: the report is of {results.evaluations} evaluations, and there are more; type: evomerge show {study.folder}",
        )
    return results


def _print(
    rows: list[Scored], metrics: Mapping[str, str], console: Console, *, as_json: bool, path: Path | None = None
) -> None:
    """Print a table, or JSON that identifies a model by its recipe, a checkpoint by its `path`."""
    if not as_json:
        console.print(tables.scores(rows, metrics))
        return
    models = [
        {
            "name": row.name,
            **({"recipe_id": row.recipe_id} if path is None else {"path": str(path)}),
            "report": row.report,
            "mean": row.mean,
        }
        for row in rows
    ]
    sys.stdout.write(json.dumps({"metrics": metrics, "models": models}, indent=2, sort_keys=True) + "\n")
