"""ShortForm: what may stand in a search space or recipe file in place of a stack's `slots`. Reads its tables."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from evomerge.errors import RecipeError, nearest
from evomerge.recipe.validation import FrozenModel

KeyPath: TypeAlias = tuple[str | int, ...]
"""The keys that lead to a place in nested data."""


class ShortForm(FrozenModel, ABC):
    """A short form of a stack, or the template of one, with holes in it."""

    scale: Any = 1.0

    @abstractmethod
    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells along each axis of a table. Raises `RecipeError` if `key` has no such table."""

    @abstractmethod
    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return the slots that the form stands for. Raises `RecipeError`."""

    @abstractmethod
    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the form, as data, within its bounds. Raises `RecipeError` if it cannot be."""

    def _data(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.model_fields_set}

    def _read(self, key: str, blocks: int, expected: str) -> Any:
        """Return `key`: one value, or the nested list of a table. Raises `RecipeError` unless each is as `expected`."""
        value = getattr(self, key)
        if not isinstance(value, Mapping) or "per" not in value:
            if _CHECKS[expected](value):
                return value
            msg = f"stack: `{key}` is {value!r}; expected {expected}, or a table {{per: [...], values: [...]}}"
            raise RecipeError(msg)
        for word in value:
            if word not in ("per", "values"):
                raise RecipeError(f"stack: unknown key `{key}.{word}`; {nearest(str(word), ('per', 'values'))}")
        _check_cells(value.get("values"), self.cells(key, value["per"], blocks), f"{key}.values", expected)
        return value["values"]


def depth(source: Any, blocks: int) -> int:
    """Return the number of layers of a source's model; stacks in it must be spelled out."""
    stack = source.get("stack") if isinstance(source, Mapping) else None
    slots = stack.get("slots") if isinstance(stack, Mapping) else None
    return len(slots) if isinstance(slots, list) else blocks


def check_depth(source: Any, blocks: int, where: str) -> None:
    """Raise `RecipeError` unless a source has as many layers as the base."""
    if (layers := depth(source, blocks)) != blocks:
        raise RecipeError(
            f"stack: `{where}` is a stack of {layers} layers; expected {blocks}, as many as the base has: write `slots`"
        )


def _check_cells(values: Any, axes: Sequence[Sequence[str]], where: str, expected: str) -> None:
    if not axes:
        if not _CHECKS[expected](values):
            raise RecipeError(f"stack: `{where}` is {values!r}; expected {expected}")
        return
    if not isinstance(values, list) or len(values) != len(axes[0]):
        got = f"has {len(values)} entries" if isinstance(values, list) else f"is {values!r}"
        msg = f"stack: `{where}` {got}; expected a list of {len(axes[0])}, from {axes[0][0]} to {axes[0][-1]}"
        raise RecipeError(msg)
    for i, value in enumerate(values):
        _check_cells(value, axes[1:], f"{where}[{i}]", expected)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "a finite number": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ),
    "a recipe": lambda value: isinstance(value, str | Mapping),
}
"""Checks of a table's cells, by the words for them in messages."""
