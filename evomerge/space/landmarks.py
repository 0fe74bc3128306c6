"""Known genomes of a space: those of the base, each expert and the mean, or of stacks of all layers of one model."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge import merging
from evomerge.errors import SpaceError
from evomerge.recipe import Expert, MergeNode, Recipe, short_forms
from evomerge.recipe.form import ShortForm
from evomerge.recipe.layer_path import LayerPath
from evomerge.space import nested
from evomerge.space.holes import Genome

if TYPE_CHECKING:
    from evomerge.space.space import SearchSpace


def landmarks(space: "SearchSpace") -> dict[str, Genome]:
    """Return the known genomes of a space by name, as `SearchSpace.landmarks` describes them."""
    if space.parents:
        return {}
    marks = {"init": space.initial}
    if isinstance(stack := nested.get(space.template, ("stack",)), Mapping):
        form = short_forms.form_of(stack)
        return marks if form is None else marks | _stacks_of_one_model(space, form)
    root = nested.get(space.template, ("merge",))
    if not isinstance(root, Mapping) or not isinstance(root.get("method"), str):
        return marks
    method = merging.METHODS[root["method"]]
    inputs = space.decode(space.initial).root
    if not isinstance(inputs, MergeNode) or not all(isinstance(r.root, Expert) for r in inputs.merge.inputs):
        return marks
    labels = inputs.merge.labels
    weights: dict[str, dict[str, float]] = {"base": dict.fromkeys(labels, 0.0)}
    for label in labels:
        weights[f"expert {label}"] = {**dict.fromkeys(labels, 0.0), label: 1.0}
    weights["mean"] = dict.fromkeys(labels, 1.0 / len(labels))
    for name, by_input in weights.items():
        with contextlib.suppress(SpaceError):
            parameters = method.reach(by_input)
            if parameters is not None and (genome := _place(space, parameters)) is not None:
                marks[name] = genome
    return marks


def _stacks_of_one_model(space: "SearchSpace", form: ShortForm) -> dict[str, Genome]:
    """Return the genomes that stack all layers of one model, as far as they are in the space."""
    filled = space.filled(space.initial.tolist())["stack"]
    models: dict[str, Any] = {"base": "base"} | {name: {"expert": name} for name in space.experts}
    count = 1
    if isinstance(form, LayerPath):
        models |= dict(zip(form.names, filled["path"]["sources"], strict=True))
        count = len(form.sources)
    initial = nested.get(space.decode(space.initial).data, ("stack",))
    blocks = range(space.outline.blocks or 0)
    marks = {}
    for name, model in models.items():
        slots = [{"source": model, "layer": layer} for layer in blocks]
        recipe = Recipe.parse(short_forms.spell_out({"stack": {**initial, "slots": slots}}, len(blocks)))
        for number in range(count):
            with contextlib.suppress(SpaceError):
                genome = _all_layers(space, number, model, len(blocks))
                if space.decode(genome) == recipe:
                    marks[f"layers of {name}"] = genome
                    break
    return marks


def _all_layers(space: "SearchSpace", number: int, model: Any, blocks: int) -> Genome:
    """Return the genome of all layers of source `number`, which is `model`, with scale 1. Raises `SpaceError`."""
    genome = space.initial.copy()
    first = number * blocks
    layers = range(first, first + blocks)
    for hole in space.holes:
        keys: list[Any] = list(hole.keys)
        for i, at in enumerate(keys, start=hole.start):
            value: Any
            match hole.path[1:]:
                case ("path", "include"):
                    value = at[0] in layers
                case ("path", "sources", index) if index == number:
                    value = model
                case ("swap", "source"):
                    value = model
                case ("path", "scale") if hole.per == ("slot",) and at[0] not in layers:
                    continue
                case ("path", "scale") if hole.per == ("from", "to") and not (
                    at[0] in layers and at[1] == at[0] + 1 in layers
                ):
                    continue
                case (_, "scale"):
                    value = 1
                case _:
                    continue
            genome[i] = space.genes[i].number(value)
    return genome


def _place(space: "SearchSpace", parameters: Mapping[str, Any]) -> Genome | None:
    """Return the genome whose recipe is a merge with these `parameters`, None or `SpaceError` if the space has none."""
    genome = space.initial.copy()
    holes = {hole.path[-1]: hole for hole in space.holes if hole.path[:-1] == ("merge", "parameters")}
    fixed = nested.get(space.template, ("merge", "parameters")) or {}
    defaults = merging.METHODS[nested.get(space.template, ("merge", "method"))].parameters
    for name, value in parameters.items():
        if name not in holes:
            if fixed.get(name, defaults[name].default) != value:
                return None
            continue
        hole = holes[name]
        by_input = value if isinstance(value, Mapping) else {}
        if "expert" not in hole.per and len(set(by_input.values())) > 1:
            return None
        cells = []
        for key in hole.keys:
            label = key[hole.per.index("expert")] if "expert" in hole.per else next(iter(by_input), None)
            cells.append(by_input.get(str(label), value))
        genome[hole.genes] = hole.numbers(space.genes[hole.genes], cells)
    return genome
