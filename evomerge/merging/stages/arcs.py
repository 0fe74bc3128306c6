"""Weights that follow from the inputs' lengths and the angles between them: arcs and means on the sphere.

All of them are functions of the Gram matrix alone, so nothing here ever touches the weights again once it is known.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter
from evomerge.merging.stage import Blocks, Numbers, Prepared, Region, Scope, Site, Stage
from evomerge.merging.stages.weights import WEIGHT, given, measured_weight

Array = NDArray[np.float64]

_STEPS = 100
_CLOSE = 1e-12

SCOPE = Parameter(
    "over what angles are taken: each tensor, or the whole model",
    "tensor",
    choices=("tensor", "model"),
    per_input=False,
)


def _gram(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare the inner products of the inputs, float64 `(K, K)`, and the tensor's number of elements."""
    inputs = len(site.labels)
    gram, size = np.zeros((inputs, inputs)), 0
    for block in blocks():
        wide = [row.double().numpy() for row in block.rows]
        for i in range(inputs):
            for j in range(i + 1):  # sums by numpy: those of torch and of a matrix product depend on the threads
                gram[i, j] += (wide[i] * wide[j]).sum()
        size += len(wide[0])
    gram = np.tril(gram) + np.tril(gram, -1).T
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


def _slerp(gram: Array, t: float, where: str) -> Array:
    norms = np.sqrt(gram.diagonal())
    if (norms == 0).any():
        return np.array([1 - t, t])
    cosine = gram[0, 1] / norms.prod()
    # arccos of a rounded cosine loses small angles; the half-angle form keeps them.
    angle = 2 * np.arctan2(np.sqrt(max(2 - 2 * cosine, 0.0)), np.sqrt(max(2 + 2 * cosine, 0.0)))
    if np.sin(angle) < 1e-6:
        if cosine < 0:
            msg = f"the two inputs are anti-parallel in {where}, so no arc between them is the shortest; use linear"
            raise RecipeError(msg)
        return np.array([1 - t, t])
    return np.array([np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)])


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
