"""Reading a task's examples from JSONL, Parquet, or a folder saved by Hugging Face `datasets`."""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError, nearest
from evomerge.trial import Split

Columns = Mapping[str, list[Any]]
"""Values by column, all of one length: one entry per example."""


def read_splits(
    task: str, paths: Mapping[Split, Path], columns: Sequence[str], folder: Path
) -> list[dict[Split, list[Any]]]:
    """Return the values of each of the `columns`, by split; relative paths start at `folder`.

    Raises `TaskError` if a file or column is missing, a split is empty, or an example is in two splits: reported scores
    would then include examples that the search has optimised.
    """
    files = {split: folder / path for split, path in paths.items()}
    splits = {split: _read(task, file, columns) for split, file in files.items()}
    for split, file in files.items():
        if not splits[split][columns[0]]:
            raise task_error(task, f"a task without examples: expected at least one for `{split}` in {file}")
    keys = {split: digests(zip(*values.values(), strict=True)) for split, values in splits.items()}
    for one, other in itertools.combinations(files, 2):
        shared = set(keys[one]) & set(keys[other])
        if shared:
            first = next(i for i, key in enumerate(keys[other]) if key in shared)
            msg = (
                f"`{one}` and `{other}` must be disjoint, but {len(shared)} examples are in both "
                f"(the first is example {first} of {files[other]}); remove them from one of the two"
            )
            raise task_error(task, msg)
    return [{split: values[column] for split, values in splits.items()} for column in columns]


def task_error(task: str, message: str) -> TaskError:
    """Return a `TaskError` whose message starts with the task's name."""
    return TaskError(f"task `{task}`: {message}")


def texts(task: str, column: str, values: Sequence[Any]) -> list[str]:
    """Return `values` if each is a non-empty text. Raises `TaskError` naming the first that is not."""
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise task_error(task, f"column `{column}`, example {index}: expected a text, got {_shown(value)}")
    return list(values)


def class_numbers(task: str, column: str, values: Sequence[Any], ends: Iterable[int | None]) -> list[int]:
    """Return `values` if each is an integer from 0 to below its end (None: no end). Raises `TaskError`."""
    for index, (value, end) in enumerate(zip(values, ends, strict=True)):
        integer = isinstance(value, int) and not isinstance(value, bool)
        if not integer or value < 0 or (end is not None and value >= end):
            top = "up" if end is None else f"to {end - 1}"
            msg = f"column `{column}`, example {index}: expected an integer from 0 {top}, got {_shown(value)}"
            raise task_error(task, msg)
    return list(values)


def _read(task: str, path: Path, columns: Sequence[str]) -> Columns:
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_jsonl}
    if path.is_dir():
        return _read_folder(task, path, columns)
    if path.exists() and path.suffix in readers:
        return readers[path.suffix](task, path, columns)
    came = str(path) if path.exists() else f"no such file or folder: {path}"
    raise task_error(task, f"{came}; expected examples as .jsonl, .parquet, or a folder saved by `datasets`")


def _read_jsonl(task: str, path: Path, columns: Sequence[str]) -> Columns:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                msg = f"{path}, line {number}: expected one JSON object on each line ({error})"
                raise task_error(task, msg) from None
            if not isinstance(row, dict):
                raise task_error(task, f"{path}, line {number}: expected a JSON object, got {_shown(row)}")
            _check_columns(task, f"{path}, line {number}", columns, row)
            for column in columns:
                values[column].append(row[column])
    return values


def _read_parquet(task: str, path: Path, columns: Sequence[str]) -> Columns:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow has no types
        from pyarrow import parquet
    except ImportError:
        raise _package_missing(task, path, "pyarrow") from None
    try:
        _check_columns(task, str(path), columns, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=list(columns))
    except pa.ArrowException as error:
        raise task_error(task, f"{path}: not a Parquet file that can be read ({error})") from None
    return {column: table.column(column).to_pylist() for column in columns}


def _read_folder(task: str, path: Path, columns: Sequence[str]) -> Columns:
    try:
        import datasets
    except ImportError:
        raise _package_missing(task, path, "datasets") from None
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise task_error(task, f"{path}: not a folder saved by `datasets` (Dataset.save_to_disk): {error}") from None
    if isinstance(data, datasets.DatasetDict):
        splits = ", ".join(f"{path.name}/{split}" for split in data)
        raise task_error(task, f"{path}: expected one data set, got one for each split; give one of {splits}")
    _check_columns(task, str(path), columns, data.column_names)
    return {column: list(data.with_format(None)[column]) for column in columns}


def _check_columns(task: str, where: str, columns: Sequence[str], known: Collection[str]) -> None:
    for column in columns:
        if column not in known:
            raise task_error(task, f"{where}: no column `{column}`; {nearest(column, known)}")


def _package_missing(task: str, path: Path, package: str) -> TaskError:
    return task_error(task, f"reading {path} needs the package {package}; type: pip install 'evomerge[data]'")


def digests(values: Iterable[Any]) -> list[str]:
    """Return the hexadecimal sha256 of each value."""
    return [hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest() for value in values]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # one line of an error
