"""Nodes: the table of the kinds of recipe, one class each.

A new kind is one class and one line in `AnyNode`; canonical JSON, errors, experts, members and checks follow from it.
"""

from typing import Annotated, Any, TypeAlias, get_args

from pydantic import Tag

from evomerge.recipe.leaves import Base, Expert, Member, Node
from evomerge.recipe.matched import Align, AlignNode, Repair, RepairNode
from evomerge.recipe.merges import Merge, MergeNode, Stages
from evomerge.recipe.reshaped import Condense, CondenseNode, Narrow, NarrowNode
from evomerge.recipe.stacks import Slot, Stack, StackNode, Stitch
from evomerge.recipe.validation import TAG, FrozenModel
from evomerge.recipe.zipped import Pleas, PleasNode, ZipIt, ZipItNode

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
    | Annotated[PleasNode, Tag(f"{TAG}pleas")]
    | Annotated[ZipItNode, Tag(f"{TAG}zipit")]
)

NODES: dict[str, type[Node]] = {next(iter(node.model_fields)): node for node, _ in map(get_args, get_args(AnyNode))}
"""Every kind of node, by its key."""

PARTS: dict[str, type[FrozenModel]] = {
    "merge": Merge,
    "stages": Stages,
    "stack": Stack,
    "slots": Slot,
    "stitch": Stitch,
    "align": Align,
    "condense": Condense,
    "repair": Repair,
    "narrow": Narrow,
    "pleas": Pleas,
    "zipit": ZipIt,
}
"""What is inside the nodes, by its key."""

FIELDS = {key: tuple(model.model_fields) for key, model in PARTS.items()}
"""Keys known inside each key of a recipe, for messages."""


def tag(node: Any) -> str:
    """Return the union tag of a node, or of the mapping that one is read from."""
    return TAG + (node.key if isinstance(node, Node) else next(iter(node)))
