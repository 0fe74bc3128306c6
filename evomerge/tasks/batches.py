"""Batches of fixed composition: which examples run together depends only on their lengths, and on the kind of device.

In floating point a score depends on the padding, so an example must be in the same batch each time it is scored.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

TOKENS, MOST = 1024, 64
"""Tokens, padding included, and sequences of a batch on a CPU where no size is set: more is not faster there, and fewer is slower."""
WIDER = 4
"""How many times as many run together on an accelerator."""


def by_length(lengths: Sequence[int], size: int | None, device: torch.device | None = None) -> list[list[int]]:
    """Return positions in `lengths` in batches of up to `size`, shortest first; equal lengths keep their order.

    None is as many as have `TOKENS` tokens together, at most `MOST`, on an accelerator `WIDER` times that; at least one.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return list(_cut(order, lengths, size, device))


def of_one_length(lengths: Sequence[int], size: int | None, device: torch.device | None = None) -> list[list[int]]:
    """Return positions in `lengths` in batches as `by_length` does, each of one length, so that nothing is padded."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for position, length in enumerate(lengths):
        groups[length].append(position)
    return [batch for group in groups.values() for batch in _cut(group, lengths, size, device)]


def _cut(
    order: Sequence[int], lengths: Sequence[int], size: int | None, device: torch.device | None
) -> Iterator[list[int]]:
    """Yield batches of consecutive positions, of which the last is the longest."""
    wider = 1 if device is None or device.type == "cpu" else WIDER
    most, tokens = (size, None) if size is not None else (wider * MOST, wider * TOKENS)
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) == most or (tokens is not None and (len(batch) + 1) * lengths[position] > tokens)):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def pad(sequences: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both int64 `(sequences, longest)`, padded on the right or on the left."""
    side = "left" if left else "right"
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=side)
    return ids, pad_sequence(list(map(torch.ones_like, rows)), batch_first=True, padding_side=side)
