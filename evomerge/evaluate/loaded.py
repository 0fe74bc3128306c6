"""Loaded: what stays in a worker's memory between candidates: the builder, the tasks, and the model, in this process or in an engine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

from evomerge import tasks
from evomerge.build import Builder
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.folder import Checkpoint, Computed, Folder, all_finite
from evomerge.checkpoints.members import Members, ancestors
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError, TaskError, nearest
from evomerge.evaluate.setup import Setup, open_model, open_pool
from evomerge.models import EngineModel, LiveModel
from evomerge.models.engine import check_class
from evomerge.placement import Placement, find
from evomerge.recipe import Recipe
from evomerge.tasks import Scores, Task
from evomerge.tasks.served import ServedTask, check_served
from evomerge.trial import Examples, Split

REFITTING = "evomerge.evaluate.refitting.Refitting"
"""The class that adds to the workers of an engine."""
_ENGINES_SHARE = 0.9
"""What an engine takes of its worker's share of a GPU, where its settings do not say."""


class Loaded:
    """The builder, the tasks and the model of a setup."""

    def __init__(self, setup: Setup, members: Members) -> None:
        """Open them. Raises the exceptions of models and tasks."""
        pool, folder = open_pool(setup), Path(setup.folder)
        placement = Placement(find(setup.device), share=setup.gpus) if setup.engine is None else Placement()
        self._members = members
        self.builder = Builder(pool, search=True, members=members, placement=placement)
        self.tasks = [tasks.make(name, settings, folder) for name, settings in setup.tasks.items()]
        self.engine = None if setup.engine is None else open_engine(setup, pool)
        """The engine with the candidate, None where it is in `model`."""
        self._module = None if self.engine else open_model(setup, pool, placement.device, shared=setup.shared_mib << 20)

    @property
    def model(self) -> LiveModel:
        """The module with the candidate. Raises `ModelError` where it is in an engine."""
        if self._module is None:
            raise ModelError("an engine has no module of transformers, and no slopes; leave out `engine`")
        return self._module

    def check(self) -> None:
        """Raise `TaskError` where a task cannot be done with the base's model, and so with no candidate."""
        for task in self.tasks:
            if self.engine is None:
                task.put_head_on(self.model)
                task.check(self.model)
            else:
                _served(task).check(self.engine)

    def refit(self, recipe: Recipe, checkpoint: Checkpoint) -> None:
        """Give the model the tensors of a candidate's checkpoint; an engine builds them anew in its own workers, from the recipe."""
        if self.engine is None:
            self.model.refit(checkpoint)
            return
        check_depth(checkpoint, self.builder)
        lineage = {identity: parent.data for identity, parent in ancestors(recipe, self._members.lineage)}
        self.engine.refit(json.dumps({"recipe": recipe.data, "lineage": lineage}))

    def score(self, task: Task, split: Split, examples: Sequence[int] | None) -> Scores:
        """Return the candidate's scores of a task."""
        if self.engine is not None:
            return _served(task).serve(self.engine, split, examples)
        self.put_head_on(task)
        return task.score(self.model, split, examples)

    def put_head_on(self, task: Task) -> None:
        """Give the module the task's head, where it has several, and no dropout."""
        if self.model.heads:
            task.put_head_on(self.model)
        if self.model.module.training:  # left so by a task of the user's: dropout would act
            self.model.module.train(mode=False)

    def release(self) -> None:
        """Keep nothing on the device that could be computed again."""
        if self.engine is None:
            self.model.release()

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()

    def indices(self, examples: Examples | None) -> list[tuple[Task, Sequence[int] | None]]:
        """Return the tasks to score, each with the indices of its examples; None is all of them. Raises `TaskError`."""
        if examples is None:
            return [(task, None) for task in self.tasks]
        names = [task.name for task in self.tasks]
        for name in examples:
            if name not in names:
                raise TaskError(f"examples of the unknown task `{name}`; {nearest(name, names)}")
        return [(task, examples[task.name]) for task in self.tasks if task.name in examples]


def check_engine(setup: Setup, pool: Pool, tasks: Sequence[Task]) -> None:
    """Raise `ModelError` or `TaskError` where no engine could run candidates of `pool`, or score `tasks`; whether it is here is not asked."""
    wrong = {
        "the models keep heads of their own": bool(pool.heads),
        "`tokenizer` gives them another vocabulary than the base's": pool.vocabulary is not None,
        "the base ties tensors that are apart in an expert, such as the head": pool.config != pool.base.config,
        "`module` names a class of your own": setup.module is not None,
    }
    for why, is_so in wrong.items():
        if is_so:
            raise ModelError(
                f"`engine: {(setup.engine or {}).get('kind')}` runs models of the base's shapes and names, and here {why}; leave out `engine`"
            )
    check_served(tasks)
    reserved_gpus(setup)


def reserved_gpus(setup: Setup) -> float:
    """Return the GPUs that each worker of a setup needs: a share of one, or as many as its engine spreads the model over; 0 on other devices.

    Raises `ModelError` for an engine that would take more than its worker's share.
    """
    if torch.device(setup.device).type != "cuda":
        return 0.0
    engine = setup.engine or {}
    spread, memory = engine.get("tensor_parallel_size") or 1, engine.get("gpu_memory_utilization")
    if spread > 1 and setup.gpus < 1:
        raise ModelError(
            f"`gpus: {setup.gpus:g}` gives each worker a part of one GPU, and `tensor_parallel_size: {spread}` spreads its engine over {spread}; "
            "type `gpus: 1`, or `tensor_parallel_size: 1`"
        )
    if setup.gpus < 1 and memory is not None and memory > setup.gpus:
        raise ModelError(
            f"`gpus: {setup.gpus:g}` gives each worker that part of a GPU, and its engine takes `gpu_memory_utilization: {memory:g}` of the memory; "
            f"type {_ENGINES_SHARE * setup.gpus:.2g} there, or leave it out"
        )
    return setup.gpus * spread


def open_engine(setup: Setup, pool: Pool) -> EngineModel:
    """Start the engine of a setup, with the base's weights. Raises `ModelError` where it cannot be started."""
    check_class(pool.base.config, pool.base.path, find(setup.device))
    options = {key: value for key, value in (setup.engine or {}).items() if key != "kind" and value is not None}
    if reserved_gpus(setup) and setup.gpus < 1:  # else each engine on the GPU would take nearly all of it
        options.setdefault("gpu_memory_utilization", _ENGINES_SHARE * setup.gpus)
    source = TypeAdapter(Setup).dump_json(replace(setup, tasks={})).decode()
    return EngineModel(pool.base.path, options, setup.precision, pool.tokenizer, REFITTING, source)


def check_depth(checkpoint: Checkpoint, builder: Builder) -> None:
    """Raise `ModelError` for a stack that is not the base with other weights: an engine is built once, for the base."""
    if not isinstance(checkpoint, Stacked):
        return
    depth, blocks = len(checkpoint.layers), builder.pool.layout.blocks
    if any(layer.scale != 1 for layer in checkpoint.layers):
        what = "has scales between its layers"
    elif checkpoint.stitches:
        what = "has affine maps between its layers"
    elif depth != blocks or builder.stack_config(checkpoint) != builder.pool.config:
        what = f"has {depth} layers, and the engine those of the base, {blocks}, in their order"
    else:
        return
    raise ModelError(
        f"the candidate is a stack that {what}; leave out `engine`, or take a space whose models have the base's layers"
    )


def _served(task: Task) -> ServedTask:
    assert isinstance(task, ServedTask)  # a study with another was refused
    return task


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with its merged tensors checked as they are read; the pool's tensors have been checked before."""
    if isinstance(checkpoint, Stacked):
        return checkpoint.each(
            lambda source: source if isinstance(source, Folder | Adapter | Aligned) else checked(source)
        )
    return Finite(checkpoint)


class Finite(Computed):
    """A checkpoint that raises `FloatingPointError` for the first tensor read that has NaN or infinity."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.info, checkpoint.tensor, (checkpoint,))
        self._checkpoint = checkpoint

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, checked."""
        tensor = super().tensor(name)
        self._check(name, tensor)
        return tensor

    def write(self, name: str, out: torch.Tensor) -> None:
        """Write the tensor into `out`, and check it there."""
        self._checkpoint.write(name, out)
        self._check(name, out)

    @staticmethod
    def _check(name: str, tensor: torch.Tensor) -> None:
        if not all_finite(tensor):
            raise FloatingPointError(f"the merged tensor `{name}` holds NaN or infinity")
