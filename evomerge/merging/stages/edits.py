"""Edits that keep or change single elements of each task vector by their size, or by how inputs disagree on them."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.merging.arithmetic import compared, divided, keep
from evomerge.merging.parameters import Parameter
from evomerge.merging.selection import Ranked, Streamed, rank
from evomerge.merging.site import Bound, Chunk, Chunks, Piece, Prepared, Region, Rows, Site, Values, total
from evomerge.merging.stage import Measurement, Preparation, Stage, Words, slope_of

SCOPE = Parameter.word(
    "over what fractions are taken: the whole model (TIES paper) or each tensor (mergekit)", ("model", "tensor")
)
EQUALS = Parameter.word(
    "of elements as large as the smallest kept, `all` are kept, which in bf16 may be many more than the fraction; or only the "
    "`first`, in the order of tensors and indices, so that exactly the fraction is kept (mergekit keeps as many, in its sort's "
    "order)",
    ("all", "first"),
)

ROUNDING = Parameter.word(
    "how a fraction of n elements is rounded: `nearest`, to at least one; or `down` (mergekit: to at least one in TIES only)",
    ("nearest", "down"),
)


def complete(chunks: Chunks, i: int) -> torch.Tensor:
    """Return the task vector of one input over a complete tensor, `(n,)`; only `prepare` may hold one."""
    return torch.cat([chunk.rows[i] for chunk in chunks()])


def magnitudes(rows: Rows) -> Rows:
    """Return the magnitudes of rows, `(n,)` each."""
    return [row.abs() for row in rows]


def _rank_magnitudes(site: Site, chunks: Chunks, values: Values) -> Prepared:
    return rank(site.numel, ((chunk.rows[i].abs() for chunk in chunks()) for i in range(len(site.labels))))


def _magnitudes(region: Region) -> Ranked | Streamed:
    if region.lasting:
        return region.remember(lambda: Ranked(region.prepared()))
    return _streamed(region, magnitudes)


def _streamed(region: Region, sizes: Callable[[Rows], Rows]) -> Streamed:
    """Return the numbers `sizes` of a region's rows, without tables."""

    def read(chunks: Iterable[Chunk]) -> Iterator[Rows]:
        return (sizes(chunk.rows) for chunk in chunks)

    return Streamed(lambda: read(region.chunks()), region.numel, lambda: read(region.sample()))


def how_many(fraction: float, count: int, rounding: str = "nearest") -> int:
    """Return how many of `count` elements a fraction keeps: rounded to the nearest, at least one unless the fraction is 0.

    With `rounding` "down", 0.29 of 100 are 28, as the product in floating point is less than 29.
    """
    if rounding == "down":
        return int(fraction * count)
    return max(round(fraction * count), 1) if fraction > 0 else 0


def _share(fraction: float, count: int, rounding: str = "nearest") -> int:
    """Return how many of `count` elements a fraction takes away, rounded down; 0.29 of 100 are 29, by `rounding` "down" 28."""
    return int(fraction * count + (1e-6 if rounding == "nearest" else 0.0))


@dataclass(frozen=True, slots=True)
class _Cut:
    """Which elements of a region are among each row's k largest: those above `least`, and of its equals all or the first."""

    least: Sequence[float]
    last: Sequence[tuple[int, int]] | None = None
    """Number of the tensor and index of each row's last equal that is among the k; None: all equals are."""
    order: Mapping[str, int] | None = None
    """Number of each tensor."""

    @classmethod
    def of(
        cls, region: Region, ranked: Ranked | Streamed, ks: Sequence[int], equals: str, sizes: Callable[[Rows], Rows]
    ) -> "_Cut":
        """Find the k largest numbers `sizes` of a region's rows; the first of equals take two passes over it."""
        least = ranked.largest(ks)
        if equals == "all":
            return cls(least)
        order = {tensor: i for i, tensor in enumerate(region.tensors)}
        left = [min(k, ranked.count) for k in ks]
        for chunk in region.chunks():
            for i, row in enumerate(sizes(chunk.rows)):
                left[i] -= int((row > least[i]).sum())
        last = [(-1, -1)] * len(ks)
        for chunk in region.chunks():
            for i, row in enumerate(sizes(chunk.rows)):
                places = (row == least[i]).nonzero()[: left[i]]
                if len(places):
                    left[i] -= len(places)
                    last[i] = (order[chunk.site.tensor], chunk.span.start + int(places[-1]))
        return cls(least, last, order)

    def bind(self, site: Site, name: str) -> Bound:
        """Return the thresholds float32 `(K,)` and the last equals' indices int32 `(K,)` for one tensor."""
        least, last = np.array(self.least, dtype=np.float32), np.full(len(self.least), 2**31 - 1)
        for i, (tensor, index) in enumerate(self.last or ()):
            at = (self.order or {})[site.tensor]
            if at == tensor:
                last[i] = site.index(index, "the last kept of `equals: first` is", "expected `equals: all`")
            elif at > tensor:
                least[i] = np.nextafter(least[i], np.float32(np.inf))  # no equal of `least` is kept
        return {name: torch.from_numpy(least), f"{name}_last": torch.from_numpy(last.astype(np.int32))}


def _among(piece: Piece, sizes: Rows, bound: Bound, name: str, words: Words) -> Rows:
    """Return for each row which of its elements are among the k largest, bool `(n,)`."""
    kept = [compared(operator.ge, size, least) for size, least in zip(sizes, bound[name].unbind(), strict=True)]
    if words["equals"] == "all":
        return kept
    index = piece.index
    ends = zip(kept, sizes, bound[name].unbind(), bound[f"{name}_last"].unbind(), strict=True)
    return [mask & ((size > least) | (index <= last)) for mask, size, least, last in ends]


def _trim_measure(region: Region, values: Values) -> _Cut:
    ranked = _magnitudes(region)
    ks = [how_many(density, ranked.count, values["rounding"]) for density in values["density"]]
    ks = [max(k, 1) if density > 0 else 0 for k, density in zip(ks, values["density"], strict=True)]
    return _Cut.of(region, ranked, ks, values["equals"], magnitudes)


def _bind_cut(site: Site, values: Values, cut: _Cut | None) -> Bound:
    return {} if cut is None else cut.bind(site, "least")


def _trim(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "least" not in bound:
        return rows
    masks = _among(piece, magnitudes(rows), bound, "least", words)
    return [keep(mask, row) for mask, row in zip(masks, rows, strict=True)]


def _band_measure(region: Region, values: Values) -> tuple[_Cut, _Cut]:
    """Return the elements that are kept or too large, and those that are too large."""
    ranked = _magnitudes(region)
    rounding = values["rounding"]
    kept = [how_many(density, ranked.count, rounding) for density in values["density"]]
    top = [
        min(_share(gamma, ranked.count, rounding), ranked.count - k)
        for gamma, k in zip(values["gamma"], kept, strict=True)
    ]  # what is cut from the top never takes from what the density keeps
    ks = [k + t if k else 0 for k, t in zip(kept, top, strict=True)]
    least, largest = (_Cut.of(region, ranked, counts, values["equals"], magnitudes) for counts in (ks, top))
    return least, largest


def _band(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    sizes = magnitudes(rows)
    masks = zip(*(_among(piece, sizes, bound, name, words) for name in ("least", "largest")), strict=True)
    return [keep(kept & ~large, row) for (kept, large), row in zip(masks, rows, strict=True)]


def _outliers_measure(region: Region, values: Values) -> list[list[float]]:
    """Return each input's magnitudes at the quantiles `clip` and 1 - `clip`."""
    ranked = _magnitudes(region)
    cut = [_share(clip, ranked.count) for clip in values["clip"]]
    return [ranked.largest([ranked.count - k for k in cut]), ranked.largest([k + 1 for k in cut])]


def _outliers_bind(site: Site, values: Values, bounds: list[list[float]]) -> Bound:
    low, high = torch.tensor(bounds, dtype=torch.float32)
    return {"low": low, "high": high}


def _outliers(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    low, high = bound["low"].unbind(), bound["high"].unbind()
    clipped = [row.abs().clamp(least, most) for row, least, most in zip(rows, low, high, strict=True)]
    return [torch.where(row == 0, 0.0, torch.copysign(size, row)) for row, size in zip(rows, clipped, strict=True)]


def _near(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    return [torch.minimum(torch.maximum(row, -bound["t"]), bound["t"]) for row in rows]


def _variance(rows: Rows) -> Rows:
    """Return the one row of the population's variance over inputs, `(n,)`."""
    mean = total([divided(row, len(rows)) for row in rows])
    return [divided(total([(row - mean) * (row - mean) for row in rows]), len(rows))]


def _rank_variance(site: Site, chunks: Chunks, values: Values) -> Prepared:
    varying = sum(int((_variance(chunk.rows)[0] > 0).sum()) for chunk in chunks())
    ranked = rank(site.numel, [(_variance(chunk.rows)[0] for chunk in chunks())])
    return {**ranked, "varying": torch.tensor(varying)}


def _select_measure(region: Region, values: Values) -> _Cut:
    ranked: Ranked | Streamed
    if region.lasting:
        ranked = region.remember(lambda: Ranked(region.prepared()))
        varying = sum(int(tables["varying"]) for tables in region.prepared())
    else:
        ranked = _streamed(region, _variance)
        varying = sum(int((_variance(chunk.rows)[0] > 0).sum()) for chunk in region.chunks())
    if values["rounding"] == "down":
        k = int(np.float32(values["select"]) * np.float32(varying))  # mergekit's product is in float32 here
    else:
        k = how_many(values["select"], varying) if varying else 0
    return _Cut.of(region, ranked, [k], values["equals"], _variance)


def _select(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    if "least" not in bound:
        return rows
    (mask,) = _among(piece, _variance(rows), bound, "least", words)
    return [keep(mask, row) for row in rows]


_DENSITY = Parameter("fraction of each task vector that is kept", 0.2, 0.0, 1.0, (0.05, 1.0))
_MAGNITUDES = Preparation(_rank_magnitudes, shared_as="magnitudes", cheap=True)

EDITS = {
    "trim": Stage(
        "edit",
        "keep the fraction `density` of largest magnitude, zero elsewhere (TIES, arXiv 2306.01708, step 1)",
        _trim,
        {"density": _DENSITY, "scope": SCOPE, "equals": EQUALS, "rounding": ROUNDING},
        prepare=_MAGNITUDES,
        measure=Measurement(
            _trim_measure, lambda values: values["scope"] if min(values["density"]) < 1 else None, smooth=False
        ),
        bind=_bind_cut,
    ),
    "breadcrumbs": Stage(
        "edit",
        "drop the fraction `gamma` of largest magnitude, keep the fraction `density` of the next largest, drop the rest "
        "(Model Breadcrumbs, arXiv 2312.06795)",
        _band,
        {
            "density": _DENSITY.with_default(0.15),
            "gamma": Parameter("fraction of largest magnitude that is dropped", 0.01, 0.0, 1.0, (0.0, 0.05)),
            "scope": SCOPE.with_default("tensor"),
            "equals": EQUALS,
            "rounding": ROUNDING,
        },
        prepare=_MAGNITUDES,
        measure=Measurement(_band_measure, lambda values: values["scope"], smooth=False),
        bind=lambda site, values, cuts: {**cuts[0].bind(site, "least"), **cuts[1].bind(site, "largest")},
    ),
    "clip": Stage(
        "edit",
        "clip magnitudes to their quantiles `clip` and 1 - `clip` over the model (PCB-Merging's outliers, arXiv 2410.02396)",
        _outliers,
        {"clip": Parameter("fraction at each end that is clipped", 1e-4, 0.0, 0.49, (0.0, 0.01))},
        prepare=_MAGNITUDES,
        measure=Measurement(_outliers_measure),
        bind=_outliers_bind,
    ),
    "multiply": Stage(
        "edit",
        "multiply each task vector by its factor, which no normalisation takes back",
        lambda piece, rows, bound, words: [row * f for row, f in zip(rows, bound["factor"].unbind(), strict=True)],
        {"factor": Parameter("factor of each input", 1.0, -10, 10, (0.5, 1.5))},
        slopes={"factor": slope_of("factor")},
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
        slopes={"t": slope_of("t")},
    ),
    "select": Stage(
        "edit",
        "keep the fraction `select` of positions where the task vectors vary most between inputs (SCE, arXiv 2408.07990)",
        _select,
        {
            "select": Parameter.share("fraction of the varying positions", 1.0, (0.1, 1.0)),
            "equals": EQUALS,
            "rounding": ROUNDING,
        },
        prepare=Preparation(_rank_variance, cheap=True),
        measure=Measurement(_select_measure, lambda values: None if values["select"] >= 1 else "tensor", smooth=False),
        bind=_bind_cut,
    ),
}
