"""LayerSwap: the short form of a stack that has every layer once, in order, each from one of the sources.

`swap: {source: {per: [layer], values: [maths, code, …]}, scale: 1}`: `source` is a recipe or a table over [layer] or
[block/N], `scale` a number or a table over the same.
"""

from collections.abc import Sequence
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe.form import ShortForm, check_depth
from evomerge.recipe.tiling import axis_size, check_axes


class LayerSwap(ShortForm):
    """Every layer once, in order, and its source."""

    source: Any

    def cells(self, key: str, per: Sequence[str], blocks: int) -> list[list[str]]:
        """Return the names of the cells: layers, or groups of consecutive layers."""
        if per == ["layer"]:
            return [[f"layer {layer}" for layer in range(blocks)]]
        if isinstance(per, list) and len(per) == 1 and str(per[0]).startswith("block/"):
            check_axes(per)
            if axis_size(per[0]) <= blocks:
                return [[f"block {group}" for group in range(axis_size(per[0]))]]
        raise RecipeError(f"stack: `{key}.per` is {per!r}; expected [layer], or [block/N] with N up to {blocks}")

    def slots(self, blocks: int) -> list[dict[str, Any]]:
        """Return one slot for each layer. Raises `RecipeError`."""
        sources = _by_layer(self._read("source", blocks, "a recipe"), blocks)
        scales = _by_layer(self._read("scale", blocks, "a finite number"), blocks)
        for layer, source in enumerate(sources):
            check_depth(source, blocks, f"swap.source, layer {layer}")
        return [
            {"source": source, "layer": layer, "scale": scale}
            for layer, (source, scale) in enumerate(zip(sources, scales, strict=True))
        ]

    def fit(self, blocks: int) -> dict[str, Any]:
        """Return the form unchanged: it has no bounds."""
        return self._data()


def _by_layer(values: Any, blocks: int) -> list[Any]:
    if not isinstance(values, list):
        return [values] * blocks
    return [values[layer * len(values) // blocks] for layer in range(blocks)]
