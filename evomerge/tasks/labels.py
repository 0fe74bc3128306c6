"""Labels of classes as numbers: given as numbers, or as words with a map from words to numbers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import nearest
from evomerge.tasks.data import class_numbers, shown, task_error
from evomerge.trial import Split

Map = Mapping[str, int]
"""Class number by word."""


def check_words(labels: Any) -> Any:
    """Return `labels` as they are in a task's settings. Raises `ValueError` for anything but words, or a number by word."""
    words = list(labels) if isinstance(labels, list | tuple | Mapping) else []
    numbers = list(labels.values()) if isinstance(labels, Mapping) else []
    right = all(isinstance(word, str) for word in words) and all(type(number) is int for number in numbers)
    if labels is not None and not (words and right):
        msg = f"expected words in the order of the classes, `[cat, dog]`, or the number of each, `{{cat: 0, dog: 1}}`, got {labels!r}"
        raise ValueError(msg)
    return labels


class Labels:
    """The labels of a task's examples, by split. Numbers stay; words become numbers by a map.

    The map is that of the task, else that of the model's configuration (`id2label`), else the words in sorted order.
    """

    def __init__(
        self,
        task: str,
        column: str,
        values: Mapping[Split, Sequence[Any]],
        given: Sequence[str] | Map | None,
        classes: int | None,
    ) -> None:
        """Check the `values`. `classes` is their number where it is known. Raises `TaskError` naming the first wrong example."""
        self._task, self._column, self._classes = task, column, classes
        words = [value for listed in values.values() for value in listed if isinstance(value, str) and value.strip()]
        self._words: dict[Split, list[str]] = {}
        self._numbers: dict[Split, Tensor] = {}
        self._made: dict[tuple[Split, tuple[tuple[str, int], ...]], Tensor] = {}
        if not words or (given is None and all(word.isdecimal() for word in words)):
            if given is not None:
                msg = f"column `{column}` has numbers, and `labels` maps words to numbers; leave out `labels`"
                raise task_error(task, msg)
            for split, listed in values.items():
                self._numbers[split] = torch.tensor(class_numbers(task, column, listed, [classes] * len(listed)))
            return
        for split, listed in values.items():
            for index, value in enumerate(listed):
                if not isinstance(value, str) or not value.strip():
                    msg = f"column `{column}`, {split} example {index}: expected a word, as `{words[0]}` elsewhere, got {shown(value)}"
                    raise task_error(task, msg)
            self._words[split] = list(listed)
        self._sorted = {word: number for number, word in enumerate(sorted(set(words)))}
        if given is not None:
            pairs = list(given.items()) if isinstance(given, Mapping) else [(word, i) for i, word in enumerate(given)]
            self._check_map(pairs)
            self._apply(dict(pairs), "`labels`")
        elif classes is not None:
            self._check_count(classes, "the head")
            self._apply(self._sorted, "the data")

    def highest(self, split: Split) -> int:
        """Return the example of a split with the largest number, the first where only a model tells numbers."""
        return int(self._numbers[split].argmax()) if split in self._numbers else 0

    def numbers(self, split: Split, model: Any, classes: int) -> Tensor:
        """Return the class numbers of a split, int64 `(examples,)`, for a `model` that has `classes` logits.

        Raises `TaskError` for a label that the model does not have.
        """
        if split in self._numbers:
            return self._numbers[split]
        known = getattr(getattr(model, "config", None), "id2label", None) or {}
        if known and not all(re.fullmatch(r"LABEL_\d+", str(word)) for word in known.values()):
            return self._mapped(
                split, {str(word): int(number) for number, word in known.items()}, "the model's `id2label`"
            )
        self._check_count(classes, type(model).__name__)
        return self._mapped(split, self._sorted, "the data")

    def _check_map(self, pairs: Sequence[tuple[str, int]]) -> None:
        words, numbers = {word for word, _ in pairs}, {number for _, number in pairs}
        whole = len(words) == len(numbers) == len(pairs)
        if not whole or min(numbers) < 0 or (self._classes is not None and max(numbers) >= self._classes):
            top = "up" if self._classes is None else f"to {self._classes - 1}"
            listed = ", ".join(f"{word}: {number}" for word, number in pairs)
            msg = f"`labels`: expected different words, each with a number of its own from 0 {top}, got {{{listed}}}"
            raise task_error(self._task, msg)

    def _check_count(self, classes: int, who: str) -> None:
        if classes != len(self._sorted):
            msg = (
                f"column `{self._column}` has {len(self._sorted)} different words, and {who} has {classes} classes without names; write "
                "`labels: [WORD, WORD, ...]` in the order of the classes"
            )
            raise task_error(self._task, msg)

    def _apply(self, known: Map, source: str) -> None:
        for split in self._words:
            self._numbers[split] = self._mapped(split, known, source)

    def _mapped(self, split: Split, known: Map, source: str) -> Tensor:
        key = (split, tuple(known.items()))
        if key not in self._made:
            for index, word in enumerate(self._words[split]):
                if word not in known:
                    msg = (
                        f"column `{self._column}`, {split} example {index}: expected a label of {source} ({nearest(word, known)}), got "
                        f"{shown(word)}; correct it, or write `labels: [WORD, WORD, ...]` in the order of the classes"
                    )
                    raise task_error(self._task, msg)
            self._made[key] = torch.tensor([known[word] for word in self._words[split]])
        return self._made[key]
