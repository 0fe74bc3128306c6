"""Edits that keep or change single elements of each task vector: by size, at random, or both."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import bits, keys, limit
from evomerge.merging.selection import Ranked, Streamed, rank
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
    part,
    total,
)

Words = Mapping[str, str]

TIES_SCOPE = Parameter(
    "over what fractions are taken: the whole model (TIES paper) or each tensor (mergekit)",
    "model",
    choices=("model", "tensor"),
    per_input=False,
)
RESCALE = Parameter(
    "`inverse`: by 1 / the probability of being kept (paper); `l1`: to each tensor's L1 norm (mergekit); `none`",
    "inverse",
    choices=("inverse", "l1", "none"),
    per_input=False,
)


# -- by size -----------------------------------------------------------------------------------------------------------


def whole(blocks: Blocks, i: int) -> torch.Tensor:
    """Return a tensor's task vector of one input; only what is prepared may hold a whole one."""
    return torch.cat([block.rows[i] for block in blocks()])


def rank_magnitudes(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare the sorted magnitudes of a tensor's task vectors."""
    inputs = range(len(site.labels))
    return rank(site.numel, ((block.rows[i].abs() for block in blocks()) for i in inputs))


def magnitudes(region: Region) -> Ranked | Streamed:
    """Return the magnitudes over a region."""
    if region.lasting:
        return region.remember(lambda: Ranked(region.prepared()))
    return Streamed(lambda: ([row.abs() for row in block.rows] for block in region.blocks()))


def how_many(fraction: float, count: int) -> int:
    """Return how many of `count` elements a fraction keeps: at least one, unless the fraction is 0."""
    return max(round(fraction * count), 1) if fraction > 0 else 0


def _share(fraction: float, count: int) -> int:
    """Return how many of `count` elements a fraction takes away, none that it takes only in part; 0.29 of 100 are 29."""
    return int(fraction * count + 1e-6)


def _trim_scope(numbers: Numbers) -> Scope:
    if min(numbers["density"]) >= 1:
        return "block"  # all is kept: nothing to measure
    return "model" if numbers["scope"] == "model" else "tensor"


def _trim_measure(region: Region, numbers: Numbers) -> list[float]:
    found = magnitudes(region)
    return found.largest([how_many(density, found.count) for density in numbers["density"]])


def _trim_bind(site: Site, numbers: Numbers, thresholds: list[float] | None) -> Bound:
    return {} if thresholds is None else {"threshold": torch.tensor(thresholds, dtype=torch.float32)}


def _trim(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "threshold" not in bound:
        return rows
    return [
        torch.where(row.abs() >= least, row, 0.0) for row, least in zip(rows, bound["threshold"].unbind(), strict=True)
    ]


def _band_scope(numbers: Numbers) -> Scope:
    return "model" if numbers["scope"] == "model" else "tensor"


def _band_measure(region: Region, numbers: Numbers) -> list[list[float]]:
    """Return for each input the smallest magnitude that is kept, and the smallest that is too large."""
    found = magnitudes(region)
    kept = [how_many(density, found.count) for density in numbers["density"]]
    top = [
        min(_share(gamma, found.count), found.count - k) for gamma, k in zip(numbers["gamma"], kept, strict=True)
    ]  # what is cut from the top never takes from what the density keeps
    least = found.largest([k + t if k else 0 for k, t in zip(kept, top, strict=True)])
    return [least, found.largest(top)]


def _band_bind(site: Site, numbers: Numbers, thresholds: list[list[float]]) -> Bound:
    least, largest = torch.tensor(thresholds, dtype=torch.float32)
    return {"least": least, "largest": largest}


def _band(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    return [
        torch.where((row.abs() >= least) & (row.abs() < largest), row, 0.0)
        for row, least, largest in zip(rows, bound["least"].unbind(), bound["largest"].unbind(), strict=True)
    ]


def _outliers_measure(region: Region, numbers: Numbers) -> list[list[float]]:
    """Return each input's magnitudes at the quantiles `clip` and 1 - `clip`."""
    found = magnitudes(region)
    cut = [_share(clip, found.count) for clip in numbers["clip"]]
    return [found.largest([found.count - k for k in cut]), found.largest([k + 1 for k in cut])]


def _outliers_bind(site: Site, numbers: Numbers, bounds: list[list[float]]) -> Bound:
    low, high = torch.tensor(bounds, dtype=torch.float32)
    return {"low": low, "high": high}


def _outliers(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    low, high = bound["low"].unbind(), bound["high"].unbind()
    clipped = [row.abs().clamp(least, most) for row, least, most in zip(rows, low, high, strict=True)]
    return [torch.where(row == 0, 0.0, torch.copysign(size, row)) for row, size in zip(rows, clipped, strict=True)]


def _near(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    return [torch.minimum(torch.maximum(row, -bound["t"]), bound["t"]) for row in rows]


# -- by disagreement ---------------------------------------------------------------------------------------------------


def _variance(rows: Rows) -> torch.Tensor:
    """The population's variance over inputs, `(n,)`."""
    mean = total([row / len(rows) for row in rows])
    return total([(row - mean) ** 2 for row in rows]) / len(rows)


def _rank_variance(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    varying = sum(int((_variance(block.rows) > 0).sum()) for block in blocks())
    ranked = rank(site.numel, [(_variance(block.rows) for block in blocks())])
    return {**ranked, "varying": torch.tensor(varying)}


def _select_measure(region: Region, numbers: Numbers) -> float:
    found: Ranked | Streamed
    if region.lasting:
        found = region.remember(lambda: Ranked(region.prepared()))
        varying = sum(int(prepared["varying"]) for prepared in region.prepared())
    else:
        found = Streamed(lambda: ([_variance(block.rows)] for block in region.blocks()))
        varying = sum(int((_variance(block.rows) > 0).sum()) for block in region.blocks())
    return found.largest([how_many(numbers["select"], varying) if varying else 0])[0]


def _select_bind(site: Site, numbers: Numbers, threshold: float | None) -> Bound:
    return {} if threshold is None else {"threshold": torch.tensor(threshold, dtype=torch.float32)}


def _select(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "threshold" not in bound:
        return rows
    kept = _variance(rows) >= bound["threshold"]
    return [torch.where(kept, row, 0.0) for row in rows]


# -- at random ---------------------------------------------------------------------------------------------------------


def _l1_scope(numbers: Numbers) -> Scope:
    return "tensor" if numbers["rescale"] == "l1" else "block"


def _l1_ratios(
    edit: Callable[[Piece, Rows, Bound, Words], Rows], bind: Callable[[Site, Numbers, None], Bound]
) -> Callable[[Region, Numbers], list[float]]:
    """Make the measure of an edit that drops: by what each input's kept part is multiplied to have the whole's L1 norm."""

    def measure(region: Region, numbers: Numbers) -> list[float]:
        bound = bind(region.site, {**numbers, "rescale": "none"}, None)
        sums = np.zeros((2, len(region.site.labels)))
        for block in region.blocks():
            kept = edit(block.piece, block.rows, part(bound, block.span), {"rescale": "none"})
            sums += [[float(row.abs().double().numpy().sum()) for row in rows] for rows in (block.rows, kept)]
        return [whole / kept if kept else 0.0 for whole, kept in sums.T.tolist()]

    return measure


def _dare_bind(site: Site, numbers: Numbers, ratios: list[float] | None) -> Bound:
    kept = [1.0 - drop for drop in numbers["drop"]]
    factors = {"none": [1.0] * len(kept), "inverse": [1.0 / q for q in kept], "l1": ratios}[numbers["rescale"]]
    return {
        "keys": keys(site.seed, site.labels, site.tensor),
        "limit": torch.tensor([limit(q) for q in kept], dtype=torch.int32),
        "factor": torch.tensor(factors or [1.0] * len(kept), dtype=torch.float32),
    }


def _dare(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    index = piece.index
    return [
        torch.where(bits(index, key) <= most, row * factor, 0.0)
        for row, key, most, factor in zip(
            rows, bound["keys"].unbind(), bound["limit"].unbind(), bound["factor"].unbind(), strict=True
        )
    ]


_LEVELS = 1 << 10  # of ranks
_NOISES = 1 << 14  # with half a step and the bits of the ranks, all that a float32 holds
_AT_ONCE = 1 << 22  # numbers that are ranked at a time


def _rank_rows(site: Site, blocks: Blocks, numbers: Numbers) -> Prepared:
    """Prepare each magnitude's rank in its row plus its noise in (0, 1), float32 `(K, n)`: one number to read for both.

    Ranks are 0 in the middle of a row; those of rows wider than 1,024 are scaled to so many. Noise is in the middle of one
    of 2^14 steps, so that it is below p with a probability of p ± 2^-15.
    """
    width = _width(site, numbers)
    middle = min(width, _LEVELS) // 2
    lines = max(_AT_ONCE // width, 1)
    found = torch.empty((len(site.labels), site.numel))
    for i, key in enumerate(keys(site.seed, site.labels, site.tensor)):
        magnitudes, ranks = whole(blocks, i).abs_().view(-1, width), found[i].view(-1, width)
        for start in range(0, len(ranks), lines):
            some = slice(start, start + lines)
            ranks[some] = torch.from_numpy(_ranks(magnitudes[some].numpy()) - middle)
        for start in range(0, site.numel, _AT_ONCE):
            numbered = found[i, start : start + _AT_ONCE]
            index = torch.arange(start, start + len(numbered)).sub_(2**31).to(torch.int32)
            numbered += ((bits(index, key) >> 18) + (_NOISES / 2 + 0.5)) / _NOISES
    return {"rank+noise": found}


def _ranks(magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return each magnitude's rank in its row, of equals the first is the lower; at most 1,023."""
    width = magnitudes.shape[1]
    # Sorted with the place in the lower half of the key, which makes any order of sorting the stable one.
    order = magnitudes.view(np.uint32).astype(np.uint64) << 32 | np.arange(width, dtype=np.uint64)
    order.sort(axis=1)
    rank = np.arange(width)
    if width > _LEVELS:
        rank = rank * (_LEVELS - 1) // (width - 1)
    ranks = np.empty(magnitudes.shape, dtype=np.int64)
    np.put_along_axis(ranks, (order & 0xFFFFFFFF).astype(np.int64), rank[None], axis=1)
    return ranks


def _width(site: Site, numbers: Numbers) -> int:
    return max(site.numel // max(site.rows, 1) if numbers["scope"] == "row" else site.numel, 1)


def _della_measure(region: Region, numbers: Numbers) -> dict[str, Any]:
    (prepared,) = region.prepared()
    fields: dict[str, Any] = {name: list(rows.unbind()) for name, rows in prepared.items()}
    if numbers["rescale"] == "l1":
        ratio = _l1_ratios(_della, lambda site, numbers, _: _della_bind(site, numbers, fields))
        fields["ratio"] = torch.tensor(ratio(region, numbers), dtype=torch.float32)
    return fields


def _della_bind(site: Site, numbers: Numbers, measured: dict[str, Any]) -> Bound:
    """Bind the probabilities of the middle rank, and the step from rank to rank."""
    width = _width(site, numbers)
    ranks = min(width, _LEVELS)
    middle, step = [], []
    for density, epsilon in zip(numbers["density"], numbers["epsilon"], strict=True):
        window = min(epsilon, density, 1 - density) if width > 1 else 0.0  # a row of one has no ranks
        step.append(2 * window / max(ranks - 1, 1))
        middle.append(density - window + step[-1] * (ranks // 2))
    return {
        "middle": torch.tensor(middle, dtype=torch.float32),
        "step": torch.tensor(step, dtype=torch.float32),
        **measured,
    }


def _della(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    found = []
    for i, row in enumerate(rows):
        both = bound["rank+noise"][i]
        rank = both.floor()
        q = bound["middle"][i] + bound["step"][i] * rank
        if words["rescale"] == "inverse":
            scaled = row * (1 / q)
        else:
            scaled = row * bound["ratio"][i] if words["rescale"] == "l1" else row
        found.append(torch.where(both - rank < q, scaled, 0.0))
    return found


# -- the table ---------------------------------------------------------------------------------------------------------

_DENSITY = Parameter("fraction of each task vector that is kept", 0.2, 0.0, 1.0, (0.05, 1.0))

EDITS = {
    "trim": Stage(
        "edit",
        "keep the fraction `density` of largest magnitude, zero elsewhere; equals of the smallest kept are kept too "
        "(TIES, arXiv 2306.01708, step 1)",
        _trim,
        {"density": _DENSITY, "scope": TIES_SCOPE},
        scope=_trim_scope,
        prepare=rank_magnitudes,
        prepared_as="magnitudes",
        measure=_trim_measure,
        bind=_trim_bind,
    ),
    "breadcrumbs": Stage(
        "edit",
        "drop the fraction `gamma` of largest magnitude, keep the fraction `density` of the next largest, drop the rest "
        "(Model Breadcrumbs, arXiv 2312.06795)",
        _band,
        {
            "density": _DENSITY.with_default(0.15),
            "gamma": Parameter("fraction of largest magnitude that is dropped", 0.01, 0.0, 1.0, (0.0, 0.05)),
            "scope": TIES_SCOPE.with_default("tensor"),
        },
        scope=_band_scope,
        prepare=rank_magnitudes,
        prepared_as="magnitudes",
        measure=_band_measure,
        bind=_band_bind,
    ),
    "clip": Stage(
        "edit",
        "clip magnitudes to their quantiles `clip` and 1 - `clip` over the model (PCB-Merging's outliers)",
        _outliers,
        {"clip": Parameter("fraction at each end that is clipped", 1e-4, 0.0, 0.49, (0.0, 0.01))},
        scope=lambda numbers: "model",
        prepare=rank_magnitudes,
        prepared_as="magnitudes",
        measure=_outliers_measure,
        bind=_outliers_bind,
    ),
    "multiply": Stage(
        "edit",
        "multiply each task vector by a number of its own, which no normalisation takes back",
        lambda piece, rows, bound, words: [row * f for row, f in zip(rows, bound["factor"].unbind(), strict=True)],
        {"factor": Parameter("factor of each input", 1.0, -10, 10, (0.5, 1.5))},
    ),
    "near": Stage(
        "edit",
        "move from the base by at most `t` in each element (NearSwap: interpolate by t/|τ|, at most 1)",
        _near,
        {
            "t": Parameter(
                "largest step, in the weights' units", 1e-3, 0.0, 1e6, (1e-5, 1e-1), log=True, per_input=False
            )
        },
    ),
    "select": Stage(
        "edit",
        "keep the fraction `select` of positions where the task vectors vary most between inputs (SCE, arXiv 2408.07990)",
        _select,
        {"select": Parameter("fraction of the varying positions", 1.0, 0.0, 1.0, (0.1, 1.0), per_input=False)},
        scope=lambda numbers: "block" if numbers["select"] >= 1 else "tensor",
        prepare=_rank_variance,
        measure=_select_measure,
        bind=_select_bind,
    ),
    "dare": Stage(
        "edit",
        "drop elements at random and rescale the rest (DARE, arXiv 2311.03099); the same noise serves every rate",
        _dare,
        {
            "drop": Parameter("probability that an element is dropped", 0.9, 0.0, 0.9999, (0.0, 0.95)),
            "rescale": RESCALE,
        },
        scope=_l1_scope,
        measure=_l1_ratios(_dare, _dare_bind),
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
            "scope": Parameter("over what magnitudes are ranked", "row", choices=("row", "tensor"), per_input=False),
            "rescale": RESCALE,
        },
        scope=lambda numbers: "tensor",
        prepare=_rank_rows,
        prepared_for=lambda site, numbers: (numbers["scope"], site.seed, *site.labels),
        gives_fields=True,
        measure=_della_measure,
        bind=_della_bind,
    ),
}
