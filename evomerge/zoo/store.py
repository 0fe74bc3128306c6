"""Zoos on disk: one cache folder per content digest, written atomically, with a manifest."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from evomerge import files
from evomerge.errors import ZooError
from evomerge.zoo.packages import distribution

Progress = Callable[[float, str], None]
"""Called with the fraction of the build that is done, 0 to 1, and the current step."""

TaskConfig = dict[str, Any]
"""A task as in a study's YAML: `kind`, `search`, `report` and the keys of its kind."""

SPLITS = ("train", "search", "report")
MANIFEST = "zoo.json"
_FORMAT = 1  # increment with any change of the code that changes the files of a build
_FILE_KEYS = ("search", "report", "head")


Contents = tuple[dict[str, TaskConfig], dict[str, Any]]
"""The results of a build beside the checkpoints in `base/` and `experts/`: tasks by name, with paths relative to the folder,
and figures measured on the search split."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to build a zoo: everything that determines its bytes except the seed.

    `experts` are the names of the folders in `experts/`; `settings` must be JSON; `packages` are the distributions whose
    versions affect the contents; `licences` has the licence of each source. `make(folder, seed, progress)` fills an empty folder.
    """

    name: str
    about: str
    experts: tuple[str, ...]
    settings: Mapping[str, Any]
    packages: tuple[str, ...]
    licences: Mapping[str, str]
    make: Callable[[Path, int, Progress], Contents]
    group: str | None = None
    """`group` of all tasks, added on reading: their examples are the same, row for row."""

    def digest(self, seed: int) -> str:
        """Return the sha256 (hexadecimal) of the settings, the seed and the package versions."""
        determined = {
            "format": _FORMAT,
            "name": self.name,
            "seed": seed,
            "settings": dict(self.settings),
            # A missing package has no version; the build then raises the error.
            "packages": {package: getattr(distribution(package), "version", None) for package in self.packages},
        }
        return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()

    def folder(self, parent: Path, seed: int) -> Path:
        """Return the folder of this zoo in `parent`, whether or not it exists."""
        return parent / f"{self.name}-{self.digest(seed)[:16]}"


class Zoo(BaseModel, extra="forbid", frozen=True):
    """A built zoo: a base, its experts and their tasks, ready for a study.

    All paths are absolute; in `zoo.json` they are relative to its folder, so that a zoo can be moved. `pool` is
    `{"base": PATH, "experts": {NAME: PATH}}`; `tasks` are configurations by name; `figures` has, for each task, the accuracy
    or log-likelihood on the search split of the base and of the task's expert (of all experts, if it has none).
    """

    name: str
    about: str
    seed: int
    digest: str
    settings: dict[str, Any]
    licences: dict[str, str]
    pool: dict[str, Any]
    tasks: dict[str, TaskConfig]
    figures: dict[str, Any]
    folder: Path = Field(default=Path(), exclude=True)


def write_splits(folder: Path, task: str, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, str]:
    """Write the rows of each split to `tasks/TASK/SPLIT.jsonl` in the `folder` of a zoo.

    Returns the paths of the search and the report split, relative to `folder`.
    """
    (folder / "tasks" / task).mkdir(parents=True)
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "tasks" / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {split: f"tasks/{task}/{split}.jsonl" for split in ("search", "report")}


def cache_folder() -> Path:
    """Return the default folder of zoos: `zoo/` in evomerge's cache folder."""
    return files.cache() / "zoo"


def publish(plan: Plan, parent: Path, seed: int, progress: Progress) -> Zoo:
    """Build the zoo of `plan` in `parent` and return it; an existing one is replaced. An interrupted build leaves no zoo behind."""
    parent.mkdir(parents=True, exist_ok=True)
    final = plan.folder(parent, seed)
    with files.new_folder(final) as new:
        tasks, figures = plan.make(new, seed, progress)
        zoo = Zoo(
            name=plan.name,
            about=plan.about,
            seed=seed,
            digest=plan.digest(seed),
            settings=dict(plan.settings),
            licences=dict(plan.licences),
            pool={"base": "base", "experts": {name: f"experts/{name}" for name in plan.experts}},
            tasks=tasks,
            figures=figures,
        )
        (new / MANIFEST).write_text(zoo.model_dump_json(indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
    progress(1.0, "built")
    return read(final, plan.group)


def read(folder: Path, group: str | None = None) -> Zoo:
    """Return the zoo in `folder`. Raises `ZooError` if there is none, or if its manifest is not valid."""
    path = folder / MANIFEST
    try:
        zoo = Zoo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ZooError(f"expected a zoo with its `{MANIFEST}` at `{folder}`, but there is none") from None
    except ValidationError as error:
        msg = f"`{path}` is not a valid manifest; remove `{folder}` and build the zoo again\n{error}"
        raise ZooError(msg) from error
    root = folder.absolute()
    experts = {name: str(root / path) for name, path in zoo.pool["experts"].items()}
    tasks = {
        name: {key: str(root / value) if key in _FILE_KEYS else value for key, value in task.items()}
        | ({} if group is None else {"group": group})
        for name, task in zoo.tasks.items()
    }
    pool = {"base": str(root / zoo.pool["base"]), "experts": experts}
    return zoo.model_copy(update={"folder": root, "pool": pool, "tasks": tasks})
