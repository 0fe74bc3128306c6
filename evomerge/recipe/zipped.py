"""Nodes that merge the hidden units of two models' MLPs: `pleas`, where the result may be wider than they are, and `zipit`."""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from evomerge.errors import RecipeError
from evomerge.recipe.leaves import Base, Expert, Node
from evomerge.recipe.validation import FrozenModel

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe


class Zip(FrozenModel):
    """What `pleas` and `zipit` share: two models, and tasks on which their hidden units are compared."""

    word: ClassVar[str]
    """The node, for messages."""

    inputs: "tuple[Recipe, ...]"
    """The two models: experts, the base, or alignments of these. Beside hidden units, all is averaged in the order that it has."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """The tasks on whose search examples, all together, both models are run."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The statistics that it reads."""
        return tuple(f"inputs@{task}" for task in self.tasks)

    @property
    def average(self) -> "Recipe":
        """The recipe of the average of both models."""
        return type(self.inputs[0]).parse({"merge": {"method": "linear", "inputs": list(self.inputs)}})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.inputs) != 2:
            raise RecipeError(f"{self.word}: `inputs` has {len(self.inputs)} models; expected two")
        if len({*self.tasks}) != len(self.tasks):
            raise RecipeError(
                f"{self.word}: `tasks` names one task twice, whose examples would count twice; give each task once"
            )
        one, other = self.inputs
        if one == other:
            raise RecipeError(f"{self.word}: `inputs` names one model twice; name two models")
        for model in self.inputs:
            if not isinstance(model.unaligned.root, Base | Expert):
                raise RecipeError(
                    f"{self.word}: `inputs` takes experts, the base and alignments of these, and one is another recipe, of which no activations "
                    "are collected; name the models that it is made of"
                )
        return self


class Pleas(Zip):
    """Two models in one whose MLPs are up to twice as wide: alike hidden units are merged, the others stand side by side (PLeaS, arXiv 2407.02447).

    The most correlated pairs are merged. Then every matrix is fitted, by least squares in closed form, to the mean of what both models
    compute. The outermost node of a recipe: its model has other shapes than the pool's.
    """

    word: ClassVar[str] = "pleas"

    width: float = Field(ge=1, le=2)
    """The width of its MLPs, as a multiple of theirs: 1, where all units are merged in pairs, to 2, where none are."""
    ridge: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    """How strongly fitted weights are held near the mean of both models', as a multiple of the mean square of the inputs."""


class ZipIt(Zip):
    """Two models in one of the same width: hidden units are merged across models and within them (ZipIt!, arXiv 2305.03053).

    The two units, or groups of units, that are most correlated become one, again and again, until as many are left as one model has. A group gets
    the mean of its units' weights in, and half of the sum of those out.
    """

    word: ClassVar[str] = "zipit"

    budget: float = Field(default=0.125, ge=0, le=1)
    """The share of merges that may bring two units of one model together (beta); 0 leaves pairs across models alone."""
    damping: float = Field(default=0.3, ge=0, le=1)
    """The factor on the correlations of a group, each time that it grows (alpha)."""


class PleasNode(Node):
    """The JSON form of PLeaS."""

    form: ClassVar[str] = "`pleas: {...}`"
    reshapes: ClassVar[bool] = True
    pleas: Pleas

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The two models."""
        return self.pleas.inputs

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `inputs@TASK` for each task."""
        return self.pleas.kinds


class ZipItNode(Node):
    """The JSON form of ZipIt."""

    form: ClassVar[str] = "`zipit: {...}`"
    zipit: ZipIt

    @property
    def children(self) -> "tuple[Recipe, ...]":
        """The two models."""
        return self.zipit.inputs

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it reads: `inputs@TASK` for each task."""
        return self.zipit.kinds
