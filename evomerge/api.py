"""The Python API: studies, results and checkpoints from a script or a notebook. `import evomerge` exports it.

The command line resumes and shows the same studies, and the reverse, unless their tasks are Python functions.
"""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evomerge import files, search
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import SHARD_BYTES, parse_size
from evomerge.errors import ModelError, StudyError
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.report import choose, measure
from evomerge.report.export import export as export_recipe
from evomerge.report.results import Candidate, Results
from evomerge.settings import StudySettings
from evomerge.study import Study
from evomerge.tasks import PythonTask


def create_study(
    folder: str | Path,
    *,
    pool: Mapping[str, Any],
    space: Any,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Study:
    """Return the study in `folder`: a new one, or the one that was created there with the same arguments.

    Args:
        folder: The study's directory.
        pool: `{"zoo": NAME}`, or `{"base": MODEL, "experts": {NAME: MODEL, ...}}`. A model is a checkpoint folder or a loaded
            transformers model; with a loaded base, `"tokenizer"` may give its tokenizer.
        space: The name of a shipped space, a file, or a search space as nested dictionaries.
        tasks: By name, settings as in a study file, or the result of `evomerge.task`. A zoo has tasks by default.
        settings: Any other key of a study file, such as `evaluations`, `driver`, `seed`, `workers` or `device`.

    Raises `StudyError` if another study is there, and the errors of the pool, the space and the tasks. Warns of more genes
    along slopes than search examples, where nothing shrinks them.
    """
    tasks = tasks or {}
    for what, value in {
        "pool": pool,
        "tasks": tasks,
        **{f"task `{name}`": task for name, task in dict(tasks).items()},
    }.items():
        if not isinstance(value, Mapping):
            msg = f"{what}: expected settings as a mapping{', or evomerge.task(function, ...)' * ('task' in what)}, got {value!r}"
            raise StudyError(msg)
    data = settings | {"pool": _with_folders(pool), "space": space, "tasks": {key: dict(tasks[key]) for key in tasks}}
    python_tasks = {name: task for name, task in tasks.items() if isinstance(task, PythonTask)}
    study = Study.create(Path(folder), StudySettings.parse(data, "create_study", Path.cwd()), python_tasks=python_tasks)
    parts, driver = study.parts, study.parts.new_driver(study.settings.seed)
    if unshrunk := search.unshrunk(parts.driver, driver, parts.space, sum(parts.sizes["search"].values())):
        warnings.warn(unshrunk, stacklevel=2)
    return study


def task(
    function: Callable[..., Any],
    *,
    search: Sequence[Any],
    report: Sequence[Any],
    metrics: Sequence[str] = ("score",),
    gradient: Callable[..., Any] | None = None,
    batch: int = 8,
    keep_margins: bool = False,
) -> PythonTask:
    """Return a task that scores a model by a Python `function`, for `create_study`.

    `function(model, examples)` gets a `LiveModel` (`.module`, `.tokenizer`) and a list of some of the examples, and returns one
    score per example, higher is better: a vector, or a mapping from each of `metrics` to one. A search sees the examples in
    `search`, results are judged on those in `report`. The function's source and the examples are part of the study's identity.

    `gradient(model, examples)`, for drivers that use slopes, returns the first metric as a torch tensor `(examples,)` with a
    graph back to the parameters of `model.module`. It is called with up to `batch` examples at a time.

    With `keep_margins` the mapping also has `margins`, a table `(examples, columns)`: `{"accuracy": right, "margins": table}`.
    An example is right where all of its row are positive. Driver `front` predicts accuracy best from margins.
    """
    return PythonTask(function, search, report, metrics, gradient, batch, keep_margins=keep_margins)


def results(study: Study, *, final: bool = False, progress: bool = True) -> Results:
    """Return the front of a `study` and its references, scored on unseen examples, with intervals.

    With `final`, those are the final examples of the tasks instead of the report's.
    Scores are kept in the study's directory, so that nothing is scored twice. Raises `StudyError` if no candidate has been
    evaluated.
    """
    with Progress("report", 1, Console(quiet=not progress)) as bar:
        return measure.measure(study, watch=bar, split="final" if final else "report")


def pick(
    study: Study,
    results: Results,
    *,
    weights: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    best: str | None = None,
    wish: Mapping[str, float] | None = None,
    tchebycheff: Mapping[str, float] | None = None,
    knee: bool = False,
    anyway: bool = False,
) -> Candidate:
    """Return the point of the front, or the reference, that fits a preference best; by default `results.pick`.

    Models are chosen by estimates from the search examples. The preferences are those of `evomerge pick`. With `anyway`,
    references are left out. Raises `StudyError` for two preferences, and where no model satisfies the floors.
    """
    if [objective.name for objective in results.objectives] != list(study.parts.tasks):
        names = ", ".join(objective.name for objective in results.objectives)
        raise StudyError(f"pick: these are results of another study, of {names}; expected results of {study.folder}")
    preference = choose.Preference(weights, floors, best, wish, tchebycheff, knee)
    return choose.choose(results, preference, anyway=anyway)


def export(
    source: Study | Pool,
    candidate: Candidate | Recipe,
    folder: str | Path,
    *,
    results: Results | None = None,
    dtype: str | None = None,
    shard_size: str | None = None,
    head: str | None = None,
    device: str = "cpu",
) -> Path:
    """Write the model of a `candidate` or recipe as a checkpoint that transformers loads, and return its folder.

    `source` is the study or the pool with the models. With `results`, the model card shows a candidate's scores. The weights are
    stored as `dtype`, float32, bfloat16 or float16, by default as the base's, in files of up to `shard_size`, such as "5GB", by
    default 2 GiB. Where heads are not merged, `head` names the expert whose head the checkpoint has; None writes one for each,
    into folders of their names. The merge is made on `device`, with the same bytes on each. Raises `CheckpointError` if `folder` is not empty, and for numbers too large for the dtype.
    """
    recipe = candidate if isinstance(candidate, Recipe) else Recipe.parse(candidate.recipe)
    pool, lineage = (source, {}) if isinstance(source, Pool) else (source.parts.pool, source.lineage())
    scored = None if isinstance(candidate, Recipe) or results is None else candidate
    shard_bytes = SHARD_BYTES if shard_size is None else parse_size(shard_size)
    stored: dict[str, Any] = {"dtype": dtype, "shard_bytes": shard_bytes, "head": head, "device": device}
    export_recipe(recipe, pool, Path(folder), lineage=lineage, results=results, candidate=scored, **stored)
    return Path(folder)


def _with_folders(pool: Mapping[str, Any]) -> dict[str, Any]:
    """Return pool settings with loaded models replaced by checkpoint folders."""
    settings = {key: value for key, value in pool.items() if key != "tokenizer"}
    if "tokenizer" in pool and isinstance(pool.get("base"), str | Path):
        raise StudyError("pool: `tokenizer` goes with a base that is loaded; a checkpoint folder has its own")
    if "base" in settings:
        settings["base"] = str(_folder_of(settings["base"], pool.get("tokenizer")))
    if isinstance(settings.get("experts"), Mapping):
        settings["experts"] = {name: str(_folder_of(model)) for name, model in settings["experts"].items()}
    return settings


def _folder_of(model: Any, tokenizer: Any = None) -> Path:
    """Return a checkpoint folder with a transformers `model` and its `tokenizer`. A path is returned as it is.

    The folder is in the cache, named by a digest of its content: the same model is written once. Raises `ModelError` for an
    object that has no `save_pretrained`.
    """
    if isinstance(model, str | Path):
        return Path(model)
    parts = [model] if tokenizer is None else [model, tokenizer]
    for value in parts:
        if not hasattr(value, "save_pretrained"):
            raise ModelError(
                f"expected a checkpoint folder, or a transformers model or tokenizer that is loaded, got {type(value).__name__}; "
                "save other modules as safetensors, and give the study `module: FILE.py:FUNCTION`"
            )
    parent = files.cache() / "loaded"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        folder = Path(scratch) / "model"
        for value in parts:
            value.save_pretrained(folder)
        digest = hashlib.sha256()
        for file in sorted(folder.iterdir()):
            with file.open("rb") as content:
                digest.update(f"{file.name}\n{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        place = parent / digest.hexdigest()[:32]
        if not place.exists():
            shutil.move(folder, place)
    return place
