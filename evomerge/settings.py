"""Settings of a study: its YAML, checked."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from evomerge import placement, space, strict_yaml
from evomerge.checkpoints import hub
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import StudyError
from evomerge.recipe import describe
from evomerge.recipe.validation import TAG, FrozenModel
from evomerge.statistics import EvidenceSettings


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
    evidence: dict[str, EvidenceSettings] = Field(default_factory=dict, exclude_if=lambda evidence: not evidence)
    """What each expert is good at, for methods that read data: by default 256 search examples of the task of its name."""
    auto: str | None = None
    """Name of the transformers class, such as `AutoModel`; by default that of config.json."""
    module: str | None = None
    """`FILE.py:FUNCTION` for a model that is not in transformers: called with the checkpoint's folder, it returns a torch
    module whose state dictionary has the checkpoint's names."""
    shuffled: int | None = Field(default=None, ge=0, exclude_if=lambda seed: seed is None)
    """A seed by which the task vector of each expert is permuted within each tensor: sham experts, as `evomerge control` merges
    them. By default experts are as they are."""


class QueueSettings(FrozenModel):
    """Workers that share a folder with the study's process: `evomerge worker DIR`, on any machine that sees the folder."""

    queue: str
    """The folder. Models, data and the study's directory have the same paths on all machines."""
    in_flight: int = Field(default=16, ge=1, le=4096)
    """Maximum number of proposals in the queue: a few more than there are workers."""
    lease: float = Field(default=120.0, ge=1, le=86400)
    """Seconds without a sign of life after which a worker counts as dead. Network file systems delay such signs by a minute."""


class ClusterSettings(FrozenModel):
    """Workers on a Ray cluster, as many as have room: they come and go with its nodes."""

    min: int = Field(default=1, ge=1, le=1024)
    """The search begins when so many workers have room."""
    max: int | None = Field(default=None, ge=1, le=1024)
    """The most workers; an autoscaler is asked for room for them. By default as many as `min`."""
    cpus: float | None = Field(default=None, gt=0, le=1024)
    """CPUs for each worker, such as 0.5. By default as many as it has `threads`."""
    gpus: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU for each worker, where `device` is `cuda`. By default the study's `gpus`."""
    memory_gb: float | None = Field(default=None, gt=0)
    """GB of memory that Ray reserves for each worker. By default none."""
    labels: dict[str, Annotated[str, Field(pattern=r"^!?(in\([\w.-]+(, ?[\w.-]+)*\)|[\w.-]+)$")]] = Field(
        default_factory=dict
    )
    """Labels that a worker's node must have: `value`, `!value`, `in(one,two)` or `!in(one,two)`."""

    @model_validator(mode="after")
    def _are_bounds(self) -> "ClusterSettings":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"expected `max` of at least `min`, {self.min}; got {self.max}")
        return self

    @property
    def most(self) -> int:
        """The most workers."""
        return self.min if self.max is None else self.max


def _kind_of_workers(value: Any) -> str:
    if isinstance(value, QueueSettings) or (isinstance(value, Mapping) and "queue" in value):
        return f"{TAG}queue"
    return f"{TAG}cluster" if isinstance(value, Mapping | ClusterSettings) else f"{TAG}number"


Workers = Annotated[
    Annotated[int, Field(ge=1, le=1024), Tag(f"{TAG}number")]
    | Annotated[ClusterSettings, Tag(f"{TAG}cluster")]
    | Annotated[QueueSettings, Tag(f"{TAG}queue")],
    Discriminator(_kind_of_workers),
]


class EngineSettings(FrozenModel):
    """An inference engine in which candidates run, in place of a module of transformers. Its keys are options of `vllm.LLM`."""

    kind: Literal["vllm"] = "vllm"
    """The engine."""
    max_model_len: int | None = Field(default=None, ge=2)
    """The most tokens of a prompt and its answer; by default as many as the model has positions."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that the engine takes; by default the engine's own, and 0.9 of `gpus` where workers share a GPU."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    """Memory for keys and values; by default what is left of that share. On a CPU, set it, or there may be none for anything else."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which each worker's engine spreads the model; Ray gives each worker so many."""
    enforce_eager: bool = False
    """Whether the engine compiles nothing: it starts sooner, and runs slower."""


class ReportSettings(FrozenModel):
    """How the front is scored on unseen examples."""

    front: int = Field(default=24, ge=1)
    """Maximum number of points of the front to score: those that add the most hypervolume."""
    scales: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    """Scales of task arithmetic; the reference `best scale` is the best of them on the search split."""
    mixtures: int | None = Field(default=None, ge=0)
    """Number of weighted averages of the experts among the references. Default: 9 between two experts, 24 of more."""
    subsets: int = Field(default=0, ge=0, exclude_if=lambda subsets: subsets == 0)
    """Number of averages of 2 and more, but not all, experts to score on the search examples: all of them if there are no more, else
    as many of each size. They tell what one expert more would add. By default none."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the examples."""


class NotifySettings(FrozenModel):
    """Notices about a search that runs unattended. They are no part of the study, and its directory has no word of them."""

    webhook: str | None = None
    """Address, http or https, to which one JSON object is posted at the start, at the end, and if too many candidates fail."""
    mlflow: str | None = None
    """Address of an MLflow server, http or https, to which the mean scores of each candidate are sent. A user and a password, or a
    token, are those of `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_PASSWORD` and `MLFLOW_TRACKING_TOKEN`."""
    experiment: str = Field(default="evomerge", min_length=1)
    """Experiment of the MLflow server."""
    failed: float = Field(default=0.25, ge=0, le=1)
    """Share of a run's evaluations: if more of them fail, that is posted once. The first 8 are waited for."""

    @field_validator("webhook", "mlflow")
    @classmethod
    def _is_address(cls, given: str | None) -> str | None:
        if given is None:
            return None
        try:
            address = urlsplit(given)
            right = (
                address.scheme in ("http", "https") and address.hostname and address.port != 0 and not address.username
            )
        except ValueError:
            right = False
        if not right or not given.isascii() or not given.isprintable() or " " in given:
            raise ValueError("expected an address such as https://HOST/PATH, http or https, without a user's name")
        return given

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.webhook is None and self.mlflow is None:
            raise ValueError("expected `webhook: URL`, `mlflow: URL`, or both")
        return self


class ControlSettings(FrozenModel):
    """What a search is compared with beside its references, at the cost of another search."""

    sham: bool = False
    """Search again over sham experts, whose task vectors are shuffled, after the search: the same driver, seed, space and budget."""


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
    """Processes that evaluate candidates; `{min: 2, max: 16}`: as many as a Ray cluster has room for; or `{queue: DIR}`: workers that are
    started elsewhere. More give the same search, sooner; populations and swarms have no such order."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads of each worker. Fixed for a study: another number changes the last bits of scores."""
    device: str = Field(default="cpu", exclude_if=lambda device: device == "cpu")
    """Where candidates are merged and run: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`, an accelerator if there is one. Fixed for a
    study, by kind and name: another device changes the last bits of scores."""
    gpus: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda gpus: gpus == 1)
    """Share of a GPU for each worker, where `device` is `cuda`."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """The dtype in which candidates run; `auto` is the one that the device multiplies fastest. Merging is always in fp32."""
    engine: EngineSettings | None = Field(default=None, exclude_if=lambda engine: engine is None)
    """`vllm`, or a mapping with options: candidates run in that inference engine; by default `transformers`. Fixed for a study: another
    engine changes the last bits of scores."""
    deadline: float | None = Field(default=None, gt=0)
    """Maximum seconds per candidate. By default an hour; none with one worker, which runs in this process unless a deadline
    is set."""
    shared_mib: int = Field(default=1024, ge=0)
    """MiB per worker for hidden states that candidates with equal first layers share. It changes no score."""
    report: ReportSettings = ReportSettings()
    """How the front is scored."""
    notify: NotifySettings | None = Field(default=None, exclude=True)
    """Notices to a webhook, and scores to MLflow. An address may be a secret: it is not kept in the study's directory, so `evomerge
    resume` takes `--webhook` and `--mlflow`."""
    controls: ControlSettings = Field(default=ControlSettings(), exclude_if=lambda controls: not controls.sham)
    """Searches to compare with."""

    @field_validator("engine", mode="before")
    @classmethod
    def _by_name(cls, engine: Any) -> Any:
        named: dict[str, Any] = {"transformers": None, "vllm": {}}
        if isinstance(engine, str) and engine not in named:
            raise ValueError(
                f"expected transformers, vllm or a mapping such as {{kind: vllm, max_model_len: 2048}}, got {engine!r}"
            )
        return named[engine] if isinstance(engine, str) else engine

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
        workers = data.get("workers") if isinstance(data, Mapping) else None
        models: dict[str, type[BaseModel]] = {
            "": cls,
            "pool": PoolSettings,
            "report": ReportSettings,
            "controls": ControlSettings,
            "workers": QueueSettings if _kind_of_workers(workers) == f"{TAG}queue" else ClusterSettings,
            "notify": NotifySettings,
            "engine": EngineSettings,
            "tokenizer": TokenizerChoice,
            "evidence": EvidenceSettings,
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
        """How many workers this command starts at least, itself included: those of a queue are started by others."""
        if isinstance(self.workers, ClusterSettings):
            return self.workers.min
        return self.workers if isinstance(self.workers, int) else 1

    def with_options(self, options: Mapping[str, Any]) -> "StudySettings":
        """Return the settings with other values, as options of a command give them. Raises `StudyError`."""
        try:
            return self.model_validate(self.model_dump() | {"notify": self.notify} | dict(options))
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
    "controls",
    "about",
)
"""Settings that may change when a study is resumed: none affects a past proposal or score."""
