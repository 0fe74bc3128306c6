"""Folding: a stack's scales put into its weights, where the model that comes out is the same but for fp32's rounding.

Nothing is known here of architectures. The module itself is asked, on random inputs, which of its parts write into the
residual stream and which read it; from that follows what to multiply, and the folded model is then run against the stack.

With s_j the scale before layer j, and h_j the stream after it, there are two cases:

- A block adds to the stream (pre-norm). With c_j = s_0 · … · s_j, the folded model's stream is g_j = h_j / c_j: whatever
  writes into it in block j is divided by c_j, and embeddings stay. Whatever reads it is a norm, for which c_j > 0 makes no
  difference but for its ε; for c_j < 0, its weight changes sign, but not its bias. So does the final norm's.
- A block replaces the stream (post-norm). The last norm of block j - 1 (for the first layer, of the embeddings) is multiplied
  by s_j, weight and bias.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.folder import Checkpoint
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.stack import Stacked
from evomerge.errors import ModelError
from evomerge.models.blocks import find_blocks
from evomerge.models.live import LiveModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 2.0**-16
"""Largest difference between the outputs of a stack and of its folded form, as a share of the largest output: 128 units of
fp32's rounding, which is what a few dozen layers add up to. A norm's ε makes more where it is not small beside the mean
square of the stream, as it often is not in the first layers of decoders, whose embeddings are small."""

_PROBES = 4
_TOKENS = 32
_OUTSIDE = -1


@dataclass(frozen=True, slots=True)
class Folding:
    """What became of a stack's scales, as measured on random inputs.

    `stack` has them in its weights, in their storage dtype, and no scales; it is None where that would be another model,
    and `why` says why. `difference` is the largest one between outputs before the weights are rounded to that dtype, and
    `stored` after it; both are shares of the largest output, None where nothing could be run.
    """

    stack: Stacked | None
    why: str = ""
    difference: float | None = None
    stored: float | None = None


def fold(live: LiveModel, stack: Stacked) -> Folding:
    """Return what becomes of the scales of `stack`, using a model in fp32 of its base, which shows something else after.

    Raises `ModelError` where `live` cannot show the stack.
    """
    live.write(stack)
    try:
        probes = _probes(live.module)
        expected = [_run(live.module, probe) for probe in probes]
        changes = _changes(live, stack, probes[0])
        found = [
            _difference(live, _changed(stack, changes, dtype), probes, expected) for dtype in (torch.float32, None)
        ]
    except _NotFoldable as reason:
        return Folding(None, str(reason))
    difference, stored = found
    if not difference <= TOLERANCE:  # NaN is no agreement either
        why = f"folding them changes the outputs by {difference:.1e} of the largest, more than rounding does ({TOLERANCE:.1e})"
        return Folding(None, why, difference)
    return Folding(_changed(stack, changes), "", difference, stored)


class _NotFoldable(Exception):  # noqa: N818  # an answer, not an error
    """Why scales cannot be folded, in words that follow `because`."""


# -- weights that are changed as they are read ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a tensor w: `multiplier` · (w + `offset`) - `offset`, in fp32.

    The offset is what the model adds to w before it multiplies by it: 1 for Gemma's norms, 0 nearly everywhere.
    """

    multiplier: float
    offset: float = 0.0


class Folded:
    """A checkpoint with some of its tensors changed: in fp32, with one cast to their dtype at the end.

    In a dtype of 16 bits this rounds weights that were rounded before, unless the multiplier is a power of two.
    """

    def __init__(self, source: Checkpoint, changes: Mapping[str, Change], dtype: torch.dtype | None = None) -> None:
        """Change tensors of `source` by name; `dtype` is the one that they are cast to, None for their own."""
        self._source = source
        self._changes = changes
        self.info: Mapping[str, TensorInfo] = {
            name: replace(entry, dtype=dtype) if dtype and name in changes else entry
            for name, entry in source.info.items()
        }

    def tensor(self, name: str) -> Tensor:
        """The tensor, changed if it is one of those."""
        tensor = self._source.tensor(name)
        if name not in self._changes:
            return tensor
        change = self._changes[name]
        return ((tensor.float() + change.offset) * change.multiplier - change.offset).to(self.info[name].dtype)

    def write(self, name: str, out: Tensor) -> None:
        """Copy the tensor into `out`."""
        out.copy_(self.tensor(name))

    def forget(self) -> None:
        """Close the source's files."""
        self._source.forget()


_Changes = Mapping[int, Mapping[str, Change]]
"""By layer (`_OUTSIDE` for what is in no block), then by the tensor's name in the layer's source."""


def _changed(stack: Stacked, changes: _Changes, dtype: torch.dtype | None = None) -> Stacked:
    """Return the stack without its scales, and with its tensors changed."""

    def change(source: Checkpoint, key: str, number: int) -> tuple[Checkpoint, str]:
        own = changes.get(number)
        return (Folded(source, own, dtype), f"{key} {sorted(own.items())} {dtype}") if own else (source, key)

    layers = []
    for number, layer in enumerate(stack.layers):
        source, key = change(layer.source, layer.key, number)
        layers.append(replace(layer, source=source, key=key, scale=1.0))
    return Stacked(layers, *change(stack.rest, stack.rest_key, _OUTSIDE), stack.prefix)


def _changes(live: LiveModel, stack: Stacked, probe: Mapping[str, Tensor]) -> _Changes:
    """Return the changes that put the scales of `stack` into its weights, if the module is made as it seems."""
    live.write(_changed(stack, {}))
    stream = _Stream(live.module, probe)
    scales = [layer.scale for layer in stack.layers]
    found: dict[int, dict[str, Change]] = {}

    def take(number: int, parts: Mapping[str, Change]) -> None:
        places = _places(live, stream.list, None if number == _OUTSIDE else stack.layers[number].index)
        start = "" if number == _OUTSIDE else f"{stream.list}.{number}."
        for target, change in parts.items():
            for source in places[target.removeprefix(start)]:
                found.setdefault(number, {})[source] = change

    writers, carries = stream.writers()
    if not carries:
        for number, scale in enumerate(scales, start=_OUTSIDE):
            if scale != 1:
                take(number, stream.scaled(writers[number], scale))
        return found
    total = [prod(scales[: number + 1]) for number in range(len(scales))]
    if 0 in total:
        raise _NotFoldable("a scale of 0 leaves nothing of the stream that its blocks add to")
    for number, factor in enumerate(total):
        if factor != 1:
            take(number, stream.scaled(writers[number], 1 / factor))
    if min(total) < 0:
        readers = stream.readers(writers)
        for number, factor in (*enumerate(total), (_OUTSIDE, total[-1])):
            if factor < 0:
                take(number, stream.turned(readers.get(number, [])))
    return found


def _places(live: LiveModel, stack: str, layer: int | None) -> dict[str, list[str]]:
    """Return the checkpoint's tensors by what they fill: a place in a `layer` of the base, or outside of all layers."""
    start = "" if layer is None else f"{stack}.{layer}."
    found: dict[str, list[str]] = {}
    for mapping in live.mappings:
        if mapping.target.startswith(start):
            found.setdefault(mapping.target.removeprefix(start), []).append(mapping.source)
    return found


# -- what a module does with its residual stream ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Pass:
    """What was seen in one pass: a part's arguments and output, and the stream before and after each block."""

    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    made: dict[str, Tensor] = field(default_factory=dict)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)


class _Stream:
    """A module's residual stream, as one probe shows it. Parts are the modules that hold parameters of their own.

    They are known by name, and grouped by the number of their block, `_OUTSIDE` for those in none.
    """

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
        """Return the parts whose outputs are added to the stream, and whether a block adds to it, or replaces it.

        A gradient with respect to what comes out of a block passes unchanged to a part's output where that is only added
        up from there on; so it does to an earlier part, once the later ones are silent.
        """
        found: dict[int, list[str]] = {number: [] for number in range(len(self._blocks))}
        while True:
            seen = self._seen({name for names in found.values() for name in names})
            new = {number: self._added(seen, number, end) for number, end in enumerate(seen.after)}
            if not any(new.values()):
                break
            for number, names in new.items():
                found[number] += names
        found[_OUTSIDE] = self._added(seen, _OUTSIDE, seen.before[0])
        if all(torch.equal(before, after) for before, after in zip(seen.before, seen.after, strict=True)):
            return found, True
        if not any(after.any() for after in seen.after):
            return found, False
        raise _NotFoldable("it is not plain what writes into the residual stream of this architecture")

    def readers(self, writers: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        """Return the parts that read the stream.

        With the stream and all that is written into it negated, those are the parts that get the opposite of what they got;
        if they are given that instead, all else must be as it was, to the bit.
        """
        given = self._plain.given
        added = {name for number, names in writers.items() if number != _OUTSIDE for name in names}
        found: dict[int, list[str]] = {}

        def enter(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if name not in given or not args:
                return args
            was, now = given[name][0][0], args[0]
            if not now.is_floating_point() or torch.equal(was, now) or not torch.equal(was, -now):
                return args
            found.setdefault(self._number(name), []).append(name)
            return was, *args[1:]

        with torch.no_grad(), _hooks() as hooks:
            for name, part in self._parts.items():
                hooks(part.register_forward_pre_hook(lambda _, args, name=name: enter(name, args)))
                if name in added:
                    hooks(part.register_forward_hook(lambda _, args, output: -output))
            hooks(self._blocks[0].register_forward_pre_hook(lambda _, args: (-args[0], *args[1:])))
            turned = _run(self._module, self._probe)
        if not torch.equal(turned, _run(self._module, self._probe)):
            raise _NotFoldable(
                "it is not plain what reads the residual stream of this architecture, and its sign changes"
            )
        return found

    def scaled(self, names: Sequence[str], factor: float) -> dict[str, Change]:
        """Return the changes of tensors, by name, that multiply the outputs of the named parts by `factor`."""
        if not names:
            raise _NotFoldable("it is not plain what writes into the residual stream of this architecture")
        found: dict[str, Change] = {}
        for name in names:
            args, kwargs = self._plain.given[name]
            found |= self._change(name, args, kwargs, -2.0, -2.0 * self._plain.made[name], factor)
        return found

    def turned(self, names: Sequence[str]) -> dict[str, Change]:
        """Return the changes of tensors, by name, that make of the named parts those that take the opposite input."""
        found: dict[str, Change] = {}
        for name in names:
            (first, *args), kwargs = self._plain.given[name]
            found |= self._change(name, (-first, *args), kwargs, -1.0, self._plain.made[name], -1.0)
        return found

    @cached_property
    def _plain(self) -> _Pass:
        return self._seen(set())

    def _added(self, seen: _Pass, number: int, end: Tensor) -> list[str]:
        """Return the parts of a block that are only added up to its `end`, at most after a change of shape."""
        way = torch.randn(end.shape, generator=torch.Generator().manual_seed(0)).to(end)
        inside = [name for name in seen.made if self._number(name) == number]
        slopes = torch.autograd.grad(
            end, [seen.made[name] for name in inside], way, retain_graph=True, allow_unused=True
        )
        return [
            name
            for name, slope in zip(inside, slopes, strict=True)
            if slope is not None and slope.numel() == way.numel() and torch.equal(slope.reshape(way.shape), way)
        ]

    def _change(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], trial: float, wanted: Tensor, factor: float
    ) -> dict[str, Change]:
        """Return a change by `factor` of those tensors of a part with which it gives `wanted` when changed by `trial`."""
        part = self._parts[name]
        own = dict(part.named_parameters(recurse=False))
        subsets = [some for size in range(len(own), 0, -1) for some in itertools.combinations(own, size)]
        for some, offset in itertools.product(subsets, (0.0, 1.0)):
            changed = {key: trial * (own[key] + offset) - offset for key in some}
            with torch.no_grad():
                made = torch.func.functional_call(part, changed, args, kwargs)
            if torch.allclose(made, wanted.detach(), rtol=1e-5, atol=1e-6 * float(wanted.detach().abs().max())):
                return {f"{name}.{key}": Change(factor, offset) for key in some}
        msg = f"no weights of `{name}`, which stands at the residual stream, can be multiplied instead"
        raise _NotFoldable(msg)

    def _seen(self, silent: set[str]) -> _Pass:
        """Return what a pass gives, with gradients, while the `silent` parts give zeros."""
        seen = _Pass()

        def after_part(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            if not output.requires_grad:
                output.requires_grad_()
            seen.given[name], seen.made[name] = (args, kwargs), output
            return output * (0.0 if name in silent else 1.0)  # no leaf: what follows may work in place

        with torch.enable_grad(), _hooks() as hooks:
            for name, part in self._parts.items():
                hooks(
                    part.register_forward_hook(
                        lambda _, args, kwargs, output, name=name: after_part(name, args, kwargs, output),
                        with_kwargs=True,
                    )
                )
            for block in self._blocks:
                hooks(block.register_forward_pre_hook(lambda _, args: seen.before.append(args[0])))
                hooks(block.register_forward_hook(lambda _, args, output: seen.after.append(_first(output))))
            _run(self._module, self._probe)
        return seen

    def _number(self, name: str) -> int:
        inside = name.removeprefix(f"{self.list}.")
        return _OUTSIDE if inside == name else int(inside.partition(".")[0])


@contextmanager
def _hooks() -> Iterator[Callable[[Any], None]]:
    """Give a function that takes hooks' handles, and take the hooks off at the end."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


# -- running ----------------------------------------------------------------------------------------------------------------


def _probes(module: "PreTrainedModel") -> list[dict[str, Tensor]]:
    """Return a few random inputs of one example each: tokens, or pixels of variance 1."""
    generator = torch.Generator().manual_seed(0)
    config: Any = module.config
    if module.main_input_name == "input_ids":
        length = min(_TOKENS, getattr(config, "max_position_embeddings", _TOKENS))
        made = [torch.randint(config.vocab_size, (1, length), generator=generator) for _ in range(_PROBES)]
    elif module.main_input_name == "pixel_values":
        size = config.image_size
        sides = size if isinstance(size, list | tuple) else (size, size)
        made = [torch.randn(1, config.num_channels, *sides, generator=generator) for _ in range(_PROBES)]
    else:
        msg = f"a model whose input is `{module.main_input_name}` cannot be run on random inputs here, to prove that folding is exact"
        raise _NotFoldable(msg)
    return [{module.main_input_name: value.to(module.device)} for value in made]


def _run(module: "PreTrainedModel", probe: Mapping[str, Tensor]) -> Tensor:
    """Return a module's first output: the logits, or hidden states where it has no head."""
    plain: Any = {"use_cache": False} if module.can_generate() else {}
    return _first(module(**probe, **plain, return_dict=False))


def _first(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


@torch.no_grad()
def _difference(
    live: LiveModel, stack: Stacked, probes: Sequence[Mapping[str, Tensor]], expected: Sequence[Tensor]
) -> float:
    """Return the largest difference of a stack's outputs from those `expected`, as a share of the largest expected."""
    try:
        live.write(stack)
    except ModelError:  # the stack itself could be written
        raise _NotFoldable("tensors that are tied would have to differ") from None
    largest = max(float(output.abs().max()) for output in expected) or 1.0
    differences = [
        (_run(live.module, probe) - output).abs().max() for probe, output in zip(probes, expected, strict=True)
    ]
    return float(torch.stack(differences).max()) / largest
