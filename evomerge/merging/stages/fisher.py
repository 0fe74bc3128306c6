"""Fisher-weighted averaging: weights by how sharply each expert's own predictions depend on an element (arXiv 2111.09832)."""

import math

import numpy as np
import torch

from evomerge.merging.parameters import Parameter
from evomerge.merging.site import Bound, Piece, Region, Rows, Values
from evomerge.merging.stage import Measurement, Stage, Words
from evomerge.merging.stages.weights import bound_weight


def _kind(values: Values) -> str:
    return f"fisher_{values['estimate']}"


def _norms(region: Region, kind: str) -> list[float]:
    """Return the Euclidean norm of each input's Fisher information over the region, 1 where all of it is 0."""
    squares = [0.0] * len(region.site.labels)
    for tensor in region.tensors:
        for i, tables in enumerate(region.site.statistics.tables(kind, tensor)):
            squares[i] += float((tables["square"].double().numpy() ** 2).sum()) if tables else 0.0
    return [math.sqrt(square) or 1.0 for square in squares]


def _measure(region: Region, values: Values) -> Bound:
    kind, site = _kind(values), region.site
    found = site.statistics.tables(kind, site.tensor)
    if not all(found):  # a running mean of a batch norm, which has no gradient
        return {"weight": torch.ones(len(site.labels))}
    norms = [1.0] * len(found)
    if values["normalise"] == "model":
        norms = region.cache(f"norms of {kind}", lambda: _norms(region, kind))
    rows = []
    for tables, norm in zip(found, norms, strict=True):
        share = tables["square"].reshape(-1).double().numpy().clip(values["floor"]) / norm
        rows.append(torch.from_numpy(np.power(share, values["power"]).astype(np.float32)))
    return {"rows": rows}


def _field(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    """Return a row of weights for each input; one number each where there is no Fisher information."""
    if "rows" not in bound:
        return bound_weight(piece, rows, bound, words)
    weights: Rows = bound["rows"]
    return weights


FISHER = {
    "fisher": Stage(
        "weigh",
        "the diagonal Fisher information of each input on examples of its own task (Fisher-weighted averaging, arXiv 2111.09832); "
        "equal weights for tensors that have no gradient",
        _field,
        {
            "estimate": Parameter.word(
                "over which labels squared gradients are averaged: `exact`, all that the model predicts, by their probabilities; "
                "`sampled`, one drawn from its prediction, per token; `empirical`, the right one",
                ("exact", "sampled", "empirical"),
            ),
            "normalise": Parameter.word(
                "`model`: divide by the norm over the model, so that no input outweighs the others (the authors' code); `none`",
                ("model", "none"),
            ),
            "floor": Parameter(
                "least Fisher information of an element", 1e-6, 1e-30, 1.0, (1e-10, 1e-4), log=True, per_input=False
            ),
            "power": Parameter.share("power of the weights: 0 is the plain average", 1.0),
        },
        needs=lambda values: (_kind(values),),
        measure=Measurement(_measure, fields=True, smooth=False),
        bind=lambda site, values, measured: measured,
    )
}
