"""Recipe: a small, frozen, serialisable expression that fully describes one merged model, of the kinds in `nodes`.

Weights are only the cache of a recipe. Its `id` is the sha256 of its canonical JSON: equal recipes have equal ids, however
they were written. Not to be confused with a search space, which is a recipe with holes.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, RootModel, ValidationError

from evomerge.errors import RecipeError, nearest
from evomerge.recipe.form import KeyPath
from evomerge.recipe.leaves import Expert, Member, Node
from evomerge.recipe.matched import AlignNode, RepairNode
from evomerge.recipe.nodes import FIELDS, NODES, PARTS, AnyNode, tag
from evomerge.recipe.stacks import Stack, StackNode
from evomerge.recipe.validation import describe

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def _node_data(data: Any) -> Any:
    """Return the node, or the mapping with one key, that `data` stands for."""
    if data == "base":
        return {"base": True}
    if isinstance(data, Recipe):
        return data.root
    if isinstance(data, str):
        return {"expert": data}
    if isinstance(data, Mapping) and len(data) == 1 and next(iter(data)) in NODES:
        return data
    *forms, last = (node.form for node in NODES.values())
    got, hint = repr(data), ""
    if isinstance(data, Mapping):
        got = f"keys {', '.join(map(str, data))}"
        hint = "".join(f"; `{key}`: {nearest(str(key), NODES)}" for key in list(data)[:1])
        if kinds := [key for key in data if key in NODES]:
            hint = f"; expected one key, such as `{kinds[0]}` alone: indent what belongs to it"
    raise RecipeError(f"a recipe is {', '.join(forms)} or {last}; got {got}{hint}")


class Recipe(RootModel[Annotated[AnyNode, Discriminator(tag), BeforeValidator(_node_data)]]):
    """A complete recipe. Make one with `Recipe.parse`, not with the constructor."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def parse(cls, data: Any, *, experts: Sequence[str] | None = None) -> "Recipe":
        """Return the recipe described by `data`, parsed JSON or YAML.

        With `experts`, the names of a pool's experts, `inputs: experts` stands for all of them, and other names are
        refused. Raises `RecipeError`.
        """
        if experts is not None:
            data = expand_inputs(data, experts)
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(describe(error, "recipe", FIELDS)) from None
        if (inside := next(_outermost_inside(recipe), None)) is not None:
            what = "of other shapes than the pool's" if inside.reshapes else "with maps between its layers"
            raise RecipeError(
                f"recipe: `{inside.key}` makes a model {what}, which nothing can be made of; expected it as the outermost node"
            )
        if experts is not None:
            for name in recipe.experts:
                if name not in experts:
                    raise RecipeError(f"recipe: the pool has no expert `{name}`; {nearest(name, experts)}")
        return recipe

    @cached_property
    def json(self) -> str:  # type: ignore[override]  # pydantic's deprecated method of that name is not used
        """Canonical JSON: sorted keys, no spaces, defaults left out, floats of integer value written as integers."""
        return canonical_json(self.model_dump(exclude_defaults=True))

    @cached_property
    def id(self) -> str:
        """Sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @property
    def data(self) -> Json:
        """The recipe as plain JSON data, as `Recipe.parse` reads it."""
        return json.loads(self.json)  # type: ignore[no-any-return]  # JSON

    @property
    def explicit(self) -> Json:
        """The recipe as plain JSON data with every field written out, also those that have their default."""
        return json.loads(canonical_json(self.model_dump()))  # type: ignore[no-any-return]  # JSON

    @cached_property
    def numbers(self) -> tuple[KeyPath, ...]:
        """Key paths into `explicit` of all numbers among the parameters of merges, nested ones included.

        A table counts entry by entry. Seeds, layers and scales of slots do not count. They are in the order of a depth-first
        walk of the canonical JSON: that of `Evaluation.slopes`.
        """
        return tuple(_numbers(self.explicit, (), inside=False))

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The recipes directly inside this one, in order; none for `base`, an expert or a member."""
        return self.root.children

    @cached_property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts that the recipe uses, in order of appearance."""
        return tuple(dict.fromkeys(leaf.expert for leaf in _leaves(self) if isinstance(leaf, Expert)))

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the experts that the recipe names, and `base` where it names that, in order of appearance."""
        return tuple(dict.fromkeys(leaf.label for leaf in _leaves(self) if leaf.label is not None))

    @property
    def unaligned(self) -> "Recipe":
        """The recipe whose model is aligned, of an alignment; else the recipe itself."""
        return self.root.align.source if isinstance(self.root, AlignNode) else self

    @cached_property
    def repairs(self) -> "tuple[Recipe, ...]":
        """The repairs in the recipe, each after those inside of it."""
        inner = [repair for child in self.children for repair in child.repairs]
        return tuple(dict.fromkeys([*inner, *([self] if isinstance(self.root, RepairNode) else [])]))

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Ids of the earlier candidates that the recipe names, in order of appearance."""
        return tuple(dict.fromkeys(leaf.member for leaf in _leaves(self) if isinstance(leaf, Member)))

    @cached_property
    def prefix_digests(self) -> tuple[str, ...]:
        """A stack's `prefix_digests`, one for each layer; () for other recipes."""
        if not isinstance(self.root, StackNode):
            return ()
        stack = self.root.stack
        layers = [(slot.source.id, slot.layer, slot.scale) for slot in stack.slots]
        return prefix_digests(stack.rest.id, layers, stitching(stack))

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.json == other.json


_parts: tuple[type[BaseModel], ...] = (*PARTS.values(), *NODES.values(), Recipe)
for _part in _parts:  # they contain each other
    _part.model_rebuild(force=True, _types_namespace={"Recipe": Recipe})


def _leaves(recipe: Recipe) -> Iterator[Node]:
    if not recipe.children:
        yield recipe.root
    for child in recipe.children:
        yield from _leaves(child)


def _outermost_inside(recipe: Recipe) -> Iterator[Node]:
    """Yield the nodes inside a recipe of whose models nothing can be made."""
    for child in recipe.children:
        if child.root.outermost:
            yield child.root
        yield from _outermost_inside(child)


def _numbers(data: Json, path: KeyPath, *, inside: bool) -> Iterator[KeyPath]:
    """Yield the paths of the numbers in `data`, a part of a recipe, that are `inside` parameters."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _numbers(value, (*path, key), inside=inside or key in ("parameters", "stages"))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _numbers(value, (*path, index), inside=inside)
    elif inside and isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def prefix_digests(rest: str, layers: Sequence[tuple[str, int, float]], stitching: str = "") -> tuple[str, ...]:
    """Return a digest for each layer of a stack, equal for stacks that are equal up to and including that layer.

    `rest` and the first of each layer's `(source, layer, scale)` are recipe ids. How layers are joined depends on them and on
    `stitching`, see there.
    """
    digests, digest = [], hashlib.sha256(f"{rest}{stitching}".encode())
    for source, layer, scale in layers:
        digest.update(f"{source} {layer} {float(scale).hex()}".encode())
        digests.append(digest.hexdigest())
    return tuple(digests)


def stitching(stack: Stack) -> str:
    """Return how layers of a stack are joined, as canonical JSON; empty for one that is not stitched."""
    return "" if stack.stitch is None else canonical_json(stack.stitch.model_dump())


def canonical_json(data: Any) -> str:
    """Return the one JSON text of `data`: sorted keys, no spaces, `1.0` as `1`, no NaN or infinity (`RecipeError`)."""
    return json.dumps(_canonical(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(data: Any) -> Any:
    if isinstance(data, float):
        if data.is_integer():
            return int(data) if abs(data) < 2**53 else data
        if not math.isfinite(data):
            raise RecipeError(f"a recipe holds the number {data}; expected finite numbers only")
        return data
    if data is None or isinstance(data, str | int):
        return data  # before the check for a mapping, which takes long
    if isinstance(data, Mapping):
        return {str(key): _canonical(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return list(map(_canonical, data))
    return data


def expand_inputs(data: Any, experts: Sequence[str]) -> Any:
    """Return `data` with the list of all `experts` in place of the word `experts`.

    It stands as `inputs: experts`, `sources: experts`, `choice: experts`, or as an entry among sources or options.
    `choice: pairs` is replaced by all ordered pairs of different experts.
    """
    recipes = [{"expert": name} for name in experts]

    def expand(key: str, value: Any) -> Any:
        if value == "experts" and key in ("inputs", "sources", "choice"):
            return recipes
        if value == "pairs" and key == "choice":
            return [list(pair) for pair in itertools.permutations(recipes, 2)]
        if isinstance(value, list | tuple) and key in ("sources", "choice"):
            return [e for entry in value for e in (recipes if entry == "experts" else [expand_inputs(entry, experts)])]
        return expand_inputs(value, experts)

    if isinstance(data, Mapping):
        return {key: expand(key, value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [expand_inputs(value, experts) for value in data]
    return data


def base() -> Recipe:
    """Return the recipe of the base model."""
    return Recipe.parse("base")


def expert(name: str) -> Recipe:
    """Return the recipe of one expert."""
    return Recipe.parse({"expert": name})


def merge(
    method: str, inputs: Sequence[str | Recipe], parameters: Mapping[str, Any] | None = None, *, seed: int = 0
) -> Recipe:
    """Return a merge of `inputs` (names of experts, or recipes) by the named `method`."""
    parts = {"method": method, "inputs": list(inputs), "parameters": dict(parameters or {}), "seed": seed}
    return Recipe.parse({"merge": parts})
