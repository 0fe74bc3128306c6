"""Nodes whose models have other shapes than the pool's: `condense` and `narrow`. Each is the outermost node of its recipe."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Node
from evomerge.recipe.validation import FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


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
    reshapes: ClassVar[bool] = True
    condense: Condense

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The mixture."""
        return (self.condense.source,)

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads."""
        return self.condense.kinds


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
    reshapes: ClassVar[bool] = True
    narrow: Narrow

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The model."""
        return (self.narrow.source,)
