"""Batches of fixed composition: which examples run together depends only on their lengths.

In floating point a score depends on the padding, so an example must be in the same batch each time it is scored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return positions in `lengths` in batches of up to `size`, shortest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(sequences: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 `(sequences, longest)`, padded on the right or on the left."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), fill)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        span = slice(longest - len(sequence), longest) if left else slice(0, len(sequence))
        ids[row, span] = torch.tensor(sequence)
        mask[row, span] = 1
    return ids, mask
