"""Parameters of stages and methods: what each may be, and its value for one tensor and one input."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.errors import RecipeError
from evomerge.recipe import Place, Tiled


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """What one parameter of a stage may be. `low` and `high` are what is valid; `search` is the range worth searching.

    A parameter with `choices` is one of these words; otherwise it is a number. `per_input` parameters may differ from
    input to input (`per: [expert]`).
    """

    about: str
    default: float | str
    low: float = -float("inf")
    high: float = float("inf")
    search: tuple[float, float] | None = None
    log: bool = False
    choices: tuple[str, ...] = ()
    per_input: bool = True

    def with_default(self, default: float | str) -> "Parameter":
        """Return the same parameter with another default."""
        return dataclasses.replace(self, default=default)

    def check(self, name: str, value: Any) -> None:
        """Raise `RecipeError` unless `value` (one value, or a table) is valid everywhere."""
        if isinstance(value, Tiled):
            if not self.per_input and "expert" in value.per:
                msg = f"parameter `{name}` is one number for all inputs; remove `expert` from its `per`"
                raise RecipeError(msg)
            if self.choices and any(axis.startswith("depth") for axis in value.per):
                msg = f"parameter `{name}` is a word, which `depth/N` cannot interpolate; use `block/N`"
                raise RecipeError(msg)
            for entry in _entries(value.values):
                self.check(name, entry)
            return
        if self.choices:
            if value not in self.choices:
                msg = f"parameter `{name}` is {value!r}; expected one of {', '.join(self.choices)}"
                raise RecipeError(msg)
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            msg = f"parameter `{name}` is {value!r}; expected a number in [{self.low:g}, {self.high:g}]"
            raise RecipeError(msg)


def _entries(table: Any) -> list[Any]:
    if isinstance(table, dict):
        return [entry for inner in table.values() for entry in _entries(inner)]
    if isinstance(table, list | tuple):
        return [entry for inner in table for entry in _entries(inner)]
    return [table]


def at(value: Any, place: Place, label: str | None = None) -> Any:
    """Return a parameter's value for a tensor at `place` of the input `label`."""
    return value.at(place, label) if isinstance(value, Tiled) else value


def column(value: Any, place: Place, labels: Sequence[str]) -> torch.Tensor:
    """Return a number for each input, float32 `(inputs, 1)`."""
    return torch.tensor([[at(value, place, label)] for label in labels], dtype=torch.float32)
