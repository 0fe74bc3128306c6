"""RMM: the low-rank task matrices of all experts in one reversible basis.

Alipour and Amiri 2025, "Towards Reversible Model Merging for Low-rank Weights" (arXiv:2510.14163).
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from evomerge.codecs.codec import Codec, Coded, Constants, Read
from evomerge.codecs.singular import factors


class LowRank(Codec):
    """Each task matrix is factored, A·Bᵀ with A = U√Σ and B = V√Σ, and each row of a factor is an r-vector per expert.

    These K vectors are kept as their mean, `p` directions common to all, and p codes for each expert. The factors come
    from the product's SVD with fixed signs: those of a LoRA are arbitrary up to an invertible r by r matrix, and codes of
    such rows would mean nothing. What is not a matrix, or not of low rank (its factors are no smaller than it), or would
    be no smaller in the end, is kept as it is.
    """

    about: ClassVar[str] = "RMM: low-rank experts as a mean, common directions and codes"
    elementwise: ClassVar[bool] = False

    p: int = Field(default=1, ge=1)
    """Directions. From K - 1 on, nothing is lost but rounding."""
    rank: int | None = Field(default=None, ge=1)
    """At most this rank is kept; None keeps every singular value that rounding to storage could not have made."""
    basis: Literal["position", "matrix"] = "position"
    """`position`: a basis for each row of a factor, as in the paper; `matrix`: one for the factor as a whole, with far
    fewer codes."""

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return, for `left` and `right`, `mean` `(n, r)`, `basis` `(n, r, p)` and `codes.k` `(n, p)`, or `(1, p)`."""
        if base.ndim != 2:
            return None
        count, rows, columns = vectors.shape
        found = [factors(vector) for vector in vectors]
        noise = _noise(base, vectors)
        rank = max(1, *(int((sigma > noise).sum()) for *_, sigma in found))
        rank = rank if self.rank is None else min(rank, self.rank)
        if rank * (rows + columns) >= rows * columns:
            return None
        sides = {
            "left": torch.stack([left[:, :rank] for left, _, _ in found], -1),
            "right": torch.stack([right[:, :rank] for _, right, _ in found], -1),
        }
        parts: dict[str, torch.Tensor] = {}
        formula = 0.0
        for side, stack in sides.items():
            together = stack if self.basis == "position" else stack.flatten(0, 1)[None]
            mean, basis, codes = fit(together, self.p)
            formula += fraction(basis.shape[-1], together.shape[1], count) * stack.numel() * base.element_size()
            parts[f"{side}.mean"] = mean.reshape(stack.shape[:2])
            parts[f"{side}.basis"] = basis.reshape(*stack.shape[:2], -1)
            parts |= {f"{side}.codes.{k}": codes[..., k] for k in range(count)}
        numbers = sum(part.numel() for part in parts.values())
        if numbers >= vectors.numel():
            return None
        return Coded(parts, formula, {"rank": rank, "fraction": numbers / (count * rank * (rows + columns))})

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the product of the expert's reconstructed factors."""
        left, right = (
            part(f"{side}.mean").double()
            + (part(f"{side}.basis").double() * part(f"{side}.codes.{expert}").double()[:, None]).sum(-1)
            for side in ("left", "right")
        )
        return left @ right.mT


def fit(stack: torch.Tensor, p: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean `(n, r)`, basis `(n, r, p)` and codes `(n, p, experts)` of n sets of r-vectors `(n, r, experts)`.

    mean + basis·codes is the nearest to `stack` with `p` directions (Eckart and Young), and `stack` itself for
    p ≥ experts - 1; more directions than are needed for that are not returned. The largest entry of each is positive.
    """
    mean = stack.mean(-1)
    centred = stack - mean[..., None]
    u = torch.linalg.svd(centred, full_matrices=False).U[..., : min(p, stack.shape[-1] - 1)]
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    basis = u * sign
    return mean, basis, basis.mT @ centred


def fraction(p: int, r: int, experts: int) -> float:
    """Return what mean, basis and codes take of the space of `experts` r-vectors: (p(r + K) + r) / (rK)."""
    return (p * (r + experts) + r) / (r * experts)


def _noise(base: torch.Tensor, vectors: torch.Tensor) -> float:
    """Return about the largest singular value that rounding a matrix to storage adds to its task vector.

    A random matrix of independent entries with deviation s has a norm of about s(√rows + √columns); rounding to nearest
    has a deviation of at most ε|x|/√12, here taken as ε times the root mean square.
    """
    size = base.double().abs() + vectors.double().abs().amax(0)
    return float(torch.finfo(base.dtype).eps * size.square().mean().sqrt()) * sum(map(math.sqrt, base.shape))
