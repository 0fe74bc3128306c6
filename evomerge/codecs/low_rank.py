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

    These K vectors are stored as their mean, `p` common directions, and p codes for each expert. The factors are those of
    the SVD with fixed signs: those of a LoRA are arbitrary up to an invertible r by r matrix, so that their rows have no
    common directions. Tensors that are not matrices, or that this would not make smaller, are stored as they are.
    """

    about: ClassVar[str] = "RMM: low-rank experts as a mean, common directions and codes"
    elementwise: ClassVar[bool] = False

    p: int = Field(default=1, ge=1)
    """Number of directions. From K - 1 on, only rounding is lost."""
    rank: int | None = Field(default=None, ge=1)
    """Largest rank that is stored; None keeps every singular value above the rounding errors of storage."""
    basis: Literal["position", "matrix"] = "position"
    """`position`: a basis for each row of a factor, as in the paper; `matrix`: one for all rows of a factor, with far
    fewer codes."""

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return, for `left` and `right`, `mean` `(n, r)`, `basis` `(n, r, p)` and `codes.k` `(n, p)`, or `(1, p)`."""
        if base.ndim != 2:
            return None
        count, rows, columns = vectors.shape
        factored = [factors(vector) for vector in vectors]
        noise = _noise(base, vectors)
        rank = max(1, *(int((sigma > noise).sum()) for *_, sigma in factored))
        rank = rank if self.rank is None else min(rank, self.rank)
        if rank * (rows + columns) >= rows * columns:
            return None
        sides = {
            "left": torch.stack([left[:, :rank] for left, _, _ in factored], -1),
            "right": torch.stack([right[:, :rank] for _, right, _ in factored], -1),
        }
        parts: dict[str, torch.Tensor] = {}
        formula = 0.0
        for side, values in sides.items():
            together = values if self.basis == "position" else values.flatten(0, 1)[None]
            mean, basis, codes = fit(together, self.p)
            formula += fraction(basis.shape[-1], together.shape[1], count) * values.numel() * base.element_size()
            parts[f"{side}.mean"] = mean.reshape(values.shape[:2])
            parts[f"{side}.basis"] = basis.reshape(*values.shape[:2], -1)
            parts |= {f"{side}.codes.{k}": codes[..., k] for k in range(count)}
        elements = sum(part.numel() for part in parts.values())
        if elements >= vectors.numel():
            return None
        return Coded(parts, formula, {"rank": rank, "fraction": elements / (count * rank * (rows + columns))})

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the product of the expert's reconstructed factors."""
        left, right = (
            part(f"{side}.mean").double()
            + (part(f"{side}.basis").double() * part(f"{side}.codes.{expert}").double()[:, None]).sum(-1)
            for side in ("left", "right")
        )
        return left @ right.mT


def fit(vectors: torch.Tensor, p: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean `(n, r)`, basis `(n, r, p)` and codes `(n, p, experts)` of n sets of r-vectors `(n, r, experts)`.

    mean + basis·codes is the best approximation of `vectors` with `p` directions (Eckart and Young). It is exact with
    experts - 1 directions, and no more are returned. The largest entry of each direction is positive.
    """
    mean = vectors.mean(-1)
    centred = vectors - mean[..., None]
    u = torch.linalg.svd(centred, full_matrices=False).U[..., : min(p, vectors.shape[-1] - 1)]
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    basis = u * sign
    return mean, basis, basis.mT @ centred


def fraction(p: int, r: int, experts: int) -> float:
    """Return the size of mean, basis and codes relative to that of `experts` r-vectors: (p(r + K) + r) / (rK)."""
    return (p * (r + experts) + r) / (r * experts)


def _noise(base: torch.Tensor, vectors: torch.Tensor) -> float:
    """Return the approximate largest singular value that rounding a matrix to storage adds to its task vector.

    A random matrix of independent entries with deviation s has a norm of about s(√rows + √columns); rounding to nearest
    has a deviation of at most ε|x|/√12, here taken as ε times the root mean square.
    """
    size = base.double().abs() + vectors.double().abs().amax(0)
    return float(torch.finfo(base.dtype).eps * size.square().mean().sqrt()) * sum(map(math.sqrt, base.shape))
