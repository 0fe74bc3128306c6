"""Generation: the model writes an answer, greedily, and it is compared with the right one."""

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from evomerge.models import LiveModel
from evomerge.tasks.batches import by_length, pad
from evomerge.tasks.causal import (
    Continuation,
    check_length,
    continuations,
    encode,
    log_likelihoods,
    require_causal,
)
from evomerge.tasks.data import read_splits, texts
from evomerge.tasks.task import ACCURACY, LOG_LIKELIHOOD, Scores, SplitTask, TaskSettings, Vector, vector
from evomerge.trial import Split

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


class GenerationSettings(TaskSettings):
    """`kind: generation`."""

    kind: Literal["generation"]
    search: Path
    report: Path
    prompt: str = "prompt"
    """The column of prompts."""
    answer: str = "answer"
    """The column of right answers."""
    separator: str = ""
    """What stands between prompt and answer."""
    match: Literal["exact", "regex", "last_number"] = "exact"
    """What of the text must equal the answer: all of it, what `pattern` finds, or its last number."""
    pattern: str | None = None
    """For `match: regex`: its first group, or else its whole match, is compared with the answer."""
    stop: tuple[str, ...] = ()
    """Texts at the first of which the answer ends."""
    max_new_tokens: int = Field(default=32, ge=1)
    max_length: int = Field(default=256, ge=2)
    """Tokens of the prompt (and of prompt and answer), of which the last are kept."""
    batch: int = Field(default=8, ge=1)


class Generation(SplitTask):
    """Prompts, each with one right answer.

    `accuracy` is 1 where the written answer matches; `log_likelihood` is that of the right answer after the
    prompt, in nats per token, at most 0, and needs no writing. As writing is dear, accuracy is found on the
    search split only where it is what is searched.
    """

    def __init__(self, name: str, settings: GenerationSettings, folder: Path) -> None:
        """Read and check the examples. Raises `TaskError`."""
        splits = read_splits(name, settings.search, settings.report, (settings.prompt, settings.answer), folder)
        super().__init__(
            name,
            settings,
            metrics=(ACCURACY, LOG_LIKELIHOOD),
            sizes={split: len(found[settings.prompt]) for split, found in splits.items()},
        )
        self._settings = settings
        self._pattern = self._compiled()
        self._prompts = {split: texts(name, settings.prompt, found[settings.prompt]) for split, found in splits.items()}
        self._answers = {split: texts(name, settings.answer, found[settings.answer]) for split, found in splits.items()}
        if settings.match == "last_number":
            for split, answers in self._answers.items():
                for number, answer in enumerate(answers):
                    if _last_number(answer) is None:
                        msg = f"`match: last_number`: answer {number} of the {split} split has no number: {answer!r}"
                        raise self.error(msg)
        self._made: dict[tuple[Split, Path], tuple[list[list[int]], list[Continuation]]] = {}

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return log-likelihood of each answer, and accuracy where it is reported or searched."""
        require_causal(self.name, model)
        numbers = self.indices(split, examples)
        key = (split, model.folder)
        if key not in self._made:
            prompts = [prompt + self._settings.separator for prompt in self._prompts[split]]
            limit = self._settings.max_length
            self._made[key] = (
                [tokens[-limit:] for tokens in encode(model, prompts)],
                continuations(self.name, model, prompts, self._answers[split], limit),
            )
        prompts_made, answers_made = self._made[key]
        chosen = [answers_made[number] for number in numbers]
        sums = log_likelihoods(self.name, model, chosen, self._settings.batch)
        scores = {"log_likelihood": vector(sums / np.array([one.scored for one in chosen]))}
        if split == "report" or self.search_metric == "accuracy":
            answers = [self._answers[split][number] for number in numbers]
            scores["accuracy"] = self._accuracy(model, [prompts_made[number] for number in numbers], answers)
        return Scores(scores)

    @torch.inference_mode()
    def _accuracy(self, model: LiveModel, prompts: Sequence[Sequence[int]], answers: Sequence[str]) -> Vector:
        check_length(self.name, model, max(map(len, prompts)) + self._settings.max_new_tokens)
        found = np.empty(len(prompts))
        for batch in by_length([len(prompt) for prompt in prompts], self._settings.batch):
            ids, mask = pad([prompts[i] for i in batch], model.tokenizer.pad_token_id, left=True)
            written = model.generate(ids.to(model.device), mask.to(model.device), self._settings.max_new_tokens)
            for i, tokens in zip(batch, written, strict=True):
                text = str(model.tokenizer.decode(tokens, skip_special_tokens=True))
                found[i] = self.matches(text, answers[i])
        return vector(found)

    def matches(self, text: str, answer: str) -> bool:
        """Say whether a written `text` gives the `answer`, by the settings `stop` and `match`."""
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
            raise self.error(msg)
        try:
            return None if pattern is None else re.compile(pattern)
        except re.error as error:
            msg = f"`pattern` {pattern!r} is not a regular expression: {error}"
            raise self.error(msg) from None


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
