"""Short forms of a stack: what a search space, or a recipe file, may say in place of a stack's `slots`.

`path`, the data-flow space (arXiv 2403.13187): the layers of all sources in order, all of it repeated, and which of
these slots are hops:

    stack:
      rest: base                # by default the first source
      path:
        sources: [maths, code]  # M = sources · layers of the model
        repeat: 2               # T = M · repeat slots
        include: {per: [slot], values: [true, false, …]}  # T of them; or `true`, for all
        scale: 1                # or a table of T over [slot]; or W, M · M over [from, to], where the first hop has 1
        ends: true              # the first and the last hop are the first source's first and last layer
        shortest: 0.5           # bounds on the number of hops, in multiples of the model's own number of layers
        longest: 1.25

`swap`: every layer once, in order, and from whom:

    stack:
      rest: base
      swap:
        source: {per: [layer], values: [maths, code, …]}  # or over [block/N]; or one recipe
        scale: 1                # or a table over the same

Plain data in, plain data out: `spell_out` makes slots of short forms, `fold` makes short forms of slots.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, field_validator

from evomerge.errors import RecipeError, SpaceError, nearest
from evomerge.recipe import axis_size, canonical_json, check_axes, describe

Where: TypeAlias = tuple[str | int, ...]
"""The keys that lead to a place in nested data."""

Suits: TypeAlias = Callable[[Where, Any], bool]
"""Tells whether a value can be at a place of a template: a recipe where a source is, one cell where a table is."""

IDLE: Final = object()
"""What `fold` puts where nothing depends on the value."""

_EPS = 1e-9  # 1.15 · 20 is 22.999…: bounds are meant in whole layers


_Hop: TypeAlias = tuple[int | None, int]
"""A path's hop: its slot, or None for an end that was put there; and its layer, counted through all sources."""


class Form(BaseModel, ABC):
    """A short form of a stack, or the template of one, with holes in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Any = 1.0

    @abstractmethod
    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells along each axis of a table. Raises `RecipeError` if `key` has no such table."""

    @abstractmethod
    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return the slots that the form is short for. Raises `RecipeError`."""

    @abstractmethod
    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the form, as data, within its bounds. Raises `RecipeError` if nothing is."""

    @abstractmethod
    def fold(self, slots: Sequence[Mapping[str, Any]], blocks: int, suits: Suits) -> dict[str, Any]:
        """Return what fills this template's holes to make `slots`, `IDLE` where any value would. Raises `SpaceError`."""

    def _data(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.model_fields_set}

    def _read(self, key: str, blocks: int, wanted: str) -> Any:
        """Return `key`: one value, or the nested list of a table's. Raises `RecipeError` unless each is as `wanted`."""
        value, check = getattr(self, key), _CHECKS[wanted]
        if not isinstance(value, Mapping) or "per" not in value:
            if check(value):
                return value
            msg = f"stack: `{key}` is {value!r}; expected {wanted}, or a table {{per: [...], values: [...]}}"
            raise RecipeError(msg)
        for word in value:
            if word not in ("per", "values"):
                msg = f"stack: unknown key `{key}.{word}`; {nearest(str(word), ('per', 'values'))}"
                raise RecipeError(msg)
        _check_cells(value.get("values"), self.cells(key, value["per"], blocks), f"{key}.values", wanted)
        return value["values"]


class Path(Form):
    """Which slots are hops. Slot t is layer t mod M, and layer j is layer j mod blocks of source ⌊j / blocks⌋."""

    sources: list[Any] = Field(min_length=1)
    repeat: StrictInt = Field(default=1, ge=1)
    include: Any = True
    ends: StrictBool = True
    shortest: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    longest: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: list[Any]) -> list[Any]:
        for i, source in enumerate(sources):
            if source in sources[:i]:
                msg = f"has {source!r} twice; expected each source once: type `repeat: 2` for all layers twice"
                raise ValueError(msg)
        return sources

    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells: of a slot its layer and which copy, of `from` and `to` their layer."""
        known = {"include": [["slot"]], "scale": [["slot"], ["from", "to"]]}.get(key, [])
        if per not in known:
            wanted = " or ".join(f"[{', '.join(axes)}]" for axes in known) or "no table"
            msg = f"stack: `{key}.per` is {per!r}; expected {wanted}"
            raise RecipeError(msg)
        layers = [f"{name} {layer}" for name in self.names for layer in range(blocks)]
        if len(per) > 1:
            return [layers, layers]
        return [layers if self.repeat == 1 else [f"{j} #{copy + 1}" for copy in range(self.repeat) for j in layers]]

    @property
    def names(self) -> list[str]:
        """A name for each source, all different: the expert's, `base`, or what kind of recipe it is."""
        labels = [_label(source) for source in self.sources]
        return [label if labels.count(label) == 1 else f"{label}{i}" for i, label in enumerate(labels)]

    def first(self, blocks: int) -> list[bool]:
        """Return for each slot whether it is one of the first source, in the first copy."""
        return [t < blocks for t in range(self._count(blocks))]

    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return the slots that the path is short for. Raises `RecipeError`, also for a path out of bounds."""
        hops = self._hops(self._on(blocks), blocks)
        fewest, most = self._bounds(blocks)
        if not fewest <= len(hops) <= most:
            more, bound = ("more", "shortest") if len(hops) < fewest else ("fewer", "longest")
            msg = (
                f"stack: the path has {len(hops)} hops; expected {fewest} to {most} over a model of {blocks} layers: "
                f"include {more} slots, or change `{bound}`"
            )
            raise RecipeError(msg)
        for number, source in enumerate(self.sources):
            _check_depth(source, blocks, f"path.sources[{number}]")
        scale = self._read("scale", blocks, "a finite number")
        if not isinstance(scale, list):
            scales = [scale] * len(hops)
        elif not isinstance(scale[0], list):
            scales = [1.0 if t is None else scale[t] for t, _ in hops]
        else:
            scales = [1.0, *(scale[a][b] for (_, a), (_, b) in itertools.pairwise(hops))]
        return [
            {"source": self.sources[j // blocks], "layer": j % blocks, "scale": scale}
            for (_, j), scale in zip(hops, scales, strict=True)
        ]

    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the path within its bounds: the first slots of one too long, more of the first where one is too short."""
        on = self._on(blocks)
        fewest, most = self._bounds(blocks)
        while len(self._hops(on, blocks)) > most:
            on.pop()
        while len(self._hops(on, blocks)) < fewest:
            off = next(t for t in range(self._count(blocks)) if t >= len(on) or on[t] != t)
            on.insert(off, off)
            if len(self._hops(on, blocks)) > most:  # the last layer was the last hop, and would come a second time
                del on[off - 1]
        return {**self._data(), "include": self._table(set(on).__contains__, blocks)}

    def fold(self, slots: Sequence[Mapping[str, Any]], blocks: int, suits: Suits) -> dict[str, Any]:
        """Return what fills this template's holes to make `slots`: each hop at the first slot after the last hop's."""
        recipes = {canonical_json(slot["source"]): slot["source"] for slot in slots}
        suited = [[k for k, data in recipes.items() if suits(("sources", i), data)] for i in range(len(self.sources))]
        for whose in itertools.product(*(keys or [""] for keys in suited)):
            hops = self._matched(slots, whose, blocks, suits)
            if hops is not None:
                break
        else:
            msg = f"the stack of {len(slots)} layers is no path through the space's slots: expected its sources' layers in their order"
            raise SpaceError(msg)
        used = {j // blocks for _, j in hops}
        return {
            "sources": [recipes[key] if i in used else IDLE for i, key in enumerate(whose)],
            "include": self._table({t for t, _ in hops}.__contains__, blocks),
            "scale": self._folded_scale(hops, [slot["scale"] for slot in slots], blocks),
        }

    def _count(self, blocks: int) -> int:
        return len(self.sources) * blocks * self.repeat

    def _table(self, value: Callable[[int], Any], blocks: int) -> dict[str, Any]:
        return {"per": ["slot"], "values": [value(t) for t in range(self._count(blocks))]}

    def _on(self, blocks: int) -> list[int]:
        """Return the slots that are included, in order."""
        values = self._read("include", blocks, "true or false")
        return [t for t in range(self._count(blocks)) if (values if isinstance(values, bool) else values[t])]

    def _hops(self, on: Sequence[int], blocks: int) -> list[_Hop]:
        hops: list[_Hop] = [(t, t % (len(self.sources) * blocks)) for t in on]
        if self.ends and (not hops or hops[0][1] != 0):
            hops.insert(0, (None, 0))
        if self.ends and hops[-1][1] != blocks - 1:
            hops.append((None, blocks - 1))
        return hops

    def _bounds(self, blocks: int) -> tuple[int, int]:
        """Return the smallest and the largest number of hops. Raises `RecipeError` unless every path can be made to fit."""
        slots = self._count(blocks)
        least = min(2, blocks) if self.ends else 1
        fewest = max(least, math.ceil((self.shortest or 0) * blocks - _EPS))
        most = slots + 1 if self.longest is None else math.floor(self.longest * blocks + _EPS)
        if most < least:
            msg = f"stack: `longest` is {self.longest}, which is {most} of {blocks} layers; type {math.ceil(1000 * least / blocks) / 1000:g} or more"
            raise RecipeError(msg)
        if fewest > min(slots, most):
            msg = (
                f"stack: `shortest` is {self.shortest}, which is {fewest} of {blocks} layers, but a path has at most "
                f"{min(slots, most)}; type {math.floor(1000 * min(slots, most) / blocks) / 1000:g} or less"
            )
            raise RecipeError(msg)
        if self.ends and blocks == 1 and 1 < fewest == most:
            msg = f"stack: of a model's one layer, not every path can be made {most} hops long; type `ends: false`"
            raise RecipeError(msg)
        return fewest, most

    def _matched(
        self, slots: Sequence[Mapping[str, Any]], whose: Sequence[str], blocks: int, suits: Suits
    ) -> list[_Hop] | None:
        """Return the hops that are `slots` where source i is the recipe with the JSON `whose[i]`; None if there are none."""
        layers = len(self.sources) * blocks
        wanted = [(canonical_json(slot["source"]), slot["layer"]) for slot in slots]
        if not _is_hole(self.include):
            fixed = self._hops(self._on(blocks), blocks)
            return fixed if wanted == [(whose[j // blocks], j % blocks) for _, j in fixed] else None
        by_slot = isinstance(self.scale, Mapping) and self.scale.get("per") == ["slot"]
        hops: list[_Hop] = []
        after = 0
        for number, (slot, (key, layer)) in enumerate(zip(slots, wanted, strict=True)):
            found = next(
                (
                    t
                    for t in range(after, self._count(blocks))
                    if (whose[t % layers // blocks], t % blocks) == (key, layer)
                    and (not by_slot or self._suits_scale(t, slot["scale"], suits))
                ),
                None,
            )
            end = {0: 0, len(slots) - 1: blocks - 1}.get(number) if self.ends and key == whose[0] else None
            put = layer == end and (slot["scale"] == 1 or not by_slot)
            if put and number == 0 and found != 0:  # an end that is put there leaves all slots to the others
                found = None
            if found is None and not put:
                return None
            hops.append((found, layer if found is None else found % layers))
            after = after if found is None else found + 1
        return hops

    def _suits_scale(self, slot: int, scale: float, suits: Suits) -> bool:
        return suits(("scale",), scale) if _is_hole(self.scale) else bool(self.scale["values"][slot] == scale)

    def _folded_scale(self, hops: Sequence[_Hop], scales: Sequence[float], blocks: int) -> Any:
        if not _is_hole(self.scale):
            return self.scale
        if "per" not in self.scale:
            return _one("scale", scales)
        if self.scale["per"] == ["slot"]:
            found = dict(zip((t for t, _ in hops), scales, strict=True))
            return self._table(lambda t: found.get(t, IDLE), blocks)
        layers = len(self.sources) * blocks
        table: list[list[Any]] = [[IDLE] * layers for _ in range(layers)]
        for ((_, a), (_, b)), scale in zip(itertools.pairwise(hops), scales[1:], strict=True):
            table[a][b] = _one("scale", [scale] if table[a][b] is IDLE else [table[a][b], scale])
        return {"per": self.scale["per"], "values": table}


class Swap(Form):
    """Every layer once, in order, and from whom."""

    source: Any

    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells: layers, or groups of consecutive ones."""
        if per == ["layer"]:
            return [[f"layer {layer}" for layer in range(blocks)]]
        if isinstance(per, list) and len(per) == 1 and str(per[0]).startswith("block/"):
            check_axes(per)
            if axis_size(per[0]) <= blocks:
                return [[f"block {group}" for group in range(axis_size(per[0]))]]
        msg = f"stack: `{key}.per` is {per!r}; expected [layer], or [block/N] with N up to {blocks}"
        raise RecipeError(msg)

    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return one slot for each layer. Raises `RecipeError`."""
        sources = self._by_layer(self._read("source", blocks, "a recipe"), blocks)
        scales = self._by_layer(self._read("scale", blocks, "a finite number"), blocks)
        for layer, source in enumerate(sources):
            _check_depth(source, blocks, f"swap.source, layer {layer}")
        return [
            {"source": source, "layer": layer, "scale": scale}
            for layer, (source, scale) in enumerate(zip(sources, scales, strict=True))
        ]

    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the form as it is: it has no bounds."""
        return self._data()

    def fold(self, slots: Sequence[Mapping[str, Any]], blocks: int, suits: Suits) -> dict[str, Any]:
        """Return what fills this template's holes to make `slots`. Raises `SpaceError`, also where a group is not of one."""
        if [slot["layer"] for slot in slots] != list(range(blocks)):
            msg = f"the stack's layers are not 0 to {blocks - 1}, each once and in order"
            raise SpaceError(msg)
        return {key: self._folded(key, [slot[key] for slot in slots], blocks) for key in ("source", "scale")}

    def _folded(self, key: str, values: Sequence[Any], blocks: int) -> Any:
        template = getattr(self, key)
        if not isinstance(template, Mapping):
            return template
        if "per" not in template:
            return _one(key, values)
        count = len(self.cells(key, template["per"], blocks)[0])
        groups = [[v for i, v in enumerate(values) if i * count // blocks == group] for group in range(count)]
        return {"per": template["per"], "values": [_one(key, group) for group in groups]}

    @staticmethod
    def _by_layer(values: Any, blocks: int) -> list[Any]:
        if not isinstance(values, list):
            return [values] * blocks
        return [values[layer * len(values) // blocks] for layer in range(blocks)]


_FORMS: dict[str, type[Form]] = {"path": Path, "swap": Swap}


def form_of(stack: Mapping[str, Any]) -> Form | None:
    """Return the short form that is in a stack, with or without holes; None if it has none. Raises `RecipeError`."""
    known = ("slots", "rest", *_FORMS)
    for key in stack:
        if key not in known:
            msg = f"stack: unknown key `{key}`; {nearest(str(key), known)}"
            raise RecipeError(msg)
    names = [name for name in _FORMS if name in stack]
    if not names:
        return None
    if len(names) > 1 or "slots" in stack:
        msg = f"stack: has {' and '.join(key for key in stack if key != 'rest')}; expected one of slots, path and swap"
        raise RecipeError(msg)
    schema = _FORMS[names[0]]
    try:
        return schema.model_validate(stack[names[0]])
    except ValidationError as error:
        raise RecipeError(describe(error, f"stack {names[0]}", {"": tuple(schema.model_fields)})) from None


def stacks(data: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what is in each stack of a recipe's data, or of a template."""
    if isinstance(data, Mapping):
        if isinstance(data.get("stack"), Mapping):
            yield data["stack"]
        for value in data.values():
            yield from stacks(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from stacks(value)


def spell_out(data: Any, blocks: int) -> Any:
    """Return a recipe's data with slots in place of every short form, for a model of `blocks` layers.

    Raises `RecipeError` for a short form that is not valid or out of its bounds, and for a layer that does not exist.
    """

    def spelled(stack: Mapping[str, Any], form: Form | None) -> dict[str, Any]:
        if form is not None:
            first = {"rest": form.sources[0]} if isinstance(form, Path) else {}
            return {**first, **{key: stack[key] for key in stack if key not in _FORMS}, "slots": form.slots(blocks)}
        for number, slot in enumerate(stack["slots"] if isinstance(stack.get("slots"), list) else ()):
            if isinstance(slot, Mapping) and isinstance(slot.get("layer"), int):
                layers = _layers(slot.get("source"), blocks)
                if slot["layer"] >= layers:
                    msg = f"stack: `slots[{number}]` has no layer {slot['layer']}: its source has {layers} layers; type 0 to {layers - 1}"
                    raise RecipeError(msg)
        return dict(stack)

    return _each_stack(data, blocks, spelled)


def fit(data: Any, blocks: int) -> Any:
    """Return a recipe's data with every path made to keep its bounds. Raises `RecipeError` for what is not valid."""

    def fitted(stack: Mapping[str, Any], form: Form | None) -> dict[str, Any]:
        return {key: form.fit(blocks) if form is not None and key in _FORMS else stack[key] for key in stack}

    return _each_stack(data, blocks, fitted)


def fold(template: Any, data: Any, blocks: int, suits: Suits, where: Where = ()) -> Any:
    """Return `data`, a recipe's complete data, in the form of `template`: the inverse of `spell_out`, for its holes.

    `suits` is asked about places in the template, which is itself at `where`. Raises `SpaceError` for a stack that the
    template's short form does not make, whatever is in its holes.
    """
    if isinstance(template, Mapping) and isinstance(data, Mapping):
        form = form_of(template["stack"]) if isinstance(template.get("stack"), Mapping) else None
        if form is not None and isinstance(data.get("stack"), Mapping):
            name = next(name for name in _FORMS if name in template["stack"])
            inside = (*where, "stack", name)
            folded = form.fold(data["stack"]["slots"], blocks, lambda below, value: suits((*inside, *below), value))
            data = {"stack": {name: folded, "rest": data["stack"]["rest"]}}
        return {
            key: fold(template[key], value, blocks, suits, (*where, key)) if key in template else value
            for key, value in data.items()
        }
    if isinstance(template, list) and isinstance(data, list) and len(template) == len(data):
        return [fold(a, b, blocks, suits, (*where, i)) for i, (a, b) in enumerate(zip(template, data, strict=True))]
    return data


def _each_stack(data: Any, blocks: int, change: Callable[[Mapping[str, Any], Form | None], dict[str, Any]]) -> Any:
    """Return `data` with every stack changed, inner ones first."""
    if isinstance(data, Mapping):
        inner = {key: _each_stack(value, blocks, change) for key, value in data.items()}
        if isinstance(stack := inner.get("stack"), Mapping):
            if blocks < 1:
                msg = "stack: the model has no stack of blocks, whose tensors are named like `layers.0.…`"
                raise RecipeError(msg)
            inner["stack"] = change(stack, form_of(stack))
        return inner
    if isinstance(data, list | tuple):
        return [_each_stack(value, blocks, change) for value in data]
    return data


def _is_hole(value: Any) -> bool:
    return isinstance(value, Mapping) and "values" not in value


def _one(key: str, values: Sequence[Any]) -> Any:
    """Return what all `values` are. Raises `SpaceError` if they differ."""
    for value in values:
        if value != values[0]:
            msg = f"`{key}` is {values[0]!r} and {value!r} where the space has one gene for both"
            raise SpaceError(msg)
    return values[0]


def _layers(source: Any, blocks: int) -> int:
    """Return how many layers the model of a source has, whose stacks are spelled out."""
    stack = source.get("stack") if isinstance(source, Mapping) else None
    slots = stack.get("slots") if isinstance(stack, Mapping) else None
    return len(slots) if isinstance(slots, list) else blocks


def _check_depth(source: Any, blocks: int, where: str) -> None:
    if (layers := _layers(source, blocks)) != blocks:
        msg = (
            f"stack: `{where}` is a stack of {layers} layers; expected {blocks}, as many as the base has: write `slots`"
        )
        raise RecipeError(msg)


def _check_cells(values: Any, axes: Sequence[Sequence[str]], where: str, wanted: str) -> None:
    if not axes:
        if not _CHECKS[wanted](values):
            msg = f"stack: `{where}` is {values!r}; expected {wanted}"
            raise RecipeError(msg)
        return
    if not isinstance(values, list) or len(values) != len(axes[0]):
        got = f"has {len(values)} entries" if isinstance(values, list) else f"is {values!r}"
        msg = f"stack: `{where}` {got}; expected a list of {len(axes[0])}, from {axes[0][0]} to {axes[0][-1]}"
        raise RecipeError(msg)
    for i, value in enumerate(values):
        _check_cells(value, axes[1:], f"{where}[{i}]", wanted)


def _label(source: Any) -> str:
    """Return a short name of a source: an expert's, `base`, or of what kind it is."""
    if isinstance(source, Mapping):
        word, inner = next(iter(source.items()), ("source", None))
        return inner if word == "expert" and isinstance(inner, str) else str(word)
    return str(source)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "true or false": lambda value: isinstance(value, bool),
    "a finite number": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ),
    "a recipe": lambda value: isinstance(value, str | Mapping),
}
"""Tests of a table's cells, by what an error says was expected."""
