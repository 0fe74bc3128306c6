"""Digests: the sha256 of what a study is made of beside its settings and weights: the user's code, and files of examples."""

import ast
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.evaluate import Setup
from evomerge.tasks import Task
from evomerge.tasks.data import IMAGES


def code_digests(setup: Setup) -> dict[str, dict[str, str]]:
    """Return the sha256 of the file of each function that the settings name, and of what it imports from the study's folder.

    Without such functions, nothing.
    """
    files = {} if setup.module is None else {"module": Path(setup.module.rpartition(":")[0])}
    for task in setup.tasks.values():
        if task.get("kind") == "callable":
            for where in filter(None, (task["function"], task.get("gradient"))):
                module = sys.modules[where.partition(":")[0]]  # the task has imported it
                files[where] = Path(getattr(module, "__file__", None) or "")  # a module built into Python has no file
    folder = Path(setup.folder).resolve()
    for name, file in list(files.items()):
        files |= {f"{name} imports {path.relative_to(folder)}": path for path in _imported(file, folder)}
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file.is_file()}
    return {"code_digests": digests} if digests else {}


def _imported(file: Path, folder: Path) -> list[Path]:
    """Return the loaded files inside `folder` that `file` imports, and those that they import."""
    found: list[Path] = []
    waiting = [file] if file.is_file() and file.is_relative_to(folder) else []
    while waiting:
        nodes = list(ast.walk(ast.parse(waiting.pop().read_bytes())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = Path(str(getattr(sys.modules.get(name), "__file__", None) or ""))
            if path.suffix == ".py" and path.is_file() and path.is_relative_to(folder) and path not in (file, *found):
                found.append(path)
                waiting.append(path)
    return sorted(found)


def data_digest(task: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Return the sha256 of every file or folder of data in a task's settings, by key."""
    digests = {}
    for key in [key for key in ("search", "report", "examples", "final", "head") if isinstance(task.get(key), str)]:
        path = Path(folder) / task[key]
        digest = hashlib.sha256()
        for file in [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file()):
            if file.suffix.lower() in IMAGES:  # its folder is its class
                digest.update(file.relative_to(path.parent if path.is_file() else path).as_posix().encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        digests[key] = digest.hexdigest()
    return digests


def task_digests(tasks: Mapping[str, Task]) -> dict[str, str]:
    """Return the digests of what tasks read from elsewhere than the files that their settings name, by task."""
    return {name: digest for name, task in tasks.items() if (digest := task.digest()) is not None}
