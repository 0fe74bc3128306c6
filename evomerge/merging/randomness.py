"""Keyed randomness: a function of seed, label, tensor and element, not of a global generator or the order of execution.

The noise of an element is a hash of the element's index: it is computed inside the pass that uses it, in any order, and
needs neither memory nor a file.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.arithmetic import Array, as_float32, log, plain, polynomial

# Odd multipliers with well-mixed bits (the fractional part of the golden ratio, and MurmurHash3's), as signed numbers.
_FIRST, _SECOND, _THIRD = -1640531535, -2048144789, -1028477387


def keys(seed: int, labels: Sequence[str], tensor: str) -> torch.Tensor:
    """Return a key of 64 bits for each input's noise on one tensor, int32 `(K, 2)`."""
    digests = [hashlib.sha256(f"{seed}\0{label}\0{tensor}".encode()).digest()[:8] for label in labels]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i4").reshape(-1, 2).copy())


def own_key(seed: int, stage: str, tensor: str) -> torch.Tensor:
    """Return a key of 64 bits for what a stage draws for one tensor, whatever the inputs, int32 `(2,)`."""
    return keys(seed, [f"\0{stage}"], tensor)[0]  # no input's label begins like that


def bits(index: Array, key: Array) -> Array:
    """Return uniform random int32 for elements `index` (int32) by a `key` `(2,)`; the upper bits are of better quality.

    The same bits serve every drop rate (common random numbers): a mask at a higher rate is inside one at a lower rate.
    """
    if isinstance(index, np.ndarray):
        return _bits(index.view(np.uint32), key.view(np.uint32)).view(np.int32)  # the same, sooner
    if plain(index):
        return torch.from_numpy(bits(index.numpy(), key.numpy()))
    mixed = (index ^ key[0]) * _FIRST
    mixed ^= (mixed >> 15) & 0x1FFFF  # masked, because >> of signed numbers copies the sign
    mixed ^= key[1]
    mixed *= _SECOND
    mixed ^= (mixed >> 13) & 0x7FFFF
    mixed *= _THIRD
    return mixed


def _bits(index: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return `bits` by numbers without sign, which need no masks, in the memory of two rows."""
    mixed: NDArray[np.uint32] = index ^ key[0]
    mixed *= np.uint32(_FIRST % 2**32)
    shifted = mixed >> np.uint32(15)
    mixed ^= shifted
    mixed ^= key[1]
    mixed *= np.uint32(_SECOND % 2**32)
    mixed ^= np.right_shift(mixed, np.uint32(13), out=shifted)
    mixed *= np.uint32(_THIRD % 2**32)
    return mixed


def limit(probability: float) -> int:
    """Return the bound b with P(`bits` ≤ b) = probability, to 2^-32; -2^31 for a probability of 0."""
    return max(round(probability * 2**32) - 1, 0) - 2**31


def uniform(drawn: torch.Tensor) -> torch.Tensor:
    """Return uniform numbers in (0, 1), float64, from uniform `bits`: the middle of one of 2^32 steps."""
    return (drawn.double() + (2**31 + 0.5)) / 2**32


# Φ⁻¹(p) / (2p - 1) as a quotient of polynomials in -log 4p(1-p), from the highest power down: fitted by reweighted least
# squares up to p = 2^-33, to 1.2e-7. No term is negative, so that nothing cancels.
_ABOVE = (2.92883291e-05, 9.99337612e-04, 1.18744696e-02, 8.98272485e-02, 4.52385860e-01, 1.25331428)
_BELOW = (1.00843514e-06, 1.69780281e-04, 2.27959435e-03, 3.26702391e-02, 9.91550642e-02, 1.0)


def noise(index: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return a standard normal number for each element, float32, by a `key` `(2,)`: `normal` of its `bits`."""
    if torch.compiler.is_compiling() or not index.is_cpu:
        drawn: torch.Tensor = normal(bits(index, key))
        return drawn
    # The same operations in numpy, whose overhead per operation is a quarter of torch's: most of the time for a small tensor.
    return torch.from_numpy(normal(bits(index.numpy(), key.numpy())))


def normal(drawn: Array) -> Array:
    """Return standard normal numbers, float32, from uniform `bits`: Φ⁻¹ of the middle of one of 2^32 steps, ±6.34 at most.

    Within 5e-7 of their size; the same to the bit in torch, in compiled code and in numpy.
    """
    out = drawn ^ (drawn >> 31)  # distance from the middle, in steps
    distance = (as_float32(out) + 0.5) * 2.0**-31  # |2p - 1|
    left = (as_float32(out ^ 0x7FFFFFFF) + 0.5) * 2.0**-31  # 1 - |2p - 1|, without its rounding
    depth = -log(left * (2.0 - left))
    size = distance * (polynomial(_ABOVE, depth) / polynomial(_BELOW, depth))
    return np.where(drawn < 0, -size, size) if isinstance(drawn, np.ndarray) else torch.where(drawn < 0, -size, size)
