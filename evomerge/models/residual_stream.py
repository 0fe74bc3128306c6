"""The residual stream of a module: which parts write into it and which read it, observed on one input.

No architecture is listed here. Parts are the modules with parameters of their own; what they do follows from gradients and
from passes in which some of them are changed.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.layout import block_number
from evomerge.models.blocks import find_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTSIDE = -1
"""Stands for the number of the block, for parts outside of blocks."""
_UNCLEAR = "it is not clear what writes into the residual stream of this architecture"


class NotFoldable(Exception):  # noqa: N818  # an answer, not an error
    """Why scales cannot be folded, in words that follow `because`."""


@dataclass(frozen=True, slots=True)
class Change:
    """The replacement of a tensor w: `multiplier` · (w + `offset`) - `offset`, in fp32.

    The offset is what the model adds to w before it multiplies by it: 1 for Gemma's norms, 0 for most other weights.
    """

    multiplier: float
    offset: float = 0.0


@dataclass(slots=True)
class _Pass:
    """One pass: each part's arguments and output by its name, and the stream before and after each block."""

    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)


class ResidualStream:
    """A module's residual stream on one probe. Parts are named, and grouped by the number of their block, or `OUTSIDE`."""

    def __init__(self, module: "PreTrainedModel", probe: Mapping[str, Tensor]) -> None:
        self._module = module
        self._probe = probe
        self._blocks = find_blocks(module)
        self.list = next(name for name, part in module.named_modules() if part is self._blocks)
        self._parts = {
            name: part
            for name, part in module.named_modules()
            if next(part.parameters(recurse=False), None) is not None
        }

    def writers(self) -> tuple[dict[int, list[str]], bool]:
        """Return the parts whose outputs are added to the stream, and whether a block adds to the stream or replaces it.

        A gradient with respect to a block's output reaches a part's output unchanged where that output is only added
        afterwards; it reaches an earlier part once the later ones are silent.
        """
        writers: dict[int, list[str]] = {number: [] for number in range(len(self._blocks))}
        while True:
            observed = self._observe({name for names in writers.values() for name in names})
            new = {number: self._added(observed, number, end) for number, end in enumerate(observed.after)}
            if not any(new.values()):
                break
            for number, names in new.items():
                writers[number] += names
        writers[OUTSIDE] = self._added(observed, OUTSIDE, observed.before[0])
        if all(torch.equal(before, after) for before, after in zip(observed.before, observed.after, strict=True)):
            return writers, True
        if not any(after.any() for after in observed.after):
            return writers, False
        raise NotFoldable(_UNCLEAR)

    def readers(self, writers: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        """Return the parts that read the stream.

        If the stream and everything written into it are negated, the readers are the parts whose input is negated. If they
        receive the original input instead, the outputs must be the original ones, bit for bit.
        """
        arguments = self._plain.arguments
        added = {name for number, names in writers.items() if number != OUTSIDE for name in names}
        readers: dict[int, list[str]] = {}

        def enter(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if name not in arguments or not args:
                return args
            original, negated = arguments[name][0][0], args[0]
            if not negated.is_floating_point() or torch.equal(original, negated) or not torch.equal(original, -negated):
                return args
            readers.setdefault(self._number(name), []).append(name)
            return original, *args[1:]

        with torch.no_grad(), ExitStack() as hooks:
            for name, part in self._parts.items():
                hooks.enter_context(part.register_forward_pre_hook(lambda _, args, name=name: enter(name, args)))
                if name in added:
                    hooks.enter_context(part.register_forward_hook(lambda _, args, output: -output))
            hooks.enter_context(self._blocks[0].register_forward_pre_hook(lambda _, args: (-args[0], *args[1:])))
            outputs = run(self._module, self._probe)
        if not torch.equal(outputs, run(self._module, self._probe)):
            raise NotFoldable(
                "it is not clear what reads the residual stream of this architecture, and its sign changes"
            )
        return readers

    def scaled(self, names: Sequence[str], factor: float) -> dict[str, Change]:
        """Return the changes of tensors, by name, that multiply the outputs of the named parts by `factor`."""
        if not names:
            raise NotFoldable(_UNCLEAR)
        changes: dict[str, Change] = {}
        for name in names:
            args, kwargs = self._plain.arguments[name]
            changes |= self._change(name, args, kwargs, -2.0, -2.0 * self._plain.outputs[name], factor)
        return changes

    def negated(self, names: Sequence[str]) -> dict[str, Change]:
        """Return the changes of tensors, by name, with which the named parts give the same outputs on negated inputs."""
        changes: dict[str, Change] = {}
        for name in names:
            (stream, *args), kwargs = self._plain.arguments[name]
            changes |= self._change(name, (-stream, *args), kwargs, -1.0, self._plain.outputs[name], -1.0)
        return changes

    @cached_property
    def _plain(self) -> _Pass:
        return self._observe(set())

    def _added(self, observed: _Pass, number: int, end: Tensor) -> list[str]:
        """Return the parts of a block whose outputs are only added up to its `end`, apart from changes of shape."""
        direction = torch.randn(end.shape, generator=torch.Generator().manual_seed(0)).to(end)
        inside = [name for name in observed.outputs if self._number(name) == number]
        slopes = torch.autograd.grad(
            end, [observed.outputs[name] for name in inside], direction, retain_graph=True, allow_unused=True
        )
        return [
            name
            for name, slope in zip(inside, slopes, strict=True)
            if slope is not None
            and slope.numel() == direction.numel()
            and torch.equal(slope.reshape(end.shape), direction)
        ]

    def _change(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], trial: float, wanted: Tensor, factor: float
    ) -> dict[str, Change]:
        """Return the change by `factor` of those tensors of a part that give the output `wanted` when multiplied by `trial`."""
        part = self._parts[name]
        parameters = dict(part.named_parameters(recurse=False))
        subsets = [some for size in range(len(parameters), 0, -1) for some in itertools.combinations(parameters, size)]
        for some, offset in itertools.product(subsets, (0.0, 1.0)):
            changed = {key: trial * (parameters[key] + offset) - offset for key in some}
            with torch.no_grad():
                output = torch.func.functional_call(part, changed, args, kwargs)
            if torch.allclose(output, wanted.detach(), rtol=1e-5, atol=1e-6 * float(wanted.detach().abs().max())):
                return {f"{name}.{key}": Change(factor, offset) for key in some}
        msg = f"no weights of `{name}`, which reads or writes the residual stream, can be multiplied instead"
        raise NotFoldable(msg)

    def _observe(self, silent: set[str]) -> _Pass:
        """Return a pass with gradients in which the `silent` parts output zeros."""
        observed = _Pass()

        def after_part(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            if not output.requires_grad:
                output.requires_grad_()
            observed.arguments[name], observed.outputs[name] = (args, kwargs), output
            return output * (0.0 if name in silent else 1.0)  # not a leaf: later parts may work in place

        with torch.enable_grad(), ExitStack() as hooks:
            for name, part in self._parts.items():
                handle = part.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: after_part(name, args, kwargs, output), with_kwargs=True
                )
                hooks.enter_context(handle)
            for block in self._blocks:
                hooks.enter_context(block.register_forward_pre_hook(lambda _, args: observed.before.append(args[0])))
                hooks.enter_context(
                    block.register_forward_hook(lambda _, args, output: observed.after.append(_first(output)))
                )
            run(self._module, self._probe)
        return observed

    def _number(self, name: str) -> int:
        number = block_number(name, self.list)
        return OUTSIDE if number is None else number


def run(module: "PreTrainedModel", probe: Mapping[str, Tensor]) -> Tensor:
    """Return a module's first output: the logits, or hidden states where it has no head."""
    plain: Any = {"use_cache": False} if module.can_generate() else {}
    return _first(module(**probe, **plain, return_dict=False))


def _first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor
