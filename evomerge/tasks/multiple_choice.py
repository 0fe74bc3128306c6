"""Multiple choice: the most likely of several continuations of a prompt is the answer."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from evomerge.models import EngineModel, LiveModel, TextModel
from evomerge.tasks.batches import by_length
from evomerge.tasks.causal import (
    Continuation,
    batches,
    check_length,
    check_sequences,
    continuations,
    log_likelihood,
    require_causal,
    run,
    served,
)
from evomerge.tasks.data import class_numbers, task_error, texts
from evomerge.tasks.examples import FileSettings, read_splits
from evomerge.tasks.prompts import beginnings, can_read, log_likelihoods
from evomerge.tasks.served import ServedTask
from evomerge.tasks.task import Part, Scores, choose_metrics, negative_entropy
from evomerge.trial import Split


class MultipleChoiceSettings(FileSettings):
    """`kind: multiple_choice`.

    Example: `facts: {kind: multiple_choice, search: facts.search.jsonl, report: facts.report.jsonl, answer: right}`
    """

    kind: Literal["multiple_choice"]
    prompt: str = "prompt"
    """The column of prompts."""
    choices: str = "choices"
    """The column of lists of choices, two or more."""
    answer: str = "answer"
    """The column of the right choices' positions, from 0."""
    separator: str = " "
    """Text between prompt and choice."""
    normalise: Literal["none", "token", "byte"] = "token"
    """The length by which a choice's log-likelihood is divided."""
    max_length: int = Field(default=256, ge=2)
    """The last this many tokens of prompt and choice are used."""
    metrics: tuple[Literal["accuracy", "log_likelihood", "entropy"], ...] = ("accuracy", "log_likelihood")
    """The metrics to score: accuracy, log_likelihood, entropy; entropy also where it is searched or reported."""
    keep_margins: bool = False
    """Also record the right choice's merit minus that of each other: driver `front` predicts accuracy from these margins."""


class MultipleChoice(ServedTask):
    """A task of prompts, each with two or more choices of which one is right.

    A choice's merit is its log-likelihood after the prompt, divided by its length. `accuracy` is 1 where the right choice
    has the largest merit; `log_likelihood` is the log-softmax of the right choice's merit over all merits, in nats;
    `entropy` is minus the entropy of the softmax of all merits, in nats, and needs no right choice.
    """

    def __init__(self, name: str, settings: MultipleChoiceSettings, folder: Path) -> None:
        """Read and check the examples. Raises `TaskError`."""
        columns = (settings.prompt, settings.choices, settings.answer)
        prompts, choices, answers = read_splits(name, settings, columns, folder)
        metrics = choose_metrics(settings, settings.metrics, settings.keep_margins)
        super().__init__(name, settings, metrics, inputs=prompts)
        self._settings = settings
        self._prompts: dict[Split, list[str]] = {}
        self._choices: dict[Split, list[list[str]]] = {}
        self._answers: dict[Split, list[int]] = {}
        for split, values in prompts.items():
            self._prompts[split] = texts(name, settings.prompt, values)
            self._choices[split] = [self._checked(index, value) for index, value in enumerate(choices[split])]
            ends = map(len, self._choices[split])
            self._answers[split] = class_numbers(name, settings.answer, answers[split], ends)
        self._encoded: dict[tuple[Split, Path], list[list[Continuation]]] = {}
        self._common: dict[tuple[Split, Path], list[int] | None] = {}

    def check(self, model: TextModel) -> None:
        """Raise `TaskError` for prompts and choices that the model cannot read."""
        for split, prompts in self._prompts.items():
            sequences = itertools.chain(*self._sequences(model, split, range(len(prompts))))
            check_sequences(self.name, model, [sequence.tokens for sequence in sequences])

    @torch.inference_mode()
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each example, and `margins` if they are kept.

        `margins` are `(examples, most choices - 1)`, the last one repeated for examples with fewer choices; `accuracy` is
        1 where all are positive.
        """
        indices = self.indices(split, examples)
        encoded = self._sequences(model, split, indices)
        if (common := self._beginnings(model, split)) is not None:
            chosen = [common[index] for index in indices]
            found = dict(log_likelihoods(self.name, model, encoded, chosen, self._settings.batch))
            sums = torch.stack([value for number in range(len(encoded)) for value in found[number]]).cpu()
        else:
            sequences = list(itertools.chain(*encoded))
            sums = torch.empty(len(sequences), dtype=torch.float64)
            for batch in batches(self.name, model, sequences, self._settings.batch):
                sums[batch] = _sums(model, [sequences[i] for i in batch])
        return self.part(range(len(indices)), *self._measured(split, indices, encoded, sums)).scores

    def serve(self, engine: EngineModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return what `score` does, by an engine."""
        indices = self.indices(split, examples)
        encoded = self._sequences(engine, split, indices)
        sums = served(list(itertools.chain(*encoded)), engine)
        return self.part(range(len(indices)), *self._measured(split, indices, encoded, sums)).scores

    def _beginnings(self, model: LiveModel, split: Split) -> list[int] | None:
        """Return how many tokens the choices of each example begin with, to be read once; None where each is read whole."""
        if model.watched:
            return None
        key = (split, model.folder)
        if key not in self._common:
            every = self._sequences(model, split, range(len(self._prompts[split])))
            self._common[key] = beginnings(every) if can_read(model) else None
        return self._common[key]

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the scores of one batch after another, each of whole examples: choices of one example compete."""
        encoded = self._sequences(model, split, indices)
        longest = [max(sequences, key=lambda sequence: len(sequence.tokens)) for sequences in encoded]
        most = max(map(len, self._choices[split]))
        size = None if self._settings.batch is None else max(1, self._settings.batch // most)
        check_length(self.name, model, max(len(one.tokens) for one in longest))
        for batch in by_length([most * len(one.tokens) for one in longest], size, model.device):
            chosen = [encoded[i] for i in batch]
            sums = _sums(model, list(itertools.chain(*chosen)))
            yield self.part(batch, *self._measured(split, [indices[i] for i in batch], chosen, sums))

    def predictions(self, model: LiveModel, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return the log-softmax of the merits of an example's choices, and the right choice."""
        (sequences,) = self._sequences(model, split, [index])
        merits = _sums(model, sequences) / torch.tensor(self._lengths(self._choices[split][index], sequences))
        return merits.log_softmax(0)[None], torch.tensor([self._answers[split][index]])

    def _measured(
        self, split: Split, indices: Sequence[int], encoded: Sequence[Sequence[Continuation]], sums: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the metrics, and `margins` if they are kept, from the log-likelihoods of all choices, one after another."""
        values: dict[str, list[Tensor]] = {metric: [] for metric in self.metrics}
        margins = np.empty((len(indices), max(map(len, self._choices[split])) - 1), np.float32)
        competing = torch.split(sums, [len(sequences) for sequences in encoded])
        for row, index, sequences, choices in zip(margins, indices, encoded, competing, strict=True):
            merits = choices / torch.tensor(self._lengths(self._choices[split][index], sequences))
            known, answer = merits.detach().numpy(), self._answers[split][index]
            for metric, found in values.items():
                match metric:
                    case "accuracy":
                        right = float(int(known.argmax()) == answer)
                        found.append(torch.tensor(right if np.isfinite(known).all() else np.nan))
                    case "log_likelihood":
                        found.append(merits[answer] - functools.reduce(torch.logaddexp, merits.unbind()))
                    case "entropy":
                        found.append(negative_entropy(merits))
            if self._settings.keep_margins:
                above = known[answer] - np.delete(known, answer)
                row[:] = np.pad(above, (0, len(row) - len(above)), mode="edge")
        stacked = {metric: torch.stack(found) for metric, found in values.items()}
        return stacked, {"margins": margins} if self._settings.keep_margins else {}

    def _sequences(self, model: TextModel, split: Split, indices: Sequence[int]) -> list[list[Continuation]]:
        """Return the choices of each example as sequences, computed once for all candidates of a base."""
        require_causal(self.name, model)
        key = (split, model.folder)
        if key not in self._encoded:
            self._encoded[key] = self._tokenised(model, split)
        return [self._encoded[key][index] for index in indices]

    def _tokenised(self, model: TextModel, split: Split) -> list[list[Continuation]]:
        separator, limit = self._settings.separator, self._settings.max_length
        return [
            continuations(self.name, model, [prompt] * len(choices), [separator + choice for choice in choices], limit)
            for prompt, choices in zip(self._prompts[split], self._choices[split], strict=True)
        ]

    def _lengths(self, choices: Sequence[str], sequences: Sequence[Continuation]) -> list[int]:
        match self._settings.normalise:
            case "token":
                return [sequence.scored for sequence in sequences]
            case "byte":
                return [len(choice.encode()) for choice in choices]
            case "none":
                return [1] * len(sequences)

    def _checked(self, index: int, value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) < 2:  # a choice needs two
            msg = f"column `{self._settings.choices}`, example {index}: expected a list of two texts or more, got {value!r}"
            raise task_error(self.name, msg)
        return texts(self.name, self._settings.choices, value)


def _sums(model: LiveModel, sequences: Sequence[Continuation]) -> Tensor:
    """Return the log-likelihoods in nats of one batch, float64 `(sequences,)` on the CPU."""
    return torch.stack([log_likelihood(tokens, logits) for tokens, logits in run(model, sequences)]).cpu()
