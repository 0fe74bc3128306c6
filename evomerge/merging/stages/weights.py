"""Weights of the inputs: given as parameters, elected by sign, by energy, or by block. PCB's are in `balance`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.arithmetic import keep, plain
from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Bound, Piece, Region, Rows, Site, Tensor, Values, total
from evomerge.merging.stage import Derivatives, Measurement, Slope, Stage, Words, as_constants, slope_of

WEIGHT = Parameter("weight of each input", 1.0, low=-10, high=10, search=(0.0, 1.0))


def bound_weight(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    """Return one bound number for each input, `weight` `(K,)`."""
    return list(bound["weight"].unbind())


def _sign(values: Values) -> int:
    return 1 if values["better"] == "higher" else -1


def _metric_weights(values: Values) -> NDArray[np.float64]:
    logs = np.array([_sign(values) * values["power"] * math.log(metric) for metric in values["metric"]])
    weight = np.exp(logs - logs.max())
    return np.asarray(weight / weight.sum())


def _by_metric(site: Site, values: Values, measured: None) -> Bound:
    return {"weight": torch.tensor(_metric_weights(values), dtype=torch.float32)}


def _metric_slope(of: Callable[[Values], Any], *, summed: bool) -> Slope:
    """Return the slope through the weights, a softmax of logarithms; `of` is how these change with the parameter."""

    def slope(
        site: Site, values: Values, measure: Callable[[Values], Any], derivatives: Derivatives
    ) -> NDArray[np.float64]:
        weights, outer = _metric_weights(values), derivatives["weight"]
        result = weights * (outer - weights @ outer) * of(values)
        return np.asarray(result.sum() if summed else result)

    return slope


def _votes(rows: Rows, weights: Rows, elect: str) -> tuple[Rows, Tensor]:
    """Return the weighted rows, and the sum of their votes, `(n,)`."""
    ones = plain(*rows, *weights) and all(not weight.dim() and weight.numpy() == 1 for weight in weights)
    weighted = rows if ones else [row * weight for row, weight in zip(rows, weights, strict=True)]
    return weighted, total(weighted if elect == "mass" else [row.sign() for row in weighted])


def _majority(region: Region, values: Values) -> float:
    """Return the sign that most elements of the region elect."""
    bound = as_constants(region.site, values, None)
    balance = 0
    for chunk in region.chunks():
        _, mass = _votes(chunk.rows, list(bound["weight"].unbind()), values["elect"])
        balance += int((mass > 0).sum()) - int((mass < 0).sum())
    return float(np.sign(balance))


def _elect_bind(site: Site, values: Values, majority: float | None) -> Bound:
    undecided = {"none": 0.0, "positive": 1.0}.get(values["undecided"], majority)
    return {**as_constants(site, values, None), "undecided": torch.tensor(undecided, dtype=torch.float32)}


def _elect(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    weights = list(bound["weight"].unbind())
    weighted, mass = _votes(rows, weights, words["elect"])
    if words["undecided"] != "none":
        mass = torch.where(mass == 0, bound["undecided"], mass)
    if plain(mass, *weights):
        sign = mass.sign().numpy()
        agree = [torch.from_numpy(row.numpy() * sign > 0) for row in weighted]
        return [keep(mask, weight) for mask, weight in zip(agree, weights, strict=True)]
    positive, negative = mass > 0, mass < 0
    return [
        keep((row > 0) & positive | (row < 0) & negative, weight) for row, weight in zip(weighted, weights, strict=True)
    ]


def _energies(region: Region, values: Values) -> list[float]:
    """Return each input's share of the sum of squares, over the region; equal shares of less than `equal_below`."""
    energy = np.zeros(len(region.site.labels))
    for chunk in region.chunks():
        energy += [float((row.double().numpy() ** 2).sum()) for row in chunk.rows]
    inputs, mean = len(energy), energy.sum() / max(region.site.numel, 1)
    small = not energy.any() or mean < values["equal_below"]
    return (np.full(inputs, 1 / inputs) if small else energy / energy.sum()).tolist()


def measured_weight(site: Site, values: Values, weights: list[float]) -> Bound:
    """Bind one measured number for each input, for `bound_weight`."""
    return {"weight": torch.tensor(weights, dtype=torch.float32)}


def _swap_bind(site: Site, values: Values, measured: None) -> Bound:
    place, transition = site.place, values["transition"]
    if not place.inside:
        second = 1.0 if values["outside"] == "second" else 0.0
    else:
        below, above = place.block - values["bottom"], place.blocks - 1 - place.block - values["top"]
        between = (values["bottom"] > 0 and below < transition) or (values["top"] > 0 and above < transition)
        second = 1.0 if min(below, above) < 0 else 0.5 if between else 0.0
    return {"weight": torch.tensor([1.0 - second, second], dtype=torch.float32)}


WEIGHTS = {
    "weight": Stage(
        "weigh",
        "one number per input",
        bound_weight,
        {"weight": WEIGHT},
        slopes={"weight": slope_of("weight")},
        linear=True,
    ),
    "metric": Stage(
        "weigh",
        "weights in proportion to a power of each checkpoint's metric (metrics-weighted averaging, arXiv 2504.18580)",
        bound_weight,
        {
            "metric": Parameter("metric of each input, positive, such as its loss or its step", 1.0, 1e-30, 1e30),
            "power": Parameter("power: 0 is the plain average", 1.0, 0.0, 100.0, (0.0, 8.0), per_input=False),
            "better": Parameter.word("`lower` for a loss, `higher` for a score or a step", ("lower", "higher")),
        },
        bind=_by_metric,
        slopes={
            "metric": _metric_slope(
                lambda values: _sign(values) * values["power"] / np.array(values["metric"]), summed=False
            ),
            "power": _metric_slope(lambda values: _sign(values) * np.log(values["metric"]), summed=True),
        },
        linear=True,
    ),
    "elect": Stage(
        "weigh",
        "weight where the sign agrees with the elected one, else 0; elected on weighted deltas (TIES, steps 2 and 3)",
        _elect,
        {
            "weight": WEIGHT,
            "elect": Parameter.word("`mass`: sign of the sum (paper); `count`: majority of signs", ("mass", "count")),
            "undecided": Parameter.word(
                "the sign where the vote is zero: `none`, so that the element is 0 (paper), `positive` (mergekit), or the model's "
                "`majority` (the paper's code)",
                ("none", "positive", "majority"),
            ),
        },
        measure=Measurement(
            _majority, lambda values: "model" if values["undecided"] == "majority" else None, smooth=False
        ),
        bind=_elect_bind,
        slopes={"weight": slope_of("weight")},
    ),
    "stitch": Stage(
        "weigh",
        "weight where the task vector is not zero, else 0: with `solve`, the mean of those that an edit has left in each element "
        "(Localize-and-Stitch, arXiv 2408.13656)",
        lambda piece, rows, bound, words: [
            keep(row != 0, weight) for row, weight in zip(rows, bound["weight"].unbind(), strict=True)
        ],
        {"weight": WEIGHT},
        slopes={"weight": slope_of("weight")},
    ),
    "energy": Stage(
        "weigh",
        "each input's share of the tensor's sum of squares (SCE's coefficients, arXiv 2408.07990)",
        bound_weight,
        {
            "equal_below": Parameter(
                "inputs whose mean squares sum to less than this have equal shares (mergekit: 1e-6)",
                0.0,
                0.0,
                1e30,
                per_input=False,
            )
        },
        measure=Measurement(_energies, lambda values: "tensor"),
        bind=measured_weight,
        linear=True,
    ),
    "swap": Stage(
        "weigh",
        "the first input's blocks, the second's at the bottom and at the top, the average in transition zones between "
        "(Layer Swapping, arXiv 2410.01335)",
        bound_weight,
        {
            "bottom": Parameter("blocks at the bottom", 1, 0, 10_000, (0, 5), integer=True, per_input=False),
            "top": Parameter("blocks at the top", 1, 0, 10_000, (0, 5), integer=True, per_input=False),
            "transition": Parameter(
                "blocks of each transition zone", 1, 0, 10_000, (0, 2), integer=True, per_input=False
            ),
            "outside": Parameter.word(
                "input that gives embeddings, final norm and head", ("first", "second")
            ).with_default("second"),
        },
        bind=_swap_bind,
        arity=(2, 2),
        linear=True,
    ),
}
