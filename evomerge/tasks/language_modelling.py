"""Language modelling: the log-likelihood of texts under the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.models import LiveModel
from evomerge.tasks.causal import Continuation, begin_tokens, log_likelihoods
from evomerge.tasks.data import read_splits, task_error, texts
from evomerge.tasks.task import LOG_LIKELIHOOD, FileSettings, Scores, Task, vector
from evomerge.trial import Split


class LanguageModellingSettings(FileSettings):
    """`kind: language_modelling`.

    Example: `code: {kind: language_modelling, search: code.search.jsonl, report: code.report.jsonl, text: text}`
    """

    kind: Literal["language_modelling"]
    text: str = "text"
    """The column of texts."""
    per: Literal["token", "byte", "example"] = "token"
    """The log-likelihood is divided by the number of scored tokens, of the UTF-8 bytes that they encode, or by 1."""
    max_length: int = Field(default=256, ge=2)
    """Texts are truncated to this many tokens."""


class LanguageModelling(Task):
    """A task of texts, each scored by its log-likelihood in nats.

    If the tokenizer puts no begin token before a text, its first token has no context and is not scored.
    """

    def __init__(self, name: str, settings: LanguageModellingSettings, folder: Path) -> None:
        """Read and check the texts. Raises `TaskError`."""
        [splits] = read_splits(name, settings.paths, (settings.text,), folder)
        super().__init__(name, settings, (LOG_LIKELIHOOD,), inputs=splits)
        self._settings = settings
        self._texts = {split: texts(name, settings.text, values) for split, values in splits.items()}
        self._encoded: dict[tuple[Split, Path], tuple[list[Continuation], list[int]]] = {}

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the log-likelihood of each text, per token, byte or example."""
        indices = self.indices(split, examples)
        key = (split, model.folder)
        if key not in self._encoded:
            self._encoded[key] = self._tokenised(model, self._texts[split])
        sequences, sizes = self._encoded[key]
        sums = log_likelihoods(self.name, model, [sequences[index] for index in indices], self._settings.batch)
        return Scores({"log_likelihood": vector(sums / np.array([sizes[index] for index in indices]))})

    def _tokenised(self, model: LiveModel, values: Sequence[str]) -> tuple[list[Continuation], list[int]]:
        """Return the sequence of each text, and the divisor of its log-likelihood."""
        begin = begin_tokens(model)
        if self._settings.per == "byte" and not model.tokenizer.is_fast:
            msg = "`per: byte` needs a tokenizer that returns the characters of each token; use `per: token`"
            raise task_error(self.name, msg)
        encoded = model.tokenizer(
            list(values),
            add_special_tokens=False,
            truncation=True,
            max_length=self._settings.max_length - len(begin),
            return_offsets_mapping=self._settings.per == "byte",
        )
        sequences, sizes = [], []
        unscored = 1 - len(begin)
        for index, ids in enumerate(encoded["input_ids"]):
            if len(ids) <= unscored:
                raise task_error(self.name, f"text {values[index]!r} is a single token without context; leave it out")
            sequences.append(Continuation(begin + ids, 1))
            if self._settings.per == "byte":
                offsets = encoded["offset_mapping"][index]
                sizes.append(len(values[index][offsets[unscored][0] : offsets[-1][1]].encode()))
            else:
                sizes.append(len(ids) - unscored if self._settings.per == "token" else 1)
        return sequences, sizes
