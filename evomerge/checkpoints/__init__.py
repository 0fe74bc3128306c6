"""Tensors by name: folders, layout, adapters, earlier candidates, stacks, the pool; reading and streamed saving.

Nothing here runs a model or merges a tensor.
"""

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Checkpoint, Folder
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.members import Members
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save
from evomerge.checkpoints.stack import Stacked, StackedLayer

__all__ = [
    "Adapter",
    "Checkpoint",
    "Folder",
    "Layout",
    "Members",
    "Pool",
    "Stacked",
    "StackedLayer",
    "TensorInfo",
    "save",
]
