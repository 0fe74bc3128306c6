"""Vocabulary: the tokens of the merges of a pool whose models have tokenizers of their own, and which row has which token.

Rows of embeddings and heads are matched by token, never by number. A row without a token, as where an embedding is padded to
a multiple, is matched by its number with rows that have no token either.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.text_folder import settings_by_tokens, write_text
from evomerge.checkpoints.tokens import Tokens, core_differences, read_tokens
from evomerge.errors import PoolError, nearest
from evomerge.recipe.validation import FrozenModel

_SHOWN = 5  # tokens that a message names


class TokenizerChoice(FrozenModel):
    """Which tokens the merges of a pool have. The short form `tokenizer: union` is `{source: union}`."""

    source: str = "union"
    """`union`: the base's tokens (those of `like`, where given), then what only other models have. `base`, or an expert: its
    tokens alone."""
    missing: Literal["base", "mean", "zero"] = "base"
    """What the row of a token is in a model that lacks it. `base`: the base's row. `mean`: the mean of the models that have
    it. In both, the base's own row is the mean of the experts that have it. `zero`: zeros in the base, and the base's row in
    the experts."""
    pad_to: int | None = Field(default=None, ge=1)
    """The number of rows is a multiple of this. By default as many as the tokenizer's own model has, and more only where the
    tokens need them."""
    force: bool = False
    """Whether to match tokens of tokenizers that differ in more than added tokens."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        return {"source": data} if isinstance(data, str) else data


class Vocabulary:
    """The tokens of a pool's merges by number, and for each model which of its rows belongs to which of them.

    `numbers` is the number of each token, `rows` the number of rows of every tensor in `tensors`, padding included, `owner`
    the model whose tokenizer it is (extended, for a union), and `folder` has that tokenizer, the configuration, and the
    generation settings, by the new numbers.
    """

    def __init__(
        self,
        choice: TokenizerChoice,
        models: Mapping[str, Folder | Adapter],
        tensors: frozenset[str],
        *,
        ignored: frozenset[str] = frozenset(),
        like: str | None = None,
    ) -> None:
        """Read the tokenizers of `models`, the base first. Raises `PoolError` for what cannot be matched.

        `tensors` have a row for each token; those of them that are `ignored` are the base's in every model.
        """
        self.choice, self.tensors, self.ignored = choice, tensors, tensors & ignored
        self.owner = _owner(choice, models, like)
        self._counts = {
            (label, name): model.info[name].shape[0]
            for label, model in models.items()
            for name in tensors
            if name in model.info and (label == "base" or name not in self.ignored)
        }
        self._tables: dict[tuple[str, int], torch.Tensor] = {}
        self.notes: list[str] = []
        self._own = self._read(models)
        self._check_cores(models)
        more: list[tuple[Path, str]] = []
        known = set(self._own[self.owner].numbers)
        for label, tokens in self._own.items() if choice.source == "union" else ():
            new = [token for token in tokens.numbers if token not in known and self._has_row(label, token)]
            known.update(new)
            more += [(models[label].path, token) for token in new]
        self.folder, self.numbers = write_text(
            owner=models[self.owner].path,
            base=models["base"].path,
            more=more,
            ours=self._own["base"].numbers,
            numbers=self._own[self.owner].numbers,
            rows=self._rows,
        )
        self.rows = self._rows(self.numbers)
        self._check_rows()
        if different := self._special_tokens():
            self.notes.append(f"special tokens differ: {'; '.join(different)}. A merge has those of {self.owner}")

    @property
    def summary(self) -> str:
        """The rows in words: how many tokens are shared, which are those of some models alone, and which are left out."""
        union = self.choice.source == "union"
        groups: dict[str, list[str]] = {}
        for token in self.numbers:
            having = [label for label, tokens in self._own.items() if token in tokens.numbers]
            groups.setdefault(" and ".join(having), []).append(token)
        shared = len(groups.pop(" and ".join(self._own), ()))
        parts = [f"{shared:,} tokens of all models"]
        parts += [f"{len(tokens):,} of {who} ({_listed(tokens)})" for who, tokens in groups.items()]
        for label, tokens in self._own.items():
            if left := [token for token in tokens.numbers if token not in self.numbers]:
                parts.append(f"without {len(left):,} of {label} ({_listed(left)})")
        source = (
            f"the tokens of {self.owner}, then those that only others have" if union else f"the tokens of {self.owner}"
        )
        return f"{source}: {', '.join(parts)}; {self.rows:,} rows, {self.rows - len(self.numbers):,} without a token"

    @property
    def digest(self) -> str:
        """The sha256 of everything that decides which row of a model goes where."""
        tokens = {label: sorted(tokens.numbers.items()) for label, tokens in self._own.items()}
        content = [self.choice.model_dump(), self.owner, sorted(self.numbers.items()), self.rows, tokens]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def is_bases(self) -> bool:
        """Whether merges have as many rows as the base, and each row is for what it is for there."""
        names = [name for label, name in self._counts if label == "base"]
        return all(torch.equal(self.index("base", name), torch.arange(self._counts["base", name])) for name in names)

    def index(self, label: str, name: str) -> torch.Tensor:
        """Return the model's own row for each row of the merges, int64 `(rows,)`; -1 where it has none."""
        at = label, self._counts[label, name]
        if at not in self._tables:
            own = {key: row for row, key in enumerate(_keys(self._own[label].numbers, at[1]))}
            self._tables[at] = torch.tensor([own.get(key, -1) for key in _keys(self.numbers, self.rows)])
        return self._tables[at]

    def settings(self, label: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return `config`, which names the tokens of the model `label`, by those of merges. Raises `PoolError` naming `where` it is."""
        return settings_by_tokens(config, self._own[label].numbers, self.numbers, self.rows, where)

    def _read(self, models: Mapping[str, Folder | Adapter]) -> dict[str, Tokens]:
        read = {label: read_tokens(model.path) for label, model in models.items()}
        base, owner = read["base"], read[self.owner]
        if base is None or owner is None:
            label = "base" if base is None else self.owner
            msg = f"{models[label].path}: no tokenizer here, whose tokens `tokenizer` could match; expected tokenizer.json or the like beside the weights of the {'base' if label == 'base' else f'expert `{label}`'}"
            raise PoolError(msg)
        own = {}
        for label, tokens in read.items():
            counts = {name: self._counts.get((label, name)) for name in self.tensors}
            if tokens is None and any(count != self._counts.get(("base", name)) for name, count in counts.items()):
                msg = f"expert `{label}` ({models[label].path}) has {max(count or 0 for count in counts.values())} rows of tokens and no tokenizer that names them; expected its tokenizer beside its weights"
                raise PoolError(msg)
            if tokens is None and isinstance(models[label], Folder):
                self.notes.append(f"`{label}` has no tokenizer: its rows are taken to be those of the base's tokens")
            own[label] = tokens or base
        return own

    def _check_cores(self, models: Mapping[str, Folder | Adapter]) -> None:
        for label, tokens in self._own.items():
            different = core_differences(self._own[self.owner], tokens)
            if not different:
                continue
            words = f"the tokenizer of `{label}` ({models[label].path}) differs from that of `{self.owner}` in more than added tokens: {'; '.join(different)}"
            if not self.choice.force:
                msg = f"{words}. Merges split text as that of `{self.owner}` does, so `{label}` would read text in pieces that it was not trained on. Expected fine-tunes of one base; to match the tokens all the same, type `tokenizer: {{source: {self.choice.source}, force: true}}`"
                raise PoolError(msg)
            self.notes.append(
                f"{words}. Merges split text as that of `{self.owner}` does; a token that only `{label}` has is found where the text holds it letter for letter"
            )

    def _check_rows(self) -> None:
        """Raise `PoolError` for tokens that no model has a row for."""
        nowhere = [token for token in self.numbers if not any(self._has_row(label, token) for label in self._own)]
        if nowhere:
            owner = {name: count for (label, name), count in self._counts.items() if label == self.owner}
            name = min(owner, key=owner.__getitem__)
            msg = f"the tokenizer of `{self.owner}` has tokens beyond the embedding: {_listed(nowhere)}, and `{name}` has {owner[name]} rows there; no model of the pool has a row for them. Expected the tokenizer that the models were trained with"
            raise PoolError(msg)

    def _has_row(self, label: str, token: str) -> bool:
        """Return whether a model has the token, and a row for it in every tensor."""
        number = self._own[label].numbers.get(token)
        return number is not None and number < min(
            count for (model, _), count in self._counts.items() if model == label
        )

    def _rows(self, numbers: Mapping[str, int]) -> int:
        needed = max(numbers.values()) + 1
        if self.choice.pad_to is not None:
            return math.ceil(needed / self.choice.pad_to) * self.choice.pad_to
        return max(needed, *(count for (label, _), count in self._counts.items() if label == self.owner))

    def _special_tokens(self) -> list[str]:
        notes = []
        for role in ("bos", "eos", "pad", "unk"):
            groups: dict[str, list[str]] = {}
            for label, tokens in self._own.items():
                token = tokens.special.get(role)
                groups.setdefault("none" if token is None else f"`{token}`", []).append(label)
            if len(groups) > 1:
                notes.append(f"{role} " + ", ".join(f"{token} ({', '.join(who)})" for token, who in groups.items()))
        return notes


def _owner(choice: TokenizerChoice, models: Mapping[str, Folder | Adapter], like: str | None) -> str:
    if choice.source == "union":
        return like or "base"
    if choice.source not in models:
        known = ["union", *models]
        raise PoolError(f"`tokenizer`: `source` is `{choice.source}`; {nearest(choice.source, known)}")
    if like not in (None, choice.source):
        msg = f"`tokenizer` takes the tokenizer of `{choice.source}`, and `like` that of `{like}`; leave out `like`, or type `tokenizer: union`"
        raise PoolError(msg)
    return choice.source


def _keys(numbers: Mapping[str, int], count: int) -> list[str | int]:
    """Return for each of `count` rows its token, or its number where it has none."""
    keys: list[str | int] = list(range(count))
    for token, number in numbers.items():
        if number < count:
            keys[number] = token
    return keys


def _listed(tokens: list[str]) -> str:
    more = f", … {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return ", ".join(f"`{token}`" for token in tokens[:_SHOWN]) + more
