"""TSV-Compress: the largest singular factors of each expert's task matrices.

Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging" (arXiv:2412.00081).
"""

from typing import ClassVar

import torch
from pydantic import Field

from evomerge.codecs.codec import Codec, Coded, Constants, Read


class Singular(Codec):
    """The largest singular values of each expert's task matrix are stored, by default 1/K of them.

    Tensors that are not matrices, or that this would not make smaller, are stored as they are.
    """

    about: ClassVar[str] = "TSV-Compress: the largest singular factors of each expert's matrices"
    elementwise: ClassVar[bool] = False

    share: float | None = Field(default=None, gt=0, le=1)
    """The share of the min(rows, columns) singular values that is stored, at least one value; None means 1 / experts."""

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return `left.k`, U√Σ `(rows, kept)`, and `right.k`, V√Σ `(columns, kept)`, for each expert."""
        if base.ndim != 2:
            return None
        count, rows, columns = vectors.shape
        smaller = min(rows, columns)
        rank = max(1, smaller // count if self.share is None else int(smaller * self.share))
        if rank * (rows + columns) >= rows * columns:
            return None
        parts: dict[str, torch.Tensor] = {}
        for k, vector in enumerate(vectors):
            left, right, _ = factors(vector)
            parts |= {f"left.{k}": left[:, :rank], f"right.{k}": right[:, :rank]}
        return Coded(parts, count * rank * (rows + columns) * base.element_size(), {"kept": rank})

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the product of the expert's factors."""
        return part(f"left.{expert}").double() @ part(f"right.{expert}").double().mT  # eq. 7 (arXiv 2412.00081)


def factors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U√Σ `(rows, n)`, V√Σ `(columns, n)` and Σ `(n,)` of a matrix, float64, Σ descending, n the shorter side.

    The entry of largest magnitude in each column of U is positive, so that equal matrices have equal factors.
    """
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    root = sign * sigma.sqrt()
    return u * root, vt.mT * root, sigma
