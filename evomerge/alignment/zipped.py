"""Zipped: the checkpoint of two models whose hidden units are merged in groups, with the rest averaged; for `pleas` and `zipit`.

A group gives the mean of what its units give, and each of its units' weights out read that. So the weight from group c to group r is
the sum of the models' weights from units of c to units of r, over the number of units in r (ZipIt's merge and unmerge). Where all
reads and writes the average of both models, as a residual stream, its positions are groups of two.

ZipIt! (Stoica et al., https://arxiv.org/abs/2305.03053) zips every layer. Here that is the hidden units of MLPs; a residual stream
is averaged in the order that it has, since all layers share it.

PLeaS (Nasery et al., https://arxiv.org/abs/2407.02447) permutes, keeps the least alike units apart, and fits each matrix W by least
squares to what both models compute: min |Z Wᵀ - T|², where Z are the inputs, merged in the same groups, and T the outputs. There by
gradient descent; here in closed form, with a ridge towards the weights above. There a program chooses each layer's width; a plain
checkpoint has one width for all layers, which leaves one ratio.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from evomerge.alignment.mlps import Mlp, Mlps, Place
from evomerge.checkpoints.folder import Checkpoint, Computed

Groups = Callable[[Mlp], Tensor]
"""(MLP) → the number of the group of each of its units, first of the first model's: int64 `(2d,)`, see `evomerge.alignment.grouping`."""

Rows = Callable[[str], tuple[tuple[Tensor, Tensor], int] | None]
"""(tensor) → inputs of both models' matrix for the same tokens, `(rows, d)` each, and `axis` as of the statistic `inputs`; None if there are none."""


class Zipped(Computed):
    """A checkpoint of two models in one, tensors merged when they are read."""

    def __init__(
        self,
        models: tuple[Checkpoint, Checkpoint],
        average: Checkpoint,
        mlps: Mlps,
        hidden: int,
        groups: Groups,
        config: dict[str, Any],
        load: Callable[[Checkpoint, str], Tensor],
        fit: tuple[Rows, float] | None = None,
    ) -> None:
        """Prepare to merge; no tensor is read.

        `average` is that of the `models`, in all but hidden units. `groups` returns `hidden` groups for each MLP; `config` is that of a
        model with `hidden` units. `load` returns tensors before their last cast. With `fit`, the inputs of matrices and a ridge, matrices
        are fitted.
        """
        self.config = config
        self._models, self._average, self._mlps, self._hidden = models, average, mlps, hidden
        self._load, self._fit = load, fit
        self._groups = cache(groups)
        super().__init__(mlps.info(average.info, hidden), self._made, (average, *models))

    def fp32(self, name: str) -> Tensor:
        """Return a tensor before its last cast."""
        rows = None if self._fit is None or len(self.info[name].shape) < 2 else self._fit[0](name)
        if name not in self._mlps and rows is None:
            return self._load(self._average, name)
        tensors = [self._load(model, name).double() for model in self._models]
        merged = self._weights(name, tensors)
        if rows is None or self._fit is None:
            return merged.float()
        inputs, axis = rows
        shape = merged.shape
        # As (out, in), and the dimensions of the checkpoint's tensor along which there are outputs and inputs.
        start, *both = (one.flatten(1) if axis else one.flatten(1).mT for one in (merged, *tensors))
        outputs = [one.double() @ weight.mT for one, weight in zip(inputs, both, strict=True)]
        given = self._means(name, [one.double() for one in inputs], axis)
        fitted = fitted_to(start, given, self._means(name, outputs, 1 - axis), self._fit[1])
        return (fitted if axis else fitted.mT).reshape(shape).float()

    def _weights(self, name: str, tensors: Sequence[Tensor]) -> Tensor:
        """Return a tensor of two, in groups of units."""

        def part(model: int) -> Callable[[Mlp, Place, Tensor], Tensor]:
            return lambda mlp, place, units: self._sums(mlp, units, place.dim, model, mean=place in mlp.into)

        one, other = (self._mlps.resized(name, tensor / 2, part(model)) for model, tensor in enumerate(tensors))
        return one + other

    def _means(self, name: str, tables: Sequence[Tensor], dim: int) -> Tensor:
        """Return one table of two, `(rows, d)`, whose columns are along dimension `dim` of a tensor: means of groups."""

        def part(model: int) -> Callable[[Mlp, Place, Tensor], Tensor]:
            return lambda mlp, _, units: self._sums(mlp, units, 1, model, mean=True)

        one, other = (self._mlps.resized(name, table / 2, part(model), {dim: 1}) for model, table in enumerate(tables))
        return one + other

    def _sums(self, mlp: Mlp, units: Tensor, dim: int, model: int, *, mean: bool) -> Tensor:
        """Return the sums of one model's units in each group; twice of it over the number of all its units, for a `mean`.

        Twice, since what comes in is half of the model's.
        """
        groups = self._groups(mlp)
        own = groups[model * mlp.size : (model + 1) * mlp.size]
        rows = units.movedim(dim, 0)
        sums = rows.new_zeros(self._hidden, *rows.shape[1:]).index_add_(0, own, rows)
        if mean:
            sums *= (2 / groups.bincount(minlength=self._hidden)).view(-1, *[1] * (rows.ndim - 1))
        return sums.movedim(0, dim)

    def _made(self, name: str) -> Tensor:
        if name not in self._mlps and self._fit is None:
            return self._average.tensor(name)
        return self.fp32(name).to(self.info[name].dtype)


def fitted_to(weights: Tensor, inputs: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """Return the weights `(out, in)`, fp64, that minimise |inputs weightsᵀ - outputs|² + λ |weights - start|², in closed form.

    `inputs` are `(rows, in)`, `outputs` `(rows, out)`, and λ is `ridge` times the sum of squares of the inputs over their width.
    Where the start leaves no error, it is the result.
    """
    error = outputs - inputs @ weights.mT
    penalty = ridge * float(inputs.square().sum()) / inputs.shape[1]
    if not penalty:
        return weights
    wide = inputs.shape[1] > inputs.shape[0]  # the same by the smaller system
    products = inputs @ inputs.mT if wide else inputs.mT @ inputs
    products.diagonal().add_(penalty)
    change: Tensor = torch.linalg.solve(products, error if wide else inputs.mT @ error)
    return weights + (inputs.mT @ change if wide else change).mT
