"""Narrowed: the checkpoint of a model whose MLPs have fewer hidden units, alike ones merged.

Iterative feature merging, IFM (Chen et al., https://arxiv.org/abs/2310.06756): within one layer, the two units whose weights are nearest
are merged, again and again. There the merged unit has the sum of the weights in and the mean of those out, which is exact for
equal units under ReLU alone; here it has the mean in and the sum out, which is exact under any activation. There units are
merged until none are near, layer by layer; a plain checkpoint has one width for all layers, which is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment.symmetries import TOLERANCE, Symmetry
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.errors import RecipeError
from evomerge.models.live import LiveModel
from evomerge.models.probes import probes
from evomerge.models.residual_stream import run
from evomerge.recipe import Narrow

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


def merged(features: Tensor, count: int) -> list[list[int]]:
    """Return groups of alike units, `count` of them, each in order, and in the order of their first units.

    `features` `(units, d)` are compared by Euclidean distance, a group by the mean of its units. The nearest two are merged first; of
    equally near ones, the first.
    """
    rows = features.double()
    sizes = rows.square().sum(1)
    squares = (sizes[:, None] + sizes - 2 * rows @ rows.mT).clamp(min=0).fill_diagonal_(torch.inf)
    groups = [[unit] for unit in range(len(rows))]
    least, nearest = squares.min(1)
    for _ in range(len(rows) - count):
        one = int(least.argmin())
        one, other = sorted((one, int(nearest[one])))
        share = len(groups[one]) / (len(groups[one]) + len(groups[other]))
        # The squared distance from a weighted mean of two points, by those from the points and between them.
        away = share * squares[one] + (1 - share) * squares[other] - share * (1 - share) * squares[one, other]
        groups[one], groups[other] = sorted(groups[one] + groups[other]), []
        squares[one] = squares[:, one] = away.clamp(min=0)
        squares[other] = squares[:, other] = torch.inf
        nearer = squares[one] < least
        least[nearer], nearest[nearer] = squares[one][nearer], one
        stale = (nearest == one) & ~nearer | (nearest == other)
        stale[one], stale[other] = True, True
        least[stale], nearest[stale] = squares[stale].min(1)
    return [group for group in groups if group]


class Narrowed(Computed):
    """A checkpoint like its source with fewer hidden units. A unit that is merged with no other stays as it is, bit for bit."""

    def __init__(
        self,
        narrow: Narrow,
        source: Checkpoint,
        config: Mapping[str, Any],
        mlps: Sequence[Mlp],
        load: Callable[[Checkpoint, str], Tensor],
    ) -> None:
        """Prepare to merge; no tensor is read. `config` is the source's, `load` returns its tensors before their last cast.

        Raises `RecipeError` for a model whose configuration has no such width, or more units than it has.
        """
        self.config = _config(narrow, config, mlps)
        self._source, self._load, self._count = source, load, narrow.hidden
        self._places: dict[str, list[tuple[Mlp, Place]]] = {}
        for mlp in mlps:
            for place in (*mlp.into, *mlp.out):
                self._places.setdefault(place.tensor, []).append((mlp, place))
        info = dict(source.info)
        for name, places in self._places.items():
            shape = list(info[name].shape)
            for mlp, place in places:
                shape[place.dim] -= mlp.size - narrow.hidden
            info[name] = TensorInfo(tuple(shape), info[name].dtype)
        self._groups = cache(self._grouped)
        super().__init__(info, self._made, (source,))

    def fp32(self, name: str) -> Tensor:
        """Return a tensor before its last cast."""
        tensor = self._load(self._source, name)
        for mlp, place in sorted(self._places.get(name, ()), key=lambda pair: -pair[1].start):  # the last first
            units = tensor.narrow(place.dim, place.start, mlp.size)
            parts = [self._one(units, place, group, mean=place in mlp.into) for group in self._groups(mlp)]
            before = tensor.narrow(place.dim, 0, place.start)
            end = place.start + mlp.size
            after = tensor.narrow(place.dim, end, tensor.shape[place.dim] - end)
            tensor = torch.cat([before, torch.stack(parts, place.dim), after], place.dim)
        return tensor

    def _one(self, units: Tensor, place: Place, group: Sequence[int], *, mean: bool) -> Tensor:
        if len(group) == 1:
            return units.select(place.dim, group[0])
        chosen = units.index_select(place.dim, torch.tensor(group)).double()
        return (chosen.mean(place.dim) if mean else chosen.sum(place.dim)).to(torch.float32).to(units.dtype)

    def _grouped(self, mlp: Mlp) -> list[list[int]]:
        rows = [
            self._load(self._source, place.tensor)
            .narrow(place.dim, place.start, mlp.size)
            .movedim(place.dim, 0)
            .reshape(mlp.size, -1)
            .double()
            for place in (*mlp.into, *mlp.out)
        ]
        return merged(torch.cat(rows, 1), self._count)

    def _made(self, name: str) -> Tensor:
        return self.fp32(name).to(self.info[name].dtype) if name in self._places else self._source.tensor(name)


def find_mlps(live: LiveModel, base: Checkpoint, symmetry: Symmetry, layout: Layout) -> list[Mlp]:
    """Return the hidden units of a model's MLPs, one for each block, proved on the module: equal units can be merged.

    The weights of `live` are the base's afterwards. Raises `RecipeError` for a model that has other MLPs.
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
    raise RecipeError(
        f"narrow: of the model's {total} blocks, {len(layers)} have an MLP whose hidden units are known to be free; expected one in each, as in Llama, "
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
                for place in (*mlp.into, *mlp.out):
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


def _config(narrow: Narrow, config: Mapping[str, Any], mlps: Sequence[Mlp]) -> dict[str, Any]:
    size = mlps[0].size
    keys = [key for key in _WIDTHS if config.get(key) == size]
    if config.get("model_type") == "gpt2" and config.get("n_inner") is None:
        keys = ["n_inner"]
    if not keys or any(mlp.size != size for mlp in mlps):
        raise RecipeError(
            f"narrow: expected MLPs of one width, which config.json names as one of {', '.join(f'`{key}`' for key in _WIDTHS)}; the blocks have "
            f"{', '.join(map(str, sorted({mlp.size for mlp in mlps})))} hidden units"
        )
    if narrow.hidden > size:
        raise RecipeError(f"narrow: `hidden` is {narrow.hidden}; each MLP has {size} hidden units: type 1 to {size}")
    return {**config, **dict.fromkeys(keys, narrow.hidden)}
