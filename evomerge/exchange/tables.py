"""Tables: values given tensor by tensor, as the shortest table of a recipe that says the same; and a model's outline."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from evomerge.checkpoints.aligned import Aligned
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.recipe import Place

Row: TypeAlias = Mapping[str, Any]
"""By tensor, the value; a tensor that is missing may have any."""

_FREE = object()


@dataclass(frozen=True)
class Outline:
    """The tensors of a model that are merged, by name, and where each is; `dtype` is that of the most elements."""

    places: Mapping[str, Place]
    prefix: str
    blocks: int
    known: bool
    """Whether they are those of the base; else they are a stand-in's, a Llama's."""
    dtype: str | None

    @classmethod
    def of(cls, folder: Folder | Aligned) -> "Outline":
        """Return the outline of a checkpoint."""
        layout = Layout(folder.info, folder.config)
        floats = {name: entry for name, entry in folder.info.items() if entry.dtype.is_floating_point}
        places = {name: layout.place(name) for name in floats}
        if folder.config.get("tie_word_embeddings") is True:
            heads = [name for name, place in places.items() if place.kind == "head" and name.endswith("head.weight")]
            embedded = any(place.kind == "embedding" for place in places.values())
            places = {name: place for name, place in places.items() if not embedded or name not in heads}
        sizes: dict[str, int] = {}
        for entry in floats.values():
            dtype = str(entry.dtype).removeprefix("torch.")
            sizes[dtype] = sizes.get(dtype, 0) + entry.numel
        return cls(places, layout.prefix or "", layout.blocks, known=True, dtype=max(sizes, key=lambda d: sizes[d]))

    @classmethod
    def stand_in(cls, blocks: int) -> "Outline":
        """Return the outline of a Llama of that many blocks."""
        import torch

        inner = [f"self_attn.{x}_proj.weight" for x in "qkvo"] + [
            f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")
        ]
        inner += ["input_layernorm.weight", "post_attention_layernorm.weight"]
        names = [f"model.layers.{i}.{name}" for i in range(blocks) for name in inner]
        names = ["model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"]
        info = {name: TensorInfo((1,) if "norm" in name else (1, 1), torch.float32) for name in names}
        layout = Layout(info, {"num_hidden_layers": blocks})
        return cls({name: layout.place(name) for name in names}, "model.layers", blocks, known=False, dtype=None)

    def begins(self, name: str) -> bool:
        """Return whether a tensor outside the blocks comes before them, as embeddings do."""
        return "embed" in name.lower() or self.places[name].kind == "embedding"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of tensor that it has."""
        return tuple(dict.fromkeys(place.kind for place in self.places.values()))


def tabulate(outline: Outline, rows: Mapping[str | None, Row], curves: Sequence[Sequence[float]] = ()) -> Any:
    """Return the one value, or the shortest table of a recipe, that gives each tensor its value.

    `rows` are by input, or under None for a parameter of all inputs. `curves` are the control points that a table over
    `depth/N` may have. Returns None where only a table over tensors would do and the outline is a stand-in's.
    """
    first = next(iter(rows.values()))
    if all(row == first for row in rows.values()):
        rows = {None: first}
    for axes in _forms(outline, curves):
        tables = {label: _fit(axes, outline, row, curves) for label, row in rows.items()}
        if any(table is _FREE for table in tables.values()):
            continue
        if None in tables:
            return {"per": list(axes), "values": tables[None]} if axes else tables[None]
        return {"per": ["expert", *axes], "values": tables}
    return None


def _forms(outline: Outline, curves: Sequence[Sequence[float]]) -> Iterator[tuple[str, ...]]:
    """Yield axes, shorter tables first; groups of blocks before curves, which groups of one block would always match."""
    groups = [f"block/{n}" for n in range(2, outline.blocks)] if outline.blocks <= _MANY else []
    depths = [f"depth/{n}" for n in sorted({len(curve) for curve in curves})]
    each = [f"block/{outline.blocks}"] if outline.blocks > 1 else []
    along = [*groups, *depths, *each]
    yield from ((), ("kind",), *((axis,) for axis in along), *(("kind", axis) for axis in along))
    if outline.known:
        yield ("tensor",)


_MANY = 200


def _fit(axes: Sequence[str], outline: Outline, row: Row, curves: Sequence[Sequence[float]]) -> Any:
    """Return the nested table over `axes`, or `_FREE` if there is none."""
    if not axes:
        values = list(row.values())
        return values[0] if all(_same(value, values[0]) for value in values) else _FREE
    if axes[0] == "tensor":
        value = next(iter(row.values()))
        return {name: row.get(name, value) for name in outline.places}
    if axes[0] == "kind":
        parts = {kind: {n: v for n, v in row.items() if outline.places[n].kind == kind} for kind in outline.kinds}
        tables = {kind: _fit(axes[1:], outline, part, curves) for kind, part in parts.items() if part}
        if any(table is _FREE for table in tables.values()):
            return _FREE
        return {kind: tables.get(kind, next(iter(tables.values()))) for kind in outline.kinds}
    size = int(axes[0].partition("/")[2])
    if axes[0].startswith("depth"):
        constant = _fit((), outline, row, curves)
        if constant is not _FREE:
            return [constant] * size
        for curve in curves:
            if len(curve) == size and all(_on(curve, outline.places[name], value) for name, value in row.items()):
                return list(curve)
        return _FREE
    groups: list[Any] = [_FREE] * size
    for name, value in row.items():
        place = outline.places[name]
        group = place.block * size // place.blocks
        if groups[group] is _FREE:
            groups[group] = value
        elif not _same(groups[group], value):
            return _FREE
    last = next(iter(row.values()))
    for i, value in enumerate(groups):
        last = groups[i] = last if value is _FREE else value
    return groups


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _on(curve: Sequence[float], place: Place, value: Any) -> bool:
    """Return whether a value is on a curve over depth, as recipes interpolate it."""
    depth = place.depth * (len(curve) - 1)
    low = min(int(depth), len(curve) - 2)
    found = curve[low] + (curve[low + 1] - curve[low]) * (depth - low)
    return isinstance(value, int | float) and abs(found - value) <= 1e-9 * max(abs(value), 1)
