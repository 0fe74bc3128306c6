"""Folding: a stack's scales moved into its weights, where the resulting model is the same up to rounding in fp32.

`residual_stream` observes on random inputs which parts of the module write into the residual stream and which read it. The
weights to multiply follow from that, and the folded model is then compared with the stack.

With s_j the scale before layer j, and h_j the stream after it, there are two cases:

- A block adds to the stream (pre-norm). With c_j = s_0 · … · s_j, the folded model's stream is g_j = h_j / c_j: the parts
  of block j that write into it are divided by c_j, and embeddings stay. The parts that read it are norms, for which
  c_j > 0 changes nothing but the effect of ε; for c_j < 0 their weights, and the final norm's, change sign, biases do not.
- A block replaces the stream (post-norm). The last norm of block j - 1 (for the first layer, of the embeddings) is multiplied
  by s_j, weight and bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.stack import Stacked
from evomerge.models.live import LiveModel
from evomerge.models.probes import probes
from evomerge.models.residual_stream import OUTSIDE, Change, NotFoldable, ResidualStream, run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 2.0**-16
"""Largest difference of a folded stack's outputs, relative to the largest output: 128 units of fp32's rounding, about the sum
over a few dozen layers. A norm's ε causes more where the stream is small, as often in the first layers of decoders."""


@dataclass(frozen=True, slots=True)
class Folding:
    """The result of folding a stack, as measured on random inputs.

    `stack` has the scales in its weights, in their storage dtype; it is None where that would be another model, for the
    reason `why`. `difference` and `stored` are the largest differences of outputs, relative to the largest output, before
    and after the weights are rounded to that dtype; None where nothing could be run.
    """

    stack: Stacked | None
    why: str = ""
    difference: float | None = None
    stored: float | None = None


def fold(live: LiveModel, stack: Stacked) -> Folding:
    """Return the stack with its scales folded, using `live`, a model of its base in fp32, whose weights are overwritten.

    Raises `ModelError` where the stack cannot be written into `live`.
    """
    live.refit(stack)
    try:
        probes = _probes(live.module)
        expected = [run(live.module, probe) for probe in probes]
        changes = _changes(live, stack, probes[0])
        difference, stored = [
            _difference(live, _changed(stack, changes, dtype), probes, expected) for dtype in (torch.float32, None)
        ]
    except NotFoldable as reason:
        return Folding(None, str(reason))
    if not difference <= TOLERANCE:  # NaN, too
        why = f"folding them changes the outputs by {difference:.1e} of the largest, more than rounding does ({TOLERANCE:.1e})"
        return Folding(None, why, difference)
    return Folding(_changed(stack, changes), "", difference, stored)


def folded(source: Checkpoint, changes: Mapping[str, Change], dtype: torch.dtype | None = None) -> Checkpoint:
    """Return `source` with tensors changed by name, in fp32 with one cast to `dtype`, None for their storage dtype.

    In a dtype of 16 bits this rounds weights that were rounded before, unless the multiplier is a power of two.
    """
    info = {name: replace(e, dtype=dtype) if dtype and name in changes else e for name, e in source.info.items()}

    def tensor(name: str) -> Tensor:
        tensor = source.tensor(name)
        if name not in changes:
            return tensor
        change = changes[name]
        return ((tensor.float() + change.offset) * change.multiplier - change.offset).to(info[name].dtype)

    return Computed(info, tensor, (source,))


_Changes = Mapping[int, Mapping[str, Change]]
"""By layer (`OUTSIDE` for tensors in no block), then by the tensor's name in the layer's source."""


def _changed(stack: Stacked, changes: _Changes, dtype: torch.dtype | None = None) -> Stacked:
    """Return the stack without its scales, and with its tensors changed."""

    def change(source: Checkpoint, key: str, number: int) -> tuple[Checkpoint, str]:
        parts = changes.get(number)
        return (folded(source, parts, dtype), f"{key} {sorted(parts.items())} {dtype}") if parts else (source, key)

    layers = []
    for number, layer in enumerate(stack.layers):
        source, key = change(layer.source, layer.key, number)
        layers.append(replace(layer, source=source, key=key, scale=1.0))
    return Stacked(layers, *change(stack.rest, stack.rest_key, OUTSIDE), stack.prefix)


def _changes(live: LiveModel, stack: Stacked, probe: Mapping[str, Tensor]) -> _Changes:
    """Return the changes that move the scales of `stack` into its weights, provided that the observed stream is right."""
    live.refit(_changed(stack, {}))
    stream = ResidualStream(live.module, probe)
    scales = [layer.scale for layer in stack.layers]
    changes: dict[int, dict[str, Change]] = {}

    def take(number: int, parts: Mapping[str, Change]) -> None:
        index = number if number == OUTSIDE else stack.layers[number].index  # in the base
        here, base = f"{stream.list}.{number}.", f"{stream.list}.{index}."
        targets = {base + key.removeprefix(here) if key.startswith(here) else key: parts[key] for key in parts}
        for mapping in live.mappings:
            if mapping.target in targets:
                changes.setdefault(number, {})[mapping.source] = targets[mapping.target]

    writers, carries = stream.writers()
    if not carries:
        for number, scale in enumerate(scales, start=OUTSIDE):
            if scale != 1:
                take(number, stream.scaled(writers[number], scale))
        return changes
    total = [prod(scales[: number + 1]) for number in range(len(scales))]
    if 0 in total:
        raise NotFoldable("a scale of 0 removes the stream that the blocks add to")
    for number, factor in enumerate(total):
        if factor != 1:
            take(number, stream.scaled(writers[number], 1 / factor))
    if min(total) < 0:
        readers = stream.readers(writers)
        for number, factor in (*enumerate(total), (OUTSIDE, total[-1])):
            if factor < 0:
                take(number, stream.negated(readers.get(number, [])))
    return changes


def _probes(module: "PreTrainedModel") -> list[dict[str, Tensor]]:
    """Return a few random inputs."""
    inputs = probes(module)
    if inputs is None:
        msg = f"a model whose input is `{module.main_input_name}` cannot be run on random inputs here, which would prove that folding is exact"
        raise NotFoldable(msg)
    return inputs


@torch.no_grad()
def _difference(
    live: LiveModel, stack: Stacked, probes: Sequence[Mapping[str, Tensor]], expected: Sequence[Tensor]
) -> float:
    """Return the largest difference of a stack's outputs from `expected`, relative to the largest expected output."""
    if live.torn(stack):
        raise NotFoldable("tied tensors would have to differ")
    live.refit(stack)
    largest = max(float(output.abs().max()) for output in expected) or 1.0
    differences = [
        (run(live.module, probe) - output).abs().max() for probe, output in zip(probes, expected, strict=True)
    ]
    return float(torch.stack(differences).max()) / largest
