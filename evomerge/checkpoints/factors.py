"""Factors: a matrix as the product of two thin ones, by its largest singular values, or as a sum of given products."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_EXACT = 512  # shorter sides up to which all singular values are computed, in float64
_FIRST = 64  # singular values that are computed first where an energy is wanted
_OVERSAMPLING, _ITERATIONS = 16, 4  # of the randomised method (arXiv:0909.4061, section 4.5)
_ROUNDING = 1e-6  # relative error of a sum of products in fp32


@dataclass(frozen=True, slots=True)
class Factors:
    """A product of `left` `(rows, r)` and `right` `(r, columns)`, both float32."""

    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        """Number of columns of `left`."""
        return self.left.shape[1]

    @property
    def product(self) -> torch.Tensor:
        """The matrix, `(rows, columns)`, float32."""
        return self.left @ self.right


def energy(matrix: torch.Tensor) -> float:
    """Return the sum of the squares of all elements, which is that of the squares of all singular values."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def truncate(matrix: torch.Tensor, name: str, *, rank: int | None = None, share: float | None = None) -> Factors:
    """Return the best factors of a float32 `matrix` of at most `rank`, or of the least rank that keeps `share` of its energy.

    Exactly one of them is given. Singular values that are only rounding of the matrix are left out. For large matrices the method is randomised
    (Halko, Martinsson and Tropp, arXiv:0909.4061), keyed by `name`.
    """
    assert (rank is None) != (share is None)
    shorter = min(matrix.shape)
    count = min(_FIRST if rank is None else rank, shorter)
    total = energy(matrix)
    while True:
        exact = shorter <= _EXACT or 2 * (count + _OVERSAMPLING) >= shorter
        u, sigma, v = _all(matrix) if exact else _largest(matrix, count, name)
        squares = sigma.double().square()
        if share is not None:
            kept = int(torch.searchsorted(squares.cumsum(0), share * total)) + 1
            if kept > len(sigma) and not exact:
                count *= 2
                continue
            count = min(kept, len(sigma))
        least = torch.finfo(torch.float32).eps * max(matrix.shape) * sigma[0]
        count = max(1, min(count, int((sigma > least).sum())))
        root = sigma[:count].sqrt()
        return Factors((u[:, :count] * root).float(), (root[:, None] * v[:, :count].T).float())


def combine(matrix: torch.Tensor, parts: Sequence[Factors], scale: float) -> Factors | None:
    """Return `matrix` as a weighted sum of the products `parts`, whose factors it concatenates; None where it is no such sum.

    The weights are those of least squares; the sum may differ from the matrix by rounding of numbers of the norm `scale`.
    """
    gram = torch.tensor(
        [[float(((a.left.T @ b.left).double() * (a.right @ b.right.T)).sum()) for b in parts] for a in parts],
        dtype=torch.float64,
    )
    products = torch.tensor([float(((a.left.T @ matrix).double() * a.right).sum()) for a in parts], dtype=torch.float64)
    weights = torch.linalg.lstsq(gram, products[:, None], driver="gelsd").solution[:, 0].tolist()
    sizes = gram.diagonal().sqrt().tolist()
    tolerance = _ROUNDING * scale
    used = [
        (weight, part)
        for weight, part, size in zip(weights, parts, sizes, strict=True)
        if abs(weight) * size > tolerance / len(parts)
    ]
    if not used:
        return None
    sum_ = Factors(torch.cat([weight * part.left for weight, part in used], 1), torch.cat([p.right for _, p in used]))
    return sum_ if energy(matrix - sum_.product) <= tolerance**2 else None


def _all(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u, sigma, vt.T


def _largest(matrix: torch.Tensor, count: int, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):  # the library draws from the global generator, which stays as it is
        torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))
        return torch.svd_lowrank(matrix, count + _OVERSAMPLING, niter=_ITERATIONS)
