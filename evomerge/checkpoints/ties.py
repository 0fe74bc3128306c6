"""Tensors that are stored several times: which of them are equal in every model, and the configuration without ties."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from evomerge.checkpoints.folder import Checkpoint, Sparing

_TIED = "tie_word_embeddings"
_SAMPLE = 64  # elements that are compared before complete tensors are


def find_copies(models: Sequence[Checkpoint]) -> list[list[str]]:
    """Return the sets of tensors, by name, that are equal to each other in every one of `models`, the base first.

    Tensors with one value in all elements in every model, such as the zeros and ones of new norms, are not listed.
    """
    base, *experts = models
    floating = [name for name, entry in base.info.items() if entry.dtype.is_floating_point and entry.numel]
    groups = _split([floating], lambda name: (base.info[name].shape, base.info[name].dtype))
    files = Sparing(models)
    for model in (base, *experts):
        groups = _split(groups, partial(_sampled, partial(files.tensor, model)))
    for model in (base, *experts):
        groups = [part for group in groups for part in _equal(partial(files.tensor, model), group)]
    groups = [group for group in groups if not all(_is_constant(files.tensor(model, group[0])) for model in models)]
    files.close()
    return groups


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` whose model has a head of its own, also in the configurations nested in it."""
    nested = {key: untied(value) for key, value in config.items() if isinstance(value, dict) and _TIED in value}
    return {**config, **nested, _TIED: False}


def _split(groups: Iterable[Sequence[str]], key: Callable[[str], Hashable]) -> list[list[str]]:
    parts: list[list[str]] = []
    for group in groups:
        by_key: dict[Hashable, list[str]] = {}
        for name in group:
            by_key.setdefault(key(name), []).append(name)
        parts += [part for part in by_key.values() if len(part) > 1]
    return parts


def _sampled(read: Callable[[str], torch.Tensor], name: str) -> bytes:
    return sample(read(name))


def sample(tensor: torch.Tensor) -> bytes:
    """Return some elements of a tensor, equal for equal tensors."""
    flat = tensor.reshape(-1)
    return flat[:: max(1, len(flat) // _SAMPLE)].double().add(0.0).numpy().tobytes()  # -0.0 equals 0.0


def _equal(read: Callable[[str], torch.Tensor], group: Sequence[str]) -> list[list[str]]:
    rest, parts = list(group), []
    while len(rest) > 1:
        first = read(rest[0])
        same = [name for name in rest if torch.equal(first, read(name))]
        parts.append(same)
        rest = [name for name in rest[1:] if name not in same]
    return [part for part in parts if len(part) > 1]


def _is_constant(tensor: torch.Tensor) -> bool:
    flat = tensor.reshape(-1)
    return bool((flat == flat[0]).all())
