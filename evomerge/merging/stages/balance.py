"""PCB-Merging: weights by the balance of parameters in competition (arXiv 2410.02396)."""

from collections.abc import Callable

import numpy as np
import torch

from evomerge.merging.arithmetic import exp, tanh
from evomerge.merging.parameters import Parameter
from evomerge.merging.selection import Streamed
from evomerge.merging.site import Bound, Piece, Region, Rows, Tensor, Values, total
from evomerge.merging.stage import Measurement, Stage, Words
from evomerge.merging.stages.edits import how_many, magnitudes


def _spread(low: Tensor, high: Tensor) -> Tensor:
    """Return what to divide by to bring [low, high] to a length of 1; infinity where they are equal."""
    return torch.where(high > low, high - low, torch.inf)


def _extremes(region: Region, of: Callable[[Rows], Rows]) -> tuple[Tensor, Tensor]:
    """Return the minimum and the maximum of each row of a function of the rows, float32 `(rows,)` each."""
    pairs = [[(row.min(), row.max()) for row in of(chunk.rows)] for chunk in region.chunks() if chunk.rows[0].numel()]
    lows, highs = (torch.stack([torch.stack([pair[end] for pair in rows]) for rows in pairs]) for end in (0, 1))
    return lows.amin(dim=0), highs.amax(dim=0)


def _products(rows: Rows) -> Rows:
    return [row * other for row in rows for other in rows]


def _normalised(rows: Rows, bound: Bound) -> Rows:
    """Return K rows of sizes, or K² of products, scaled to [0, 1] by their minimum and maximum over the region."""
    low, spread = bound["low"].unbind(), bound["spread"].unbind()
    return [(row - least) / span for row, least, span in zip(rows, low, spread, strict=True)]


def _scores(rows: Rows, raw: Rows, bound: Bound, variant: str) -> Rows:
    """Return the balance β of each element before anything is dropped, `(n,)` for each input.

    `rows` are the clipped task vectors, `raw` the unclipped ones, of which the files pcb-merging.py and pcb.py take the
    cross term.
    """
    inputs = len(rows)
    if variant == "paper":
        products = _normalised(_products(rows), bound)
        shares = [exp(row) for row in products]
        scores = []
        for i in range(inputs):
            inter = total([shares[i * inputs + j] / bound["sums"][i * inputs + j] for j in range(inputs)])
            scores.append(exp(inputs * products[i * inputs + i]) / bound["intra"][i] * inter)
        return scores
    sizes = _normalised(magnitudes(rows), bound)
    signed = [torch.copysign(size, row) for size, row in zip(sizes, rows, strict=True)]
    scores = []
    agreed = [[tanh(signed[i] * signed[j]) for j in range(i + 1)] for i in range(inputs)] if variant == "es" else []
    for i in range(inputs):
        if variant == "es":
            inter = total([agreed[max(i, j)][min(i, j)] for j in range(inputs)])
        else:
            inter = tanh(raw[i] * total(raw if variant == "merging" else signed))
        scores.append(exp(inputs * (sizes[i] * sizes[i])) * inter)
    return scores


def _balance_measure(region: Region, values: Values) -> Bound:
    variant, inputs = values["variant"], len(region.site.labels)
    low, high = _extremes(region, _products if variant == "paper" else magnitudes)
    bound: Bound = {"low": low, "spread": _spread(low, high)}
    if variant == "paper":
        sums, intra = np.zeros(inputs**2), np.zeros(inputs)
        for chunk in region.chunks():
            products = [row.double().numpy() for row in _normalised(_products(chunk.rows), bound)]
            sums += [np.exp(row).sum() for row in products]
            intra += [np.exp(inputs * products[i * inputs + i]).sum() for i in range(inputs)]
        bound |= {"sums": torch.tensor(sums, dtype=torch.float32), "intra": torch.tensor(intra, dtype=torch.float32)}
    scores = Streamed(
        lambda: (_scores(chunk.rows, chunk.piece.raw, bound, variant) for chunk in region.chunks()), region.numel
    )
    kept = [how_many(ratio, scores.count) for ratio in values["ratio"]]
    least = torch.tensor(scores.largest(kept), dtype=torch.float32)
    most = torch.tensor(scores.largest([1] * inputs), dtype=torch.float32)
    return {**bound, "least": least, "range": _spread(least, most)}


def _balance(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    variant, least = words["variant"], bound["least"].unbind()
    scores = _scores(rows, piece.raw, bound, variant)
    if variant == "paper":
        return [torch.where(score >= bar, score, 0.0) for score, bar in zip(scores, least, strict=True)]
    spread = bound["range"].unbind()
    return [(score - bar).clamp(min=0) / span for score, bar, span in zip(scores, least, spread, strict=True)]


BALANCE = {
    "balance": Stage(
        "weigh",
        "weight elements by their size within a task and by how tasks agree on them, and keep the highest scores "
        "(PCB-Merging, arXiv 2410.02396)",
        _balance,
        {
            "ratio": Parameter("fraction of each task vector that is kept", 0.05, 0.0, 1.0, (0.02, 0.5)),
            "variant": Parameter.word(
                "which definition: the `paper`'s, or that of the released files pcb-merging.py (`merging`), pcb.py (`pcb`) or "
                "pcb_ES.py (`es`); `merging` and `pcb` take the cross term on task vectors before any edit",
                ("es", "paper", "merging", "pcb"),
            ),
        },
        measure=Measurement(_balance_measure),
        bind=lambda site, values, measured: measured,
        reuses=True,
    )
}
