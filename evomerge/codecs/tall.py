"""TALL masks: the sum of all task vectors, and for each expert one bit per element that selects it.

Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression" (arXiv:2405.07813).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator

from evomerge.codecs.codec import Codec, Coded, Constants, Read, mask_bytes, pack, unpack
from evomerge.errors import RecipeError, nearest

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6)
"""The candidates for each expert's λ in the paper, which chooses on examples of the expert's task."""

_DEFAULT = 0.4


class Tall(Codec):
    """τ_MTL = Σ τ_t is stored once, and for each expert t the mask |τ_t| > λ_t·|τ_MTL - τ_t| (strictly).

    The expert is decoded as base + mask∘τ_MTL. Elements that no expert changed have no bit set, and stay exactly the base's.
    """

    about: ClassVar[str] = "TALL masks: the summed task vector, and a bit per element and expert"
    elementwise: ClassVar[bool] = True

    lam: float | dict[str, float] = Field(default=_DEFAULT, alias="lambda")
    """λ: larger values drop more elements that other experts dominate. One value, or one by expert (default 0.4)."""

    @field_validator("lam", mode="plain")
    @classmethod
    def _numbers(cls, value: Any) -> float | dict[str, float]:
        for entry in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(entry, bool) or not isinstance(entry, int | float) or not 0 <= entry < math.inf:
                raise ValueError(f"expected a number of at least 0, or one for each expert, got {value!r}")
        return (
            {str(name): float(entry) for name, entry in value.items()} if isinstance(value, Mapping) else float(value)
        )

    def constants(self, experts: Sequence[str], vectors: Iterable[torch.Tensor]) -> Constants:
        """Return λ for each expert."""
        if not isinstance(self.lam, dict):
            return {"lambda": [self.lam] * len(experts)}
        for name in self.lam:
            if name not in experts:
                raise RecipeError(f"codec `tall` `lambda`: the pool has no expert `{name}`; {nearest(name, experts)}")
        return {"lambda": [self.lam.get(name, _DEFAULT) for name in experts]}

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded:
        """Return `unified` (the sum) and a `mask` for each expert."""
        unified = vectors.sum(0)
        parts = {"unified": unified}
        for k, lam in enumerate(constants["lambda"]):
            parts[f"mask.{k}"] = pack(mask(vectors[k], unified, lam))
        return Coded(parts, mask_bytes(vectors, base))

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the sum where the expert's bit is set, 0 elsewhere."""
        unified = part("unified")
        return torch.where(unpack(part(f"mask.{expert}"), unified.shape), unified, 0)


def mask(vector: torch.Tensor, unified: torch.Tensor, lam: float) -> torch.Tensor:
    """Return where the expert's task vector exceeds λ times the sum of all others (eq. 5), boolean."""
    return vector.abs() > lam * (unified - vector).abs()
