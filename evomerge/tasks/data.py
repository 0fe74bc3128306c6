"""Reading columns of examples: JSONL, Parquet, CSV, NPZ, a folder of images, or one saved by Hugging Face `datasets`.

Texts are `str`, numbers are `int` and `float`, arrays are lists or numpy arrays, an image in a file is its bytes.
"""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evomerge.errors import TaskError, nearest

Columns = Mapping[str, list[Any]]
"""Values by column, all of one length: one entry per example."""

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of files that are images."""

_DATASETS_FILES = ("state.json", "dataset_info.json", "dataset_dict.json")


def task_error(task: str, message: str) -> TaskError:
    """Return a `TaskError` whose message starts with the task's name."""
    return TaskError(f"task `{task}`: {message}")


def texts(task: str, column: str, values: Sequence[Any]) -> list[str]:
    """Return `values` if each is a non-empty text. Raises `TaskError` naming the first that is not."""
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise task_error(task, f"column `{column}`, example {index}: expected a text, got {shown(value)}")
    return list(values)


def class_numbers(task: str, column: str, values: Sequence[Any], ends: Iterable[int | None]) -> list[int]:
    """Return `values` if each is an integer from 0 to below its end (None: no end). Raises `TaskError`.

    Digits in a text are an integer, since CSV has only texts.
    """
    numbers = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
    for index, (value, end) in enumerate(zip(numbers, ends, strict=True)):
        integer = isinstance(value, int) and not isinstance(value, bool)
        if not integer or value < 0 or (end is not None and value >= end):
            top = "up" if end is None else f"to {end - 1}"
            msg = f"column `{column}`, example {index}: expected an integer from 0 {top}, got {shown(value)}"
            raise task_error(task, msg)
    return numbers


def read(task: str, path: Path, columns: Sequence[str]) -> Columns:
    """Return the `columns` of the examples in a file or folder. Raises `TaskError` for one that is missing or malformed."""
    if path.is_dir():
        images = not any((path / file).exists() for file in _DATASETS_FILES) and image_files(path)
        return _read_images(task, path, columns, images) if images else _read_folder(task, path, columns)
    if path.exists() and path.suffix in _READERS:
        return _READERS[path.suffix](task, path, columns)
    came = str(path) if path.exists() else f"no such file or folder: {path}"
    msg = (
        f"{came}; expected examples as .jsonl, .parquet, .csv, .tsv, .npz, or a folder: one saved by `datasets`, or one of images, "
        "such as cat/1.png"
    )
    raise task_error(task, msg)


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
                raise task_error(task, f"{path}, line {number}: expected a JSON object, got {shown(row)}")
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
    return {column: _contents(task, path, column, table.column(column).to_pylist()) for column in columns}


def _read_table(task: str, path: Path, columns: Sequence[str]) -> Columns:
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the line of names
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8"
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise task_error(task, f"{path}: not a table in UTF-8 with a line of column names ({error})") from None
    _check_columns(task, str(path), columns, list(table.columns))
    return {column: table[column].tolist() for column in columns}


def _read_arrays(task: str, path: Path, columns: Sequence[str]) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            _check_columns(task, str(path), columns, arrays.files)
            found = {column: arrays[column] for column in columns}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        msg = f"{path}: not arrays that `numpy.savez` wrote, of numbers or texts ({error})"
        raise task_error(task, msg) from None
    shapes = {column: array.shape for column, array in found.items()}
    if len({shape[:1] for shape in shapes.values()}) != 1 or () in shapes.values():
        said = ", ".join(f"`{column}` {list(shape)}" for column, shape in shapes.items())
        raise task_error(task, f"{path}: expected arrays with one entry for each example, got shapes {said}")
    return {column: array.tolist() if array.ndim == 1 else list(array) for column, array in found.items()}


def _read_images(task: str, path: Path, columns: Sequence[str], files: Sequence[Path]) -> Columns:
    """Return the images in the folders of `path`, which are the classes, and their labels: columns `image` and `label`."""
    _check_columns(task, str(path), columns, ("image", "label"))
    for file in files:
        if file.parent == path:
            msg = f"{file}: expected each image in the folder of its class, such as {path.name}/cat/{file.name}"
            raise task_error(task, msg)
    readers: Mapping[str, Callable[[Path], Any]] = {
        "image": Path.read_bytes,
        "label": lambda file: file.relative_to(path).parts[0],
    }
    return {column: [readers[column](file) for file in files] for column in columns}


def image_files(path: Path) -> list[Path]:
    """Return the images in a folder and the folders in it, in the order of their names."""
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())


def _contents(task: str, path: Path, column: str, values: list[Any]) -> list[Any]:
    """Return `values`, with the bytes of each image that is stored as `datasets` and Parquet files of the hub store it."""
    if not values or not isinstance(values[0], dict) or values[0].keys() != {"bytes", "path"}:
        return values
    for index, value in enumerate(values):
        if value is None or value["bytes"] is None:
            msg = (
                f"{path}: column `{column}`, example {index}: an image without its content; expected its bytes in the file, as "
                "`Dataset.save_to_disk` and `Dataset.push_to_hub` write them"
            )
            raise task_error(task, msg)
    return [value["bytes"] for value in values]


def _read_folder(task: str, path: Path, columns: Sequence[str]) -> Columns:
    try:
        import datasets
    except ImportError:
        raise _package_missing(task, path, "datasets") from None
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise task_error(
            task, f"{path}: not a folder saved by `datasets` (Dataset.save_to_disk), and without images: {error}"
        ) from None
    if isinstance(data, datasets.DatasetDict):
        splits = ", ".join(f"{path.name}/{split}" for split in data)
        raise task_error(task, f"{path}: expected one data set, got one for each split; give one of {splits}")
    _check_columns(task, str(path), columns, data.column_names)
    data = data.with_format(None)
    for column in columns:
        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return {column: _contents(task, path, column, list(data[column])) for column in columns}


def _check_columns(task: str, where: str, columns: Sequence[str], known: Collection[str]) -> None:
    for column in columns:
        if column not in known:
            raise task_error(task, f"{where}: no column `{column}`; {nearest(column, known)}")


def _package_missing(task: str, path: Path, package: str) -> TaskError:
    return task_error(task, f"reading {path} needs the package {package}; type: pip install 'evomerge[data]'")


def digests(values: Iterable[Any]) -> list[str]:
    """Return the hexadecimal sha256 of each value."""
    return [hashlib.sha256(json.dumps(value, default=_plain).encode()).hexdigest() for value in values]


def _plain(value: Any) -> Any:
    """Return what identifies a value that JSON cannot hold."""
    if isinstance(value, np.ndarray):
        return [list(value.shape), str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def shown(value: Any) -> str:
    """Return `value` as a part of an error's one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # one line of an error


_READERS: Mapping[str, Callable[[str, Path, Sequence[str]], Columns]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".npz": _read_arrays,
}
