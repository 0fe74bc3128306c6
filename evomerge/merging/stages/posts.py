"""Post stages, on the merged task vector Δ: scale it, by depth or to a length, gate it, or add noise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import noise, own_key
from evomerge.merging.site import Bound, Piece, Region, Site, Tensor, Values, total
from evomerge.merging.stage import Derivatives, Measurement, Stage, Words, slope_of


def _factor(piece: Piece, delta: Tensor, bound: Bound, words: Words) -> Tensor:
    scaled: Tensor = delta * bound["factor"]
    return scaled


def _l1_share(region: Region, values: Values) -> float:
    """Return (‖Σ τ‖₁ / ‖Δ‖₁) / K, which does not depend on `beta`."""

    def share() -> float:
        summed = merged = 0.0
        for chunk in region.chunks():
            summed += float(total(chunk.piece.raw).abs().double().numpy().sum())
            merged += float(chunk.rows[0].abs().double().numpy().sum())
        return summed / merged / len(region.site.labels) if merged else 0.0

    return region.remember(share)


def _by_depth(site: Site, values: Values, share: float | None) -> Bound:
    alpha = share if values["alpha"] == "auto" else values["alpha"]
    return {"factor": torch.tensor(alpha + values["beta"] * _depth(site), dtype=torch.float32)}


def _depth(site: Site) -> float:
    return site.place.depth if site.place.inside else 0.0


def _growth_slope(
    site: Site, values: Values, measure: Callable[[Values], Any], derivatives: Derivatives
) -> NDArray[np.float64]:
    return np.asarray(derivatives["factor"] * _depth(site))


def _consensus(piece: Piece, delta: Tensor, bound: Bound, words: Words) -> Tensor:
    agreeing = torch.zeros(())
    for row, threshold in zip(piece.raw, bound["threshold"].unbind(), strict=True):
        agreeing = agreeing + torch.where(row.abs() > threshold * (delta - row).abs(), 1.0, 0.0)
    return torch.where(agreeing >= bound["agree"], delta, 0.0)


def _mean_length(region: Region, values: Values) -> float:
    """Return mean ‖τ‖ / ‖Δ‖ over the region."""
    squares, merged = np.zeros(len(region.site.labels)), 0.0
    for chunk in region.chunks():
        squares += [float((row.double().numpy() ** 2).sum()) for row in chunk.piece.raw]
        merged += float((chunk.rows[0].double().numpy() ** 2).sum())
    return float(np.sqrt(squares).mean()) / math.sqrt(merged) if merged else 0.0


def _noise_bind(site: Site, values: Values, measured: None) -> Bound:
    if not values["sigma"]:
        return {}
    return {
        "key": own_key(site.seed, "noise", site.tensor),
        "sigma": torch.tensor(values["sigma"], dtype=torch.float32),
    }


def _noise(piece: Piece, delta: Tensor, bound: Bound, words: Words) -> Tensor:
    if "sigma" not in bound:
        return delta
    noisy: Tensor = delta + bound["sigma"] * noise(piece.index, bound["key"])
    return noisy


POSTS = {
    "scale": Stage(
        "post",
        "multiply the merged task vector by λ (Task Arithmetic, arXiv 2212.04089)",
        lambda piece, delta, bound, words: delta * bound["lambda"],
        {"lambda": Parameter("scale of the merged task vector", 1.0, -10, 10, (0.1, 1.5), per_input=False)},
        slopes={"lambda": slope_of("lambda")},
        linear=True,
    ),
    "lines": Stage(
        "post",
        "multiply by alpha + beta·depth, depth 0 for the first block and 1 for the last; by alpha outside the blocks "
        "(LiNeS, arXiv 2410.17146)",
        _factor,
        {
            "alpha": Parameter(
                "number, or `auto`: (‖Σ τ‖₁ / ‖Δ‖₁) / K",
                "auto",
                -10,
                10,
                (0.0, 1.0),
                choices=("auto",),
                per_input=False,
            ),
            "beta": Parameter("growth from the first block to the last", 0.5, -10, 10, (0.0, 1.5), per_input=False),
        },
        measure=Measurement(_l1_share, lambda values: "model" if values["alpha"] == "auto" else None),
        bind=_by_depth,
        slopes={"alpha": slope_of("factor"), "beta": _growth_slope},
        linear=True,
    ),
    "consensus": Stage(
        "post",
        "keep elements where |τ| > threshold·|Δ - τ| holds for at least `agree` task vectors "
        "(Consensus merging by TALL masks, arXiv 2405.07813)",
        _consensus,
        {
            "threshold": Parameter("λ of each input's mask", 0.4, 0.0, 1e6, (0.1, 1.0)),
            "agree": Parameter(
                "minimum number of masks that hold the element", 2, 0, 10_000, (1, 3), integer=True, per_input=False
            ),
        },
    ),
    "restore_norm": Stage(
        "post",
        "scale the merged task vector to the mean length of the task vectors, over the model (OPCM, arXiv 2501.09522)",
        _factor,
        measure=Measurement(_mean_length),
        bind=lambda site, values, ratio: {"factor": torch.tensor(ratio, dtype=torch.float32)},
        linear=True,
    ),
    "noise": Stage(
        "post",
        "add normal noise, a function of the merge's seed, the tensor and the element (the mutation of M2N2's models trained "
        "from scratch, arXiv 2508.16204)",
        _noise,
        {"sigma": Parameter("standard deviation, in the weights' units", 0.01, 0.0, 1e6, (0.0, 0.05), per_input=False)},
        bind=_noise_bind,
        adds=True,
        reuses=True,
    ),
}
