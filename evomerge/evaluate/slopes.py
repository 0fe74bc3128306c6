"""Scores with slopes: a backward pass over some of a task's examples, contracted tensor by tensor as gradients come."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.build import Merged
from evomerge.checkpoints.folder import Checkpoint, all_finite
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError, RecipeError
from evomerge.merging import Pulled, sloped_paths
from evomerge.models import LiveModel
from evomerge.recipe import Recipe
from evomerge.recipe.form import KeyPath
from evomerge.tasks import Task
from evomerge.tasks.data import task_error
from evomerge.tasks.task import Scores, joined
from evomerge.trial import Split

HELD = 256 << 20
"""Bytes of gradients that are held over the batches of a task."""


class Slopes:
    """Derivatives with respect to the numbers of one recipe, summed over its tensors as their gradients come.

    Gradients of all batches are first added up where the merge must be run again to pass them on, as TIES', as far as they fit in
    `HELD` bytes: one pass through the merge for each task then, instead of one for each batch.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint) -> None:
        """Start at zero for `checkpoint`, which a builder built from `recipe`. Raises `RecipeError` for a stack."""
        if isinstance(checkpoint, Stacked):
            raise RecipeError("a stack has no slopes; expected a merge")
        self._merged = checkpoint if isinstance(checkpoint, Merged) else None
        known = sloped_paths(recipe)
        self._numbers = {path: i for i, path in enumerate(recipe.numbers)}
        self.tensors = [] if self._merged is None else self._merged.moved()
        """The names of the tensors whose gradients are needed."""
        starts = [any(path[:length] in known for length in range(len(path) + 1)) for path in self._numbers]
        self._start = np.where(np.array(starts, dtype=bool), 0.0, np.nan)
        self._sums: dict[tuple[KeyPath, str], tuple[Merged, Pulled]] = {}
        self._held: dict[str, Tensor] = {}  # gradients, float32, that were not passed through the merge yet
        self._room = HELD

    def take(self, name: str, gradient: Tensor) -> None:
        """Add the part of one tensor, by a number's gradient with respect to it. Raises `FloatingPointError` if not finite."""
        if not all_finite(gradient):
            raise FloatingPointError(f"the gradient of the tensor `{name}` holds NaN or infinity")
        assert self._merged is not None
        if name in self._held:
            self._held[name] += gradient
        elif not self._merged.linear(name) and 4 * gradient.numel() <= self._room:
            self._held[name] = gradient.to(torch.float32, copy=True)
            self._room -= 4 * gradient.numel()
        else:
            self._merged.pull(name, gradient.float(), self._add, ("merge",))

    def collect(self) -> NDArray[np.float64]:
        """Return the derivatives, float64 `(numbers,)`, NaN where a number has no slope; and start again at zero."""
        if self._held and self._merged is not None:
            for name, gradient in self._held.items():
                self._merged.pull(name, gradient, self._add, ("merge",))
            self._held, self._room = {}, HELD
        result = self._start.copy()
        for (at, name), (merged, pulled) in self._sums.items():
            for path, number in merged.numbers(name, pulled):
                if (*at, *path) in self._numbers:  # else a default, which is not in the recipe
                    result[self._numbers[*at, *path]] += number
        self._sums = {}
        return result

    def _add(self, merged: Merged, at: KeyPath, name: str, pulled: Pulled) -> None:
        before = self._sums.get((at, name))
        self._sums[at, name] = (merged, pulled if before is None else before[1] + pulled)


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
