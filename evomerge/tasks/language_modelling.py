"""Language modelling: the log-likelihood of texts under the model, and the entropy of its predictions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from evomerge.models import EngineModel, LiveModel, TextModel
from evomerge.tasks.batches import of_one_length
from evomerge.tasks.causal import (
    Continuation,
    batches,
    begin_tokens,
    by_metric,
    check_sequences,
    predicted,
    require_causal,
    run,
    served,
)
from evomerge.tasks.data import task_error, texts
from evomerge.tasks.examples import FileSettings, read_splits
from evomerge.tasks.served import ServedTask
from evomerge.tasks.task import Part, Scores, choose_metrics, detached, joined
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


class LanguageModelling(ServedTask):
    """A task of texts, each scored by its log-likelihood in nats.

    `search_metric: entropy` searches the mean over tokens of minus the entropy of the next token's distribution, in nats.
    If the tokenizer puts no begin token before a text, its first token has no context and is not scored.
    """

    unserved: ClassVar = ("entropy",)

    def __init__(self, name: str, settings: LanguageModellingSettings, folder: Path) -> None:
        """Read and check the texts. Raises `TaskError`."""
        [splits] = read_splits(name, settings, (settings.text,), folder)
        super().__init__(name, settings, choose_metrics(settings, ["log_likelihood"]), inputs=splits)
        self._settings = settings
        self._texts = {split: texts(name, settings.text, values) for split, values in splits.items()}
        self._encoded: dict[tuple[Split, Path], tuple[list[Continuation], list[int]]] = {}

    def check(self, model: TextModel) -> None:
        """Raise `TaskError` for texts that the model cannot read."""
        for split in self._texts:
            check_sequences(self.name, model, [sequence.tokens for sequence in self._sequences(model, split)[0]])

    @torch.inference_mode()
    def score(self, model: LiveModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the log-likelihood of each text, per token, byte or example, and entropy where it is asked for."""
        return joined((part.positions, part.scores) for part in self.parts(model, split, self.indices(split, examples)))

    def serve(self, engine: EngineModel, split: Split, examples: Sequence[int] | None = None) -> Scores:
        """Return the log-likelihood of each text, per token, byte or example."""
        every, sizes = self._sequences(engine, split)
        indices = self.indices(split, examples)
        sums = served([every[index] for index in indices], engine)
        return detached({"log_likelihood": sums / torch.tensor([sizes[index] for index in indices])})

    def parts(self, model: LiveModel, split: Split, indices: Sequence[int]) -> Iterator[Part]:
        """Yield the scores of one batch after another."""
        every, sizes = self._sequences(model, split)
        sequences = [every[index] for index in indices]
        for batch in batches(self.name, model, sequences, self._settings.batch):
            chosen = [sequences[i] for i in batch]
            divisors = [sizes[indices[i]] for i in batch]
            yield self.part(batch, by_metric(run(model, chosen), divisors, self.metrics, self.search_metric))

    def predictions(self, model: LiveModel, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of each token of a text, and its tokens."""
        return predicted(model, self._sequences(model, split)[0][index])

    def unpadded(self, model: LiveModel, split: Split, indices: Sequence[int]) -> list[list[int]]:
        """Return texts of the same number of tokens together."""
        sequences, _ = self._sequences(model, split)
        lengths = [len(sequences[index].tokens) for index in indices]
        return [
            [indices[i] for i in positions] for positions in of_one_length(lengths, self._settings.batch, model.device)
        ]

    def _sequences(self, model: TextModel, split: Split) -> tuple[list[Continuation], list[int]]:
        """Return the sequences and divisors of a split, computed once for all candidates of a base."""
        require_causal(self.name, model)
        key = (split, model.folder)
        if key not in self._encoded:
            self._encoded[key] = self._tokenised(model, self._texts[split])
        return self._encoded[key]

    def _tokenised(self, model: TextModel, values: Sequence[str]) -> tuple[list[Continuation], list[int]]:
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
