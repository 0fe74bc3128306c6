"""Nodes: the kinds of recipe, one class each. `NODES` is their table.

A new kind is one class and one line in `AnyNode`; canonical JSON, errors, experts, members and checks follow from it.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Base, Expert, Member, Node
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


class Slot(FrozenModel):
    """One layer of a stack: a layer of a recipe's model, and the factor on the residual stream before it."""

    source: "Recipe"
    """The recipe whose layer it is."""
    layer: int = Field(ge=0)
    """Number of the layer in it, from 0."""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of the residual stream before the layer."""


class Stack(FrozenModel):
    """A model whose layers are those of `slots`, in that order (data-flow space, arXiv 2403.13187).

    A layer may occur any number of times; `rest` gives embeddings, final norm and head.
    """

    slots: tuple[Slot, ...] = Field(min_length=1)
    """The layers, from the first to the last."""
    rest: "Recipe"
    """The recipe that everything outside of the layers is taken from."""


class StackNode(Node):
    """The JSON form of a stack."""

    form: ClassVar[str] = "`stack: {...}`"
    stack: Stack

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """Each layer's source, and the rest."""
        return (*(slot.source for slot in self.stack.slots), self.stack.rest)


class Align(FrozenModel):
    """A model whose hidden units are put in the order of another's, for models without a common ancestor.

    No weight changes but its place: hidden neurons, heads, channels and the residual stream are permuted (Git Re-Basin, arXiv
    2209.04836), and the outputs are those of `source`.
    """

    source: "Recipe"
    """The recipe of the model that is aligned."""
    to: "Recipe"
    """The recipe of the model whose order it gets."""
    by: Literal["weights", "activations"] = "weights"
    """What is matched: the weights of units, or how they are active on examples of a task."""
    task: str | None = None
    """With `by: activations`, the task whose search examples both models are run on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == self.to:
            raise RecipeError("align: `source` and `to` are the same recipe; name two models, or leave out `align`")
        if self.by == "weights":
            if self.task is not None:
                raise RecipeError(
                    "align: `task` is read by activations alone; add `by: activations`, or leave out `task`"
                )
            return self
        if self.task is None:
            raise RecipeError("align: `by: activations` needs a task to run the models on; add `task: NAME`")
        for word, model in (("source", self.source), ("to", self.to)):
            if not isinstance(model.root, Base | Expert):
                raise RecipeError(
                    f"align: `by: activations` takes the base and experts, and `{word}` is a recipe of its own, of which no "
                    "activations are collected; align its inputs instead, or type `by: weights`"
                )
        return self


class AlignNode(Node):
    """The JSON form of an alignment."""

    form: ClassVar[str] = "`align: {...}`"
    align: Align

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The model that is aligned, and the one that it is aligned to."""
        return self.align.source, self.align.to

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `inputs@TASK`, those of all models on one task, or none."""
        return () if self.align.task is None else (f"inputs@{self.align.task}",)


class Condense(FrozenModel):
    """A mixture of experts with fewer of them in each layer: those of one mixture, grouped, aligned and merged (M-SMoE, arXiv 2310.01334).

    The most used experts of a layer, on the evidence of the experts that `source` names, or on one task, each lead a group; every other
    joins the one whose logits in the router are most alike. In a group, hidden units are put in the leader's order, and weights and rows of
    the router are averaged by use. The outermost node of a recipe: its model has other shapes than the pool's.
    """

    source: "Recipe"
    """The recipe of the mixture."""
    experts: int = Field(ge=1)
    """The number of experts that are left in each of its layers."""
    active: int | None = Field(default=None, ge=1)
    """The number of experts for each token, at most `experts`; by default the source's, or `experts` where that is less."""
    by: Literal["usage"] = "usage"
    """What leads and weighs: the number of tokens that are routed to an expert."""
    task: str | None = None
    """The task on whose search examples tokens are counted; by default each expert's evidence."""

    @property
    def kinds(self) -> tuple[str, str]:
        """The statistics that it reads: of logits in routers, and of use."""
        at = "" if self.task is None else f"@{self.task}"
        return f"router{at}", f"usage{at}"

    @property
    def counted(self) -> tuple[str, ...]:
        """The models of the pool whose tokens are counted: the experts that `source` names, or the base."""
        return self.source.experts or ("base",)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.active is not None and self.active > self.experts:
            raise RecipeError(f"condense: `active` is {self.active}; expected at most `experts`, {self.experts}")
        if not self.source.experts and self.task is None:
            raise RecipeError(
                "condense: `source` names no expert of the pool, on whose evidence the use of the experts inside is counted; name a task: "
                "`condense: {source: base, experts: N, task: TASK}`"
            )
        return self


class CondenseNode(Node):
    """The JSON form of a mixture with fewer experts."""

    form: ClassVar[str] = "`condense: {...}`"
    condense: Condense

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The mixture."""
        return (self.condense.source,)

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads."""
        return self.condense.kinds


class Repair(FrozenModel):
    """A merge whose layers give outputs of the same mean and standard deviation, channel by channel, as its models' layers do.

    The average of models that are not alike is less active than each of them. REPAIR (Jordan et al., arXiv 2211.08403) takes all models
    on common examples; TACT (arXiv 2410.12766) takes one expert on its own task, `to: [NAME]`, `tasks: [NAME]`, for a model of that
    task alone. The factors and shifts are folded into the layers' weights and biases.
    """

    source: "Recipe"
    """The recipe of the merge."""
    to: "tuple[Recipe, ...]" = ()
    """The models whose outputs are aimed at: experts, the base, alignments of these; by default the inputs of the merge."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """The tasks on whose search examples, all together, every model and the merge are run."""
    weights: tuple[float, ...] = ()
    """The share of each model in the means and standard deviations that are aimed at; by default they are equal."""

    @property
    def models(self) -> "tuple[Recipe, ...]":
        """The models whose outputs are aimed at."""
        merged = self.source.root
        return self.to or (merged.merge.inputs if isinstance(merged, MergeNode) else ())

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each of the models; they sum to 1."""
        weights = self.weights or (1.0,) * len(self.models)
        return tuple(weight / sum(weights) for weight in weights)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.source.root, StackNode):
            raise RecipeError("repair: `source` is a stack of layers; repair the merges that its layers come from")
        if self.source.members:
            raise RecipeError(
                "repair: `source` is made of earlier candidates, which cannot be run here; give recipes of experts"
            )
        if not self.models:
            raise RecipeError(
                "repair: `source` is no merge; name the models whose outputs are aimed at: add `to: [NAME]`"
            )
        for model in self.models:
            if not isinstance(model.unaligned.root, Base | Expert):
                raise RecipeError(
                    "repair: outputs are collected of experts, the base and alignments of these, and one of the models is another recipe; "
                    "name models in `to`"
                )
        if self.weights and (
            len(self.weights) != len(self.models) or min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf")
        ):
            raise RecipeError(
                f"repair: `weights` are {list(self.weights)}; expected {len(self.models)} shares from 0 on, one for each model, not all 0"
            )
        return self


class RepairNode(Node):
    """The JSON form of a repair."""

    form: ClassVar[str] = "`repair: {...}`"
    repair: Repair

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The merge, and the models named in `to`."""
        return (self.repair.source, *self.repair.to)

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `outputs@TASK`, those of all models on each task, and its own, `repair`."""
        return (*(f"outputs@{task}" for task in self.repair.tasks), "repair")


class Narrow(FrozenModel):
    """A model with fewer hidden units in each MLP, alike ones of one layer merged (iterative feature merging, IFM, arXiv 2310.06756).

    Without data. The outermost node of a recipe: its model has other shapes than the pool's.
    """

    source: "Recipe"
    """The recipe of the model."""
    hidden: int = Field(ge=1)
    """The number of hidden units that are left in each MLP."""


class NarrowNode(Node):
    """The JSON form of a model with fewer hidden units."""

    form: ClassVar[str] = "`narrow: {...}`"
    narrow: Narrow

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The model."""
        return (self.narrow.source,)


AnyNode: TypeAlias = (
    Annotated[Base, Tag(f"{TAG}base")]
    | Annotated[Expert, Tag(f"{TAG}expert")]
    | Annotated[Member, Tag(f"{TAG}member")]
    | Annotated[MergeNode, Tag(f"{TAG}merge")]
    | Annotated[StackNode, Tag(f"{TAG}stack")]
    | Annotated[AlignNode, Tag(f"{TAG}align")]
    | Annotated[CondenseNode, Tag(f"{TAG}condense")]
    | Annotated[RepairNode, Tag(f"{TAG}repair")]
    | Annotated[NarrowNode, Tag(f"{TAG}narrow")]
)

NODES: dict[str, type[Node]] = {next(iter(node.model_fields)): node for node, _ in map(get_args, get_args(AnyNode))}
"""Every kind of node, by its key."""

_MODELS: dict[str, type[FrozenModel]] = {
    "merge": Merge,
    "stages": Stages,
    "stack": Stack,
    "slots": Slot,
    "align": Align,
    "condense": Condense,
    "repair": Repair,
    "narrow": Narrow,
}
FIELDS = {key: tuple(model.model_fields) for key, model in _MODELS.items()}
"""Keys known inside each key of a recipe, for messages."""


def tag(node: Any) -> str:
    """Return the union tag of a node, or of the mapping that one is read from."""
    return TAG + next(iter(node.__class__.model_fields if isinstance(node, Node) else node))
