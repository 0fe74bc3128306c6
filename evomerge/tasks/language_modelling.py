"""Language modelling: how likely a text is to the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from evomerge.models import LiveModel
from evomerge.tasks.causal import Continuation, begin_tokens, log_likelihoods
from evomerge.tasks.data import read_splits, texts
from evomerge.tasks.task import LOG_LIKELIHOOD, Scores, SplitTask, TaskSettings, vector
from evomerge.trial import Split


class LanguageModellingSettings(TaskSettings):
    """`kind: language_modelling`."""

    kind: Literal["language_modelling"]
    search: Path
    report: Path
    text: str = "text"
    """The column of texts."""
    per: Literal["token", "byte", "example"] = "token"
    """What the log-likelihood is divided by: the scored tokens, the UTF-8 bytes that they stand for, or nothing."""
    max_length: int = Field(default=256, ge=2)
    """Tokens after which a text is cut."""
    batch: int = Field(default=8, ge=1)


class LanguageModelling(SplitTask):
    """Texts, each scored by its log-likelihood in nats, at most 0.

    Where the tokenizer puts no begin token before a text, its first token is not scored, for nothing predicts
    it.
    """

    def __init__(self, name: str, settings: LanguageModellingSettings, folder: Path) -> None:
        """Read and check the texts. Raises `TaskError`."""
        splits = read_splits(name, settings.search, settings.report, (settings.text,), folder)
        super().__init__(
            name,
            settings,
            metrics=(LOG_LIKELIHOOD,),
            sizes={split: len(columns[settings.text]) for split, columns in splits.items()},
        )
        self._settings = settings
        self._texts = {split: texts(name, settings.text, columns[settings.text]) for split, columns in splits.items()}
        self._made: dict[tuple[Split, Path], tuple[list[Continuation], list[int]]] = {}

    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the log-likelihood of each text, per token, byte or example."""
        numbers = self.indices(split, examples)
        key = (split, model.folder)
        if key not in self._made:
            self._made[key] = self._tokenised(model, self._texts[split])
        sequences, sizes = self._made[key]
        chosen = [sequences[number] for number in numbers]
        sums = log_likelihoods(self.name, model, chosen, self._settings.batch)
        return Scores({"log_likelihood": vector(sums / np.array([sizes[number] for number in numbers]))})

    def _tokenised(self, model: LiveModel, values: Sequence[str]) -> tuple[list[Continuation], list[int]]:
        """Return the tokens of each text, and what its log-likelihood is divided by."""
        begin = begin_tokens(model)
        if self._settings.per == "byte" and not model.tokenizer.is_fast:
            msg = "`per: byte` needs a tokenizer that knows which characters a token stands for; use `per: token`"
            raise self.error(msg)
        made = model.tokenizer(
            list(values),
            add_special_tokens=False,
            truncation=True,
            max_length=self._settings.max_length - len(begin),
            return_offsets_mapping=self._settings.per == "byte",
        )
        sequences, sizes = [], []
        unscored = 1 - len(begin)
        for number, ids in enumerate(made["input_ids"]):
            if len(ids) <= unscored:
                msg = f"text {values[number]!r} is a single token, and nothing predicts it; leave it out"
                raise self.error(msg)
            sequences.append(Continuation(begin + ids, 1))
            if self._settings.per == "byte":
                offsets = made["offset_mapping"][number]
                sizes.append(len(values[number][offsets[unscored][0] : offsets[-1][1]].encode()))
            else:
                sizes.append(len(ids) - unscored if self._settings.per == "token" else 1)
        return sequences, sizes
