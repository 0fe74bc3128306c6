"""Writing: a recipe out, as a mergekit configuration.

What is written is read back: a recipe can be expressed if reading gives the same merge, but for definitions (`rounding`,
`scope`, …) that are evomerge's or mergekit's. The notes of that reading say where mergekit's are others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from evomerge import merging
from evomerge.checkpoints.vocabulary import TokenizerChoice
from evomerge.errors import RecipeError
from evomerge.exchange import gradients
from evomerge.exchange.documents import parse
from evomerge.exchange.methods import RULES, Note
from evomerge.exchange.reading import Reader
from evomerge.exchange.tables import Outline
from evomerge.merging import METHODS
from evomerge.recipe import (
    AlignNode,
    Base,
    CondenseNode,
    Expert,
    Json,
    Merge,
    MergeNode,
    NarrowNode,
    Place,
    PleasNode,
    Recipe,
    RepairNode,
    Stack,
    StackNode,
    Tiled,
    ZipItNode,
)

_INPUT = {"weight": "weight", "density": "density", "drop": "density", "gamma": "gamma", "epsilon": "epsilon"}
_MERGE = {"lambda": "lambda", "t": "t", "select": "select_topk"}
"""evomerge's parameters, of each input or of the merge, and mergekit's."""
_DEFINITIONS: Mapping[str, tuple[str, Any]] = {
    "scope": ("scope", "tensor"),
    "equals": ("equals", "first"),
    "rounding": ("rounding", "down"),
    "undecided": ("undecided", "positive"),
    "rescale": ("rescale", "l1"),
    "chord": ("chord", 0.9995),
    "bounds": ("stock", "none"),
    "equal_below": ("energies", 1e-6),
}
"""Parameters that mergekit does not have: the note of reading about each, and the value that is mergekit's definition."""
_FILTERS = {"attention": "self_attn", "mlp": "mlp", "norm": "norm", "embedding": "embed", "head": "lm_head"}


@dataclass(frozen=True)
class Exported:
    """The documents of a mergekit file, and what mergekit defines otherwise."""

    documents: Sequence[Mapping[str, Any]]
    notes: Sequence[Note]


def write(
    recipe: Recipe, folders: Mapping[str, str], outline: Outline, tokenizer: TokenizerChoice | None = None
) -> Exported:
    """Return the mergekit configuration of a recipe. `folders` are the pool's models by name, the base's as `base`.

    `tokenizer` is the pool's choice of tokens. Raises `RecipeError`, naming the node or the parameter that mergekit cannot express.
    """
    merging.check(recipe, list(outline.places.values()))
    writer = _Writer(folders, outline)
    writer.add(recipe, None, "recipe")
    if tokenizer is not None:
        writer.documents[-1] |= _tokens(tokenizer, folders)
    where = "the configuration"
    back = Reader(parse(writer.documents, where), where, Path(), exact=False, pool=folders).imported()
    read, given = (_meaning(one.data, outline) for one in (back.recipe, recipe))
    if read != given:
        raise RecipeError(f"mergekit cannot express {_difference(read, given, 'recipe')}")
    return Exported(writer.documents, [note for note in back.notes if not writer.theirs.get(note.key, False)])


def _tokens(choice: TokenizerChoice, folders: Mapping[str, str]) -> dict[str, Any]:
    """Return how mergekit writes a choice of tokens. Raises `RecipeError`."""
    if choice.missing != "base" or choice.force:
        key = "force" if choice.force else "missing"
        raise RecipeError(f"mergekit cannot express `pool.tokenizer.{key}`: {getattr(choice, key)!r}")
    source = choice.source if choice.source in ("union", "base") else folders[choice.source]
    if choice.pad_to is None:
        return {"tokenizer_source": source}
    return {"tokenizer": {"source": source, "pad_to_multiple_of": choice.pad_to}}


class _Writer:
    def __init__(self, folders: Mapping[str, str], outline: Outline) -> None:
        self.folders, self.outline = folders, outline
        self.documents: list[dict[str, Any]] = []
        self.theirs: dict[str, bool] = {}
        """By a note's key, whether all merges have mergekit's definition."""
        self._written: dict[str, str] = {}

    def add(self, recipe: Recipe, name: str | None, where: str) -> None:
        """Add the document of a recipe, after those of its inputs."""
        match recipe.root:
            case MergeNode(merge=merge):
                document = self._merge(merge, f"{where}.merge")
            case StackNode(stack=stack):
                document = self._stack(stack, f"{where}.stack")
            case _:
                document = {"merge_method": "passthrough", "models": [{"model": self._model(recipe, where)}]}
        self.documents.append({**({} if name is None else {"name": name}), **document})

    def _model(self, recipe: Recipe, where: str) -> str:
        """Return the reference to an input; a merge is a document of its own."""
        match recipe.root:
            case Base():
                return self.folders["base"]
            case Expert(expert=name):
                return self.folders[name]
            case MergeNode() | StackNode():
                if recipe.id not in self._written:
                    self._written[recipe.id] = f"merge-{len(self._written) + 1}"
                    self.add(recipe, self._written[recipe.id], where)
                return self._written[recipe.id]
            case AlignNode():
                raise RecipeError(f"mergekit cannot express `{where}`: a model whose units are in another's order")
            case CondenseNode():
                raise RecipeError(f"mergekit cannot express `{where}`: a mixture with fewer experts")
            case NarrowNode():
                raise RecipeError(f"mergekit cannot express `{where}`: a model with fewer hidden units")
            case PleasNode() | ZipItNode():
                raise RecipeError(
                    f"mergekit cannot express `{where}`: two models whose hidden units are merged in groups"
                )
            case RepairNode():
                raise RecipeError(f"mergekit cannot express `{where}`: a merge whose outputs are corrected")
        raise RecipeError(f"mergekit cannot express `{where}`: an earlier candidate of a study")

    def _stack(self, stack: Stack, where: str) -> dict[str, Any]:
        sources = []
        if stack.stitch is not None:
            raise RecipeError(f"mergekit cannot express `{where}.stitch`: affine maps between layers")
        for number, slot in enumerate(stack.slots):
            if slot.scale != 1:
                raise RecipeError(
                    f"mergekit cannot express `{where}.slots[{number}].scale`: a factor on the residual stream"
                )
            sources.append((self._model(slot.source, f"{where}.slots[{number}].source"), slot.layer))
        ends = {stack.slots[0].source, stack.slots[-1].source}
        if stack.rest not in ends if len(ends) == 1 else stack.rest in ends:
            msg = f"mergekit cannot express `{where}.rest`: it takes embeddings from the first layer's source, final norm and head from the last's"
            raise RecipeError(msg)
        slices = []
        for _, run in groupby(enumerate(sources), key=lambda entry: (entry[1][0], entry[1][1] - entry[0])):
            (_, (model, first)), *more = run
            slices.append({"sources": [{"model": model, "layer_range": [first, first + 1 + len(more)]}]})
        return {"merge_method": "passthrough", "base_model": self.folders["base"], "slices": slices}

    def _merge(self, merge: Merge, where: str) -> dict[str, Any]:
        method, given, more = _method(merge, where)
        rule = RULES[method]
        models = [self._model(inner, f"{where}.inputs[{i}]") for i, inner in enumerate(merge.inputs)]
        if merge.seed:
            raise RecipeError(f"mergekit cannot express `{where}.seed`: its random numbers are torch's")
        document: dict[str, Any] = {"merge_method": method}
        if rule.base == "origin" or (rule.base == "optional" and merge.method is not None):
            document["base_model"] = self.folders["base"]
        elif rule.base == "first":
            document["base_model"] = models[0]
        own: list[dict[str, Any]] = [{} for _ in models]
        for name, value in given.items():
            if name in _INPUT and _INPUT[name] in rule.parameters:
                for label, parameters in zip(merge.labels, own, strict=True):
                    parameters[_INPUT[name]] = self._setting(name, value, label, f"{where}.{name}")
            elif name in _MERGE and _MERGE[name] in rule.parameters:
                more[_MERGE[name]] = self._setting(name, value, None, f"{where}.{name}")
            elif name in _DEFINITIONS and value in (
                _DEFINITIONS[name][1],
                METHODS[method].parameters[name].default,
                "none",
            ):
                key, theirs = _DEFINITIONS[name]
                self.theirs[key] = self.theirs.get(key, True) and value == theirs
            elif value != METHODS[method].parameters[name].default:
                raise RecipeError(
                    f"mergekit cannot express `{where}.parameters.{name}`: {value!r}; its {method} has none"
                )
        document["models"] = [
            {"model": model, **({"parameters": parameters} if parameters else {})}
            for model, parameters in zip(models, own, strict=True)
        ]
        return {**document, "parameters": more} if more else document

    def _setting(self, name: str, value: Any, label: str | None, where: str) -> Any:
        """Return a parameter of one input as mergekit writes it: a number, a gradient, or conditions."""
        change = _rest if name == "drop" else lambda number: number
        if not isinstance(value, Tiled):
            return change(value)
        wanted = {tensor: change(value.at(place, label)) for tensor, place in self.outline.places.items()}
        axes = [axis for axis in value.per if axis != "expert"]
        if axes == ["tensor"] or "tower" in axes:
            return [{"filter": tensor, "value": number} for tensor, number in wanted.items()]
        kinds = list(self.outline.kinds) if "kind" in axes else [None]
        conditions = []
        for kind in kinds:
            curve = [change(number) for number in _curve(value, axes, kind, label, self.outline)]
            same = len(set(curve)) == 1
            conditions.append(
                {**({} if kind is None else {"filter": _FILTERS.get(kind, kind)}), "value": curve[0] if same else curve}
            )
        others = [  # the final norm and the head, which have the last value here; and kinds that no part of a name tells
            {"filter": tensor, "value": number}
            for tensor, number in wanted.items()
            if not _close(gradients.at(conditions, tensor, self._share(tensor)), number)
        ]
        if not others and kinds == [None]:
            return conditions[0]["value"]
        return [*others, *conditions]

    def _share(self, tensor: str) -> float:
        place = self.outline.places[tensor]
        if not place.inside:
            return 0.0
        return place.block / (place.blocks - 1) if place.blocks > 1 else 1.0


def _close(one: Any, other: float) -> bool:
    return one is not None and abs(one - other) <= 1e-9 * max(abs(other), 1.0)


def _rest(share: Any) -> float:
    """Return 1 - share without the rounding of 1 - 0.9."""
    return float(1 - Decimal(repr(float(share))))


def _curve(value: Tiled, axes: Sequence[str], kind: str | None, label: str | None, outline: Outline) -> list[Any]:
    """Return the control points of a table over depth, or its values block by block."""
    depth = next((int(axis.partition("/")[2]) for axis in axes if axis.startswith("depth")), None)
    points = depth or (outline.blocks if any(axis.startswith("block") for axis in axes) else 1)
    return [value.at(Place(i, points, kind or "other", model=outline.blocks), label) for i in range(points)]


def _method(merge: Merge, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return mergekit's method, the parameters that may be tables, and the flags that are not the method's default."""
    if merge.stages is not None:
        return _raw(merge, where)
    method = str(merge.method)
    if method not in RULES:
        raise RecipeError(f"mergekit cannot express `{where}.method`: it has no {method}")
    known = METHODS[method].parameters
    given = {name: merge.parameters.get(name, spec.default) for name, spec in known.items()}
    flags: dict[str, Any] = {}
    reduce = given.pop("reduce")
    if "normalize" in RULES[method].parameters and method != "linear":
        divides = {"solve": True, "sum": False}.get(reduce) if isinstance(reduce, str) else None
        if divides is None:
            raise RecipeError(f"mergekit cannot express `{where}.parameters.reduce`: {reduce!r}")
        if divides != RULES[method].parameters["normalize"].default:
            flags["normalize"] = divides
    elif reduce != known["reduce"].default:
        raise RecipeError(f"mergekit cannot express `{where}.parameters.reduce`: {reduce!r} of {method}")
    if given.get("rescale") == "none":
        flags["rescale"] = False
    if method == "dare_ties" and given.pop("density") != 1:
        raise RecipeError(f"mergekit cannot express `{where}.parameters.density`: a trim after the drop")
    return method, given, flags


def _raw(merge: Merge, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read the compositions that the methods of raw weights are written as."""
    stages = merge.stages
    assert stages is not None
    weigh = stages.weigh[0] if len(stages.weigh) == 1 else None
    name, parameters = next(iter(weigh.items())) if isinstance(weigh, Mapping) else (weigh, {})
    if stages.origin != "zero" or stages.edit or stages.post or stages.reduce != "sum" or name not in _RAW:
        raise RecipeError(f"mergekit cannot express `{where}.stages`: it has methods, not stages")
    flags = {"normalize": False} if name == "weight" else {}
    return _RAW[name], dict(parameters), flags


_RAW = {"weight": "linear", "nuslerp": "nuslerp", "multislerp": "multislerp"}


def _meaning(data: Any, outline: Outline) -> Any:
    """Return a recipe's data without definitions, without parameters that have their default, and with tables written out tensor by tensor."""
    if isinstance(data, list):
        return [_meaning(entry, outline) for entry in data]
    if not isinstance(data, Mapping):
        return data
    if set(data) == {"per", "values"}:
        table = Tiled.model_validate(data)
        labels = list(data["values"]) if data["per"][0] == "expert" else [None]
        rows = {label: {n: _rounded(table.at(place, label)) for n, place in outline.places.items()} for label in labels}
        first = next(iter(rows.values()))
        same = first if all(row == first for row in rows.values()) else rows
        return next(iter(first.values())) if same is first and len(set(first.values())) == 1 else same
    known = METHODS[data["method"]].parameters if "method" in data else {}
    parameters = data.get("parameters", {})
    kept = {name: v for name, v in parameters.items() if name not in _DEFINITIONS and v != known[name].default}
    return {
        key: _meaning(value, outline)
        for key, value in {**data, "parameters": kept}.items()
        if key != "parameters" or kept
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _difference(back: Json, given: Json, where: str) -> str:
    """Return where what was read back is otherwise."""
    if isinstance(back, dict) and isinstance(given, dict):
        for key in dict.fromkeys([*given, *back]):
            if back.get(key) != given.get(key):
                if key not in back or key not in given:
                    return f"`{where}.{key}`: {given.get(key, 'the default')!r}"
                return _difference(back[key], given[key], f"{where}.{key}")
    if isinstance(back, list) and isinstance(given, list) and len(back) == len(given):
        for i, (one, other) in enumerate(zip(back, given, strict=True)):
            if one != other:
                return _difference(one, other, f"{where}[{i}]")
    return f"`{where}`: {str(given)[:200]}, which it would read as {str(back)[:200]}"
