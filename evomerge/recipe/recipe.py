"""Recipe: a small, frozen, serialisable expression that fully describes one merged model.

A recipe is one of

- `base`: the shared ancestor,
- `{expert: NAME}`: one fine-tuned model of the pool,
- `{member: ID}`: an earlier candidate of the same study, by its recipe's id,
- `{merge: {method | stages, inputs, parameters, seed}}`: a merge of other recipes,
- `{stack: {slots, rest}}`: layers of other recipes, one after the other.

Weights are only the cache of a recipe. Its `id` is the sha256 of its canonical JSON, so the same recipe has the same id
wherever and however it was written. Not to be confused with a search space, which is a recipe with holes.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    Tag,
    ValidationError,
    model_validator,
)

from evomerge.errors import RecipeError, nearest
from evomerge.recipe.tiling import Node, Tiled, Value

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Base(Node):
    """The pool's base model, as it is."""

    base: Literal[True] = True


class Expert(Node):
    """One of the pool's experts, as it is."""

    expert: str = Field(min_length=1)


class Member(Node):
    """An earlier candidate of the study, by its recipe's id: what it is made of is in the study's journal."""

    member: str = Field(pattern=r"^[0-9a-f]{64}$")


def _name_or_parameters(stage: Any) -> Any:
    if isinstance(stage, str) or (isinstance(stage, Mapping) and len(stage) == 1):
        return stage
    msg = f"a stage is `name` or `name: {{parameter: value}}`; got {stage!r}"
    raise RecipeError(msg)


Stage: TypeAlias = Annotated[
    Annotated[str, Tag("Name")] | Annotated[dict[str, dict[str, Value]], Tag("Parameters")],
    Discriminator(lambda stage: "Name" if isinstance(stage, str) else "Parameters"),
    BeforeValidator(_name_or_parameters),
]


def _one_or_list(stages: Any) -> Any:
    return [stages] if isinstance(stages, str | Mapping) else stages


_Stages: TypeAlias = Annotated[tuple[Stage, ...], BeforeValidator(_one_or_list)]


class Stages(Node):
    """A merge method spelled out: origin → edit* → weigh* → reduce → post*. Each stage is `name` or `{name: parameters}`.

    Each role has a list of stages, or one; the stage `none` does nothing.
    """

    origin: Literal["base", "zero", "mean"] = "base"
    edit: _Stages = ()
    weigh: _Stages = ()
    reduce: Literal["sum", "solve", "max"] = "sum"
    post: _Stages = ()


class Merge(Node):
    """A merge of other recipes, by the name of a method or by explicit stages."""

    inputs: "tuple[Recipe, ...]" = Field(min_length=1)
    method: str | None = None
    parameters: dict[str, Value] = Field(default_factory=dict)
    stages: Stages | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.method is None) == (self.stages is None):
            msg = "a merge needs exactly one of `method` and `stages`"
            raise RecipeError(msg)
        if self.stages is not None and self.parameters:
            msg = "`parameters` belong to a `method`; with `stages`, write each parameter inside its stage"
            raise RecipeError(msg)
        labels = self.labels
        if len(set(labels)) != len(labels):
            msg = f"`inputs` names an input twice: {', '.join(labels)}; give each input once and change its weight instead"
            raise RecipeError(msg)
        for value in self._values():
            if isinstance(value, Tiled):
                value.check_labels(labels)
        return self

    def _values(self) -> Iterator[Any]:
        yield from self.parameters.values()
        if self.stages is not None:
            for stage in (*self.stages.edit, *self.stages.weigh, *self.stages.post):
                for parameters in stage.values() if isinstance(stage, dict) else ():
                    yield from parameters.values()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the inputs, as `per: [expert]` knows them: an expert's name, `base`, or `#i` for any other recipe."""
        return tuple(
            recipe.root.expert
            if isinstance(recipe.root, Expert)
            else "base"
            if isinstance(recipe.root, Base)
            else f"#{i}"
            for i, recipe in enumerate(self.inputs)
        )


class MergeNode(Node):
    """The JSON form of a merge: `{merge: {...}}`."""

    merge: Merge


class Slot(Node):
    """One hop of a stack: which layer of which recipe's model, and what the residual stream is multiplied by before it."""

    source: "Recipe"
    layer: int = Field(ge=0)
    scale: float = Field(default=1.0, allow_inf_nan=False)


class Stack(Node):
    """A model whose layers are those of `slots`, in that order (data-flow space, arXiv 2403.13187).

    A layer may come from any recipe, more than once, and none need come; `rest` gives embeddings, final norm and head.
    """

    slots: tuple[Slot, ...] = Field(min_length=1)
    rest: "Recipe"


class StackNode(Node):
    """The JSON form of a stack: `{stack: {...}}`."""

    stack: Stack


_NODE_KEYS = ("base", "expert", "member", "merge", "stack")


def _shape(data: Any) -> Any:
    if data == "base":
        return {"base": True}
    if isinstance(data, Recipe):
        return data.root
    if isinstance(data, str):
        return {"expert": data}
    if isinstance(data, Mapping) and len(data) == 1 and next(iter(data)) in _NODE_KEYS:
        return data
    found = f"keys {', '.join(map(str, data))}" if isinstance(data, Mapping) else repr(data)
    hint = ""
    if isinstance(data, Mapping):
        hint = "".join(f"; `{key}`: {nearest(str(key), _NODE_KEYS)}" for key in list(data)[:1])
    msg = f"a recipe is `base`, `expert: NAME`, `member: ID`, `merge: {{...}}` or `stack: {{...}}`; got {found}{hint}"
    raise RecipeError(msg)


_Nodes = Annotated[
    Annotated[Base, Tag("Base")]
    | Annotated[Expert, Tag("Expert")]
    | Annotated[Member, Tag("Member")]
    | Annotated[MergeNode, Tag("Merge")]
    | Annotated[StackNode, Tag("Stack")],
    Discriminator(
        lambda node: type(node).__name__.removesuffix("Node") if isinstance(node, Node) else next(iter(node)).title()
    ),
    BeforeValidator(_shape),
]


class Recipe(RootModel[_Nodes]):
    """A whole recipe. Build one with `Recipe.parse`, never by hand."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def parse(cls, data: Any, *, experts: Sequence[str] | None = None) -> "Recipe":
        """Return the recipe that `data` (parsed JSON or YAML) spells.

        `experts`, when given, are the names of a pool's experts: `inputs: experts` then stands for all of them, and any
        other expert's name is refused. Raises `RecipeError`.
        """
        if experts is not None:
            data = expand_inputs(data, experts)
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(describe(error, "recipe", _FIELDS)) from None
        if experts is not None:
            for name in recipe.experts:
                if name not in experts:
                    msg = f"recipe: the pool has no expert `{name}`; {nearest(name, experts)}"
                    raise RecipeError(msg)
        return recipe

    @cached_property
    def json(self) -> str:  # type: ignore[override]  # pydantic's deprecated method of that name is not used
        """Canonical JSON: sorted keys, no spaces, defaults left out, whole floats written as integers."""
        return canonical_json(_dump(self))

    @cached_property
    def id(self) -> str:
        """Sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @property
    def data(self) -> Json:
        """The recipe as plain JSON data: what `Recipe.parse` reads."""
        return json.loads(self.json)  # type: ignore[no-any-return]  # JSON

    @property
    def explicit(self) -> Json:
        """The recipe as plain JSON data with every field written, those that have their default too."""
        return json.loads(canonical_json(_dump(self, defaults=True)))  # type: ignore[no-any-return]  # JSON

    @cached_property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts that the recipe uses, in order of appearance."""
        return tuple(dict.fromkeys(leaf.expert for leaf in _leaves(self) if isinstance(leaf, Expert)))

    @cached_property
    def members(self) -> tuple[str, ...]:
        """Ids of the earlier candidates that the recipe names, in order of appearance."""
        return tuple(dict.fromkeys(leaf.member for leaf in _leaves(self) if isinstance(leaf, Member)))

    @cached_property
    def prefix_digests(self) -> tuple[str, ...]:
        """What `prefix_digests` says of a stack; of other recipes, nothing."""
        if not isinstance(self.root, StackNode):
            return ()
        stack = self.root.stack
        return prefix_digests(stack.rest.id, [(slot.source.id, slot.layer, slot.scale) for slot in stack.slots])

    def __hash__(self) -> int:
        return hash(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.json == other.json


def prefix_digests(rest: str, hops: Sequence[tuple[str, int, float]]) -> tuple[str, ...]:
    """Return a digest for each hop of a stack, equal for stacks that are equal up to and with that hop.

    `rest` and the first of each hop's `(source, layer, scale)` are ids of recipes.
    """
    found, digest = [], hashlib.sha256(rest.encode())
    for source, layer, scale in hops:
        digest.update(f"{source} {layer} {float(scale).hex()}".encode())
        found.append(digest.hexdigest())
    return tuple(found)


_FIELDS = {
    "merge": tuple(Merge.model_fields),
    "stages": tuple(Stages.model_fields),
    "stack": tuple(Stack.model_fields),
    "slots": tuple(Slot.model_fields),
}


_TAGS = ("root", "One", "Table", "Name", "Parameters", "Base", "Expert", "Member", "Merge", "Stack")
"""Words that pydantic puts into the place of an error to say which member of a union it tried; no key of ours."""


def _leaves(recipe: Recipe) -> Iterator[Base | Expert | Member]:
    match recipe.root:
        case MergeNode(merge=merge):
            for inner in merge.inputs:
                yield from _leaves(inner)
        case StackNode(stack=stack):
            for inner in (*(slot.source for slot in stack.slots), stack.rest):
                yield from _leaves(inner)
        case leaf:
            yield leaf


def _dump(recipe: Recipe, *, defaults: bool = False) -> Any:
    match recipe.root:
        case Base():
            return "base"
        case Expert(expert=name):
            return {"expert": name}
        case Member(member=identity):
            return {"member": identity}
        case MergeNode(merge=merge):
            out = merge.model_dump(exclude_defaults=not defaults, exclude={"inputs"})
            out["inputs"] = [_dump(inner, defaults=defaults) for inner in merge.inputs]
            return {"merge": out}
        case StackNode(stack=stack):
            slots = [
                {
                    **slot.model_dump(exclude_defaults=not defaults, exclude={"source"}),
                    "source": _dump(slot.source, defaults=defaults),
                }
                for slot in stack.slots
            ]
            return {"stack": {"slots": slots, "rest": _dump(stack.rest, defaults=defaults)}}


def canonical_json(data: Any) -> str:
    """Return the one JSON text of `data`: sorted keys, no spaces, `1.0` as `1`, no NaN or infinity (`RecipeError`)."""
    return json.dumps(_canonical(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(data: Any) -> Any:
    if isinstance(data, float):
        if data.is_integer():
            return int(data) if abs(data) < 2**53 else data
        if not math.isfinite(data):
            msg = f"a recipe holds the number {data}; expected finite numbers only"
            raise RecipeError(msg)
        return data
    if isinstance(data, Mapping):
        return {str(key): _canonical(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return list(map(_canonical, data))
    return data


def expand_inputs(data: Any, experts: Sequence[str]) -> Any:
    """Return `data` with all `experts` where the word `experts` stands for them.

    As in `inputs: experts`, `sources: experts` and `choice: experts`, or as an entry among sources or options; `choice: pairs`
    stands for all lists of two different ones.
    """
    everyone = [{"expert": name} for name in experts]

    def expand(key: str, value: Any) -> Any:
        if value == "experts" and key in ("inputs", "sources", "choice"):
            return everyone
        if value == "pairs" and key == "choice":
            return [list(pair) for pair in itertools.permutations(everyone, 2)]
        if isinstance(value, list | tuple) and key in ("sources", "choice"):
            return [e for entry in value for e in (everyone if entry == "experts" else [expand_inputs(entry, experts)])]
        return expand_inputs(value, experts)

    if isinstance(data, Mapping):
        return {key: expand(key, value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [expand_inputs(value, experts) for value in data]
    return data


def describe(error: ValidationError, what: str, fields: Mapping[str, Sequence[str]]) -> str:
    """Return pydantic's `error` about `what` as one sentence, with the nearest known key where a key is unknown.

    `fields` maps the name of an enclosing key (or "" for the top) to the keys known inside it.
    """
    first = error.errors(include_url=False)[0]
    *outer, last = first["loc"] or ("",)
    path = [*(str(part) for part in outer if part not in _TAGS), *([] if last in _TAGS else [str(last)])]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = fields.get(next((part for part in reversed(path[:-1]) if part in fields), ""), ())
        return f"{what}: unknown key `{where}`; {nearest(path[-1], known)}"
    if first["type"] == "value_error":
        return f"{what}{f' `{where}`' if where else ''}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{what}: `{where}` is missing"
    wanted = _WANTED.get(first["type"], f"{first['msg'][0].lower()}{first['msg'][1:]}")
    return f"{what} `{where}`: {wanted}, got {first['input']!r}"


_WANTED = {
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "string_type": "expected a word",
    "string_too_short": "expected a word",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "finite_number": "expected a finite number",
}
"""Pydantic's types of error in the words of somebody who writes YAML."""


def base() -> Recipe:
    """Return the recipe of the base model."""
    return Recipe.parse("base")


def expert(name: str) -> Recipe:
    """Return the recipe of one expert."""
    return Recipe.parse({"expert": name})


def member(identity: str) -> Recipe:
    """Return the recipe of an earlier candidate, by its recipe's id."""
    return Recipe.parse({"member": identity})


def merge(
    method: str, inputs: Sequence[str | Recipe], parameters: Mapping[str, Any] | None = None, *, seed: int = 0
) -> Recipe:
    """Return a merge of `inputs` (names of experts, or recipes) by the named `method`."""
    return Recipe.parse(
        {
            "merge": {
                "method": method,
                "inputs": [entry.data if isinstance(entry, Recipe) else entry for entry in inputs],
                "parameters": dict(parameters or {}),
                "seed": seed,
            }
        }
    )
