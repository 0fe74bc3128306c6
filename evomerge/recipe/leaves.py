"""Leaves: the kinds of recipe that name one model; and what every kind has, `Node`."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_serializer

from evomerge.recipe.validation import FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


class Node(FrozenModel):
    """One kind of recipe: a mapping with one key, the name of its first field."""

    form: ClassVar[str]
    """How it is written, for messages."""
    reshapes: ClassVar[bool] = False
    """Whether its model has other shapes than the pool's, so that it is the outermost node of its recipe."""

    @property
    def key(self) -> str:
        """The key of its JSON form."""
        return next(iter(type(self).model_fields))

    @property
    def outermost(self) -> bool:
        """Whether nothing can be made of its model, so that it is the outermost node of its recipe."""
        return self.reshapes

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The recipes directly inside it, in order; none for a leaf."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads; of a merge, its method says so."""
        return ()

    @property
    def label(self) -> str | None:
        """Its name as the input of a merge, for tables over `expert`; None if only its position names it."""
        return None


class Base(Node):
    """The pool's base model."""

    form: ClassVar[str] = "`base`"
    base: Literal[True] = True

    @property
    def label(self) -> str:
        """The word `base`."""
        return "base"

    @model_serializer
    def _word(self) -> str:
        return "base"


class Expert(Node):
    """One of the pool's experts."""

    form: ClassVar[str] = "`expert: NAME`"
    expert: str = Field(min_length=1)

    @property
    def label(self) -> str:
        """The expert's name."""
        return self.expert


class Member(Node):
    """An earlier candidate of the study, by its recipe's id; that recipe is in the study's journal."""

    form: ClassVar[str] = "`member: ID`"
    member: str = Field(pattern=r"^[0-9a-f]{64}$")
