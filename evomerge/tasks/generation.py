"""Generation: the model's greedy answer to a prompt is compared with the right one, and its tokens are counted."""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from evomerge.models import EngineModel, LiveModel, TextModel
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.causal import (
    Continuation,
    batches,
    by_metric,
    check_length,
    check_sequences,
    continuations,
    encode,
    predicted,
    require_causal,
    run,
    served,
)
from evomerge.tasks.data import class_numbers, task_error, texts
from evomerge.tasks.examples import FileSettings, read_splits
from evomerge.tasks.prompts import Read, can_read, scored
from evomerge.tasks.served import ServedTask
from evomerge.tasks.task import Part, Scores, Vector, choose_metrics, detached, joined, vector
from evomerge.trial import Metric, Split

_GENERATED = ("accuracy", "length")  # the metrics for which the model has to write
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


class GenerationSettings(FileSettings):
    """`kind: generation`.

    Example: `maths: {kind: generation, search: maths.search.jsonl, report: maths.report.jsonl, prompt: question, match: last_number}`
    """

    kind: Literal["generation"]
    prompt: str = "prompt"
    """The column of prompts."""
    answer: str = "answer"
    """The column of right answers."""
    separator: str = ""
    """Text between prompt and answer."""
    match: Literal["exact", "regex", "last_number"] = "exact"
    """The part of the generated text that must equal the answer: all of it, the match of `pattern`, or its last number."""
    pattern: str | None = None
    """For `match: regex`: its first group, or without groups its match, is compared with the answer."""
    stop: tuple[str, ...] = ()
    """The answer ends at the first of these texts."""
    max_new_tokens: int = Field(default=32, ge=1)
    """The answer has at most this many tokens."""
    budget: str | None = None
    """A column of limits for single answers, in tokens, from 1 to `max_new_tokens`."""
    cut: Literal["as_is", "wrong"] = "as_is"
    """An answer that reaches its limit without an end token or a `stop`: its text is compared as it is, or it is wrong."""
    max_length: int = Field(default=256, ge=2)
    """The last this many tokens of the prompt (or of prompt and answer) are used."""


class Generation(ServedTask):
    """A task of prompts, each with one right answer.

    `accuracy` is 1 where the generated answer matches; `log_likelihood` is that of the right answer after the prompt, in
    nats per token, and needs no generation. Generation is slow, so accuracy is measured on the search split only if it or
    `length` is the searched metric.

    `search_metric: length` or `report_metric: length` is minus the number of tokens that the model writes, from minus
    `max_new_tokens` to 0: higher is shorter. The end token does not count, nor what follows a `stop`; an answer that is cut has
    the length of its limit. A front of accuracy and length needs two tasks: `brief: {same_as: maths, search_metric: length}`.

    `search_metric: entropy` searches the mean over the right answer's tokens of minus the entropy of the next token's
    distribution, in nats. It reads the right answer only as context: each token is predicted from those before it.
    """

    unserved: ClassVar = ("entropy",)

    def __init__(self, name: str, settings: GenerationSettings, folder: Path) -> None:
        """Read and check the examples. Raises `TaskError`."""
        columns = [settings.prompt, settings.answer]
        budget = [] if settings.budget is None else [settings.budget]
        data = read_splits(name, settings, [*columns, *budget], folder)
        metrics = choose_metrics(settings, ["accuracy", "log_likelihood"])
        if "length" in (settings.search_metric, settings.report_metric):
            metrics.append(Metric("length", low=-settings.max_new_tokens, high=0.0))
        super().__init__(name, settings, metrics, inputs=data[0])
        self._settings = settings
        self._budgets = {split: self._limits(split, values) for split, values in data[-1].items()}
        self._pattern = self._compiled()
        self._prompts, self._answers = (
            {split: texts(name, column, values) for split, values in splits.items()}
            for column, splits in zip(columns, data[:2], strict=True)
        )
        if settings.match == "last_number":
            for split, answers in self._answers.items():
                for index, answer in enumerate(answers):
                    if _last_number(answer) is None:
                        msg = f"`match: last_number`: answer {index} of the {split} split has no number: {answer!r}"
                        raise task_error(self.name, msg)
        self._encoded: dict[tuple[Split, Path], tuple[list[list[int]], list[Continuation]]] = {}
        self._once: dict[tuple[Split, Path], bool] = {}

    def check(self, model: TextModel) -> None:
        """Raise `TaskError` for prompts and answers that the model cannot read, or has no room to continue."""
        for split in self._prompts:
            prompts, answers = self._tokenised(model, split)
            check_sequences(self.name, model, [answer.tokens for answer in answers])
            generates = split != "search" or self.search_metric in _GENERATED
            check_sequences(self.name, model, prompts, self._settings.max_new_tokens if generates else 0)

    @torch.inference_mode()
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the log-likelihood of each answer; accuracy, and length if asked for, outside of the search split or if searched."""
        indices = self.indices(split, examples)
        if self._writes(split) and self._reads_once(model, split):
            return joined(self._read_once(model, split, indices))
        scores = joined((batch, detached(values)) for batch, values in self._likelihoods(model, split, indices))
        return self._with_generated(scores, model, split, indices)

    def serve(self, engine: EngineModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return what `score` does, by an engine."""
        indices = self.indices(split, examples)
        prompts, answers = self._tokenised(engine, split)
        right = [answers[index] for index in indices]
        sums = served(right, engine) / torch.tensor([answer.scored for answer in right])
        scores = detached({"log_likelihood": sums})
        if not self._writes(split):
            return scores
        limits = [self._budgets[split][index] for index in indices]
        generated = engine.generate([prompts[index] for index in indices], limits, self._settings.stop)
        return Scores({**scores.scores, **self._judged(engine, split, indices, generated)})

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the scores of one batch after another."""
        for batch, values in self._likelihoods(model, split, indices):
            part, chosen = self.part(batch, values), [indices[i] for i in batch]
            yield replace(part, scores=self._with_generated(part.scores, model, split, chosen))

    def predictions(self, model: LiveModel, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of each token of the right answer, and its tokens."""
        return predicted(model, self._tokenised(model, split)[1][index])

    def _likelihoods(
        self, model: LiveModel, split: Split, indices: Sequence[int]
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield the positions of each batch, and the values by metric that need no generation."""
        _, answers = self._tokenised(model, split)
        sequences = [answers[index] for index in indices]
        for batch in batches(self.name, model, sequences, self._settings.batch):
            chosen = [sequences[i] for i in batch]
            sizes = [sequence.scored for sequence in chosen]
            yield batch, by_metric(run(model, chosen), sizes, self.metrics, self.search_metric)

    def _tokenised(self, model: TextModel, split: Split) -> tuple[list[list[int]], list[Continuation]]:
        """Return the tokens of each prompt, and of each prompt with its answer, computed once for all candidates."""
        require_causal(self.name, model)
        key = (split, model.folder)
        if key not in self._encoded:
            prompts = [prompt + self._settings.separator for prompt in self._prompts[split]]
            limit = self._settings.max_length
            answers = continuations(self.name, model, prompts, self._answers[split], limit)
            self._encoded[key] = ([tokens[-limit:] for tokens in encode(model, prompts)], answers)
        return self._encoded[key]

    def _writes(self, split: Split) -> bool:
        """Return whether the model has to write its answers in a split."""
        return split != "search" or self.search_metric in _GENERATED

    def _reads_once(self, model: LiveModel, split: Split) -> bool:
        """Return whether the prompts are read once, for the right answers and for those that the model writes."""
        if model.watched:
            return False
        key = (split, model.folder)
        if key not in self._once:
            prompts, answers = self._tokenised(model, split)
            self._once[key] = can_read(model) and all(
                len(prompt) > 1 and answer.start >= len(prompt) and answer.tokens[: len(prompt) - 1] == prompt[:-1]
                for prompt, answer in zip(prompts, answers, strict=True)
            )
        return self._once[key]

    def _read_once(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[tuple[list[int], Scores]]:
        """Yield the positions and scores of each batch, whose prompts but for their last token are read once."""
        prompts, answers = self._tokenised(model, split)
        for batch in self._batches(model, [len(prompts[index]) for index in indices]):
            chosen = [indices[i] for i in batch]
            first = [len(prompts[index]) - 1 for index in chosen]
            read = Read(model, [prompts[index][:-1] for index in chosen])
            right = [answers[index] for index in chosen]
            rest = [answer.tokens[start:] for answer, start in zip(right, first, strict=True)]
            logits = read.after(range(len(chosen)), rest).unbind()
            pairs = [scored(*row) for row in zip(right, logits, first, strict=True)]
            values = by_metric(pairs, [answer.scored for answer in right], self.metrics, self.search_metric)
            written = self._written(model, split, chosen, read.cache)
            yield batch, Scores({**detached(values).scores, **written})

    def _with_generated(self, scores: Scores, model: LiveModel, split: Split, indices: Sequence[int]) -> Scores:
        if not self._writes(split):
            return scores
        prompts, _ = self._tokenised(model, split)
        batches = self._batches(model, [len(prompts[index]) for index in indices])
        written = joined((batch, Scores(self._written(model, split, [indices[i] for i in batch]))) for batch in batches)
        return Scores({**scores.scores, **written.scores})

    def _batches(self, model: LiveModel, lengths: Sequence[int]) -> list[list[int]]:
        """Return positions of prompts of these lengths in batches, with room for what the model writes."""
        more = self._settings.max_new_tokens
        check_length(self.name, model, max(lengths) + more)
        return by_length([length + more for length in lengths], self._settings.batch, model.device)

    @torch.inference_mode()
    def _written(self, model: LiveModel, split: Split, chosen: Sequence[int], cache: Any = None) -> dict[str, Vector]:
        """Return the metrics of the answers that the model writes to one batch of prompts, of which `cache` is what it has read."""
        prompts, _ = self._tokenised(model, split)
        limits = [self._budgets[split][index] for index in chosen]
        ids, mask = pad([prompts[index] for index in chosen], model.tokenizer.pad_token_id, left=True)
        done = partial(self._needs_no_more, model, limits) if self._settings.stop or len({*limits}) > 1 else None
        generated = model.generate(ids.to(model.device), mask.to(model.device), max(limits), done, cache)
        return self._judged(model, split, chosen, generated.tolist())

    def _judged(
        self, model: TextModel, split: Split, chosen: Sequence[int], generated: Sequence[Sequence[int]]
    ) -> dict[str, Vector]:
        """Return the metrics of generated tokens, one answer of each example."""
        right, length = np.empty(len(chosen)), np.empty(len(chosen))
        for row, (index, tokens) in enumerate(zip(chosen, generated, strict=True)):
            limit = self._budgets[split][index]
            text, count, ended = self._ended(model, tokens[:limit])
            wrong = self._settings.cut == "wrong" and not ended
            right[row] = not wrong and self.matches(text, self._answers[split][index])
            length[row] = -(count if ended else limit)
        found = {"accuracy": vector(right), "length": vector(length)}
        return {metric: found[metric] for metric in _GENERATED if metric in self.metrics}

    def _needs_no_more(self, model: TextModel, limits: Sequence[int], row: int, tokens: Sequence[int]) -> bool:
        """Return whether what the model would write after these `tokens` changes no score."""
        return len(tokens) >= limits[row] or self._stopped(model, tokens)

    def _stopped(self, model: TextModel, tokens: Sequence[int]) -> bool:
        text = model.tokenizer.decode(list(tokens), skip_special_tokens=True) if self._settings.stop else ""
        return any(stop in text for stop in self._settings.stop)

    def _ended(self, model: TextModel, tokens: Sequence[int]) -> tuple[str, int, bool]:
        """Return the text of `tokens`, the number of those before an end token or a stop, and whether there is one."""
        ends = model.end_tokens
        count = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))

        def stopped(number: int) -> bool:
            return self._stopped(model, tokens[:number])

        ended = count < len(tokens)
        if stopped(count):
            ended, count = (
                True,
                bisect.bisect_left(range(count + 1), 1, key=stopped) - 1,
            )  # before the token that completes it
        return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True)), count, ended

    def _limits(self, split: Split, values: Sequence[Any]) -> list[int]:
        most, column = self._settings.max_new_tokens, self._settings.budget
        if column is None:
            return [most] * len(values)
        limits = class_numbers(self.name, column, values, [most + 1] * len(values))
        if 0 in limits:
            msg = f"column `{column}`, {split} example {limits.index(0)}: expected a limit from 1 to `max_new_tokens`, {most}, got 0"
            raise task_error(self.name, msg)
        return limits

    def matches(self, text: str, answer: str) -> bool:
        """Return whether a generated `text` gives the `answer`, by the settings `stop` and `match`."""
        for stop in self._settings.stop:
            text = text.partition(stop)[0]
        if self._settings.match == "last_number":
            return _last_number(text) == _last_number(answer)
        if self._pattern is not None:
            match = self._pattern.search(text)
            if match is None:
                return False
            text = match[1] if self._pattern.groups else match[0]
        return (text or "").strip() == answer.strip()

    def _compiled(self) -> re.Pattern[str] | None:
        pattern = self._settings.pattern
        if (pattern is not None) != (self._settings.match == "regex"):
            msg = "`match: regex` and `pattern` belong together; for example `match: regex`, `pattern: 'answer is (\\d+)'`"
            raise task_error(self.name, msg)
        try:
            return None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise task_error(self.name, f"`pattern` {pattern!r} is not a regular expression: {error}") from None


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
