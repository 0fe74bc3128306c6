"""MergeGradient: from the gradient of a merged tensor to the derivatives by the merge's numbers.

Not to be confused with `slopes`, which says which parameters have some.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.methods import spell_out
from evomerge.merging.pipeline import CHUNK, WIDE, Pipeline, flattened, spans, start
from evomerge.merging.site import Bound, Piece, Rows, Site, part
from evomerge.merging.slopes import sloped
from evomerge.merging.stages import STAGES
from evomerge.recipe import Merge, Tiled
from evomerge.recipe.form import KeyPath


@dataclass(frozen=True)
class Pulled:
    """Derivatives of <gradient, merged tensor>."""

    sums: Sequence[NDArray[np.float64]]
    """With respect to each constant that the stages read and parameters change; none if the tensor depends on no parameter."""
    inputs: Mapping[int, torch.Tensor]
    """With respect to the elements of an input's tensor, float32 `(n,)`, by the input's number."""
    linear: bool = False
    """Whether `sums` has instead the inner products of the gradient with the rows that are weighed, float64 `(rows,)`."""

    def __add__(self, other: "Pulled") -> "Pulled":
        """Return the sum over two gradients of the same tensor, without `inputs`."""
        return Pulled([one + two for one, two in zip(self.sums, other.sums, strict=True)], {}, self.linear)


_SMALL = 1 << 12
"""Number of elements up to which a tensor's rows are kept between batches, as reading them takes longer than their product."""


def _product(rows: torch.Tensor, flat: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray((rows @ flat).cpu().double().numpy())


class MergeGradient:
    """The gradient of one merge, which `pipeline` runs, with respect to its numbers."""

    def __init__(self, merge: Merge, pipeline: Pipeline) -> None:
        """Read which numbers of `merge` have derivatives."""
        spelled = spell_out(merge)
        self._pipeline = pipeline
        self._labels = merge.labels
        self._given = list(zip(spelled["steps"], spelled["paths"], strict=True))
        self._sloped = sloped(merge)
        # Rows after the edits, (rows, n), of small tensors, which every batch reads.
        self._small: dict[str, torch.Tensor] = {}

    def linear(self, name: str) -> bool:
        """Return whether `pull` of a tensor takes one inner product per input, and no pass through the merge."""
        return self._pipeline.compositions[self._pipeline.site(name).place].linear

    def pull(self, name: str, gradient: torch.Tensor, inner: Collection[int] = ()) -> Pulled:
        """Return the derivatives of <gradient, merged tensor>, from which `numbers` has those of the parameters.

        `gradient` is float32, of the tensor's shape. Masks, signs and thresholds are held fixed. `inner` are the numbers,
        from 0, of the inputs whose own derivatives are wanted too. They are computed where the gradient is, if merges run there.
        """
        pipeline = self._pipeline
        read = pipeline.reader(gradient.device)
        gradient = gradient.cpu() if read is None else gradient
        if name in self._small and not inner:
            return Pulled([_product(self._small[name], gradient.reshape(-1))], {}, linear=True)
        site, base, tensors = pipeline.load(name, read)
        composition, flat = pipeline.compositions[site.place], flattened(gradient.contiguous())
        if not base.numel() or pipeline.is_base(site, base, tensors):
            return Pulled([], {})
        if composition.linear and not inner:
            return Pulled([self._products(site, base, tensors, flat, placed=read is not None)], {}, linear=True)
        bound, leaves = self._leaves(site, placed=read is not None)
        sums = [np.zeros(leaf.shape) for leaf in leaves]
        inputs = {i: torch.empty_like(flat) for i in inner}
        for span in spans(slice(0, base.numel()), CHUNK if read is None else WIDE):
            with torch.enable_grad():
                rows = [tensor[span].float().requires_grad_(i in inputs) for i, tensor in enumerate(tensors)]
                origin, raw = composition.rows(base[span], rows)
                parts = [part(values, span) for values in bound]
                (delta,) = composition.upto(len(parts), Piece(raw, start(span)), parts)
                wanted = [*leaves, *(rows[i] for i in inputs)]
                grads = torch.autograd.grad(origin + delta, wanted, flat[span], allow_unused=True)
            added = [0.0 if grad is None else grad.cpu().double().numpy() for grad in grads[: len(leaves)]]
            sums = [total + new for total, new in zip(sums, added, strict=True)]
            for i, grad in zip(inputs, grads[len(leaves) :], strict=True):
                inputs[i][span] = 0.0 if grad is None else grad
        return Pulled(sums, inputs)

    def _products(
        self, site: Site, base: torch.Tensor, tensors: Rows, flat: torch.Tensor, *, placed: bool
    ) -> NDArray[np.float64]:
        """Return the inner products of the rows after the edits with a gradient, float64 `(rows,)`."""
        composition = self._pipeline.compositions[site.place]
        bound = [self._pipeline.bound(step, site) for step in range(composition.edits)]
        bound = [self._pipeline.send(values) for values in bound] if placed else bound
        products = []
        for span in spans(slice(0, base.numel()), WIDE if placed else CHUNK):
            _, raw = composition.rows(base[span], [tensor[span] for tensor in tensors])
            parts = [part(values, span) for values in bound]
            rows, *_ = composition.through(len(bound), Piece(raw, start(span)), parts)
            if site.numel <= _SMALL:
                self._small[site.tensor] = torch.stack(rows)
                return _product(self._small[site.tensor], flat)
            products.append(torch.stack([row @ flat[span] for row in rows]))
        return np.asarray(torch.stack(products).cpu().double().sum(dim=0).numpy())

    def _leaves(self, site: Site, *, placed: bool = False) -> tuple[list[Bound], list[torch.Tensor]]:
        """Return what the stages read for one tensor, and those constants of it that depend on parameters with slopes."""
        bound = [self._pipeline.bound(step, site) for step in range(len(self._pipeline.stages))]
        bound = [self._pipeline.send(values) for values in bound] if placed else bound
        leaves = []
        for stage, values in zip(self._pipeline.stages, bound, strict=True):
            for key, value in values.items() if stage.slopes else ():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    values[key] = value.detach().clone().requires_grad_()
                    leaves.append(values[key])
        return bound, leaves

    def numbers(self, name: str, pulled: Pulled) -> Iterator[tuple[KeyPath, float]]:
        """Yield key paths in the merge's JSON data, each with a derivative by the number there; a path may come several times.

        `pulled` is what `pull` returned for this tensor, or a sum of them over several gradients.
        """
        if not pulled.sums:
            return
        site, sums = self._pipeline.site(name), pulled.sums
        bound, leaves = self._leaves(site)
        if pulled.linear and leaves:
            with torch.enable_grad():
                delta = self._pipeline.compositions[site.place].after_edits(
                    [row.view(1) for row in torch.from_numpy(sums[0])], bound
                )
                grads = torch.autograd.grad(delta, leaves, torch.ones_like(delta), allow_unused=True)
            pairs = zip(leaves, grads, strict=True)
            sums = [np.zeros(tuple(leaf.shape)) if grad is None else grad.double().numpy() for leaf, grad in pairs]
        by_leaf = {id(leaf): total for leaf, total in zip(leaves, sums, strict=True)}
        for step, ((stage, given), path) in enumerate(self._given):
            for key, derivative in self._of_parameters(step, site, bound[step], by_leaf).items():
                where = (*path, key)
                if where not in self._sloped:
                    continue
                labels = self._labels if STAGES[stage].parameters[key].per_input else [None]
                for label, number in zip(labels, np.atleast_1d(derivative).tolist(), strict=True):
                    if not isinstance(given[key], Tiled):
                        yield where, number
                        continue
                    for entry, share in given[key].shares(site.place, label).items():
                        yield (*where, "values", *entry), share * number

    def _of_parameters(
        self, step: int, site: Site, bound: Bound, by_leaf: Mapping[int, NDArray[np.float64]]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the derivatives with respect to a stage's parameters, from those with respect to what was bound."""
        stage, (_, values) = self._pipeline.stages[step], self._pipeline.values[site.place][step]
        derivatives = {key: by_leaf[id(value)] for key, value in bound.items() if id(value) in by_leaf}
        if not derivatives:
            return {}

        def measure(changed: Mapping[str, Any]) -> Any:
            assert stage.measure is not None
            return stage.measure.make(self._pipeline.region(step, site, stage.measure.over(changed)), changed)

        return {name: slope(site, values, measure, derivatives) for name, slope in stage.slopes.items()}
