"""TSV-Compress: the largest singular factors of each expert's task matrices.

Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging" (arXiv:2412.00081).
"""

from typing import ClassVar

import torch
from pydantic import Field

from evomerge.codecs.codec import Codec, Coded, Constants, Read


class Singular(Codec):
    """Of the singular values of each expert's task matrix, the largest `share` are kept: by default 1/K of them.

    What is not a matrix, or would be no smaller, is kept as it is.
    """

    about: ClassVar[str] = "TSV-Compress: the largest singular factors of each expert's matrices"
    elementwise: ClassVar[bool] = False

    share: float | None = Field(default=None, gt=0, le=1)
    """Which part of min(rows, columns) singular values is kept, at least one value; None means 1 / experts."""

    def encode(self, base: torch.Tensor, vectors: torch.Tensor, constants: Constants) -> Coded | None:
        """Return `left.k`, U√Σ `(rows, kept)`, and `right.k`, V√Σ `(columns, kept)`, for each expert."""
        if base.ndim != 2:
            return None
        count, rows, columns = vectors.shape
        smaller = min(rows, columns)
        kept = max(1, smaller // count if self.share is None else int(smaller * self.share))
        if kept * (rows + columns) >= rows * columns:
            return None
        parts: dict[str, torch.Tensor] = {}
        for k, vector in enumerate(vectors):
            left, right, _ = factors(vector)
            parts |= {f"left.{k}": left[:, :kept], f"right.{k}": right[:, :kept]}
        return Coded(parts, count * kept * (rows + columns) * base.element_size(), {"kept": kept})

    def decode(self, part: Read, expert: int, constants: Constants) -> torch.Tensor:
        """Return the product of the expert's factors."""
        return part(f"left.{expert}").double() @ part(f"right.{expert}").double().mT


def factors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U√Σ `(rows, n)`, V√Σ `(columns, n)` and Σ `(n,)` of a matrix, float64, Σ descending, n the shorter side.

    The entry of largest magnitude in each column of U is positive, so that equal matrices have equal factors.
    """
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    root = sign * sigma.sqrt()
    return u * root, vt.mT * root, sigma
