"""Narrowed: the checkpoint of a model whose MLPs have fewer hidden units, alike ones merged.

Iterative feature merging, IFM (Chen et al., https://arxiv.org/abs/2310.06756): within one layer, the two units whose weights are nearest
are merged, again and again. There the merged unit has the sum of the weights in and the mean of those out, which is exact for
equal units under ReLU alone; here it has the mean in and the sum out, which is exact under any activation. There units are
merged until none are near, layer by layer; a plain checkpoint has one width for all layers, which is given.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment.mlps import Mlp, Mlps, Place, resized_config
from evomerge.checkpoints.folder import Checkpoint, Computed
from evomerge.errors import RecipeError
from evomerge.recipe import Narrow


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

        Raises `ModelError` for a model whose configuration has no such width, and `RecipeError` for more units than it has.
        """
        if narrow.hidden > mlps[0].size:
            raise RecipeError(
                f"narrow: `hidden` is {narrow.hidden}; each MLP has {mlps[0].size} hidden units: type 1 to {mlps[0].size}"
            )
        self.config = resized_config(config, mlps, narrow.hidden)
        self._source, self._load, self._count, self._mlps = source, load, narrow.hidden, Mlps(mlps)
        self._groups = cache(self._grouped)
        super().__init__(self._mlps.info(source.info, narrow.hidden), self._made, (source,))

    def fp32(self, name: str) -> Tensor:
        """Return a tensor before its last cast."""

        def merged_units(mlp: Mlp, place: Place, units: Tensor) -> Tensor:
            parts = [self._one(units, place, group, mean=place in mlp.into) for group in self._groups(mlp)]
            return torch.stack(parts, place.dim)

        return self._mlps.resized(name, self._load(self._source, name), merged_units)

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
            for place in mlp.places
        ]
        return merged(torch.cat(rows, 1), self._count)

    def _made(self, name: str) -> Tensor:
        return self.fp32(name).to(self.info[name].dtype) if name in self._mlps else self._source.tensor(name)
