"""Batches of fixed composition: which examples run together depends only on their lengths.

In floating point a score depends on the padding, so an example must be in the same batch each time it is scored.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return positions in `lengths` in batches of up to `size`, shortest first; equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def of_one_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return positions in `lengths` in batches of up to `size`, each of one length, so that nothing is padded."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for position, length in enumerate(lengths):
        groups[length].append(position)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def pad(sequences: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 `(sequences, longest)`, padded on the right or on the left."""
    side = "left" if left else "right"
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)
    return ids, pad_sequence(list(map(torch.ones_like, rows)), batch_first=True, padding_side=side)
