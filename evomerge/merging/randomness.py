"""Randomness keyed by what it is for: never a global generator, never the order of execution, never the device.

A counter is hashed, so the noise of an element is a pure function of the element's index: it is made inside the one pass
that uses it, in any order, and needs neither memory nor a file.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Numbers: TypeAlias = Any
"""A tensor, or a numpy array: what is computed of it is the same to the bit."""

# Odd multipliers with well-mixed bits (the fractional part of the golden ratio, and MurmurHash3's), as signed numbers.
_FIRST, _SECOND, _THIRD = -1640531535, -2048144789, -1028477387


def keys(seed: int, labels: Sequence[str], tensor: str) -> torch.Tensor:
    """Return a key of 64 bits for each input's noise on one tensor, int32 `(K, 2)`."""
    digests = [hashlib.sha256(f"{seed}\0{label}\0{tensor}".encode()).digest()[:8] for label in labels]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i4").reshape(-1, 2).copy())


def own_key(seed: int, stage: str, tensor: str) -> torch.Tensor:
    """Return a key of 64 bits for what a stage draws for one tensor whatever its inputs are, int32 `(2,)`."""
    return keys(seed, [f"\0{stage}"], tensor)[0]  # no input's label begins like that


def bits(index: Numbers, key: Numbers) -> Numbers:
    """Return uniform random int32, whose upper bits are the better ones, for elements `index` (int32), by a `key` `(2,)`.

    The same field serves every drop rate (common random numbers): a mask at a higher rate is inside one at a lower rate.
    """
    found = (index ^ key[0]) * _FIRST
    found ^= (found >> 15) & 0x1FFFF  # masked, because >> of signed numbers copies the sign
    found ^= key[1]
    found *= _SECOND
    found ^= (found >> 13) & 0x7FFFF
    found *= _THIRD
    return found


def limit(probability: float) -> int:
    """Return the number that `bits` are at most with the given probability, to 2^-32; -2^31 for a probability of 0."""
    return max(round(probability * 2**32) - 1, 0) - 2**31


def uniform(drawn: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers in (0, 1), float64, of uniform `bits`: the middle of one of 2^32 steps."""
    return (drawn.double() + (2**31 + 0.5)) / 2**32


# Φ⁻¹(p) / (2p - 1) as a quotient of polynomials in -log 4p(1-p), from the highest power down: our own fit by reweighted
# least squares up to p = 2^-33, within 1.2e-7 of it. No term is negative, so that nothing cancels.
_ABOVE = (2.92883291e-05, 9.99337612e-04, 1.18744696e-02, 8.98272485e-02, 4.52385860e-01, 1.25331428)
_BELOW = (1.00843514e-06, 1.69780281e-04, 2.27959435e-03, 3.26702391e-02, 9.91550642e-02, 1.0)
_ATANH = (2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)
_ROOT_HALF = 0x3F3504F3  # the bits of the float32 √½


def noise(index: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the standard normal number of each element, float32, by a `key` `(2,)`; of `bits`, as `normal` makes them."""
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        found: torch.Tensor = normal(bits(index, key))
        return found
    # The same operations by numpy, which takes a quarter of the time to begin each: most of it for a small tensor.
    return torch.from_numpy(normal(bits(index.numpy(), key.numpy())))


def normal(drawn: Numbers) -> Numbers:
    """Return standard normal numbers, float32, of uniform `bits`: Φ⁻¹ of the middle of one of 2^32 steps, ±6.34 at most.

    Within 5e-7 of their size. Made of what IEEE 754 rounds correctly and of integers alone, not of a library's logarithm,
    which would have other last bits where it is compiled, or in torch than in numpy.
    """
    out = drawn ^ (drawn >> 31)  # how far from the middle, in steps
    distance = (_float(out) + 0.5) * 2.0**-31  # |2p - 1|
    left = (_float(out ^ 0x7FFFFFFF) + 0.5) * 2.0**-31  # 1 - |2p - 1|, without its rounding
    depth = -_log(left * (2.0 - left))
    size = distance * (_polynomial(_ABOVE, depth) / _polynomial(_BELOW, depth))
    return np.where(drawn < 0, -size, size) if isinstance(drawn, np.ndarray) else torch.where(drawn < 0, -size, size)


def _log(number: Numbers) -> Numbers:
    """Return the natural logarithm of normal positive numbers: that of the power of two, and 2 artanh (m-1)/(m+1) of the rest."""
    parts = _seen_as(number, "int32") - _ROOT_HALF
    rest = _seen_as((parts & 0x7FFFFF) + _ROOT_HALF, "float32")  # in [√½, √2)
    ratio = (rest - 1.0) / (rest + 1.0)
    return ratio * _polynomial(_ATANH, ratio * ratio) + _float(parts >> 23) * math.log(2)


def _polynomial(factors: Sequence[float], number: Numbers) -> Numbers:
    """Return a polynomial by Horner's rule, its factors from the highest power down."""
    found = factors[0] * number
    for factor in factors[1:-1]:
        found += factor
        found *= number
    found += factors[-1]
    return found


def _float(numbers: Numbers) -> Numbers:
    return numbers.astype(np.float32) if isinstance(numbers, np.ndarray) else numbers.float()


def _seen_as(numbers: Numbers, dtype: str) -> Numbers:
    """Return the same bits as numbers of another dtype."""
    return numbers.view(getattr(np if isinstance(numbers, np.ndarray) else torch, dtype))
