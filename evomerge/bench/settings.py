"""Settings of a bench: its YAML, checked, with the study that they describe."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from evomerge import strict_yaml, tasks, zoo
from evomerge.errors import StudyError, nearest
from evomerge.merging import METHODS
from evomerge.parts import sources
from evomerge.recipe import describe
from evomerge.recipe.validation import FrozenModel
from evomerge.settings import StudySettings

_OF_STUDIES = (
    "name",
    "about",
    "pool",
    "tasks",
    "defaults",
    "folder",
    "seed",
    "threads",
    "device",
    "precision",
    "report",
)
"""The keys of a study file that a bench has too."""


class BenchSettings(FrozenModel):
    """The keys of a bench file that a study file does not have."""

    zoo: str | None = None
    """Name of an embedded zoo, short for `pool: {zoo: NAME}`."""
    held_out: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Tasks, as under `tasks`, that no expert was trained on: what the base can do, and merges may forget. A task of a zoo leaves
    with its expert."""
    methods: tuple[str, ...] = ()
    """Names of methods; by default all that read no data."""
    budget: int = Field(default=30, ge=0)
    """Evaluations of the search of each method; 0 searches none."""


@dataclass(frozen=True)
class Bench:
    """What a bench compares, and by what. Not to be confused with a study, of which it makes one for each method that it searches."""

    study: StudySettings
    """The pool, by folders, and the tasks that are merged for; its space is replaced by that of each method."""
    held_out: dict[str, dict[str, Any]]
    """Settings of the held-out tasks by name, complete."""
    methods: tuple[str, ...]
    """Names of methods that are asked for; empty for all that read no data."""
    budget: int

    @property
    def all_tasks(self) -> StudySettings:
        """The study's settings with the held-out tasks beside its own."""
        return self.study.model_copy(update={"tasks": {**self.study.tasks, **self.held_out}})

    @classmethod
    def read(cls, path: Path, instead: Mapping[str, Any] = MappingProxyType({})) -> "Bench":
        """Return the bench of a YAML file, with some keys of another value. Raises `StudyError`."""
        if not path.is_file():
            raise StudyError(f"{path}: no such bench file; expected YAML with `zoo: NAME`, or `pool:` and `tasks:`")
        data = strict_yaml.read(path)
        return cls.parse(data | dict(instead) if isinstance(data, dict) else data, str(path), path.parent)

    @classmethod
    def parse(cls, data: Any, where: str, folder: Path) -> "Bench":
        """Return the bench in `data`, whose relative paths start at `folder`. Raises `StudyError`; every error begins with `where`."""
        known = (*BenchSettings.model_fields, *_OF_STUDIES)
        if not isinstance(data, dict):
            raise StudyError(f"{where}: expected keys such as `zoo: digits`, or `pool:` and `tasks:`, got {data!r}")
        for key in data:
            if key not in known:
                raise StudyError(f"{where}: unknown key `{key}`; {nearest(str(key), known)}")
        try:
            own = BenchSettings.model_validate({key: data[key] for key in data if key in BenchSettings.model_fields})
        except ValidationError as error:
            raise StudyError(describe(error, where, {})) from None
        for name in own.methods:
            if name not in METHODS:
                raise StudyError(f"{where} `methods`: no merge method `{name}`; {nearest(name, METHODS)}")
        shared = {"name": "bench", **{key: data[key] for key in data if key in _OF_STUDIES}}
        if own.zoo is not None:
            if "pool" in data:
                raise StudyError(f"{where}: expected either `zoo` or `pool`, got both")
            shared["pool"] = {"zoo": own.zoo}
        if "pool" not in shared:
            raise StudyError(
                f"{where}: no models; expected `zoo: NAME`, or `pool: {{base: FOLDER, experts: {{NAME: FOLDER}}}}`"
            )
        study = StudySettings.parse({**shared, "space": "linear"}, where, folder)
        return cls._completed(study, own, where)

    @classmethod
    def _completed(cls, study: StudySettings, own: BenchSettings, where: str) -> "Bench":
        """Return a bench whose pool is folders and whose tasks have all their settings."""
        base, experts, merged = sources(study)
        held = dict(own.held_out)
        embedded: dict[str, dict[str, Any]] = {}
        if study.pool.zoo is not None:
            embedded = dict(zoo.load(study.pool.zoo, seed=study.pool.zoo_seed).tasks)
            for name, entry in held.items():
                if not entry and name not in embedded:
                    raise StudyError(f"{where} `held_out`: the zoo has no task `{name}`; {nearest(name, embedded)}")
            if not study.tasks:  # those that no expert was trained on are held out
                held = {**{name: {} for name in merged if name not in experts}, **held}
                merged = {name: entry for name, entry in merged.items() if name not in held}
            experts = {name: folder for name, folder in experts.items() if name not in held}
        if both := [name for name in held if name in merged]:
            raise StudyError(
                f"{where}: `{both[0]}` is under `tasks` and under `held_out`; expected it under one of them"
            )
        if not merged or not experts:
            raise StudyError(
                f"{where}: no {'experts' if merged else 'tasks'} are left beside `held_out`; expected at least one"
            )
        pool = study.pool.model_copy(update={"zoo": None, "base": base, "experts": dict(experts)})
        completed = tasks.complete(held, study.defaults, embedded | study.tasks)
        return cls(study.model_copy(update={"pool": pool, "tasks": merged}), completed, own.methods, own.budget)
