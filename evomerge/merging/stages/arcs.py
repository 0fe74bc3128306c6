"""Weights that follow from the inputs' lengths and the angles between them: arcs and means on the sphere.

All of them are functions of the Gram matrix alone, so nothing here ever touches the weights again once it is known; but
where an arc's part has an angle of its own, the one block of elements that its end cuts is read again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter
from evomerge.merging.stage import (
    Blocks,
    Bound,
    Numbers,
    Piece,
    Prepared,
    Region,
    Rows,
    Scope,
    Site,
    Stage,
)
from evomerge.merging.stages.weights import WEIGHT, given, measured_weight

Array = NDArray[np.float64]

_STEPS = 100
_CLOSE = 1e-12
_STRAIGHT = 1e-6
"""The sine of an angle up to which there is no arc: the vectors are parallel or opposite."""

SCOPE = Parameter(
    "over what angles are taken: each tensor, or the whole model",
    "tensor",
    choices=("tensor", "model"),
    per_input=False,
)


def _products(rows: Rows) -> Array:
    """Return the inner products of rows, float64 `(K, K)`."""
    wide = [row.numpy().astype(np.float64) for row in rows]
    found = np.empty((len(rows), len(rows)))
    for i, row in enumerate(wide):
        for j in range(i + 1):  # sums by numpy: those of torch and of a matrix product depend on the threads
            found[i, j] = found[j, i] = (row * wide[j]).sum()
    return found


def _gram(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare the inner products of the inputs, float64 `(K, K)`, and the tensor's number of elements."""
    gram, size = np.zeros((len(site.labels), len(site.labels))), 0
    for block in blocks():
        gram += _products(block.rows)
        size += len(block.rows[0])
    return {"gram": torch.from_numpy(gram), "size": torch.tensor(size)}


def _scope(numbers: Numbers) -> Scope:
    return "model" if numbers["scope"] == "model" else "tensor"


def _by_gram(
    rule: Callable[[Array, Numbers, str], Array], *, on_sphere: bool
) -> Callable[[Region, Numbers], list[float]]:
    """Make the measure of a rule: (Gram matrix, numbers, tensor) → coefficients `(K,)`."""

    def measure(region: Region, numbers: Numbers) -> list[float]:
        prepared = region.prepared()
        gram = np.asarray(sum(table["gram"].numpy() for table in prepared))
        if on_sphere and sum(int(table["size"]) for table in prepared) == 1:
            gram = np.zeros_like(gram)  # one number has no direction: what is linear remains
        where = "the model" if numbers["scope"] == "model" else f"`{region.site.tensor}`"
        return list(map(float, rule(gram, numbers, where)))

    return measure


def _angle(gram: Array) -> float:
    """Return the angle between two inputs in radians; 0 where one has no direction."""
    norms = np.sqrt(gram.diagonal())
    if (norms == 0).any():
        return 0.0
    cosine = gram[0, 1] / norms.prod()
    # arccos of a rounded cosine loses small angles; the half-angle form keeps them.
    return float(2 * np.arctan2(np.sqrt(max(2 - 2 * cosine, 0.0)), np.sqrt(max(2 + 2 * cosine, 0.0))))


def _along(angle: float, t: float) -> Array:
    """Return the coefficients of two inputs at the share t of the arc between them; of the chord where there is no arc."""
    if np.sin(angle) <= _STRAIGHT:
        return np.array([1 - t, t])
    return np.array([np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)])


def _slerp(gram: Array, t: float, where: str) -> Array:
    angle = _angle(gram)
    if angle > 1 and np.sin(angle) <= _STRAIGHT:
        msg = f"the two inputs are anti-parallel in {where}, so no arc between them is the shortest; use linear"
        raise RecipeError(msg)
    return _along(angle, t)


def _by_share(gram: Array, numbers: Numbers, where: str) -> Array:
    """NuSLERP: an arc at the second's share of the weights."""
    first, second = numbers["weight"]
    total = first + second
    return _slerp(gram, 0.5 if abs(total) < 1e-6 else second / total, where)


def _shares(weights: Any) -> Array:
    """Return weights that sum to 1; equal ones where they sum to 0."""
    found = np.array(weights, dtype=np.float64)
    if abs(found.sum()) < 1e-8:
        return np.full(len(found), 1 / len(found))
    return np.asarray(found / found.sum())


def _directions(gram: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return the lengths, the cosines, and the weights of those that have a direction."""
    norms = np.sqrt(gram.diagonal())
    lengths = np.where(norms > 0, norms, 1.0)
    return norms, gram / np.outer(lengths, lengths), np.where(norms > 0, weights, 0.0)


def _cancelled(weights: Array, where: str) -> Array:
    if len(weights) == 2:
        return weights
    msg = f"the inputs' weighted directions cancel in {where}, so that there is no mean direction; use linear"
    raise RecipeError(msg)


def _at_length(direction: Array, norms: Array, weights: Array) -> Array:
    """Return the coefficients of `direction`, given over unit vectors, at the inputs' mean length."""
    return np.asarray(direction / np.where(norms > 0, norms, 1.0) * (weights @ norms))


def _multislerp(gram: Array, numbers: Numbers, where: str) -> Array:
    """Project onto the tangent space at the weighted mean direction m. The weighted tangents sum to zero, so m is the result."""
    weights = _shares(numbers["weight"])
    norms, cosines, directed = _directions(gram, weights)
    if not norms.any():
        return weights
    length = float(np.sqrt(max(float(directed @ cosines @ directed), 0.0)))
    return _cancelled(weights, where) if length < 1e-8 else _at_length(directed / length, norms, weights)


def _karcher(gram: Array, numbers: Numbers, where: str) -> Array:
    """Iterate u ← exp_u(Σ w log_u(û)); u is kept as its coefficients over the unit vectors."""
    weights = _shares(numbers["weight"])
    norms, cosines, directed = _directions(gram, weights)
    if not norms.any():
        return weights
    directed = directed / directed.sum() if directed.sum() else directed
    length = float(np.sqrt(max(float(directed @ cosines @ directed), 0.0)))
    if length < 1e-8:
        return _cancelled(weights, where)
    mean = directed / length
    for _ in range(_STEPS):
        towards = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(towards)
        pull = directed * np.where(angles > 1e-7, angles / np.sin(np.maximum(angles, 1e-7)), 1.0)
        tangent = pull - (pull @ towards) * mean
        step = float(np.sqrt(max(float(tangent @ cosines @ tangent), 0.0)))
        if step < _CLOSE:
            break
        mean = np.cos(step) * mean + np.sin(step) / step * tangent
        mean = mean / np.sqrt(mean @ cosines @ mean)
    return _at_length(mean, norms, weights)


def _stock(gram: Array, numbers: Numbers, where: str) -> Array:
    """Return t / K for each, t = K c / (1 + (K-1) c) in [0, 1], c the mean cosine between two task vectors."""
    inputs = len(gram)
    norms = np.sqrt(gram.diagonal())
    if (norms == 0).any():
        return np.zeros(inputs)
    cosines = gram / np.outer(norms, norms)
    cosine = (cosines.sum() - inputs) / (inputs * (inputs - 1))
    t = inputs * cosine / (1 + (inputs - 1) * cosine) if cosine > 0 else 0.0
    return np.full(inputs, min(t, 1.0) / inputs)


# -- one arc before a point, another from there on ---------------------------------------------------------------------


def _grams(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare the inner products of the inputs block by block, float64 `(blocks, K, K)`, and each block's elements.

    Those of a part are then the sum over its blocks, but for the one that its end cuts; a difference of running sums
    would lose a short part's among a long one's last bits.
    """
    found = [(_products(block.rows), len(block.rows[0])) for block in blocks()]
    grams, sizes = zip(*found, strict=True)
    return {"grams": torch.from_numpy(np.stack(grams)), "sizes": torch.tensor(sizes)}


@dataclass(frozen=True, slots=True)
class _Flat:
    """Tensors one after the other, and the inner products of their blocks."""

    starts: dict[str, int]
    """Where each tensor begins."""
    bounds: NDArray[np.int64]
    """Where each block begins, and where the last ends, `(blocks + 1,)`."""
    grams: Array
    """Float64 `(blocks, K, K)`."""

    @classmethod
    def of(cls, region: Region) -> "_Flat":
        """Join what was prepared of a region's tensors."""
        prepared = region.prepared()
        ends = np.cumsum([int(table["sizes"].sum()) for table in prepared])
        bounds = np.cumsum(np.concatenate([[0], *(table["sizes"].numpy() for table in prepared)]), dtype=np.int64)
        starts = dict(zip(region.tensors, [0, *ends[:-1].tolist()], strict=True))
        return cls(starts, bounds, np.concatenate([table["grams"].numpy() for table in prepared]))

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.bounds[-1])

    def parts(self, region: Region, split: int) -> tuple[Array, Array]:
        """Return the inner products of the first `split` elements and of the others; at most one block is read."""
        at = int(np.searchsorted(self.bounds, split, side="right")) - 1  # the block that holds the split, if one does
        before, after = self.grams[:at].sum(axis=0), self.grams[at:].sum(axis=0)
        if split > self.bounds[at]:
            # Of tensors that begin at one place, all but the last have no elements.
            name = list(self.starts)[int(np.searchsorted(list(self.starts.values()), split, side="right")) - 1]
            first, cut, last = (
                int(place) - self.starts[name] for place in (self.bounds[at], split, self.bounds[at + 1])
            )
            before = before + _sum_within(region, name, slice(first, cut))
            after = self.grams[at + 1 :].sum(axis=0) + _sum_within(region, name, slice(cut, last))
        return before, after


def _sum_within(region: Region, tensor: str, span: slice) -> Array:
    return np.asarray(sum(_products(block.rows) for block in region.within(tensor, span)))


def elements(share: float, size: int) -> int:
    """Return how many of `size` elements a share is: all that it has whole, in integers.

    The share k / size as a double gives k for all sizes below 2^53: it is taken as the largest number that is rounded to it.
    """
    return min(math.floor((Fraction(share) + Fraction(math.ulp(share)) / 2) * size), size)


def _split_measure(region: Region, numbers: Numbers) -> tuple[dict[str, int], int, list[Array]]:
    """Return where each tensor begins, where the second part does, and the coefficients `(K,)` in each part."""
    flat = region.remember(lambda: _Flat.of(region))
    split, t = elements(numbers["split"], flat.size), numbers["t"]
    grams = flat.parts(region, split) if numbers["angle"] == "part" else (flat.grams.sum(axis=0),) * 2
    return flat.starts, split, [_along(_angle(gram), share) for gram, share in zip(grams, (t, 1 - t), strict=True)]


_INDEXED = 1 << 32


def _split_bind(site: Site, numbers: Numbers, measured: tuple[dict[str, int], int, list[Array]]) -> Bound:
    starts, split, (before, after) = measured
    inside = split - starts[site.tensor]
    if inside >= site.numel:
        inside, after = 0, before
    if inside > 0 and site.numel > _INDEXED:
        msg = (
            f"the split point is inside of `{site.tensor}`, whose {site.numel:,} elements are more than the 2^32 that can be "
            "told apart; expected a `split` at its ends or in another tensor"
        )
        raise RecipeError(msg)
    return {
        "split": torch.tensor(max(inside, 0) - _INDEXED // 2, dtype=torch.int32),
        "before": torch.tensor(before, dtype=torch.float32),
        "after": torch.tensor(after, dtype=torch.float32),
    }


def _split(piece: Piece, rows: Rows, bound: Bound, words: Mapping[str, str]) -> Rows:
    first = piece.index < bound["split"]
    return [
        torch.where(first, before, after)
        for before, after in zip(bound["before"].unbind(), bound["after"].unbind(), strict=True)
    ]


# -- the table ---------------------------------------------------------------------------------------------------------


def _arc(
    about: str,
    rule: Callable[[Array, Numbers, str], Array],
    parameter: dict[str, Parameter],
    *,
    inputs: int | None = None,
    fewest: int = 1,
    on_sphere: bool = True,
) -> Stage:
    return Stage(
        "weigh",
        about,
        given,
        {**parameter, "scope": SCOPE},
        scope=_scope,
        prepare=_gram,
        prepared_as="gram",
        measure=_by_gram(rule, on_sphere=on_sphere),
        bind=measured_weight,
        inputs=inputs,
        fewest=fewest,
    )


ARCS = {
    "slerp": _arc(
        "coefficients sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω of two inputs, Ω the angle between them (Shoemake 1985); "
        "linear for tensors of one element or of zeros",
        lambda gram, numbers, where: _slerp(gram, numbers["t"], where),
        {"t": Parameter("0 is the first input, 1 the second", 0.5, 0.0, 1.0, (0.0, 1.0), per_input=False)},
        inputs=2,
    ),
    "split_slerp": Stage(
        "weigh",
        "coefficients of slerp at t before a point of the flattened parameters, and at 1 - t from there on (M2N2, "
        "arXiv 2508.16204, eq. 2); linear where the inputs are parallel, opposite or zero",
        _split,
        {
            "split": Parameter(
                "share of the elements before the split point", 0.5, 0.0, 1.0, (0.0, 1.0), per_input=False
            ),
            "t": Parameter(
                "the second input's share before the split point, and the first's from there on",
                0.5,
                0.0,
                1.0,
                (0.0, 1.0),
                per_input=False,
            ),
            "angle": Parameter(
                "one angle of the `whole` vectors (released code), or each `part`'s own (paper)",
                "whole",
                choices=("whole", "part"),
                per_input=False,
            ),
            "over": Parameter(
                "what is flattened: the whole model, the tensors of each kind, or each tensor",
                "model",
                choices=("model", "kind", "tensor"),
                per_input=False,
            ),
        },
        scope=lambda numbers: numbers["over"],
        prepare=_grams,
        measure=_split_measure,
        bind=_split_bind,
        inputs=2,
    ),
    "nuslerp": _arc(
        "slerp at the second input's share of the weights (NuSLERP)", _by_share, {"weight": WEIGHT}, inputs=2
    ),
    "multislerp": _arc(
        "the weighted mean direction at the weighted mean length (multi-SLERP, one step of the Karcher mean)",
        _multislerp,
        {"weight": WEIGHT},
    ),
    "karcher": _arc(
        "the point of the sphere nearest to all directions, along arcs, at the weighted mean length (Karcher 1977)",
        _karcher,
        {"weight": WEIGHT},
    ),
    "stock": _arc(
        "as near to the inputs' mean as the angles between their task vectors say (Model Stock, arXiv 2403.19522)",
        _stock,
        {},
        fewest=2,
        on_sphere=False,
    ),
}
