"""The stages of a merge. Each sees one block of one tensor at a time: a stack D `(K, n)` of task vectors, fp32.

Three roles:

- edit:  D → D, for example trim or drop;
- weigh: D → P, a field `(K, 1)` or `(K, n)`; several multiply;
- post:  Δ → Δ `(n,)`, after the reduction.

A stage that must know more than its block (a threshold, a norm) says over which `scope`, and reads the stream of blocks
in that scope before any of them is merged: first `prepare`, which sees no parameter and is kept for the whole search,
then `measure`, which is cheap.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import hardshrink

from evomerge.errors import RecipeError
from evomerge.merging.magnitudes import Magnitudes
from evomerge.merging.parameters import Parameter
from evomerge.merging.randomness import uniform

Tensor = torch.Tensor


@dataclass(slots=True)
class Block:
    """One block of one tensor, on its way through the stages."""

    stack: Tensor  # (K, n), fp32: what the edits so far have left
    tensor: str
    index: int  # which block of the tensor
    labels: tuple[str, ...]  # (K,)
    seed: int


Blocks = Callable[[], Iterable[Block]]
"""Starts a pass over all blocks of a scope."""

Numbers = Mapping[str, Any]
"""A stage's parameters for one tensor: float32 `(K, 1)` where per input, a float otherwise; words as they are."""

Scope = Literal["block", "tensor", "model"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its parameters with their ranges, what it measures and over what, and what it does to a block."""

    role: Literal["edit", "weigh", "post"]
    about: str
    apply: Callable[[Block, Tensor, Numbers, Any], Tensor]
    """(block, its stack or Δ, parameters, what was measured) → new stack, field, or new Δ."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    scope: Callable[[Numbers], Scope] = lambda numbers: "block"
    prepare: Callable[[Blocks], Any] = lambda blocks: None
    measure: Callable[[Any, Blocks, Numbers], Any] = lambda prepared, blocks, numbers: None
    inputs: int | None = None
    """How many inputs it takes, where that is not free."""


# -- edit --------------------------------------------------------------------------------------------------------------


def _magnitudes(blocks: Blocks) -> Magnitudes:
    return Magnitudes(lambda: (block.stack for block in blocks()))


def _trim_scope(numbers: Numbers) -> Scope:
    if bool((numbers["density"] >= 1).all()):
        return "block"  # all is kept: nothing to measure
    return "model" if numbers["scope"] == "model" else "tensor"


def _thresholds(prepared: Magnitudes, blocks: Blocks, numbers: Numbers) -> Tensor:
    densities = numbers["density"].flatten().tolist()
    kept = [max(round(density * prepared.count), 1) if density > 0 else 0 for density in densities]
    return torch.tensor(prepared.largest(kept), dtype=torch.float32).unsqueeze(1)


def _trim(block: Block, stack: Tensor, numbers: Numbers, thresholds: Tensor | None) -> Tensor:
    if thresholds is None:
        return stack
    # hardshrink keeps what is strictly larger; comparing to masks of bool takes ten times as long.
    below = torch.nextafter(thresholds, torch.tensor(-torch.inf)).flatten().tolist()
    return torch.stack([hardshrink(row, bound) for row, bound in zip(stack, below, strict=True)])


def _kept(block: Block, numbers: Numbers) -> Tensor:
    size = block.stack.shape[1]
    noise = [uniform(block.seed, label, block.tensor, block.index, size) for label in block.labels]
    kept: Tensor = ((1.0 - numbers["drop"]) - torch.stack(noise)).ceil_()  # 1 where noise < 1 - drop, else 0
    return kept


def _l1_ratio(prepared: None, blocks: Blocks, numbers: Numbers) -> Tensor | None:
    if numbers["rescale"] != "l1":
        return None
    whole = kept = np.zeros(1)
    for block in blocks():  # sums by numpy: torch's depend on the number of threads
        magnitude = block.stack.abs().double().numpy()
        whole = whole + magnitude.sum(axis=1)
        kept = kept + (magnitude * _kept(block, numbers).numpy()).sum(axis=1)
    ratio = np.divide(whole, kept, out=np.zeros_like(whole), where=kept > 0)
    return torch.from_numpy(ratio).float().unsqueeze(1)


def _drop(block: Block, stack: Tensor, numbers: Numbers, l1_ratio: Tensor | None) -> Tensor:
    if l1_ratio is not None:
        factor = l1_ratio
    elif numbers["rescale"] == "inverse":
        factor = 1.0 / (1.0 - numbers["drop"])
    else:
        factor = torch.ones(1, 1)
    return (stack * factor).mul_(_kept(block, numbers))


# -- weigh -------------------------------------------------------------------------------------------------------------


def _weight(block: Block, stack: Tensor, numbers: Numbers, measured: None) -> Tensor:
    weight: Tensor = numbers["weight"]
    return weight


def _elect(block: Block, stack: Tensor, numbers: Numbers, measured: None) -> Tensor:
    weighted = stack * numbers["weight"]
    signs = weighted.sign()
    elected = (weighted if numbers["elect"] == "mass" else signs).sum(dim=0).sign()
    if numbers["undecided"] == "positive":
        elected = torch.where(elected == 0, 1.0, elected)
    field: Tensor = (signs * elected).clamp_(min=0).mul_(numbers["weight"])  # floats: ten times as fast as bool
    return field


def _gram(blocks: Blocks) -> tuple[Tensor, int]:
    """Inner products of the inputs over a tensor, float64 `(K, K)`, and the tensor's number of elements."""
    gram, size = np.zeros((1, 1)), 0
    for block in blocks():  # sums by numpy: those of torch and of a matrix product depend on the number of threads
        wide = block.stack.double().numpy()
        gram = gram + np.array([[(left * right).sum() for right in wide] for left in wide])
        size += wide.shape[1]
    return torch.from_numpy(gram), size


def _slerp_coefficients(prepared: tuple[Tensor, int], blocks: Blocks, numbers: Numbers) -> Tensor:
    gram, size = prepared
    t = torch.tensor(numbers["t"], dtype=torch.float64)
    norms = gram.diagonal().sqrt()
    linear = torch.stack([1 - t, t]).float().unsqueeze(1)
    if size == 1 or bool((norms == 0).any()):  # a direction needs two elements, and a length
        return linear
    cosine = gram[0, 1] / norms.prod()
    # arccos of a rounded cosine loses small angles; the half-angle form keeps them.
    angle = 2 * torch.atan2((2 - 2 * cosine).clamp(min=0).sqrt(), (2 + 2 * cosine).clamp(min=0).sqrt())
    if angle.sin() < 1e-6:
        if cosine < 0:
            tensor = next(iter(blocks())).tensor
            msg = f"slerp: the two inputs are anti-parallel in `{tensor}`, so no arc between them is the shortest; use linear"
            raise RecipeError(msg)
        return linear
    return (torch.stack([((1 - t) * angle).sin(), (t * angle).sin()]) / angle.sin()).float().unsqueeze(1)


def _slerp(block: Block, stack: Tensor, numbers: Numbers, coefficients: Tensor) -> Tensor:
    return coefficients


# -- post --------------------------------------------------------------------------------------------------------------


def _scale(block: Block, delta: Tensor, numbers: Numbers, measured: None) -> Tensor:
    scaled: Tensor = delta * numbers["lambda"]
    return scaled


# -- the table ---------------------------------------------------------------------------------------------------------

WEIGHT = Parameter("weight of each input", 1.0, low=-10, high=10, search=(0.0, 1.0))
_TIES_SCOPE = Parameter(
    "over what the kept fraction is taken: the whole model (paper) or each tensor (mergekit)",
    "model",
    choices=("model", "tensor"),
    per_input=False,
)

STAGES: dict[str, Stage] = {
    "trim": Stage(
        "edit",
        "keep the fraction `density` of largest magnitude, zero elsewhere; equals of the smallest kept are kept too "
        "(TIES, arXiv 2306.01708, step 1)",
        _trim,
        {
            "density": Parameter("fraction of each task vector that is kept", 0.2, 0.0, 1.0, (0.05, 1.0)),
            "scope": _TIES_SCOPE,
        },
        scope=_trim_scope,
        prepare=_magnitudes,
        measure=_thresholds,
    ),
    "drop": Stage(
        "edit",
        "drop elements at random and rescale the rest (DARE, arXiv 2311.03099); the same noise serves every rate",
        _drop,
        {
            "drop": Parameter("probability that an element is dropped", 0.9, 0.0, 0.9999, (0.0, 0.95)),
            "rescale": Parameter(
                "`inverse`: by 1/(1-drop) (paper); `l1`: to each tensor's L1 norm (mergekit); `none`",
                "inverse",
                choices=("inverse", "l1", "none"),
                per_input=False,
            ),
        },
        scope=lambda numbers: "tensor" if numbers["rescale"] == "l1" else "block",
        measure=_l1_ratio,
    ),
    "weight": Stage("weigh", "one number per input", _weight, {"weight": WEIGHT}),
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
                "an element whose vote is zero: `none` contributes nothing (paper), `positive` wins (mergekit)",
                "none",
                choices=("none", "positive"),
                per_input=False,
            ),
        },
    ),
    "slerp": Stage(
        "weigh",
        "coefficients sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω of two inputs' whole tensors, Ω the angle between them "
        "(Shoemake 1985); linear for tensors of one element or of zeros",
        _slerp,
        {"t": Parameter("0 is the first input, 1 the second", 0.5, 0.0, 1.0, (0.0, 1.0), per_input=False)},
        scope=lambda numbers: "tensor",
        prepare=_gram,
        measure=_slerp_coefficients,
        inputs=2,
    ),
    "scale": Stage(
        "post",
        "multiply the merged task vector by λ (Task Arithmetic, arXiv 2212.04089)",
        _scale,
        {"lambda": Parameter("scale of the merged task vector", 1.0, -10, 10, (0.1, 1.5), per_input=False)},
    ),
}
