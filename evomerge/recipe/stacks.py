"""Stacks of layers: the node `stack`."""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Base, Expert, Node
from evomerge.recipe.validation import FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


class Slot(FrozenModel):
    """One layer of a stack: a layer of a recipe's model, and the factor on the residual stream before it."""

    source: "Recipe"
    """The recipe whose layer it is."""
    layer: int = Field(ge=0)
    """Number of the layer in it, from 0."""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    """Factor of the residual stream before the layer."""


class Stitch(FrozenModel):
    """Affine maps between layers that do not follow one another in one model (model stitching, arXiv 1411.5908; in closed form, 2110.14633).

    On the same tokens, let H be the hidden states after a layer, in its own model, and G those before the next one, in its own model,
    each less its mean. The map is x A + b with A = (HᵀH + ridge I)⁻¹ HᵀG and b = mean(G) - mean(H) A.
    """

    task: str
    """The task on whose search examples the models are run."""
    ridge: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """What is added to the diagonal of HᵀH, which grows with the number of tokens."""


class Stack(FrozenModel):
    """A model whose layers are those of `slots`, in that order (data-flow space, arXiv 2403.13187).

    A layer may occur any number of times; `rest` gives embeddings, final norm and head.
    """

    slots: tuple[Slot, ...] = Field(min_length=1)
    """The layers, from the first to the last."""
    rest: "Recipe"
    """The recipe that everything outside of the layers is taken from."""
    stitch: Stitch | None = Field(default=None, exclude_if=lambda stitch: stitch is None)
    """How layers are joined that do not follow one another in one model; by default the residual stream is passed on as it is."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for source in (*(slot.source for slot in self.slots), self.rest) if self.stitch else ():
            if not isinstance(source.root, Base | Expert):
                raise RecipeError(
                    "stack: `stitch` takes layers of the base and of experts, and one of the sources is a recipe of its own, of which no "
                    "hidden states are collected; name models of the pool, or leave out `stitch`"
                )
        return self


class StackNode(Node):
    """The JSON form of a stack."""

    form: ClassVar[str] = "`stack: {...}`"
    stack: Stack

    @property
    def outermost(self) -> bool:
        """Whether it is stitched: its model is no checkpoint of tensors alone."""
        return self.stack.stitch is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `hidden@TASK`, those of all models on one task, or none."""
        return () if self.stack.stitch is None else (f"hidden@{self.stack.stitch.task}",)

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """Each layer's source, and the rest."""
        return (*(slot.source for slot in self.stack.slots), self.stack.rest)
