"""Weights of the inputs: given, elected, or from how the task vectors compare."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from evomerge.merging.parameters import Parameter
from evomerge.merging.selection import Streamed
from evomerge.merging.stage import Bound, Numbers, Piece, Region, Rows, Site, Stage, Tensor, as_constants, total
from evomerge.merging.stages.edits import how_many

Words = Mapping[str, str]

WEIGHT = Parameter("weight of each input", 1.0, low=-10, high=10, search=(0.0, 1.0))


def given(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    """Apply one bound number for each input, `weight` `(K,)`."""
    return list(bound["weight"].unbind())


def _by_metric(site: Site, numbers: Numbers, measured: None) -> Bound:
    sign = 1 if numbers["better"] == "higher" else -1
    logs = np.array([sign * numbers["power"] * math.log(metric) for metric in numbers["metric"]])
    weight = np.exp(logs - logs.max())
    return {"weight": torch.tensor(weight / weight.sum(), dtype=torch.float32)}


# -- election ----------------------------------------------------------------------------------------------------------


def _votes(rows: Rows, weights: Rows, elect: str) -> tuple[Rows, Tensor]:
    """Return the weighted rows, and the sum of their votes, `(n,)`."""
    weighted = [row * weight for row, weight in zip(rows, weights, strict=True)]
    return weighted, total(weighted if elect == "mass" else [row.sign() for row in weighted])


def _majority(region: Region, numbers: Numbers) -> float:
    """Return the sign that most elements of the region elect."""
    bound = as_constants(region.site, numbers, None)
    balance = 0
    for block in region.blocks():
        _, mass = _votes(block.rows, list(bound["weight"].unbind()), numbers["elect"])
        balance += int((mass > 0).sum()) - int((mass < 0).sum())
    return float(np.sign(balance))


def _elect_bind(site: Site, numbers: Numbers, majority: float | None) -> Bound:
    undecided = {"none": 0.0, "positive": 1.0}.get(numbers["undecided"], majority)
    return {**as_constants(site, numbers, None), "undecided": torch.tensor(undecided, dtype=torch.float32)}


def _elect(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    weights = list(bound["weight"].unbind())
    weighted, mass = _votes(rows, weights, words["elect"])
    if words["undecided"] != "none":
        mass = torch.where(mass == 0, bound["undecided"], mass)
    positive, negative = mass > 0, mass < 0
    return [
        torch.where((row > 0) & positive | (row < 0) & negative, weight, 0.0)
        for row, weight in zip(weighted, weights, strict=True)
    ]


# -- energy ------------------------------------------------------------------------------------------------------------


def _energies(region: Region, numbers: Numbers) -> list[float]:
    """Return each input's share of the sum of squares, over the region."""
    energy = np.zeros(len(region.site.labels))
    for block in region.blocks():
        energy += [float((row.double().numpy() ** 2).sum()) for row in block.rows]
    inputs = len(energy)
    return (energy / energy.sum() if energy.any() else np.full(inputs, 1 / inputs)).tolist()


def measured_weight(site: Site, numbers: Numbers, weights: list[float]) -> Bound:
    """Bind one measured number for each input, for `given`."""
    return {"weight": torch.tensor(weights, dtype=torch.float32)}


# -- PCB: balance of parameters in competition -------------------------------------------------------------------------


def _spread(low: Tensor, high: Tensor) -> Tensor:
    """Return what to divide by to bring [low, high] to a length of 1; infinity where they are equal."""
    return torch.where(high > low, high - low, torch.inf)


def _extremes(region: Region, make: Callable[[Rows], Rows]) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest number of each row that `make` makes of the rows, float32 `(rows,)` each."""
    made = [[(row.min(), row.max()) for row in make(block.rows)] for block in region.blocks() if block.rows[0].numel()]
    lows, highs = (torch.stack([torch.stack([pair[end] for pair in rows]) for rows in made]) for end in (0, 1))
    return lows.amin(dim=0), highs.amax(dim=0)


def _sizes(rows: Rows) -> Rows:
    return [row.abs() for row in rows]


def _products(rows: Rows) -> Rows:
    return [one * other for one in rows for other in rows]


def _normalised(rows: Rows, bound: Bound) -> Rows:
    """Min-max over the region, `(K,)` rows of sizes or `(K²,)` of products: to [0, 1]."""
    low, spread = bound["low"].unbind(), bound["spread"].unbind()
    return [(row - least) / span for row, least, span in zip(rows, low, spread, strict=True)]


def _scores(rows: Rows, bound: Bound, variant: str) -> Rows:
    """Return the balance β of each element, before anything is dropped; D13 of its four definitions by `variant`."""
    inputs = len(rows)
    if variant == "paper":
        products = _normalised(_products(rows), bound)
        shares = [torch.exp(row) for row in products]
        scores = []
        for i in range(inputs):
            inter = total([shares[i * inputs + j] / bound["sums"][i * inputs + j] for j in range(inputs)])
            scores.append(torch.exp(inputs * products[i * inputs + i]) / bound["own"][i] * inter)
        return scores
    sizes = _normalised(_sizes(rows), bound)
    signed = [torch.copysign(size, row) for size, row in zip(sizes, rows, strict=True)]
    scores = []
    for i in range(inputs):
        if variant == "es":
            inter = total([torch.tanh(signed[i] * other) for other in signed])
        else:
            inter = torch.tanh(rows[i] * total(rows if variant == "merging" else signed))
        scores.append(torch.exp(inputs * sizes[i] ** 2) * inter)
    return scores


def _balance_measure(region: Region, numbers: Numbers) -> Bound:
    variant, inputs = numbers["variant"], len(region.site.labels)
    low, high = _extremes(region, _products if variant == "paper" else _sizes)
    bound: Bound = {"low": low, "spread": _spread(low, high)}
    if variant == "paper":
        sums, own = np.zeros(inputs**2), np.zeros(inputs)
        for block in region.blocks():
            products = [row.double().numpy() for row in _normalised(_products(block.rows), bound)]
            sums += [np.exp(row).sum() for row in products]
            own += [np.exp(inputs * products[i * inputs + i]).sum() for i in range(inputs)]
        bound |= {"sums": torch.tensor(sums, dtype=torch.float32), "own": torch.tensor(own, dtype=torch.float32)}
    scores = Streamed(lambda: (_scores(block.rows, bound, variant) for block in region.blocks()))
    kept = [how_many(ratio, scores.count) for ratio in numbers["ratio"]]
    least = torch.tensor(scores.largest(kept), dtype=torch.float32)
    most = torch.tensor(scores.largest([1] * inputs), dtype=torch.float32)
    return {**bound, "least": least, "range": _spread(least, most)}


def _balance(piece: Piece, rows: Rows, bound: Bound, words: Words) -> Rows:
    variant, least = words["variant"], bound["least"].unbind()
    scores = _scores(rows, bound, variant)
    if variant == "paper":
        return [torch.where(score >= bar, score, 0.0) for score, bar in zip(scores, least, strict=True)]
    spread = bound["range"].unbind()
    return [(score - bar).clamp(min=0) / span for score, bar, span in zip(scores, least, spread, strict=True)]


# -- layers from whom --------------------------------------------------------------------------------------------------


def _swap_bind(site: Site, numbers: Numbers, measured: None) -> Bound:
    place, transition = site.place, numbers["transition"]
    if not place.inside:
        second = 1.0 if numbers["outside"] == "second" else 0.0
    else:
        below, above = place.block - numbers["bottom"], place.blocks - 1 - place.block - numbers["top"]
        between = (numbers["bottom"] > 0 and below < transition) or (numbers["top"] > 0 and above < transition)
        second = 1.0 if min(below, above) < 0 else 0.5 if between else 0.0
    return {"weight": torch.tensor([1.0 - second, second], dtype=torch.float32)}


# -- the table ---------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "weight": Stage("weigh", "one number per input", given, {"weight": WEIGHT}),
    "metric": Stage(
        "weigh",
        "weights in proportion to a power of each checkpoint's metric (metrics-weighted averaging, arXiv 2504.18580)",
        given,
        {
            "metric": Parameter("metric of each input, positive, such as its loss or its step", 1.0, 1e-30, 1e30),
            "power": Parameter("power: 0 is the plain average", 1.0, 0.0, 100.0, (0.0, 8.0), per_input=False),
            "better": Parameter(
                "`lower` for a loss, `higher` for a score or a step",
                "lower",
                choices=("lower", "higher"),
                per_input=False,
            ),
        },
        bind=_by_metric,
    ),
    "elect": Stage(
        "weigh",
        "weight where the sign agrees with the elected one, else 0; elected on weighted deltas (TIES, steps 2 and 3)",
        _elect,
        {
            "weight": WEIGHT,
            "elect": Parameter(
                "`mass`: sign of the sum (paper); `count`: majority of signs",
                "mass",
                choices=("mass", "count"),
                per_input=False,
            ),
            "undecided": Parameter(
                "an element whose vote is zero: `none` contributes nothing (paper), `positive` wins (mergekit), the model's "
                "`majority` wins (the paper's code)",
                "none",
                choices=("none", "positive", "majority"),
                per_input=False,
            ),
        },
        scope=lambda numbers: "model" if numbers["undecided"] == "majority" else "block",
        measure=_majority,
        bind=_elect_bind,
    ),
    "energy": Stage(
        "weigh",
        "each input's share of the tensor's sum of squares (SCE's coefficients, arXiv 2408.07990)",
        given,
        scope=lambda numbers: "tensor",
        measure=_energies,
        bind=measured_weight,
    ),
    "balance": Stage(
        "weigh",
        "weight elements by their size within a task and by how tasks agree on them, and keep the highest "
        "(PCB-Merging, arXiv 2410.02396)",
        _balance,
        {
            "ratio": Parameter("fraction of each task vector that is kept", 0.05, 0.0, 1.0, (0.02, 0.5)),
            "variant": Parameter(
                "which of the definitions: the `paper`'s, or those of its released files pcb-`merging`, `pcb`, pcb_`es`",
                "es",
                choices=("es", "paper", "merging", "pcb"),
                per_input=False,
            ),
        },
        scope=lambda numbers: "model",
        measure=_balance_measure,
        bind=lambda site, numbers, measured: measured,
    ),
    "swap": Stage(
        "weigh",
        "the first input's blocks, but the second's at the bottom and at the top, averaged in zones of transition "
        "(Layer Swapping, arXiv 2410.01335)",
        given,
        {
            "bottom": Parameter("blocks at the bottom", 1, 0, 10_000, (0, 5), integer=True, per_input=False),
            "top": Parameter("blocks at the top", 1, 0, 10_000, (0, 5), integer=True, per_input=False),
            "transition": Parameter(
                "blocks of each zone of transition", 1, 0, 10_000, (0, 2), integer=True, per_input=False
            ),
            "outside": Parameter(
                "whose embeddings, final norm and head", "second", choices=("first", "second"), per_input=False
            ),
        },
        bind=_swap_bind,
        inputs=2,
    ),
}
