"""LayerPath: the short form of a stack that is a path through all layers of its sources (data-flow space, arXiv 2403.13187).

The layers of all sources in order, repeated, are the slots; the path is the layers of the slots that are included:

    stack:
      rest: base                # by default the first source
      path:
        sources: [maths, code]  # M = sources · layers of the model
        repeat: 2               # T = M · repeat slots
        include: {per: [slot], values: [true, false, …]}  # T of them; or `true`, for all
        scale: 1                # or a table of T over [slot]; or W, M · M over [from, to], where the first layer has 1
        ends: true              # the path begins and ends with the first source's first and last layer
        shortest: 0.5           # bounds on the number of layers, in multiples of the model's own number
        longest: 1.25
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import Field, StrictBool, StrictInt, field_validator

from evomerge.errors import RecipeError
from evomerge.recipe.form import ShortForm, check_depth

_EPS = 1e-9  # 1.15 · 20 is 22.999…: bounds are meant in full layers

_Layer: TypeAlias = tuple[int | None, int]
"""A layer of the path: its slot, or None for an added end; and its index among the layers of all sources."""


class LayerPath(ShortForm):
    """Slot t is layer t mod M, and layer j is layer j mod blocks of source ⌊j / blocks⌋."""

    sources: list[Any] = Field(min_length=1)
    repeat: StrictInt = Field(default=1, ge=1)
    include: Any = True
    ends: StrictBool = True
    shortest: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    longest: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: list[Any]) -> list[Any]:
        for i, source in enumerate(sources):
            if source in sources[:i]:
                msg = f"has {source!r} twice; expected each source once: type `repeat: 2` for all layers twice"
                raise ValueError(msg)
        return sources

    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells: for `slot` the layer and which copy, for `from` and `to` the layer."""
        known = {"include": [["slot"]], "scale": [["slot"], ["from", "to"]]}.get(key, [])
        if per not in known:
            expected = " or ".join(f"[{', '.join(axes)}]" for axes in known) or "no table"
            raise RecipeError(f"stack: `{key}.per` is {per!r}; expected {expected}")
        layers = [f"{name} {layer}" for name in self.names for layer in range(blocks)]
        if len(per) > 1:
            return [layers, layers]
        return [layers if self.repeat == 1 else [f"{j} #{copy + 1}" for copy in range(self.repeat) for j in layers]]

    @property
    def names(self) -> list[str]:
        """A name for each source, all different: the expert's, `base`, or the kind of recipe."""
        labels = [_label(source) for source in self.sources]
        return [label if labels.count(label) == 1 else f"{label}{i}" for i, label in enumerate(labels)]

    def first(self, blocks: int) -> list[bool]:
        """Return for each slot whether it is in the first source and the first copy."""
        return [t < blocks for t in range(self._count(blocks))]

    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return the slots that the path stands for. Raises `RecipeError`, also for a path out of bounds."""
        layers = self._layers(self._included(blocks), blocks)
        fewest, most = self._bounds(blocks)
        if not fewest <= len(layers) <= most:
            more, bound = ("more", "shortest") if len(layers) < fewest else ("fewer", "longest")
            raise RecipeError(
                f"stack: the path has {len(layers)} layers; expected {fewest} to {most} over a model of {blocks} layers: "
                f"include {more} slots, or change `{bound}`"
            )
        for number, source in enumerate(self.sources):
            check_depth(source, blocks, f"path.sources[{number}]")
        scale = self._read("scale", blocks, "a finite number")
        if not isinstance(scale, list):
            scales = [scale] * len(layers)
        elif not isinstance(scale[0], list):
            scales = [1.0 if t is None else scale[t] for t, _ in layers]
        else:
            scales = [1.0, *(scale[a][b] for (_, a), (_, b) in itertools.pairwise(layers))]
        return [
            {"source": self.sources[j // blocks], "layer": j % blocks, "scale": scale}
            for (_, j), scale in zip(layers, scales, strict=True)
        ]

    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the path within its bounds: one too long loses its last slots, one too short gets the first free ones."""
        included = self._included(blocks)
        fewest, most = self._bounds(blocks)
        while len(self._layers(included, blocks)) > most:
            included.pop()
        while len(self._layers(included, blocks)) < fewest:
            free = next(t for t in range(self._count(blocks)) if t >= len(included) or included[t] != t)
            included.insert(free, free)
            if len(self._layers(included, blocks)) > most:  # the last layer was the end, and would come a second time
                del included[free - 1]
        values = [t in set(included) for t in range(self._count(blocks))]
        return {**self._data(), "include": {"per": ["slot"], "values": values}}

    def _count(self, blocks: int) -> int:
        return len(self.sources) * blocks * self.repeat

    def _included(self, blocks: int) -> list[int]:
        """Return the included slots in order."""
        values = self._read("include", blocks, "true or false")
        return [t for t in range(self._count(blocks)) if (values if isinstance(values, bool) else values[t])]

    def _layers(self, included: Sequence[int], blocks: int) -> list[_Layer]:
        """Return the path of the `included` slots, with its ends."""
        layers: list[_Layer] = [(t, t % (len(self.sources) * blocks)) for t in included]
        if self.ends and (not layers or layers[0][1] != 0):
            layers.insert(0, (None, 0))
        if self.ends and layers[-1][1] != blocks - 1:
            layers.append((None, blocks - 1))
        return layers

    def _bounds(self, blocks: int) -> tuple[int, int]:
        """Return the smallest and largest number of layers. Raises `RecipeError` unless every path can be made to fit."""
        slots = self._count(blocks)
        least = min(2, blocks) if self.ends else 1
        fewest = max(least, math.ceil((self.shortest or 0) * blocks - _EPS))
        most = slots + 1 if self.longest is None else math.floor(self.longest * blocks + _EPS)
        if most < least:
            msg = f"stack: `longest` is {self.longest}, which is {most} of {blocks} layers; type {math.ceil(1000 * least / blocks) / 1000:g} or more"
            raise RecipeError(msg)
        if fewest > min(slots, most):
            raise RecipeError(
                f"stack: `shortest` is {self.shortest}, which is {fewest} of {blocks} layers, but a path has at most "
                f"{min(slots, most)}; type {math.floor(1000 * min(slots, most) / blocks) / 1000:g} or less"
            )
        if self.ends and blocks == 1 and 1 < fewest == most:
            msg = f"stack: not every path over a model of one layer can be made {most} layers long; type `ends: false`"
            raise RecipeError(msg)
        return fewest, most


def _label(source: Any) -> str:
    """Return a short name of a source: an expert's, `base`, or its kind."""
    if isinstance(source, Mapping):
        word, inner = next(iter(source.items()), ("source", None))
        return inner if word == "expert" and isinstance(inner, str) else str(word)
    return str(source)
