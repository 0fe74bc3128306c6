"""Parameters of stages and methods: their valid values, and the value for one tensor and one input."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe import Place, Tiled


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a stage. `low` and `high` bound its valid values; `search` is the range to search.

    A parameter with `choices` is one of these words, or, if it has bounds too, a number. `per_input` parameters may differ
    between inputs (`per: [expert]`).
    """

    about: str
    default: float | str
    low: float = float("inf")
    high: float = -float("inf")
    search: tuple[float, float] | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()
    per_input: bool = True

    @classmethod
    def word(cls, about: str, choices: tuple[str, ...]) -> "Parameter":
        """Return a parameter that is one of `choices` for all inputs; the first is the default."""
        return cls(about, choices[0], choices=choices, per_input=False)

    @classmethod
    def share(cls, about: str, default: float, search: tuple[float, float] = (0.0, 1.0)) -> "Parameter":
        """Return a parameter that is one number in [0, 1] for all inputs."""
        return cls(about, default, 0.0, 1.0, search, per_input=False)

    @property
    def is_word(self) -> bool:
        """Whether the parameter is never a number."""
        return self.low > self.high

    def with_default(self, default: float | str) -> "Parameter":
        """Return the same parameter with another default."""
        return dataclasses.replace(self, default=default)

    def check(self, name: str, value: Any) -> None:
        """Raise `RecipeError` unless `value` (one value, or a table) is valid everywhere."""
        if isinstance(value, Tiled):
            if not self.per_input and "expert" in value.per:
                raise RecipeError(f"parameter `{name}` is one number for all inputs; remove `expert` from its `per`")
            if self.choices and any(axis.startswith("depth") for axis in value.per):
                raise RecipeError(f"parameter `{name}` is a word, which `depth/N` cannot interpolate; use `block/N`")
            for entry in entries(value.values):
                self.check(name, entry)
            return
        if value in self.choices:
            return
        if (
            self.is_word
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
            or (self.integer and value != int(value))
        ):
            raise RecipeError(f"parameter `{name}` is {value!r}; expected {self.expected}")

    @property
    def expected(self) -> str:
        """The valid values, in words for an error."""
        words = f"one of {', '.join(self.choices)}" if self.choices else ""
        if self.is_word:
            return words
        number = f"{'an integer' if self.integer else 'a number'} in [{self.low:g}, {self.high:g}]"
        return f"{number}, or {words}" if words else number


def entries(table: Any) -> list[Any]:
    """Return the entries of a table's nested mappings and lists, in order."""
    if isinstance(table, dict):
        table = tuple(table.values())
    return [entry for inner in table for entry in entries(inner)] if isinstance(table, list | tuple) else [table]


def at(value: Any, place: Place, label: str | None = None) -> Any:
    """Return a parameter's value for a tensor at `place` of the input `label`."""
    return value.at(place, label) if isinstance(value, Tiled) else value


def resolve(parameter: Parameter, value: Any, place: Place, labels: Sequence[str]) -> Any:
    """Return a parameter's value at `place`: a tuple `(K,)` of numbers where it is per input, else one number or word."""
    if parameter.per_input and not parameter.is_word:
        return tuple(at(value, place, label) for label in labels)
    return at(value, place)
