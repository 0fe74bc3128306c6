"""Randomness keyed by what it is for: never a global generator, never the order of execution, never the device."""

import hashlib

import numpy as np
import torch


def uniform(seed: int, label: str, tensor: str, block: int, size: int) -> torch.Tensor:
    """Return uniform numbers in [0, 1), float32 `(size,)`, for one block of one tensor of one input.

    The same field serves every drop rate (common random numbers): a mask at a higher rate is inside one at a lower rate.
    """
    digest = hashlib.sha256(f"{seed}\0{label}\0{tensor}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, block]))
    return torch.from_numpy(generator.random(size, dtype=np.float32))
