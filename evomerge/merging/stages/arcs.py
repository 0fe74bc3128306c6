"""Weights from the inputs' lengths and the angles between them: arcs and means on the sphere.

All are functions of the Gram matrix alone, which is prepared once. Not to be confused with `crossover`, where the two sides
of a split point have different weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.errors import RecipeError
from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Chunks, Prepared, Region, Rows, Site, Values, cancels
from evomerge.merging.stage import Measurement, Preparation, Stage, measured_slope
from evomerge.merging.stages.weights import WEIGHT, bound_weight, measured_weight

Array = NDArray[np.float64]

_STEPS = 100
_CLOSE = 1e-12
_STRAIGHT = 1e-6
"""The greatest sine of an angle at which vectors count as parallel or opposite."""
_NO_LENGTH = 1e-8
"""Directions whose weighted mean is shorter than this share of the weights cancel."""

SCOPE = Parameter.word("over what angles are taken: each tensor, or the whole model", ("tensor", "model"))


def gram(rows: Rows) -> Array:
    """Return the inner products of rows, float64 `(K, K)`."""
    *wide, product = np.empty((len(rows) + 1, len(rows[0])))
    products = np.empty((len(rows), len(rows)))
    for i, row in enumerate(wide):
        row[:] = rows[i].numpy()
        for j in range(i + 1):  # summed by numpy: torch's sums and matrix products depend on the threads
            products[i, j] = products[j, i] = np.multiply(row, wide[j], out=product).sum()
    return products


def _prepare(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare the inner products of the inputs, float64 `(K, K)`, and the tensor's number of elements."""
    products, size = np.zeros((len(site.labels), len(site.labels))), 0
    for chunk in chunks():
        products += gram(chunk.rows)
        size += len(chunk.rows[0])
    return {"gram": torch.from_numpy(products), "size": torch.tensor(size)}


def _by_gram(
    rule: Callable[[Array, Values, str], Array], *, on_sphere: bool
) -> Callable[[Region, Values], list[float]]:
    """Return the measurement of a rule: (Gram matrix, parameters, name for errors) → coefficients `(K,)`."""

    def measure(region: Region, values: Values) -> list[float]:
        tables = region.prepared()
        products = np.asarray(sum(table["gram"].numpy() for table in tables))
        if on_sphere and sum(int(table["size"]) for table in tables) == 1:
            products = np.zeros_like(products)  # one element has no direction: the rule is linear then
        where = "the model" if values["scope"] == "model" else f"`{region.site.tensor}`"
        return list(map(float, rule(products, values, where)))

    return measure


def angle(products: Array) -> float:
    """Return the angle between two inputs in radians, of their Gram matrix; 0 where one has no direction."""
    norms = np.sqrt(products.diagonal())
    if (norms == 0).any():
        return 0.0
    cosine = products[0, 1] / norms.prod()
    # arccos of a rounded cosine loses small angles; the half-angle form keeps them.
    return float(2 * np.arctan2(np.sqrt(max(2 - 2 * cosine, 0.0)), np.sqrt(max(2 + 2 * cosine, 0.0))))


def along(omega: float, t: float) -> Array:
    """Return the coefficients of two inputs at the share t of the arc of angle Ω between them; of the chord if sin Ω is 0."""
    if np.sin(omega) <= _STRAIGHT:
        return np.array([1 - t, t])
    return np.array([np.sin((1 - t) * omega) / np.sin(omega), np.sin(t * omega) / np.sin(omega)])


def _slerp(products: Array, t: float, where: str, chord: float = 1.0) -> Array:
    omega = angle(products)
    if abs(np.cos(omega)) > chord:
        return np.array([1 - t, t])
    if omega > 1 and np.sin(omega) <= _STRAIGHT:
        msg = f"the two inputs are anti-parallel in {where}, so no arc between them is the shortest; use linear"
        raise RecipeError(msg)
    return along(omega, t)


def _shares(weights: Sequence[float]) -> Array:
    """Return weights divided by their sum; equal shares where they cancel."""
    shares = np.array(weights, dtype=np.float64)
    return np.full(len(shares), 1 / len(shares)) if cancels(weights) else np.asarray(shares / shares.sum())


def _directions(products: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return the lengths, the cosines, and the weights of the inputs that have a direction; 0 for the others."""
    norms = np.sqrt(products.diagonal())
    lengths = np.where(norms > 0, norms, 1.0)
    return norms, products / np.outer(lengths, lengths), np.where(norms > 0, weights, 0.0)


def _length(directed: Array, cosines: Array) -> float:
    """Return the length of a weighted sum of directions; 0 where they cancel."""
    length = float(np.sqrt(max(float(directed @ cosines @ directed), 0.0)))
    return length if length >= _NO_LENGTH * np.abs(directed).sum() else 0.0


def _without_direction(weights: Array, where: str) -> Array:
    if len(weights) == 2:
        return weights
    msg = f"the inputs' weighted directions cancel in {where}, so that there is no mean direction; use linear"
    raise RecipeError(msg)


def _at_length(direction: Array, norms: Array, weights: Array) -> Array:
    """Return the coefficients of a direction, given by those of unit vectors, at the inputs' weighted mean length."""
    return np.asarray(direction / np.where(norms > 0, norms, 1.0) * (weights @ norms))


def _multislerp(products: Array, values: Values, where: str) -> Array:
    """Project onto the tangent space at the weighted mean direction m. The weighted tangents sum to zero: m is the result."""
    weights = _shares(values["weight"])
    norms, cosines, directed = _directions(products, weights)
    if not norms.any():
        return weights
    length = _length(directed, cosines)
    return _at_length(directed / length, norms, weights) if length else _without_direction(weights, where)


def _karcher(products: Array, values: Values, where: str) -> Array:
    """Iterate u ← exp_u(Σ w log_u(û)); u is represented by its coefficients over the unit vectors."""
    weights = _shares(values["weight"])
    norms, cosines, directed = _directions(products, weights)
    if not norms.any():
        return weights
    directed = directed if cancels(list(directed)) else directed / directed.sum()
    length = _length(directed, cosines)
    if not length:
        return _without_direction(weights, where)
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


def _stock(products: Array, values: Values, where: str) -> Array:
    """Return t / K for each input, t = K c / (1 + (K-1) c), c the mean cosine between two task vectors."""
    inputs = len(products)
    norms = np.sqrt(products.diagonal())
    if (norms == 0).any():
        return np.zeros(inputs)
    cosines = products / np.outer(norms, norms)
    cosine = (cosines.sum() - inputs) / (inputs * (inputs - 1))
    bottom = 1 + (inputs - 1) * cosine
    if values["bounds"] == "none":
        return np.full(inputs, cosine / bottom if abs(bottom) >= _STRAIGHT else 0.0)
    t = inputs * cosine / bottom if cosine > 0 else 0.0
    return np.full(inputs, min(t, 1.0) / inputs)


def _arc(
    about: str,
    rule: Callable[[Array, Values, str], Array],
    parameter: dict[str, Parameter],
    *,
    arity: tuple[int, int | None] = (1, None),
    on_sphere: bool = True,
) -> Stage:
    return Stage(
        "weigh",
        about,
        bound_weight,
        {**parameter, "scope": SCOPE},
        prepare=Preparation(_prepare, shared_as="gram", cheap=True),
        measure=Measurement(_by_gram(rule, on_sphere=on_sphere), lambda values: values["scope"]),
        bind=measured_weight,
        arity=arity,
        slopes={name: measured_slope(name) for name, spec in parameter.items() if spec.search is not None},
        linear=True,
    )


ARCS = {
    "slerp": _arc(
        "coefficients sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω of two inputs, Ω the angle between them (Shoemake 1985); "
        "linear for tensors of one element or of zeros",
        lambda products, values, where: _slerp(products, values["t"], where, values["chord"]),
        {
            "t": Parameter.share("0 is the first input, 1 the second", 0.5),
            "chord": Parameter(
                "the size of the cosine above which the chord is taken, not the arc; 1: never (mergekit: 0.9995)",
                1.0,
                0.0,
                1.0,
                per_input=False,
            ),
        },
        arity=(2, 2),
    ),
    "nuslerp": _arc(
        "slerp at the second input's share of the weights (NuSLERP)",
        lambda products, values, where: _slerp(products, _shares(values["weight"])[1], where),
        {"weight": WEIGHT},
        arity=(2, 2),
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
        "between the base and the inputs' mean, by the mean cosine between task vectors (Model Stock, arXiv 2403.19522)",
        _stock,
        {
            "bounds": Parameter.word(
                "`unit`: t in [0, 1], and 0 where the mean cosine is negative; `none`: as the formula gives it (mergekit)",
                ("unit", "none"),
            )
        },
        arity=(2, None),
        on_sphere=False,
    ),
}
