"""Mlp: where the hidden units of a model's MLPs are in its checkpoint, proved on the module, so that there may be more or fewer of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment.symmetries import TOLERANCE, Symmetry
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.errors import ModelError
from evomerge.models.live import LiveModel
from evomerge.models.probes import probes
from evomerge.models.residual_stream import run

_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim")
"""Names of the number of hidden units in configurations."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the hidden units of an MLP are in a checkpoint: consecutive positions along one dimension of a tensor."""

    tensor: str
    dim: int
    start: int


@dataclass(frozen=True, slots=True)
class Mlp:
    """The hidden units of one MLP."""

    size: int
    into: tuple[Place, ...]
    """Weights and biases by which inputs reach the units."""
    out: tuple[Place, ...]
    """Weights by which the units reach the outputs."""

    @property
    def places(self) -> tuple[Place, ...]:
        """All of them."""
        return self.into + self.out


Resize = Callable[[Mlp, Place, Tensor], Tensor]
"""(MLP, place, the part of the tensor that its units have) → the part that replaces it, of another length along the place's dimension."""


class Mlps:
    """The hidden units of all MLPs of a model, by the tensors that have them."""

    def __init__(self, mlps: Sequence[Mlp]) -> None:
        """Take those that `find_mlps` returned."""
        self.all = list(mlps)
        self._places: dict[str, list[tuple[Mlp, Place]]] = {}
        for mlp in mlps:
            for place in mlp.places:
                self._places.setdefault(place.tensor, []).append((mlp, place))

    def __contains__(self, name: object) -> bool:
        """Whether a tensor has hidden units."""
        return name in self._places

    def info(self, info: Mapping[str, TensorInfo], hidden: int) -> dict[str, TensorInfo]:
        """Return the tensors of a model with `hidden` units in each MLP."""
        result = dict(info)
        for name, places in self._places.items():
            shape = list(info[name].shape)
            for mlp, place in places:
                shape[place.dim] += hidden - mlp.size
            result[name] = TensorInfo(tuple(shape), info[name].dtype)
        return result

    def resized(self, name: str, tensor: Tensor, resize: Resize, dims: Mapping[int, int] | None = None) -> Tensor:
        """Return a tensor whose hidden units `resize` made; `dims` maps dimensions of the checkpoint's tensor to those of this one."""
        for mlp, place in sorted(self._places.get(name, ()), key=lambda pair: -pair[1].start):  # the last first
            if dims is not None and place.dim not in dims:
                continue
            dim = place.dim if dims is None else dims[place.dim]
            end = place.start + mlp.size
            before, after = tensor.narrow(dim, 0, place.start), tensor.narrow(dim, end, tensor.shape[dim] - end)
            units = resize(mlp, place, tensor.narrow(dim, place.start, mlp.size))
            tensor = torch.cat([before, units, after], dim)
        return tensor


def find_mlps(live: LiveModel, base: Checkpoint, symmetry: Symmetry, layout: Layout) -> list[Mlp]:
    """Return the hidden units of a model's MLPs, one for each block, proved on the module: equal units can be merged.

    The weights of `live` are the base's afterwards. Raises `ModelError` for a model that has other MLPs.
    """
    layers = []
    for number, unit in enumerate(symmetry.units):
        if not unit.free or unit.within:
            continue
        places = _places(number, symmetry)
        blocks = {(layout.place(place.tensor).model, layout.place(place.tensor).block) for place in places}
        inside = all(layout.place(place.tensor).inside and layout.place(place.tensor).kind == "mlp" for place in places)
        if places and len(blocks) == 1 and inside:
            layers.append((unit.size, places))
    total = sum(layout.stacks.values())
    if len(layers) == total and total:
        for rows in (0, 1):  # of matrices stored as (out, in), and as (in, out)
            mlps = [_split(size, places, base, rows) for size, places in layers]
            if all(mlp.into and mlp.out for mlp in mlps) and _proved(live, base, mlps):
                return mlps
    raise ModelError(
        f"of the model's {total} blocks, {len(layers)} have an MLP whose hidden units are known to be free; expected one in each, as in Llama, "
        "ViT, BERT or GPT-2"
    )


def _places(number: int, symmetry: Symmetry) -> list[Place]:
    """Return where a unit is in the checkpoint; nothing for one that is not in consecutive places of it."""
    places: dict[Place, None] = {}
    for name in symmetry.units[number].tensors:
        for piece in symmetry.pieces[name]:
            for dim, axes in enumerate(piece.axes):
                if number not in axes:
                    continue
                at = piece.at[dim]
                if axes != (number,) or int(at[-1] - at[0]) != len(at) - 1:
                    return []
                placed = []
                for mapping in symmetry.mappings[name]:
                    whole = symmetry.shapes[name]
                    span = range(whole[dim])[mapping.filled[dim]]
                    if len(mapping.order) != len(whole) or int(at[0]) not in span or int(at[-1]) not in span:
                        continue
                    source = mapping.order[dim]
                    start = (mapping.taken[source].start or 0) + int(at[0]) - span.start
                    placed.append(Place(mapping.source, source, start))
                if not placed:
                    return []
                places.update(dict.fromkeys(placed))
    return list(places)


def _split(size: int, places: Sequence[Place], base: Checkpoint, rows: int) -> Mlp:
    """Return an MLP: weights in are biases, and matrices with the units along dimension `rows`."""
    into = [place for place in places if len(base.info[place.tensor].shape) == 1 or place.dim == rows]
    return Mlp(size, tuple(into), tuple(place for place in places if place not in into))


@torch.no_grad()
def _proved(live: LiveModel, base: Checkpoint, mlps: Sequence[Mlp]) -> bool:
    """Return whether the outputs stay as they are where a unit equal to another gives that one its weights out."""

    def changed(*, moved: bool) -> Checkpoint:
        def tensor(name: str) -> Tensor:
            result = base.tensor(name).clone()
            for mlp in mlps:
                for place in mlp.places:
                    if place.tensor != name:
                        continue
                    one, other = (result.select(place.dim, place.start + unit) for unit in (0, 1))
                    if place in mlp.into:
                        other.copy_(one)
                    elif moved:
                        one += other
                        other.zero_()
            return result

        return Computed(base.info, tensor)

    outputs = []
    try:
        for moved in (False, True):
            live.refit(changed(moved=moved))
            outputs.append([run(live.module, given) for given in probes(live.module) or ()])
    finally:
        live.refit(base)
    return bool(outputs[0]) and all(
        float((one - other).abs().max()) <= TOLERANCE * float(one.abs().max())
        for one, other in zip(*outputs, strict=True)
    )


def resized_config(config: Mapping[str, Any], mlps: Sequence[Mlp], hidden: int) -> dict[str, Any]:
    """Return the `config.json` of a model with `hidden` units in each MLP. Raises `ModelError` for MLPs of several widths."""
    size = mlps[0].size
    keys = [key for key in _WIDTHS if config.get(key) == size]
    if config.get("model_type") == "gpt2" and config.get("n_inner") is None:
        keys = ["n_inner"]
    if not keys or any(mlp.size != size for mlp in mlps):
        raise ModelError(
            f"expected MLPs of one width, which config.json names as one of {', '.join(f'`{key}`' for key in _WIDTHS)}; the blocks have "
            f"{', '.join(map(str, sorted({mlp.size for mlp in mlps})))} hidden units"
        )
    return {**config, **dict.fromkeys(keys, hidden)}
