"""Scores with slopes: one backward pass over some of a task's examples, contracted tensor by tensor as gradients come."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evomerge.build import Slopes
from evomerge.errors import ModelError
from evomerge.models import LiveModel
from evomerge.tasks import Task
from evomerge.tasks.data import task_error
from evomerge.tasks.task import Scores, joined
from evomerge.trial import Split


def score_with_slopes(
    task: Task, model: LiveModel, split: Split, examples: Sequence[int] | None, wanted: Sequence[int], slopes: Slopes
) -> Scores:
    """Return the scores of `examples` (None: of all), and add to `slopes` those of the searched mean over the `wanted` ones.

    The scores are those of `task.score` up to rounding, since the batches differ. Raises `TaskError` for a wanted example
    that is not scored, and `ModelError` naming the module that stops the backward pass.
    """
    scored = range(task.size(split)) if examples is None else examples
    place = {index: i for i, index in enumerate(scored)}
    unknown = [index for index in wanted if index not in place]
    if unknown:
        raise task_error(task.name, f"slopes of example {unknown[0]}, which is not scored")
    within = set(wanted)
    rest = [index for index in scored if index not in within]
    parts = [([place[index] for index in rest], task.score(model, split, rest))] if rest else []
    with model.gradients(slopes.tensors, slopes.take), torch.enable_grad():
        for part in task.graph(model, split, wanted) if wanted else ():
            if slopes.tensors:
                try:
                    _backward(part.value.sum() / len(wanted))
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    raise ModelError(_explained(task, model, split, wanted, error)) from error
            parts.append(([place[wanted[position]] for position in part.positions], part.scores))
    return joined(parts)


def _backward(value: Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]  # the library has no types here


def _explained(task: Task, model: LiveModel, split: Split, wanted: Sequence[int], error: Exception) -> str:
    """Return the error of a backward pass with the module that stopped it, which a second pass finds."""
    cut: list[str] = []
    reached: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.module.named_modules():
            if not any(True for _ in module.children()):
                hooks.callback(module.register_forward_hook(partial(_note_cut, cut, name)).remove)
                hooks.callback(
                    module.register_full_backward_pre_hook(lambda *_, name=name: reached.append(name)).remove
                )
        try:
            for part in task.graph(model, split, wanted):
                _backward(part.value.sum())
        except RuntimeError:
            pass
    if cut:
        where = (
            f"the output of the module `{cut[0]}` ({type(model.module.get_submodule(cut[0])).__name__}) has no gradient"
        )
    else:
        where = f"the last module reached is `{reached[-1]}`" if reached else "no module was reached"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the backward pass of task `{task.name}` failed: {where}; {reason}; search without slopes"


def _note_cut(cut: list[str], name: str, module: torch.nn.Module, inputs: Any, output: Any) -> None:
    """Record a module that was given something with a gradient, and returns something without."""
    outputs = [
        value for value in (output if isinstance(output, tuple | list) else [output]) if isinstance(value, Tensor)
    ]
    given = [*(value for value in inputs if isinstance(value, Tensor)), *module.parameters(recurse=False)]
    floating = [value for value in outputs if value.is_floating_point()]
    if floating and any(value.requires_grad for value in given) and not any(value.requires_grad for value in floating):
        cut.append(name)
