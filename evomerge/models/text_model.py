"""TextModel: what tasks of texts read of a model before they score it, whatever runs it."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextModel(Protocol):
    """A model with the weights of the candidate that it was refitted with last: a `LiveModel` or an `EngineModel`."""

    folder: Path
    """The base's folder."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, which has a padding token."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a generated text."""

    @property
    def causal(self) -> bool:
        """Whether it is a causal language model."""

    @property
    def positions(self) -> int | None:
        """The most tokens of a sequence, None where that is not known."""

    @property
    def embedded(self) -> int | None:
        """The number of rows of the embedding of tokens, None where that is not known."""
