"""The examples of a task by split: a file for each, or one file that is divided; no example is in two splits."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from evomerge.tasks.data import Columns, digests, read, task_error
from evomerge.tasks.task import TaskSettings
from evomerge.trial import Split


class FileSettings(TaskSettings):
    """The settings that every kind of task with examples in files has."""

    search: Path | None = None
    """The examples to search on: JSONL, Parquet, CSV or TSV, NPZ, a folder saved by Hugging Face `datasets`, or of images."""
    report: Path | None = None
    """The examples to report on, none of them in `search`."""
    examples: Path | None = None
    """One file or folder in place of `search` and `report`, divided by `split`."""
    split: float | None = Field(default=None, gt=0, lt=1)
    """The share of `examples` to search on; the others are reported on. Equal inputs are on one side, and the order of rows
    changes nothing; in a `group`, rows are divided by their numbers, as in its other tasks."""
    final: Path | None = None
    """Examples for one last measurement, `evomerge show --final`: none of them in `search` or `report`."""
    batch: int | None = Field(default=None, ge=1)
    """Number of examples that run together; another number changes the last bits of scores. By default as many as have 1,024
    tokens, at most 64; on an accelerator four times that."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        both = "`search` and `report`, or `examples` and `split`, as in `examples: all.jsonl, split: 0.5`"
        if self.examples is None and self.split is None:
            for key in ("search", "report"):
                if getattr(self, key) is None:
                    raise ValueError(f"`{key}` is missing; expected {both}")
        elif self.examples is None or self.split is None or self.search is not None or self.report is not None:
            came = [f"`{key}`" for key in ("search", "report", "examples", "split") if getattr(self, key) is not None]
            raise ValueError(f"expected either {both}; got {', '.join(came)}")
        return self


def read_splits(
    task: str, settings: FileSettings, columns: Sequence[str], folder: Path
) -> list[dict[Split, list[Any]]]:
    """Return the values of each of the `columns`, by split; relative paths start at `folder`.

    Raises `TaskError` if a file or column is missing, a split is empty, or an example is in two splits: reported scores
    would then include examples that the search has optimised.
    """
    paths: dict[Split, Path | None] = {split: getattr(settings, split) for split in ("search", "report", "final")}
    files = {split: folder / path for split, path in paths.items() if path is not None}
    splits = {split: read(task, file, columns) for split, file in files.items()}
    if settings.examples is not None:
        file = folder / settings.examples
        files = {"search": file, "report": file, **files}
        splits = {**_divided(task, settings, file, read(task, file, columns), columns[0]), **splits}
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


def _divided(task: str, settings: FileSettings, file: Path, values: Columns, first: str) -> Mapping[Split, Columns]:
    """Return the search and report examples among `values`, in their order, by a shuffle that their `first` column keys."""
    inputs = values[first]
    keys = digests(inputs) if settings.group is None else digests([settings.group, row] for row in range(len(inputs)))
    shuffled = sorted(set(keys), key=lambda key: hashlib.sha256(f"split\n{key}".encode()).digest())
    if len(shuffled) < 2:  # one for each side
        raise task_error(task, f"{file}: expected two or more different examples to divide, got {len(shuffled)}")
    searched = set(shuffled[: min(max(1, round((settings.split or 0) * len(shuffled))), len(shuffled) - 1)])

    def side(*, search: bool) -> Columns:
        chosen = [key in searched for key in keys]
        return {
            column: [value for value, one in zip(listed, chosen, strict=True) if one == search]
            for column, listed in values.items()
        }

    return {"search": side(search=True), "report": side(search=False)}
