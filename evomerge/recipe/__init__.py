"""Recipes of merged models: their nodes, tiling, and the short forms of stacks. No torch.

A recipe is a small, frozen, serialisable expression. Not to be confused with a search space, which is a recipe with holes.
"""

from evomerge.recipe.leaves import Base, Expert, Member
from evomerge.recipe.matched import Align, AlignNode, Repair, RepairNode
from evomerge.recipe.merges import Merge, MergeNode
from evomerge.recipe.nodes import NODES
from evomerge.recipe.recipe import Json, Recipe, base, canonical_json, expand_inputs, expert, merge
from evomerge.recipe.reshaped import Condense, CondenseNode, Narrow, NarrowNode
from evomerge.recipe.stacks import Stack, StackNode, Stitch
from evomerge.recipe.tiling import KINDS, TOWERS, Place, Tiled
from evomerge.recipe.validation import describe
from evomerge.recipe.zipped import Pleas, PleasNode, ZipIt, ZipItNode

__all__ = [
    "KINDS",
    "NODES",
    "TOWERS",
    "Align",
    "AlignNode",
    "Base",
    "Condense",
    "CondenseNode",
    "Expert",
    "Json",
    "Member",
    "Merge",
    "MergeNode",
    "Narrow",
    "NarrowNode",
    "Place",
    "Pleas",
    "PleasNode",
    "Recipe",
    "Repair",
    "RepairNode",
    "Stack",
    "StackNode",
    "Stitch",
    "Tiled",
    "ZipIt",
    "ZipItNode",
    "base",
    "canonical_json",
    "describe",
    "expand_inputs",
    "expert",
    "merge",
]
