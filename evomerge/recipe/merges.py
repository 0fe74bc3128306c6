"""Merges of recipes: the node `merge`, by the name of a method or by explicit stages."""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Node
from evomerge.recipe.tiling import Tiled, Value
from evomerge.recipe.validation import TAG, FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


def _name_or_parameters(stage: Any) -> Any:
    if isinstance(stage, str) or (isinstance(stage, Mapping) and len(stage) == 1):
        return stage
    raise RecipeError(f"a stage is `name` or `name: {{parameter: value}}`; got {stage!r}")


Stage: TypeAlias = Annotated[
    Annotated[str, Tag(f"{TAG}name")] | Annotated[dict[str, dict[str, Value]], Tag(f"{TAG}parameters")],
    Discriminator(lambda stage: f"{TAG}name" if isinstance(stage, str) else f"{TAG}parameters"),
    BeforeValidator(_name_or_parameters),
]

_Stages: TypeAlias = Annotated[
    tuple[Stage, ...], BeforeValidator(lambda stages: [stages] if isinstance(stages, str | Mapping) else stages)
]


class Stages(FrozenModel):
    """A merge method spelled out: origin → edit* → weigh* → reduce → post*. Each stage is `name` or `{name: parameters}`.

    Each role has a list of stages, or one; the stage `none` does nothing.
    """

    origin: Literal["base", "zero", "mean"] = "base"
    """What is subtracted from the inputs before the stages, and added after them: the base, nothing, or the inputs' mean."""
    edit: _Stages = ()
    """Stages that change task vectors."""
    weigh: _Stages = ()
    """Stages whose weights P are multiplied."""
    reduce: Literal["sum", "solve", "max"] = "sum"
    """How task vectors D become one: ΣP∘D, (ΣP∘D) / ΣP, or the largest |P∘D|."""
    post: _Stages = ()
    """Stages that change the merged task vector."""


class Merge(FrozenModel):
    """A merge of other recipes, by the name of a method or by explicit stages."""

    inputs: "tuple[Recipe, ...]" = Field(min_length=1)
    """The recipes to merge; in files also `experts`, all of the pool in its order."""
    method: str | None = None
    """Name of a method; either this or `stages`."""
    parameters: dict[str, Value] = Field(default_factory=dict)
    """The method's parameters, each one value or a table; by default the method's."""
    stages: Stages | None = None
    """The stages, spelled out."""
    seed: int = 0
    """Seed of random masks and noise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.method is None) == (self.stages is None):
            raise RecipeError("a merge needs exactly one of `method` and `stages`")
        if self.stages is not None and self.parameters:
            raise RecipeError("`parameters` belong to a `method`; with `stages`, write each parameter inside its stage")
        labels = self.labels
        if len(set(labels)) != len(labels):
            msg = f"`inputs` names an input twice: {', '.join(labels)}; give each input once and change its weight instead"
            raise RecipeError(msg)
        for table in self.tables:
            table.check_labels(labels)
        return self

    @property
    def tables(self) -> list[Tiled]:
        """Those of the parameters that are tables."""
        parts: list[Mapping[str, Value]] = [self.parameters]
        if self.stages is not None:
            for stage in (*self.stages.edit, *self.stages.weigh, *self.stages.post):
                parts.extend(stage.values() if isinstance(stage, dict) else ())
        return [value for part in parts for value in part.values() if isinstance(value, Tiled)]

    def by_tensor(self, names: Collection[str]) -> bool:
        """Return whether any parameter is a table over `tensor`.

        Raises `RecipeError` unless such a table has an entry for each of the merged tensors' `names`, and no other.
        """
        tables = [table for table in self.tables if "tensor" in table.per]
        for table in tables:
            table.check_tensors(names)
        return bool(tables)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the inputs in tables over `expert`: an expert's name, `base`, or `#i` for any other recipe."""
        return tuple(recipe.root.label or f"#{i}" for i, recipe in enumerate(self.inputs))


class MergeNode(Node):
    """The JSON form of a merge."""

    form: ClassVar[str] = "`merge: {...}`"
    merge: Merge

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The inputs."""
        return self.merge.inputs
