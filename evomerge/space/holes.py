"""What a hole is: where it stands in a template, what it may hold, and the genes that it makes."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import RecipeError, SpaceError, nearest
from evomerge.recipe import NODES, Json, Recipe, canonical_json, short_forms

Genome = NDArray[np.float64]
Kind = Literal["float", "int", "choice", "bit"]

HOLES = ("float", "int", "choice", "bit")
_OPTIONS = ("init", "log", "per", "sd")
_HUGE = 1e300


@dataclass(frozen=True, slots=True)
class Gene:
    """One number of a genome. For a choice, `low` is 0, `high` the last option's index and `init` an index; a bit is 0 or 1."""

    name: str
    kind: Kind
    low: float
    high: float
    init: float
    log: bool = False
    choices: tuple[Json, ...] = ()
    sd: float | None = None
    """Standard deviation around `init` where the gene is drawn at random; None draws evenly over the range."""

    def value(self, number: float) -> Json:
        """Return what goes into the recipe for the gene's `number`, clipped into the gene's range."""
        clipped = min(max(number, self.low), self.high)
        if self.kind == "float":
            return float(clipped)
        whole = self.rounded(number)
        return self.choices[whole] if self.kind == "choice" else bool(whole) if self.kind == "bit" else whole

    def rounded(self, number: float) -> int:
        """Return the whole number nearest to `number` in the gene's range."""
        return math.floor(min(max(number, self.low), self.high) + 0.5)

    def number(self, value: Any) -> float:
        """Return the number whose `value` is `value`; the inverse of `value`. Raises `SpaceError` outside the range."""
        if self.kind == "choice":
            for index, option in enumerate(self.choices):
                if _fits(option, unwrapped(value, option)):
                    return float(index)
        elif (
            isinstance(value, int | float)
            and isinstance(value, bool) == (self.kind == "bit")
            and self.low <= value <= self.high
            and (self.kind == "float" or float(value).is_integer())
        ):
            return float(value)
        expected = {
            "float": f"a number in [{self.low:g}, {self.high:g}]",
            "int": f"an integer in [{self.low:g}, {self.high:g}]",
            "choice": f"one of {list(self.choices)}",
            "bit": "true or false",
        }[self.kind]
        msg = f"gene `{self.name}`: expected {expected}, got {'nothing' if value is None else repr(value)}"
        raise SpaceError(msg)


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a hole is in the template (`path`), and which of the genome's numbers fill it."""

    path: short_forms.Where
    # (number of the hole, its option) of each choice around it, from the outside in
    within: tuple[tuple[int, int], ...]
    choice: bool  # one choice for all, whose options may have holes
    per: tuple[str, ...]
    axes: tuple[tuple[str | int, ...], ...]  # the keys along each axis of `per`
    start: int

    @property
    def keys(self) -> list[short_forms.Where]:
        """One key into the table for each gene; the one key () when the hole is not tiled."""
        return list(itertools.product(*self.axes))

    @property
    def genes(self) -> slice:
        """The hole's part of the genome."""
        return slice(self.start, self.start + math.prod(len(axis) for axis in self.axes))


def read_range(name: str, hole: Mapping[str, Any]) -> tuple[Kind, float, float, tuple[Json, ...]]:
    """Return a hole's kind, its lowest and highest number, and a choice's options. Raises `SpaceError`."""
    for key in hole:
        if key not in HOLES + _OPTIONS:
            msg = f"hole `{name}`: unknown key `{key}`; {nearest(str(key), HOLES + _OPTIONS)}"
            raise SpaceError(msg)
    kinds = [kind for kind in HOLES if kind in hole]
    kind: Kind = kinds[0]  # type: ignore[assignment]  # one of HOLES by construction
    if len(kinds) > 1:
        msg = f"hole `{name}`: has {' and '.join(kinds)}; expected one of them"
        raise SpaceError(msg)
    if kind == "choice":
        options = hole["choice"]
        if not isinstance(options, list) or len(options) < 2:
            msg = f"hole `{name}`: `choice` is {options!r}; expected a list of two or more options"
            raise SpaceError(msg)
        if "per" in hole and any(True for _ in find_holes(options, (), ())):
            msg = f"hole `{name}`: an option holds another hole, which a choice with `per` cannot have; leave out `per`"
            raise SpaceError(msg)
        if any(short_forms.form_of(stack) for stack in short_forms.stacks(options)):
            msg = f"hole `{name}`: an option is a stack with a `path` or `swap`, which only the space itself can have; type `slots`"
            raise SpaceError(msg)
        return kind, 0.0, float(len(options) - 1), tuple(options)
    if kind == "bit":
        if "init" in hole or not (isinstance(hole["bit"], bool) or hole["bit"] == "first"):
            msg = f"hole `{name}`: `bit` is {hole['bit']!r}; expected how it starts: true, false, or `first`, and no `init`"
            raise SpaceError(msg)
        return kind, 0.0, 1.0, ()
    bounds = hole[kind]
    number = int if kind == "int" else (int, float)
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(isinstance(b, number) and not isinstance(b, bool) and abs(b) < _HUGE for b in bounds)
        or not bounds[0] < bounds[1]
    ):
        msg = f"hole `{name}`: `{kind}` is {bounds!r}; expected two finite numbers [low, high] with low < high"
        raise SpaceError(msg)
    return kind, float(bounds[0]), float(bounds[1]), ()


def find_holes(
    data: Any, path: short_forms.Where, labels: tuple[str, ...]
) -> Iterator[tuple[short_forms.Where, tuple[str, ...], Mapping[str, Any]]]:
    """Yield each hole's path, the labels of the inputs of the merge around it, and its content, in order."""
    if isinstance(data, Mapping):
        if any(kind in data for kind in HOLES):
            yield path, labels, data
            if isinstance(options := data.get("choice"), list):
                yield from find_holes(options, (*path, "choice"), labels)
            return
        if isinstance(data.get("inputs"), list):
            labels = _labels(data["inputs"])
        for key, value in data.items():
            yield from find_holes(value, (*path, key), labels)
    elif isinstance(data, list):
        for i, value in enumerate(data):
            yield from find_holes(value, (*path, i), labels)


def _labels(inputs: list[Any]) -> tuple[str, ...]:
    def label(i: int, entry: Any) -> str:
        if isinstance(entry, Mapping):
            return str(entry["expert"]) if "expert" in entry else "base" if "base" in entry else f"#{i}"
        return str(entry)

    return tuple(label(i, entry) for i, entry in enumerate(inputs))


def within(path: short_forms.Where, places: list[short_forms.Where]) -> tuple[tuple[int, int], ...]:
    """Return (number of the hole, option) of each choice that `path` leads through."""
    found = []
    for length in range(len(path) - 1):
        option = path[length + 1]
        if path[:length] in places and path[length] == "choice" and isinstance(option, int):
            found.append((places.index(path[:length]), option))
    return tuple(found)


def name_of(path: short_forms.Where, places: list[short_forms.Where]) -> str:
    """Return the shortest tail of `path`, in dots, that no other hole shares."""
    words = [str(part) for part in path if part != "parameters"]
    others = [[str(part) for part in other if part != "parameters"] for other in places if other != path]
    for size in range(1, len(words) + 1):
        if all(other[-size:] != words[-size:] for other in others):
            return ".".join(words[-size:])
    return ".".join(words)


def unwrapped(value: Any, option: Any) -> Any:
    """Return the one entry of a recipe's list where the space has that entry alone, as of stages."""
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(option, list) else value


def _fits(option: Any, value: Any) -> bool:
    """Tell whether `value`, from a recipe, is what a recipe makes of `option`, with any numbers in the option's holes."""
    if isinstance(option, Mapping):
        if any(kind in option for kind in HOLES):
            return value is not None
        if isinstance(value, Mapping) and any(True for _ in find_holes(option, (), ())):
            return option.keys() == value.keys() and all(_fits(option[key], value[key]) for key in option)
    if isinstance(option, list) and isinstance(value, list) and any(True for _ in find_holes(option, (), ())):
        return len(option) == len(value) and all(_fits(a, b) for a, b in zip(option, value, strict=True))
    return _alike(option, value)


def _alike(option: Json, value: Any) -> bool:
    """Tell whether `value`, from a recipe, is what a recipe makes of `option`."""
    if isinstance(value, Mapping) and set(value) <= set(NODES):  # what an option may be short for
        try:
            return Recipe.parse(option) == Recipe.parse(value)
        except RecipeError:
            return False
    return canonical_json(option) == canonical_json(value)
