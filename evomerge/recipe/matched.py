"""Nodes for models that are not alike: `align` puts the units of one in the order of another's, `repair` corrects what they are merged to."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Base, Expert, Node
from evomerge.recipe.merges import MergeNode
from evomerge.recipe.stacks import StackNode
from evomerge.recipe.validation import TAG, FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


_ONE, _MANY = f"{TAG}one", f"{TAG}many"


def _number(to: Any) -> str:
    return _MANY if isinstance(to, list | tuple) else _ONE


class Align(FrozenModel):
    """A model whose hidden units are put in the order of another's, for models without a common ancestor.

    No weight changes but its place: hidden neurons, heads, channels and the residual stream are permuted (Git Re-Basin, arXiv
    2209.04836), and the outputs are those of `source`.
    """

    source: "Recipe"
    """The recipe of the model that is aligned."""
    to: "Annotated[Annotated[Recipe, Tag(_ONE)] | Annotated[tuple[Recipe, ...], Tag(_MANY)], Discriminator(_number)]"
    """The recipe of the model whose order it gets; or a list of models, `source` among them, each of which is aligned to the mean of the others, in
    turn, until nothing changes (Git Re-Basin's MergeMany). All entries `align` with one list, in one order, fit each other."""
    by: Literal["weights", "activations"] = "weights"
    """What is matched: the weights of units, or how they are active on examples of a task."""
    task: str | None = None
    """With `by: activations`, the task whose search examples both models are run on."""

    @property
    def targets(self) -> "tuple[Recipe, ...]":
        """The models that are named in `to`."""
        return self.to if isinstance(self.to, tuple) else (self.to,)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.to, tuple):
            self._check_many(self.to)
        elif self.source == self.to:
            raise RecipeError("align: `source` and `to` are the same recipe; name two models, or leave out `align`")
        if self.by == "weights":
            if self.task is not None:
                raise RecipeError(
                    "align: `task` is read by activations alone; add `by: activations`, or leave out `task`"
                )
            return self
        if self.task is None:
            raise RecipeError("align: `by: activations` needs a task to run the models on; add `task: NAME`")
        for word, model in (("source", self.source), ("to", self.targets[0])):
            if not isinstance(model.root, Base | Expert):
                raise RecipeError(
                    f"align: `by: activations` takes the base and experts, and `{word}` is a recipe of its own, of which no "
                    "activations are collected; align its inputs instead, or type `by: weights`"
                )
        return self

    def _check_many(self, to: "tuple[Recipe, ...]") -> None:
        if self.by != "weights":
            raise RecipeError(
                "align: several models are aligned by weights; name one model in `to`, or type `by: weights`"
            )
        if len({*to}) != len(to):
            raise RecipeError("align: `to` names one model twice; give each model once")
        if len(to) < 2:
            raise RecipeError(
                "align: `to` is a list of one model; name two or more, `source` among them, or one without a list"
            )
        if self.source not in to:
            raise RecipeError(
                "align: `to` is a list of models, and `source` is not among them; add it, or name one model"
            )


class AlignNode(Node):
    """The JSON form of an alignment."""

    form: ClassVar[str] = "`align: {...}`"
    align: Align

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The model that is aligned, and those that it is aligned to."""
        return self.align.source, *self.align.targets

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `inputs@TASK`, those of all models on one task, or none."""
        return () if self.align.task is None else (f"inputs@{self.align.task}",)


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
