"""Randomness keyed by what it is for: never a global generator, never the order of execution, never the device.

A counter is hashed, so the noise of an element is a pure function of the element's index: it is made inside the one pass
that uses it, in any order, and needs neither memory nor a file.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

# Odd multipliers with well-mixed bits (the fractional part of the golden ratio, and MurmurHash3's), as signed numbers.
_FIRST, _SECOND, _THIRD = -1640531535, -2048144789, -1028477387


def keys(seed: int, labels: Sequence[str], tensor: str) -> torch.Tensor:
    """Return a key of 64 bits for each input's noise on one tensor, int32 `(K, 2)`."""
    digests = [hashlib.sha256(f"{seed}\0{label}\0{tensor}".encode()).digest()[:8] for label in labels]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i4").reshape(-1, 2).copy())


def bits(index: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return uniform random int32, whose upper bits are the better ones, for elements `index` (int32), by a `key` `(2,)`.

    The same field serves every drop rate (common random numbers): a mask at a higher rate is inside one at a lower rate.
    """
    found = (index ^ key[0]) * _FIRST
    found = found ^ ((found >> 15) & 0x1FFFF)  # masked, because >> of signed numbers copies the sign
    found = (found ^ key[1]) * _SECOND
    found = found ^ ((found >> 13) & 0x7FFFF)
    return found * _THIRD


def limit(probability: float) -> int:
    """Return the number that `bits` are at most with the given probability, to 2^-32; -2^31 for a probability of 0."""
    return max(round(probability * 2**32) - 1, 0) - 2**31
