"""trace: the axes of a module's tensors, found by following them through one pass."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evomerge.alignment.axes import Axis, fixed, leaves, pin
from evomerge.alignment.rules import RULES, Axes, Rule, elementwise


def trace(module: nn.Module, run: Callable[[], Any]) -> tuple[Mapping[str, Axes], Counter[str]]:
    """Return the axes of each floating-point tensor in a module's state, by name, and how often operations without a rule came.

    `run` runs the module once and returns its outputs, whose order is fixed. Tied tensors have one list of axes. The axes of a
    tensor that the pass does not read are pinned.
    """
    follower = _Follower()
    tensors = {name: one for name, one in module.state_dict(keep_vars=True).items() if one.is_floating_point()}
    axes = {name: follower.know(tensor) for name, tensor in tensors.items()}
    with torch.inference_mode(), follower:
        output = run()
    for name, tensor in tensors.items():
        if id(tensor) not in follower.used:
            for axis in axes[name]:
                pin(axis, "not used")
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            for axis in follower.read(leaf):
                pin(axis, "output")
    return axes, follower.unknown


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]  # the library has no types here
    """Gives the results of operations their axes. In inference mode, operations come whole, as `linear` or attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.unknown: Counter[str] = Counter()
        self.used: set[int] = set()
        self._axes: dict[int, Axes] = {}
        self._held: list[Tensor] = []  # so that no address comes twice

    def know(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor of the module; new ones at its first mention."""
        if id(tensor) not in self._axes:
            self._set(tensor, [Axis(size) for size in tensor.shape])
        return self._axes[id(tensor)]

    def read(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; those of inputs and constants are in a fixed order."""
        self.used.add(id(tensor))
        if id(tensor) not in self._axes:
            self._set(tensor, [fixed(size, "input") for size in tensor.shape])
        return self._axes[id(tensor)]

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        name = operation._schema.name.removeprefix("aten::")  # noqa: SLF001  # no public name exists
        rule = RULES.get(name) or RULES.get(name.rstrip("_"))
        if rule is None and torch.Tag.pointwise in operation.tags:
            rule = elementwise
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        followed = None if rule is None else self._follow(rule, result, args, kwargs)
        if followed is not None and [[axis.size for axis in one] for one in followed] == [
            list(tensor.shape) for tensor in results
        ]:
            for tensor, one in zip(results, followed, strict=True):
                self._set(tensor, one)
            return result
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(not leaf.pins for tensor in given for axis in self.read(tensor) for leaf in leaves(axis)):
            self.unknown[name] += 1
        for tensor in (*given, *results):
            for axis in self.read(tensor):
                pin(axis, name)
        return result

    def _follow(self, rule: Rule, result: Any, args: Any, kwargs: Any) -> list[Axes] | None:
        """Return the axes of the results; None for arguments that the rule does not know."""
        try:
            axes = rule(self.read, result, *args, **kwargs)
        except (NotImplementedError, TypeError):
            return None
        return [axes] if isinstance(result, Tensor) else axes

    def _set(self, tensor: Tensor, axes: Axes) -> None:
        self._axes[id(tensor)] = axes
        self._held.append(tensor)
