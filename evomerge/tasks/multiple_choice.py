"""Multiple choice: the most likely of several continuations of a prompt is the answer."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evomerge.models import LiveModel
from evomerge.tasks.causal import Continuation, continuations, log_likelihoods, require_causal
from evomerge.tasks.data import class_numbers, read_splits, task_error, texts
from evomerge.tasks.task import FileSettings, Scores, Task, choose_metrics, vector
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
    metrics: tuple[Literal["accuracy", "log_likelihood"], ...] = ("accuracy", "log_likelihood")
    """The metrics to score."""
    keep_margins: bool = False
    """Also record the right choice's merit minus that of each other: driver `front` predicts accuracy from these margins."""


class MultipleChoice(Task):
    """A task of prompts, each with two or more choices of which one is right.

    A choice's merit is its log-likelihood after the prompt, divided by its length. `accuracy` is 1 where the right choice
    has the largest merit; `log_likelihood` is the log-softmax of the right choice's merit over all merits, in nats.
    """

    def __init__(self, name: str, settings: MultipleChoiceSettings, folder: Path) -> None:
        """Read and check the examples. Raises `TaskError`."""
        columns = (settings.prompt, settings.choices, settings.answer)
        prompts, choices, answers = read_splits(name, settings.paths, columns, folder)
        metrics = choose_metrics(settings.metrics, settings.keep_margins)
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

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each example, and `margins` if they are kept.

        `margins` are `(examples, most choices - 1)`, the last one repeated for examples with fewer choices; `accuracy` is
        1 where all are positive.
        """
        require_causal(self.name, model)
        indices = self.indices(split, examples)
        key = (split, model.folder)
        if key not in self._encoded:
            self._encoded[key] = self._tokenised(model, split)
        encoded = [self._encoded[key][index] for index in indices]
        sums = log_likelihoods(self.name, model, list(itertools.chain(*encoded)), self._settings.batch)
        by_metric: dict[str, list[float]] = {"accuracy": [], "log_likelihood": []}
        margins = np.empty((len(indices), max(map(len, self._choices[split])) - 1), np.float32)
        start = 0
        for row, index, sequences in zip(margins, indices, encoded, strict=True):
            merits = sums[start : start + len(sequences)] / self._lengths(self._choices[split][index], sequences)
            start += len(sequences)
            answer = self._answers[split][index]
            right = float(int(merits.argmax()) == answer)
            by_metric["accuracy"].append(right if np.isfinite(merits).all() else np.nan)
            by_metric["log_likelihood"].append(merits[answer] - np.logaddexp.reduce(merits))
            if self._settings.keep_margins:
                above = merits[answer] - np.delete(merits, answer)
                row[:] = np.pad(above, (0, len(row) - len(above)), mode="edge")
        scores = {metric: vector(by_metric[metric]) for metric in self.metrics}
        return Scores(scores, {"margins": margins} if self._settings.keep_margins else {})

    def _tokenised(self, model: LiveModel, split: Split) -> list[list[Continuation]]:
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
