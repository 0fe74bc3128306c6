"""M2N2's crossover: one arc before a split point of the flattened parameters, another from there on (arXiv 2508.16204)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Bound, Chunks, Piece, Prepared, Region, Rows, Site, Values
from evomerge.merging.stage import Derivatives, Measurement, Preparation, Stage, Words, measured_slope
from evomerge.merging.stages.arcs import Array, along, angle, gram


def _prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare the inner products of the inputs chunk by chunk, float64 `(chunks, K, K)`, and each chunk's elements.

    Those of a part are the sum over its chunks, except the one that its end cuts; a difference of running sums would lose a
    short part's among a long one's last bits.
    """
    grams, sizes = zip(*[(gram(chunk.rows), len(chunk.rows[0])) for chunk in chunks()], strict=True)
    return {"grams": torch.from_numpy(np.stack(grams)), "sizes": torch.tensor(sizes)}


@dataclass(frozen=True, slots=True)
class _Flat:
    """The flattened tensors of a region, and the inner products of their chunks."""

    starts: dict[str, int]
    """Where each tensor begins."""
    bounds: NDArray[np.int64]
    """Where each chunk begins, and where the last ends, `(chunks + 1,)`."""
    grams: Array
    """Float64 `(chunks, K, K)`."""

    @classmethod
    def of(cls, region: Region) -> "_Flat":
        """Join the tables prepared of a region's tensors."""
        tables = region.prepared()
        ends = np.cumsum([int(table["sizes"].sum()) for table in tables])
        bounds = np.cumsum(np.concatenate([[0], *(table["sizes"].numpy() for table in tables)]), dtype=np.int64)
        starts = dict(zip(region.tensors, [0, *ends[:-1].tolist()], strict=True))
        return cls(starts, bounds, np.concatenate([table["grams"].numpy() for table in tables]))

    def parts(self, region: Region, split: int) -> tuple[Array, Array]:
        """Return the inner products of the first `split` elements and of the others; reads at most one chunk."""
        at = int(np.searchsorted(self.bounds, split, side="right")) - 1  # the chunk that holds the split, if one does
        before, after = self.grams[:at].sum(axis=0), self.grams[at:].sum(axis=0)
        if split > self.bounds[at]:
            # Of tensors that begin at the same place, all but the last have no elements.
            name = list(self.starts)[int(np.searchsorted(list(self.starts.values()), split, side="right")) - 1]
            first, cut, last = (
                int(place) - self.starts[name] for place in (self.bounds[at], split, self.bounds[at + 1])
            )
            before = before + _sum_within(region, name, slice(first, cut))
            after = self.grams[at + 1 :].sum(axis=0) + _sum_within(region, name, slice(cut, last))
        return before, after


def _sum_within(region: Region, tensor: str, span: slice) -> Array:
    return np.asarray(sum(gram(chunk.rows) for chunk in region.read(tensor, span)))


def elements(share: float, size: int) -> int:
    """Return how many of `size` elements a share is, rounded down.

    A double stands for the largest number that is rounded to it, so that k / size gives k for all sizes below 2^53.
    """
    return min(math.floor((Fraction(share) + Fraction(math.ulp(share)) / 2) * size), size)


def _split_measure(region: Region, values: Values) -> tuple[dict[str, int], int, list[Array]]:
    """Return where each tensor begins, where the second part does, and the coefficients `(K,)` in each part."""
    flat = region.remember(lambda: _Flat.of(region))
    split, t = elements(values["split"], int(flat.bounds[-1])), values["t"]
    grams = flat.parts(region, split) if values["angle"] == "part" else (flat.grams.sum(axis=0),) * 2
    return flat.starts, split, [along(angle(products), s) for products, s in zip(grams, (t, 1 - t), strict=True)]


def _split_bind(site: Site, values: Values, measured: tuple[dict[str, int], int, list[Array]]) -> Bound:
    starts, split, (before, after) = measured
    inside = max(split - starts[site.tensor], 0)
    if inside >= site.numel:
        inside, after = 0, before
    instead = "expected a `split` at its ends or in another tensor"
    first = site.index(inside, "the split point is", instead) if inside else -(2**31)
    return {
        "split": torch.tensor(first, dtype=torch.int32),
        "before": torch.tensor(before, dtype=torch.float32),
        "after": torch.tensor(after, dtype=torch.float32),
    }


def _split(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    first = piece.index < bound["split"]
    return [
        torch.where(first, before, after)
        for before, after in zip(bound["before"].unbind(), bound["after"].unbind(), strict=True)
    ]


def _coefficients(part: int, measured: tuple[dict[str, int], int, list[Array]]) -> Array:
    return measured[2][part]


def _share_slope(
    site: Site, values: Values, measure: Callable[[Values], Any], derivatives: Derivatives
) -> NDArray[np.float64]:
    """Return the slope of `t`, through the coefficients in both parts."""
    parts = [measured_slope("t", name, partial(_coefficients, i)) for i, name in enumerate(("before", "after"))]
    return np.asarray(sum(part(site, values, measure, derivatives) for part in parts))


CROSSOVER = {
    "split_slerp": Stage(
        "weigh",
        "coefficients of slerp at t before a point of the flattened parameters, and at 1 - t from there on (M2N2, "
        "arXiv 2508.16204, eq. 2); linear where the inputs are parallel, opposite or zero",
        _split,
        {
            "split": Parameter.share("share of the elements before the split point", 0.5),
            "t": Parameter.share("the second input's share before the split point, and the first's from there on", 0.5),
            "angle": Parameter.word(
                "one angle of the `whole` vectors (released code), or each `part`'s own (paper)", ("whole", "part")
            ),
            "over": Parameter.word(
                "the flattened parameters: of the whole model, of the tensors of each kind, or of each tensor",
                ("model", "kind", "tensor"),
            ),
        },
        prepare=Preparation(_prepare, cheap=True),
        measure=Measurement(_split_measure, lambda values: values["over"]),
        bind=_split_bind,
        arity=(2, 2),
        slopes={"t": _share_slope},
    ),
}
