"""Log-likelihoods and entropies under a causal language model at the end of a sequence, given its beginning."""

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evomerge.models import EngineModel, LiveModel, TextModel
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.data import task_error
from evomerge.tasks.task import negative_entropy


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token sequence that is scored from position `start`, at least 1, to its end."""

    tokens: list[int]
    start: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.tokens) - self.start


def require_causal(task: str, model: TextModel) -> None:
    """Raise `TaskError` unless `model` is a causal language model."""
    if not model.causal:
        kind = type(getattr(model, "module", model)).__name__
        raise task_error(task, f"needs a causal language model, got {kind}; set `auto: AutoModelForCausalLM`")


def encode(model: TextModel, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, after the tokenizer's begin token if it adds one, without an end token."""
    begin = begin_tokens(model)
    return [begin + ids for ids in model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def begin_tokens(model: TextModel) -> list[int]:
    """Return the begin token if the tokenizer puts it before a text, else an empty list."""
    begin = model.tokenizer.bos_token_id
    return [begin] if begin is not None and model.tokenizer("a")["input_ids"][:1] == [begin] else []


def continuations(
    task: str, model: TextModel, prompts: Sequence[str], answers: Sequence[str], max_length: int
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


def check_sequences(task: str, model: TextModel, sequences: Iterable[Sequence[int]], more: int = 0) -> None:
    """Raise `TaskError` unless the model can run the token sequences, and write `more` tokens after each."""
    require_causal(task, model)
    listed = list(sequences)
    check_length(
        task,
        model,
        max(map(len, listed), default=0) + more,
        "`max_length` or `max_new_tokens`" if more else "`max_length`",
    )
    check_tokens(task, model, listed)


def check_tokens(task: str, model: TextModel, sequences: Iterable[Sequence[int]]) -> None:
    """Raise `TaskError` if a sequence has a token for which the model's embedding has no row."""
    rows = model.embedded
    largest = max((token for tokens in sequences for token in tokens), default=-1)
    if rows is not None and largest >= rows:
        msg = (
            f"its examples have the token {largest} (`{model.tokenizer.convert_ids_to_tokens(largest)}`), and the model's embedding has "
            f"{rows} rows; expected the tokenizer that the models were trained with: put its files beside the base's weights, or "
            "set `like` under `pool` to an expert that has it"
        )
        raise task_error(task, msg)


def batches(task: str, model: LiveModel, sequences: Sequence[Continuation], size: int | None) -> list[list[int]]:
    """Return the positions of the sequences that run together. Raises `TaskError` if the model cannot run them."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    require_causal(task, model)
    check_length(task, model, max(lengths, default=0))
    return by_length(lengths, size, model.device)


def run(model: LiveModel, sequences: Sequence[Continuation]) -> Iterator[tuple[Tensor, Tensor]]:
    """Run one batch; yield each sequence's scored tokens, `(scored,)`, and logits for them, fp32 `(scored, vocabulary)`.

    Where all sequences begin with tokens that are not scored, the model is asked for the logits after them alone, if it can be.
    """
    ids, mask = pad([sequence.tokens for sequence in sequences], model.tokenizer.pad_token_id)
    ids = ids.to(model.device)
    inputs = {"input_ids": ids, "attention_mask": mask.to(model.device), "use_cache": False}
    first = min(sequence.start for sequence in sequences) - 1
    if first and not model.watched and "logits_to_keep" in inspect.signature(model.module.forward).parameters:
        inputs["logits_to_keep"] = torch.arange(first, ids.shape[1] - 1, device=model.device)
    logits = model.module(**inputs).logits
    skipped = first if logits.shape[1] < ids.shape[1] else 0
    for sequence, tokens, row in zip(sequences, ids.unbind(), logits.unbind(), strict=True):
        start, end = sequence.start, len(sequence.tokens)
        yield tokens[start:end], row[start - 1 - skipped : end - 1 - skipped].float()


def served(sequences: Sequence[Continuation], engine: EngineModel) -> Tensor:
    """Return the summed log-likelihood of each sequence's scored tokens in nats, float64 `(sequences,)`, by an engine."""
    tokens, starts = [sequence.tokens for sequence in sequences], [sequence.start for sequence in sequences]
    return torch.tensor(engine.log_likelihoods(tokens, starts), dtype=torch.float64)


def predicted(model: LiveModel, sequence: Continuation) -> tuple[Tensor, Tensor]:
    """Return what `Task.predictions` does, of one sequence: log-probabilities `(scored, vocabulary)`, and its scored tokens."""
    ((tokens, logits),) = run(model, [sequence])
    return logits.log_softmax(-1), tokens


def log_likelihood(tokens: Tensor, logits: Tensor) -> Tensor:
    """Return the summed log-likelihood of `tokens` in nats, float64 `()`."""
    return -_float64(cross_entropy(logits, tokens, reduction="none")).sum()


def _float64(values: Tensor) -> Tensor:
    """Return values as float64: on the CPU those of Apple's GPUs, which have none."""
    return values.cpu().double() if values.is_mps else values.double()


def by_metric(
    scored: Iterable[tuple[Tensor, Tensor]], sizes: Sequence[int], metrics: Collection[str], searched: str
) -> dict[str, Tensor]:
    """Return those of the `metrics` that one batch's tokens give, float64 `(sequences,)`; only the `searched` has a graph.

    `scored` has each sequence's tokens and logits, as `run` yields them.

    `log_likelihood` is summed and divided by `sizes`, `entropy` is the mean over scored tokens.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in ("log_likelihood", "entropy") if name in metrics}
    for tokens, logits in scored:
        for metric, found in values.items():
            # no second table of the vocabulary's size is kept
            kept = logits if metric == searched else logits.detach()
            entropy = metric == "entropy"
            found.append(_float64(negative_entropy(kept)).mean() if entropy else log_likelihood(tokens, kept))
    stacked = {metric: torch.stack(found).cpu() for metric, found in values.items()}
    if "log_likelihood" in stacked:
        stacked["log_likelihood"] = stacked["log_likelihood"] / torch.tensor(sizes)
    return stacked


def check_length(task: str, model: TextModel, longest: int, settings: str = "`max_length`") -> None:
    """Raise `TaskError` if the model has no positions for `longest` tokens."""
    limit = model.positions
    if limit is not None and longest > limit:
        msg = f"needs {longest} tokens, and the model has positions for {limit}; set a smaller {settings}"
        raise task_error(task, msg)
