"""What a merged model is: recipes, their nodes and tiling, and short forms of stacks. No torch.

A recipe is a small, frozen, serialisable expression. Not to be confused with a search space, which is a recipe with holes.
"""

from evomerge.recipe.recipe import (
    Base,
    Expert,
    Json,
    Member,
    Merge,
    MergeNode,
    Recipe,
    Slot,
    Stack,
    StackNode,
    Stage,
    Stages,
    base,
    canonical_json,
    describe,
    expand_inputs,
    expert,
    member,
    merge,
    prefix_digests,
)
from evomerge.recipe.tiling import KINDS, Node, Place, Tiled, Value, axis_size, check_axes

__all__ = [
    "KINDS",
    "Base",
    "Expert",
    "Json",
    "Member",
    "Merge",
    "MergeNode",
    "Node",
    "Place",
    "Recipe",
    "Slot",
    "Stack",
    "StackNode",
    "Stage",
    "Stages",
    "Tiled",
    "Value",
    "axis_size",
    "base",
    "canonical_json",
    "check_axes",
    "describe",
    "expand_inputs",
    "expert",
    "member",
    "merge",
    "prefix_digests",
]
