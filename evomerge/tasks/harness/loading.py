"""Tasks of the harness: by name, from a folder of YAML files, or from an inline configuration."""

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError, nearest
from evomerge.tasks.data import task_error
from evomerge.tasks.harness import sandbox

_FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""Loaders of `datasets` that read data and nothing else; others, such as `pandas`, unpickle."""

_OTHERS = {
    "custom_dataset": "it is a function",
    "process_docs": "it is a function",
    "process_results": "it is a function",
    "unsafe_code": "it runs code that the model writes",
    "use_prompt": "write the prompt as `doc_to_text`",
    "doc_to_image": "images are not supported",
    "doc_to_audio": "sounds are not supported",
}
"""Keys of the harness that an inline configuration cannot have."""


@dataclass(frozen=True, slots=True)
class Found:
    """One task of the harness, or those of a group, with their data.

    `by_size`: a group's metric is the mean over all documents; else it is the mean of its tasks' means.
    """

    tasks: list[Any]
    by_size: bool


def load_named(task: str, name: str, include: Path | None) -> Found:
    """Return the harness's task or group `name`; `include` is a folder of YAML files that comes first.

    Raises `TaskError` for an unknown name, a tag, a task that cannot be scored document by document, and missing data.
    """
    sandbox.require(task)
    if include is not None and not include.is_dir():
        raise task_error(task, f"`include_path`: no such folder: {include}; expected one of YAML files of the harness")
    with sandbox.loading():
        manager = _manager(name, include)
        if name not in manager.all_tasks:
            raise task_error(task, f"the harness has no task `{name}`; {nearest(name, manager.all_tasks)}")
        if name in manager.all_tags:
            tagged = sorted(manager.task_index[name].tags)
            raise task_error(
                task, f"`{name}` is a tag, and tags have no score; name one of its tasks: {', '.join(tagged)}"
            )
        return _checked(task, name, _built(task, name, lambda: manager.load(name)))


def load_inline(task: str, config: Mapping[str, Any], folder: Path) -> Found:
    """Return the task of a configuration as the harness's YAML, in which relative paths of data start at `folder`.

    Raises `TaskError` for an unknown key, one that names code, a missing file, and what the harness refuses.
    """
    sandbox.require(task)
    from lm_eval.api.registry import metric_registry
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.config.task import TaskConfig

    known = {field.name for field in fields(TaskConfig)} - _OTHERS.keys()
    for key in config:
        if key in _OTHERS:
            raise task_error(task, f"`config` has `{key}`, which cannot be used here: {_OTHERS[key]}")
        if key not in known:
            raise task_error(task, f"`config` has an unknown key `{key}`; {nearest(str(key), known)}")
    for entry in config.get("metric_list") or ():
        metric = entry.get("metric") if isinstance(entry, Mapping) else entry
        if not isinstance(entry, Mapping) or metric not in metric_registry or entry.get("hf_evaluate"):
            msg = f"`metric_list` has `{metric}`; expected `- metric: NAME` with a metric of the harness: "
            raise task_error(task, msg + nearest(str(metric), metric_registry.keys()))
    if not config.get("test_split") and not config.get("validation_split"):
        raise task_error(
            task,
            "`config` has no `test_split` or `validation_split`; add the name of the split to score, such as `test_split: test`",
        )
    whole = {"task": task, **copy.deepcopy(dict(config)), "dataset_kwargs": _data(task, config, folder)}
    with sandbox.loading():
        return _checked(task, task, _built(task, None, lambda: {"tasks": {task: ConfigurableTask(config=whole)}}))


def _data(task: str, config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keywords of `datasets.load_dataset`, with absolute paths."""
    keywords = dict(config.get("dataset_kwargs") or {})
    if "trust_remote_code" in keywords:
        raise task_error(task, "`dataset_kwargs` has `trust_remote_code`; code of data sets never runs: leave it out")
    path = str(config.get("dataset_path"))
    if path not in _FORMATS and "/" not in path:
        expected = (
            f"expected one of {', '.join(_FORMATS)} with `dataset_kwargs: {{data_files: …}}`, or `org/name` on the hub"
        )
        raise task_error(task, f"`dataset_path` is `{path}`; {expected}")
    if path in _FORMATS and not keywords.get("data_files"):
        example = "dataset_kwargs: {data_files: {test: questions.jsonl}}"
        raise task_error(task, f"`dataset_path: {path}` needs files of data, such as `{example}`")
    if "data_files" in keywords:
        keywords["data_files"] = _located(task, keywords["data_files"], folder)
    return keywords


def _located(task: str, files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _located(task, entry, folder) for split, entry in files.items()}
    if isinstance(files, list | tuple):
        return [_located(task, entry, folder) for entry in files]
    path = folder / str(files)
    if not path.is_file():
        raise task_error(task, f"`data_files`: no such file: {path}; expected a file of the format `dataset_path`")
    return str(path.resolve())


def _manager(name: str, include: Path | None) -> Any:
    """Return an index of tasks with `name`, if there is one: of few files where these have it, since all take seconds."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    namesake = Path(str(lm_eval.tasks.__file__)).parent / name if re.fullmatch(r"[\w-]+", name) else None
    near = [str(path) for path in (namesake, include) if path is not None and path.is_dir()]
    if near:
        manager = TaskManager(include_path=near, include_defaults=False)
        if _is_whole(manager, name):
            return manager
    return TaskManager(include_path=str(include)) if include is not None else _all_tasks()


def _is_whole(manager: Any, name: str) -> bool:
    """Return whether the index has the task `name`, or the group with all of its tasks; a tag may have more elsewhere."""
    if name not in manager.all_groups:
        return name in manager.all_subtasks
    members = manager.task_index[name].cfg.get("task") or ()
    return all(isinstance(member, str) and _is_whole(manager, member) for member in members)


@functools.cache
def _all_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _built(task: str, name: str | None, build: Any) -> Mapping[str, Any]:
    """Return what the harness builds. Raises `TaskError` for data that are not on this machine, and for other errors of it."""
    try:
        built: Mapping[str, Any] = build()
    except TaskError:
        raise
    except (ConnectionError, FileNotFoundError) as error:
        typed = f"""python -c "from lm_eval.tasks import TaskManager; TaskManager().load('{name}')\""""
        fetch = f"; nothing is downloaded here: type: {typed}" if name else ""
        raise task_error(task, f"its data are not on this machine ({_line(error)}){fetch}") from None
    except Exception as error:  # the harness, and code of its tasks, raise anything
        raise task_error(task, f"the harness cannot load it: {type(error).__name__}: {_line(error)}") from error
    return built


def _checked(task: str, name: str, built: Mapping[str, Any]) -> Found:
    """Return the tasks if each can be scored document by document."""
    leaves = list(built["tasks"].values())
    group = (built.get("groups") or {}).get(name)
    aggregated = None if group is None else group.aggregate_metric_list
    if group is not None and not aggregated:
        names = ", ".join(leaf.task_name for leaf in leaves)
        raise task_error(task, f"the group `{name}` has no score of its own; name one of its tasks: {names}")
    for leaf in leaves:
        if leaf.OUTPUT_TYPE == "loglikelihood_rolling":
            msg = f"`{leaf.task_name}` measures rolling perplexity, which is no mean over documents; expected a task of another kind; or score its texts by `kind: language_modelling`"
            raise task_error(task, msg)
        functions = getattr(leaf, "_metric_fn_list", None) or {}
        missing = [metric for metric, function in functions.items() if function is None]
        if missing and not callable(leaf.config.process_results):
            msg = f"`{leaf.task_name}` has the metric `{missing[0]}`, a script of the hub, which evomerge does not run"
            raise task_error(task, msg)
        if getattr(leaf, "UNSAFE_CODE", False):
            raise task_error(task, f"`{leaf.task_name}` runs code that the model writes, which evomerge never does")
        if getattr(leaf, "MULTIMODAL", False):
            raise task_error(task, f"`{leaf.task_name}` has images or sounds; expected a task of texts")
    return Found(leaves, by_size=all(metric.weight_by_size for metric in aggregated or ()))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
