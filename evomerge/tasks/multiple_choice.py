"""Multiple choice: which of a few continuations of a prompt the model finds most likely."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from evomerge.models import LiveModel
from evomerge.tasks.causal import Continuation, continuations, log_likelihoods, require_causal
from evomerge.tasks.data import indices, read_splits, texts
from evomerge.tasks.task import Scores, SplitTask, TaskSettings, choose_metrics, vector
from evomerge.trial import Split


class MultipleChoiceSettings(TaskSettings):
    """`kind: multiple_choice`."""

    kind: Literal["multiple_choice"]
    search: Path
    report: Path
    prompt: str = "prompt"
    """The column of prompts."""
    choices: str = "choices"
    """The column of lists of choices, two or more."""
    answer: str = "answer"
    """The column of the right choices' numbers, from 0."""
    separator: str = " "
    """What stands between prompt and choice."""
    normalise: Literal["none", "token", "byte"] = "token"
    """By what measure of its length a choice's log-likelihood is divided."""
    max_length: int = Field(default=256, ge=2)
    """Tokens of prompt and choice, of which the last are kept."""
    batch: int = Field(default=8, ge=1)
    metrics: tuple[Literal["accuracy", "log_likelihood"], ...] = ("accuracy", "log_likelihood")
    """What is scored."""
    keep_margins: bool = False
    """Keep how far the right choice's merit is above that of each other, too: driver `front` predicts accuracy from it."""


class MultipleChoice(SplitTask):
    """Prompts, each with a few choices of which one is right.

    A choice's merit is its log-likelihood after the prompt, divided by its length. `accuracy` is 1 where the
    right choice has the largest merit; `log_likelihood` is the log of its share in the softmax over all
    merits, in nats, at most 0.
    """

    def __init__(self, name: str, settings: MultipleChoiceSettings, folder: Path) -> None:
        """Read and check the examples. Raises `TaskError`."""
        columns = (settings.prompt, settings.choices, settings.answer)
        splits = read_splits(name, settings.search, settings.report, columns, folder)
        super().__init__(
            name,
            settings,
            metrics=choose_metrics(settings.metrics, settings.keep_margins),
            sizes={split: len(found[settings.answer]) for split, found in splits.items()},
        )
        self._settings = settings
        self._prompts: dict[Split, list[str]] = {}
        self._choices: dict[Split, list[list[str]]] = {}
        self._answers: dict[Split, list[int]] = {}
        for split, found in splits.items():
            self._prompts[split] = texts(name, settings.prompt, found[settings.prompt])
            self._choices[split] = [
                self._checked(number, value) for number, value in enumerate(found[settings.choices])
            ]
            ends = map(len, self._choices[split])
            self._answers[split] = indices(name, settings.answer, found[settings.answer], ends)
        self._made: dict[tuple[Split, Path], list[list[Continuation]]] = {}

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the metrics of each example, and `margins` if they are kept.

        `margins` are `(examples, most choices - 1)`, the last repeated where an example has fewer: `accuracy` is 1 where
        all are positive.
        """
        require_causal(self.name, model)
        numbers = self.indices(split, examples)
        key = (split, model.folder)
        if key not in self._made:
            self._made[key] = self._tokenised(model, split)
        made = [self._made[key][number] for number in numbers]
        sums = log_likelihoods(self.name, model, [one for choices in made for one in choices], self._settings.batch)
        found: dict[str, list[float]] = {"accuracy": [], "log_likelihood": []}
        margins = np.empty((len(numbers), max(map(len, self._choices[split])) - 1), np.float32)
        at = 0
        for row, number, choices in zip(margins, numbers, made, strict=True):
            merits = sums[at : at + len(choices)] / self._lengths(self._choices[split][number], choices)
            at += len(choices)
            answer = self._answers[split][number]
            right = float(int(merits.argmax()) == answer)
            found["accuracy"].append(right if np.isfinite(merits).all() else np.nan)
            found["log_likelihood"].append(merits[answer] - np.logaddexp.reduce(merits))
            if self._settings.keep_margins:
                above = merits[answer] - np.delete(merits, answer)
                row[:] = np.pad(above, (0, len(row) - len(above)), mode="edge")
        scores = {metric: vector(found[metric]) for metric in self.metrics}
        return Scores(scores, {"margins": margins} if self._settings.keep_margins else {})

    def _tokenised(self, model: LiveModel, split: Split) -> list[list[Continuation]]:
        made = []
        for prompt, choices in zip(self._prompts[split], self._choices[split], strict=True):
            answers = [self._settings.separator + choice for choice in choices]
            made.append(continuations(self.name, model, [prompt] * len(choices), answers, self._settings.max_length))
        return made

    def _lengths(self, choices: Sequence[str], made: Sequence[Continuation]) -> list[int]:
        match self._settings.normalise:
            case "token":
                return [one.scored for one in made]
            case "byte":
                return [len(choice.encode()) for choice in choices]
            case "none":
                return [1] * len(made)

    def _checked(self, number: int, value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) < 2:  # a choice needs two
            msg = f"column `{self._settings.choices}`, example {number}: expected a list of two texts or more, got {value!r}"
            raise self.error(msg)
        return texts(self.name, self._settings.choices, value)
