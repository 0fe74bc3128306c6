"""Tensors by name: folders, layout, adapters, earlier candidates, stacks, the pool; reading and streamed saving.

Nothing here runs a model or merges a tensor.
"""

from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.folder import Folder
from evomerge.checkpoints.header import TensorInfo
from evomerge.checkpoints.layout import Layout
from evomerge.checkpoints.pool import Pool
from evomerge.checkpoints.save import save

__all__ = ["Adapter", "Folder", "Layout", "Pool", "TensorInfo", "save"]
