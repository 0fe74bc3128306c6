"""Stacks of layers: the node `stack`."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from evomerge.recipe.leaves import Node
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
