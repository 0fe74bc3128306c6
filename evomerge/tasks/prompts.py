"""Prompts that a model reads once for all that may follow them: its keys and values are kept for the tokens after them.

The log-likelihoods of an example's choices, or of an answer and what the model would write itself, are those of separate passes up
to rounding.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.models import LiveModel, keeps_all
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.causal import Continuation, check_length, log_likelihood

_WORTH = 1.3
"""How many times as many tokens separate passes must have."""


class Read:
    """A batch of beginnings of sequences that a model has read, for what comes after them."""

    def __init__(self, model: LiveModel, beginnings: Sequence[Sequence[int]]) -> None:
        """Run the model on the beginnings, each of one token or more. Only for models that `can_read`."""
        self._model = model
        ids, mask = pad(beginnings, model.tokenizer.pad_token_id, left=True)
        self._mask = mask.to(model.device)
        self._lengths = self._mask.sum(1, keepdim=True)
        output = self._run(ids, self._mask, (self._mask.cumsum(1) - 1).clamp(min=0), None)
        self.cache: Any = getattr(output, "past_key_values", None)
        """The keys and values. A model that goes on from them adds its own."""

    @property
    def plain(self) -> bool:
        """Whether the model's memory of them is nothing but keys and values of all their tokens, which can be copied."""
        return keeps_all(self.cache)

    def after(self, rows: Sequence[int], continuations: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits at each token of the continuations of some beginnings, `(continuations, longest, vocabulary)`."""
        ids, mask = pad(continuations, self._model.tokenizer.pad_token_id)
        chosen = torch.tensor(rows, device=self._model.device)
        whole = torch.cat([self._mask[chosen], mask.to(self._model.device)], 1)
        positions = self._lengths[chosen] + torch.arange(ids.shape[1], device=self._model.device)
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(chosen)
        logits: Tensor = self._run(ids, whole, positions, cache).logits
        return logits

    def _run(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Any:
        return self._model.module(
            input_ids=ids.to(self._model.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": 1} if cache is None else {}),
        )


def can_read(model: LiveModel) -> bool:
    """Return whether a model's keys and values of a prompt can be kept and copied: by the class, whatever the weights."""
    takes = inspect.signature(model.module.forward).parameters
    if not {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys():
        return False
    return Read(model, [[model.tokenizer.pad_token_id]]).plain


def shared(sequences: Sequence[Continuation]) -> int:
    """Return how many tokens all sequences begin with, such that each is scored only after one more."""
    first = sequences[0].tokens
    most = min(sequence.start - 1 for sequence in sequences)
    for place in range(most):
        if any(sequence.tokens[place] != first[place] for sequence in sequences[1:]):
            return place
    return most


def beginnings(groups: Sequence[Sequence[Continuation]]) -> list[int] | None:
    """Return how many tokens each group's sequences begin with, to be read once; None where that spares too little."""
    common = [shared(group) for group in groups]
    apart = sum(len(sequence.tokens) for group in groups for sequence in group)
    once = sum(
        first + sum(len(sequence.tokens) - first for sequence in group)
        for first, group in zip(common, groups, strict=True)
    )
    return common if all(common) and apart >= _WORTH * once else None


def log_likelihoods(
    task: str, model: LiveModel, groups: Sequence[Sequence[Continuation]], common: Sequence[int], size: int | None
) -> Iterator[tuple[int, list[Tensor]]]:
    """Yield the number of each group, and the log-likelihoods in nats of its sequences, float64 `()` each.

    The `common` tokens that a group's sequences begin with are read once; groups run together as batches of up to `size` sequences.
    Raises `TaskError` if a sequence is too long for the model.
    """
    check_length(task, model, max(len(sequence.tokens) for group in groups for sequence in group))
    widest = max(map(len, groups))
    lengths = [
        max(first, *(widest * (len(one.tokens) - first) for one in group))
        for first, group in zip(common, groups, strict=True)
    ]
    for batch in by_length(lengths, None if size is None else max(1, size // widest), model.device):
        read = Read(model, [groups[number][0].tokens[: common[number]] for number in batch])
        rows = [row for row, number in enumerate(batch) for _ in groups[number]]
        chosen = [(common[number], sequence) for number in batch for sequence in groups[number]]
        logits = read.after(rows, [sequence.tokens[first:] for first, sequence in chosen])
        found = [
            log_likelihood(*scored(sequence, row, first))
            for (first, sequence), row in zip(chosen, logits.unbind(), strict=True)
        ]
        for number in batch:
            yield number, found[: len(groups[number])]
            del found[: len(groups[number])]


def scored(sequence: Continuation, logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return a sequence's scored tokens, and the logits for them, fp32, of `logits` from its token `first` on."""
    tokens = torch.tensor(sequence.tokens[sequence.start :], device=logits.device)
    return tokens, logits[sequence.start - 1 - first : len(sequence.tokens) - 1 - first].float()
