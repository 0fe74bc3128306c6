"""Settings of a study (its YAML), and the parts that they name: pool, space, tasks, driver."""

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator

from evomerge import placement, search, space, strict_yaml, tasks, zoo
from evomerge.build import Builder
from evomerge.checkpoints import hub
from evomerge.checkpoints.beside import text_files
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.digests import code_digests, data_digest, task_digests
from evomerge.errors import ModelError, StudyError
from evomerge.evaluate import Setup
from evomerge.models.loaders import check_plain
from evomerge.recipe import Recipe, StackNode, describe
from evomerge.recipe import base as base_recipe
from evomerge.recipe.validation import TAG, FrozenModel
from evomerge.search import Driver
from evomerge.space import SearchSpace
from evomerge.tasks import PythonTask, Task
from evomerge.trial import Split

_SAMPLE = 16
"""Number of random candidates of a space of stacks that are checked before a search."""


class PoolSettings(FrozenModel):
    """The models: an embedded zoo by name; or folders, and `org/name@revision` on the Hugging Face hub."""

    zoo: str | None = None
    """Name of an embedded zoo, instead of `base` and `experts`."""
    zoo_seed: int = Field(default=0, ge=0)
    """The seed that the zoo was built with."""
    base: str | None = None
    """The model that the experts were fine-tuned from."""
    experts: dict[str, str] = Field(default_factory=dict)
    """Models or adapters by name."""
    tokenizer: TokenizerChoice | None = None
    """Which tokens candidates and merged models have, where models have tokens of their own."""
    like: str | None = None
    """The expert whose tokenizer, chat template and end tokens candidates and merged models have; by default the base's."""
    heads: Literal["own"] | None = None
    """`own`: heads stay outside of merges, and each task is scored with one expert's. By default only where heads differ in
    names or shapes; otherwise they are merged."""
    auto: str | None = None
    """Name of the transformers class, such as `AutoModel`; by default that of config.json."""
    module: str | None = None
    """`FILE.py:FUNCTION` for a model that is not in transformers: called with the checkpoint's folder, it returns a torch
    module whose state dictionary has the checkpoint's names."""


class QueueSettings(FrozenModel):
    """Workers that share a folder with the study's process: `evomerge worker DIR`, on any machine that sees the folder."""

    queue: str
    """The folder. Models, data and the study's directory have the same paths on all machines."""
    in_flight: int = Field(default=16, ge=1, le=4096)
    """Maximum number of proposals in the queue: a few more than there are workers."""
    lease: float = Field(default=120.0, ge=1, le=86400)
    """Seconds without a sign of life after which a worker counts as dead. Network file systems delay such signs by a minute."""


def _kind_of_workers(value: Any) -> str:
    return f"{TAG}queue" if isinstance(value, Mapping | QueueSettings) else f"{TAG}number"


Workers = Annotated[
    Annotated[int, Field(ge=1, le=1024), Tag(f"{TAG}number")] | Annotated[QueueSettings, Tag(f"{TAG}queue")],
    Discriminator(_kind_of_workers),
]


class ReportSettings(FrozenModel):
    """How the front is scored on unseen examples."""

    front: int = Field(default=24, ge=1)
    """Maximum number of points of the front to score: those that add the most hypervolume."""
    scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Scales of task arithmetic; the reference `best scale` is the best of them on the search split."""
    mixtures: int | None = Field(default=None, ge=0)
    """Number of weighted averages of the experts among the references. Default: 9 between two experts, 24 of more."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the examples."""


class StudySettings(FrozenModel):
    """All settings of a study file."""

    name: str = Field(default="study", pattern=r"^[\w.-]+$")
    """Letters, digits, `_`, `.` and `-`. `evomerge run` writes to `runs/NAME`."""
    about: str = ""
    """A note of your own."""
    pool: PoolSettings
    """The base and its experts."""
    space: Any
    """Name of a shipped space, a file, or the space itself."""
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Task settings by name; with a zoo, its tasks by default. `same_as: NAME` takes those of another task, before its own."""
    defaults: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda defaults: not defaults)
    """Settings of every task, unless its own say otherwise."""
    folder: str = "."
    """Start of relative paths of tasks; by default the study file's folder."""
    driver: dict[str, Any] | None = None
    """By default that of the space, else `search.default`."""
    evaluations: int = Field(default=0, ge=0)
    """Budget. A proposal of a part of the search examples, as `racing` makes, counts as that share of an evaluation.
    By default, 0, that of `search.budget`; a study records it when it is created."""
    merge_examples: int = Field(default=0, ge=0)
    """How many search examples could be scored in the time of one merge: each part of an evaluation counts as that many
    more. `run --dry-run` measures it. The journal has no clock, so it is a setting."""
    hours: float | None = Field(default=None, gt=0)
    """Budget of time: hours of the search, summed over all its runs. It ends the search earlier, and changes nothing else in it."""
    worker_hours: float | None = Field(default=None, gt=0)
    """The same in hours times workers."""
    seed: int = Field(default=0, ge=0)
    """Seed of the search, from which all of its randomness comes."""
    workers: Workers = 1
    """Processes that evaluate candidates, or `{queue: DIR}`: workers that are started elsewhere. More give the same search, sooner;
    populations and swarms have no such order."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of each worker. Fixed for a study: another number changes the last bits of scores."""
    device: str = Field(default="cpu", exclude_if=lambda device: device == "cpu")
    """Where candidates are merged and run: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`, an accelerator if there is one. Fixed for a
    study, by kind and name: another device changes the last bits of scores."""
    gpus: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda gpus: gpus == 1)
    """Share of a GPU for each worker, where `device` is `cuda`."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The dtype in which candidates run; `auto` is the one that the device multiplies fastest. Merging is always in fp32."""
    deadline: float | None = Field(default=None, gt=0)
    """Maximum seconds per candidate. By default an hour; none with one worker, which runs in this process unless a deadline
    is set."""
    shared_mib: int = Field(default=1024, ge=0)
    """MiB per worker for hidden states that stacks with equal first layers share. It changes no score."""
    report: ReportSettings = ReportSettings()
    """How the front is scored."""

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device) is None:
            raise ValueError(f"expected auto, cpu, cuda, cuda:1 or mps, got {device!r}")
        return device

    @classmethod
    def read(cls, path: Path) -> "StudySettings":
        """Return the settings of a study file with absolute paths. Raises `StudyError`."""
        if not path.is_file():
            raise StudyError(f"{path}: no such study file")
        data = strict_yaml.read(path)
        if isinstance(data, dict) and "space" not in data and data.keys() & {"recipe", "merge", "stack"}:
            raise StudyError(f"{path}: this is a recipe, not a study; type: evomerge merge {path} -o OUT")
        return cls.parse(data, str(path), path.parent)

    @classmethod
    def parse(cls, data: Any, where: str, folder: Path) -> "StudySettings":
        """Return the settings in `data`, whose relative paths start at `folder`. Every error begins with `where`."""
        models: dict[str, type[BaseModel]] = {
            "": cls,
            "pool": PoolSettings,
            "report": ReportSettings,
            "workers": QueueSettings,
            "tokenizer": TokenizerChoice,
        }
        known = {key: tuple(model.model_fields) for key, model in models.items()}
        try:
            settings = cls.model_validate(data)
        except ValidationError as error:
            raise StudyError(describe(error, where, known)) from None
        pool = settings.pool
        if (pool.zoo is None) == (pool.base is None) or (pool.zoo is not None and pool.experts):
            msg = f"{where} `pool`: expected either `zoo: NAME`, or `base: FOLDER` and `experts: {{NAME: FOLDER}}`"
            raise StudyError(msg)

        def absolute(path: str) -> str:
            try:
                return str((folder / path).resolve())
            except (OSError, ValueError) as error:  # a NUL, or a lone surrogate
                raise StudyError(f"{where}: {path!r} is no path ({error})") from None

        def located(model: str) -> str:
            place = hub.locate(model, folder)
            return absolute(model) if hub.hub_id(place) is None else place

        folders: dict[str, Any] = {"experts": {name: located(path) for name, path in pool.experts.items()}}
        folders |= {"base": pool.base and located(pool.base), "module": pool.module and absolute(pool.module)}
        update = {"pool": pool.model_copy(update=folders), "folder": absolute(settings.folder)}
        if isinstance(settings.workers, QueueSettings):
            update["workers"] = settings.workers.model_copy(update={"queue": absolute(settings.workers.queue)})
        source = settings.space
        if isinstance(source, str):
            update["space"] = space.read(source if source in space.shipped() else folder / source)
        return settings.model_copy(update=update)

    @property
    def processes(self) -> int:
        """How many workers this command starts, itself included: those of a queue are started by others."""
        return self.workers if isinstance(self.workers, int) else 1

    def with_options(self, options: Mapping[str, Any]) -> "StudySettings":
        """Return the settings with other values, as options of a command give them. Raises `StudyError`."""
        try:
            return self.model_validate(self.model_dump() | dict(options))
        except ValidationError as error:
            raise StudyError(describe(error, "options", {})) from None

    @property
    def models(self) -> dict[str, str]:
        """The references of the pool's base and experts by name; none of a zoo."""
        return {} if self.pool.base is None else {"base": self.pool.base, **self.pool.experts}

    def settled(self, started: "StudySettings | None" = None) -> "StudySettings":
        """Return the settings without `auto`: with the device and the precision of the study that was `started`, else those of this machine.

        Raises `DeviceError`.
        """
        update = {
            key: getattr(started, key) for key in ("device", "precision") if started and getattr(self, key) == "auto"
        }
        settled = self.model_copy(update=update)
        if settled.device == "auto":
            settled = settled.model_copy(update={"device": str(placement.find("auto")).removesuffix(":0")})
        if settled.precision == "auto":
            fastest = placement.fastest(placement.find(settled.device))
            settled = settled.model_copy(update={"precision": fastest})
        return settled

    def pinned(self) -> "StudySettings":
        """Return the settings with the commit that each model on the hub has now. Raises `CheckpointError`."""
        ids = {name: found for name, model in self.models.items() if (found := hub.hub_id(model)) is not None}
        pins = {name: f"hf://{found.repository}@{hub.find(found).commit}" for name, found in ids.items()}
        experts = {name: pins.get(name, model) for name, model in self.pool.experts.items()}
        update = {"base": pins.get("base", self.pool.base), "experts": experts}
        return self.model_copy(update={"pool": self.pool.model_copy(update=update)}) if pins else self


CHANGEABLE = (
    "evaluations",
    "hours",
    "worker_hours",
    "merge_examples",
    "workers",
    "gpus",
    "deadline",
    "shared_mib",
    "report",
    "about",
)
"""Settings that may change when a study is resumed: none affects a past proposal or score."""


@dataclass(frozen=True)
class Parts:
    """Everything that the settings name, opened and checked."""

    pool: Pool
    space: SearchSpace
    tasks: Mapping[str, Task]
    setup: Setup
    driver: Mapping[str, Any]

    def on(self, device: str) -> "Parts":
        """Return the parts with another device to score on. Raises `DeviceError`."""
        return replace(self, setup=replace(self.setup, device=str(placement.find(device))))

    @property
    def searched(self) -> list[str]:
        """The objectives of the search, `task/metric`."""
        return [f"{name}/{task.search_metric}" for name, task in self.tasks.items()]

    @property
    def reported(self) -> list[str]:
        """The objectives of the report, `task/metric`."""
        return [f"{name}/{task.report_metric}" for name, task in self.tasks.items()]

    @property
    def sizes(self) -> dict[Split, dict[str, int]]:
        """Number of examples of each task, by split."""
        splits: tuple[Split, ...] = ("search", "report") if self.without_final else get_args(Split)
        return {split: {name: task.size(split) for name, task in self.tasks.items()} for split in splits}

    @property
    def without_final(self) -> list[str]:
        """The tasks that have no `final` examples."""
        return [name for name, task in self.tasks.items() if not task.size("final")]

    def new_driver(self, seed: int) -> Driver:
        """Return a fresh driver."""
        metrics = [task.metrics[task.search_metric] for task in self.tasks.values()]
        objectives = dict(zip(self.searched, metrics, strict=True))
        return search.make(self.driver, self.space, objectives, seed, self.sizes["search"])


def initial_recipe(space: SearchSpace) -> Recipe:
    """Return the recipe of the space's `init`, with the base for all members."""
    return space.decode(space.initial, [base_recipe().id for _ in space.parents])


def sources(settings: StudySettings) -> tuple[str, Mapping[str, str], Mapping[str, Mapping[str, Any]]]:
    """Return the base's folder, the experts' folders by name, and the settings of the tasks, completed by those of a zoo."""
    models = settings.pool
    if models.zoo is None:
        return str(models.base), models.experts, tasks.complete(settings.tasks, settings.defaults)
    embedded = zoo.load(models.zoo, seed=models.zoo_seed)
    listed = settings.tasks or {name: {} for name in embedded.tasks}
    completed = tasks.complete(listed, settings.defaults, embedded.tasks)
    return embedded.pool["base"], embedded.pool["experts"], completed


def open_parts(
    settings: StudySettings,
    progress: Callable[[str], None] = lambda step: None,
    python_tasks: Mapping[str, PythonTask] = MappingProxyType({}),
    recorded: Mapping[str, Any] | None = None,
) -> Parts:
    """Open and check everything that `settings` name. `python_tasks` take the place of the settings of their names.

    `recorded` is the driver of a study that exists. That of a new one is the settings', that of the space, or
    `search.default`, each with what `search.completed` adds.
    """
    settings, models = settings.settled(), settings.pool
    base, experts, task_settings = sources(settings)
    base = hub.resolve(base, progress)
    experts = {name: hub.resolve(model, progress) for name, model in experts.items()}
    task_settings = {**task_settings, **python_tasks}
    if not task_settings:
        msg = "the study has no `tasks`; expected at least one, such as `tasks: {maths: {kind: multiple_choice, search: a.jsonl, report: b.jsonl}}`"
        raise StudyError(msg)
    pool = Pool(base, experts, like=models.like, heads=models.heads, tokenizer=models.tokenizer, progress=progress)
    if models.module is None:
        check_plain(pool.base)
    layout = pool.layout
    model: dict[str, Any] = {
        "kinds": layout.kinds,
        "towers": layout.towers,
        "tensors": [*pool.merged],
        "blocks": layout.blocks,
    }
    search_space = SearchSpace.parse(settings.space, experts=[*pool.experts], **model)
    builder = Builder(pool)
    builder.build_model(initial_recipe(search_space))  # reads no tensor: an impossible recipe is refused now
    _check_stacks(search_space, builder)
    progress("reading tasks")
    keys = ("folder", "precision", "threads", "shared_mib", "device", "gpus")
    shared: dict[str, Any] = {key: getattr(settings, key) for key in keys}
    named: dict[str, Any] = {key: getattr(models, key) for key in ("auto", "module", "like", "heads", "tokenizer")}
    setup = Setup(base, experts, task_settings, **named, **shared)
    opened = {name: tasks.make(name, entry, Path(settings.folder)) for name, entry in task_settings.items()}
    objectives = {f"{name}/{task.search_metric}": task.metrics[task.search_metric] for name, task in opened.items()}
    chosen = settings.driver or search_space.driver or search.default(search_space, objectives)
    driver = recorded or search.completed(chosen, search_space)
    parts = Parts(pool, search_space, opened, setup, driver)
    made = parts.new_driver(settings.seed)
    breeder = search.surfaced(made)
    least = 0 if breeder is None else breeder.min_evaluations * (3 if search.climbs(made) else 1)  # what slopes cost
    if 0 < settings.evaluations < least:
        other = "nsga2" if len(objectives) > 1 else "cma"
        raise StudyError(
            f"`evaluations` is {settings.evaluations}; expected {least} or more, the least from which driver `{driver['kind']}` "
            f"can predict a front over {len(search_space.genes)} genes; raise it, or type `driver: {{kind: {other}}}`"
        )
    return parts


def _check_stacks(space: SearchSpace, builder: Builder) -> None:
    """Note how many candidates of a space of stacks could not be saved, and so fail. Raises `StudyError` where it is all of a sample."""
    if not isinstance(initial_recipe(space).root, StackNode):
        return
    sample = space.from_unit(np.random.default_rng(0).random((_SAMPLE, len(space.genes))))
    reasons = []
    for genome in sample:
        try:
            builder.build_model(space.decode(genome, [base_recipe().id for _ in space.parents]))
        except ModelError as error:
            reasons.append(str(error))
    if len(reasons) == _SAMPLE:
        raise StudyError(
            f"{reasons[0]}. All of {_SAMPLE} random candidates of the space are such stacks; expected a space such as `layer_swap`, whose layers stay in order"
        )
    if reasons:
        builder.pool.notes.append(
            f"of {_SAMPLE} random candidates of the space, {len(reasons)} could not be saved, and fail before they are scored: {reasons[0]}"
        )


def identity(settings: StudySettings, parts: Parts) -> dict[str, Any]:
    """Return the settings and the digests of all data that the results of a study depend on.

    `settings` are pinned: the commits of models on the hub are part of it, beside the digests of their weights.
    """
    ids = {name: found for name, model in settings.models.items() if (found := hub.hub_id(model)) is not None}
    return {
        **settings.model_dump(exclude={*CHANGEABLE, "pool", "folder", "defaults", "device"}),
        **({} if parts.setup.device == "cpu" else {"device": placement.described(parts.setup.device)}),
        "precision": parts.setup.precision,
        "driver": dict(parts.driver),
        "order": {"experts": list(parts.pool.experts), "tasks": list(parts.tasks)},
        "pool_digests": dict(parts.pool.digests),
        "text_digests": {
            name: hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in text_files(parts.pool.base.path, parts.pool.tokenizer).items()
        },
        "data_digests": {name: data_digest(entry, settings.folder) for name, entry in parts.setup.tasks.items()},
        **({"task_digests": own} if (own := task_digests(parts.tasks)) else {}),
        **code_digests(parts.setup),
        **({} if parts.pool.like is None else {"like": parts.pool.like}),
        **({"pool_commits": {name: found.revision for name, found in ids.items()}} if ids else {}),
        **({"heads": "own"} if parts.pool.heads else {}),
        **({} if settings.pool.tokenizer is None else {"tokenizer": settings.pool.tokenizer.model_dump()}),
        "tasks": {  # a `group` changes the report's intervals, no score
            name: {key: value for key, value in entry.items() if key != "group"}
            for name, entry in parts.setup.tasks.items()
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a search."""
    packages = ("evomerge", "torch", "transformers", "numpy", "cmaes", "pymoo", "optuna", "ray")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
