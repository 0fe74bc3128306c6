"""Tokens: what a folder's tokenizer says, as far as the rows of a model depend on it; read by transformers, compared here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints.beside import has_tokenizer


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer's tokens by number, and the rest of what it is."""

    numbers: Mapping[str, int]
    """The number of each token, added ones included, in the order of the numbers."""
    added: frozenset[str]
    """The tokens that are found in a text before it is split."""
    special: Mapping[str, str]
    """The tokens for the roles `bos`, `eos`, `pad` and `unk`."""
    core: Mapping[str, Any]
    """What splits the text: `type`, `vocabulary` (the model's, by number or score), `merges`, `normalizer`, ...: JSON data."""


def read_tokens(folder: Path) -> Tokens | None:
    """Return what the tokenizer in `folder` says, None where there is none. Raises `ModelError` where it cannot be read."""
    if not has_tokenizer(folder):
        return None
    from evomerge.models import tokenizers  # transformers knows its tokenizers

    return tokenizers.read(folder)


def extended(folder: Path, more: Sequence[tuple[Path, str]], out: Path) -> Mapping[str, int]:
    """Write the tokenizer in `folder` to `out` with `more` added tokens, each of another tokenizer; return its numbers."""
    from evomerge.models import tokenizers

    return tokenizers.extend(folder, more, out)


def core_differences(left: Tokens, right: Tokens) -> list[str]:
    """Return in words how two tokenizers differ, beside tokens that were added to them."""
    if left.core["type"] != right.core["type"]:
        return [f"it is {right.core['type']}, not {left.core['type']}"]
    words = []
    ours, theirs = (
        {token: value for token, value in one.core["vocabulary"].items() if token not in left.added | right.added}
        for one in (left, right)
    )
    more, fewer = len(theirs.keys() - ours.keys()), len(ours.keys() - theirs.keys())
    if more or fewer:
        words.append(f"{more:,} tokens of its own, and {fewer:,} that it lacks")
    keys = [key for key in sorted(left.core.keys() | right.core.keys()) if key != "vocabulary"]
    words += [f"another `{key}`" for key in keys if left.core.get(key) != right.core.get(key)]
    return words
