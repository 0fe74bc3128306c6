"""Condensed: the checkpoint of a mixture of experts with fewer experts, made of those inside each of its layers.

M-SMoE (https://arxiv.org/abs/2310.01334): experts are grouped by use and by how alike their logits in the router are, aligned,
and averaged by use. There all members of a group keep their rows of the router, and share one expert. A plain mixture has one
row for each expert: here it is the members' mean by use, the tangent of log Σ exp(logits) at their shares of use, without its
constant, for which a router without bias has no place. Where the members' rows are equal, nothing is lost. There the number of
groups differs between layers; a plain mixture has one number.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.alignment.matching import match
from evomerge.alignment.permuted import Permuted
from evomerge.alignment.symmetries import Permutations, Piece, Symmetry, Unit
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.header import TensorInfo
from evomerge.errors import RecipeError
from evomerge.merging import Statistics
from evomerge.models.tensor_mapping import TensorMapping
from evomerge.recipe import Condense

SUPPORTED = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Types of models whose files have each expert's matrices apart, and a router with one row for each expert and no bias."""

_COUNTS = ("num_local_experts", "num_experts")
_ACTIVE = "num_experts_per_tok"
_MATRICES = "w1|w2|w3|gate_proj|up_proj|down_proj"
_DOWN = ("w2", "down_proj")
"""Those of the matrices that are (hidden, inner); the others are (inner, hidden)."""
_EXPERT = re.compile(rf"(?P<parent>.+)\.experts\.(?P<number>\d+)\.(?P<matrix>{_MATRICES})\.weight")


@dataclass(frozen=True, slots=True)
class _Layer:
    """The experts of one layer: the names of the tensors around them, and those of an expert's matrices."""

    parent: str
    matrices: tuple[str, ...]

    @property
    def router(self) -> str:
        return f"{self.parent}.gate.weight"

    def name(self, expert: int, matrix: str) -> str:
        return f"{self.parent}.experts.{expert}.{matrix}.weight"


def condensed_config(condense: Condense, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a mixture with fewer experts. Raises `RecipeError` for a model that is no mixture known here."""
    key = next((key for key in _COUNTS if isinstance(config.get(key), int)), None)
    if config.get("model_type") not in SUPPORTED or key is None or not isinstance(config.get(_ACTIVE), int):
        raise RecipeError(
            f"condense: the model is of type `{config.get('model_type')}`; expected a mixture of experts, of type {', '.join(SUPPORTED)}, whose "
            f"config.json has `{_ACTIVE}` and `{_COUNTS[0]}` or `{_COUNTS[1]}`"
        )
    if condense.experts > config[key]:
        raise RecipeError(
            f"condense: `experts` is {condense.experts}; each layer has {config[key]}: type 1 to {config[key]}"
        )
    active = min(config[_ACTIVE], condense.experts) if condense.active is None else condense.active
    return {**config, key: condense.experts, _ACTIVE: active}


def grouped(usage: Sequence[float], logits: Tensor, count: int) -> list[list[int]]:
    """Return `count` groups of experts, each with its leader first, in the order of the leaders' numbers.

    The leaders have the largest `usage` `(E,)`; each other expert joins the leader with the largest cosine of its logits over
    tokens, of which `logits` `(E, E)` has the inner products. Of equal ones, the first.
    """
    order = sorted(range(len(usage)), key=lambda expert: -usage[expert])
    groups = {leader: [leader] for leader in sorted(order[:count])}
    sizes = logits.double().diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    cosines = logits.double() / sizes.outer(sizes)
    for expert in range(len(usage)):
        if expert not in groups:
            groups[max(groups, key=lambda leader: float(cosines[expert, leader]))].append(expert)
    return list(groups.values())


class Condensed(Computed):
    """A checkpoint like its source with fewer experts. An expert that is alone in its group stays as it is, bit for bit."""

    def __init__(
        self,
        condense: Condense,
        source: Checkpoint,
        config: Mapping[str, Any],
        statistics: Statistics,
        load: Callable[[Checkpoint, str], Tensor],
    ) -> None:
        """Prepare to merge; no tensor is read.

        `config` is the source's, `statistics` are of the experts of the pool that it names, and `load` returns its tensors before
        their last cast. Raises `RecipeError` for a model that is no mixture, too many experts, or statistics that are not collected.
        """
        self.config = condensed_config(condense, config)
        self._router, self._use = condense.kinds
        for kind in condense.kinds:
            statistics.digests(kind)
        self._source, self._statistics, self._load, self._count = source, statistics, load, condense.experts
        self._parts: dict[str, tuple[_Layer, int, str]] = {}
        info = dict(source.info)
        layers: dict[str, dict[str, None]] = {}
        for name in source.info:
            if found := _EXPERT.fullmatch(name):
                layers.setdefault(found["parent"], {})[found["matrix"]] = None
                if int(found["number"]) >= condense.experts:
                    del info[name]
        for parent, matrices in layers.items():
            layer = _Layer(parent, tuple(matrices))
            router = source.info[layer.router]
            info[layer.router] = TensorInfo((condense.experts, *router.shape[1:]), router.dtype)
            self._parts |= {
                layer.name(i, matrix): (layer, i, matrix) for i in range(condense.experts) for matrix in matrices
            }
            self._parts[layer.router] = (layer, 0, "")
        self._used, self._grouped, self._aligned = cache(self._usage), cache(self._groups), cache(self._permuted)
        super().__init__(info, self._made, (source,))

    def fp32(self, name: str) -> Tensor:
        """Return a tensor before its last cast."""
        if name not in self._parts:
            return self._load(self._source, name)
        layer, group, matrix = self._parts[name]
        if not matrix:
            rows = self._load(self._source, name)
            return torch.stack([self._mean(layer, members, lambda i: rows[i]) for members in self._grouped(layer)])
        members = self._grouped(layer)[group]
        return self._mean(layer, members, lambda i: self._member(layer, members[0], i).tensor(matrix))

    def groups(self) -> dict[str, list[list[int]]]:
        """Return the groups of each layer, see `grouped`, by the name of its router."""
        return {
            layer.router: self._grouped(layer) for layer in dict.fromkeys(layer for layer, _, _ in self._parts.values())
        }

    def _made(self, name: str) -> Tensor:
        if name not in self._parts:
            return self._source.tensor(name)
        return self.fp32(name).to(self.info[name].dtype)

    def _mean(self, layer: _Layer, members: Sequence[int], tensor: Callable[[int], Tensor]) -> Tensor:
        """Return the mean of experts' tensors, weighted by use; the plain mean where none is used."""
        if len(members) == 1:
            return tensor(members[0])
        used = [self._used(layer)[i] for i in members]
        shares = [use / sum(used) for use in used] if any(used) else [1 / len(members)] * len(members)
        total = tensor(members[0]).double() * shares[0]
        for i, share in zip(members[1:], shares[1:], strict=True):
            total += tensor(i).double() * share
        return total.float()

    def _usage(self, layer: _Layer) -> list[float]:
        """Return the number of tokens that are routed to each expert, over the evidence of all experts of the pool."""
        return [
            float(sum(float(tables["tokens"]) for tables in self._statistics.tables(self._use, name) if tables))
            for name in (layer.name(i, layer.matrices[0]) for i in range(self._source.info[layer.router].shape[0]))
        ]

    def _groups(self, layer: _Layer) -> list[list[int]]:
        tables = [one for one in self._statistics.tables(self._router, layer.router) if one]
        if not tables:
            raise RecipeError(
                f"condense: the evidence says nothing of the router `{layer.router}`; expected examples of a task that runs its layer"
            )
        logits = torch.stack([one["logits"].double() * one["tokens"] for one in tables]).sum(0)
        return grouped(self._used(layer), logits, self._count)

    def _member(self, layer: _Layer, leader: int, expert: int) -> Checkpoint:
        """Return an expert's matrices, their hidden units in the leader's order."""
        return self._expert(layer, expert) if expert == leader else self._aligned(layer, leader, expert)

    def _expert(self, layer: _Layer, expert: int) -> Checkpoint:
        names = {matrix: layer.name(expert, matrix) for matrix in layer.matrices}
        info = {matrix: self._source.info[name] for matrix, name in names.items()}
        return Computed(info, lambda matrix: self._load(self._source, names[matrix]))

    def _permuted(self, layer: _Layer, leader: int, expert: int) -> Checkpoint:
        source = self._expert(layer, expert)
        symmetry = _hidden_units({matrix: source.info[matrix].shape for matrix in layer.matrices})
        order: Permutations = match(source, self._expert(layer, leader), symmetry)
        return Permuted(source, symmetry, lambda: order)


def _hidden_units(shapes: Mapping[str, tuple[int, ...]]) -> Symmetry:
    """Return the symmetry of one gated layer, whose hidden units may have any order: rows of some matrices, columns of others."""
    inner = next(shape[matrix in _DOWN] for matrix, shape in shapes.items())
    pieces = {
        matrix: (Piece(tuple(map(np.arange, shape)), ((-1,), (0,)) if matrix in _DOWN else ((0,), (-1,))),)
        for matrix, shape in shapes.items()
    }
    mappings = {
        matrix: (TensorMapping(matrix, (slice(None),) * 2, (0, 1), matrix, (slice(None),) * 2),) for matrix in shapes
    }
    sizes = {matrix: torch.Size(shape) for matrix, shape in shapes.items()}
    return Symmetry((Unit(inner, tuple(shapes)),), pieces, mappings, sizes)
