"""Edits that drop elements of each task vector at random, and rescale the rest: DARE and DELLA."""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.arithmetic import compared, keep
from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import bits, keys, limit
from evomerge.merging.site import Bound, Chunks, Piece, Prepared, Region, Rows, Site, Values, part
from evomerge.merging.stage import Measurement, Preparation, Stage, Words
from evomerge.merging.stages.edits import complete

RESCALE = Parameter.word(
    "`inverse`: by 1 / the probability of being kept (paper); `l1`: to each tensor's L1 norm (mergekit); `none`",
    ("inverse", "l1", "none"),
)


def _l1_ratios(
    edit: Callable[[Piece, Rows, Bound, Words], Rows], bind: Callable[[Site, Values, None], Bound]
) -> Callable[[Region, Values], list[float]]:
    """Return the measurement of an edit that drops: each input's L1 norm before it, divided by that after it."""

    def measure(region: Region, values: Values) -> list[float]:
        bound = bind(region.site, {**values, "rescale": "none"}, None)
        sums = np.zeros((2, len(region.site.labels)))
        for chunk in region.chunks():
            kept = edit(chunk.piece, chunk.rows, part(bound, chunk.span), {"rescale": "none"})
            sums += [[float(row.abs().double().numpy().sum()) for row in rows] for rows in (chunk.rows, kept)]
        return [before / after if after else 0.0 for before, after in sums.T.tolist()]

    return measure


def _dare_bind(site: Site, values: Values, ratios: list[float] | None) -> Bound:
    kept = [1.0 - drop for drop in values["drop"]]
    factors = {"none": [1.0] * len(kept), "inverse": [1.0 / q for q in kept], "l1": ratios}[values["rescale"]]
    return {
        "keys": keys(site.seed, site.labels, site.tensor),
        "limit": torch.tensor([limit(q) for q in kept], dtype=torch.int32),
        "factor": torch.tensor(factors or [1.0] * len(kept), dtype=torch.float32),
    }


def _dare(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    index = piece.index
    return [
        keep(compared(operator.le, bits(index, key), most), row * factor)
        for row, key, most, factor in zip(
            rows, bound["keys"].unbind(), bound["limit"].unbind(), bound["factor"].unbind(), strict=True
        )
    ]


_LEVELS = 1 << 10  # of ranks
_NOISES = 1 << 14  # with half a step and the bits of the ranks, they fill a float32
_AT_ONCE = 1 << 22  # elements ranked at a time


def _rank_rows(site: Site, chunks: Chunks, values: Values) -> Prepared:
    """Prepare each magnitude's rank in its row plus its noise in (0, 1), float32 `(K, n)`: both in one number to read.

    Ranks count from 0 in the middle of a row; those of rows wider than 1,024 are scaled to 1,024 ranks. Noise is the middle
    of one of 2^14 steps, so that it is below p with probability p ± 2^-15.
    """
    width = _width(site, values)
    middle = min(width, _LEVELS) // 2
    lines = max(_AT_ONCE // width, 1)
    both = torch.empty((len(site.labels), site.numel))
    for i, key in enumerate(keys(site.seed, site.labels, site.tensor)):
        magnitudes, ranks = complete(chunks, i).abs_().view(-1, width), both[i].view(-1, width)
        for start in range(0, len(ranks), lines):
            some = slice(start, start + lines)
            ranks[some] = torch.from_numpy(_ranks(magnitudes[some].numpy()) - middle)
        for start in range(0, site.numel, _AT_ONCE):
            span = both[i, start : start + _AT_ONCE]
            index = torch.arange(start, start + len(span)).sub_(2**31).to(torch.int32)
            span += ((bits(index, key) >> 18) + (_NOISES / 2 + 0.5)) / _NOISES
    return {"rank+noise": both}


def _ranks(magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return each magnitude's rank in its row, at most 1,023; of equals the first has the lower rank."""
    width = magnitudes.shape[1]
    # The place in the lower half of the key makes any sort a stable one.
    order = magnitudes.view(np.uint32).astype(np.uint64) << 32 | np.arange(width, dtype=np.uint64)
    order.sort(axis=1)
    rank = np.arange(width)
    if width > _LEVELS:
        rank = rank * (_LEVELS - 1) // (width - 1)
    ranks = np.empty(magnitudes.shape, dtype=np.int64)
    np.put_along_axis(ranks, (order & 0xFFFFFFFF).astype(np.int64), rank[None], axis=1)
    return ranks


def _width(site: Site, values: Values) -> int:
    """Return how many elements are ranked together: a row of a matrix, a filter of a kernel, or all."""
    return max(math.prod(site.shape[1:] if values["scope"] == "row" and len(site.shape) > 1 else site.shape), 1)


def _della_measure(region: Region, values: Values) -> dict[str, Any]:
    (tables,) = region.prepared()
    fields: dict[str, Any] = {name: list(rows.unbind()) for name, rows in tables.items()}
    if values["rescale"] == "l1":
        ratio = _l1_ratios(_della, lambda site, values, _: _della_bind(site, values, fields))
        fields["ratio"] = torch.tensor(ratio(region, values), dtype=torch.float32)
    return fields


def _della_bind(site: Site, values: Values, measured: dict[str, Any]) -> Bound:
    """Bind the probabilities of the middle rank, and the step from rank to rank."""
    width = _width(site, values)
    ranks = min(width, _LEVELS)
    middle, step = [], []
    for density, epsilon in zip(values["density"], values["epsilon"], strict=True):
        window = min(epsilon, density, 1 - density) if width > 1 else 0.0  # a row of one has no ranks
        step.append(2 * window / max(ranks - 1, 1))
        middle.append(density - window + step[-1] * (ranks // 2))
    return {
        "middle": torch.tensor(middle, dtype=torch.float32),
        "step": torch.tensor(step, dtype=torch.float32),
        **measured,
    }


def _della(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    edited = []
    for i, row in enumerate(rows):
        both = bound["rank+noise"][i]
        rank = both.floor()
        q = bound["middle"][i] + bound["step"][i] * rank
        if words["rescale"] == "inverse":
            scaled = row * (1 / q)
        else:
            scaled = row * bound["ratio"][i] if words["rescale"] == "l1" else row
        edited.append(keep(compared(operator.lt, both - rank, q), scaled))
    return edited


DROPS = {
    "dare": Stage(
        "edit",
        "drop elements at random and rescale the rest (DARE, arXiv 2311.03099); the same noise serves every rate",
        _dare,
        {
            "drop": Parameter("probability that an element is dropped", 0.9, 0.0, 0.9999, (0.0, 0.95)),
            "rescale": RESCALE,
        },
        measure=Measurement(
            _l1_ratios(_dare, _dare_bind), lambda values: "tensor" if values["rescale"] == "l1" else None
        ),
        bind=_dare_bind,
    ),
    "della": Stage(
        "edit",
        "drop elements at random, small ones of their row more often, and rescale the rest: kept with probability "
        "density ± epsilon, by rank; epsilon is cut to what density leaves of [0, 1] (DELLA's MagPrune, arXiv 2406.11617)",
        _della,
        {
            "density": Parameter("mean probability of being kept", 0.7, 0.0, 1.0, (0.1, 0.9)),
            "epsilon": Parameter("half the width of the window of probabilities", 0.07, 0.0, 0.5, (0.0, 0.1)),
            "scope": Parameter.word("over what magnitudes are ranked", ("row", "tensor")),
            "rescale": RESCALE,
        },
        prepare=Preparation(_rank_rows, lambda site, values: (values["scope"], site.seed, *site.labels), cheap=True),
        measure=Measurement(_della_measure, lambda values: "tensor", fields=True),
        bind=_della_bind,
    ),
}
