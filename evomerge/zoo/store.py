"""Where zoos lie on disk: a cache folder per content digest, written whole or not at all, and its manifest.

What a zoo holds is made by the modules beside this one; here it is only named, published and read back.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from evomerge import files
from evomerge.errors import ZooError
from evomerge.zoo.packages import distribution

Progress = Callable[[float, str], None]
"""Told the fraction done of the whole build (0 to 1) and what is under way."""

TaskConfig = dict[str, Any]
"""A task as a study's YAML gives it: `kind`, `search`, `report` and what that kind needs."""

MANIFEST = "zoo.json"
_FORMAT = 1  # raise it with any change of code that changes what a build writes
_FILE_KEYS = ("search", "report", "head")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a build put into its folder beside `base/` and `experts/`.

    `tasks` are configurations with paths relative to the folder, `figures` what was measured on the search split.
    """

    tasks: dict[str, TaskConfig]
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one zoo is made, and everything that determines its bytes apart from the seed.

    `experts` are the names of the folders under `experts/`; `settings` must be JSON; `packages` are the distributions
    whose versions matter; `licences` says under which terms each source stands. `make(folder, seed, progress)` fills
    an empty folder.
    """

    name: str
    about: str
    experts: tuple[str, ...]
    settings: Mapping[str, Any]
    packages: tuple[str, ...]
    licences: Mapping[str, str]
    make: Callable[[Path, int, Progress], Contents]

    def digest(self, seed: int) -> str:
        """Return the sha256 (hexadecimal) of all that determines the contents: settings, seed, package versions."""
        determined = {
            "format": _FORMAT,
            "name": self.name,
            "seed": seed,
            "settings": dict(self.settings),
            "packages": {package: _version(package) for package in self.packages},
        }
        return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()

    def folder(self, parent: Path, seed: int) -> Path:
        """Return where this zoo lies, or would lie, under `parent`."""
        return parent / f"{self.name}-{self.digest(seed)[:16]}"


@dataclass(frozen=True, slots=True)
class Zoo:
    """A built zoo: a base, its experts and their tasks, ready for a study. All paths are absolute.

    `pool` is `{"base": PATH, "experts": {NAME: PATH}}`; `tasks` are configurations by name; `figures` hold, for each
    task, the accuracy or loss of the base and of the task's own expert (or of all, where it has none) on the search split.
    """

    name: str
    folder: Path
    seed: int
    about: str
    licences: dict[str, str]
    pool: dict[str, Any]
    tasks: dict[str, TaskConfig]
    figures: dict[str, Any]

    def train(self, task: str) -> Path:
        """Return the JSONL of the examples on which the expert of `task` was trained."""
        if task not in self.tasks:
            msg = f"the zoo `{self.name}` has no task `{task}`; it has {', '.join(self.tasks)}"
            raise ZooError(msg)
        return self.folder / "tasks" / task / "train.jsonl"


class _Pool(BaseModel):
    model_config = ConfigDict(extra="forbid")
    base: str
    experts: dict[str, str]


class _Manifest(BaseModel):
    """`zoo.json`, with paths relative to its folder, so that a zoo can be moved."""

    model_config = ConfigDict(extra="forbid")
    name: str
    about: str
    seed: int
    digest: str
    settings: dict[str, Any]
    licences: dict[str, str]
    pool: _Pool
    tasks: dict[str, TaskConfig]
    figures: dict[str, Any]


def cache_folder() -> Path:
    """Return where zoos are kept: `zoo/` in evomerge's cache folder."""
    return files.cache() / "zoo"


def publish(plan: Plan, parent: Path, seed: int, progress: Progress) -> Zoo:
    """Make the zoo of `plan` under `parent` and return it; one that was there already is replaced.

    It is written beside its final place and renamed, so a build that is cut short leaves no zoo behind.
    """
    parent.mkdir(parents=True, exist_ok=True)
    final = plan.folder(parent, seed)
    with _scratch(parent, plan.name) as scratch:
        made = scratch / "new"
        made.mkdir()
        contents = plan.make(made, seed, progress)
        manifest = _Manifest(
            name=plan.name,
            about=plan.about,
            seed=seed,
            digest=plan.digest(seed),
            settings=dict(plan.settings),
            licences=dict(plan.licences),
            pool=_Pool(base="base", experts={name: f"experts/{name}" for name in plan.experts}),
            tasks=contents.tasks,
            figures=contents.figures,
        )
        (made / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if final.exists():
            final.rename(scratch / "old")
        made.rename(final)
    progress(1.0, "built")
    return read(final)


def read(folder: Path) -> Zoo:
    """Return the zoo that lies in `folder`. Raises `ZooError` where there is none, or its manifest is not valid."""
    path = folder / MANIFEST
    try:
        manifest = _Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        msg = f"expected a zoo with its `{MANIFEST}` at `{folder}`, but there is none"
        raise ZooError(msg) from None
    except ValidationError as error:
        msg = f"`{path}` is not a valid manifest; remove `{folder}` and build the zoo again\n{error}"
        raise ZooError(msg) from error
    root = folder.absolute()
    return Zoo(
        name=manifest.name,
        folder=root,
        seed=manifest.seed,
        about=manifest.about,
        licences=manifest.licences,
        pool={
            "base": str(root / manifest.pool.base),
            "experts": {name: str(root / path) for name, path in manifest.pool.experts.items()},
        },
        tasks={
            name: {key: str(root / value) if key in _FILE_KEYS else value for key, value in task.items()}
            for name, task in manifest.tasks.items()
        },
        figures=manifest.figures,
    )


@contextmanager
def _scratch(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder on the same file system as `parent`, so that a rename out of it is atomic."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _version(package: str) -> str | None:
    """Return the version of a distribution, or None if it is missing (the build then raises the error)."""
    source = distribution(package)
    return source.version if source else None
