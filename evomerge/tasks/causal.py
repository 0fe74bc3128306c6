"""Log-likelihoods under a causal language model of the end of a sequence, given its beginning."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from evomerge.models import LiveModel
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.data import task_error


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token sequence that is scored from position `start`, at least 1, to its end."""

    tokens: list[int]
    start: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.tokens) - self.start


def require_causal(task: str, model: LiveModel) -> None:
    """Raise `TaskError` unless `model` is a causal language model."""
    if not model.module.can_generate():
        kind = type(model.module).__name__
        raise task_error(task, f"needs a causal language model, got {kind}; set `auto: AutoModelForCausalLM`")


def encode(model: LiveModel, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, after the tokenizer's begin token if it adds one, without an end token."""
    begin = begin_tokens(model)
    return [begin + ids for ids in model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def begin_tokens(model: LiveModel) -> list[int]:
    """Return the begin token if the tokenizer puts it before a text, else an empty list."""
    begin = model.tokenizer.bos_token_id
    return [begin] if begin is not None and model.tokenizer("a")["input_ids"][:1] == [begin] else []


def continuations(
    task: str, model: LiveModel, prompts: Sequence[str], answers: Sequence[str], max_length: int
) -> list[Continuation]:
    """Return each prompt with its answer, scored from the first token that differs from the prompt's own tokens.

    Sequences longer than `max_length` tokens lose their beginning. Raises `TaskError` if an answer adds no token.
    """
    joined = encode(model, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    sequences = []
    for answer, short, long in zip(answers, encode(model, prompts), joined, strict=True):
        shared = min(len(short), len(long))
        start = next((i for i in range(shared) if short[i] != long[i]), shared)
        cut = max(0, len(long) - max_length)
        sequence = Continuation(long[cut:], max(1, start - cut))
        if sequence.scored < 1:
            raise task_error(task, f"the answer {answer!r} adds no token to its prompt; nothing can be scored")
        sequences.append(sequence)
    return sequences


@torch.inference_mode()
def log_likelihoods(task: str, model: LiveModel, sequences: Sequence[Continuation], batch: int) -> NDArray[np.float64]:
    """Return the summed log-likelihood in nats of each sequence's scored tokens, float64 `(sequences,)`."""
    require_causal(task, model)
    check_length(task, model, max(len(sequence.tokens) for sequence in sequences))
    sums = np.empty(len(sequences))
    for positions in by_length([len(sequence.tokens) for sequence in sequences], batch):
        ids, mask = pad([sequences[i].tokens for i in positions], model.tokenizer.pad_token_id)
        logits = model.module(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).logits
        for row, i in enumerate(positions):
            start, end = sequences[i].start, len(sequences[i].tokens)
            predicted, targets = logits[row, start - 1 : end - 1].float(), ids[row, start:end].to(model.device)
            sums[i] = -cross_entropy(predicted, targets, reduction="none").double().sum().item()
    return sums


def check_length(task: str, model: LiveModel, longest: int) -> None:
    """Raise `TaskError` if the model has no positions for `longest` tokens."""
    limit = getattr(model.module.config, "max_position_embeddings", None)
    if isinstance(limit, int) and longest > limit:
        msg = f"needs {longest} tokens, and the model has positions for {limit}; set a smaller `max_length`"
        raise task_error(task, msg)
