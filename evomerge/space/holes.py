"""Holes of a template, and the genes that they expand to."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import RecipeError, SpaceError, nearest
from evomerge.recipe import NODES, Json, Place, Recipe, canonical_json, short_forms
from evomerge.recipe.form import KeyPath, ShortForm
from evomerge.recipe.layer_path import LayerPath
from evomerge.recipe.tiling import axis_size, check_axes
from evomerge.space import nested
from evomerge.space.mixtures import Mixture

Genome = NDArray[np.float64]
Kind = Literal["float", "int", "choice", "bit"]

HOLES = ("float", "int", "choice", "bit", "mixture")
_OPTIONS = ("init", "log", "per", "sd")
_HUGE = 1e300


@dataclass(frozen=True, slots=True)
class Outline:
    """What a space knows of the pool's model: its kinds of tensor, its towers, the names of its merged tensors, its number of blocks."""

    kinds: tuple[str, ...]
    tensors: tuple[str, ...]
    blocks: int | None
    towers: tuple[str, ...]

    @property
    def places(self) -> list[Place]:
        """Return places with each kind in each block of each tower, and with each tensor; which of them the model has is unknown."""
        blocks = self.blocks or 0
        places = list(itertools.product(range(blocks), self.kinds, self.towers))
        count = max(len(places), len(self.tensors)) if places else 0
        names = self.tensors or ("",)
        return [
            Place(block, blocks, kind, tensor=names[i % len(names)], tower=tower)
            for i, (block, kind, tower) in enumerate(itertools.islice(itertools.cycle(places), count))
        ]


@dataclass(frozen=True, slots=True)
class Gene:
    """One number of a genome. For a choice it is the index of an option, for a bit 0 or 1."""

    name: str
    kind: Kind
    low: float
    high: float
    init: float
    log: bool = False
    choices: tuple[Json, ...] = ()
    sd: float | None = None
    """Standard deviation around `init` of a random gene; None draws uniformly over the range."""

    def value(self, number: float) -> Json:
        """Return the recipe's value for the gene's `number`, clipped into the range."""
        if self.kind == "float":
            return float(min(max(number, self.low), self.high))
        integer = self.rounded(number)
        return self.choices[integer] if self.kind == "choice" else bool(integer) if self.kind == "bit" else integer

    def rounded(self, number: float) -> int:
        """Return the integer nearest to `number` in the gene's range."""
        return math.floor(min(max(number, self.low), self.high) + 0.5)

    def number(self, value: Any) -> float:
        """Return the number for a recipe's value, the inverse of `value`. Raises `SpaceError` outside the range."""
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
        raise SpaceError(f"gene `{self.name}`: expected {expected}, got {'nothing' if value is None else repr(value)}")


@dataclass(frozen=True, slots=True)
class Hole:
    """The place of a hole in the template, and of its genes in the genome. Not to be confused with its content, a mapping."""

    path: KeyPath
    within: tuple[tuple[int, int], ...]
    """(index of the hole, option) of each choice around it, from the outside in."""
    choice: bool
    """Whether it is a choice without `per`, whose options may have holes."""
    per: tuple[str, ...]
    axes: tuple[tuple[str | int, ...], ...]
    """The keys along each axis of `per`."""
    start: int
    """The index of its first gene."""
    mixture: Mixture | None = None

    @property
    def keys(self) -> list[KeyPath]:
        """One key into the table for each value; the key () for a hole that is not tiled."""
        return list(itertools.product(*self.axes))

    @property
    def genes(self) -> slice:
        """The slice of the genome: a gene for each value, except of a mixture with a fixed total."""
        fixed = self.mixture is not None and self.mixture.low == self.mixture.high
        return slice(self.start, self.start + math.prod(len(axis) for axis in self.axes) - fixed)

    def values(self, genes: Sequence[Gene], numbers: Sequence[float]) -> list[Any]:
        """Return the recipe's values, in the order of `keys`, for the numbers of the hole's `genes`."""
        values = [gene.value(number) for gene, number in zip(genes, numbers, strict=True)]
        return values if self.mixture is None else self.mixture.weights(np.array(values, np.float64)).tolist()

    def numbers(self, genes: Sequence[Gene], values: Sequence[Any]) -> list[float]:
        """Return the numbers of the hole's `genes` for a recipe's values, the inverse of `values`. Raises `SpaceError`."""
        if self.mixture is not None:
            name = genes[0].name.partition("[")[0] if genes else "mixture"
            weights = [Gene(name, "float", 0.0, self.mixture.high, 0.0).number(value) for value in values]
            values = self.mixture.numbers(np.array(weights)).tolist()
            if self.mixture.low == self.mixture.high and abs(sum(weights) - self.mixture.low) > 1e-9:
                raise SpaceError(f"hole `{name}`: weights sum to {sum(weights):g}; expected {self.mixture.low:g}")
        return [gene.number(value) for gene, value in zip(genes, values, strict=True)]


def expand(
    hole: Mapping[str, Any],
    name: str,
    labels: tuple[str, ...],
    form: ShortForm | None,
    key: str,
    outline: Outline,
) -> tuple[list[Gene], tuple[tuple[str | int, ...], ...]]:
    """Return the genes of a hole and the keys along each axis of its `per`. Raises `SpaceError` or `RecipeError`.

    `labels` are those of the merge around it. `form` is the short form that it is the value of `key` in, or None.
    `outline` is that of the pool's model.
    """
    if "mixture" in hole:
        return _expand_mixture(name, hole, labels)
    kind, low, high, choices = _read_range(name, hole)
    if kind == "bit" and not (isinstance(form, LayerPath) and key == "include" and hole.get("per")):
        raise SpaceError(
            f"hole `{name}`: a bit stands at the `include` of a stack's `path`; type {{bit: first, per: [slot]}} there"
        )
    init, log, sd = hole.get("init"), hole.get("log", False), hole.get("sd")
    if not isinstance(log, bool) or (log and (kind == "choice" or low <= 0)):
        msg = f"hole `{name}`: `log` is {log!r} over [{low:g}, {high:g}]; expected true or false, and a positive range for true"
        raise SpaceError(msg)
    if init is None:
        middle = math.sqrt(low * high) if log else (low + high) / 2
        by_kind = {"float": middle, "int": round(middle), "bit": hole.get("bit")}
        init = choices[0] if kind == "choice" else by_kind[kind]
    if sd is not None and (
        kind != "float" or log or isinstance(sd, bool) or not isinstance(sd, int | float) or not 0 < sd < math.inf
    ):
        raise SpaceError(f"hole `{name}`: `sd` is {sd!r}; expected a number above 0, of a `float` without `log`")
    axes: list[list[tuple[str | int, str]]] = []
    if "per" in hole and form is not None:
        axes = [list(enumerate(texts)) for texts in form.cells(key, hole["per"], outline.blocks or 0)]
    elif "per" in hole:
        check_axes(hole["per"])
        axes = [_axis(name, axis, labels, outline) for axis in hole["per"]]
    cells = list(itertools.product(*axes))
    gene = Gene(name, kind, low, high, low, log, choices, sd)
    if kind == "bit" and init == "first" and isinstance(form, LayerPath):
        starts = [float(first) for first in form.first(outline.blocks or 0)]
    else:
        starts = [gene.number(init)] * len(cells)
    genes = [
        replace(gene, name=name + (f"[{','.join(text for _, text in cell)}]" if cell else ""), init=start)
        for cell, start in zip(cells, starts, strict=True)
    ]
    return genes, tuple(tuple(key for key, _ in axis) for axis in axes)


def _expand_mixture(
    name: str, hole: Mapping[str, Any], labels: tuple[str, ...]
) -> tuple[list[Gene], tuple[tuple[str | int, ...], ...]]:
    """Return the genes of a mixture of the inputs `labels`, and the labels. Raises `SpaceError`."""
    given = hole["mixture"]
    low, high = given if isinstance(given, list) and len(given) == 2 else (given, given)
    numbers = all(isinstance(b, int | float) and not isinstance(b, bool) and 0 <= b < _HUGE for b in (low, high))
    fixed = not isinstance(given, list)
    if not numbers or not (low == high > 0 if fixed else low < high):
        msg = f"hole `{name}`: `mixture` is {given!r}; expected the total of the weights, a number above 0 or [low, high], 0 or more"
        raise SpaceError(msg)
    if hole.get("per") != ["expert"] or len(labels) < 2 or set(hole) - {"mixture", "per", "init"}:
        msg = f"hole `{name}`: expected `per: [expert]` of two inputs or more, and no other key but `init`"
        raise SpaceError(msg)
    init = hole.get("init", low if fixed else min(max(1.0, low), high))
    total = Gene(f"{name}[total]", "float", float(low), float(high), float(low))
    count = len(labels) - 1
    equal = [(1 - 1 / (count + 1 - i)) ** (count - i) for i in range(count)]
    genes = [
        Gene(f"{name}[after {label}]", "float", 0.0, 1.0, share) for label, share in zip(labels, equal, strict=False)
    ]
    return ([] if fixed else [replace(total, init=total.number(init))]) + genes, (labels,)


def _axis(name: str, axis: str, labels: tuple[str, ...], outline: Outline) -> list[tuple[str | int, str]]:
    """Return the key and the name of each cell along an axis of the hole `name`."""
    if axis == "expert":
        if not labels:
            msg = f"hole `{name}`: `per: [expert]` stands outside any merge; expected it among a merge's parameters"
            raise SpaceError(msg)
        return [(label, label) for label in labels]
    named = {"kind": outline.kinds, "tower": outline.towers, "tensor": outline.tensors}
    if axis in named:
        return [(entry, entry) for entry in named[axis]]
    blocks = outline.blocks
    size, word = axis_size(axis), axis.partition("/")[0]
    if word == "block" and blocks is not None and size > blocks:
        msg = f"hole `{name}`: `{axis}` makes {size} groups, but the model has {blocks} blocks; type `block/{blocks}` or less"
        raise SpaceError(msg)
    return [(i, f"{word} {i}") for i in range(size)]


def form_around(template: Any, path: KeyPath) -> ShortForm | None:
    """Return the short form of which the value at `path` is a direct value, not part of a source; None if there is none."""
    inside = path[-3:-1] in (("stack", "path"), ("stack", "swap"))
    return short_forms.form_of(nested.get(template, path[:-2])) if inside else None


def _read_range(name: str, hole: Mapping[str, Any]) -> tuple[Kind, float, float, tuple[Json, ...]]:
    """Return a hole's kind, its lowest and highest number, and a choice's options. Raises `SpaceError`."""
    for key in hole:
        if key not in HOLES + _OPTIONS:
            raise SpaceError(f"hole `{name}`: unknown key `{key}`; {nearest(str(key), HOLES + _OPTIONS)}")
    kinds = [kind for kind in HOLES if kind in hole]
    kind: Kind = kinds[0]  # type: ignore[assignment]  # one of HOLES but `mixture`
    if len(kinds) > 1:
        raise SpaceError(f"hole `{name}`: has {' and '.join(kinds)}; expected one of them")
    if kind == "choice":
        options = hole["choice"]
        if not isinstance(options, list) or len(options) < 2:
            raise SpaceError(f"hole `{name}`: `choice` is {options!r}; expected a list of two or more options")
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
    data: Any, path: KeyPath, labels: tuple[str, ...]
) -> Iterator[tuple[KeyPath, tuple[str, ...], Mapping[str, Any]]]:
    """Yield the path of each hole, the labels of the merge around it, and its content, in order."""
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


def choices_around(path: KeyPath, places: list[KeyPath]) -> tuple[tuple[int, int], ...]:
    """Return (index of the hole, option) of each choice that `path` leads through."""
    choices = []
    for length in range(len(path) - 1):
        option = path[length + 1]
        if path[:length] in places and path[length] == "choice" and isinstance(option, int):
            choices.append((places.index(path[:length]), option))
    return tuple(choices)


def name_of(path: KeyPath, places: list[KeyPath]) -> str:
    """Return the shortest dotted suffix of `path` that no other hole has."""
    words = [str(part) for part in path if part != "parameters"]
    others = [[str(part) for part in other if part != "parameters"] for other in places if other != path]
    for size in range(1, len(words) + 1):
        if all(other[-size:] != words[-size:] for other in others):
            return ".".join(words[-size:])
    return ".".join(words)


def unwrapped(value: Any, option: Any) -> Any:
    """Return the entry of a list of one, such as stages, if the space has that entry without the list."""
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(option, list) else value


def _fits(option: Any, value: Any) -> bool:
    """Return whether `value`, from a recipe, is `option` with any values in its holes."""
    if isinstance(option, Mapping):
        if any(kind in option for kind in HOLES):
            return value is not None
        if isinstance(value, Mapping) and any(True for _ in find_holes(option, (), ())):
            return option.keys() == value.keys() and all(_fits(option[key], value[key]) for key in option)
    if isinstance(option, list) and isinstance(value, list) and any(True for _ in find_holes(option, (), ())):
        return len(option) == len(value) and all(_fits(a, b) for a, b in zip(option, value, strict=True))
    return _alike(option, value)


def _alike(option: Json, value: Any) -> bool:
    """Return whether `value`, from a recipe, is `option`, which may be written in a short form."""
    if isinstance(value, Mapping) and set(value) <= set(NODES):
        try:
            return Recipe.parse(option) == Recipe.parse(value)
        except RecipeError:
            return False
    return canonical_json(option) == canonical_json(value)
