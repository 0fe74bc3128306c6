"""Parts: what the settings of a study name, opened and checked: pool, space, tasks, driver; and what identifies them."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from rich.console import Console

from evomerge import placement, search, tasks, trust, zoo
from evomerge.build import Builder
from evomerge.checkpoints import hub
from evomerge.checkpoints.beside import text_files
from evomerge.checkpoints.pool import Pool
from evomerge.digests import code_digests, data_digest, task_digests
from evomerge.errors import DeviceError, ModelError, StudyError
from evomerge.evaluate import Setup
from evomerge.evaluate.loaded import check_depth, check_engine
from evomerge.evidence import Evidence
from evomerge.models.engine import check_class
from evomerge.models.loaders import check_plain
from evomerge.recipe import Recipe, StackNode
from evomerge.recipe import base as base_recipe
from evomerge.search import Driver
from evomerge.settings import CHANGEABLE, StudySettings
from evomerge.space import SearchSpace
from evomerge.tasks import PythonTask, Task
from evomerge.trial import SLOPES_COST, Split

_SAMPLE = 16
"""Number of random candidates of a space of stacks that are checked before a search."""


@dataclass(frozen=True)
class Parts:
    """Everything that the settings name, opened and checked."""

    pool: Pool
    space: SearchSpace
    tasks: Mapping[str, Task]
    setup: Setup
    driver: Mapping[str, Any]
    evidence: Evidence | None = None
    """The statistics that the space's recipes read."""

    def on(self, device: str) -> "Parts":
        """Return the parts with another device to score on. Raises `DeviceError`."""
        if self.setup.engine is not None:
            raise DeviceError(
                f"`--device {device}`: an engine computes on the device that it is built for, {self.setup.device}; leave out `--device`"
            )
        return replace(self, setup=replace(self.setup, device=str(placement.find(device))))

    def check_here(self) -> None:
        """Raise `ModelError` where the engine of the study is not on this machine, or has no class for its models."""
        if self.setup.engine is not None:
            check_class(self.pool.base.config, self.pool.base.path, placement.find(self.setup.device))

    def collect(self) -> None:
        """Collect the statistics that recipes read, where the cache has none."""
        if self.evidence is not None:
            self.evidence.collect(Console(stderr=True))

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


def code(settings: StudySettings) -> list[Path]:
    """Return the files of code in the settings' folder that would be imported."""
    return trust.code_files(sources(settings)[2], settings.pool.module, Path(settings.folder))


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
    asked: dict[str, Any] = {key: getattr(models, key) for key in ("like", "heads", "tokenizer", "shuffled")}
    pool = Pool(base, experts, **asked, progress=progress)
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
    progress("reading tasks")
    keys = ("folder", "precision", "threads", "shared_mib", "device", "gpus")
    shared: dict[str, Any] = {key: getattr(settings, key) for key in keys}
    named: dict[str, Any] = {key: getattr(models, key) for key in ("auto", "module")}
    engine = None if settings.engine is None else settings.engine.model_dump()
    setup = Setup(base, experts, task_settings, **named, **asked, **shared, engine=engine)
    opened = {name: tasks.make(name, entry, Path(settings.folder)) for name, entry in task_settings.items()}
    evidence = None
    if search_space.needs or models.evidence:
        read = search_space.needs, search_space.examples
        evidence = Evidence(pool, setup, opened, models.evidence, *read, searched=True)
        setup = replace(setup, statistics=evidence.folders)
    builder = Builder(pool, search=True)
    initial = builder.build_model(initial_recipe(search_space))  # reads no tensor: an impossible recipe is refused now
    if engine is not None:
        check_engine(setup, pool, list(opened.values()))
        check_depth(initial, builder)
    _check_stacks(search_space, builder, engine=engine is not None)
    objectives = {f"{name}/{task.search_metric}": task.metrics[task.search_metric] for name, task in opened.items()}
    chosen = settings.driver or search_space.driver or search.default(search_space, objectives)
    driver = recorded or search.completed(chosen, search_space)
    parts = Parts(pool, search_space, opened, setup, driver, evidence)
    made = parts.new_driver(settings.seed)
    if engine is not None and search.climbs(made):
        raise StudyError(
            f"driver `{driver['kind']}` follows slopes, which an engine does not give; expected another driver, such as "
            "`driver: {kind: cma}`; or leave out `engine`"
        )
    breeder = search.surfaced(made)
    least = 0 if breeder is None else breeder.min_evaluations * (SLOPES_COST if search.climbs(made) else 1)
    if 0 < settings.evaluations < least:
        other = "nsga2" if len(objectives) > 1 else "cma"
        raise StudyError(
            f"`evaluations` is {settings.evaluations}; expected {least} or more, the least from which driver `{driver['kind']}` "
            f"can predict a front over {len(search_space.genes)} genes; raise it, or type `driver: {{kind: {other}}}`"
        )
    return parts


def _check_stacks(space: SearchSpace, builder: Builder, *, engine: bool) -> None:
    """Note how many candidates of a space of stacks could not be saved, and so fail.

    Raises `StudyError` where it is all of a sample, and `ModelError` for one that an `engine` cannot run.
    """
    if not isinstance(initial_recipe(space).root, StackNode):
        return
    sample = space.from_unit(np.random.default_rng(0).random((_SAMPLE, len(space.genes))))
    reasons = []
    for genome in sample:
        try:
            built = builder.build_model(space.decode(genome, [base_recipe().id for _ in space.parents]))
        except ModelError as error:
            reasons.append(str(error))
        else:
            if engine:
                check_depth(built, builder)
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
        **({} if parts.evidence is None else {"evidence": parts.evidence.digests}),
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
