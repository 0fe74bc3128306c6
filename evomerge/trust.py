"""Trust: the code of studies that this account has agreed to run, known by the content of its files.

A study's directory names Python code. What `evomerge run` or `create_study` ran before runs again, wherever the directory is;
other code runs only after `evomerge trust`. Modules that are found outside of the study's folder are installed here, and so
the user's own. No code is imported to find its files.
"""

import ast
import contextlib
import hashlib
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from evomerge import files
from evomerge.errors import StudyError


def code_files(tasks: Mapping[str, Mapping[str, Any]], module: str | None, folder: Path) -> list[Path]:
    """Return the files of code that settings name, and those in `folder` that they import.

    `tasks` are settings by name, of which `callable` ones name modules, and `lm_eval` ones folders of YAML files that name
    functions; `module` is `FILE.py:FUNCTION`. A package, and such a folder, counts with all of its files.
    """
    found: dict[Path, None] = {}
    waiting = [] if module is None else [Path(module.rpartition(":")[0])]
    for task in tasks.values():
        if task.get("kind") == "callable":
            for where in (task.get("function"), task.get("gradient")):
                waiting += _files_of(str(where or ""), folder)
        if task.get("kind") == "lm_eval" and task.get("include_path"):  # its YAML files name functions of any module
            files_there = sorted((folder / str(task["include_path"])).rglob("*"))
            waiting += [file for file in files_there if file.suffix in {".py", ".yaml", ".yml"}]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # it cannot be imported, either
            for node in ast.walk(ast.parse(file.read_bytes())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.append(node.module)
                for name in names:
                    waiting += _files_of(name, folder)
    return sorted(found)


def record(code: list[Path]) -> None:
    """Agree to run files of this content from now on. Raises OSError where that cannot be kept."""
    for file in code:
        files.write(_place(file), f"{file}\n")


def check(code: list[Path], folder: Path) -> None:
    """Raise `StudyError` if some of the code of the study in `folder` is not agreed to."""
    unknown = [str(file) for file in code if not _place(file).is_file()]
    if unknown:
        raise StudyError(
            f"{folder}: the study runs code that this account has not run before, or that has changed since: {', '.join(unknown)}; "
            f"read it, then type `evomerge trust {folder}`; a search goes on only with the code that it began with"
        )


def remove_compiled(code: list[Path]) -> None:
    """Remove Python's compiled copies of the code, which it would run in place of what a user reads, and makes again.

    Raises `StudyError` where they are in another folder, to which a link leads.
    """
    for file in code:
        folder = file.parent / "__pycache__"
        if folder.is_symlink():
            raise StudyError(f"{folder}: a link; expected Python's folder of compiled code; remove it first")
        for compiled in folder.glob(f"{file.stem}.*"):
            compiled.unlink()


def _files_of(name: str, folder: Path) -> list[Path]:
    """Return the files of the module or package `name` in `folder`, none if it is not there."""
    spec = PathFinder.find_spec(name.partition(":")[0].partition(".")[0], [str(folder)])
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(str(spec.origin))]
    return [file for place in spec.submodule_search_locations for file in sorted(Path(place).rglob("*.py"))]


def _place(file: Path) -> Path:
    """Return the file of the cache that says that a file of this content is agreed to."""
    return files.cache() / "trusted" / hashlib.sha256(file.read_bytes()).hexdigest()
